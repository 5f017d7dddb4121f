"""BatchNorm statistics that belong to a path rather than to a module.

A student block sees other features at every stage, so its running statistics fit only one of them.
A path therefore runs *twins* of its modules: they share every parameter with the original and own
nothing but the running statistics (as slimmable networks do, arXiv 1812.08928). A forward pass in flight
keeps the twins it started with.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from ..errors import StageError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
RUNNING = ("running_mean", "running_var")

# Full name of a running statistic ("student.resnet.….running_mean") -> its values.
Statistics = Mapping[str, torch.Tensor]


def batch_norms(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The BatchNorm modules with running statistics within a module called `name`, by full name."""
    for path, part in module.named_modules():
        if isinstance(part, BATCH_NORMS) and part.running_mean is not None:
            yield (f"{name}.{path}" if path else name), part


def own_statistics(module: nn.Module, name: str, *, reset: bool = False) -> dict[str, torch.Tensor]:
    """Copies of the running statistics within a module called `name`; at mean 0, variance 1 with `reset`."""
    found: dict[str, torch.Tensor] = {}
    for path, part in batch_norms(module, name):
        for key in RUNNING:
            value = getattr(part, key).detach().clone()
            found[f"{path}.{key}"] = value.fill_(float(key == "running_var")) if reset else value
    return found


def twin(module: nn.Module, name: str, statistics: Statistics, *, estimate: bool = False) -> nn.Module:
    """A module that shares all parameters with `module` and takes its running statistics from `statistics`.

    Args:
        module: The module; itself returned if it holds no BatchNorm.
        name: Its full name, the prefix of its keys in `statistics`.
        statistics: Full name -> tensor, for every running statistic in the module. The tensors are used, not
            copied: in training mode the twin's passes update them.
        estimate: Put the twin's BatchNorms (alone) into training mode with a cumulative average, so that
            passes from statistics at rest leave the mean over batches in `statistics`.

    Raises:
        StageError: If the forward of a module was replaced, so that a copy of the module would run the original.
    """
    if not any(True for _ in batch_norms(module, name)):
        return module
    if "forward" in module.__dict__:
        # A copy would run the original, with the original's statistics.
        raise StageError(
            f"the forward of {name} was replaced, as accelerate's hooks do it, so a mask's BatchNorm statistics cannot "
            "be used: call accelerate.hooks.remove_hook_from_submodules(model) first"
        )
    other = copy.copy(module)
    # Parameters stay in the one dict of both, so that moves and casts reach the twin.
    other.__dict__["_modules"] = {
        key: child if child is None else twin(child, f"{name}.{key}", statistics, estimate=estimate)
        for key, child in module._modules.items()
    }
    if isinstance(module, BATCH_NORMS):
        buffers = dict(module._buffers)
        buffers.update({key: statistics[f"{name}.{key}"] for key in RUNNING})
        if module.num_batches_tracked is not None:
            buffers["num_batches_tracked"] = torch.zeros_like(module.num_batches_tracked)
        other.__dict__["_buffers"] = buffers
        if estimate:
            other.__dict__["training"] = True
            other.__dict__["momentum"] = None
    return other
