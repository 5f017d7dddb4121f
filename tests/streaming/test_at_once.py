"""Everything that may be called on a model, from several threads at once: safe, or refused with a clear error."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification, StageError
from tests.slow import slow_but
from tests.streaming.helpers import Pause, own_threads, until
from tests.streaming.test_serving_threads import asking
from tests.tiny import tiny_images


def run_together(actions: list, seconds_each: float = 60) -> None:
    """Run every action in a thread of its own, and raise what one of them raises."""
    errors: list[BaseException] = []

    def run(action) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds_each)
        assert not thread.is_alive(), "a call never returned"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("family", slow_but(["resnet"], ["vit", "resnet"]))
def test_all_calls_at_once_leave_a_model_that_is_exactly_a_stage(load, answers, tmp_path: Path, family: str) -> None:
    """Each thread does one thing again and again; only a refusal by name is allowed."""
    model, expected, refusals = load(family), answers(family), []

    def often(action, times: int = 12):
        def run() -> None:
            for _ in range(times):
                try:
                    action()
                except StageError as error:
                    refusals.append(str(error))

        return run

    def cast() -> None:
        model.half()
        model.float()

    actions = [
        often(model.load_next_stage),
        often(lambda: model.set_stage(random.randrange(5))),
        often(lambda: model.stream_stages().wait(60)),
        often(lambda: model.save_pretrained(tmp_path / "saved"), 4),
        often(lambda: (model.train(), model.eval())),
        often(lambda: model.to("cpu", torch.float32)),
        often(lambda: model.requires_grad_(True)),
        often(lambda: copy.deepcopy(model), 6),
        often(lambda: pickle.loads(pickle.dumps(model)), 6),
        often(lambda: model.state_dict()),
        often(lambda: [p.numel() for p in model.parameters()]),
        often(lambda: model.teacher),
    ]
    run_together(actions)
    until(lambda: not own_threads())
    assert refusals
    allowed = ("stages are being streamed", "is at its last stage", "is no stage", "lies behind")
    assert [text for text in refusals if not any(part in text for part in allowed)] == []
    model.eval()
    assert expected.stage_now(model) == model.stage
    for stage in (0, 3, "teacher", 1):
        model.set_stage(stage)
        assert expected.stage_now(model) == (4 if stage == "teacher" else stage)
    saved = PWLForImageClassification.from_pretrained(tmp_path / "saved")
    saved.set_stage(2)
    assert expected.stage_now(saved) == 2


def test_a_save_during_a_stream_is_the_whole_repository(load, saved, tmp_path: Path) -> None:
    model, pause = load("resnet"), Pause(2)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        model.save_pretrained(tmp_path)
    assert stream.wait(60)
    assert stream.exception is None
    for path in saved("resnet").rglob("*.safetensors"):
        assert (tmp_path / path.relative_to(saved("resnet"))).read_bytes() == path.read_bytes()


def test_saving_over_the_own_folder_during_a_stream_disturbs_neither(saved, answers, tmp_path: Path) -> None:
    PWLForImageClassification.from_pretrained(saved("vit")).save_pretrained(tmp_path)
    model, pause = PWLForImageClassification.from_pretrained(tmp_path), Pause(1)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        with torch.no_grad():
            # Learned since: the student's rest has another file, and another hash, now.
            model.student.classifier.bias.add_(1)
        model.save_pretrained(tmp_path)
    assert stream.wait(60)
    assert stream.exception is None
    assert answers().stage_now(model) == 4
    model.set_stage(0)
    assert torch.equal(
        model.student.classifier.bias, PWLForImageClassification.from_pretrained(tmp_path).student.classifier.bias
    )


def wait_for_more(found: list) -> None:
    """Wait until two or three threads have each looked once more, from beginning to end."""
    before = len(found)
    until(lambda: len(found) >= before + 6)


def test_a_state_dict_during_swaps_is_that_of_one_stage(load) -> None:
    model = load()
    expected = {}
    for stage in range(5):
        model.set_stage(stage)
        expected[stage] = frozenset(model.state_dict())
    model.set_stage(0)
    found = []
    with asking(lambda _: found.append(frozenset(model.state_dict())), threads=2):
        for _ in range(5):
            wait_for_more(found)
            stream = model.stream_stages(on_stage=lambda *_: wait_for_more(found))
            assert stream.wait(60)
            assert stream.exception is None
            for stage in (2, 0):
                model.set_stage(stage)
    assert set(found) == set(expected.values())


def test_parameters_and_device_can_be_read_during_swaps(load) -> None:
    model, counts = load(), []

    def read(_: int) -> None:
        counts.append(len(list(model.named_parameters())))
        assert (model.device.type, model.dtype) == ("cpu", torch.float32)
        _ = [name for name, _ in model.named_modules()]
        _ = dict(model.statistics)

    with asking(read, threads=3):
        for _ in range(8):
            stream = model.stream_stages(on_stage=lambda *_: wait_for_more(counts))
            assert stream.wait(60)
            assert stream.exception is None
            model.set_stage(0)
    assert len(set(counts)) >= 4


def test_a_cast_during_a_stream_is_followed_by_its_later_stages(load, saved) -> None:
    model, pause = load("resnet"), Pause(2)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        model.to(torch.bfloat16)
    stream.wait()
    assert (stream.exception, model.stage) == (None, 4)
    tensors = [*model.parameters(), *model.buffers(), *(t for s in model.statistics.values() for t in s.values())]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.bfloat16}
    direct = PWLForImageClassification.from_pretrained(saved("resnet"), dtype=torch.bfloat16, stage=4)
    images = tiny_images("resnet").bfloat16()
    with torch.no_grad():
        assert torch.equal(model(images).logits, direct(images).logits)


def test_train_during_a_stream_is_followed_and_eval_restores_the_answers(load, answers) -> None:
    model, pause = load("resnet"), Pause(2)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        model.train()
    assert stream.wait(60)
    assert stream.exception is None
    assert model.training
    assert not model.teacher.training
    model.eval()
    assert answers("resnet").stage_now(model) == 4


def test_statistics_estimated_during_a_stream_belong_to_their_mask(load, answers) -> None:
    model, pause = load("resnet"), Pause(2)
    stream = model.stream_stages(3, on_stage=pause)
    images = tiny_images("resnet", 8, seed=9)
    with pause:
        before = answers("resnet").stage_now(model)
        model.estimate_statistics(images)
        changed = answers("resnet").stage_now(model)
    stream.wait()
    assert (before, changed) == (2, None)
    assert (stream.exception, answers("resnet").stage_now(model)) == (None, 3)
    again = load("resnet", stage=2)
    again.estimate_statistics(images)
    model.set_stage(2)
    with torch.no_grad():
        assert torch.equal(model(images).logits, again(images).logits)


def test_an_estimate_holds_the_stage_until_it_is_done(load, answers) -> None:
    """Batches that come slowly: the stream waits for the last, instead of swapping what is being measured."""
    model, pause, stages = load("resnet"), Pause(2), []
    stream = model.stream_stages(3, on_stage=pause)

    def batches():
        for number in range(4):
            if number == 1:
                pause.let_go()
            stream.wait(0.1)
            stages.append(model.stage)
            yield tiny_images("resnet", 4, seed=number)

    pause.reached()
    model.estimate_statistics(batches())
    assert stages == [2, 2, 2, 2]
    assert stream.wait(60)
    assert (stream.exception, answers("resnet").stage_now(model)) == (None, 3)
