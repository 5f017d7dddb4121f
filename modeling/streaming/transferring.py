"""Bringing a block onto a CUDA device beside the requests that the device answers.

Requests run on the device's default stream. What a background thread asks of that stream, they wait behind; and a
copy from ordinary memory cannot overlap with anything. So weights go through pinned memory, on a stream of their
own, and the thread waits on the host until they are there: later users have nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import nn


class SideStream:
    """A stream of a device besides the one that answers requests.

    Args:
        device: The device.
        cuda: Where streams and events come from.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device = device
        self._cuda = cuda
        self._serving = cuda.default_stream(device)
        self._stream = cuda.Stream(device)

    def move(self, modules: Iterable[nn.Module], there: Iterable[torch.Tensor] = ()) -> None:
        """Copy the tensors of modules to the device, each once; returns when they are there.

        A parameter that several places have is one afterwards, too.

        Args:
            modules: Modules that are not in use yet, in ordinary memory.
            there: Tensors that are on the device already, being other modules' as well.
        """
        # By identity, each with the tensor itself: a number is given anew once its tensor is gone.
        moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {id(tensor): (tensor, tensor) for tensor in there}
        for part in chain.from_iterable(module.modules() for module in modules):
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in moved:
                        copied = self.copy(tensor)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        moved[id(tensor)] = (
                            tensor,
                            nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied,
                        )
                    tensors[name] = moved[id(tensor)][1]  # type: ignore[assignment]

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor in ordinary memory on the device; returns when it is there.

        One at a time: pinned memory is kept by torch for the next tensor of the size, and all of a block's at once
        would be kept for ever.
        """
        pinned = self.pin(tensor)
        # Memory of the serving stream, for there it is used and given back. It may be that of a tensor which
        # requests under way still read.
        with self._cuda.stream(self._serving):
            there = torch.empty_like(pinned, device=self.device)
        with self.aside():
            there.copy_(pinned, non_blocking=True)
        return there

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in memory that the device reads by itself; this also brings in the pages of a mapped file."""
        return tensor.detach().pin_memory()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the work of the thread run on this stream, after what the serving stream was asked for before.

        At the end, also of work that failed, the thread waits on the host until the device has done it.
        """
        self._stream.wait_stream(self._serving)
        try:
            with self._cuda.stream(self._stream):
                yield
        finally:
            done = self._cuda.Event(blocking=True)
            done.record(self._stream)
            done.synchronize()


@cache
def side_stream(device: torch.device) -> SideStream | None:
    """The side stream of a CUDA device, the same one each time; None for other devices, which have none here."""
    return SideStream(device) if device.type == "cuda" else None


def beside_requests(side: SideStream | None) -> AbstractContextManager[None]:
    """`side.aside()`, or nothing where there is no side stream."""
    return nullcontext() if side is None else side.aside()
