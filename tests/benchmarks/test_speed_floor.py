"""What speed is held against: the bare floor, the modules by hand, shards that were never verified, and a Hub."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, pairwise

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.speed.bare import Bare, Stopwatch
from benchmarks.speed.figures import Place
from benchmarks.speed.hub import total_bytes
from benchmarks.speed.measures.forward import _DIRECT, in_turns
from benchmarks.speed.measures.growth import of_stages, of_teachers, requests
from benchmarks.speed.measures.hashing import nothing_verified
from benchmarks.speed.pairs import pairs
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.repository import verification
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place("tiny", pairs()["tiny"], tmp_path_factory.mktemp("floor"), repeats=2)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_bare_network_is_transformers_own_bit_for_bit(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    model.student.save_pretrained(tmp_path / "student")
    images = tiny_images(family)
    for role in ("student", "teacher"):
        config = getattr(model.config, f"{role}_config")
        known = Bare.of(tmp_path / role, config)
        for _ in range(2):
            found = known.load()
            plain = family_of(config).model_class().from_pretrained(tmp_path / role)
            buffers = dict(found.named_buffers())
            assert all(torch.equal(buffers[name], buffer) for name, buffer in plain.named_buffers())
            with torch.no_grad():
                assert torch.equal(found(images).logits, plain(images).logits)


def test_bare_network_is_laid_over_the_file(place):
    folder = place.repository() / "student"
    found = Bare.of(folder, place.pair.student).load().state_dict()
    assert len(found) == len(load_file(folder / "model.safetensors"))
    # Pages of the file: one storage holds them all.
    assert not any(tensor.is_meta for tensor in found.values())


@pytest.mark.parametrize("family", ["vit", "resnet", "pwl_vgg"])
def test_modules_by_hand_give_the_models_logits_at_each_stage(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    model, images = PWLForImageClassification.from_pretrained(tmp_path), tiny_images(family)
    answers = []
    with torch.no_grad():
        for stage in range(model.num_stages + 1):
            model.set_stage(stage)
            answers.append(model(images).logits)
            assert torch.equal(_DIRECT[family](model)(images), answers[-1])
    assert not any(torch.equal(one, other) for one, other in pairwise(answers))


def test_every_pair_has_its_modules_by_hand():
    assert {pair.teacher.model_type for pair in pairs().values()} <= set(_DIRECT)


def test_blocks_of_two_things_take_turns_in_changing_order():
    asked: list[str] = []

    def thing(name: str):
        def run() -> torch.Tensor:
            asked.append(name)
            return torch.zeros(())

        return run

    one, other = in_turns(thing("a"), thing("b"), 2)
    assert len(one) == len(other) == 2
    blocks = ["".join(group) for _, group in groupby(asked[2:])]
    assert [block[0] for block in blocks] == ["b", "a", "b", "a"]
    calls = len(blocks[0])
    assert [len(block) for block in blocks] == [calls, 2 * calls, 2 * calls, calls]


def test_parts_of_a_stopwatch_follow_on_each_other():
    watch = Stopwatch("one", "two")
    for _ in range(2):
        watch.start()
        watch.lap("one")
        watch.lap("two")
    assert [len(seconds) for seconds in watch.seconds.values()] == [2, 2]
    assert all(value >= 0 for seconds in watch.seconds.values() for value in seconds)


def test_nothing_is_remembered_of_verified_shards_for_a_while(place, monkeypatch):
    hashed = []
    sha256_of = verification.sha256_of
    monkeypatch.setattr(verification, "sha256_of", lambda local: hashed.append(local.name) or sha256_of(local))
    folder = place.repository()
    PWLForImageClassification.from_pretrained(folder)
    hashed.clear()
    PWLForImageClassification.from_pretrained(folder)
    assert hashed == []
    for _ in range(2):
        with nothing_verified():
            PWLForImageClassification.from_pretrained(folder)
    assert hashed == ["model.safetensors"] * 2
    PWLForImageClassification.from_pretrained(folder)
    assert len(hashed) == 2


def test_growth_cuts_one_pair_into_more_blocks_and_gives_one_student_other_teachers(place):
    stages = of_stages(place)
    assert [variant.pair.num_blocks for variant in stages] == [1, 2]
    assert stages[1].folder == place.repository()
    for variant in stages:
        assert PWLForImageClassification.from_pretrained(variant.folder).num_stages == variant.pair.num_blocks
    teachers = of_teachers(place)
    sizes = [sum(p.stat().st_size for p in (variant.folder / "teacher").glob("*.safetensors")) for variant in teachers]
    assert sizes == sorted(set(sizes))
    assert len(sizes) > 1
    assert {(variant.folder / "model.safetensors").stat().st_size for variant in teachers} == {
        (place.repository() / "model.safetensors").stat().st_size
    }
    assert of_teachers(replace(place, name="another")) == []


@pytest.mark.usefixtures("forked")
def test_requests_are_those_of_each_stage(place):
    first, second = of_stages(place)
    asked = requests([first.folder, second.folder], place.data)
    files = [[{request.file for request in stage if request.file} for stage in stages] for stages in asked]
    opened = {"config.json", "pwl_index.json", "model.safetensors"}
    assert files == [
        [opened, {"teacher/model-00001-of-00001.safetensors"}],
        [
            opened,
            {"teacher/model-00001-of-00002.safetensors", "converters/encoder-00001.safetensors"},
            {"teacher/model-00002-of-00002.safetensors"},
        ],
    ]
    shard = second.folder / "teacher" / "model-00002-of-00002.safetensors"
    assert total_bytes(asked[1][2]) == shard.stat().st_size
