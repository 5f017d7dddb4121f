"""BatchNorm statistics: means over processes, and those of masks that help."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pwl_hf.training.trainer.mask_statistics import average_statistics, select_statistics
from tests.tiny import tiny_images, tiny_model
from tests.training.tiny_runs import differences, everything

MASKS = [format(k, "04b").replace("0", "S").replace("1", "T") for k in range(1, 15)]


def _labels_of(model, images, mask):
    with torch.no_grad():
        return model.eval()(images, sources=mask).logits.argmax(-1)


def test_averaging_takes_the_mean_of_running_statistics_alone():
    one, other = tiny_model("resnet", seed=0), tiny_model("resnet", seed=1)
    before = everything(one)
    sent = []
    average_statistics(other.student, lambda tensor: sent.append(tensor) or tensor)
    average_statistics(one.student, lambda tensor: (tensor + sent[0]) / 2)
    theirs, after = everything(other), everything(one)
    changed = differences(before, after)
    assert changed
    for name in after:
        if name.startswith("student.") and name.endswith(("running_mean", "running_var")):
            assert name in changed
            torch.testing.assert_close(after[name], (before[name] + theirs[name]) / 2)
        else:
            assert name not in changed


def test_the_mean_of_equal_statistics_changes_no_bit():
    model = tiny_model("resnet")
    before = everything(model)
    average_statistics(model.student, lambda tensor: (tensor + tensor + tensor) / 3)
    assert not differences(before, everything(model))


def test_a_network_without_batchnorm_sends_nothing():
    def refuse(tensor):
        raise AssertionError("nothing is to be sent")

    average_statistics(tiny_model("vit").student, refuse)


@pytest.mark.parametrize("family", ["resnet", "pwl_vgg"])
def test_masks_keep_their_own_statistics_where_they_measure_better(family):
    model = tiny_model(family)
    images = tiny_images(family, 48, seed=3)
    labels = _labels_of(model, images, "TTTT")
    before = everything(model)
    chosen = select_statistics(model, images.split(8), labels)
    assert set(chosen) == set(MASKS)
    kept = {mask for mask, choice in chosen.items() if choice.keeps_own}
    assert set(model.statistics) == kept
    assert set(differences(before, everything(model))) == {
        name for name in everything(model) if name.startswith("statistics/")
    }
    untouched = tiny_model(family)
    for mask, choice in chosen.items():
        assert choice.shared == pytest.approx(_cross_entropy(untouched, images[24:], labels[24:], mask))


def _cross_entropy(model, images, labels, mask):
    with torch.no_grad():
        return functional.cross_entropy(model.eval()(images, sources=mask).logits, labels).item()


def test_measured_on_other_images_than_estimated_from_and_kept_from_all():
    model = tiny_model("resnet")
    images = tiny_images("resnet", 24, seed=3)
    model.estimate_statistics(list(images[:16].split(8)), "TTSS")
    # Labels that only statistics of the first images lead to.
    labels = _labels_of(model, images, "TTSS")
    own = _cross_entropy(model, images[16:], labels[16:], "TTSS")
    model.estimate_statistics(list(images.split(8)), "TTSS")
    expected = {name: tensor.clone() for name, tensor in model.statistics["TTSS"].items()}
    chosen = select_statistics(model, images.split(8), labels, ["TTSS"], held_out=0.3)
    assert chosen["TTSS"].own == pytest.approx(own)
    assert chosen["TTSS"].shared == pytest.approx(
        _cross_entropy(tiny_model("resnet"), images[16:], labels[16:], "TTSS")
    )
    assert chosen["TTSS"].keeps_own
    assert not differences(expected, dict(model.statistics["TTSS"]))


def test_statistics_that_mislead_are_dropped_and_others_left_alone():
    model = tiny_model("resnet")
    images = tiny_images("resnet", 24, seed=3)
    labels = _labels_of(model, images, "TTSS")
    model.estimate_statistics(images[:8], "SSTT")
    other = {name: tensor.clone() for name, tensor in model.statistics["SSTT"].items()}
    model.estimate_statistics(images[:8], "TTSS")
    chosen = select_statistics(model, [*(images[:16] * 30).split(8), images[16:]], labels, ["TTSS"], held_out=0.1)
    assert chosen["TTSS"].shared < chosen["TTSS"].own
    assert not chosen["TTSS"].keeps_own
    assert set(model.statistics) == {"SSTT"}
    assert not differences(other, dict(model.statistics["SSTT"]))


@pytest.mark.parametrize("training", [True, False])
def test_selecting_keeps_the_mode(training):
    model = tiny_model("resnet").train(training)
    select_statistics(model, tiny_images("resnet", 8).split(4), torch.zeros(8, dtype=torch.int64), ["TTSS"])
    assert model.training == model.student.training == training


def test_networks_without_batchnorm_have_nothing_to_select():
    assert select_statistics(tiny_model("vit"), tiny_images("vit", 8).split(4), torch.zeros(8)) == {}


def test_one_batch_is_refused():
    with pytest.raises(ValueError, match="at least two batches, to estimate and to measure, got 1"):
        select_statistics(tiny_model("resnet"), [tiny_images("resnet", 8)], torch.zeros(8))


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"one for each of the 8 samples, got a tensor of \(7,\)"):
        select_statistics(tiny_model("resnet"), tiny_images("resnet", 8).split(4), torch.zeros(7))
