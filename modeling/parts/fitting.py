"""Converters and statistics from data: what two trained networks need to be joined without training.

Notation: N blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import StageError
from ..finite import first_not_finite, on_device
from ..routes.converters import Converter, LeastSquares, channel_rows
from ..routes.route import statistics_at_rest
from ..routes.shared_paths import SharedPaths
from ..sources import DIRECTIONS, PartId, Role, Sources
from .router import Router

Inputs = Mapping[str, Any]


def fit_converters(router: Router, batches: Iterable[Inputs], ridge: float) -> None:
    """Fit every converter in closed form; see `PWLPreTrainedModel.fit_converters`."""
    # 1. Every converter, and the routes of both whole networks.
    parts = router.parts
    masks: dict[Role, str] = {"teacher": "T" * parts.num_blocks, "student": "S" * parts.num_blocks}
    for mask in masks.values():
        router.of(mask)
    converters: dict[PartId, Converter] = {
        PartId(direction, int(boundary)): converter  # type: ignore[misc]
        for direction in sorted(DIRECTIONS)
        for boundary, converter in parts.networks.converters(direction).items()
    }
    if len(converters) != len(DIRECTIONS) * (parts.num_blocks - 1):
        raise StageError("fit_converters needs every converter: load the model with keep_all=True")
    fits = {}
    for part, converter in converters.items():
        width_out, width_in = converter.weight.shape
        fits[part] = LeastSquares(width_in, width_out, ridge, str(part))
    # 2. Sums over the features at each boundary, in eval mode.
    model = parts.networks.model
    was_training = model.training
    try:
        model.eval()
        routes = {role: router.of(mask) for role, mask in masks.items()}
        for batch in batches:
            inputs = on_device(batch, model.device)
            outputs = {role: route(inputs).outputs for role, route in routes.items()}
            for part, fit in fits.items():
                rows = {
                    role: channel_rows(found[part.number - 1].tensor, converters[part].channels_first)
                    for role, found in outputs.items()
                }
                ends: tuple[Role, Role] = ("teacher", "student") if part.kind == "encoder" else ("student", "teacher")
                fit.add(rows[ends[0]], rows[ends[1]])
        solved = {part: fit.solve(converters[part].weight.dtype) for part, fit in fits.items()}
    finally:
        model.train(was_training)
    # 3. All solved, so all are replaced.
    for part, (weight, bias) in solved.items():
        converters[part].weight.copy_(weight)
        converters[part].bias.copy_(bias)


def estimate_statistics(router: Router, batches: Iterable[Inputs], masks: Sequence[Sources]) -> None:
    """Re-estimate the BatchNorm statistics of masks; see `PWLPreTrainedModel.estimate_statistics`."""
    # 1. Masks that can have statistics, at rest.
    parts = router.parts
    for mask in masks:
        if not mask.is_mixed:
            raise ValueError(f"sources {str(mask)!r} is one whole network, whose own statistics are right")
        if mask.low_blocks:
            raise ValueError(
                f"sources {str(mask)!r} goes by the statistics of {str(mask.exact)!r}, of the teacher's own blocks: "
                "give that"
            )
        parts.check_resident(mask)
    found = statistics_at_rest(masks, parts.networks.blueprints, parts.networks.of)
    masks = [mask for mask in masks if found[mask.mask]]
    if not masks:
        return
    # 2. Passes that gather them, blocks in common once.
    model, seen = parts.networks.model, False
    was_training = model.training
    try:
        model.eval()
        routes = {mask.mask: router.build(mask, statistics=found, estimate=True) for mask in masks}
        for batch in batches:
            inputs = on_device(batch, model.device)
            paths = SharedPaths(routes.__getitem__, inputs, parts.num_blocks, batch_statistics=True)
            for name in routes:
                paths(name)
            seen = True
    finally:
        model.train(was_training)
    # 3. Sound ones alone are taken over.
    if not seen:
        raise ValueError("estimate_statistics needs at least one sample")
    for name in routes:
        if (key := first_not_finite(found[name].items())) is not None:
            raise ValueError(
                f"the statistics of mask {name} would hold NaN or infinity in {key!r}: give more samples (one pixel "
                "has no variance), or look for weights that are not finite"
            )
    # Copies: in training a mask's passes update its own.
    own = {name: {key: tensor.clone() for key, tensor in found[name].items()} for name in routes}
    parts.statistics = {**parts.statistics, **own}
    router.reset()
