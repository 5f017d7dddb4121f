"""Output folders of runs: their own are gone on with, and those of others are refused before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTImageProcessorPil

from pwl_hf import OverwriteError, PWLForImageClassification, demo
from pwl_hf.training import train_teacher as teacher_script
from pwl_hf.training.train import command_line, train
from tests.repository.helpers import load, tree
from tests.slow import slow_but
from tests.tiny import tiny_images, tiny_model, tiny_pair
from tests.training.tiny_runs import differences, everything, tiny_trainer

INDEX = "pwl_index.json"
STUDENT = "model.safetensors"
SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
DATA = ["--dataset", "digits", "--max_train_samples", "8", "--max_eval_samples", "8"]
SHORT = [*DATA, "--max_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true", "--save_strategy", "no"]


def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def save_network(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(tiny_pair("vit")[0]).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


# --- PWLTrainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [STUDENT, "config.json", "preprocessor_config.json"])
def test_run_into_a_folder_with_other_weights_is_refused_before_its_first_step(path, tmp_path):
    (tmp_path / path).write_text("mine")
    trainer = tiny_trainer(tmp_path, **SAVING, processing_class=processor())
    before = everything(trainer.model)
    with pytest.raises(OverwriteError, match=f"holds {path}.*give another output_dir"):
        trainer.train()
    assert not differences(before, everything(trainer.model))
    assert tree(tmp_path) == {path: b"mine"}


def test_files_of_others_in_the_folders_of_a_run_stay(tmp_path):
    others = ["notes.txt", "pytorch_model.bin", "README.md", "teacher/ema.safetensors", "checkpoint-2/mine.txt"]
    for path in others:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("mine")
    trainer = tiny_trainer(tmp_path, **SAVING)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert all((tmp_path / path).read_text() == "mine" for path in others)
    # And the same run over its own.
    again = tiny_trainer(tmp_path, **SAVING)
    again.train()
    again.save_model()
    assert all((tmp_path / path).read_text() == "mine" for path in others)
    assert not differences(everything(load(tmp_path, keep_all=True)), everything(again.model))


@pytest.mark.parametrize("left", slow_but(["half a file"], ["no manifest", "student alone", "half a file"]))
def test_checkpoint_that_a_killed_run_left_half_written_is_written_again_on_resuming(left, tmp_path):
    tiny_trainer(tmp_path, **SAVING).train()
    folder = tmp_path / "checkpoint-4"
    shutil.rmtree(tmp_path / "checkpoint-6")
    (folder / "trainer_state.json").unlink()
    (folder / INDEX).unlink()
    if left != "no manifest":
        for path in [path for path in folder.rglob("*") if path.is_file() and path.name != STUDENT]:
            path.unlink()
    if left == "half a file":
        (folder / STUDENT).write_bytes(b"half")
    trainer = tiny_trainer(tmp_path, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    for name in ("checkpoint-4", "checkpoint-6", "."):
        load(tmp_path / name, stage="teacher")
    assert not differences(everything(load(tmp_path, keep_all=True)), everything(trainer.model))


def test_model_whose_last_save_was_killed_is_saved_by_the_same_run_again(tmp_path, monkeypatch):
    from pwl_hf.modeling.publishing import saving

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    trainer = tiny_trainer(tmp_path, processing_class=processor())
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_text", fail)
        with pytest.raises(OSError, match="the disk is full"):
            trainer.save_model()
    again = tiny_trainer(tmp_path, processing_class=processor())
    again.train()
    again.save_model()
    load(tmp_path, stage="teacher")


def test_image_processor_is_not_written_through_a_link(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", processing_class=processor())
    trainer.save_model()
    (tmp_path / "elsewhere").write_text("mine")
    for folder in (tmp_path / "run", tmp_path / "run" / "teacher"):
        (folder / "preprocessor_config.json").unlink()
        (folder / "preprocessor_config.json").symlink_to(tmp_path / "elsewhere")
    trainer.save_model()
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "run" / "preprocessor_config.json").is_symlink()


# --- The scripts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["teacher", "."])
def test_training_into_the_teachers_folder_is_refused_and_leaves_it(place, tmp_path):
    teacher = save_network(tmp_path / "teacher")
    before = tree(tmp_path)
    options = ["--teacher", str(teacher), "--student_config_overrides", "num_hidden_layers=2", *SHORT]
    with pytest.raises(OverwriteError, match="made from"):
        train(command_line().parse([*options, "--output_dir", str(tmp_path / place)]))
    assert tree(tmp_path) == before


def test_training_over_another_checkpoint_is_refused_before_a_teacher_is_trained(tmp_path, monkeypatch):
    save_network(tmp_path / "mine")
    before = tree(tmp_path)
    with pytest.raises(OverwriteError, match=r"holds config\.json.*give another output_dir"):
        train(command_line().parse(["vit-digits", *SHORT, "--output_dir", str(tmp_path / "mine")]))
    assert tree(tmp_path) == before


def test_teacher_is_not_trained_over_a_pwl_repository_its_own_folder_or_another_checkpoint(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "pwl")
    own, other = save_network(tmp_path / "own"), save_network(tmp_path / "other")
    before = tree(tmp_path)
    for folder, reason in ((tmp_path / "pwl", "is a PWL repository"), (own, "made from"), (other, "holds config.json")):
        with pytest.raises(SystemExit, match=reason) as ended:
            teacher_script.main(["--model", str(own), *SHORT, "--output_dir", str(folder)])
        assert isinstance(ended.value.__context__, OverwriteError)
    assert tree(tmp_path) == before


def test_teacher_is_trained_into_its_earlier_runs_folder_again(tmp_path):
    own = save_network(tmp_path / "own")
    for _ in range(2):
        teacher_script.main(["--model", str(own), *SHORT, "--output_dir", str(tmp_path / "out")])
    AutoModelForImageClassification.from_pretrained(tmp_path / "out")


def test_demo_into_a_folder_with_a_picture_of_another_is_refused_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_train", lambda *_: pytest.fail("it trained"))
    (tmp_path / "accuracy.png").write_text("mine")
    with pytest.raises(OverwriteError, match=r"accuracy\.png.*give another folder"):
        demo.run_demo(tmp_path, quiet=True)


def test_pwl_repository_is_trained_further_in_its_own_folder(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path, keep_all=True)
    trainer = tiny_trainer(tmp_path, model=model)
    trainer.train()
    trainer.save_model()
    images = tiny_images("vit")
    answers = load(tmp_path)(images).logits
    assert torch.equal(answers, trainer.model.eval()(images, sources="SSSS").logits)
