"""The options together: a run from the command line, and training that never looks at labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pwl_hf.training.images.gradient_maps import GradientMapsError
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.train import command_line, train
from tests.tiny import tiny_images, tiny_model

SIZE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
TEACHER = {"max_steps": 2, "config_overrides": {"image_size": 8, "patch_size": 2} | SIZE}
EVERYTHING = ["--attention_weight", "0.8", "--relation_weight", "1", "--ig_probability", "1", "--ig_steps", "2"]
EVERYTHING += ["--mixup_alpha", "0.5", "--mixup_probability", "0.5"]


def _run(folder: Path, *options: str) -> Path:
    words = ["vit-digits", "--max_steps", "3", "--per_device_train_batch_size", "8", "--logging_steps", "1"]
    words += ["--max_train_samples", "24", "--max_eval_samples", "16", "--disable_tqdm", "true", "--use_cpu", "true"]
    words += ["--output_dir", str(folder), *EVERYTHING, *options, "--teacher_options"]
    words += [f"{name}={json.dumps(value)}" for name, value in TEACHER.items()]
    train(command_line().parse(words))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return _run(tmp_path_factory.mktemp("runs") / "first")


def _tensors(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    files = [path for path in folder.rglob("*.safetensors") if path.parent.name != "gradient-maps"]
    return {(str(path.relative_to(folder)), name): t for path in files for name, t in load_file(path).items()}


def test_run_logs_the_terms_and_keeps_the_maps(teacher):
    state = json.loads((teacher / "trainer_state.json").read_text())
    first = state["log_history"][0]
    assert {"attention", "relation", "student"} <= {name.removeprefix("loss_").removeprefix("train_") for name in first}
    assert sum(len(load_file(path)["maps"]) for path in (teacher / "gradient-maps").iterdir()) == 24


def test_maps_of_another_teacher_are_refused(teacher, tmp_path):
    with pytest.raises(GradientMapsError, match=r"have teacher .* give another ig_maps, or delete that folder"):
        _run(tmp_path / "second", "--seed", "1", "--ig_maps", str(teacher / "gradient-maps"))


def test_labels_never_influence_a_run_on_the_teachers_answers_alone(teacher, tmp_path):
    given = ["--alpha", "0", "--teacher", str(teacher / "teacher")]
    with_labels = _tensors(_run(tmp_path / "with", *given))
    without = _tensors(_run(tmp_path / "without", *given, "--unlabelled", "true"))
    assert with_labels.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_labels.items())
    assert len(with_labels) > 100


def test_labels_never_influence_the_objective_of_alpha_zero():
    options = ObjectiveArguments(alpha=0.0, attention_weight=1.0, relation_weight=1.0, mixup_alpha=1.0)
    assert not options.uses_labels
    images, ids = tiny_images("vit", 4), torch.arange(4)
    found = []
    for labels in (None, torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 4, 4])):
        model = tiny_model("vit").train()
        losses = build_objective(model, options).train()(images, labels, 3, ids)
        losses["loss"].backward()
        found.append((losses["loss"].detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "used"), [({}, True), ({"alpha": 0.0, "mask_alpha": 0.1}, True), ({"alpha": 0.0}, False)]
)
def test_labels_are_used_where_they_have_a_weight(options, used):
    assert ObjectiveArguments(**options).uses_labels == used
