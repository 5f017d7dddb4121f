"""torch.compile: right answers, and no more compilations than there are paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from pwl_hf import PWLForImageClassification
from tests.slow import slow_but
from tests.tiny import FAMILIES, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A model compiled with `backend="eager"`, and how many graphs were compiled since the last look."""

    def __init__(self, model: nn.Module, **options: object) -> None:
        self.counter = CompileCounterWithBackend("eager")
        self.model = torch.compile(model, backend=self.counter, **options)

    def since(self) -> int:
        found, self.counter.frame_count = self.counter.frame_count, 0
        return found


# DeiT runs the code of ViT.
@pytest.mark.parametrize("model_type", slow_but(["vit", "resnet"], FAMILIES))
@torch.no_grad()
def test_a_compiled_model_answers_alike_from_stage_to_stage(load: Load, model_type: str) -> None:
    model, images = load(model_type), tiny_images(model_type)
    graphs = Graphs(model, fullgraph=True)
    for stage in (0, 2):
        model.set_stage(stage)
        torch.testing.assert_close(graphs.model(images).logits, model(images).logits)
        assert graphs.since() == 1


@pytest.mark.parametrize("resident", slow_but([False], [True, False]))
@torch.no_grad()
def test_each_new_stage_compiles_once_and_none_twice(load: Load, resident: bool) -> None:
    model, images = load("vit", keep_all=resident), tiny_images("vit")
    graphs, counts = Graphs(model), []
    for stage in (0, 1, 4):
        model.set_stage(stage)
        graphs.model(images)
        counts.append(graphs.since())
        for _ in range(2):
            torch.testing.assert_close(graphs.model(images).logits, model(images).logits)
        assert graphs.since() == 0, f"stage {stage} compiled again for a repeated call"
    assert counts == [1] * 3
    for stage in (1, 0, 4):
        model.set_stage(stage)
        torch.testing.assert_close(graphs.model(images).logits, model(images).logits)
        assert graphs.since() == 0, f"stage {stage} compiled again on coming back"


@torch.no_grad()
def test_sources_of_a_compiled_resident_model_compile_once_each() -> None:
    model, images = tiny_model("vit"), tiny_images("vit")
    graphs = Graphs(model)
    for mask in ("TTSS", "STTS"):
        torch.testing.assert_close(graphs.model(images, sources=mask).logits, model(images, sources=mask).logits)
    graphs.since()
    for mask in ("TTSS", "STTS"):
        torch.testing.assert_close(graphs.model(images, sources=mask).logits, model(images, sources=mask).logits)
    assert graphs.since() == 0


def test_a_compiled_model_trains_like_a_plain_one() -> None:
    images, labels, grads = tiny_images("resnet", 4), torch.tensor([0, 1, 2, 3]), []
    for compiled in (False, True):
        model = tiny_model("resnet").train()
        model.set_stage(2)
        run = torch.compile(model, backend="eager") if compiled else model
        run(images, labels=labels).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient)


@torch.no_grad()
def test_statistics_estimated_after_compiling_are_used() -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    model.set_stage(2)
    graphs = Graphs(model)
    before = graphs.model(images).logits
    model.estimate_statistics(images)
    after = graphs.model(images).logits
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(images).logits)


@pytest.mark.slow
@torch.no_grad()
def test_inductor_answers_alike_at_every_stage(load: Load) -> None:
    model, images = load("vit"), tiny_images("vit")
    compiled = torch.compile(model)
    for stage in (0, 2, 4, 0):
        model.set_stage(stage)
        torch.testing.assert_close(compiled(images).logits, model(images).logits, rtol=1e-4, atol=1e-4)
