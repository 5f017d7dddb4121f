"""The repository in plain transformers, in processes where the package cannot be imported."""

from __future__ import annotations

import json
import shutil

import torch
from transformers import ViTImageProcessor

from tests.repository.helpers import contents, load, logits, publish, run_python, tree, weights

PRELUDE = """
import json, torch
from transformers import AutoConfig, AutoModelForImageClassification

def logits(model, size):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images).logits.tolist()

def message_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"

remote = {"trust_remote_code": True}
out = {}
"""
EPILOGUE = """
try:
    import pwl_hf
except ModuleNotFoundError:
    print("\\n" + json.dumps(out))
"""


def run(code: str, env: dict[str, str], folder, **options) -> dict:
    # Nobody is there to answer a question about trust.
    printed = run_python(PRELUDE + code + EPILOGUE, env, folder, without_package=True, stdin="", **options)
    return json.loads(printed.splitlines()[-1])


def same(found: list, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), expected)


def test_hub_repository_opens_and_grows_without_the_package(hub, repo_id, saved, fresh_env, tmp_path):
    publish(hub, repo_id, saved("vit"))
    code = f"""
repo = {repo_id!r}
out["untrusted"] = message_of(AutoModelForImageClassification.from_pretrained, repo, trust_remote_code=False)
out["unasked"] = message_of(AutoModelForImageClassification.from_pretrained, repo)
model, info = AutoModelForImageClassification.from_pretrained(repo, output_loading_info=True, **remote)
assert not any(info.values())
out["module"] = type(model).__module__
out["answers"] = [logits(model, 16)]
while model.stage < model.num_stages:
    model.load_next_stage()
    out["answers"].append(logits(model, 16))
model.set_stage(1)
model.set_sources("STST")
out["mask"] = logits(model, 16)
model.save_pretrained("out")
other = AutoModelForImageClassification.from_pretrained("out", stage=2, **remote)
out["saved"] = logits(other, 16)
second = AutoModelForImageClassification.from_pretrained(repo, stage=3, dtype="bfloat16", **remote)
assert second.dtype == torch.bfloat16 and second.stage == 3
out["config"] = type(AutoConfig.from_pretrained(repo, **remote)).__name__
out["refused"] = message_of(AutoModelForImageClassification.from_pretrained, repo, variant="fp16", **remote)
out["malformed"] = message_of(model.set_stage, 9)
"""
    found = run(code, fresh_env, tmp_path)
    for key in ("untrusted", "unasked"):
        assert "trust_remote_code=True" in found[key], found[key]
    assert found["module"].startswith("transformers_modules.")
    assert len(found["answers"]) == 5
    for k, answer in enumerate(found["answers"]):
        same(answer, logits(load(saved("vit"), stage=k)))
    whole = load(saved("vit"), keep_all=True)
    whole.set_sources("STST")
    same(found["mask"], logits(whole))
    same(found["saved"], logits(load(saved("vit"), stage=2)))
    # What remote code saves is what the package saves; the code is what was downloaded.
    assert contents(tmp_path / "out") == contents(saved("vit"))
    code = {path: content for path, content in tree(tmp_path / "out").items() if path.endswith(".py")}
    assert code.keys() >= {"modeling_pwl.py", "configuration_pwl.py", "modeling_vgg.py", "saving.py"}
    assert code.items() <= tree(saved("vit")).items()
    assert found["config"] == "PWLConfig"
    assert "variant does not apply" in found["refused"]
    assert "stage must be a whole number from 0 to 4" in found["malformed"]


def test_folder_of_a_vgg_pair_opens_without_the_package_and_so_does_its_teacher(
    hub, repo_id, saved, fresh_env, tmp_path
):
    folder = shutil.copytree(saved("pwl_vgg"), tmp_path / "vgg-pair")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    publish(hub, repo_id, folder)
    code = f"""
from PIL import Image
from transformers import pipeline

for name, source in (("folder", {str(folder)!r}), ("hub", {repo_id!r})):
    model = AutoModelForImageClassification.from_pretrained(source, stage=1, **remote)
    out[name] = [logits(model, 16)]
    model.load_next_stage()
    model.set_stage("teacher")
    out[name].append(logits(model, 16))
    out[name + " untrusted"] = message_of(
        AutoModelForImageClassification.from_pretrained, source, subfolder="teacher", trust_remote_code=False
    )
    teacher, info = AutoModelForImageClassification.from_pretrained(
        source, subfolder="teacher", output_loading_info=True, **remote
    )
    assert not any(info.values()), info
    out[name].append(logits(teacher, 16))
    out[name + " class"] = [type(teacher).__name__, type(teacher).__module__]
teacher.save_pretrained("plain")
again = AutoModelForImageClassification.from_pretrained("plain", **remote)
assert logits(again, 16) == logits(teacher, 16)
classify = pipeline("image-classification", model={str(folder)!r}, model_kwargs={{"stage": 2}}, **remote)
out["pipeline"] = [a["label"] for a in classify(Image.new("RGB", (16, 16), "red"))]
out["stage"] = classify.model.stage
model.save_pretrained("out")
"""
    found = run(code, fresh_env, tmp_path)
    for name in ("folder", "hub"):
        for answer, stage in zip(found[name], (1, "teacher", "teacher"), strict=True):
            same(answer, logits(load(folder, stage=stage)))
        assert "trust_remote_code=True" in found[f"{name} untrusted"]
        assert found[f"{name} class"][0] == "VGGForImageClassification"
        assert found[f"{name} class"][1].startswith("transformers_modules.")
    assert sorted(found["pipeline"]) == ["ant", "bee", "cat", "dog", "elk"]
    assert found["stage"] == 2
    assert weights(tmp_path / "out") == weights(folder)


def test_later_stages_of_remote_code_come_from_the_pinned_commit_and_the_same_code(
    hub, repo_id, saved, fresh_env, tmp_path
):
    """Code and weights of a later commit are not mixed into a model of an earlier one."""
    old = publish(hub, repo_id, saved("resnet"))
    broken = saved("resnet") / "modeling_pwl.py"
    hub.store.commit(
        repo_id,
        {
            "modeling_pwl.py": b"raise RuntimeError('code of another commit')\n" + broken.read_bytes(),
            "model.safetensors": b"x",
        },
    )
    code = f"""
model = AutoModelForImageClassification.from_pretrained({repo_id!r}, revision={old!r}, **remote)
model.load_next_stage()
out["answer"] = logits(model, 64)
"""
    same(run(code, fresh_env, tmp_path)["answer"], logits(load(saved("resnet"), stage=1)))
