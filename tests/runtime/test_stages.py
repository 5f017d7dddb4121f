"""Changes of stage: the torch model's words and refusals, one stage's answer at a time, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from pwl_hf import PWLForImageClassification, RepositoryError, StageError, runtime
from tests.repository.helpers import shard
from tests.runtime.helpers import NUM_STAGES
from tests.streaming.helpers import Pause
from tests.streaming.test_serving_threads import asking
from tests.tiny import NUM_LABELS

LAST = NUM_STAGES


def message_of(action) -> str:
    with pytest.raises((ValueError, StageError)) as caught:
        action()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_words_are_those_of_the_torch_model(exported, load):
    for stage in (0, 1, "teacher"):
        model, other = load(stage=stage), PWLForImageClassification.from_pretrained(exported(), stage=stage)
        words = ("stage", "num_stages", "num_blocks", "sources", "schedule", "stream")
        assert [getattr(model, word) for word in words] == [getattr(other, word) for word in words]
        assert model.labels == tuple(other.config.id2label[i] for i in range(NUM_LABELS))
        assert model.problem_type == other.config.problem_type


def test_refusals_are_those_of_the_torch_model(exported, load):
    def torch_model(**options):
        return PWLForImageClassification.from_pretrained(exported(), **options)

    for action in (
        lambda load: load(stage=LAST + 1),
        lambda load: load(stage=None),
        lambda load: load().set_stage(-1),
        lambda load: load().set_stage(True),
        lambda load: load().set_stage("student"),
        lambda load: load(stage="teacher").load_next_stage(),
        lambda load: load(stage=2).stream_stages(1),
        lambda load: load().stream_stages(max_bytes_per_second=0),
        lambda load: load().stream_stages(lookahead_bytes=-1),
        lambda load: load().stream_stages("student"),
    ):
        assert message_of(lambda action=action: action(load)) == message_of(lambda action=action: action(torch_model))


def test_stages_go_up_and_down(load, expected):
    model = load()
    for stage in range(1, LAST + 1):
        assert model.load_next_stage() == model.stage == expected().stage_now(model) == stage
    for stage in (1, LAST, 0, 2, 2, 0):
        model.set_stage(stage)
        assert model.stage == expected().stage_now(model) == stage
    model.set_stage("teacher")
    assert expected().stage_now(model) == LAST


def test_stage_that_it_is_at_changes_nothing(load):
    model = load(stage=1)
    chain = model._chain
    model.set_stage(1)
    assert model._chain is chain


def files_of(model):
    """What a model's sessions run over, by the file that it lies in."""
    return {path: file for own in model._chain.files.values() for (path,), file in own.items()}


def test_sessions_of_blocks_stay_and_what_is_not_needed_goes(load):
    model = load(stage=1)
    block, tail = (weakref.ref(session) for session in model._chain.sessions)
    files = weakref.ref(files_of(model)["model.safetensors"])
    model.set_stage(2)
    assert model._chain.sessions[0] is block()
    gc.collect()
    assert tail() is None
    assert files() is not None, "the student's blocks behind are in use"
    model.set_stage("teacher")
    gc.collect()
    assert files() is None
    assert sorted(files_of(model)) == [shard(k, LAST) for k in range(1, LAST + 1)]
    model.set_stage(0)
    gc.collect()
    assert block() is None
    assert list(files_of(model)) == ["model.safetensors"]


def test_call_under_way_keeps_the_sessions_that_it_began_with(load, expected, monkeypatch):
    model, entered, go_on = load(stage=1), threading.Event(), threading.Event()
    session, found = model._chain.sessions[0], []
    tail = weakref.ref(model._chain.sessions[1])

    class Slow:
        graph = session.graph

        def __call__(self, *arguments):
            entered.set()
            assert go_on.wait(60)
            return session(*arguments)

    object.__setattr__(model._chain, "sessions", (Slow(), tail()))
    thread = threading.Thread(target=lambda: found.append(model.logits(pixel_values=expected().pixels)))
    thread.start()
    assert entered.wait(60)
    model.set_stage(0)
    assert (model.stage, tail() is not None) == (0, True)
    go_on.set()
    thread.join(60)
    assert expected().stage_of(found[0]) == 1
    gc.collect()
    assert tail() is None


def test_new_sessions_have_run_on_what_was_asked_before_they_answer(load, expected, monkeypatch):
    from pwl_hf.modeling.graphs.session import GraphSession

    model, runs, plain = load(), [], GraphSession.__call__

    def spy(self, features, inputs):
        runs.append((self.graph.path, inputs["pixel_values"].shape[0], threading.current_thread().name))
        return plain(self, features, inputs)

    model.logits(pixel_values=expected().pixels)
    monkeypatch.setattr(GraphSession, "__call__", spy)
    model.set_stage(1)
    assert [run[:2] for run in runs] == [("onnx/teacher-00001.onnx", 2), ("onnx/tail-TSS.onnx", 2)]
    runs.clear()
    with model.stream_stages(2):
        pass
    # Block 1 has run, and what it gives is known.
    assert runs == [("onnx/teacher-00002.onnx", 2, "pwl-grow"), ("onnx/tail-TTS.onnx", 2, "pwl-grow")]


def test_model_that_was_asked_nothing_runs_nothing(load, monkeypatch):
    from pwl_hf.modeling.graphs.session import GraphSession

    model = load()
    monkeypatch.setattr(GraphSession, "__call__", None)
    model.set_stage("teacher")
    assert model.stage == LAST


# --- Streams ----------------------------------------------------------------------------------------------------


def test_stream_ends_at_the_teacher_and_tells_of_each_stage(load, expected):
    model, seen = load(), []
    with model.stream_stages(on_stage=lambda m, k: seen.append((m is model, k, expected().stage_now(m)))) as stream:
        pass
    assert seen == [(True, stage, stage) for stage in range(1, LAST + 1)]
    assert (stream.stage, stream.done, stream.exception, model.stream is stream) == (LAST, True, None, True)
    assert stream.bytes_done == stream.bytes_total > 0


def test_stream_may_begin_with_the_model(load):
    calls = []
    model = load(stream=True, on_stage=lambda model, stage: calls.append(stage))
    assert model.stream.wait(60)
    assert (model.stage, calls) == (LAST, [1, 2, 3])
    with pytest.raises(ValueError, match="on_stage is for a stream"):
        load(on_stage=lambda model, stage: None)


def test_changes_by_others_are_refused_while_stages_are_streamed(load, expected):
    model, pause = load(), Pause(1)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        for change in (model.load_next_stage, lambda: model.set_stage(0), model.stream_stages):
            with pytest.raises(StageError, match="stages are being streamed, up to stage 3"):
                change()
        assert expected().stage_now(model) == model.stage == 1
        stream.cancel()
    assert stream.wait(60)
    assert (stream.cancelled, model.stage) == (True, 1)
    model.set_stage(0)
    with model.stream_stages(2):
        pass
    assert expected().stage_now(model) == 2


def test_error_of_on_stage_ends_the_stream_and_not_the_model(load, expected):
    def fail(model, stage):
        if stage == 2:
            raise RuntimeError("enough")

    model = load()
    with pytest.raises(RuntimeError, match="enough"), model.stream_stages(on_stage=fail):
        pass
    assert expected().stage_now(model) == 2
    assert model.load_next_stage() == LAST


def test_handle_keeps_no_model(load):
    model = load()
    stream = model.stream_stages()
    assert stream.wait(60)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_threads_get_answers_of_one_stage_alone(load, expected):
    model, known, seen = load(), expected(), set()

    def ask(_: int) -> None:
        stage = known.stage_now(model)
        assert stage is not None, "an answer of no stage"
        seen.add(stage)

    with asking(ask, 6):
        end = time.monotonic() + 60
        while (not seen >= set(range(LAST + 1))) and time.monotonic() < end:
            with model.stream_stages(on_stage=lambda *_: time.sleep(0.1)):
                pass
            for stage in (2, 1, 0):
                model.set_stage(stage)
                time.sleep(0.05)
    assert seen == set(range(LAST + 1))


def test_answers_of_different_batches_at_once_are_each_their_own(load, expected):
    model, pixels = load(stage=1), expected().pixels
    one, two = (model.logits(pixel_values=pixels[:count]) for count in (1, 2))

    def ask(number: int) -> None:
        count, answer = ((1, one), (2, two))[number % 2]
        np.testing.assert_array_equal(model.logits(pixel_values=pixels[:count]), answer)

    with asking(ask, 4):
        time.sleep(0.3)


# --- Files that change under it ---------------------------------------------------------------------------------


def test_shard_that_is_damaged_is_refused_by_name_and_the_model_answers(copied, expected):
    model, path = runtime.load(copied, threads=1), copied / shard(2, LAST)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    model.load_next_stage()
    with pytest.raises(RepositoryError, match=shard(2, LAST)):
        model.load_next_stage()
    stream = model.stream_stages()
    assert stream.wait(60)
    assert isinstance(stream.exception, RepositoryError)
    assert expected().stage_now(model) == model.stage == 1
    content[-1] ^= 1
    path.write_bytes(content)
    with model.stream_stages():
        pass
    assert expected().stage_now(model) == LAST


@pytest.mark.parametrize("path", ["onnx/student.onnx", "onnx/index.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_file_of_the_first_stage_that_is_damaged_is_refused_by_name(copied, path, damage):
    content = bytearray((copied / path).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        (copied / path).unlink()
    else:
        (copied / path).write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(RepositoryError, match=path):
        runtime.load(copied)


def test_repository_without_graphs_is_refused_with_what_to_do(exported, tmp_path):
    PWLForImageClassification.from_pretrained(exported(), keep_all=True).save_pretrained(tmp_path / "plain")
    import json

    manifest = json.loads((tmp_path / "plain/pwl_index.json").read_text())
    manifest.pop("attachments", None)
    (tmp_path / "plain/pwl_index.json").write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match=r"has no ONNX graphs, .* `pwl-hf export "):
        runtime.load(tmp_path / "plain")
