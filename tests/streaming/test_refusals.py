"""What a model refuses while it streams, and which models and arguments a stream refuses."""

from __future__ import annotations

import pytest

from pwl_hf import PWLForImageClassification, StageError
from tests.streaming.helpers import Pause
from tests.tiny import tiny_config, tiny_model


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.load_next_stage(),
        lambda model: model.set_stage(0),
        lambda model: model.set_stage("teacher"),
        lambda model: model.set_sources("STST"),
        lambda model: model.stream_stages(),
    ],
    ids=["load_next_stage", "set_stage_down", "set_stage_up", "set_sources", "stream_stages"],
)
def test_changes_of_stage_during_a_stream_are_refused(load, answers, change) -> None:
    model, pause = load(), Pause()
    stream = model.stream_stages(3, on_stage=pause)
    with pause:
        with pytest.raises(StageError, match=r"streamed, up to stage 3: cancel the stream and wait"):
            change(model)
        assert (model.stage, model.stream is stream) == (1, True)
    assert stream.wait(60)
    assert (stream.exception, answers().stage_now(model)) == (None, 3)
    change(model)
    model.stream.wait()


def test_a_stream_within_on_stage_is_refused(load) -> None:
    model = load()
    stream = model.stream_stages(on_stage=lambda grown, stage: grown.stream_stages())
    stream.wait()
    assert isinstance(stream.exception, StageError)
    assert (model.stage, model.stream is stream) == (1, True)


def test_on_stage_may_change_the_stage_and_may_not_wait(load, answers) -> None:
    model, refused = load(), []

    def on_stage(grown: PWLForImageClassification, stage: int) -> None:
        if stage == 2:
            grown.set_stage(0)
        try:
            grown.stream.wait()
        except StageError as error:
            refused.append(str(error))

    model.stream_stages(on_stage=on_stage).wait()
    assert (model.stage, answers().stage_now(model)) == (4, 4)
    assert len(refused) == 4
    assert "would never return" in refused[0]


def test_a_resident_model_has_nothing_to_stream(load) -> None:
    for model in (tiny_model("vit"), load(keep_all=True)):
        with pytest.raises(StageError, match="nothing to stream: call set_stage"):
            model.stream_stages()
        assert model.stream is None


def test_a_mask_that_is_no_stage_cannot_be_streamed_from(load) -> None:
    model = load()
    model.set_sources("STSS")
    with pytest.raises(StageError, match="only a model that is at a stage"):
        model.stream_stages()
    model.set_stage(1)
    model.stream_stages().wait()
    assert model.stage == 4


def test_a_vacant_model_cannot_be_streamed() -> None:
    with pytest.raises(StageError):
        PWLForImageClassification(tiny_config("vit"), vacant=True).stream_stages()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"until_stage": 5}, "from 0 to 4"),
        ({"until_stage": -1}, "from 0 to 4"),
        ({"until_stage": True}, "from 0 to 4"),
        ({"until_stage": "last"}, "or 'teacher'"),
        ({"until_stage": 1}, "until_stage=1 lies behind the model, which is at stage 2"),
        ({"max_bytes_per_second": 0}, "max_bytes_per_second must be positive"),
        ({"max_bytes_per_second": -1.0}, "max_bytes_per_second must be positive"),
        ({"max_bytes_per_second": float("nan")}, "max_bytes_per_second must be positive"),
        ({"lookahead_bytes": -1}, "lookahead_bytes must not be negative"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_and_start_nothing(load, arguments, reason: str) -> None:
    model = load(stage=2)
    with pytest.raises(ValueError, match=reason):
        model.stream_stages(**arguments)
    assert (model.stream, model.stage) == (None, 2)
    assert model.load_next_stage() == 3


def test_stream_with_keep_all_is_refused_before_anything_is_read(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"stream=True does not go with keep_all=True"):
        PWLForImageClassification.from_pretrained(tmp_path / "missing", stream=True, keep_all=True)


def test_a_stream_that_gets_no_thread_leaves_the_model_free(load, monkeypatch) -> None:
    model = load()

    def refuse(thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            model.stream_stages()
    assert model.load_next_stage() == 1
    model.stream_stages().wait()
    assert model.stage == 4


def test_a_cast_to_fewer_bits_and_back_is_a_change_that_ends_the_stream(load) -> None:
    model = load()
    model.bfloat16().float()
    with pytest.raises(StageError, match="student block 1 was changed"), model.stream_stages():
        pass
    assert model.stage == 0
    # In the other direction nothing is rounded.
    wide = load()
    wide.double().float()
    with wide.stream_stages():
        pass
    assert wide.stage == 4
