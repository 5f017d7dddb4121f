"""What the optimizer trains, and how: the student, and the converters at a learning rate of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.routes.batchnorm import BATCH_NORMS

_NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(
    model: PWLPreTrainedModel,
    decayed: Collection[str],
    *,
    learning_rate: float,
    converter_lr_scale: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """The groups of an optimizer, the student's first; those that would be empty are left out.

    Args:
        model: The model; the teacher's parameters, and whatever else requires no gradients, are in no group.
        decayed: The names of the parameters that weight decay is for.
        learning_rate: Of the student.
        converter_lr_scale: Of the converters, relative to it.
        weight_decay: For the parameters that have it.
    """
    # Also under the student's names, where it shares an embedder.
    of_teacher = {id(parameter) for parameter in model.teacher.parameters()}
    groups: list[dict[str, Any]] = []
    for of_student in (True, False):
        rate = learning_rate * (1.0 if of_student else converter_lr_scale)
        own = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in of_teacher and name.startswith("student.") == of_student
        }
        for decay in (True, False):
            members = [parameter for name, parameter in own.items() if (name in decayed) == decay]
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": weight_decay if decay else 0.0})
    return groups


def names_within_norms(model: nn.Module) -> set[str]:
    """The names of the parameters of normalisation layers of every kind."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
