"""A student's first weights from its teacher's own layers (BERT-of-Theseus, arXiv 2002.02925, does so)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.routes.cuts import units_of_block
from pwl_hf.training.networks.slices.axes import has_module
from pwl_hf.training.networks.slices.slicing import Slices, begin_converters, begin_student, slices_of

logger = logging.getLogger(__name__)

CHOICES = ("spread", "first")


@dataclass(frozen=True)
class Inheritance:
    """What a student took over.

    Args:
        copied: Path of a module in the student -> path of the teacher's that it equals now.
        sliced: Path of a module in the student -> path of the teacher's that it is a slice of now.
        slices: Which slices.
    """

    copied: dict[str, str]
    sliced: dict[str, str]
    slices: Slices

    def __str__(self) -> str:
        """A line for the log."""
        said = []
        for title, pairs in (("copied", self.copied), ("sliced", self.sliced)):
            if pairs:
                shown = ", ".join(name if name == of else f"{name} from {of}" for name, of in pairs.items())
                said.append(f"{title}: {shown}")
        if self.slices.rotations:
            said.append(f"turned before: {', '.join(self.slices.rotations)}")
        return f"the student begins as the teacher's own layers; {'; '.join(said)}"


@torch.no_grad()
def inherit(
    model: PWLPreTrainedModel,
    how: str = "spread",
    batches: Iterable[Mapping[str, torch.Tensor]] = (),
    *,
    converters: bool = False,
) -> Inheritance:
    """Let the student begin as layers of the teacher, block by block: copies of them, or slices where it is narrower.

    The n units that a student's block has at a resolution take over n of the m that the teacher's block has there:
    unit j (from 0) that of number j m / n, rounded down (`"spread"`), or that of number j (`"first"`). Embedder,
    head and what stands between resolutions take over the same of the teacher. Where both are equally wide, tensors
    are copied, buffers included; how they are sliced elsewhere is in `slices.slicing`.

    Args:
        model: A PWL model of one family with everything resident.
        how: One of `CHOICES`.
        batches: Some inputs by name, such as `pixel_values` (B, C, H, W), by which a narrower student's channels are
            chosen; labels are left out. A student of its teacher's widths needs none.
        converters: Whether the converters begin to match: as the maps that streams were sliced by, at equal widths
            the identity.

    Returns:
        What was copied, and what was sliced.

    Raises:
        ValueError: For another `how`; for networks of two families; for what does not fit, by name: a student that is
            wider somewhere, or narrower in other ways at parts that share channels; without inputs, where they are
            needed. Nothing is changed then.

    Example:

        >>> images = [{"pixel_values": batch} for batch in some_batches]  # doctest: +SKIP
        >>> inherit(model, batches=images, converters=True)  # doctest: +SKIP
    """
    if how not in CHOICES:
        raise ValueError(f"init_student_from_teacher must be one of {', '.join(CHOICES)}, got {how!r}")
    own, other = model.config.student_config.model_type, model.config.teacher_config.model_type
    if own != other:
        raise ValueError(
            f"init_student_from_teacher: the student's family is {own!r} and the teacher's {other!r}: give a student "
            "of the teacher's family, or leave the option out"
        )
    pairs = _pairs(model, how)
    slices = slices_of(model, pairs, batches)
    begin_student(model, slices)
    if converters:
        begin_converters(model, slices)
    mine, theirs = model.student, model.teacher
    same = {path for path, of in pairs.items() if _equal(mine.get_submodule(path), theirs.get_submodule(of))}
    found = Inheritance(
        {path: of for path, of in pairs.items() if path in same},
        {path: of for path, of in pairs.items() if path not in same},
        slices,
    )
    logger.info("%s", found)
    return found


def _pairs(model: PWLPreTrainedModel, how: str) -> dict[str, str]:
    """Every module of the student that has tensors, with the teacher's that it would equal."""
    config = model.config
    family = family_of(config.teacher_config)
    own, other = config.student_config, config.teacher_config
    pairs = {path: path for path in family.embedder_paths(own)}
    for block in range(1, config.num_blocks + 1):
        mine = _by_level(model, "student", block)
        theirs = _by_level(model, "teacher", block)
        for level, units in mine.items():
            # A block of the teacher's without this resolution has nothing to give to it.
            sources = theirs.get(level, [])
            for j, unit in enumerate(units):
                number = j * len(sources) // len(units) if how == "spread" else j
                if number >= len(sources):
                    continue
                paths, given = family.unit_paths(own, unit), family.unit_paths(other, sources[number])
                # Between resolutions: there is one, of the same name in both.
                pairs |= zip(paths, given if len(given) == len(paths) else paths, strict=True)
                pairs[family.layer_path(own, unit)] = family.layer_path(other, sources[number])
    pairs |= {path: path for path in (*family.head_paths(own), *family.shared_paths(own))}
    if not family.has_optional_paths:
        return pairs
    return {mine: given for mine, given in pairs.items() if has_module(model.student, mine)}


def _by_level(model: PWLPreTrainedModel, role: str, block: int) -> dict[int, list[int]]:
    network = getattr(model.config, f"{role}_config")
    family = family_of(network)
    found: dict[int, list[int]] = {}
    for unit in units_of_block(getattr(model.config, f"{role}_cuts"), block):
        found.setdefault(family.level(network, unit)[0], []).append(unit)
    return found


def _equal(own: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether a module is a copy of another: channels may be as many, and in another order."""
    given = other.state_dict()
    return all(torch.equal(tensor, given[name]) for name, tensor in own.state_dict().items())
