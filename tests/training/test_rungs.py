"""Training a model that has the teacher in low precision too, and giving a trained one that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pwl_hf import PWLForImageClassification
from pwl_hf.evaluation import evaluate_stages
from pwl_hf.training.train import command_line, train
from tests.evaluation.helpers import Images
from tests.repository.helpers import weights
from tests.tiny import tiny_model
from tests.training.tiny_runs import Pictures, tiny_trainer

LADDER = ("SSSS", "QSSS", "QQSS", "QQQS", "QQQQ", "TQQQ", "TTQQ", "TTTQ", "TTTT")


def added(folder: Path) -> PWLForImageClassification:
    model = tiny_model("vit")
    model.add_tier()
    return model


def loaded(folder: Path) -> PWLForImageClassification:
    added(folder).save_pretrained(folder / "repo")
    return PWLForImageClassification.from_pretrained(folder / "repo", keep_all=True)


@pytest.mark.parametrize("origin", [added, loaded])
def test_every_rung_is_measured_and_the_tier_is_saved(tmp_path, origin):
    model = origin(tmp_path)
    trainer = tiny_trainer(tmp_path / "run", model=model, eval_strategy="steps", eval_steps=3)
    trainer.train()
    found = trainer.evaluate()
    assert (model.sources, any(part.is_low for part in model.parts.resident())) == ("SSSS", False)
    trainer.save_model()
    saved = PWLForImageClassification.from_pretrained(tmp_path / "run")
    assert saved.schedule == LADDER
    pictures = Pictures("vit", 8, seed=2)
    expected = evaluate_stages(saved, Images(pictures.images, pictures.labels.tolist())).accuracies
    assert [found[f"eval_accuracy_stage_{stage}"] for stage in range(9)] == pytest.approx(expected)
    for part in ("quantised", "refinements", "teacher"):  # which follow from the teacher, and that is frozen
        tiny = tmp_path / "tiny"
        added(tmp_path).save_pretrained(tiny)
        own, other = ({k: v for k, v in weights(f).items() if k.startswith(part)} for f in (tiny, tmp_path / "run"))
        assert own == other


def test_a_killed_run_with_low_precision_goes_on_as_if_it_had_not_been(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = tiny_trainer(tmp_path / "whole", model=added(tmp_path), **options)
    whole.train()
    whole.save_model()
    cut = tiny_trainer(tmp_path / "cut", model=added(tmp_path), **options)
    cut.train()
    again = tiny_trainer(tmp_path / "cut", model=added(tmp_path), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    again.save_model()
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_the_option_gives_a_trained_model_low_precision(tmp_path):
    model = tiny_model("vit", num_stages=2)
    model.save_pretrained(tmp_path / "repo")
    options = ["--max_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true", "--save_strategy", "no"]
    options += ["--per_device_train_batch_size", "4", "--quantised_tier", "8", "--statistics_images", "8"]
    folder, pictures = tmp_path / "run", tmp_path / "pictures"
    for split in ("train", "test"):
        for label in range(5):
            (pictures / split / str(label)).mkdir(parents=True)
            for number in range(2):
                noise = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
                Image.fromarray(noise).save(pictures / split / str(label) / f"{number}.png")
    arguments = ["--model", str(tmp_path / "repo"), "--dataset", str(pictures), *options, "--output_dir", str(folder)]
    accuracies = train(command_line().parse(arguments))
    saved = PWLForImageClassification.from_pretrained(folder)
    assert saved.schedule == ("SS", "QS", "QQ", "TQ", "TT")
    assert len(accuracies) == 5
    measured = json.loads((folder / "eval_results.json").read_text())
    assert [measured[f"eval_accuracy_stage_{stage}"] for stage in range(5)] == accuracies
    assert "`QQ`" in (folder / "README.md").read_text()
