"""How long it takes: PWL against transformers' own loader, in ratios from one run.

    python -m benchmarks loading --pair vit-b

Run from a checkout. Weights are random: times do not depend on them.
"""
