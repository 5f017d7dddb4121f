"""Saving from any stage gives one and the same repository, whole at every moment."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pwl_hf import Metric, OverwriteError, PWLConfig, PWLForImageClassification, RepositoryError
from pwl_hf.modeling.publishing.saving import write_metrics
from pwl_hf.modeling.repository import files
from tests.repository.helpers import (
    INDEX,
    STUDENT,
    contents,
    encoder,
    load,
    logits,
    read_json,
    shard,
    statistics,
    tree,
    weights,
)
from tests.tiny import EACH_FAMILY, tiny_config, tiny_images, tiny_model

METRIC = Metric(name="accuracy", value=0.5, dataset="digits", split="test", n=360)


def change_student(model: PWLForImageClassification) -> None:
    with torch.no_grad():
        list(model.student.classifier.parameters())[-1].add_(1.0)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_save_from_every_stage_gives_the_same_bytes(saved, family, tmp_path):
    expected = contents(saved(family))
    model = load(saved(family))
    for k in range(5):
        if k:
            model.load_next_stage()
        model.save_pretrained(tmp_path / str(k))
        assert contents(tmp_path / str(k)) == expected, k
    model.set_stage(1)
    model.save_pretrained(tmp_path / "down")
    assert contents(tmp_path / "down") == expected


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_save_from_other_masks_and_residencies_gives_the_same_bytes(saved, family, tmp_path):
    expected = contents(saved(family))
    model = load(saved(family))
    for mask in ("STST", "SSST", "TSTT"):
        model.set_sources(mask)
        model.save_pretrained(tmp_path / mask)
        assert contents(tmp_path / mask) == expected, mask
    load(saved(family), stage=2, keep_all=True).save_pretrained(tmp_path / "all")
    assert contents(tmp_path / "all") == expected
    copy.deepcopy(model).save_pretrained(tmp_path / "copied")
    assert contents(tmp_path / "copied") == expected


def test_save_of_a_saved_repository_is_a_fixed_point(saved, tmp_path):
    load(saved("swin"), stage=3).save_pretrained(tmp_path / "a")
    load(tmp_path / "a", stage=1).save_pretrained(tmp_path / "b")
    assert contents(tmp_path / "b") == contents(saved("swin"))


def test_save_over_an_older_layout_removes_the_weight_files_that_its_manifest_lists_only(saved, tmp_path):
    tiny_model("resnet", num_stages=4).save_pretrained(tmp_path)
    model = load(tmp_path, keep_all=True)
    model.estimate_statistics(tiny_images("resnet", 4), "TSSS")
    model.save_pretrained(tmp_path)
    assert (tmp_path / statistics("TSSS")).exists()
    for name in ("README.md", "notes.txt", "teacher/notes.txt", "teacher/tokenizer.json", "accuracy.png"):
        (tmp_path / name).write_text("mine")
    # Weights of another's making, as some version of transformers names them, too: the manifest does not list them.
    others = ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    others += ("teacher/ema.safetensors", "converters/mine.safetensors", "statistics/old.safetensors", ".tmpAbCdEf")
    for name in others:
        (tmp_path / name).write_text("mine")
    tiny_model("resnet", num_stages=2).save_pretrained(tmp_path)
    tiny_model("resnet", num_stages=2).save_pretrained(tmp_path / "fresh")
    fresh = tree(tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh")
    left = tree(tmp_path)
    mine = {path for path, content in left.items() if content == b"mine"}
    assert mine == {"README.md", "notes.txt", "teacher/notes.txt", "teacher/tokenizer.json", "accuracy.png", *others}
    assert {path: content for path, content in left.items() if path not in mine} == fresh


def test_save_into_own_folder_from_a_stage_and_going_on_gives_the_teacher(copied):
    folder = copied("resnet")
    expected, teacher = weights(folder), logits(load(folder, stage="teacher"))
    model = load(folder, stage=1)
    model.save_pretrained(folder)
    assert weights(folder) == expected
    while model.stage < 4:
        model.load_next_stage()
    assert torch.equal(logits(model), teacher)


def test_save_of_a_changed_student_into_own_folder_lets_it_go_on(copied):
    folder = copied("vit")
    before = weights(folder)
    model = load(folder, stage=1)
    change_student(model)
    changed = logits(model)
    model.save_pretrained(folder)
    after = weights(folder)
    assert {path for path in before if before[path] != after[path]} == {STUDENT, INDEX}
    assert torch.equal(logits(load(folder, stage=1)), changed)
    # What was saved is no longer a change that would be lost.
    model.set_stage("teacher")
    model.set_stage(1)
    assert torch.equal(logits(model), changed)


def test_changed_student_elsewhere_keeps_teacher_shards_byte_identical(saved, tmp_path):
    model = load(saved("resnet"), stage=2)
    change_student(model)
    model.save_pretrained(tmp_path)
    before, after = weights(saved("resnet")), weights(tmp_path)
    assert before.keys() == after.keys()
    assert {path for path in before if before[path] != after[path]} == {STUDENT, INDEX}
    assert torch.equal(logits(load(tmp_path, stage=2)), logits(model))
    assert not torch.equal(logits(load(tmp_path)), logits(load(saved("resnet"))))


def test_state_dict_replaces_tensors_by_full_name(saved, tmp_path):
    model = load(saved("vit"), stage=2)
    bias = torch.arange(5.0)
    model.save_pretrained(tmp_path, state_dict={"student.classifier.bias": bias})
    assert torch.equal(load(tmp_path).student.classifier.bias, bias)
    before, after = weights(saved("vit")), weights(tmp_path)
    assert {path for path in before if before[path] != after[path]} == {STUDENT, INDEX}
    assert torch.equal(logits(load(tmp_path, stage=4)), logits(load(saved("vit"), stage=4)))


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_save_in_another_dtype_converts_every_file(saved, family, dtype, tmp_path):
    load(saved(family), keep_all=True).to(dtype).save_pretrained(tmp_path / "whole")
    load(saved(family), stage=2).to(dtype).save_pretrained(tmp_path / "cast")
    load(saved(family), stage=1, dtype=dtype).save_pretrained(tmp_path / "loaded")
    assert contents(tmp_path / "cast") == contents(tmp_path / "whole") == contents(tmp_path / "loaded")
    index = read_json(tmp_path / "cast" / INDEX)
    assert index["dtype"] == read_json(tmp_path / "cast" / "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    found = {
        t.dtype
        for path in weights(tmp_path / "cast")
        if path != INDEX
        for t in load_file(tmp_path / "cast" / path).values()
    }
    assert found == ({dtype, torch.int64} if family == "resnet" else {dtype})
    model = load(tmp_path / "cast", stage="teacher")
    assert model.dtype == dtype
    assert torch.equal(logits(model), logits(load(saved(family), stage="teacher", dtype=dtype)))
    size = read_json(tmp_path / "cast" / "teacher" / "model.safetensors.index.json")["metadata"]["total_size"]
    shards = [load_file(tmp_path / "cast" / shard(k)) for k in (1, 2, 3, 4)]
    assert size == sum(t.nbytes for found in shards for t in found.values())


def test_save_in_another_dtype_into_own_folder_lets_it_go_on(copied):
    folder = copied("resnet")
    teacher = logits(load(folder, stage="teacher", dtype=torch.bfloat16))
    model = load(folder, stage=1).to(torch.bfloat16)
    model.save_pretrained(folder)
    model.set_stage("teacher")
    assert torch.equal(logits(model), teacher)


def test_mixed_dtypes_are_refused_before_anything_is_written(saved, tmp_path):
    model = load(saved("vit"), keep_all=True)
    model.student.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"one dtype.*bfloat16, torch.float32"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_metrics_are_kept_with_the_same_weights_and_dropped_with_others(copied, tmp_path):
    folder = copied("resnet")
    write_metrics(folder, {1: [METRIC]})
    model = load(folder, stage=2)
    model.save_pretrained(tmp_path / "same")
    assert (tmp_path / "same" / INDEX).read_bytes() == (folder / INDEX).read_bytes()
    assert read_json(tmp_path / "same" / INDEX)["stages"][1]["metrics"][0]["value"] == 0.5
    change_student(model)
    model.save_pretrained(tmp_path / "changed")
    load(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "cast")
    for name in ("changed", "cast"):
        assert not any(stage["metrics"] for stage in read_json(tmp_path / name / INDEX)["stages"])


def test_write_metrics_changes_only_the_manifest_and_only_those_stages(copied):
    folder = copied("vit")
    before = tree(folder)
    write_metrics(folder, {0: [METRIC], 4: [METRIC]})
    manifest = write_metrics(folder, {4: []})
    assert [len(stage.metrics) for stage in manifest.stages] == [1, 0, 0, 0, 0]
    after = tree(folder)
    assert {path for path in after if after[path] != before.get(path)} == {INDEX}
    with pytest.raises(ValueError, match="stage must be a whole number from 0 to 4 or 'teacher', got 5"):
        write_metrics(folder, {5: [METRIC]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(folder, {1: [Metric("accuracy", float("nan"), "digits", "test", 1)]})
    assert tree(folder) == after


class Killed(BaseException):
    """Stands for a process that is gone: nothing may catch it."""


def answers_of(model: PWLForImageClassification) -> list[torch.Tensor]:
    found = []
    for k in range(model.num_stages + 1):
        model.set_stage(k)
        found.append(logits(model))
    return found


@pytest.mark.parametrize("onto", ["nothing", "older layout", "own folder"])
def test_kill_in_the_middle_of_a_save_leaves_the_old_or_the_new_or_is_refused(tmp_path, monkeypatch, onto):
    """The n-th file of a save fails to come into place: what is left is never of both saves."""
    new = tiny_model("vit", num_stages=2)
    old = None if onto == "nothing" else tiny_model("vit", num_stages=3 if onto == "older layout" else 2, seed=1)
    known = {"new": answers_of(new)} | ({} if old is None else {"old": answers_of(old)})
    new.save_pretrained(tmp_path / "new")
    total = len(tree(tmp_path / "new"))
    replace, left = os.replace, 0

    def dying(source: str, target: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replace(source, target)

    outcomes = []
    # All weight files and configs, not each of the many files of code, the manifest, and none.
    for n in [*range(9), total - 1, total]:
        folder = tmp_path / str(n)
        if old is not None:
            old.save_pretrained(folder)
        writer = new
        if onto == "own folder":
            writer = load(folder, keep_all=True)
            writer.load_state_dict(new.state_dict())
        left = n
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(files.os, "replace", dying)
            writer.save_pretrained(folder)
        assert not [path for path in tree(folder) if path.endswith(".tmp")]
        seen = set()
        try:
            model = load(folder)
            for k in range(model.num_stages + 1):
                model.set_stage(k)
                answer = logits(model)
                seen |= {
                    name for name, answers in known.items() if any(torch.equal(a, answer) for a in answers[k : k + 1])
                } or {"neither"}
        except RepositoryError:
            seen.add("refused")
        assert seen in ({"old"}, {"new"}, {"refused"}, {"old", "refused"}), f"{seen} after {n} files"
        outcomes.append(seen)
    assert outcomes[0] == ({"refused"} if onto == "nothing" else {"old"})
    assert outcomes[-2] == {"refused"}
    assert outcomes[-1] == {"new"}


def test_is_main_process_false_writes_nothing(saved, tmp_path):
    load(saved("vit")).save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_a_token_is_in_no_saved_file(saved, tmp_path):
    model = load(saved("vit"), token="hf_secret_of_mine")
    model.save_pretrained(tmp_path, token="hf_secret_of_mine")
    assert not [path for path, content in tree(tmp_path).items() if b"hf_secret_of_mine" in content]
    assert "hf_secret_of_mine" not in repr(model.parts.store.repository)


def test_save_directory_that_is_a_file_is_refused(saved, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="save_directory must be a folder"):
        load(saved("vit")).save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_variant_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="variant does not apply"):
        load(saved("vit")).save_pretrained(tmp_path / "out", variant="fp16")
    assert not (tmp_path / "out").exists()


def test_arguments_that_change_nothing_are_accepted(saved, tmp_path):
    load(saved("vit")).save_pretrained(
        tmp_path, safe_serialization=True, max_shard_size="1KB", save_original_format=False
    )
    assert contents(tmp_path) == contents(saved("vit"))


def test_save_follows_no_link_and_leaves_the_source_alone(saved, tmp_path):
    """In a folder of links, as in the Hub's cache, files are replaced and not written through."""
    target = tmp_path / "links"
    target.mkdir()
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"somebody else's")
    (target / STUDENT).symlink_to(other)
    with pytest.raises(OverwriteError, match=r"model\.safetensors"):
        load(saved("vit")).save_pretrained(target)
    assert (target / STUDENT).is_symlink()
    load(saved("vit")).save_pretrained(target, overwrite=True)
    assert other.read_bytes() == b"somebody else's"
    assert not (target / STUDENT).is_symlink()


def test_model_under_which_the_files_were_replaced_keeps_its_tensors(copied, tmp_path):
    """Tensors are maps of the files: a save over them must not write through."""
    folder = copied("vit")
    model = load(folder, stage=2)
    before = logits(model)
    tiny_model("vit", seed=5).save_pretrained(folder)
    assert torch.equal(logits(model), before)
    with pytest.raises(RepositoryError, match="sha256"):
        model.load_next_stage()
    with pytest.raises(RepositoryError, match="sha256"):
        model.set_stage(0)
    assert model.stage == 2
    assert torch.equal(logits(model), before)


def test_model_that_is_whole_in_memory_is_saved_without_its_source(copied, saved, tmp_path):
    folder = copied("resnet")
    whole, partly = load(folder, stage=1, keep_all=True), load(folder, stage=1)
    shutil.rmtree(folder)
    whole.save_pretrained(tmp_path / "whole")
    assert contents(tmp_path / "whole") == contents(saved("resnet"))
    with pytest.raises(RepositoryError, match="has no file"):
        partly.save_pretrained(tmp_path / "partly")
    assert not (tmp_path / "partly").exists()


def test_corrupt_source_is_not_copied_into_a_new_repository(copied, tmp_path):
    folder = copied("vit")
    model = load(folder)
    content = bytearray((folder / shard(3)).read_bytes())
    content[-1] ^= 1
    (folder / shard(3)).write_bytes(content)
    with pytest.raises(RepositoryError, match=f"{shard(3)}.*sha256"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / INDEX).exists()


def test_relative_folder_is_remembered_when_the_working_directory_changes(copied, tmp_path, monkeypatch):
    folder = copied("vit")
    monkeypatch.chdir(folder.parent)
    model = load(folder.name)
    monkeypatch.chdir(Path("/"))
    assert model.load_next_stage() == 1


def test_image_processor_travels_with_the_model(copied, tmp_path):
    folder = copied("vit")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    load(folder, stage=1).save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "teacher/preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / "preprocessor_config.json").read_bytes()


def test_config_round_trips_through_a_save(saved, tmp_path):
    config = PWLConfig.from_pretrained(saved("swin"))
    assert (config.teacher_cuts, config.student_cuts) == (
        tiny_config("swin").teacher_cuts,
        tiny_config("swin").student_cuts,
    )
    assert config.id2label == {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
    load(saved("swin"), stage=3).save_pretrained(tmp_path)
    assert PWLConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_encoder_changed_at_its_stage_is_the_only_new_file(saved, tmp_path):
    model = load(saved("vit"), stage=2)
    with torch.no_grad():
        model.encoders["2"].bias.add_(1)
    model.save_pretrained(tmp_path)
    before, after = weights(saved("vit")), weights(tmp_path)
    assert {path for path in before if before[path] != after[path]} == {encoder(2), INDEX}
