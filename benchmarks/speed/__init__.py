"""The speed of PWL: every figure a ratio against something measured in turn with it, in the same run.

A measure (a module of `measures`) takes a `Place` and gives `Measured`: figures, and series for plots. `suite` names
all measures, `goals.yaml` what each figure should reach; `tables` and `plots` draw what the store holds.
Weights are random: times do not depend on them.
"""
