"""A pair on published figures: ResNet-56 of He et al. for CIFAR-10, a network that transformers lacks.

    python -m benchmarks recipes real --data DIR --weights DIR
    python -m benchmarks real --data DIR --weights DIR

The network and how it is cut are a family of a user's own: `network` and `family`. The first command trains the pairs
of `benchmarks/recipes/definitions/real.yaml`, the second one early exit, and holds PWL against what one could do
instead: accuracies, bytes, and seconds from a fresh process and a Hub.
"""
