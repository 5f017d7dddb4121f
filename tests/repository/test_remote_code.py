"""The repository in plain transformers, in processes where the package cannot be imported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import ViTImageProcessor

from pwl_hf.cli import main
from pwl_hf.modeling.families.built_in import FAMILIES
from pwl_hf.upgrading import upgrade
from tests.repository.helpers import (
    contents,
    edit_json,
    load,
    logits,
    publish,
    read_json,
    run_python,
    tree,
    weights,
)
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]

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


def test_a_repository_holds_no_code_unless_it_is_asked_for(saved, standalone, hub, repo_id, fresh_env, tmp_path):
    assert not [path for path in tree(saved("vit")) if path.endswith(".py")]
    assert "auto_map" not in read_json(saved("vit") / "config.json")
    assert [path for path in tree(standalone("vit")) if path.endswith(".py")] == ["pwl_standalone.py"]
    assert weights(standalone("vit")) == weights(saved("vit"))
    code = f"""
out["without"] = message_of(AutoModelForImageClassification.from_pretrained, {str(saved("vit"))!r}, **remote)
"""
    assert "pwl" in run(code, fresh_env, tmp_path)["without"]
    load(saved("vit")).push_to_hub(repo_id)
    assert not [path for path in hub.store.files(repo_id) if path.endswith(".py")]
    assert 'pip install "pwl-hf[torch]"' in hub.store.files(repo_id)["README.md"].decode()
    load(saved("vit")).push_to_hub(repo_id, remote_code="standalone")
    assert [path for path in hub.store.files(repo_id) if path.endswith(".py")] == ["pwl_standalone.py"]
    assert "trust_remote_code=True" in hub.store.files(repo_id)["README.md"].decode()


def test_the_choice_stays_with_the_model_until_another_is_made(standalone, tmp_path):
    load(standalone("vit")).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "pwl_standalone.py").exists()
    assert contents(tmp_path / "again") == contents(standalone("vit"))
    load(standalone("vit")).save_pretrained(tmp_path / "without", remote_code="none")
    assert not (tmp_path / "without" / "pwl_standalone.py").exists()
    assert "auto_map" not in read_json(tmp_path / "without" / "config.json")
    with pytest.raises(ValueError, match="remote_code must be 'standalone' or 'none', got 'all'"):
        load(standalone("vit")).save_pretrained(tmp_path / "wrong", remote_code="all")
    assert not (tmp_path / "wrong").exists()


def test_a_family_of_ones_own_is_in_no_standalone_file(tmp_path):
    class OwnFamily(FAMILIES["vit"].__class__):
        pass

    model, library = tiny_model("vit"), FAMILIES["vit"]
    FAMILIES["vit"] = OwnFamily()
    try:
        with pytest.raises(ValueError, match="'vit' was registered by yours: give remote_code='none'"):
            model.save_pretrained(tmp_path / "new", remote_code="standalone")
        assert not (tmp_path / "new").exists()
        model.save_pretrained(tmp_path / "new")
    finally:
        FAMILIES["vit"] = library


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "resnet", "convnext", "swin", "pwl_vgg"])
def test_the_file_is_python_that_names_nothing_it_lacks_and_holds_its_own_family_alone(standalone, family, tmp_path):
    path = standalone(family) / "pwl_standalone.py"
    text = path.read_text()
    assert "Written by pwl-hf" in text
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.search(r"^\s*from \.", text, flags=re.MULTILINE)
    families = {"ViTFamily", "ResNetFamily", "SwinFamily", "ConvNextFamily", "VGGFamily"}
    held = {name for name in families if f"class {name}" in text}
    expected = {"deit": "ViTFamily", "dinov2": "ViTFamily", "vit": "ViTFamily", "resnet": "ResNetFamily"}
    expected |= {"swin": "SwinFamily", "convnext": "ConvNextFamily", "pwl_vgg": "VGGFamily"}
    assert held == {expected[family]}
    assert "def save_repository" not in text
    # No part of it is hidden.
    assert max(map(len, text.splitlines())) <= 160


def test_hub_repository_opens_grows_and_streams_without_the_package(
    hub, repo_id, saved, standalone, fresh_env, tmp_path
):
    publish(hub, repo_id, standalone("vit"))
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
out["save"] = [message_of(model.save_pretrained, "out"), message_of(model.push_to_hub, "tester/out")]
second = AutoModelForImageClassification.from_pretrained(repo, stage=3, dtype="bfloat16", **remote)
assert second.dtype == torch.bfloat16 and second.stage == 3
out["config"] = type(AutoConfig.from_pretrained(repo, **remote)).__name__
out["refused"] = message_of(AutoModelForImageClassification.from_pretrained, repo, variant="fp16", **remote)
out["malformed"] = message_of(model.set_stage, 9)
third = AutoModelForImageClassification.from_pretrained(repo, stream=True, **remote)
assert third.stream.wait(60) and third.stream.exception is None
out["streamed"] = logits(third, 16)
import os
out["files"] = os.listdir(".")
"""
    (tmp_path / "cwd").mkdir()
    found = run(code, fresh_env, tmp_path / "cwd")
    for key in ("untrusted", "unasked"):
        assert "trust_remote_code=True" in found[key], found[key]
    assert found["module"].startswith("transformers_modules.")
    assert len(found["answers"]) == 5
    for k, answer in enumerate(found["answers"]):
        same(answer, logits(load(saved("vit"), stage=k)))
    same(found["streamed"], logits(load(saved("vit"), stage="teacher")))
    whole = load(saved("vit"), keep_all=True)
    whole.set_sources("STST")
    same(found["mask"], logits(whole))
    for message in found["save"]:
        assert 'ImportError: this needs the package: pip install "pwl-hf[torch]"' in message
    assert found["files"] == []
    assert found["config"] == "PWLConfig"
    assert "variant does not apply" in found["refused"]
    assert "stage must be a whole number from 0 to 4" in found["malformed"]


def test_the_first_answer_takes_three_requests_more_than_with_the_package_at_most(
    hub, repo_id, standalone, fresh_env, tmp_path
):
    publish(hub, repo_id, standalone("vit"))
    with hub.record() as requests:
        load(repo_id, cache_dir=tmp_path / "cache")
    with_package = len(requests)
    code = f"AutoModelForImageClassification.from_pretrained({repo_id!r}, **remote)"
    with hub.record() as requests:
        run(code, fresh_env, tmp_path)
    assert len(requests) <= with_package + 3, [f"{r.method} {r.path}" for r in requests]


@pytest.mark.slow  # As the repository of the Hub above, with a network of ours.
def test_folder_of_a_vgg_pair_opens_without_the_package_and_so_does_its_teacher(
    hub, repo_id, standalone, fresh_env, tmp_path
):
    folder = shutil.copytree(standalone("pwl_vgg"), tmp_path / "vgg-pair")
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


@pytest.mark.slow
def test_a_teacher_that_transformers_lacks_opens_from_a_repository_without_other_code(saved, fresh_env, tmp_path):
    folder = saved("pwl_vgg")
    assert [path for path in tree(folder) if path.endswith(".py")] == ["modeling_vgg.py"]
    code = f"""
teacher = AutoModelForImageClassification.from_pretrained({str(folder)!r}, subfolder="teacher", **remote)
out["answer"] = logits(teacher, 16)
"""
    same(run(code, fresh_env, tmp_path)["answer"], logits(load(folder, stage="teacher")))


def test_later_stages_of_remote_code_come_from_the_pinned_commit_and_the_same_code(
    hub, repo_id, standalone, fresh_env, tmp_path
):
    """Code and weights of a later commit are not mixed into a model of an earlier one."""
    folder = standalone("resnet")
    old = publish(hub, repo_id, folder)
    broken = folder / "pwl_standalone.py"
    hub.store.commit(
        repo_id,
        {
            broken.name: b"raise RuntimeError('code of another commit')\n" + broken.read_bytes(),
            "model.safetensors": b"x",
        },
    )
    code = f"""
model = AutoModelForImageClassification.from_pretrained({repo_id!r}, revision={old!r}, **remote)
model.load_next_stage()
out["answer"] = logits(model, 64)
"""
    same(run(code, fresh_env, tmp_path)["answer"], logits(load(folder, stage=1)))


# --- Repositories of the first versions, which carried all modules --------------------------------------------------

OLD_MAP = {
    "AutoConfig": "configuration_pwl.PWLConfig",
    "AutoModelForImageClassification": "modeling_pwl.PWLForImageClassification",
}


@pytest.fixture
def old(copied):
    """A repository as the first versions saved it, with a file of the user's beside the code."""
    folder = copied("vit")
    with zipfile.ZipFile(ROOT / "tests/fixtures/remote_code_v1.zip") as code:
        code.extractall(folder)
        names = set(code.namelist())
    edit_json(folder / "config.json", lambda config: config.update(auto_map=OLD_MAP))
    (folder / "mine.py").write_text("# mine\n")
    return folder, names


def test_a_repository_with_all_modules_still_opens_without_the_package(old, fresh_env, tmp_path):
    folder, _ = old
    code = f"""
model = AutoModelForImageClassification.from_pretrained({str(folder)!r}, **remote)
model.set_stage("teacher")
out["answer"] = logits(model, 16)
"""
    same(run(code, fresh_env, tmp_path)["answer"], logits(load(folder, stage="teacher")))


@pytest.mark.parametrize("remote_code", ["none", pytest.param("standalone", marks=pytest.mark.slow)])
def test_upgrade_takes_the_old_modules_out_and_nothing_else(old, remote_code, fresh_env, tmp_path):
    folder, names = old
    before, expected = weights(folder), logits(load(folder, stage="teacher"))
    removed, commit = upgrade(str(folder), remote_code)
    assert (set(removed), commit) == (names, None)
    code = {path for path in tree(folder) if path.endswith(".py")}
    assert code == {"mine.py"} | ({"pwl_standalone.py"} if remote_code == "standalone" else set())
    assert weights(folder) == before
    assert torch.equal(logits(load(folder, stage="teacher")), expected)
    assert upgrade(str(folder), remote_code)[0] == []
    if remote_code == "standalone":
        answer = f"""
model = AutoModelForImageClassification.from_pretrained({str(folder)!r}, stage=4, **remote)
out["answer"] = logits(model, 16)
"""
        same(run(answer, fresh_env, tmp_path)["answer"], expected)


def test_upgrade_on_the_hub_is_one_commit(old, hub, repo_id):
    folder, names = old
    publish(hub, repo_id, folder)
    hub.store.commit(repo_id, {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
    before, head = hub.store.files(repo_id), hub.store.head(repo_id)
    removed, commit = upgrade(repo_id)
    assert set(removed) == names
    assert commit.oid == hub.store.head(repo_id) != head
    after = hub.store.files(repo_id)
    assert after.keys() == before.keys() - names
    changed = {path for path in after if after[path] != before[path]}
    assert changed <= {"config.json", "teacher/config.json", "README.md"}
    assert "Mine." in after["README.md"].decode()
    assert torch.equal(logits(load(repo_id)), logits(load(folder)))


def test_upgrade_from_the_command_line(old, monkeypatch, capsys):
    folder, names = old
    monkeypatch.setattr(sys, "argv", ["pwl-hf", "upgrade", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert f"{len(names)} code file(s) removed" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["pwl-hf", "upgrade", str(folder), "--remote-code", "all"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "remote_code must be" in capsys.readouterr().err
