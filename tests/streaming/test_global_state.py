"""A stream leaves alone what all threads of a process share."""

from __future__ import annotations

import importlib
import locale
import random
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import pytest
import torch
from transformers import PreTrainedModel
from transformers.initialization import TORCH_MODULES_TO_PATCH

from pwl_hf import RetryPolicy
from tests.hub import Fault

# Modules whose attributes somebody might patch for a moment, as transformers does on loading.
SHARED = ["torch", "torch.random", "torch.utils._device", "random", "warnings", *TORCH_MODULES_TO_PATCH]


@contextmanager
def assignments_of_streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every attribute of a shared module that a thread of a stream sets meanwhile, by name."""
    found: list[str] = []

    class Watched(types.ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            if threading.current_thread().name.startswith("pwl-"):
                found.append(f"{self.__name__}.{name}")
            super().__setattr__(name, value)

    modules = [importlib.import_module(name) for name in SHARED]
    kinds = [type(module) for module in modules]
    for module in modules:
        module.__class__ = Watched
    try:
        yield found
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind


def test_the_watch_sees_what_a_thread_patches(monkeypatch) -> None:
    def patch() -> None:
        torch.nn.init.zeros_ = torch.nn.init.zeros_
        random.seed = random.seed

    with assignments_of_streams(monkeypatch) as found:
        torch.nn.init.ones_ = torch.nn.init.ones_
        thread = threading.Thread(target=patch, name="pwl-test")
        thread.start()
        thread.join()
    assert found == ["torch.nn.init.zeros_", "random.seed"]


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_no_function_of_torch_or_of_initialisation_is_patched(pull, family: str, monkeypatch) -> None:
    model = pull(family)
    model(
        torch.zeros(1, 3, *[model.config.teacher_config.image_size] * 2)
        if family != "resnet"
        else torch.zeros(1, 3, 64, 64)
    )
    with assignments_of_streams(monkeypatch) as found:
        for _ in range(2):
            with model.stream_stages():
                pass
            # What was left over from building is used up now: the second time modules are built anew.
            model.set_stage(0)
    assert found == []


def test_no_setter_of_shared_state_is_called(pull, monkeypatch) -> None:
    called = []

    def watch(owner: object, name: str) -> None:
        plain = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            if threading.current_thread().name.startswith("pwl-"):
                called.append(name)
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    model = pull()
    model(torch.zeros(1, 3, 16, 16))
    for name in ("set_default_dtype", "set_default_device", "manual_seed", "set_rng_state", "set_num_threads"):
        watch(torch, name)
    watch(torch._C, "_set_default_dtype")
    for name in ("simplefilter", "filterwarnings", "resetwarnings", "catch_warnings"):
        watch(warnings, name)
    watch(PreTrainedModel, "initialize_weights")
    for name in ("seed", "setstate"):
        watch(random, name)
    watch(locale, "setlocale")
    for _ in range(2):
        with model.stream_stages():
            pass
        model.set_stage(0)
    assert called == []


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_no_random_state_moves_not_even_on_a_retry(hub, pull, family: str) -> None:
    model = pull(family, retry=RetryPolicy(first_wait=0.01))
    random.seed(3)
    numpy.random.seed(3)
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    with hub.faulty(Fault("status", path="/teacher/", times=2)), model.stream_stages():
        pass
    assert [r.fault for r in hub.requests].count("status") == 2
    after = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert numpy.array_equal(before[2][1], after[2][1])
    assert before[2][2:] == after[2][2:]


def test_defaults_hold_at_every_moment_and_do_not_reach_the_stream(load, answers, monkeypatch) -> None:
    """The process computes in float64 and under torch.no_grad; the stream is float32 all the same."""
    model, seen, stop = load("swin"), set(), threading.Event()
    filters = list(warnings.filters)

    def look() -> None:
        while not stop.is_set():
            seen.add((torch.get_default_dtype(), torch.get_default_device().type, torch.is_grad_enabled()))
            seen.add(tuple(map(id, warnings.filters)) == tuple(map(id, filters)))
            time.sleep(0)

    looking = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    torch.set_default_dtype(torch.float64)
    looking.start()
    try:
        for _ in range(3):
            with model.stream_stages():
                pass
            assert {p.dtype for p in model.parameters()} == {torch.float32}
            model.set_stage(0)
        with model.stream_stages():
            pass
    finally:
        stop.set()
        looking.join()
        torch.set_default_dtype(torch.float32)
        sys.setswitchinterval(interval)
    assert seen == {(torch.float64, "cpu", True), True}
    assert answers("swin").stage_now(model) == 4


def test_a_default_device_of_the_caller_does_not_reach_the_stream(load, answers) -> None:
    model = load()
    with torch.device("meta"), model.stream_stages():
        pass
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert answers().stage_now(model) == 4


def test_networks_can_be_initialised_meanwhile(load, answers) -> None:
    """transformers initialises in the foreground, where it patches torch.nn.init, while stages come."""
    from tests.tiny import tiny_model

    model, expected = load(), tiny_model("vit").state_dict()
    for _ in range(3):
        stream = model.stream_stages()
        while not stream.done:
            fresh = tiny_model("vit").state_dict()
            assert all(torch.equal(fresh[name], tensor) for name, tensor in expected.items())
        assert answers().stage_now(model) == 4
        model.set_stage(0)
