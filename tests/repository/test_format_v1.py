"""The frozen repositories of format version 1 load for ever; see `tests/fixtures/format-v1/README.txt`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from pwl_hf import Manifest, Metric, PWLForImageClassification
from tests.repository.helpers import INDEX, load, weights

FROZEN = Path(__file__).resolve().parents[1] / "fixtures" / "format-v1"
# Of the files as they were made: whoever makes them anew has to change this line, and must not.
FINGERPRINTS = {
    "vit": "5b6e2191d6bb85028cfa99d6436772210dcea0b4f31813d233e517f57ae8cc77",
    "resnet": "9768b237fddcdc32fb7fc8d991f2282605c714656e8b1de46b48fde518ee36ac",
}

pytestmark = pytest.mark.parametrize("family", FINGERPRINTS)


def expected(family: str) -> dict[str, torch.Tensor]:
    return load_file(FROZEN / family / "expected.safetensors")


@torch.no_grad()
def answers_as_then(model: torch.nn.Module, family: str, key: str) -> None:
    stored = expected(family)
    torch.testing.assert_close(model(stored["images"]).logits, stored[key], rtol=1e-4, atol=1e-4)


def test_frozen_files_are_the_ones_that_were_made(family):
    text = (FROZEN / family / "repo" / INDEX).read_bytes()
    manifest = Manifest.from_json(text)
    assert manifest.fingerprint == FINGERPRINTS[family]
    assert (manifest.format_version, manifest.min_reader) == (1, 1)
    assert manifest.stages[0].metrics == (Metric("accuracy", 0.25, "digits", "test", 360),)
    found = weights(FROZEN / family / "repo")
    assert {entry.path: entry.sha256 for entry in manifest.files} == {p: h for p, h in found.items() if p != INDEX}


def test_frozen_repository_gives_the_same_answers_at_every_stage(family):
    model = load(FROZEN / family / "repo")
    answers_as_then(model, family, "stage 0")
    while model.stage < model.num_stages:
        model.load_next_stage()
        answers_as_then(model, family, f"stage {model.stage}")
    model.set_stage(0)
    answers_as_then(model, family, "stage 0")


def test_frozen_repository_gives_the_same_answers_for_other_masks(family):
    model = load(FROZEN / family / "repo")
    masks = [key for key in expected(family) if set(key) <= set("ST")]
    assert masks
    for mask in masks:
        model.set_sources(mask)
        answers_as_then(model, family, mask)


def test_frozen_repository_opens_in_auto_classes_and_its_teacher_in_plain_ones(family):
    model = AutoModelForImageClassification.from_pretrained(FROZEN / family / "repo", stage=1)
    assert isinstance(model, PWLForImageClassification)
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    answers_as_then(model, family, "stage 1")
    teacher, info = AutoModelForImageClassification.from_pretrained(
        FROZEN / family / "repo", subfolder="teacher", output_loading_info=True
    )
    assert not any(info.values())
    assert type(teacher).__module__.startswith("transformers.models.")
    answers_as_then(teacher, family, f"stage {model.num_stages}")


def test_frozen_repository_is_saved_again_with_the_same_weight_files(family, tmp_path):
    folder = shutil.copytree(FROZEN / family / "repo", tmp_path / "old")
    load(folder, stage=1).save_pretrained(tmp_path / "new")
    old, new = weights(folder), weights(tmp_path / "new")
    assert {path: old[path] for path in old if path != INDEX} == {path: new[path] for path in new if path != INDEX}
    manifest = Manifest.from_json((tmp_path / "new" / INDEX).read_bytes())
    assert manifest == Manifest.from_json((folder / INDEX).read_bytes())
