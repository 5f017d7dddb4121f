"""Which training makes the better PWL model: recipes against each other, on the same teacher, student, data and epochs.

    python -m benchmarks recipes headline --store model_cards/results.json --data DIR

What is compared stands in `definitions/*.yaml`. Every run is a process of its own that trains as a user would
(`training/train.py`, `pwl-hf evaluate`); its result goes into one JSON store, from which the tables are made.
"""
