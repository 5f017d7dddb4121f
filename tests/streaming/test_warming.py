"""Before a swap the new block's pages are in and its first call is paid, and nothing else has changed."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ViTConfig
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer
from transformers.models.vit.modeling_vit import ViTLayer

from pwl_hf import PWLConfig, PWLForImageClassification
from pwl_hf.modeling.routes.converters import Converter
from tests.streaming.helpers import until, wrap_attach
from tests.streaming.test_serving_threads import asking
from tests.tiny import tiny_images

Call = tuple[int, bool, tuple[int, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of a unit: the module, whether in a stream's thread, the input's shape."""
    found: list[Call] = []
    for unit in (ViTLayer, ResNetBasicLayer):
        plain = unit.forward

        def forward(self: nn.Module, hidden: torch.Tensor, *args: object, _plain: Callable = plain, **kwargs: object):
            in_stream = threading.current_thread().name.startswith("pwl-")
            found.append((id(self), in_stream, tuple(hidden.shape)))
            return _plain(self, hidden, *args, **kwargs)

        monkeypatch.setattr(unit, "forward", forward)
    return found


def first_calls(calls: list[Call]) -> dict[int, Call]:
    found: dict[int, Call] = {}
    for call in calls:
        found.setdefault(call[0], call)
    return found


def units(model: PWLForImageClassification, role: str, kind: type[nn.Module]) -> list[nn.Module]:
    return [m for m in getattr(model, role).modules() if isinstance(m, kind)]


@pytest.mark.parametrize(("family", "kind"), [("vit", ViTLayer), ("resnet", ResNetBasicLayer)])
@torch.no_grad()
def test_the_first_call_of_every_new_unit_is_the_streams(load, calls, family: str, kind: type) -> None:
    model, images = load(family), tiny_images(family, 3)
    model(images)
    kept = units(model, "student", kind)
    calls.clear()
    with asking(lambda _: model(images), threads=2):
        model.stream_stages().wait()
        fresh = units(model, "teacher", kind)
        # Served afterwards, by the threads that ask.
        until(lambda: {call[0] for call in list(calls) if not call[1]} >= {id(unit) for unit in fresh})
    first = first_calls(calls)
    assert len(fresh) > len(kept)
    assert all(first[id(unit)][1] for unit in fresh)
    assert all(first[id(unit)][2][0] == 3 for unit in fresh)


@torch.no_grad()
def test_the_route_is_warm_before_it_is_current(load, calls) -> None:
    model, seen = load(), []
    model(tiny_images("vit", 2))

    def on_stage(grown: PWLForImageClassification, stage: int) -> None:
        called = {call[0] for call in calls if call[1]}
        seen.append((stage, {id(u) for u in units(grown, "teacher", ViTLayer)} <= called))

    plain, at = model._swapper._warm, []
    model._swapper._warm = lambda *args: (plain(*args), at.append(model.stage))
    model.stream_stages(on_stage=on_stage).wait()
    assert seen == [(k, True) for k in (1, 2, 3, 4)]
    assert at == [0, 1, 2, 3]


@torch.no_grad()
def test_the_shape_is_that_of_the_last_answer(load, calls) -> None:
    model = load()
    model(tiny_images("vit", 5))
    model(tiny_images("vit", 3))
    with pytest.raises(ValueError, match="size"):
        model(torch.zeros(7, 3, 24, 24))
    calls.clear()
    with model.stream_stages(1):
        pass
    assert {call[2][0] for call in calls} == {3}


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
@torch.no_grad()
def test_blocks_in_use_are_not_called_again(load, family: str) -> None:
    model, fixed, called = load(family, stage=2), load(family, stage=3), []
    model(tiny_images(family, 2))
    blueprint = model.parts.networks.blueprints["teacher"]
    for path in blueprint.units.intersection(blueprint.paths(1) + blueprint.paths(2)):
        model.teacher.get_submodule(path).register_forward_hook(lambda *_: called.append(1))
    blueprint = model.parts.networks.blueprints["student"]
    for path in blueprint.units.intersection(blueprint.paths(4)):
        model.student.get_submodule(path).register_forward_hook(lambda *_: called.append(1))
    with model.stream_stages(3):
        pass
    assert not called
    assert torch.equal(model(tiny_images(family, 2)).logits, fixed(tiny_images(family, 2)).logits)
    assert called


@pytest.mark.parametrize(("family", "kind"), [("vit", ViTLayer), ("resnet", ResNetBasicLayer)])
@torch.no_grad()
def test_without_requests_between_stages_each_block_is_called_once(load, calls, family: str, kind: type) -> None:
    model = load(family)
    model(tiny_images(family, 2))
    calls.clear()
    model.stream_stages().wait()
    called = [call[0] for call in calls]
    assert sorted(called) == sorted(id(unit) for unit in units(model, "teacher", kind))


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
@torch.no_grad()
def test_images_of_another_size_with_interpolation_warm_alike(load, family: str) -> None:
    model, fixed = load(family), load(family, stage=4)
    size = model.config.teacher_config.image_size
    images = torch.randn(2, 3, size * 2, size * 2)
    model(images, interpolate_pos_encoding=True)
    with model.stream_stages():
        pass
    seen = model._swapper.seen.inputs
    assert (seen["pixel_values"].shape, seen["interpolate_pos_encoding"]) == ((2, 3, size * 2, size * 2), True)
    assert torch.equal(
        model(images, interpolate_pos_encoding=True).logits, fixed(images, interpolate_pos_encoding=True).logits
    )


@pytest.mark.parametrize("family", ["resnet", "pwl_vgg"])
@torch.no_grad()
def test_statistics_and_weights_are_untouched(load, family: str) -> None:
    model, untouched = load(family), load(family)
    model(tiny_images(family))
    for stage in (1, 2, 3, 4):
        model.stream_stages(stage).wait()
        untouched.set_stage(stage)
        state, expected = model.state_dict(), untouched.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        for mask, values in untouched.statistics.items():
            assert all(torch.equal(model.statistics[mask][name], t) for name, t in values.items())


def test_no_gradient_and_no_random_number_comes_of_it(tmp_path: Path) -> None:
    size = {"image_size": 16, "patch_size": 4, "num_attention_heads": 2, "hidden_dropout_prob": 0.5}
    model = PWLForImageClassification(
        PWLConfig(
            teacher_config=ViTConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=4, **size),
            student_config=ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, **size),
            num_stages=2,
        )
    ).eval()
    model.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    model(tiny_images("vit"))
    before = torch.get_rng_state(), random.getstate()
    with model.stream_stages():
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(p.grad is None for p in model.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("part", ["model", "student"])
def test_in_training_mode_no_pass_is_run(load, calls, part: str) -> None:
    """Nor when only a part of the model trains: its statistics would take in what nobody asked."""
    model = load("resnet")
    model(tiny_images("resnet"))
    (model if part == "model" else model.student).train()
    statistics = {name: t.clone() for name, t in model.named_buffers()}
    calls.clear()
    with model.stream_stages():
        pass
    assert (calls, model.stage) == ([], 4)
    assert all(torch.equal(statistics[name], t) for name, t in model.named_buffers() if name in statistics)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_failure_in_the_warm_up_leaves_the_model_exactly_at_its_stage(
    load, answers, monkeypatch, family: str
) -> None:
    model, expected = load(family), answers(family)
    model.stream_stages(1).wait()
    assert expected.stage_now(model) == 1
    state, route = dict(model.state_dict()), model._router._current
    statistics, pieces = dict(model.statistics), model.parts.resident()
    plain = Converter.forward

    def fail(self: Converter, *args: object) -> torch.Tensor:
        if threading.current_thread().name.startswith("pwl-"):
            raise MemoryError("no room for it")
        return plain(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Converter, "forward", fail)
        stream = model.stream_stages()
        assert stream.wait(60)
        assert expected.stage_now(model) == 1
    assert isinstance(stream.exception, MemoryError)
    assert (stream.stage, model.stage, model._router._current is route, model.parts.resident() == pieces) == (
        1,
        1,
        True,
        True,
    )
    assert dict(model.statistics).keys() == statistics.keys()
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(after[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    with model.stream_stages():
        pass
    assert expected.stage_now(model) == 4


# --- Pages ------------------------------------------------------------------------------------------------------


def resident_part(path: Path) -> float:
    """How much of a file's mappings this process has in its page tables, of the file's size."""
    real, inside, pages = str(path.resolve()), False, 0
    with open("/proc/self/smaps") as file:
        for line in file:
            if "-" in line.split(" ", 1)[0] and not line.startswith(" "):
                inside = line.rstrip().endswith(real)
            elif inside and line.startswith("Rss:"):
                pages += int(line.split()[1]) * 1024
    return pages / path.stat().st_size


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with shards of several MB."""
    size = {"image_size": 16, "patch_size": 8, "num_attention_heads": 2}
    teacher = ViTConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, **size)
    student = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, **size)
    folder = tmp_path_factory.mktemp("large")
    PWLForImageClassification(PWLConfig(teacher_config=teacher, student_config=student, num_stages=2)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="pages are counted in Linux's smaps")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_pages_are_in_before_the_swap_also_when_nothing_was_seen(large: Path, mode: str) -> None:
    shard = large / "teacher" / "model-00001-of-00002.safetensors"
    assert shard.stat().st_size > 5_000_000
    gc.collect()
    by_hand = PWLForImageClassification.from_pretrained(large)
    getattr(by_hand, mode)()
    by_hand.set_stage(1)
    # By hand they come with the first answer: the same count shows that they are not in.
    assert resident_part(shard) < 0.5
    del by_hand
    model, parts = PWLForImageClassification.from_pretrained(large), []
    getattr(model, mode)()
    wrap_attach(model, lambda plain, made: (parts.append(resident_part(shard)), plain(made)))
    with model.stream_stages(1):
        pass
    assert model._swapper.seen is None
    assert len(parts) == 2
    assert min(parts) > 0.95
