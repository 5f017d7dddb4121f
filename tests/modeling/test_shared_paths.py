"""Paths over the same images: the same answers, at fewer passes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pwl_hf import StageError
from pwl_hf.modeling import Sources
from tests.tiny import EACH_FAMILY, WITH_BATCH_NORM, tiny_images, tiny_model

MASKS = [str(mask) for mask in Sources.all(4)]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_every_mask_equals_its_own_pass(family):
    model, images = tiny_model(family), tiny_images(family, 2)
    with torch.no_grad():
        paths = model.shared_paths(images)
        for mask in reversed(MASKS):
            alone, shared = model(images, sources=mask, output_hidden_states=True), paths(mask)
            assert torch.equal(alone.logits, shared.logits), mask
            assert all(map(torch.equal, alone.hidden_states, shared.hidden_states)), mask


@pytest.mark.parametrize("family", WITH_BATCH_NORM)
def test_statistics_of_a_mask_are_its_own(family):
    model, images = tiny_model(family), tiny_images(family, 2)
    for mask in ("TTSS", "STSS", "STTT"):
        model.estimate_statistics(tiny_images(family, 8), mask)
    with torch.no_grad():
        paths = model.shared_paths(images)
        for mask in MASKS:
            assert torch.equal(model(images, sources=mask).logits, paths(mask).logits), mask


@pytest.mark.parametrize("family", WITH_BATCH_NORM)
def test_training_updates_the_students_statistics_once_and_by_its_own_pass(family):
    images = tiny_images(family, 4)
    model, alone = tiny_model(family).train(), tiny_model(family).train()
    paths = model.shared_paths(images)
    for mask in ("STSS", "TTTT", "TSSS", "SSSS", "SSST"):
        paths(mask)
    alone(images, sources="SSSS")
    for (name, found), expected in zip(model.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(found, expected), name


def test_common_blocks_run_once():
    model, runs = tiny_model("vit"), Counter()
    for role, network in (("T", model.teacher), ("S", model.student)):
        for number, layer in enumerate(network.vit.layers):
            layer.register_forward_hook(lambda *_, key=(role, number): runs.update([key]))
    paths = model.shared_paths(tiny_images("vit", 1))
    for mask in ("TTTT", "SSSS", "TSSS", "TTSS", "TTTS", "TTSS"):
        paths(mask)
    # Eight teacher layers once each; the student's block k on its own path and behind k-1 encoders.
    assert [runs["T", i] for i in range(8)] == [1] * 8
    assert [runs["S", i] for i in range(4)] == [1, 2, 3, 4]


def test_isolation_can_be_given_up():
    images = tiny_images("resnet", 4)
    for isolate in (True, False):
        model = tiny_model("resnet").train()
        model.isolate_statistics(isolate)
        before = {name: buffer.clone() for name, buffer in model.student.named_buffers()}
        model(images, sources="TSSS")
        changed = any(not torch.equal(before[name], buffer) for name, buffer in model.student.named_buffers())
        assert changed != isolate


def test_what_is_not_resident_is_refused(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path)
    model = type(tiny_model("vit")).from_pretrained(tmp_path)
    paths = model.shared_paths(tiny_images("vit", 1))
    assert paths("SSSS").logits.shape == (1, 5)
    with pytest.raises(StageError, match="not resident"):
        paths("TSSS")
    with pytest.raises(ValueError, match="letters"):
        paths("SS")


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_logits_of_some_images_are_those_of_all(family):
    model, images = tiny_model(family), tiny_images(family, 4)
    with torch.no_grad():
        paths = model.shared_paths(images)
        for mask in MASKS[1:-1]:
            for rows in (slice(1, None, 2), slice(0, 1)):
                expected = model(images, sources=mask).logits[rows]
                torch.testing.assert_close(paths.logits_of(mask, rows), expected, msg=mask)
        with pytest.raises(ValueError, match="'TTTT' is one whole network"):
            paths.logits_of("TTTT", slice(0, 1))


@pytest.mark.parametrize("batch", [{}, {"image": torch.zeros(2, 3, 8, 8)}])
def test_a_batch_without_the_main_input_is_refused_by_name(batch):
    model = tiny_model("vit")
    with pytest.raises(ValueError, match="the model takes pixel_values, and was called with"):
        model.shared_paths(batch)("TTSS")
    with pytest.raises(ValueError, match="a batch must have the model's main input, 'pixel_values'"):
        model.fit_converters([batch])
    with pytest.raises(ValueError, match="a batch must have the model's main input, 'pixel_values'"):
        tiny_model("resnet").estimate_statistics([batch], "TTSS")
