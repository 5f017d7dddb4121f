"""Counting: as image by image, in fewer passes, and leaving no trace."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from pwl_hf import PWLForImageClassification, StageError
from pwl_hf.evaluation import evaluate_masks, evaluate_stages, masks_of
from pwl_hf.evaluation.running import _SHARING
from tests.evaluation.helpers import Images, images_of, right_answers
from tests.tiny import tiny_images, tiny_model

PREFIXES, ALL = masks_of("prefix", 4), masks_of("all", 4)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def repository(request, tmp_path_factory):
    """A family, its folder, with statistics of some masks where there is BatchNorm, and the model it was saved from."""
    model = tiny_model(request.param)
    if request.param == "resnet":
        for mask in ("TSSS", "TTSS", "STST"):
            model.estimate_statistics(tiny_images("resnet", 8), mask)
    folder = tmp_path_factory.mktemp(request.param) / "repo"
    model.save_pretrained(folder)
    return request.param, folder, model


def test_counts_of_all_masks_are_those_of_image_by_image(repository):
    family, _, model = repository
    data = images_of(family)
    # More masks than share their blocks at once need several such groups.
    found = evaluate_masks(model, data, ALL[::-1], batch_size=7)
    expected = {mask: right_answers(model, data, mask) for mask in ALL}
    assert [mask.sources for mask in found.masks] == ALL[::-1]
    assert len({sum(right) for right in expected.values()}) > 1
    for mask in found.masks:
        right, student = expected[mask.sources], expected["SSSS"]
        assert (mask.correct, mask.total) == (sum(right), len(data))
        if mask.sources == "SSSS":
            assert mask.over_student is None
            continue
        assert mask.over_student.gained == sum(r and not s for r, s in zip(right, student, strict=True))
        assert mask.over_student.lost == sum(s and not r for r, s in zip(right, student, strict=True))
    before = [found[mask].over_previous for mask in PREFIXES]
    assert before[0] is None
    assert [compared.reference for compared in before[1:]] == PREFIXES[:-1]
    assert [round(compared.difference * len(data)) for compared in before[1:]] == [
        sum(expected[mask]) - sum(expected[previous]) for previous, mask in pairwise(PREFIXES)
    ]
    assert all(mask.over_previous is None for mask in found.masks if mask.sources not in PREFIXES)


def test_more_masks_than_share_their_blocks_are_counted_alike():
    model, data = tiny_model("vit", num_stages=2), images_of("vit", 6)
    assert len(masks_of("all", 2)) < _SHARING
    deep = PWLForImageClassification.from_teacher_student(
        tiny_model("vit", seed=1).teacher, tiny_model("vit", seed=2).teacher, num_stages=5
    ).eval()
    masks = masks_of("all", 5)
    assert len(masks) > _SHARING
    found = evaluate_masks(deep, data, masks)
    assert [mask.correct for mask in found.masks] == [sum(right_answers(deep, data, mask)) for mask in masks]
    assert evaluate_masks(model, data, ["TS"]).masks[0].correct == sum(right_answers(model, data, "TS"))


def test_stages_stepped_through_and_in_one_pass_are_the_same(repository):
    family, folder, model = repository
    data = images_of(family)
    stepped = evaluate_stages(folder, data, batch_size=5)
    assert stepped == evaluate_masks(model, data, PREFIXES, batch_size=5)
    assert stepped == evaluate_stages(PWLForImageClassification.from_pretrained(folder, keep_all=True), data)
    assert stepped.accuracies == [sum(right_answers(model, data, mask)) / len(data) for mask in PREFIXES]


def test_resident_model_reads_the_data_once_and_runs_common_blocks_once():
    model, data, runs = tiny_model("vit"), images_of("vit", 8), Counter()
    for role, network in (("T", model.teacher), ("S", model.student)):
        for number, layer in enumerate(network.vit.layers):
            layer.register_forward_hook(lambda *_, key=(role, number): runs.update([key]))
    evaluate_stages(model, data, batch_size=8)
    assert data.reads == 8
    assert [runs["T", i] for i in range(8)] == [1] * 8
    assert [runs["S", i] for i in range(4)] == [1, 2, 3, 4]


def test_stepping_holds_no_more_than_a_server_would(repository):
    family, folder, _ = repository
    model, data = PWLForImageClassification.from_pretrained(folder), images_of(family, 4)
    held = []

    class Watched(Images):
        def __getitem__(self, row):
            held.append((model.sources, {part.id for part in model.parts.resident()}))
            return super().__getitem__(row)

    evaluate_stages(model, Watched(data.pixel_values, data.labels))
    assert list(dict.fromkeys(sources for sources, _ in held)) == PREFIXES
    for sources, parts in held:
        loaded = PWLForImageClassification.from_pretrained(folder, stage=PREFIXES.index(sources))
        assert parts == {part.id for part in loaded.parts.resident()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sources", ["TTSS", "STST"])
def test_model_is_afterwards_what_it_was(repository, training, sources):
    family, folder, _ = repository
    for keep_all in (False, True):
        model = PWLForImageClassification.from_pretrained(folder, keep_all=keep_all)
        model.set_sources(sources)
        model.train(training)
        modes = {name: module.training for name, module in model.named_modules()}
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        statistics = {mask: dict(found) for mask, found in model.statistics.items()}
        random = torch.get_rng_state()
        evaluate_stages(model, images_of(family, 6))
        if keep_all:
            evaluate_masks(model, images_of(family, 6), ALL)
        assert model.sources == sources
        assert {name: module.training for name, module in model.named_modules()} == modes
        after = model.state_dict()
        assert after.keys() == tensors.keys()
        assert all(torch.equal(tensor, after[name]) for name, tensor in tensors.items())
        assert model.statistics.keys() >= statistics.keys()
        for mask, found in statistics.items():
            assert all(torch.equal(tensor, model.statistics[mask][name]) for name, tensor in found.items())
        assert not any(parameter.grad is not None for parameter in model.parameters())
        assert torch.equal(torch.get_rng_state(), random)


def test_images_that_fail_leave_the_model_as_it_was(repository):
    family, folder, _ = repository
    model = PWLForImageClassification.from_pretrained(folder, stage=1).train()
    data = images_of(family, 4)
    data.labels = [0, 0, 0, 99]
    with pytest.raises(ValueError, match="the label 99, the model's labels are 0 to 4"):
        evaluate_stages(model, data)
    assert (model.stage, model.training) == (1, True)


def test_names_in_another_order_are_brought_into_the_models():
    model, data = tiny_model("vit"), images_of("vit")
    turned = ["elk", "dog", "cat", "bee", "ant"]
    renamed = Images(data.pixel_values, [4 - label for label in data.labels])
    assert evaluate_masks(model, renamed, ALL, label_names=turned) == evaluate_masks(model, data, ALL)


def test_logits_that_are_no_numbers_are_wrong():
    model, data = tiny_model("vit"), images_of("vit", 4)
    right = evaluate_masks(model, Images(data.pixel_values, [0] * 4), ["SSSS", "TTTT"])
    with torch.no_grad():
        model.student.classifier.bias.fill_(float("nan"))
    found = evaluate_masks(model, Images(data.pixel_values, [0] * 4), ["SSSS", "TTTT"])
    assert found["SSSS"].correct == 0
    assert found["TTTT"].correct == right["TTTT"].correct


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels"),
        ([0, -1, 0, 0], "the label -1"),
        ([0, 0, 5, 0], "the label 5, the model's labels are 0 to 4"),
    ],
)
@pytest.mark.parametrize("stepped", [True, False])
def test_labels_that_cannot_be_raise(repository, labels, message, stepped):
    family, folder, model = repository
    data = Images(tiny_images(family, 4), labels)
    with pytest.raises(ValueError, match=message):
        evaluate_stages(folder if stepped else model, data)


@pytest.mark.parametrize("stepped", [True, False])
def test_no_images_raise(repository, stepped):
    family, folder, model = repository
    with pytest.raises(ValueError, match="the data is empty"):
        evaluate_stages(folder if stepped else model, Images(tiny_images(family, 0), []))


@pytest.mark.parametrize("stepped", [True, False])
def test_images_of_another_size_raise_with_both_sizes(tmp_path, stepped):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path / "repo")
    data = Images(torch.zeros(2, 3, 20, 20), [0, 0])
    with pytest.raises(ValueError, match=r"\(3, 20, 20\) do not fit the model .*16\*16.*image processor"):
        evaluate_stages(tmp_path / "repo" if stepped else model, data)


def test_data_that_changes_between_stages_raises(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "repo")
    data = images_of("vit", 6)

    class Changing(Images):
        def __len__(self):
            return 6 - (self.reads >= 6)

    with pytest.raises(ValueError, match="5 images at stage 1 and 6 before"):
        evaluate_stages(tmp_path / "repo", Changing(data.pixel_values, data.labels))


@pytest.mark.parametrize("masks", [[], ["SSSS", "SSSS"]])
def test_masks_that_are_none_or_twice_raise(masks):
    with pytest.raises(ValueError, match="each named once"):
        evaluate_masks(tiny_model("vit"), images_of("vit", 2), masks)


def test_mask_of_another_length_raises():
    with pytest.raises(ValueError, match="'TTS' has 3 letters"):
        evaluate_masks(tiny_model("vit"), images_of("vit", 2), ["TTS"])


def test_masks_of_a_model_loaded_stage_by_stage_raise(repository):
    family, folder, _ = repository
    with pytest.raises(StageError, match="STSS"):
        evaluate_masks(PWLForImageClassification.from_pretrained(folder), images_of(family, 2), ["STSS"])


def test_mask_that_was_not_evaluated_raises_with_those_that_were():
    found = evaluate_masks(tiny_model("vit"), images_of("vit", 2), ["SSSS", "TSSS"])
    with pytest.raises(KeyError, match=r"'TTTT' was not evaluated; SSSS, TSSS were"):
        found["TTTT"]


def test_model_in_bfloat16_and_workers_that_read():
    model, data = tiny_model("vit").to(torch.bfloat16), images_of("vit", 8)
    found = evaluate_masks(model, data, ["SSSS", "TTTT"], num_workers=1)
    lower = Images(data.pixel_values.to(torch.bfloat16), data.labels)
    assert found.masks[0].correct == sum(right_answers(model, lower, "SSSS"))


class MoreColumns(Images):
    def __getitem__(self, row):
        return {**super().__getitem__(row), "path": "a.png", "box": [1, 2], "number": row}


@pytest.mark.parametrize("stepped", [False, True])
def test_columns_that_the_model_does_not_take_are_left_out(repository, stepped):
    family, folder, model = repository
    plain = images_of(family, 6)
    data = MoreColumns(plain.pixel_values, plain.labels)
    measured = PWLForImageClassification.from_pretrained(folder) if stepped else model
    assert evaluate_stages(measured, data) == evaluate_stages(model, plain)


def test_data_without_the_models_input_raises(repository):
    family, _, model = repository
    data = [{"image": image, "labels": 0} for image in tiny_images(family)]
    with pytest.raises(
        ValueError, match="the data has no 'pixel_values', which the model takes: its columns are image"
    ):
        evaluate_masks(model, data, ["SSSS"])
