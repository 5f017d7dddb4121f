"""Where parts are attached: the two networks and the converters, which are children of the model."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..configuration_pwl import PWLConfig
from ..errors import RepositoryError
from ..routes.converters import Converter
from ..sources import WITH_STUDENT, Direction, Role
from .blueprint import Blueprint, Shared, TensorSpec
from .locking import StateLock
from .placing import Held, is_there

# The model's children that are frozen with the teacher.
OF_TEACHER = ("teacher", "quantised")


class Networks:
    """The networks and converters of a model, a network made when it is first asked for.

    Args:
        model: The model whose children they are.
        config: Its config.
        task: The Auto class of its task.
    """

    def __init__(self, model: PreTrainedModel, config: PWLConfig, task: str) -> None:
        self.model = model
        self.shares_embedder = shares = config.share_embedder
        self.blueprints: dict[Role, Blueprint] = {
            "teacher": Blueprint("teacher", config.teacher_config, config.teacher_cuts, task, shares_embedder=shares),
            "student": Blueprint("student", config.student_config, config.student_cuts, task, shares_embedder=shares),
        }
        self.lock = StateLock()

    @property
    def model(self) -> PreTrainedModel:
        """The model whose children the networks and converters are."""
        model = self._model()
        if model is None:
            raise ReferenceError("the model whose parts these are is gone")
        return model

    @model.setter
    def model(self, model: PreTrainedModel) -> None:
        # Not held: a model that nobody holds gives its memory back at once.
        self._model = weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model says whose they are.
        return {name: value for name, value in self.__dict__.items() if name != "_model"}

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return self.blueprints["student"].num_blocks

    @property
    def aliases(self) -> dict[str, str]:
        """Further full names that the model's state dict has for tied tensors -> the full name of the first place.

        Of an embedder that both networks share, the teacher's names come first.
        """
        plans = self.blueprints.items()
        found = {f"{role}.{name}": f"{role}.{first}" for role, plan in plans for name, first in plan.aliases.items()}
        return found | {f"student.{name}": f"teacher.{name}" for name in self._of_embedder}

    @property
    def low_precision(self) -> LowPrecision:
        """The teacher's blocks in low precision that are resident."""
        found = self.model._modules.get("quantised")
        if found is None:
            with self.lock:
                if "quantised" not in self.model._modules:
                    add_children(self.model, {"quantised": LowPrecision()})
            found = self.model._modules["quantised"]
        return found  # type: ignore[return-value]

    def find_tied(self, role: Role, shared: Shared) -> nn.Parameter | None:
        """A tied tensor, where a block of a network has it now; None if no block that needs it is resident."""
        found = (self.blueprints[role].find_tied(stand, shared.places) for stand in self._stands(role))
        return next((parameter for parameter in found if parameter is not None), None)

    @property
    def has_embedder(self) -> bool:
        """Whether an embedder that both networks share is resident."""
        return next(self._embedders(), None) is not None

    def find_embedder(self) -> dict[str, list[nn.Parameter]]:
        """Of an embedder that both networks share, by the name in either, the parameters that are resident.

        That is one of each name, unless others were put in at one of its places.
        """
        found: dict[str, list[nn.Parameter]] = {name: [] for name in self._of_embedder}
        for _, plan, stand in self._embedders():
            for name, known in found.items():
                parameter = plan.find_tied(stand, [name])
                if parameter is not None and not any(parameter is other for other in known):
                    known.append(parameter)
        return found

    def embedder_difference(self) -> str | None:
        """How an embedder that both networks share differs from what the config says, its values aside, in words."""
        for role, plan, stand in self._embedders():
            if (difference := plan.difference(stand, WITH_STUDENT)) is not None:
                return f"of the {role}, {difference}"
        parted = (name for name, found in self.find_embedder().items() if len(found) > 1)
        return next((f"{name!r} is not one tensor of teacher and student, as its config says" for name in parted), None)

    def _embedders(self) -> Iterator[tuple[Role, Blueprint, nn.Module]]:
        """Where an embedder that both networks share stands now: whose it is there, that one's plan, and the place."""
        for role, plan in self.blueprints.items() if self.shares_embedder else ():
            for stand in self._stands(role):
                if is_there(stand, plan.paths(WITH_STUDENT)[0]):
                    yield role, plan, stand

    def refused_embedder(self) -> str | None:
        """Why the two networks cannot share an embedder, as they are to by the config; None if they can."""
        if not self.shares_embedder:
            return None
        difference = self.blueprints["teacher"].other_embedder(self.blueprints["student"])
        if difference is None:
            return None
        return f"share_embedder needs embedders that are built alike, but {difference}"

    @property
    def _of_embedder(self) -> Mapping[str, TensorSpec]:
        """The tensors of an embedder that both networks share, by the name in either; none if they share none."""
        # By the student's plan: a first answer need not build the teacher.
        return self.blueprints["student"].specs(WITH_STUDENT) if self.shares_embedder else {}

    def _stands(self, role: Role) -> list[nn.Module]:
        """Where modules of a network stand now, by their paths in it."""
        stands: list[nn.Module] = [self.of(role)] if self.has(role) else []
        if role == "teacher" and "quantised" in self.model._modules:
            stands.append(self.low_precision)
        return stands

    def has(self, role: Role) -> bool:
        """Whether a network exists, which asking for it would make."""
        return role in self.model._modules

    def of(self, role: Role) -> PreTrainedModel:
        """A network, a model of its original class; `Vacant` modules stand for what is not resident."""
        if not self.has(role):
            with self.lock:
                if not self.has(role):
                    # Not before it is needed: a first answer takes no part of the teacher.
                    network = self.blueprints[role].build_vacant().eval()
                    if (reason := self.refused_embedder()) is not None:
                        raise RepositoryError(f"config.json: {reason}")
                    add_children(self.model, {role: network})
        return self.model._modules[role]  # type: ignore[return-value]

    def converters(self, direction: Direction) -> nn.ModuleDict:
        """The resident converters of one direction, by boundary."""
        return self.model._modules[f"{direction}s"]  # type: ignore[return-value]

    def new_converter(self, direction: Direction, boundary: int) -> Converter:
        """A freshly initialised converter for a boundary (from 1)."""
        teacher, student = (
            plan.family.boundary(plan.config, plan.cuts[boundary - 1])
            for plan in (self.blueprints["teacher"], self.blueprints["student"])
        )
        before, after = (teacher, student) if direction == "encoder" else (student, teacher)
        return Converter(before.width, after.width, before.channels_first)


class LowPrecision(nn.Module):
    """The teacher's blocks in low precision, each module at its path in the teacher, with nothing between them."""

    def has(self, path: str) -> bool:
        """Whether a module is here."""
        module: nn.Module | None = self
        for step in path.split("."):
            module = module._modules.get(step) if module is not None else None
        return module is not None

    def make_way(self, paths: Iterable[str]) -> None:
        """Make the containers of modules that are about to come: a route notes where they will be."""
        for path in paths:
            parent: nn.Module = self
            for step in path.split(".")[:-1]:
                if parent._modules.get(step) is None:
                    add_children(parent, {step: nn.Module().eval()})
                parent = parent._modules[step]  # type: ignore[assignment]

    def add(self, modules: Mapping[str, nn.Module]) -> None:
        """Put modules at their paths."""
        self.make_way(modules)
        for path, module in modules.items():
            parent, _, name = path.rpartition(".")
            if isinstance(module, Held):
                self.get_submodule(parent).register_parameter(name, module.parameter)
            else:
                add_children(self.get_submodule(parent), {name: module})

    def remove(self, paths: Iterable[str]) -> None:
        """Take modules away, and what is empty then."""
        for path in paths:
            while path:
                above, _, name = path.rpartition(".")
                parent = self.get_submodule(above)
                remove_child(parent, name)
                path = "" if parent._modules else above


# A new dict: another thread may be iterating over the old one.
def add_children(parent: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Give a module further children, or others."""
    parent._modules = {**parent._modules, **modules}


def remove_child(parent: nn.Module, name: str) -> None:
    """Take a child of a module away."""
    parent._modules = {key: module for key, module in parent._modules.items() if key != name}
