"""Checkpoints: whole repositories, the teacher on disk once, restored or refused."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessorPil

from pwl_hf import Metric, PWLForImageClassification, RepositoryError
from pwl_hf.modeling.publishing.saving import write_metrics
from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.training.trainer.checkpoints import CheckpointWriter, last_checkpoint, restore
from tests.slow import slow_but
from tests.tiny import tiny_config, tiny_images, tiny_model
from tests.training.tiny_runs import differences, everything, tiny_trainer

SHARDS = [f"teacher/model-0000{k}-of-00004.safetensors" for k in range(1, 5)]
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "save_total_limit": None}


def _same_file(one, other):
    return all(os.path.samefile(one / shard, other / shard) for shard in SHARDS)


@pytest.mark.parametrize("family", slow_but(["resnet"], ["vit", "resnet"]))
def test_every_checkpoint_is_a_repository_with_the_teacher_once(family, tmp_path):
    trainer = tiny_trainer(
        tmp_path, family, **SAVING, processing_class=ViTImageProcessorPil(size={"height": 8, "width": 8})
    )
    trainer.train()
    folders = [tmp_path / f"checkpoint-{step}" for step in (2, 4, 6)]
    assert _same_file(folders[0], folders[1])
    assert _same_file(folders[0], folders[2])
    images = tiny_images(family)
    for folder in folders:
        model = PWLForImageClassification.from_pretrained(folder)
        for stage, mask in enumerate(["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"]):
            assert model.sources == mask
            answer = model(images).logits
            assert torch.equal(model(images).logits, answer)
            if stage < 4:
                model.load_next_stage()
        for place in (folder, folder / "teacher"):
            assert AutoImageProcessor.from_pretrained(place, backend="pil").size["height"] == 8
    last = PWLForImageClassification.from_pretrained(folders[2], keep_all=True)
    assert not differences(everything(last), everything(trainer.model))
    teacher = AutoModelForImageClassification.from_pretrained(folders[2] / "teacher") if family == "vit" else None
    if teacher is not None:
        assert torch.equal(teacher(images).logits, trainer.model.eval()(images, sources="TTTT").logits)


def test_a_checkpoint_holds_the_bytes_that_save_pretrained_writes(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", **SAVING)
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "saved")
    saved = {p.relative_to(tmp_path / "saved").as_posix(): p.read_bytes() for p in (tmp_path / "saved").rglob("*.*")}
    checkpoint = tmp_path / "run" / "checkpoint-6"
    assert {path: (checkpoint / path).read_bytes() for path in saved} == saved
    extra = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*.*")} - saved.keys()
    assert extra == {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}


def test_links_outlive_the_folders_they_were_made_from(tmp_path):
    trainer = tiny_trainer(tmp_path, **SAVING | {"save_total_limit": 1})
    trainer.train()
    trainer.save_model()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert _same_file(tmp_path, tmp_path / "checkpoint-6")
    loaded = PWLForImageClassification.from_pretrained(tmp_path, stage="teacher")
    images = tiny_images("vit")
    assert torch.equal(loaded(images).logits, trainer.model.eval()(images, sources="TTTT").logits)


def test_without_links_shards_are_copied(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    trainer = tiny_trainer(tmp_path, **SAVING)
    trainer.train()
    one, other = tmp_path / "checkpoint-2", tmp_path / "checkpoint-6"
    for shard in SHARDS:
        assert not os.path.samefile(one / shard, other / shard)
        assert (one / shard).read_bytes() == (other / shard).read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))
    PWLForImageClassification.from_pretrained(other, keep_all=True)


def test_a_copy_that_was_changed_is_not_linked_to(tmp_path):
    model, writer = tiny_model("vit"), CheckpointWriter()
    writer.write(model, tmp_path / "one")
    shard = tmp_path / "one" / SHARDS[1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    writer.write(model, tmp_path / "two")
    assert [os.path.samefile(tmp_path / "one" / s, tmp_path / "two" / s) for s in SHARDS] == [True, False, True, True]
    PWLForImageClassification.from_pretrained(tmp_path / "two", keep_all=True)


def test_a_model_from_a_repository_is_saved_with_links_as_well(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "repo")
    model = PWLForImageClassification.from_pretrained(tmp_path / "repo", keep_all=True)
    trainer = tiny_trainer(tmp_path / "run", model=model, **SAVING)
    trainer.train()
    one, other = tmp_path / "run" / "checkpoint-2", tmp_path / "run" / "checkpoint-6"
    assert _same_file(one, other)
    assert not _same_file(one, tmp_path / "repo")
    again = PWLForImageClassification.from_pretrained(other, keep_all=True)
    assert not differences(everything(again), everything(model))


def test_a_drifting_teacher_is_written_each_time_and_restored(tmp_path):
    paper = {"shared_statistics": True, "teacher_drift": True}
    trainer = tiny_trainer(tmp_path, "resnet", objective=paper, **SAVING)
    trainer.train()
    assert not os.path.samefile(tmp_path / "checkpoint-2" / SHARDS[0], tmp_path / "checkpoint-6" / SHARDS[0])
    fresh = tiny_model("resnet")
    with pytest.raises(ValueError, match="checkpoint of another model: its teacher block 1"):
        restore(fresh, tmp_path / "checkpoint-6")
    restore(fresh, tmp_path / "checkpoint-6", teacher_too=True)
    assert not differences(everything(fresh), everything(trainer.model))


def test_what_was_measured_stays_with_the_same_weights_alone(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.save_model()
    metric = Metric(name="accuracy", value=0.5, dataset="noise", split="test", n=4)
    write_metrics(tmp_path, {0: [metric]})
    trainer.save_model()
    assert Manifest.from_json((tmp_path / "pwl_index.json").read_bytes()).stages[0].metrics == (metric,)
    trainer.train()
    trainer.save_model()
    assert Manifest.from_json((tmp_path / "pwl_index.json").read_bytes()).stages[0].metrics == ()


def test_no_file_of_a_run_holds_the_hubs_token(tmp_path):
    trainer = tiny_trainer(tmp_path, **SAVING, hub_token="hf_secret_of_mine")
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hf_secret_of_mine" in path.read_bytes()]


def test_statistics_of_masks_are_saved_and_restored(tmp_path):
    model = tiny_model("resnet")
    for mask in ("TTSS", "SSTT"):
        model.estimate_statistics(tiny_images("resnet", 4), mask)
    CheckpointWriter().write(model, tmp_path)
    fresh = tiny_model("resnet")
    fresh.estimate_statistics(tiny_images("resnet", 4, seed=9), "TSSS")
    restore(fresh, tmp_path)
    assert set(fresh.statistics) == {"TTSS", "SSTT"}
    assert not differences(everything(fresh), everything(model))
    images = tiny_images("resnet")
    assert torch.equal(fresh(images, sources="SSTT").logits, model(images, sources="SSTT").logits)


def test_statistics_that_a_checkpoint_has_not_do_not_come_back_from_the_repository(tmp_path):
    model = tiny_model("resnet")
    CheckpointWriter().write(model, tmp_path / "checkpoint")
    model.estimate_statistics(tiny_images("resnet", 4), "TTSS")
    model.save_pretrained(tmp_path / "repository")
    loaded = PWLForImageClassification.from_pretrained(tmp_path / "repository", keep_all=True)
    restore(loaded, tmp_path / "checkpoint")
    loaded.save_pretrained(tmp_path / "saved")
    assert not loaded.statistics
    assert not (tmp_path / "saved" / "statistics").exists()


# --- What is refused ----------------------------------------------------------------------------------------------


def _other(kind):
    if kind == "family":
        return tiny_model("deit")
    if kind == "stages":
        return tiny_model("vit", num_stages=2)
    if kind == "dtype":
        return tiny_model("vit").to(torch.bfloat16)
    if kind == "teacher":
        model = tiny_model("vit")
        with torch.no_grad():
            model.teacher.classifier.bias[0] += 1e-6
        return model
    config = tiny_config("vit")
    config.student_config.hidden_act = "relu"
    return PWLForImageClassification(config)


@pytest.mark.parametrize(
    ("kind", "difference"),
    [
        ("family", "student_config"),
        ("stages", r"num_blocks is 2 there, 4 here|student_cuts"),
        ("dtype", r"dtype is torch.bfloat16 there, torch.float32 here"),
        ("teacher", "teacher block 4 has other weights"),
        ("config", r"student_config.hidden_act is 'relu' there, 'gelu' here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(kind, difference, tmp_path):
    CheckpointWriter().write(_other(kind), tmp_path)
    model = tiny_model("vit", seed=0)
    with torch.no_grad():
        model.student.classifier.bias.zero_()
    before = everything(model)
    with pytest.raises(ValueError, match=f"is a checkpoint of another model.*({difference})"):
        restore(model, tmp_path)
    assert not differences(before, everything(model))


@pytest.mark.parametrize("path", ["model.safetensors", "converters/decoder-00002.safetensors", SHARDS[3]])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(path, tmp_path):
    trained = tiny_model("vit")
    with torch.no_grad():
        trained.student.classifier.bias.zero_()
    CheckpointWriter().write(trained, tmp_path)
    data = bytearray((tmp_path / path).read_bytes())
    data[-1] ^= 1
    (tmp_path / path).write_bytes(data)
    model = tiny_model("vit")
    before = everything(model)
    with pytest.raises(RepositoryError, match=path):
        restore(model, tmp_path)
    assert not differences(before, everything(model))


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match=r"there is no checkpoint .*each process must be able to read it"):
        restore(tiny_model("vit"), tmp_path / "checkpoint-7")


def test_the_last_whole_checkpoint_is_found(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, text in ((2, "{}"), (10, "{}"), (12, '{"cut'), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
