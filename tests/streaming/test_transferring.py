"""Blocks for a CUDA device: through pinned memory, on a stream that the requests never wait for.

The order of what is asked of the device is tested on the CPU, with streams and events that only write down what they
are asked; what the device makes of it needs one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.streaming import swapping
from pwl_hf.modeling.streaming.transferring import SideStream, beside_requests, side_stream
from tests.streaming.helpers import wrap_attach
from tests.streaming.test_serving_threads import asking
from tests.tiny import tiny_images

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeCuda:
    """The part of `torch.cuda` that is used, as a log; tensors stay where they are."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = "serving"
        cuda = self

        class Stream:
            def __init__(self, device: torch.device, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                cuda.log.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self, *, blocking: bool) -> None:
                assert blocking, "a thread that spins takes a core from the requests"

            def record(self, stream: Stream) -> None:
                self.stream = stream.name

            def synchronize(self) -> None:
                cuda.log.append(f"host waits for {self.stream}")

        self.Stream, self.Event = Stream, Event

    def default_stream(self, device: torch.device) -> Any:
        return self.Stream(device, "serving")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before


class FakeSide(SideStream):
    """A side stream over `FakeCuda`, whose pinning is written down as well."""

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        super().__init__(CPU, cuda=self.cuda)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.cuda.log.append("pin")
        return tensor.detach().clone()


@pytest.fixture
def side() -> FakeSide:
    return FakeSide()


@pytest.fixture
def written(side: FakeSide, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the device, in order, with the stream it is asked of."""
    log = side.cuda.log
    plain_empty, plain_copy = torch.empty_like, torch.Tensor.copy_

    def empty_like(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        log.append(f"allocate on {side.cuda.current}")
        return plain_empty(tensor, *args, **kwargs)

    def copy_(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        log.append(f"copy on {side.cuda.current}, {non_blocking=}")
        return plain_copy(self, source)

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    return log


ONE_COPY = [
    "pin",
    "allocate on serving",
    "side waits for serving",
    "copy on side, non_blocking=True",
    "host waits for side",
]


def test_a_copy_is_pinned_runs_aside_and_is_there_when_it_returns(side, written) -> None:
    tensor = torch.randn(3, 4)
    there = side.copy(tensor)
    assert written == ONE_COPY
    assert torch.equal(there, tensor)
    assert there.data_ptr() != tensor.data_ptr()


def test_the_serving_stream_is_never_made_to_wait(side, written) -> None:
    side.move([nn.Linear(3, 4)])
    with side.aside():
        pass
    assert written[:10] == ONE_COPY * 2
    assert not any(line.startswith("serving waits") for line in written)


def test_a_module_is_moved_whole_and_stays_what_it_is(side) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    before = {name: (t.data_ptr(), t.clone()) for name, t in module.state_dict().items()}
    side.move([module])
    after = module.state_dict()
    assert side.cuda.log.count("pin") == len(before) == len(after)
    for name, (place, value) in before.items():
        assert torch.equal(after[name], value)
        assert after[name].data_ptr() != place
    assert not any(p.requires_grad for p in module.parameters())
    assert not module.training


def test_work_that_fails_is_waited_for_too(side) -> None:
    with pytest.raises(MemoryError), side.aside():
        raise MemoryError
    assert side.cuda.log[-1] == "host waits for side"
    assert side.cuda.current == "serving"


def test_devices_without_streams_have_no_side(monkeypatch) -> None:
    for name in ("cpu", "meta", "mps"):
        assert side_stream(torch.device(name)) is None
    with beside_requests(None):
        pass


# --- In a stream of stages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "resnet", "swin"])
@torch.no_grad()
def test_a_stream_brings_every_new_tensor_aside_before_the_swap(load, side, monkeypatch, family: str) -> None:
    model, expected = load(family), load(family, stage=1)
    images = tiny_images(family)
    model(images)
    monkeypatch.setattr(swapping, "side_stream", lambda device: side)
    pinned: list[torch.Tensor] = []
    plain_pin, plain_warm, at = side.pin, model._swapper._warm, []
    monkeypatch.setattr(side, "pin", lambda tensor: pinned.append(plain_pin(tensor)) or pinned[-1])

    def warm(*args: Any) -> None:
        at.append(("warm", side.cuda.current))
        plain_warm(*args)

    def attach(plain_attach: Any, made: Any) -> None:
        at.append(("attach", side.cuda.current, side.cuda.log[-1]))
        plain_attach(made)

    model._swapper._warm = warm
    wrap_attach(model, attach)
    with model.stream_stages(1):
        pass
    # The warm-up runs aside; at the swap nothing is under way.
    assert at == [("warm", "side"), *[("attach", "serving", "host waits for side")] * 2]
    new = [t for name, t in model.state_dict().items() if name.startswith(("teacher.", "encoders."))]
    new += [b for name, b in model.named_buffers() if name.startswith("teacher.") and b.dtype == torch.int64]
    values = sorted(t.double().sum().item() for t in pinned)
    assert {t.double().sum().item() for t in new} <= set(values)
    assert len(pinned) >= len(new) > 0
    assert torch.equal(model(images).logits, expected(images).logits)


def test_by_hand_a_stage_takes_the_short_way(load, side, monkeypatch) -> None:
    model = load()
    monkeypatch.setattr(swapping, "side_stream", lambda device: side)
    model.load_next_stage()
    assert side.cuda.log == []


# --- On a device ------------------------------------------------------------------------------------------------


@needs_cuda
def test_on_a_device_requests_do_not_wait_for_a_copy() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    side = side_stream(device)
    assert side is not None
    assert side_stream(device) is side
    answered = torch.cuda.Event()
    # A kernel that is loaded at its first use waits for whatever runs.
    torch.ones(1000, device=device).sum()
    assert torch.equal(side.copy(torch.ones(1000)).cpu(), torch.ones(1000))
    with torch.cuda.stream(side._stream):
        torch.cuda._sleep(2_000_000_000)
    there: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: there.append(side.copy(torch.ones(1000))))
    thread.start()
    torch.ones(1000, device=device).sum()
    answered.record()
    answered.synchronize()
    # The copy stands behind the long work of its own stream, the answer does not.
    assert there == []
    thread.join()
    assert torch.equal(there[0].cpu(), torch.ones(1000))


@needs_cuda
@pytest.mark.parametrize("family", ["vit", "resnet", "swin"])
@torch.no_grad()
def test_on_a_device_every_answer_of_a_growing_model_is_one_stages(load, family: str) -> None:
    images = tiny_images(family).cuda()
    expected = [load(family, stage=stage, device_map="cuda")(images).logits for stage in range(5)]
    model = load(family, device_map="cuda")
    answers: list[torch.Tensor] = []
    with asking(lambda _: answers.append(model(images).logits), threads=4):
        for _ in range(3):
            with model.stream_stages():
                pass
            model.set_stage(0)
    assert all(any(torch.equal(answer, one) for one in expected) for answer in answers)
    with model.stream_stages():
        pass
    tensors = [*model.parameters(), *model.buffers(), *(t for s in model.statistics.values() for t in s.values())]
    assert {t.device.type for t in tensors} == {"cuda"}
    fixed: PWLForImageClassification = load(family, stage=4, device_map="cuda")
    assert torch.equal(model(images).logits, fixed(images).logits)


def test_what_several_places_have_is_moved_once_and_is_one_afterwards(side) -> None:
    embedder, head, other = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
    head.weight = embedder.weight
    there = nn.Parameter(torch.zeros(5, 3), requires_grad=False)
    other.weight = there
    side.move([embedder, head, other], [there])
    assert head.weight is embedder.weight
    assert other.weight is there
    assert side.cuda.log.count("pin") == 1
