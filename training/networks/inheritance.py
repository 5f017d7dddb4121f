"""A student's first weights from its teacher's own layers (BERT-of-Theseus, arXiv 2002.02925, does so)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from pwl_hf.modeling import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.routes.cuts import units_of_block

logger = logging.getLogger(__name__)

CHOICES = ("spread", "first")


@dataclass(frozen=True)
class Inheritance:
    """What a student took over.

    Args:
        copied: Path of a module in the student -> path of the teacher's that it equals now.
        left: Paths of the student's modules that have no teacher's module of their shapes, and stay as they were.
    """

    copied: dict[str, str]
    left: tuple[str, ...]

    def __str__(self) -> str:
        """A line for the log."""
        pairs = ", ".join(name if name == of else f"{name} from {of}" for name, of in self.copied.items())
        rest = f"; as they were: {', '.join(self.left)}" if self.left else ""
        return f"initialised from the teacher's own layers: {pairs}{rest}"


@torch.no_grad()
def inherit(model: PWLForImageClassification, how: str = "spread") -> Inheritance:
    """Copy the teacher's layers into the student's, block by block, where shapes allow.

    The n units that a student's block has at a resolution take over n of the m that the teacher's block has there:
    unit j (from 0) that of number j m / n, rounded down (`"spread"`), or that of number j (`"first"`). Embedder,
    head and what stands between resolutions take over the same of the teacher. A module is copied whole, buffers
    included, or, if any tensor's shape differs, not at all.

    Args:
        model: A PWL model with everything resident.
        how: One of `CHOICES`.

    Returns:
        What was copied, and what was not.

    Raises:
        ValueError: For another `how`; if not one unit of the student can be copied, which then is unchanged.
    """
    if how not in CHOICES:
        raise ValueError(f"init_student_from_teacher must be one of {', '.join(CHOICES)}, got {how!r}")
    teacher, student = model.teacher, model.student
    pairs = _pairs(model, how)
    fitting = {
        own: other
        for own, other in pairs.items()
        if _shapes(student.get_submodule(own)) == _shapes(teacher.get_submodule(other))
    }
    units = {path for path in pairs if path in _unit_paths(model)}
    if not units & fitting.keys():
        shown = next(path for path in pairs if path in units)
        raise ValueError(
            "init_student_from_teacher: no layer of the student has the shapes of the teacher's, such as "
            f"{shown!r}: give a student of the teacher's width (student_preset half-depth), or leave it out"
        )
    for own, other in fitting.items():
        student.get_submodule(own).load_state_dict(teacher.get_submodule(other).state_dict())
    found = Inheritance(fitting, tuple(path for path in pairs if path not in fitting))
    logger.info("%s", found)
    return found


def _pairs(model: PWLForImageClassification, how: str) -> dict[str, str]:
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
                given = family.unit_paths(other, sources[number])
                for path in family.unit_paths(own, unit):
                    if _is_numbered(path):
                        pairs[path] = next(found for found in given if _is_numbered(found))
                    else:
                        # Between resolutions: there is one, of the same name in both.
                        pairs[path] = path
    pairs |= {path: path for path in (*family.head_paths(own), *family.shared_paths(own))}
    if not family.has_optional_paths:
        return pairs
    return {mine: given for mine, given in pairs.items() if has_module(model.student, mine)}


def _by_level(model: PWLForImageClassification, role: str, block: int) -> dict[int, list[int]]:
    network = getattr(model.config, f"{role}_config")
    family = family_of(network)
    found: dict[int, list[int]] = {}
    for unit in units_of_block(getattr(model.config, f"{role}_cuts"), block):
        found.setdefault(family.level(network, unit)[0], []).append(unit)
    return found


def _unit_paths(model: PWLForImageClassification) -> frozenset[str]:
    network = model.config.student_config
    family = family_of(network)
    return frozenset(path for unit in range(family.num_units(network)) for path in family.unit_paths(network, unit))


def _is_numbered(path: str) -> bool:
    return path.rpartition(".")[2].isdigit()


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def has_module(network: torch.nn.Module, path: str) -> bool:
    """Whether a network has a module at a path."""
    try:
        network.get_submodule(path)
    except AttributeError:
        return False
    return True
