"""What a model answers: torch's logits, the pipeline's labels and scores, and nothing for what it cannot take."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from pwl_hf import PWLForImageClassification, RepositoryError, runtime
from pwl_hf.modeling.errors import InputError
from tests.repository.helpers import edit_json
from tests.runtime.helpers import NUM_STAGES
from tests.tiny import NUM_LABELS


def pictures() -> list[Image.Image]:
    values = np.random.default_rng(0)
    return [Image.fromarray(values.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((16, 16), (31, 20))]


@pytest.mark.parametrize("family", ["vit", pytest.param("pwl_vgg", marks=pytest.mark.slow)])
def test_each_stage_answers_as_torch(load, expected, family):
    known = expected(family)
    for stage in range(NUM_STAGES + 1):
        found = load(family, stage=stage).logits(pixel_values=known.pixels)
        assert (found.dtype, found.shape) == (np.float32, (2, NUM_LABELS))
        assert np.abs(found - known.by_torch[stage]).max() <= 1e-5 * np.ptp(known.by_torch[stage])


@pytest.mark.parametrize("stage", [0, 2, "teacher"])
def test_labels_and_scores_are_those_of_the_pipeline(exported, load, stage):
    processor = AutoImageProcessor.from_pretrained(exported(), backend="pil")
    torch_model = PWLForImageClassification.from_pretrained(exported(), stage=stage)
    whole = pipeline("image-classification", model=torch_model, image_processor=processor, device="cpu")
    model = load(stage=stage)
    for one, theirs in zip(model.predict(pictures()), whole(pictures()), strict=True):
        assert [answer["label"] for answer in one] == [answer["label"] for answer in theirs]
        for answer, other in zip(one, theirs, strict=True):
            assert answer["score"] == pytest.approx(other["score"], abs=1e-5)


def test_one_image_has_one_answer_and_several_have_several(load, tmp_path):
    model, (small, large) = load(), pictures()
    large.save(tmp_path / "large.png")
    both = model.predict([small, tmp_path / "large.png"], top_k=2)
    assert [len(answers) for answers in both] == [2, 2]
    assert [answer["label"] for answer in model.predict(small, top_k=2)] == [answer["label"] for answer in both[0]]
    assert [a["label"] for a in model.predict(str(tmp_path / "large.png"), top_k=1)] == [both[1][0]["label"]]
    assert len(model.predict(np.asarray(large))) == NUM_LABELS
    assert model.logits([small, large]).shape == (2, NUM_LABELS)
    assert model.logits(small).shape == (1, NUM_LABELS)


def test_batches_of_any_size_are_answered_alike(load, expected):
    model, pixels = load(stage=1), np.repeat(expected().pixels, 3, axis=0)
    whole = model.logits(pixel_values=pixels)
    assert whole.shape == (6, NUM_LABELS)
    for number in range(6):
        one = model.logits(pixel_values=pixels[number : number + 1])
        np.testing.assert_allclose(one[0], whole[number], rtol=0, atol=1e-6)


def test_arrays_of_any_layout_and_precision_are_taken(load, expected):
    model, pixels = load(), expected().pixels
    assert expected().stage_of(model.logits(pixel_values=np.asfortranarray(pixels))) == 0
    assert expected().stage_of(model.logits(pixel_values=pixels.astype(np.float64))) == 0
    assert expected().stage_of(model.logits(pixel_values=np.flip(np.flip(pixels, 3).copy(), 3))) == 0


WRONG = {
    "nothing": ({}, "the model takes pixel_values, got nothing"),
    "another name": ({"pixels": np.zeros((1, 3, 16, 16), np.float32)}, "the model takes pixel_values, got pixels"),
    "bytes": ({"pixel_values": np.zeros((1, 3, 16, 16), np.uint8)}, "must be floating numbers, got uint8"),
    "no batch": ({"pixel_values": np.zeros((3, 16, 16), np.float32)}, r"of shape (B, 3, 16, 16), got (3, 16, 16)"),
    "size": ({"pixel_values": np.zeros((1, 3, 16, 8), np.float32)}, r"of shape (B, 3, 16, 16), got (1, 3, 16, 8)"),
    "empty": ({"pixel_values": np.zeros((0, 3, 16, 16), np.float32)}, "pixel_values is empty"),
    "text": ({"pixel_values": np.array([["a"]])}, "must be floating numbers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_arrays_that_the_model_does_not_take_are_refused_by_name(load, kind):
    inputs, message = WRONG[kind]
    with pytest.raises(InputError, match=re.escape(message)):
        load().logits(**inputs)


def test_images_and_arrays_at_once_are_refused(load):
    with pytest.raises(InputError, match="give images or 'pixel_values', not both"):
        load().logits(Image.new("RGB", (4, 4)), pixel_values=np.zeros(1))


@pytest.mark.parametrize("top_k", [0, -1, 2.5, True, "all"])
def test_number_of_labels_that_cannot_be_is_refused_before_the_image_is_read(load, top_k):
    with pytest.raises(ValueError, match="top_k"):
        load().predict("no-such-file.jpg", top_k=top_k)


def test_picture_that_cannot_be_read_is_named(load, tmp_path):
    (tmp_path / "cat.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"image 1, '.*cat\.jpg'"):
        load().predict([pictures()[0], tmp_path / "cat.jpg"])


def without_processor(folder: Path, processor: object) -> None:
    """Let index and manifest have another processor, as if it had been exported so."""
    import hashlib

    edit_json(folder / "onnx/index.json", lambda index: index.update(processor=processor))
    content = (folder / "onnx/index.json").read_bytes()

    def change(manifest: dict) -> None:
        entry = next(entry for entry in manifest["attachments"] if entry["path"] == "onnx/index.json")
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit_json(folder / "pwl_index.json", change)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (None, "has no preprocessor_config.json"),
        ({"image_processor_type": "SamImageProcessor"}, "SamImageProcessor"),
    ],
)
def test_images_need_a_processor_that_is_known_and_arrays_none(copied, expected, processor, message):
    without_processor(copied, processor)
    model = runtime.load(copied, threads=1)
    assert expected().stage_now(model) == 0
    with pytest.raises(RepositoryError, match=message):
        model.predict(pictures())
