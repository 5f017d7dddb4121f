"""The swap: making other parts resident and taking another path, all of it or nothing.

See docs/architecture.md for how it works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from ..errors import StageError
from ..parts.locking import SWAPPING
from ..parts.part import Made, Part, Tensors
from ..parts.parts import Parts
from ..parts.router import Router
from ..parts.structure import has_accelerate_hooks
from ..repository.layout import statistics_file
from ..routes.route import Route
from ..sources import Sources
from .transferring import SideStream, beside_requests, side_stream
from .warming import Seen, first_call, touch_pages


class Swapper:
    """Moves a model from one set of resident parts to another.

    Args:
        parts: The parts.
        router: The routes over them.
    """

    def __init__(self, parts: Parts, router: Router) -> None:
        self.parts, self.router = parts, router
        # The shapes of the last answer: what a new block is warmed on.
        self.seen: Seen | None = None

    def move(self, target: Sources, device: torch.device, dtype: torch.dtype, *, warm: bool = False) -> None:
        """Make resident what a mask's path needs, release what it does not, and take that path.

        Args:
            target: The mask.
            device: Where parts that come go.
            dtype: Their floating dtype.
            warm: Call what is new before it answers, without standing in the way of requests.

        Raises:
            StageError: If a block that would be released was changed; if hooks keep weights elsewhere.
            RepositoryError: If a file is not what the manifest says. The model stays as it was.
        """
        parts, store = self.parts, self.parts.store
        refuse_hooks(parts)
        wanted, resident = parts.wanted(target), parts.resident()
        missing, surplus = sorted(wanted - resident), sorted(resident - wanted)
        # In the background the device is asked for nothing that requests would wait behind.
        side = side_stream(device) if warm else None
        # 1. Everything that can fail: files, hashes, names, shapes, and changes that would be lost.
        masks: Sequence[Sources] = [target]
        if store is not None:
            masks = store.manifest.masks if parts.keeps_all else masks
            paths = {path for part in missing if not parts.is_made(part) for path in store.files_of(part)}
            paths |= {path for mask in masks if store.manifest.get(path := statistics_file(mask)) is not None}
            store.prepare(sorted(paths))
        for part in (*surplus, *parts.handed_on(wanted)):
            with beside_requests(side):
                unchanged = parts.is_unchanged(part)
            if not unchanged:
                raise loss_of(part, self.router.sources, part.difference())
            parts.tell_of_hooks(part)
        # 2. New modules beside the model. What they follow is read first: afterwards it may be gone.
        parts.note_trainable()
        made, statistics = self._make(missing, masks, device, dtype, side)
        # 3. The route over both, not in use yet.
        route = self.router.build(target, made, statistics)
        if warm:
            with beside_requests(side):
                self._warm(route, made, device, dtype)
        # 4. The swap: forward passes under way keep their route and its modules.
        with SWAPPING:
            for part, modules in made.items():
                part.attach(modules)
            parts.statistics = {**parts.statistics, **statistics}
            self.router.take(route)
            for part in surplus:
                part.release()

    def _make(
        self,
        missing: Sequence[Part],
        masks: Sequence[Sources],
        device: torch.device,
        dtype: torch.dtype,
        side: SideStream | None,
    ) -> tuple[dict[Part, Made], dict[str, Tensors]]:
        """Modules of parts, and the statistics of masks that have none yet; over a side stream if there is one."""
        built_on = device if side is None else torch.device("cpu")
        made: dict[Part, Made] = {}
        # What both networks share needs none of them: a first answer takes no part of the teacher.
        for role in {part.role for part in missing if part.role is not None and not part.student_blocks}:
            self.parts.networks.blueprints[role].place_frame(self.parts.networks.of(role), device)
        for part in missing:
            made[part] = self.parts.make(part, built_on, dtype, made)
        if side is not None:
            # What a tied tensor's other block has is on the device already.
            side.move(
                chain.from_iterable(modules.values() for modules in made.values()),
                self.parts.networks.model.parameters(),
            )
        copy = side.copy if side is not None else lambda tensor: tensor
        statistics = {
            mask: {name: copy(tensor.to(built_on, dtype, copy=True)) for name, tensor in found.items()}
            for mask, found in self.parts.new_statistics(masks).items()
        }
        return made, statistics

    @torch.no_grad()
    def _warm(self, route: Route, made: Mapping[Part, Made], device: torch.device, dtype: torch.dtype) -> None:
        """Bring in the pages of new modules and pay for their first call, off the serving path."""
        for modules in made.values():
            for module in modules.values():
                touch_pages(module)
        seen = self.seen
        # A pass in training mode would leave its mark on statistics and on the random state.
        if seen is None or any(module.training for module in self.parts.networks.model.modules()):
            return
        blocks = [part.id.number for part in made if part.role is not None and part.id.number]
        # What is compiled is so by module, also what stands in for a block behind with the mask's statistics.
        last = self.parts.num_blocks if self.parts.compiling is not None or not blocks else max(blocks)
        seen_now = first_call(route, min(blocks, default=1), last, seen, device, dtype)
        # What a request has left meanwhile counts for more.
        if self.seen is seen:
            self.seen = seen_now


def refuse_hooks(parts: Parts) -> None:
    """Refuse to attach or release a block while accelerate's hooks run the model.

    Raises:
        StageError: If they do.
    """
    if has_accelerate_hooks(parts.networks.model):
        raise StageError(
            "accelerate's hooks run the model and may keep its weights elsewhere, so no block can be attached or "
            "released: call accelerate.hooks.remove_hook_from_submodules(model) first, or load the model "
            "with keep_all=True"
        )


def loss_of(part: Part, sources: Sources, difference: str | None) -> StageError:
    """The error for a part that would be released with changes that the repository does not have."""
    how = "" if difference is None else f" ({difference})"
    advice = "save the model first and load it again, or load it with keep_all=True"
    if part.is_low:  # No save holds it.
        advice = "put back what it was, or load the model again; change the teacher itself, loaded with keep_all=True"
    loss = "would run in the other network too" if part.student_blocks else "would be lost"
    return StageError(
        f"{part} was changed since it was loaded{how} and {loss} on leaving sources {sources.mask!r}: {advice}"
    )
