"""A compiled model that grows: a swap compiles at most what is new, and compiled blocks before the swap."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer

from pwl_hf import PWLConfig, PWLForImageClassification
from tests.streaming.helpers import Pause
from tests.streaming.test_serving_threads import asking
from tests.tiny import tiny_images, tiny_model


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    # One limit for all that run a unit's code: enough for every width and stride of both tiny networks.
    with torch._dynamo.config.patch(recompile_limit=32):
        yield
    torch._dynamo.reset()


class Compilations:
    """A backend that notes in which thread each graph was compiled."""

    def __init__(self) -> None:
        self.in_stream, self.in_front = 0, 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        if threading.current_thread().name.startswith("pwl-"):
            self.in_stream += 1
        else:
            self.in_front += 1
        return graph.forward

    def since(self) -> tuple[int, int]:
        found, self.in_stream, self.in_front = (self.in_stream, self.in_front), 0, 0
        return found


def close(model: nn.Module, images: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(model(images).logits, expected)


# --- The blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "resnet", pytest.param("swin", marks=pytest.mark.slow)])
@torch.no_grad()
def test_new_blocks_compile_in_the_stream_and_never_in_front(load, answers, family: str) -> None:
    model, expected, graphs = load(family), answers(family), Compilations()
    model.compile(backend=graphs)
    close(model, expected.images, expected.logits[0])
    in_stream, in_front = graphs.since()
    assert (in_stream, in_front > 0) == (0, True)
    compiled = []
    for stage in (1, 2, 3, 4):
        with model.stream_stages(stage):
            pass
        close(model, expected.images, expected.logits[stage])
        compiled.append(graphs.since())
    assert [in_front for _, in_front in compiled] == [0, 0, 0, 0]
    assert compiled[0][0] > 0
    # Everything is known by now.
    for stage in (0, 4, 2):
        model.set_stage(stage)
        close(model, expected.images, expected.logits[stage])
    with model.stream_stages():
        pass
    assert graphs.since() == (0, 0)


@torch.no_grad()
def test_units_that_are_alike_compile_once(load) -> None:
    model, graphs = load("vit"), Compilations()
    model.compile(backend=graphs)
    model(tiny_images("vit"))
    assert graphs.since() == (0, 1)
    with model.stream_stages():
        pass
    assert graphs.since() == (1, 0)


@torch.no_grad()
def test_a_block_that_comes_by_hand_is_compiled_too(load, answers) -> None:
    model, expected, graphs = load(), answers(), Compilations()
    model.compile(backend=graphs)
    model.set_stage(2)
    layers = [m for m in model.teacher.modules() if isinstance(m, ViTLayer)]
    assert layers
    assert all(layer._compiled_call_impl is not None for layer in layers)
    close(model, expected.images, expected.logits[2])
    assert graphs.since() == (0, 2)


@torch.no_grad()
def test_twins_with_statistics_of_their_own_are_compiled_too(load, answers) -> None:
    """What stands in for a student's block behind a converter runs its own statistics, compiled."""
    model, expected = load("resnet"), answers("resnet")
    model.compile(backend="eager")
    model.set_stage(2)
    twins = [unit.args[0] for units in model._router._current.segments[-1].blocks for unit in units]
    own = set(map(id, model.student.modules()))
    assert twins
    assert not [t for t in twins if id(t) in own or t._compiled_call_impl is None]
    close(model, expected.images, expected.logits[2])


@torch.no_grad()
def test_a_resident_model_compiles_its_blocks_and_answers_alike() -> None:
    model, images = tiny_model("vit"), tiny_images("vit")
    expected = {mask: model(images, sources=mask).logits for mask in ("SSSS", "TTTT", "STTS")}
    graphs = Compilations()
    model.compile(backend=graphs)
    for mask, logits in expected.items():
        torch.testing.assert_close(model(images, sources=mask).logits, logits)
    assert graphs.since() == (0, 2)


@pytest.mark.slow
def test_a_compiled_model_trains_like_a_plain_one() -> None:
    images, labels, found = tiny_images("vit"), torch.tensor([0, 1]), []
    for compiled in (False, True):
        model = tiny_model("vit").train()
        model.set_stage(2)
        if compiled:
            model.compile(backend="aot_eager")
        model(images, labels=labels).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
@torch.no_grad()
def test_copies_of_a_compiled_model_are_plain_and_answer_for_themselves(load, answers, way) -> None:
    model, expected, graphs = load(), answers(), Compilations()
    model.compile(backend=graphs)
    close(model, expected.images, expected.logits[0])
    other = way(model)
    other.set_stage(3)
    close(other, expected.images, expected.logits[3])
    assert graphs.since() == (0, 1)
    assert not [m for m in other.modules() if m._compiled_call_impl is not None]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@torch.no_grad()
def test_copies_of_a_model_compiled_as_a_module_run_their_own_pass(load, answers, way) -> None:
    """`nn.Module.compile` binds the compiled call to the instance: a copy must not call the original."""
    model, expected = load(), answers()
    nn.Module.compile(model, backend="eager")
    close(model, expected.images, expected.logits[0])
    other = way(model)
    model.set_stage(4)
    close(other, expected.images, expected.logits[0])


@torch.no_grad()
def test_threads_that_ask_a_compiled_model_get_answers_of_one_stage(load, answers) -> None:
    model, expected, wrong = load("resnet"), answers("resnet"), []
    model.compile(backend="eager")
    close(model, expected.images, expected.logits[0])

    def ask(_: int) -> None:
        logits = model(expected.images).logits
        if not any(torch.allclose(logits, one, atol=1e-6, rtol=1e-5) for one in expected.logits):
            wrong.append(logits)

    with asking(ask, threads=4):
        for _ in range(3):
            with model.stream_stages():
                pass
            model.set_stage(0)
    assert wrong == []


@pytest.mark.slow
@torch.no_grad()
def test_inductor_compiles_new_blocks_in_the_stream(tmp_path) -> None:
    size = {"image_size": 16, "patch_size": 4, "num_attention_heads": 2}
    model = PWLForImageClassification(
        PWLConfig(
            teacher_config=ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, **size),
            student_config=ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, **size),
            num_stages=2,
        )
    ).eval()
    model.save_pretrained(tmp_path)
    plain, model = model, PWLForImageClassification.from_pretrained(tmp_path)
    model.compile()
    images = tiny_images("vit")
    model(images)
    counters = torch._dynamo.utils.counters
    for stage in (1, 2):
        with model.stream_stages(stage):
            pass
        before = counters["stats"]["unique_graphs"]
        plain.set_stage(stage)
        torch.testing.assert_close(model(images).logits, plain(images).logits, rtol=1e-4, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == before


# --- The whole --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_model_compiled_whole_compiles_one_route_a_stage(load, answers) -> None:
    model, expected = load(), answers()
    counter = CompileCounterWithBackend("eager")
    compiled, counts = torch.compile(model, backend=counter), []
    for stage in (0, 2, 3):
        if stage:
            with compiled.stream_stages(stage):
                pass
        before = counter.frame_count
        close(compiled, expected.images, expected.logits[stage])
        counts.append(counter.frame_count - before)
        close(compiled, expected.images, expected.logits[stage])
        assert counter.frame_count == before + counts[-1]
    assert counts == [1] * 3


@pytest.mark.slow
@torch.no_grad()
def test_a_swap_amid_calls_of_a_model_compiled_whole_changes_no_answer(load, answers) -> None:
    model, expected, pause = load(), answers(), Pause(2)
    compiled = torch.compile(model, backend="eager")
    close(compiled, expected.images, expected.logits[0])
    stream = model.stream_stages(on_stage=pause)
    with pause:
        close(compiled, expected.images, expected.logits[2])
    assert stream.wait(60)
    assert stream.exception is None
    close(compiled, expected.images, expected.logits[4])
