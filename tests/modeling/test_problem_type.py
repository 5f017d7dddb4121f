"""The problem type: from the teacher to every file and answer, and never by way of a loss."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig, ViTImageProcessorPil, pipeline

from pwl_hf import PWLConfig, PWLForImageClassification, RepositoryError
from tests.tiny import NUM_LABELS, tiny_config, tiny_images, tiny_model, tiny_pair

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEMS = [None, SINGLE, MULTI, REGRESSION]


def pair(teacher: str | None, student: str | None, num_labels: int | None = None) -> dict:
    """Configs of a ViT teacher and student of these problem types."""
    configs = dict(zip(("teacher_config", "student_config"), copy.deepcopy(tiny_pair("vit")), strict=True))
    for config, problem_type in zip(configs.values(), (teacher, student), strict=True):
        if num_labels is not None:
            config.num_labels = num_labels
        config.problem_type = problem_type
    return configs


def networks(teacher: str | None, student: str | None, num_labels: int | None = None) -> list:
    model = PWLForImageClassification(PWLConfig(**pair(None, None, num_labels))).eval()
    for network, problem_type in ((model.teacher, teacher), (model.student, student)):
        network.config.problem_type = problem_type
    return [model.teacher, model.student]


def saved_types(folder: Path) -> list[str | None]:
    """What stands in the files, of the model, of both networks within it, and of the teacher alone."""
    config = json.loads((folder / "config.json").read_text())
    teacher = json.loads((folder / "teacher/config.json").read_text())
    parts = [config, config["teacher_config"], config["student_config"], teacher]
    return [part.get("problem_type") for part in parts]


# --- Joining ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", PROBLEMS)
def test_problem_type_is_the_teachers_in_every_file_and_after_loading(tmp_path: Path, teacher: str | None) -> None:
    model = PWLForImageClassification.from_teacher_student(*networks(teacher, None))
    assert model.config.problem_type == teacher
    model.save_pretrained(tmp_path)
    assert saved_types(tmp_path) == [teacher] * 4
    assert AutoConfig.from_pretrained(tmp_path / "teacher").problem_type == teacher
    for stage in (0, 2, 4):
        loaded = PWLForImageClassification.from_pretrained(tmp_path, stage=stage)
        assert loaded.config.problem_type == teacher
        assert loaded.student.config.problem_type == loaded.teacher.config.problem_type == teacher
    loaded.save_pretrained(tmp_path / "again")
    assert saved_types(tmp_path / "again") == [teacher] * 4


def test_config_that_says_it_of_the_teacher_alone_says_it_of_the_model() -> None:
    data = json.loads(PWLConfig(**pair(MULTI, None)).to_json_string())
    del data["problem_type"]  # as repositories were saved before
    assert PWLConfig(**data).problem_type == MULTI


@pytest.mark.parametrize(
    ("teacher", "student", "num_labels"),
    [
        (MULTI, SINGLE, 5),
        (SINGLE, MULTI, 5),
        (REGRESSION, SINGLE, 5),
        (MULTI, REGRESSION, 5),
        (None, MULTI, 5),
        (None, REGRESSION, 5),
        (None, REGRESSION, 1),
        (MULTI, REGRESSION, 1),
    ],
)
def test_networks_that_disagree_are_refused_unless_one_is_chosen(
    tmp_path: Path, teacher: str | None, student: str, num_labels: int
) -> None:
    message = f"problem_type, got {teacher!r} for the teacher and {student!r} for the student: give problem_type"
    with pytest.raises(StrictDataclassError, match=message):
        PWLConfig(**pair(teacher, student, num_labels))
    joined = networks(teacher, student, num_labels)
    with pytest.raises(StrictDataclassError, match=message):
        PWLForImageClassification.from_teacher_student(*joined)
    assert [network.config.problem_type for network in joined] == [teacher, student], "the caller's own"
    model = PWLForImageClassification.from_teacher_student(*joined, problem_type=student)
    assert model.config.problem_type == student
    model.save_pretrained(tmp_path)
    assert saved_types(tmp_path) == [student] * 4


@pytest.mark.parametrize(("teacher", "student"), [(None, SINGLE), (SINGLE, None), (MULTI, None), (MULTI, MULTI)])
def test_networks_whose_scores_are_made_alike_are_joined(teacher: str | None, student: str | None) -> None:
    assert PWLConfig(**pair(teacher, student)).problem_type == teacher


def test_disagreement_in_a_file_is_refused_on_loading_unless_one_is_chosen(tmp_path: Path) -> None:
    PWLForImageClassification.from_teacher_student(*networks(MULTI, None)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["problem_type"]
    config["student_config"]["problem_type"] = REGRESSION
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RepositoryError, match=r"(?s)config\.json .*'multi_label_classification' for the teacher"):
        PWLForImageClassification.from_pretrained(tmp_path)
    loaded = PWLForImageClassification.from_pretrained(tmp_path, problem_type=REGRESSION)
    assert loaded.config.problem_type == loaded.student.config.problem_type == REGRESSION


def test_one_label_is_no_choice_between_labels() -> None:
    with pytest.raises(StrictDataclassError, match="needs at least 2 labels, got num_labels 1"):
        PWLConfig(**pair(None, None, num_labels=1), problem_type=SINGLE)
    with pytest.raises(StrictDataclassError, match="problem_type"):
        PWLConfig(**pair(None, None), problem_type="several")


def test_choice_on_loading_reaches_the_networks_and_what_is_saved(tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    for stage in (0, "teacher"):
        model = PWLForImageClassification.from_pretrained(tmp_path, stage=stage, problem_type=MULTI)
        assert {part.config.problem_type for part in (model, model.teacher, model.student)} == {MULTI}
        model.save_pretrained(tmp_path / "multi")
        assert saved_types(tmp_path / "multi") == [MULTI] * 4


def test_networks_keep_sharing_their_config_with_the_model() -> None:
    teacher, student = networks(MULTI, None)
    model = PWLForImageClassification.from_teacher_student(teacher, student)
    assert model.config.teacher_config is teacher.config
    assert model.config.student_config is student.config
    model.set_attn_implementation("eager")
    assert student.config._attn_implementation == "eager"


# --- Answers ----------------------------------------------------------------------------------------------------


# transformers refuses one label of a single one.
@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [(problem, count) for problem in PROBLEMS for count in (1, NUM_LABELS) if (problem, count) != (SINGLE, 1)],
)
def test_pipeline_scores_the_model_as_it_scores_the_teacher(
    tmp_path: Path, problem_type: str | None, num_labels: int
) -> None:
    model = PWLForImageClassification.from_teacher_student(*networks(problem_type, None, num_labels))
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    image = Image.effect_noise((20, 24), 90)
    answers = [
        pipeline("image-classification", model=found, image_processor=processor)(image)
        for found in (PWLForImageClassification.from_pretrained(tmp_path, stage="teacher"), model.teacher)
    ]
    assert answers[0] == answers[1]


@torch.no_grad()
@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_loss_is_transformers_own_for_the_problem(problem_type: str | None) -> None:
    model = tiny_model("vit", problem_type=problem_type)
    images, numbers = tiny_images("vit", 3), torch.tensor([0, 4, 2])
    many = functional.one_hot(numbers, NUM_LABELS).float()
    logits = model(images).logits
    expected = {
        SINGLE: (numbers, functional.cross_entropy(logits, numbers)),
        MULTI: (many, functional.binary_cross_entropy_with_logits(logits, many)),
        REGRESSION: (many, functional.mse_loss(logits, many)),
    }
    for labels, loss in [expected[problem_type]] if problem_type else [expected[SINGLE], expected[MULTI]]:
        torch.testing.assert_close(model(images, labels=labels).loss, loss)


@pytest.mark.parametrize("num_labels", [1, NUM_LABELS])
@torch.no_grad()
def test_loss_leaves_no_mark_on_config_and_files(tmp_path: Path, num_labels: int) -> None:
    model = PWLForImageClassification.from_teacher_student(*networks(None, None, num_labels))
    model.save_pretrained(tmp_path / "before")
    images = tiny_images("vit", 2)
    for labels in (torch.zeros(2, dtype=torch.int64), torch.zeros(2, num_labels)):
        if num_labels > 1 or labels.is_floating_point():
            model(images, labels=labels)
    # The networks' own losses are transformers': they enter a type into the networks' configs.
    for network in (model.teacher, model.student):
        network(images, labels=torch.zeros(2, num_labels))
    assert model.config.problem_type is None
    model.save_pretrained(tmp_path / "after")
    for name in ("config.json", "teacher/config.json"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_problem_type_survives_the_configs_own_round_trip(tmp_path: Path) -> None:
    for problem_type in PROBLEMS:
        config = tiny_config("resnet", problem_type=problem_type)
        config.save_pretrained(tmp_path)
        assert PWLConfig.from_pretrained(tmp_path).problem_type == problem_type
        assert PWLConfig(**json.loads(config.to_json_string(use_diff=False))).problem_type == problem_type
        assert PWLConfig.from_pretrained(tmp_path, problem_type=MULTI).problem_type == MULTI
