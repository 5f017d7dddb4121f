"""The handler for Inference Endpoints: pushed on request, imported and called as the endpoint's server does."""

from __future__ import annotations

import base64
import json
from importlib.metadata import requires

import pytest
from huggingface_hub import snapshot_download
from packaging.requirements import Requirement
from transformers import AutoImageProcessor

from pwl_hf import PWLForImageClassification
from pwl_hf.cli import main
from pwl_hf.modeling.publishing.endpoints import endpoint_files
from pwl_hf.modeling.publishing.push import Target, push_folder
from tests.repository.helpers import publish, run_python, shard
from tests.serving.served import expected, png
from tests.tiny import tiny_model

# What huggingface-inference-toolkit does at its start, and at a request.
ENDPOINT = """
import importlib.util, io, json, sys
from pathlib import Path
from PIL import Image

path = sys.stdin.readline().strip()
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", Path(path, "handler.py"))
sys.path.insert(0, path)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(path)
"""
CALLS = """
body = bytes.fromhex(sys.stdin.readline())
first = handler({"inputs": body})
started = handler.model.stream.stage
assert handler.model.stream.wait(60) and handler.model.stream.exception is None
import base64
text = base64.b64encode(body).decode()
answers = [
    handler({"inputs": Image.open(io.BytesIO(body))}),
    handler({"inputs": body}),
    handler({"inputs": text, "parameters": {"top_k": 5}}),
    handler({"inputs": "data:image/png;base64," + text, "parameters": None}),
]
print(json.dumps({"first": first, "answers": answers, "two": handler({"inputs": body, "parameters": {"top_k": 2}}),
                  "stage": handler.model.stage, "package": "pwl_hf" in sys.modules}))
"""


def test_pushed_handler_answers_at_once_and_grows_from_the_disk_without_the_package(
    hub, repo_id, repository, fresh_env, tmp_path
):
    image = png()
    right = expected(repository, image)
    push_folder(repository, Target(repo_id, inference_handler=True))
    deployed = snapshot_download(repo_id, local_dir=tmp_path / "repository")
    environment = {**fresh_env, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    printed = run_python(
        ENDPOINT + CALLS, environment, tmp_path, without_package=True, stdin=f"{deployed}\n{image.hex()}\n"
    )
    found = json.loads(printed.splitlines()[-1])
    assert found["first"] in right
    assert found["answers"] == [right[4]] * 4
    assert found["two"] == right[4][:2]
    assert found["stage"] == 4
    assert not found["package"]


REFUSALS = """
import logging, time
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
logging.getLogger("handler.EndpointHandler").addHandler(Keep())
body = bytes.fromhex(sys.stdin.readline())
assert handler.model.stream.wait(60)
for data in ({"inputs": "https://example.com/cat.png"}, {"inputs": b"text"}, {"inputs": 3}, {"instances": body},
             {"inputs": body, "parameters": {"stage": 2}}):
    try:
        handler(data)
    except ValueError as error:
        print(error)
    else:
        raise SystemExit(f"accepted {str(data):.60}")
answers = [handler({"inputs": body}) for _ in range(3)]
print(json.dumps({"answers": answers, "stage": handler.model.stage, "lines": lines}))
"""


def test_handler_refuses_what_is_no_image_and_stays_at_its_stage_if_a_shard_is_damaged(
    hub, repo_id, repository, fresh_env, tmp_path
):
    image = png()
    right = expected(repository, image)
    push_folder(repository, Target(repo_id, inference_handler=True))
    deployed = snapshot_download(repo_id, local_dir=tmp_path / "repository")
    damaged = tmp_path / "repository" / shard(2)
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    printed = run_python(ENDPOINT + REFUSALS, fresh_env, tmp_path, stdin=f"{deployed}\n{image.hex()}\n")
    *refusals, last = printed.splitlines()
    assert [
        wanted in line
        for wanted, line in zip(
            ("addresses are not followed", "no image that can be read", "got int", "got ['instances']", "'stage'"),
            refusals,
            strict=True,
        )
    ] == [True] * 5
    found = json.loads(last)
    assert found["answers"] == [right[1]] * 3
    assert found["stage"] == 1
    (line,) = found["lines"]
    assert "stays at stage 1" in line
    assert "sha256" in line
    assert shard(2) in line


def test_command_line_adds_the_handler_on_request_only(hub, repo_id, repository, monkeypatch):
    def push(*options):
        monkeypatch.setattr("sys.argv", ["pwl-hf", "push", str(repository), repo_id, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code

    push()
    assert not {"handler.py", "requirements.txt"} & set(hub.store.files(repo_id))
    push("--inference-handler")
    files = hub.store.files(repo_id)
    assert files["handler.py"].decode() == endpoint_files()["handler.py"]
    push()
    assert hub.store.files(repo_id)["handler.py"] == files["handler.py"], "a later push took it away"


def test_model_pushes_the_handler_to_where_its_processor_is(hub, repo_id, repository):
    model = tiny_model("vit")
    with pytest.raises(ValueError, match=r"needs an image processor.*preprocessor_config\.json.*push one to"):
        model.push_to_hub(repo_id, inference_handler=True)
    AutoImageProcessor.from_pretrained(repository).push_to_hub(repo_id)
    model.push_to_hub(repo_id, inference_handler=True)
    assert "handler.py" in hub.store.files(repo_id)
    PWLForImageClassification.from_pretrained(repo_id, stage=1).push_to_hub(f"{repo_id}-2", inference_handler=True)
    assert {"handler.py", "preprocessor_config.json"} <= set(hub.store.files(f"{repo_id}-2"))


def test_requirements_that_are_there_are_kept(hub, repo_id, repository):
    publish(hub, repo_id, repository)
    hub.store.commit(repo_id, {"requirements.txt": b"# mine\nopencv-python\nTorch==2.9.0"}, "requirements")
    push_folder(repository, Target(repo_id, inference_handler=True))
    lines = hub.store.files(repo_id)["requirements.txt"].decode().splitlines()
    assert lines[:3] == ["# mine", "opencv-python", "Torch==2.9.0"]
    assert [Requirement(line).name for line in lines[3:]] == [
        "huggingface_hub",
        "pillow",
        "safetensors",
        "transformers",
    ]


def test_requirements_are_those_of_the_package_and_not_the_package():
    found = [Requirement(line) for line in requires("pwl-hf") or []]
    ours = {r.name: r.specifier for r in found if r.marker is None or r.marker.evaluate({"extra": "torch"})}
    written = [Requirement(line) for line in endpoint_files()["requirements.txt"].splitlines()]
    assert {"torch", "transformers"} <= {requirement.name for requirement in written}
    for requirement in written:
        assert requirement.specifier == ours[requirement.name]


def test_base64_of_an_image_survives_line_breaks(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository.parent))
    namespace: dict = {"__name__": "handler", "__file__": str(repository / "handler.py")}
    exec(compile(endpoint_files()["handler.py"], "handler.py", "exec"), namespace)
    assert namespace["_image"](base64.encodebytes(png()).decode()).size == (24, 20)
