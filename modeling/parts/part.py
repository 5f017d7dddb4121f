"""The kinds of parts that a model is made of, a class each: how one is read, made, attached, compared and released.

A new kind is one class here: what keeps parts (`Parts`), stores them and saves them asks no part of which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from ..repository.layout import file_of
from ..sources import DIRECTIONS, WITH_STUDENT, Direction, PartId, Role, Sources
from .blueprint import Shared, TensorSpec
from .networks import Networks, add_children, remove_child
from .placing import Held
from .structure import Structure, special_tensor

Tensors = dict[str, torch.Tensor]

# The student's file is also the checkpoint that `PreTrainedModel.from_pretrained` would look for: names say whose.
STUDENT_PREFIX = "student."


# Modules by full name that were made and are in no model yet.
Made = Mapping[str, nn.Module]


class Part(ABC):
    """A part of a model that is fetched, attached and released as one.

    Args:
        part_id: Which part it is.
        networks: Where it is attached.
    """

    def __init__(self, part_id: PartId, networks: Networks) -> None:
        self.id = part_id
        self.networks = networks

    def __str__(self) -> str:
        return str(self.id)

    def __lt__(self, other: Part) -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[str, PartId]:
        # What blocks share comes before any of them, in low precision too: they are made with it.
        return ("shared, then quantised" if self.id.kind == "quantised" else self.id.kind), self.id

    @property
    def role(self) -> Role | None:
        """The network that it is of; None for a converter."""
        return self.id.role

    @property
    def file(self) -> str:
        """The file of a repository that holds it."""
        return file_of(self.id, self.networks.num_blocks)

    @property
    def of_teacher(self) -> bool:
        """Whether it is frozen with the teacher."""
        return self.role == "teacher"

    @property
    def is_low(self) -> bool:
        """Whether it is a block in low precision, which stands in for one of the teacher's."""
        return False

    @property
    def blocks(self) -> tuple[int, ...]:
        """If it is shared by blocks of its network, those blocks (from 1)."""
        return ()

    @property
    def student_blocks(self) -> tuple[int, ...]:
        """If it is shared with blocks of the student, those blocks (from 1)."""
        return ()

    def is_needed(self, sources: Sources) -> bool:
        """Whether a block along a mask's path shares it."""
        shares = self.role is not None and not set(self.blocks).isdisjoint(sources.blocks(self.role))
        return shares or not set(self.student_blocks).isdisjoint(sources.blocks("student"))

    @property
    def units(self) -> frozenset[str]:
        """Full names of its modules that are compiled as one."""
        return frozenset()

    @property
    def of_labels(self) -> frozenset[str]:
        """Full names of its tensors whose shape depends on the labels."""
        return frozenset()

    @property
    @abstractmethod
    def specs(self) -> Mapping[str, TensorSpec]:
        """Its persistent tensors by full in-memory name, with their names in the file."""

    @property
    @abstractmethod
    def is_resident(self) -> bool:
        """Whether it is attached."""

    @abstractmethod
    def make(self, tensors: Tensors, device: torch.device, made: Mapping[Part, Made]) -> Made:
        """Build it over given tensors, beside the model.

        Args:
            tensors: Full in-memory name -> tensor, used and not copied, in their final dtype and on `device`.
            device: Where the rest goes.
            made: What was made before it and is not attached yet: shared parts come first.
        """

    @abstractmethod
    def attach(self, made: Made) -> None:
        """Put what was made into its place."""

    @abstractmethod
    def release(self) -> None:
        """Take it out of the model; routes that hold it keep it."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Its resident modules, by full name."""

    @abstractmethod
    def difference(self) -> str | None:
        """How it, being resident, differs from what the config describes, its values aside; None if it does not."""

    def tensors(self) -> Tensors:
        """Its resident tensors by full in-memory name."""
        return {name: _tensor(self.networks.model, name) for name in self.specs}

    @property
    def num_parameters(self) -> int:
        """How many parameters it has."""
        return sum(torch.Size(spec.shape).numel() for spec in self.specs.values() if spec.is_parameter)


class NetworkPart(Part):
    """Modules of one network: a block, or a module that each of its blocks needs.

    Args:
        part_id: Which part it is.
        networks: Where it is attached.
        shared: If it is a shared module, what the plan says of it.
    """

    def __init__(self, part_id: PartId, networks: Networks, shared: Shared | None = None) -> None:
        super().__init__(part_id, networks)
        self.network_role: Role = "teacher" if self.of_teacher else "student"
        self.plan = networks.blueprints[self.network_role]
        self._shared = shared
        self._section: int | str = part_id.number if shared is None else shared.name
        # What the full names of its modules begin with.
        self._root: str = self.network_role

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._shared.blocks if self._shared is not None else ()

    @property
    def units(self) -> frozenset[str]:
        if self._shared is not None:
            return frozenset()
        return frozenset(f"{self._root}.{path}" for path in self.plan.units.intersection(self._paths))

    @property
    def of_labels(self) -> frozenset[str]:
        if self.id.number != self.networks.num_blocks:
            return frozenset()
        paths = self.plan.family.classifier_paths(self.plan.config)
        return frozenset(name for name in self.specs if name.startswith(tuple(f"{self._root}.{p}." for p in paths)))

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        return _of_network(self.network_role, self.plan.specs(self._section))

    @property
    def is_resident(self) -> bool:
        # Asking must not make a network.
        return self.networks.has(self.network_role) and self.plan.is_resident(
            self.networks.of(self.network_role), self._section
        )

    def make(self, tensors: Tensors, device: torch.device, made: Mapping[Part, Made]) -> Made:
        network = self.networks.of(self.network_role)
        tied: dict[str, nn.Parameter] = {}
        for shared in self.plan.shared:
            held = _held(made, self.network_role, shared) if shared.places else None
            parameter = self.networks.find_tied(self.network_role, shared) if held is None else held
            if parameter is not None:
                tied[shared.name] = parameter
        if self.id.number == 1 and self.networks.shares_embedder:
            tied |= _embedder(self.networks, made)
        own = {name.removeprefix(f"{self._root}."): tensor for name, tensor in tensors.items()}
        modules = self.plan.make(network, self._section, own, device, tied, self._made_shared(made))
        return {f"{self._root}.{path}": module for path, module in modules.items()}

    def attach(self, made: Made) -> None:
        modules = {name.removeprefix(f"{self.network_role}."): module for name, module in made.items()}
        self.plan.attach(self.networks.of(self.network_role), modules)

    def release(self) -> None:
        self.plan.release(self.networks.of(self.network_role), self._section)

    def modules(self) -> dict[str, nn.Module]:
        return {f"{self._root}.{path}": self._stand.get_submodule(path) for path in self._paths}

    def difference(self) -> str | None:
        return self.plan.difference(self._stand, self._section)

    def _made_shared(self, made: Mapping[Part, Made]) -> dict[str, nn.Module]:
        """The shared modules of the network that were made and are not attached yet, by path."""
        shared = (modules for part, modules in made.items() if part.role == self.network_role and part.blocks)
        return {name.removeprefix(f"{self.network_role}."): m for modules in shared for name, m in modules.items()}

    @property
    def _paths(self) -> tuple[str, ...]:
        return self.plan.paths(self._section)

    @property
    def _stand(self) -> nn.Module:
        """Where its modules stand, by their paths in the network."""
        return self.networks.of(self.network_role)


class QuantisedPart(NetworkPart):
    """A block of the teacher in low precision; its modules stand apart from the teacher, which has exact ones alone."""

    def __init__(self, part_id: PartId, networks: Networks) -> None:
        super().__init__(part_id, networks)
        self._root = "quantised"

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        return {f"{self._root}.{name}": spec for name, spec in self.plan.specs(self._section).items()}

    @property
    def exact(self) -> PartId:
        """The block itself."""
        return PartId("teacher", self.id.number)

    @property
    def is_low(self) -> bool:
        return True

    @property
    def is_resident(self) -> bool:
        # Asking must not make a place for them.
        return "quantised" in self.networks.model._modules and self.networks.low_precision.has(self._paths[0])

    def make(self, tensors: Tensors, device: torch.device, made: Mapping[Part, Made]) -> Made:
        self.networks.low_precision.make_way(self._paths)
        return super().make(tensors, device, made)

    def attach(self, made: Made) -> None:
        modules = {name.removeprefix(f"{self._root}."): module for name, module in made.items()}
        self.networks.low_precision.add(modules)

    def release(self) -> None:
        self.networks.low_precision.remove(self._paths)

    @property
    def _stand(self) -> nn.Module:
        return self.networks.low_precision


class TiedPart(Part):
    """One parameter that modules of several blocks have, such as a decoder's embeddings and head.

    Its modules are the blocks'; it is resident as long as one of them is.
    """

    def __init__(self, part_id: PartId, networks: Networks, shared: Shared) -> None:
        super().__init__(part_id, networks)
        self.network_role: Role = "teacher" if self.of_teacher else "student"
        self.plan = networks.blueprints[self.network_role]
        self._shared = shared

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._shared.blocks

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        return _of_network(self.network_role, self.plan.specs(self._shared.name))

    @property
    def is_resident(self) -> bool:
        return self._found() is not None

    def make(self, tensors: Tensors, device: torch.device, made: Mapping[Part, Made]) -> Made:
        return {"": Held(nn.Parameter(next(iter(tensors.values()))))}

    def attach(self, made: Made) -> None:
        """Nothing: the modules of the blocks were made with it."""

    def release(self) -> None:
        """Nothing: it goes with the last block that has it."""

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def difference(self) -> str | None:
        return None  # The blocks' own tells of a tie that was broken.

    def tensors(self) -> Tensors:
        found = self._found()
        return {} if found is None else {name: found.detach() for name in self.specs}

    def _found(self) -> nn.Parameter | None:
        return self.networks.find_tied(self.network_role, self._shared)


class EmbedderPart(Part):
    """The parameters of the embedder that the teacher and the student share, frozen with the teacher.

    Each network has modules of its own over them, in its first block. One of these is on every path, so it is resident
    always, in one precision.
    """

    @property
    def blocks(self) -> tuple[int, ...]:
        return (1,)

    @property
    def student_blocks(self) -> tuple[int, ...]:
        return (1,)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        # By the student's plan, which is read anyway; the teacher's was compared, or will be before it is built.
        return _of_network("teacher", self.networks.blueprints["student"].specs(WITH_STUDENT))

    @property
    def is_resident(self) -> bool:
        return self.networks.has_embedder

    def make(self, tensors: Tensors, device: torch.device, made: Mapping[Part, Made]) -> Made:
        return {name: Held(nn.Parameter(tensor)) for name, tensor in tensors.items()}

    def attach(self, made: Made) -> None:
        """Nothing: the modules of the first blocks were made with it."""

    def release(self) -> None:
        """Nothing: it stays with the first block of the other network."""

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def difference(self) -> str | None:
        return self.networks.embedder_difference()

    def tensors(self) -> Tensors:
        return {f"teacher.{name}": found[0].detach() for name, found in self.networks.find_embedder().items() if found}


class ConverterPart(Part):
    """A converter at a boundary."""

    @property
    def direction(self) -> Direction:
        """Which way it leads."""
        return "encoder" if self.id.kind == "encoder" else "decoder"

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        tensors = self._on_meta().state_dict()
        return {f"{self._name}.{key}": TensorSpec(key, tuple(t.shape), True, True) for key, t in tensors.items()}

    @property
    def is_resident(self) -> bool:
        return str(self.id.number) in self.networks.converters(self.direction)

    def make(self, tensors: Tensors, device: torch.device, made: Mapping[Part, Made]) -> Made:
        converter = self._on_meta()
        converter.load_state_dict({name.rpartition(".")[2]: t for name, t in tensors.items()}, assign=True)
        return {self._name: converter.eval()}

    def attach(self, made: Made) -> None:
        add_children(self.networks.converters(self.direction), {str(self.id.number): made[self._name]})

    def release(self) -> None:
        remove_child(self.networks.converters(self.direction), str(self.id.number))

    def modules(self) -> dict[str, nn.Module]:
        return {self._name: self.networks.converters(self.direction)[str(self.id.number)]}

    def difference(self) -> str | None:
        converter = self.modules()[self._name]
        return Structure.of(self._on_meta()).difference(Structure.of(converter)) or special_tensor(converter)

    @property
    def _name(self) -> str:
        return f"{self.direction}s.{self.id.number}"

    def _on_meta(self) -> nn.Module:
        with torch.device("meta"):
            return self.networks.new_converter(self.direction, self.id.number)


class Inventory:
    """Every part that a model can have.

    Args:
        networks: Where they are attached.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks

    @cached_property
    def parts(self) -> dict[PartId, Part]:
        """The parts in a fixed order, what blocks share before the blocks."""
        found: list[Part] = []
        for role, plan in self.networks.blueprints.items():
            for shared in plan.shared:
                kind = TiedPart if shared.places else NetworkPart
                found.append(kind(PartId("shared", 0, shared.name, role), self.networks, shared))
            found += [NetworkPart(PartId(role, block), self.networks) for block in range(1, plan.num_blocks + 1)]
        if self.networks.shares_embedder:
            found.append(EmbedderPart(PartId("shared", 0, WITH_STUDENT, "teacher"), self.networks))
        blocks = range(1, self.networks.num_blocks + 1)
        found += [QuantisedPart(PartId("quantised", block), self.networks) for block in blocks]
        for boundary in range(1, self.networks.num_blocks):
            found += [ConverterPart(PartId(direction, boundary), self.networks) for direction in DIRECTIONS]
        return {part.id: part for part in sorted(found)}

    @cached_property
    def by_file(self) -> dict[str, list[Part]]:
        """The parts that each file of a repository holds, as they are in it."""
        found: dict[str, list[Part]] = {}
        for part in self.parts.values():
            if not isinstance(part, QuantisedPart):
                found.setdefault(part.file, []).append(part)
        return found

    def of(self, sources: Sources) -> frozenset[Part]:
        """Everything that a mask's path runs through."""
        shared = (part for part in self.parts.values() if part.is_needed(sources))
        return frozenset([*(self.parts[part_id] for part_id in sources.part_ids), *shared])


def _of_network(role: Role, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    prefix = STUDENT_PREFIX if role == "student" else ""
    return {f"{role}.{n}": replace(s, checkpoint_name=prefix + s.checkpoint_name) for n, s in specs.items()}


def _held(made: Mapping[Part, Made], role: Role, shared: Shared) -> nn.Parameter | None:
    wanted = PartId("shared", 0, shared.name, role)
    held = next((modules[""] for part, modules in made.items() if part.id == wanted), None)
    return held.parameter if isinstance(held, Held) else None


def _embedder(networks: Networks, made: Mapping[Part, Made]) -> dict[str, nn.Parameter]:
    """The parameters of the embedder that both networks share, by the name in either."""
    found = {name: parameters[0] for name, parameters in networks.find_embedder().items() if parameters}
    for held in (modules for part, modules in made.items() if isinstance(part, EmbedderPart)):
        found |= {n.removeprefix("teacher."): h.parameter for n, h in held.items() if isinstance(h, Held)}
    return found


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(path), leaf)
    return tensor.detach()
