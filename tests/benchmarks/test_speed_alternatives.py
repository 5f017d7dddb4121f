"""What users would do instead, and the time line: all answer as they should, and are drawn as they were seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from benchmarks.speed import pairs as pairs_module
from benchmarks.speed.figures import Place
from benchmarks.speed.hub import Asked
from benchmarks.speed.launching import Run
from benchmarks.speed.measures import alternatives, alternatives_accuracy, timeline
from benchmarks.speed.measures.alternatives import (
    ACCELERATE_WAY,
    BF16_WAY,
    BOTH_WAY,
    INT8_WAY,
    MAPPED_WAY,
    PWL_WAY,
    RUNGS_WAY,
    STUDENT_WAY,
    TEACHER_WAY,
    Way,
    ways,
)
from benchmarks.speed.measures.alternatives_forms import INT8, SCALE, dequantised, quantised
from benchmarks.speed.pairs import Pair, pairs, repository
from benchmarks.speed.peers import CHECKOUT
from benchmarks.speed.plots.timeline import draw
from benchmarks.speed.plots.timeline import picture as picture_of
from pwl_hf import PWLForImageClassification
from tests.tiny import tiny_pair


@pytest.fixture(scope="module", params=["vit", "resnet"])
def place(request, tmp_path_factory) -> Place:
    teacher, student = tiny_pair(request.param)
    size = {"vit": 16, "resnet": 64}[request.param]
    return Place(request.param, Pair(teacher, student, 4, size), tmp_path_factory.mktemp("alternatives"), repeats=1)


@pytest.fixture(scope="module")
def answers(place) -> dict[str, list[torch.Tensor]]:
    """The first logits of each way, and the last ones of those that grow."""
    images, found = place.pair.pixel_values(), {}
    with torch.inference_mode():
        for name, way in ways(place).items():
            model = way.network.from_pretrained(way.folder)
            found[name] = [model(images).logits]
            if way.grows:
                for _ in range(model.num_stages):
                    model.load_next_stage()
                found[name].append(model(images).logits)
    return found


def _assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    # The weights are the same bits, but lie at other offsets of another file; how a kernel adds up depends on that.
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", [INT8_WAY, BF16_WAY, ACCELERATE_WAY, BOTH_WAY, MAPPED_WAY, PWL_WAY, RUNGS_WAY])
def test_every_way_ends_at_the_teacher(name, answers):
    _assert_same(answers[name][-1], answers[TEACHER_WAY][0])


@pytest.mark.parametrize("name", [BOTH_WAY, MAPPED_WAY, PWL_WAY, RUNGS_WAY])
def test_student_answers_first_where_there_is_one(name, answers):
    _assert_same(answers[name][0], answers[STUDENT_WAY][0])


@pytest.mark.parametrize("name", [INT8_WAY, BF16_WAY])
def test_small_weights_answer_nearly_as_the_teacher(name, answers):
    first, teacher = answers[name][0], answers[TEACHER_WAY][0]
    assert first.dtype == torch.float32
    assert not torch.equal(first, teacher)
    torch.testing.assert_close(first, teacher, atol=0.02 * float(teacher.abs().max()), rtol=0)


def test_int8_is_the_nearest_of_255_values_of_each_channel():
    weight = torch.randn(5, 3, 2, 2)
    weight[4] = 0.0
    bias = torch.randn(5)
    stored = quantised({"weight": weight, "bias": bias})
    assert stored["weight"].dtype == torch.int8
    assert torch.equal(stored["weight"].flatten(1).abs().amax(1), torch.tensor([127, 127, 127, 127, 0]))
    found = dequantised(stored)
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["bias"], bias)
    allowed = stored["weight" + SCALE].view(-1, 1, 1, 1) * 0.5001
    assert bool(((found["weight"] - weight).abs() <= allowed).all())


def test_int8_file_has_a_quarter_of_the_bytes_of_what_is_quantised(place):
    stored = load_file(ways(place)[INT8_WAY].folder / INT8)
    small = [name for name, tensor in stored.items() if tensor.dtype == torch.int8]
    assert small
    assert all(stored[name + SCALE].shape == stored[name].shape[:1] for name in small)


def test_bytes_until_the_first_answer_are_those_that_were_asked_for_before_it():
    def asked(at: float, sent: int) -> Asked:
        return Asked(at, "GET", "/x", None, 200, sent)

    known = {name: Way(None, "", Path(), "", task) for name, task in ((TEACHER_WAY, "first"), (PWL_WAY, "stream"))}
    runs = {
        TEACHER_WAY: [Run(10.0, 5.0, {"answered": 5.0}, [], 0)],
        PWL_WAY: [Run(20.0, 6.0, {"first": 1.0, "answered": 6.0}, [], 0)],
    }
    requests = {
        TEACHER_WAY: [[asked(10.1, 1_000_000), asked(11.0, 3_000_000)]],
        PWL_WAY: [[asked(20.5, 500_000), asked(21.5, 4_000_000)]],
    }
    found = {figure.name: figure.value.median for figure in alternatives._bytes(known, runs, requests)}
    assert found == {
        f"bytes at the first answer: {TEACHER_WAY}": 4.0,
        f"bytes at the first answer: {PWL_WAY}": 0.5,
        f"bytes in all: {PWL_WAY}": 4.5,
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Place:
    """The pair that is trained, here with random weights."""
    data = tmp_path_factory.mktemp("digits")
    repository(replace(pairs()["digits"], trained=False), data / "digits")
    return Place("digits", pairs()["digits"], data, repeats=1)


def test_accuracy_is_that_of_each_network_on_the_labelled_images(digits):
    found = {f.name: f.value.median for f in alternatives_accuracy.accuracy(digits).figures}
    images, labels = alternatives_accuracy.images_of(digits)
    teacher = ways(digits)[TEACHER_WAY]
    with torch.inference_mode():
        classes = teacher.network.from_pretrained(teacher.folder)(images).logits.argmax(-1)
    assert len(labels) == 719
    assert found[f"right: {TEACHER_WAY}"] == pytest.approx(100 * (classes == labels).double().mean().item())
    assert found[f"right: {PWL_WAY}, stage 4"] == found[f"right: {TEACHER_WAY}"]
    assert found[f"as the teacher: {PWL_WAY}, stage 4"] == 100
    assert found[f"right: {PWL_WAY}, stage 0"] == found[f"right: {STUDENT_WAY}"]
    sizes = [found[f"weights until then: {PWL_WAY}, stage {stage}"] for stage in range(5)]
    assert sizes == sorted(sizes)
    rungs = [name for name in found if name.startswith(f"weights until then: {RUNGS_WAY}")]
    assert [name[-5:-1] for name in rungs] == ["SSSS", "QSSS", "QQSS", "QQQS", "QQQQ", "TQQQ", "TTQQ", "TTTQ", "TTTT"]
    assert found[rungs[-1]] < sizes[-1]
    assert found[f"as the teacher: {RUNGS_WAY}, stage 8 (TTTT)"] == 100
    assert found[f"weights until then: {INT8_WAY}"] < 0.35 * found[f"weights until then: {TEACHER_WAY}"]


def test_pair_digits_is_that_of_the_recipes():
    def recipe(name: str) -> dict:
        return yaml.safe_load((CHECKOUT / "training" / "recipes" / f"{name}.yaml").read_text())

    pair = pairs()["digits"]
    for config, wanted in (
        (pair.teacher, recipe("vit-digits-teacher")["config_overrides"]),
        (pair.student, recipe("vit-digits")["student_config_overrides"]),
    ):
        known = {name: getattr(config, name) for name in wanted if name != "initializer_range"}
        assert known == {name: value for name, value in wanted.items() if name != "initializer_range"}
    assert pair.num_blocks == recipe("vit-digits")["num_blocks"]


def test_trained_pair_is_trained_by_the_demo_and_only_once(tmp_path, monkeypatch):
    made = []

    def run_demo(folder: Path, **_: object) -> None:
        made.append(folder)
        repository(replace(pairs()["tiny"], trained=False), folder)
        (folder / "student" / "config.json").unlink()

    monkeypatch.setattr(pairs_module, "run_demo", run_demo)
    for _ in range(2):
        folder = repository(replace(pairs()["tiny"], trained=True), tmp_path / "a")
        assert (folder / "student" / "config.json").is_file()
    assert made == [tmp_path / "a"]


def _marks(model: object, size: int) -> list[str]:
    marks: list[str] = []
    with torch.inference_mode():
        timeline._grow(marks.append, model, torch.zeros(1, 3, size, size))
    return marks


def test_time_line_has_a_mark_for_each_answer(place):
    known = ways(place)

    def marks(name: str) -> list[str]:
        return _marks(known[name].network.from_pretrained(known[name].folder), place.pair.size)

    assert marks(TEACHER_WAY) == ["0"]
    assert marks(INT8_WAY) == ["0", "1"]
    # A stage that is over before it has answered has none.
    found = marks(PWL_WAY)
    assert (found[0], found[-1]) == ("0", "4")
    assert found == sorted(set(found))


def test_stream_that_fails_is_an_error_and_no_hang(tmp_path):
    model = PWLForImageClassification.from_pretrained(
        repository(replace(pairs()["tiny"], trained=False), tmp_path / "tiny")
    )
    (tmp_path / "tiny" / "teacher" / "model-00002-of-00002.safetensors").write_bytes(b"no shard")
    with pytest.raises(Exception, match="model-00002-of-00002"):
        _marks(model, 32)


def test_thinned_samples_keep_the_peak_and_the_order():
    rows = [[0.01 * i, float(i % 7), float(i % 7)] for i in range(1000)]
    rows[501] = [5.01, 99.0, 99.0]
    found = timeline.thinned(rows, 50)
    assert len(found) == 50
    assert max(row[2] for row in found) == 99.0
    assert found == sorted(found)
    assert timeline.thinned(rows[:50], 50) == rows[:50]


@pytest.mark.parametrize(
    ("level", "answers", "height"),
    [
        ("blocks", {PWL_WAY: [[1, 0], [5, 1], [9, 2]], TEACHER_WAY: [[8, 2]], STUDENT_WAY: [[1, 0]]}, 1040),
        ("accuracy", {PWL_WAY: [[1, 93.0], [5, 97.0]], TEACHER_WAY: [[4, 97.0]], INT8_WAY: [[2, 96.0]]}, 720),
    ],
)
def test_picture_is_800_wide_at_two_dots_a_pixel(level, answers, height, tmp_path):
    draw(_series(level, answers), tmp_path / "made" / "a.png")
    with Image.open(tmp_path / "made" / "a.png") as picture:
        assert picture.size == (1600, height)


def test_all_memory_is_within_the_picture():
    answers = {PWL_WAY: [[1, 0], [9, 2]], TEACHER_WAY: [[8, 2]], STUDENT_WAY: [[1, 0]]}
    series = _series("blocks", answers)
    # The one that is drawn first needs the least.
    series["ways"][STUDENT_WAY]["memory"] = [[0.0, 0.0, 0.0], [5.0, 3.0, 4.0]]
    low, high = picture_of(series).axes[1].get_ylim()
    assert low == 0
    assert high >= 100


def _series(level, answers):
    memory = [[0.0, 0.0, 0.0], [5.0, 90.0, 100.0]]
    return {
        "pair": "vit-b",
        "bandwidth": 20e6,
        "latency": 0.02,
        "level": level,
        "ways": {name: {"answers": rows, "memory": memory} for name, rows in answers.items()},
    }
