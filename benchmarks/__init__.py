"""How fast PWL is, against transformers' own loader; and what recipes of training are worth.

    python -m benchmarks speed --pair vit-b
    python -m benchmarks recipes headline --data FOLDER

Run from a checkout.
"""
