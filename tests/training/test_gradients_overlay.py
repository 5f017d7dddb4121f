"""Images under their maps: the blend by hand, aligned through every augmentation, and the controls."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from pwl_hf.data import DataSource, open_split
from pwl_hf.data.digits import image_processor
from pwl_hf.training.images.augmentation import AUGMENTATIONS, Augmentation
from pwl_hf.training.images.gradient_arguments import GradientArguments
from pwl_hf.training.images.gradient_maps import GradientMapsError
from pwl_hf.training.images.gradients import PixelRange, integrated_gradients
from pwl_hf.training.images.overlay import GradientOverlay, derangement, gradient_overlay, stretched
from tests.tiny import tiny_images, tiny_model

IDS = torch.arange(12)
BLACK, WHITE = torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 1.0)


class _Images(Dataset):
    def __init__(self, count: int = 12, labels: bool = True) -> None:
        self.images, self.labels = tiny_images("vit", count), labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict:
        return {"pixel_values": self.images[row], "sample_ids": row} | ({"labels": row % 5} if self.labels else {})


def _overlay(folder, *, labels: bool = True, **kwargs) -> GradientOverlay:
    options = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("ig_")}
    arguments = GradientArguments(**{"ig_probability": 1.0, "ig_steps": 4, "ig_batch_size": 5, **options})
    teacher, data = tiny_model("vit").teacher, _Images(labels=labels)
    return gradient_overlay(
        arguments, teacher, image_processor(), data, title="things", folder=folder, disable_tqdm=True, **kwargs
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("maps")


def test_image_is_half_itself_and_half_its_map(folder):
    images, labels = tiny_images("vit", 12), IDS % 5
    found = _overlay(folder).augment(images, IDS, seed=3, step=8)
    maps = integrated_gradients(tiny_model("vit").teacher, images, labels, BLACK, steps=4)
    powers = []
    for i in range(12):
        # From pixels of 0 to 1, before the processor's (x - 0.5) / 0.5.
        grey = (2 * found[i] - images[i] + 1) / 2
        assert torch.allclose(grey[0], grey[1], atol=1e-5)
        assert grey.min() == pytest.approx(0, abs=1e-3)
        assert grey.max() == pytest.approx(1, abs=1e-3)
        errors = {}
        for s in torch.linspace(1, 2, 401).tolist():
            raised = maps[i] ** s
            expected = (raised - raised.min()) / (raised.max() - raised.min())
            errors[s] = float((grey[0] - expected).abs().max())
        s = min(errors, key=errors.__getitem__)
        assert errors[s] < 5e-3
        powers.append(s)
    assert max(powers) - min(powers) > 0.3


def test_powers_are_log_uniform_from_one_to_two(folder, monkeypatch):
    from pwl_hf.training.images import overlay

    seen = []

    def recording(maps, power):
        seen.append(power)
        return stretched(maps, power)

    monkeypatch.setattr(overlay, "stretched", recording)
    mixed = _overlay(folder)
    for step in range(300):
        mixed.augment(tiny_images("vit", 12), IDS, seed=0, step=step)
    logs = torch.cat(seen).log2()
    assert logs.min() >= 0
    assert logs.max() < 1
    for quarter in (0.25, 0.5, 0.75):
        assert (logs < quarter).float().mean().item() == pytest.approx(quarter, abs=0.03)


def test_the_asked_part_of_images_is_mixed_and_the_others_are_untouched(folder):
    overlay, images = _overlay(folder, ig_probability=0.1), tiny_images("vit", 12)
    changed = []
    for step in range(300):
        found = overlay.augment(images, IDS, seed=0, step=step)
        changed.append((found != images).flatten(1).any(1))
    assert torch.stack(changed).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(_overlay(folder, ig_probability=0.0).augment(images, IDS, 0, 0), images)


def test_what_happens_to_an_image_does_not_depend_on_its_batch(folder):
    overlay = _overlay(folder, ig_probability=0.5, then=AUGMENTATIONS["paper"])
    images, order = tiny_images("vit", 12), torch.randperm(12)
    whole = overlay.augment(images, IDS, seed=1, step=2)
    torch.testing.assert_close(overlay.augment(images[order], IDS[order], seed=1, step=2), whole[order])
    torch.testing.assert_close(overlay.augment(images[4:7], IDS[4:7], seed=1, step=2), whole[4:7])
    assert not torch.allclose(overlay.augment(images, IDS, seed=1, step=3), whole)


@pytest.mark.parametrize("name", ["flip-crop", "paper", "digits"])
def test_map_is_flipped_and_cropped_with_its_image(name):
    # A bright place on the image is also where its map is: after any change they are at the same place.
    spots = torch.zeros(12, 16, 16)
    for i in range(12):
        spots[i, 5 + i % 3, 4 + i // 3] = 1
    images = (1.5 * spots - 1)[:, None].expand(-1, 3, -1, -1).contiguous()

    class _Spots:
        def places(self, images, sample_ids):
            return sample_ids

        def at(self, places):
            return spots[places]

    way = AUGMENTATIONS[name]
    pixels = PixelRange(BLACK, WHITE)
    one = GradientOverlay(_Spots(), pixels, 1.0, then=way).augment(images, IDS, 1, 2)
    alone = way.augment(images, IDS, 1, 2)
    map_of = way.augment((2 * spots - 1)[:, None].expand(-1, 3, -1, -1).contiguous(), IDS, 1, 2)
    torch.testing.assert_close(one, 0.5 * alone + 0.5 * map_of)
    assert torch.equal(alone.flatten(2).argmax(2), map_of.flatten(2).argmax(2))
    assert not torch.equal(alone, images)


def test_maps_of_other_images_are_a_fixed_derangement(folder):
    own, shuffled = _overlay(folder), _overlay(folder, ig_control="shuffled", seed=4)
    images = tiny_images("vit", 12)
    others = shuffled.others
    assert torch.equal(others, derangement(12, 4))
    found = shuffled.augment(images, IDS, seed=1, step=2)
    for i, j in enumerate(others.tolist()):
        assert i != j
        # The same power as ever, the map of image j.
        power = torch.ones(1)
        grey = (2 * found[i] - images[i] + 1) / 2
        brightest = stretched(own.maps.at(torch.tensor([j])), power)[0].argmax()
        assert grey[0].argmax() == brightest
    # Alignment is still checked by the image's own map.
    with pytest.raises(GradientMapsError, match="was made of another image"):
        shuffled.augment(images.roll(1, 0), IDS, seed=1, step=2)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement_leaves_nobody_at_its_place(count):
    others = derangement(count, 0)
    assert sorted(others.tolist()) == list(range(count))
    assert (others != torch.arange(count)).all()
    assert torch.equal(others, derangement(count, 0))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        derangement(1, 0)


def test_stretched_map_that_is_the_same_everywhere_is_black():
    assert not stretched(torch.full((1, 2, 2), 0.5), torch.ones(1)).any()


def test_images_that_are_augmented_already_are_refused(folder):
    images = Augmentation(rotation=90, shift=0.5).augment(tiny_images("vit", 12), IDS, 0, 0)
    with pytest.raises(GradientMapsError, match="was made of another image"):
        _overlay(folder).augment(images, IDS, seed=0, step=0)


def test_images_of_another_size_are_refused(folder):
    images = torch.nn.functional.interpolate(tiny_images("vit", 12), 32)
    with pytest.raises(GradientMapsError, match="have 16x16 pixels, the images 32x32: delete the folder"):
        _overlay(folder).augment(images, IDS, seed=0, step=0)


def test_images_keep_their_dtype(folder):
    assert _overlay(folder).augment(tiny_images("vit", 12).bfloat16(), IDS, 0, 0).dtype == torch.bfloat16


def test_without_labels_in_training_the_maps_use_none(tmp_path):
    images = tiny_images("vit", 12)
    found = [
        _overlay(tmp_path / str(labels), labels=labels, uses_labels=False).augment(images, IDS, 0, 0)
        for labels in (True, False)
    ]
    assert torch.equal(*found)
    by_label = _overlay(tmp_path / "label", uses_labels=False, ig_target="label").augment(images, IDS, 0, 0)
    assert not torch.equal(by_label, found[0])


def test_given_folder_comes_before_the_default(tmp_path, folder):
    _overlay(tmp_path / "default", ig_maps=str(tmp_path / "given"))
    assert not (tmp_path / "default").exists()
    assert list((tmp_path / "given").iterdir())


def test_digits_from_the_data_on(tmp_path):
    split = open_split(DataSource("digits", max_samples=20), "train")
    data = split.pixels(image_processor(), keep_in_memory=True)
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4, num_labels=10
    )
    overlay = gradient_overlay(
        GradientArguments(ig_probability=1.0, ig_steps=2),
        ViTForImageClassification(config).eval(),
        image_processor(),
        data,
        title=split.title,
        folder=tmp_path,
        then=AUGMENTATIONS["digits"],
        disable_tqdm=True,
    )
    assert len(overlay.maps) == 20
    batch = [data[row] for row in (3, 17)]
    ids = torch.tensor([item["sample_ids"] for item in batch])
    assert overlay.augment(torch.stack([item["pixel_values"] for item in batch]), ids, 0, 0).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ig_probability": 1.5}, "ig_probability must be from 0 to 1, got 1.5"),
        ({"ig_steps": 0}, "ig_steps must be at least 1, got 0"),
        ({"ig_batch_size": -1}, "ig_batch_size must be at least 1, got -1"),
        ({"ig_control": "shuffled"}, "ig_control=shuffled needs an ig_probability above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradientArguments(**options)
