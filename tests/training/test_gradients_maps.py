"""Stored maps: what is in them, what they are refused for, and a computation that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pwl_hf.training.images import gradient_maps
from pwl_hf.training.images.gradient_maps import GradientMaps, GradientMapsError, MapSettings, compute_maps
from pwl_hf.training.images.gradients import fingerprint, integrated_gradients
from tests.tiny import tiny_images, tiny_model

BLACK = torch.full((3, 1, 1), -1.0)
IMAGES, LABELS = tiny_images("vit", 10), torch.arange(10) % 5
# Not in order, not from 0, and one of a stream.
IDS = torch.tensor([5, 3, 9, 0, 12, 7, (1 << 32) + 1, 2, 20, 1])


@pytest.fixture(scope="module")
def teacher():
    return tiny_model("vit").teacher


@pytest.fixture
def settings(teacher):
    return MapSettings(fingerprint(teacher), "split 'train' of 'things'", "label", 4)


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(gradient_maps, "_PER_FILE", 4)


def _batches(rows: slice = slice(None), *, labels: bool = True):
    for some in torch.arange(len(IDS))[rows].split(3):
        batch = {"pixel_values": IMAGES[some], "sample_ids": IDS[some]}
        yield batch | ({"labels": LABELS[some]} if labels else {})


def _compute(folder: Path, settings: MapSettings, teacher, batches=None, **kwargs) -> int:
    return compute_maps(folder, settings, teacher, BLACK, _batches() if batches is None else batches, **kwargs)


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


def test_each_image_gets_its_own_map_by_id(tmp_path, settings, teacher):
    assert _compute(tmp_path, settings, teacher) == 10
    maps = GradientMaps(tmp_path, settings)
    assert maps.sample_ids.tolist() == sorted(IDS.tolist())
    exact = integrated_gradients(teacher, IMAGES, LABELS, BLACK, steps=4)
    exact = exact / exact.amax((1, 2), keepdim=True)
    order = torch.tensor([4, 8, 0, 6])
    found = maps.at(maps.places(IMAGES[order], IDS[order]))
    torch.testing.assert_close(found, exact[order], rtol=2e-3, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.amax((1, 2)).tolist() == [1.0] * 4


def test_files_tell_what_they_are(tmp_path, settings, teacher):
    _compute(tmp_path, settings, teacher)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {
            "format": "pwl-gradient-maps/1",
            "baseline": "black",
            "method": "gausslegendre",
            "teacher": fingerprint(teacher),
            "dataset": "split 'train' of 'things'",
            "target": "label",
            "steps": "4",
        }
        assert file.get_tensor("maps").dtype == torch.float16


def test_predictions_need_no_labels_and_labels_play_no_part(tmp_path, settings, teacher):
    settings = replace(settings, target="prediction")
    with torch.no_grad():
        answers = teacher(IMAGES).logits.argmax(-1)
    exact = integrated_gradients(teacher, IMAGES, answers, BLACK, steps=4)
    for name, labels in (("with", True), ("without", False)):
        _compute(tmp_path / name, settings, teacher, _batches(labels=labels))
        maps = GradientMaps(tmp_path / name, settings)
        expected = exact / exact.amax((1, 2), keepdim=True)
        torch.testing.assert_close(maps.at(maps.places(IMAGES, IDS)), expected, rtol=2e-3, atol=1e-6)


def test_labels_that_are_missing_are_told(tmp_path, settings, teacher):
    with pytest.raises(ValueError, match="the images have none: set ig_target to prediction"):
        _compute(tmp_path, settings, teacher, _batches(labels=False))


def test_black_image_has_an_empty_map(tmp_path, settings, teacher):
    batch = {"pixel_values": BLACK.expand(1, 3, 16, 16), "sample_ids": torch.tensor([1]), "labels": torch.tensor([2])}
    _compute(tmp_path, settings, teacher, [batch])
    assert not GradientMaps(tmp_path, settings).at(torch.tensor([0])).any()


def test_computation_goes_on_where_it_ended(tmp_path, settings, teacher, monkeypatch):
    asked = []

    def counted(network, images, *args, **kwargs):
        asked.append(len(images))
        return integrated_gradients(network, images, *args, **kwargs)

    monkeypatch.setattr(gradient_maps, "integrated_gradients", counted)

    def ended():
        yield from list(_batches())[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _compute(tmp_path / "ended", settings, teacher, ended())
    before = _files(tmp_path / "ended")
    assert len(before) == 1  # six maps; three more were under way
    asked.clear()
    assert _compute(tmp_path / "ended", settings, teacher) == 4
    assert sum(asked) == 4
    assert before.items() <= _files(tmp_path / "ended").items()
    _compute(tmp_path / "whole", settings, teacher)
    stores = [GradientMaps(tmp_path / name, settings) for name in ("ended", "whole")]
    assert torch.equal(*(store.sample_ids for store in stores))
    torch.testing.assert_close(*(store.at(torch.arange(10)) for store in stores), rtol=2e-3, atol=1e-5)
    # Nothing is left to do.
    asked.clear()
    assert _compute(tmp_path / "ended", settings, teacher) == 0
    assert asked == []


def test_processes_share_a_computation_out(tmp_path, settings, teacher):
    counts = [_compute(tmp_path, settings, teacher, process_index=rank, num_processes=3) for rank in range(3)]
    assert sum(counts) == 10
    assert min(counts) > 0
    assert GradientMaps(tmp_path, settings).sample_ids.tolist() == sorted(IDS.tolist())


def test_runs_side_by_side_leave_each_map_once(tmp_path, settings, teacher):
    for name in ("one", "other"):
        _compute(tmp_path / name, settings, teacher, _batches(slice(0, 7) if name == "one" else slice(2, 10)))
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / "one" / path.name)
    maps = GradientMaps(tmp_path / "one", settings)
    assert maps.sample_ids.tolist() == sorted(IDS.tolist())
    exact = integrated_gradients(teacher, IMAGES, LABELS, BLACK, steps=4)
    expected = exact / exact.amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps.at(maps.places(IMAGES, IDS)), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"), [("teacher", "0" * 64), ("dataset", "other"), ("target", "prediction"), ("steps", 5)]
)
def test_maps_of_other_settings_are_refused(tmp_path, settings, teacher, field, value):
    _compute(tmp_path, settings, teacher)
    before = _files(tmp_path)
    other = replace(settings, **{field: value})
    with pytest.raises(GradientMapsError, match=f"have {field} .*, but '{value}' is asked for: give another ig_maps"):
        _compute(tmp_path, other, teacher)
    assert _files(tmp_path) == before


def test_map_of_another_image_is_found_out(tmp_path, settings, teacher):
    _compute(tmp_path, settings, teacher)
    maps = GradientMaps(tmp_path, settings)
    maps.places(IMAGES.bfloat16(), IDS)  # half precision is no other image
    with pytest.raises(GradientMapsError, match=r"gradient map of sample 5 in .* was made of another image: its mean"):
        maps.places(IMAGES.roll(1, 0), IDS)


def test_image_without_a_map_is_named(tmp_path, settings, teacher):
    _compute(tmp_path, settings, teacher)
    with pytest.raises(GradientMapsError, match="no gradient map of sample 6: its maps are of 10 other images"):
        GradientMaps(tmp_path, settings).places(IMAGES[:2], torch.tensor([5, 6]))
    with pytest.raises(GradientMapsError, match="no gradient map of sample 5: its maps are of 0 other images"):
        GradientMaps(tmp_path / "nothing", settings).places(IMAGES[:1], torch.tensor([5]))


def test_damaged_files_are_named(tmp_path, settings, teacher):
    _compute(tmp_path, settings, teacher)
    path = min(tmp_path.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(GradientMapsError, match=f"{path.name} is no readable file of gradient maps .*: delete it"):
        GradientMaps(tmp_path, settings)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file({**tensors, "means": tensors["means"][1:].clone()}, path, metadata=settings.metadata())
    with pytest.raises(GradientMapsError, match="has not the tensors of a file of gradient maps, but"):
        GradientMaps(tmp_path, settings)


def test_file_that_was_not_finished_is_no_file(tmp_path, settings, teacher, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        _compute(tmp_path, settings, teacher)
    assert not list(tmp_path.iterdir())
    assert len(GradientMaps(tmp_path, settings)) == 0
