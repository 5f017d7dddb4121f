"""From a Hub: one commit, hashes before use, little asked for, and faults that end the stream and not the model."""

from __future__ import annotations

import pytest

from pwl_hf import FetchError, PWLForImageClassification, RepositoryError, RetryPolicy, runtime
from pwl_hf.downloading import download_stages
from pwl_hf.modeling.repository.source import Repository
from tests.hub import Fault
from tests.repository.helpers import STUDENT, bodies, publish, shard, tree
from tests.runtime.helpers import NUM_STAGES, fresh
from tests.tiny import tiny_model

LAST = NUM_STAGES
FIRST_FILES = ["model.safetensors", "onnx/index.json", "onnx/student.onnx", "pwl_index.json"]


def test_first_answer_needs_four_files_and_a_second_load_none(hub, pull, expected):
    with hub.record() as requests:
        assert expected().stage_now(pull()) == 0
    assert sorted(bodies(requests)) == FIRST_FILES
    with hub.record() as requests:
        assert expected().stage_now(pull()) == 0
    assert bodies(requests) == []


def test_every_file_is_of_the_first_commit_although_the_branch_moves(hub, pull, repo_id, expected, tmp_path):
    model = pull()
    tiny_model("vit", NUM_STAGES, seed=5).save_pretrained(tmp_path / "other")
    publish(hub, repo_id, tmp_path / "other")
    with hub.record() as requests, model.stream_stages():
        pass
    assert expected().stage_now(model) == LAST
    assert bodies(requests)


def test_stream_asks_for_graphs_and_weights_of_later_stages_once(hub, pull):
    model = pull()
    with hub.record() as requests, model.stream_stages():
        pass
    found = bodies(requests)
    assert len(found) == len(set(found))
    blocks = [f"onnx/teacher-{k:05d}.onnx" for k in range(1, LAST + 1)]
    assert {*blocks, "onnx/tail-TSS.onnx", "onnx/tail-TTS.onnx"} == {path for path in found if path.endswith(".onnx")}
    assert {shard(k, LAST) for k in range(1, LAST + 1)} < set(found)


@pytest.mark.parametrize("kind", ["corrupt", "truncate"])
@pytest.mark.parametrize("path", ["model.safetensors", "onnx/student.onnx", "onnx/index.json"])
def test_damage_on_the_way_is_never_run(hub, pull, repo_id, exported, expected, kind, path):
    publish(hub, repo_id, exported())
    with hub.faulty(Fault(kind, path=path, times=None)), pytest.raises((RepositoryError, FetchError), match=path):
        pull(retry=RetryPolicy(tries=2, first_wait=0))
    assert expected().stage_now(pull()) == 0


def test_missing_shard_ends_the_stream_and_not_the_model(hub, pull, expected):
    model = pull(retry=RetryPolicy(tries=2, first_wait=0))
    with hub.faulty(Fault("status", path=shard(2, LAST), method="*", status=404, times=None)):
        stream = model.stream_stages()
        assert stream.wait(60)
    assert shard(2, LAST) in str(stream.exception)
    assert expected().stage_now(model) == model.stage == 1
    with model.stream_stages():
        pass
    assert expected().stage_now(model) == LAST


def test_stage_that_does_not_exist_is_refused_before_weights_are_fetched(hub, pull, repo_id, exported):
    publish(hub, repo_id, exported())
    with hub.record() as requests, pytest.raises(ValueError, match="stage must be a whole number from 0 to 3"):
        pull(stage=9)
    assert bodies(requests) == ["pwl_index.json"]


def test_repository_without_graphs_is_refused_before_weights_are_fetched(hub, repo_id, tmp_path):
    tiny_model("vit", NUM_STAGES).save_pretrained(tmp_path / "plain")
    publish(hub, repo_id, tmp_path / "plain")
    with hub.record() as requests, pytest.raises(RepositoryError, match=f"`pwl-hf export {repo_id}`"):
        runtime.load(repo_id, cache_dir=tmp_path / "cache")
    assert bodies(requests) == ["pwl_index.json"]


def test_subfolder_is_read_and_streamed(hub, repo_id, exported, expected, tmp_path):
    publish(hub, repo_id, exported(), "models/small")
    model = runtime.load(repo_id, subfolder="models/small", cache_dir=tmp_path / "cache", threads=1)
    with model.stream_stages():
        pass
    assert expected().stage_now(model) == LAST


# --- Downloaded before ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, "teacher"])
def test_partial_download_holds_what_its_stages_run(hub, repo_id, exported, expected, stage, tmp_path):
    publish(hub, repo_id, exported())
    last = LAST if stage == "teacher" else stage
    download_stages(repo_id, stage, cache_dir=tmp_path / "cache", local_dir=tmp_path / "folder")
    with hub.record() as requests:
        model = runtime.load(tmp_path / "folder", threads=1)
        for wanted in range(1, last + 1):
            assert model.load_next_stage() == wanted
        assert expected().stage_now(model) == last
        if stage != "teacher":
            with pytest.raises(RepositoryError, match=f"has no file '{shard(last + 1, LAST)}'"):
                model.load_next_stage()
        assert expected().stage_now(model) == last
        PWLForImageClassification.from_pretrained(tmp_path / "folder", stage=last)
    assert requests == []
    graphs = {path for path in tree(tmp_path / "folder") if path.endswith(".onnx")}
    assert ("teacher/model.onnx" in graphs) == (stage == "teacher")
    everything = {entry.path for entry in Repository.open(exported()).manifest().attachments}
    assert (graphs | {"onnx/index.json"} == everything) == (stage == "teacher")


def test_downloaded_repository_is_loaded_without_the_hub(hub, repo_id, exported, expected, tmp_path):
    publish(hub, repo_id, exported())
    download_stages(repo_id, 1, cache_dir=tmp_path / "cache")
    with hub.record() as requests:
        model = runtime.load(repo_id, stage=1, cache_dir=tmp_path / "cache", local_files_only=True, threads=1)
        assert expected().stage_now(model) == 1
        with pytest.raises(FetchError, match="the Hub is not to be asked"):
            model.load_next_stage()
    assert requests == []


def test_repository_without_graphs_is_downloaded_as_ever(hub, repo_id, tmp_path):
    tiny_model("vit", NUM_STAGES).save_pretrained(tmp_path / "plain")
    publish(hub, repo_id, tmp_path / "plain")
    download_stages(repo_id, 0, cache_dir=tmp_path / "cache", local_dir=tmp_path / "folder")
    assert sorted(tree(tmp_path / "folder")) == ["config.json", STUDENT, "pwl_index.json"]


# --- In a fresh process -----------------------------------------------------------------------------------------


def test_nothing_is_imported_before_it_is_needed(exported, fresh_env, tmp_path):
    code = """
import pwl_hf.runtime
out["import"] = sorted({"numpy", "onnxruntime", "PIL", "huggingface_hub"} & tops())
from pwl_hf import runtime
model = runtime.load(sys.argv[1], threads=1)
out["load"] = sorted({"numpy", "onnxruntime", "PIL", "httpx2", "filelock", "tqdm"} & tops())
import numpy
out["logits"] = model.logits(pixel_values=numpy.zeros((1, 3, 16, 16), "float32")).tolist()
with model.stream_stages():
    pass
out["stream"] = sorted({"PIL", "httpx2", "filelock", "tqdm"} & tops())
out["labels"] = [answer["label"] for answer in model.predict(numpy.zeros((16, 16, 3), "uint8"))]
"""
    out = fresh(code, fresh_env, exported())
    assert out["import"] == []
    assert out["load"] == ["numpy", "onnxruntime"]
    assert out["stream"] == []
    assert sorted(out["labels"]) == ["ant", "bee", "cat", "dog", "elk"]


def test_model_streams_from_a_hub_where_torch_cannot_be_imported(hub, repo_id, exported, fresh_env):
    publish(hub, repo_id, exported())
    code = """
import numpy, pwl_hf
pwl_hf.prefetch(sys.argv[1])
from pwl_hf import runtime
model, stages = runtime.load(sys.argv[1], stream=True), []
model.stream.wait(60)
out["stage"], out["error"] = model.stage, repr(model.stream.exception)
out["answers"] = len(model.predict(numpy.zeros((16, 16, 3), "uint8")))
"""
    assert fresh(code, fresh_env, repo_id) == {"stage": LAST, "error": "None", "answers": 5}


def test_missing_onnxruntime_is_told_with_what_to_install(exported, fresh_env):
    code = """
class NoEngine:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoEngine())
from pwl_hf import runtime
try:
    runtime.load(sys.argv[1])
except ImportError as error:
    out["error"] = str(error)
"""
    assert fresh(code, fresh_env, exported())["error"] == (
        'pwl_hf.runtime needs onnxruntime, which is not installed: pip install "pwl-hf[runtime]"'
    )
