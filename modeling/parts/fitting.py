"""Converters and statistics from images: what two trained networks need to be joined without training.

Notation: N blocks; a piece is a block or a converter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import StageError
from ..finite import Images, finite_batches, first_not_finite
from ..routes.converters import LeastSquares, channel_rows
from ..routes.route import statistics_at_rest
from ..routes.shared_paths import SharedPaths
from ..sources import Role, Sources

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..staged_model import StagedModel


def fit_converters(model: StagedModel, pixel_values: Images, ridge: float) -> None:
    """Fit every converter in closed form; see `PWLPreTrainedModel.fit_converters`."""
    names = {"teacher": "T" * model.num_stages, "student": "S" * model.num_stages}
    routes = {role: model._route_for(mask) for role, mask in names.items()}
    pieces = [p for p in sorted(model._all_pieces()) if p.kind in ("encoder", "decoder")]
    converters = {piece: model._converter(piece) for piece in pieces if model._is_resident(piece)}
    if len(converters) != len(pieces):
        raise StageError("fit_converters needs every converter: load the model with keep_all=True")
    shapes = {piece: converter.weight.shape for piece, converter in converters.items()}
    fits = {piece: LeastSquares(into, out, ridge, str(piece)) for piece, (out, into) in shapes.items()}
    was_training = model.training
    try:
        model.eval()
        routes = {role: model._route_for(mask) for role, mask in names.items()}
        for batch in finite_batches(pixel_values):
            outputs = {role: route(batch.to(model.device))[1] for role, route in routes.items()}
            for piece, fit in fits.items():
                rows = {
                    role: channel_rows(found[piece.number - 1].tensor, converters[piece].channels_first)
                    for role, found in outputs.items()
                }
                ends = ("teacher", "student") if piece.kind == "encoder" else ("student", "teacher")
                fit.add(rows[ends[0]], rows[ends[1]])
        solved = {piece: fit.solve(converters[piece].weight.dtype) for piece, fit in fits.items()}
    finally:
        model.train(was_training)
    for piece, (weight, bias) in solved.items():
        converters[piece].weight.copy_(weight)
        converters[piece].bias.copy_(bias)


def estimate_statistics(model: StagedModel, pixel_values: Images, masks: Sequence[Sources]) -> None:
    """Re-estimate the BatchNorm statistics of masks; see `PWLPreTrainedModel.estimate_statistics`."""
    for mask in masks:
        if not mask.is_mixed:
            raise ValueError(f"sources {str(mask)!r} is one whole network, whose own statistics are right")
        model._check_resident(mask)
    networks: dict[Role, PreTrainedModel] = {"teacher": model.teacher, "student": model.student}
    found = statistics_at_rest(masks, model._blueprints, networks)
    masks = [mask for mask in masks if found[mask.mask]]
    if not masks:
        return
    was_training, seen = model.training, False
    try:
        model.eval()
        routes = {mask.mask: model._route_over(mask, found[mask.mask], estimate=True) for mask in masks}
        for batch in finite_batches(pixel_values):
            paths = SharedPaths(routes.__getitem__, batch.to(model.device), model.num_stages, batch_statistics=True)
            for name in routes:
                paths(name)
            seen = True
    finally:
        model.train(was_training)
    if not seen:
        raise ValueError("estimate_statistics needs at least one image")
    for name in routes:
        if (key := first_not_finite(found[name].items())) is not None:
            raise ValueError(
                f"the statistics of mask {name} would hold NaN or infinity in {key!r}: give more images (one pixel "
                "has no variance), or look for weights that are not finite"
            )
    # Copies: in training a mask's passes update its own.
    own = {name: {key: tensor.clone() for key, tensor in found[name].items()} for name in routes}
    model._statistics = {**model._statistics, **own}
    model._reroute()
