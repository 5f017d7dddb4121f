"""A pair on published figures: ResNet-56 of He et al. for CIFAR-10, a network that neither transformers nor PWL has.

    python -m benchmarks real --weights DIR --data DIR

The network, and how it is cut, are a family of a user's own: `network` and `family`. Students, recipes and what early exit
is held against stand in `definitions/`, as those of `benchmarks.recipes` do.
"""
