"""BatchNorm statistics that belong to a mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pwl_hf import PWLForImageClassification, Sources, StageError
from tests.tiny import FAMILIES, WITH_BATCH_NORM, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]
MIXED = [str(mask) for mask in Sources.all(4) if mask.is_mixed]


def answers(model: PWLForImageClassification, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {str(mask): model(images, sources=str(mask)).logits for mask in Sources.all(4)}


def statistics_by_hand(model: PWLForImageClassification, images: torch.Tensor, mask: str) -> dict[str, torch.Tensor]:
    """Run the layers of a VGG path one by one; behind the first converter, normalise by the batch."""
    found: dict[str, torch.Tensor] = {}
    hidden, before, converted = images, mask[0], False
    for i, letter in enumerate(mask):
        if letter != before:
            converter = (model.encoders if before == "T" else model.decoders)[str(i)]
            hidden = torch.einsum("oc,bchw->bohw", converter.weight, hidden) + converter.bias[:, None, None]
            before, converted = letter, True
        role = {"T": "teacher", "S": "student"}[letter]
        cuts = getattr(model.config, f"{role}_cuts")
        for unit in range(cuts[i - 1] if i else 0, cuts[i]):
            layer = getattr(model, role).vgg.layers[unit]
            norm, hidden = layer.normalization, layer.convolution(hidden)
            mean, var = norm.running_mean, norm.running_var
            if converted:
                rows = hidden.movedim(1, -1).flatten(0, -2)
                name = f"{role}.vgg.layers.{unit}.normalization"
                found[f"{name}.running_mean"] = rows.mean(0)
                found[f"{name}.running_var"] = rows.var(0, unbiased=True)
                mean, var = rows.mean(0), rows.var(0, unbiased=False)
            hidden = (hidden - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
            hidden = layer.pooler(functional.relu(hidden * norm.weight[:, None, None] + norm.bias[:, None, None]))
    return found


@pytest.mark.parametrize("mask", MIXED)
@torch.no_grad()
def test_statistics_equal_those_of_the_features_of_one_batch(mask: str) -> None:
    model, images = tiny_model("pwl_vgg"), tiny_images("pwl_vgg", 8)
    expected = statistics_by_hand(model, images, mask)
    model.estimate_statistics(images, mask)
    found = model.statistics[mask]
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_batches_are_averaged() -> None:
    images = [tiny_images("pwl_vgg", 6, seed=seed) for seed in (1, 2, 3)]
    model = tiny_model("pwl_vgg")
    model.estimate_statistics(iter(images), "TTSS")
    each = []
    for batch in images:
        one = tiny_model("pwl_vgg")
        one.estimate_statistics(batch, "TTSS")
        each.append(one.statistics["TTSS"])
    for name, tensor in model.statistics["TTSS"].items():
        torch.testing.assert_close(tensor, torch.stack([found[name] for found in each]).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
@torch.no_grad()
def test_several_masks_at_once_get_what_each_gets_alone(model_type: str) -> None:
    images = [tiny_images(model_type, 6, seed=seed) for seed in (1, 2, 3)]
    together, apart = tiny_model(model_type), tiny_model(model_type)
    together.estimate_statistics(iter(images), MIXED)
    for mask in MIXED:
        apart.estimate_statistics(images, mask)
    assert list(together.statistics) == MIXED
    for mask in MIXED:
        found, expected = together.statistics[mask], apart.statistics[mask]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    tensors = [tensor for mask in MIXED for tensor in together.statistics[mask].values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


@torch.no_grad()
def test_several_masks_of_which_one_is_wrong_change_nothing() -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    model.estimate_statistics(images, [])
    with pytest.raises(ValueError, match="'SSSS' is one whole network"):
        model.estimate_statistics(images, ["TSSS", "SSSS"])
    with pytest.raises(ValueError, match="at least one sample"):
        model.estimate_statistics([], ["TSSS", "TTSS"])
    assert not model.statistics


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_only_the_mask_itself_answers_differently(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 4)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before = answers(model, images)
    model.estimate_statistics(images, "TTSS")
    after = answers(model, images)
    assert [mask for mask in before if not torch.equal(before[mask], after[mask])] == ["TTSS"]
    model.estimate_statistics(images * 2, "STSS")
    again = answers(model, images)
    assert [mask for mask in before if not torch.equal(after[mask], again[mask])] == ["STSS"]
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    assert set(model.statistics) == {"TTSS", "STSS"}


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_a_stage_shares_parameters_and_owns_statistics(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 4)
    model.estimate_statistics(images, "TTSS")
    model.set_stage(2)
    before = model(images).logits
    with torch.no_grad():
        model.student.classifier[-1].bias.add_(1) if model_type == "resnet" else model.student.classifier.bias.add_(1)
    torch.testing.assert_close(model(images).logits, before + 1)
    own = {t.data_ptr() for t in model.student.buffers()} | {t.data_ptr() for t in model.teacher.buffers()}
    assert not own & {t.data_ptr() for t in model.statistics["TTSS"].values()}


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
@torch.no_grad()
def test_the_default_is_the_current_mask_and_modes_stay(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 4)
    model.set_stage(3)
    model.train().estimate_statistics(images)
    assert set(model.statistics) == {"TTTS"}
    assert model.training
    assert model.student.training
    assert not model.teacher.training
    modes = {name: m.training for name, m in model.named_modules()}
    model.eval().estimate_statistics(images)
    assert not any(m.training for m in model.modules())
    assert any(modes.values())


@torch.no_grad()
def test_estimating_is_the_same_in_both_modes_and_draws_no_random_number() -> None:
    images, found = tiny_images("resnet", 4), []
    state = torch.get_rng_state()
    for training in (False, True):
        model = tiny_model("resnet").train(training)
        model.estimate_statistics(images, "STTS")
        found.append(model.statistics["STTS"])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@torch.no_grad()
def test_estimating_again_starts_anew() -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    model.estimate_statistics(images, "TSSS")
    first = {name: t.clone() for name, t in model.statistics["TSSS"].items()}
    model.estimate_statistics(images * 5, "TSSS")
    assert not all(torch.equal(t, first[n]) for n, t in model.statistics["TSSS"].items())
    model.estimate_statistics(images, "TSSS")
    assert all(torch.equal(t, first[n]) for n, t in model.statistics["TSSS"].items())


@torch.no_grad()
def test_a_route_in_flight_never_sees_its_statistics_change() -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    model.set_stage(2)
    for factor in (1, 3):
        in_flight, expected = model._router._current, model(images).logits
        model.estimate_statistics(images * factor)
        assert torch.equal(in_flight({"pixel_values": images}).logits, expected)
        assert not torch.equal(model(images).logits, expected)


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
@torch.no_grad()
def test_statistics_are_saved_and_loaded_with_their_mask(tmp_path: Path, model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 4)
    for mask in ("TSSS", "TTTS", "SSTT"):
        model.estimate_statistics(images, mask)
    expected = answers(model, images)
    model.save_pretrained(tmp_path)
    assert {path.stem for path in (tmp_path / "statistics").iterdir()} == {"TSSS", "TTTS", "SSTT"}
    assert all(path.stat().st_size < 10_000 for path in (tmp_path / "statistics").iterdir())
    loaded = PWLForImageClassification.from_pretrained(tmp_path)
    for mask in MIXED:
        loaded.set_sources(mask)
        assert torch.equal(loaded(images).logits, expected[mask]), mask
    kept = PWLForImageClassification.from_pretrained(tmp_path, keep_all=True)
    for mask, logits in answers(kept, images).items():
        assert torch.equal(logits, expected[mask]), mask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_statistics_follow_a_cast(dtype: torch.dtype) -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    model.estimate_statistics(images, "TTSS")
    model.set_stage(2)
    model.to(dtype)
    assert {t.dtype for t in model.statistics["TTSS"].values()} == {dtype}
    assert model(images).logits.dtype == dtype
    model.estimate_statistics(images)
    assert {t.dtype for t in model.statistics["TTSS"].values()} == {dtype}
    assert model(images, sources="TTSS").logits.dtype == dtype


@torch.no_grad()
def test_discarded_statistics_are_gone_from_answers_files_and_later_stages(tmp_path: Path) -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    expected = answers(model, images)
    for mask in ("TSSS", "TTSS"):
        model.estimate_statistics(images, mask)
    kept = answers(model, images)["TSSS"]
    model.save_pretrained(tmp_path / "both")
    for stage in (0, 2):
        loaded = PWLForImageClassification.from_pretrained(tmp_path / "both", stage=stage)
        loaded.discard_statistics("TTSS")
        loaded.set_stage(1)
        assert torch.equal(loaded(images).logits, kept)
        loaded.set_stage(2)
        assert set(loaded.statistics) == {"TSSS"}
        assert torch.equal(loaded(images).logits, expected["TTSS"])
        loaded.save_pretrained(tmp_path / "one")
        assert {path.name for path in (tmp_path / "one" / "statistics").iterdir()} == {"TSSS.safetensors"}
        loaded.estimate_statistics(images)
        loaded.save_pretrained(tmp_path / "again")
        assert {path.name for path in (tmp_path / "again" / "statistics").iterdir()} == {
            "TSSS.safetensors",
            "TTSS.safetensors",
        }


def test_discarding_what_is_not_there_changes_nothing_and_no_mask_is_refused() -> None:
    model = tiny_model("resnet")
    model.estimate_statistics(tiny_images("resnet", 4), "TTSS")
    model.discard_statistics("TSSS")
    model.discard_statistics()
    with pytest.raises(ValueError, match="sources mask"):
        model.discard_statistics("TT")
    assert set(model.statistics) == {"TTSS"}


def test_statistics_follow_a_move() -> None:
    model = tiny_model("resnet")
    model.estimate_statistics(tiny_images("resnet", 4), "TTSS")
    model.to("meta")
    assert {t.device.type for t in model.statistics["TTSS"].values()} == {"meta"}
    assert model(tiny_images("resnet").to("meta"), sources="TTSS").logits.is_meta


@pytest.mark.parametrize("mask", ["SSSS", "TTTT"])
def test_whole_networks_are_refused(mask: str) -> None:
    model = tiny_model("resnet")
    with pytest.raises(ValueError, match=f"'{mask}' is one whole network"):
        model.estimate_statistics(tiny_images("resnet"), mask)
    with pytest.raises(ValueError, match="'SSSS' is one whole network"):
        model.estimate_statistics(tiny_images("resnet"))
    assert not model.statistics


def test_malformed_masks_and_missing_images_are_refused_and_change_nothing() -> None:
    model = tiny_model("resnet").train()
    for mask in ("TTS", "XXXX"):
        with pytest.raises(ValueError, match="sources mask"):
            model.estimate_statistics(tiny_images("resnet"), mask)
    for images in ([], torch.zeros(0, 3, 64, 64)):
        with pytest.raises(ValueError, match="at least one sample"):
            model.estimate_statistics(images, "TTSS")
    assert not model.statistics
    assert model.training


def test_a_mask_that_is_not_resident_is_refused(load: Load) -> None:
    model = load("resnet", stage=1)
    with pytest.raises(StageError, match="is not resident"):
        model.estimate_statistics(tiny_images("resnet"), "TTSS")
    model.estimate_statistics(tiny_images("resnet"), "TSSS")


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - set(WITH_BATCH_NORM)))
def test_families_without_batch_norm_have_no_statistics(model_type: str, tmp_path: Path) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type)
    before = answers(model, images)
    model.estimate_statistics(images, "TTSS")
    assert not model.statistics
    assert all(torch.equal(logits, before[mask]) for mask, logits in answers(model, images).items())
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "statistics").exists()


def test_statistics_cannot_be_edited_from_outside() -> None:
    model = tiny_model("resnet")
    model.estimate_statistics(tiny_images("resnet"), "TTSS")
    with pytest.raises(TypeError):
        model.statistics["TSSS"] = {}


@torch.no_grad()
def test_a_copy_has_statistics_of_its_own() -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    model.estimate_statistics(images, "TTSS")
    expected, other = answers(model, images), copy.deepcopy(model)
    other.estimate_statistics(images * 4, "TTSS")
    for tensor in other.statistics["TTSS"].values():
        tensor.zero_()
    assert all(torch.equal(logits, expected[mask]) for mask, logits in answers(model, images).items())


@pytest.mark.parametrize("where", ["images", "weights"])
def test_what_is_not_finite_is_refused_and_changes_no_statistics(where: str) -> None:
    model, images = tiny_model("resnet").train(), tiny_images("resnet", 4)
    model.estimate_statistics(images, "TSSS")
    before = {name: t.clone() for name, t in model.statistics["TSSS"].items()}
    if where == "images":
        images[3, 1, 2, 2] = float("nan")
    else:
        with torch.no_grad():
            model.encoders["2"].weight[0, 0] = float("inf")
    message = "batch 1 .*NaN or infinity in pixel_values" if where == "images" else "statistics of mask TTSS would hold"
    with pytest.raises(ValueError, match=message):
        model.estimate_statistics(images.split(2), ["TSSS", "TTSS"])
    assert model.statistics.keys() == {"TSSS"}
    assert all(torch.equal(t, model.statistics["TSSS"][name]) for name, t in before.items())
    assert model.training
