"""Replicas, as `nn.DataParallel` makes them: each runs the path over its own copies."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from pwl_hf import PWLForImageClassification
from tests.tiny import tiny_images, tiny_model


def replicate(model: nn.Module) -> nn.Module:
    """What `torch.nn.parallel.replicate` does, on the one device that there is."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else copies[child]
        for name, parameter in module._parameters.items():
            replica._parameters[name] = None if parameter is None else parameter.clone()
        for name, buffer in module._buffers.items():
            replica._buffers[name] = None if buffer is None else buffer.clone()
    return copies[model]


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
@torch.no_grad()
def test_a_replica_runs_over_its_own_modules(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type)
    model.set_stage(2)
    expected = model(images).logits
    replica = replicate(model)
    assert torch.equal(replica(images).logits, expected)
    assert (replica.stage, replica.sources) == (2, "TTSS")
    own = {id(module) for module in replica.modules()}
    assert {id(module) for _, _, module in replica._router.current().places} <= own
    assert torch.equal(model(images).logits, expected)
    assert model.parts.networks.model is model


def test_a_model_that_nobody_holds_is_gone_at_once(tmp_path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        model(tiny_images("vit"))
    with model.stream_stages(2):
        pass
    model.set_stage(1)
    seen = weakref.ref(model), weakref.ref(model.teacher)
    gc.collect()
    gc.disable()
    try:
        del model
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()


@torch.no_grad()
def test_a_deep_copy_leaves_the_file_alone(tmp_path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    model, images = PWLForImageClassification.from_pretrained(tmp_path), tiny_images("vit")
    expected, copied = model(images).logits, copy.deepcopy(model)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as written:
        written.seek(file.stat().st_size - 4000)
        written.write(b"\x3f" * 3000)
    # The model itself reads the file's pages, as one of transformers does.
    assert not torch.equal(model(images).logits, expected)
    assert torch.equal(copied(images).logits, expected)


@torch.no_grad()
def test_without_maps_the_file_may_change_under_a_model(tmp_path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    model, images = PWLForImageClassification.from_pretrained(tmp_path, disable_mmap=True), tiny_images("vit")
    expected = PWLForImageClassification.from_pretrained(tmp_path, stage=1)(images).logits
    model.load_next_stage()
    for file in (tmp_path / "model.safetensors", tmp_path / "teacher" / "model-00001-of-00004.safetensors"):
        size = file.stat().st_size
        with file.open("r+b") as written:
            written.seek(8)
            written.write(b"\x00" * (size - 8))
    assert torch.equal(model(images).logits, expected)
