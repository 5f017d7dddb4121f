"""The command line, as a user runs it."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessorPil

import pwl_hf
from pwl_hf import PWLForImageClassification
from pwl_hf.cli import main
from tests.tiny import tiny_images, tiny_model, tiny_pair

COMMANDS = ["info", "convert", "push", "download", "evaluate", "export", "demo"]


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pwl-hf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_neither_torch_nor_transformers(command):
    code = (
        "import sys; sys.argv[0] = 'pwl-hf'; from pwl_hf.cli import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules); print('HEAVY', heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert "HEAVY set()" in done.stdout


def test_version_names_what_a_report_needs_and_imports_none_of_it():
    code = (
        "import sys; sys.argv = ['pwl-hf', '--version']; from pwl_hf.cli import app\n"
        "try: app()\nexcept SystemExit as ended: print('STATUS', ended.code)\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'onnxruntime'} & set(sys.modules); print('HEAVY', heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"pwl-hf {pwl_hf.__version__} (Python {platform.python_version()}, huggingface_hub ")
    assert f"torch {version('torch')}" in first
    assert rest == ["STATUS 0", "HEAVY set()"]


def test_info_shows_every_stage(run, folder):
    code, out, _ = run("info", folder)
    assert code == 0
    for sources in ("SSSS", "TSSS", "TTSS", "TTTS", "TTTT"):
        assert sources in out


def test_info_of_what_is_no_repository_ends_with_one_line(run, tmp_path):
    code, _, err = run("info", tmp_path)
    assert code == 1
    assert "pwl_index.json" in err
    assert "Traceback" not in err


def test_push_then_info_then_download_by_stage(run, hub, repo_id, folder, tmp_path):
    code, out, _ = run("push", folder, repo_id, "--private", "-m", "First")
    assert code == 0
    assert repo_id in out
    assert hub.store.commits(repo_id)[0].title == "First"
    assert run("info", repo_id)[0] == 0
    code, out, _ = run("download", repo_id, "--stage", "1", "--local-dir", tmp_path / "here")
    assert code == 0
    assert "3 weight file(s)" in out
    images = tiny_images("vit")
    model = PWLForImageClassification.from_pretrained(tmp_path / "here", stage=1)
    assert torch.equal(model(images).logits, tiny_model("vit")(images, sources="TSSS").logits)
    assert not (tmp_path / "here" / "teacher" / "model-00002-of-00004.safetensors").exists()


def test_download_imports_no_torch(hub, repo_id, fresh_env):
    tiny_model("vit").push_to_hub(repo_id)
    code = (
        f"import sys; sys.argv = ['pwl-hf', 'download', {repo_id!r}, '--stage', 'teacher']\n"
        "from pwl_hf.cli import app\n"
        "try: app()\nexcept SystemExit as ended: print('CODE', ended.code)\n"
        "print('TORCH', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=fresh_env, capture_output=True, text=True, check=True)
    assert "CODE 0" in done.stdout
    assert "TORCH False" in done.stdout


@pytest.mark.parametrize(("stage", "message"), [("9", "0 to 4"), ("soon", "whole number")])
def test_download_of_a_stage_that_does_not_exist_fails(run, hub, repo_id, stage, message):
    tiny_model("vit").push_to_hub(repo_id)
    code, _, err = run("download", repo_id, "--stage", stage)
    assert code != 0
    assert message in err


@pytest.fixture
def checkpoints(tmp_path):
    torch.manual_seed(0)
    for name, config in zip(("teacher", "student"), tiny_pair("vit"), strict=True):
        AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / name)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "teacher")
    for i in range(6):
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (20, 20, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def test_convert_makes_a_repository_with_processor_and_card(run, checkpoints):
    output = checkpoints / "pwl"
    code, out, err = run("convert", checkpoints / "teacher", checkpoints / "student", "--num-stages", 2, "-o", output)
    assert code == 0, err
    assert str(output) in out.replace("\n", "")
    images = tiny_images("vit")
    model = PWLForImageClassification.from_pretrained(output, stage="teacher")
    teacher = AutoModelForImageClassification.from_pretrained(checkpoints / "teacher")
    assert torch.equal(model(images).logits, teacher(images).logits)
    for name in ("README.md", "preprocessor_config.json", "teacher/preprocessor_config.json"):
        assert (output / name).is_file()


def test_convert_with_images_fits_the_converters(run, checkpoints, hub, repo_id):
    arguments = ["convert", checkpoints / "teacher", checkpoints / "student", "--num-stages", 2]
    images = ["--images", checkpoints / "images"]
    code, _, err = run(*arguments, "-o", checkpoints / "fitted", *images, "--push-to-hub", repo_id)
    assert code == 0, err
    fitted = PWLForImageClassification.from_pretrained(repo_id, keep_all=True)
    # The student's features are reached better than by any constant: the fit saw both networks.
    processor = AutoImageProcessor.from_pretrained(checkpoints / "fitted")
    opened = [Image.open(path) for path in sorted((checkpoints / "images").glob("*.png"))]
    pixels = processor(opened, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        of_teacher = fitted(pixels, sources="TT", output_hidden_states=True).hidden_states[0]
        of_student = fitted(pixels, sources="SS", output_hidden_states=True).hidden_states[0]
        error = (fitted.encoders["1"](of_teacher) - of_student).square().mean()
        constant = (of_student - of_student.mean((0, 1))).square().mean()
    assert error < 0.8 * constant


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_convert_refuses_a_network_without_a_head_unless_it_is_to_be_trained(run, checkpoints, role, caplog):
    AutoModelForImageClassification.from_pretrained(checkpoints / role).base_model.save_pretrained(checkpoints / role)
    line = ["convert", checkpoints / "teacher", checkpoints / "student", "-o", checkpoints / "out"]
    code, out, err = run(*line)
    assert code == 1
    assert f"the {role} " in err
    assert "lacks classifier.bias, classifier.weight" in err
    assert "--allow-new-head" in err
    assert "Traceback" not in err
    assert "saved" not in out
    assert not (checkpoints / "out").exists()
    with caplog.at_level("WARNING", "pwl_hf"):
        code, out, err = run(*line, "--allow-new-head")
    assert code == 0, err
    assert "drawn at random" in caplog.text
    assert "saved" in out
    assert PWLForImageClassification.from_pretrained(checkpoints / "out").num_labels == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_convert_refuses_weights_that_are_not_finite(run, checkpoints, value):
    network = AutoModelForImageClassification.from_pretrained(checkpoints / "teacher")
    with torch.no_grad():
        network.vit.layers[3].mlp.fc1.bias[2] = value
    network.save_pretrained(checkpoints / "teacher")
    code, _, err = run("convert", checkpoints / "teacher", checkpoints / "student", "-o", checkpoints / "out")
    assert code == 1
    assert "'vit.layers.3.mlp.fc1.bias' holds NaN or infinity" in err
    assert not (checkpoints / "out").exists()


def test_convert_refuses_a_dtype_that_cannot_hold_the_weights(run, checkpoints):
    network = AutoModelForImageClassification.from_pretrained(checkpoints / "student")
    with torch.no_grad():
        network.classifier.bias[0] = 1e5
    network.save_pretrained(checkpoints / "student")
    line = ["convert", checkpoints / "teacher", checkpoints / "student", "-o", checkpoints / "out", "--dtype"]
    code, _, err = run(*line, "float16")
    assert code == 1
    assert "the student's 'classifier.bias' would hold NaN or infinity in torch.float16" in err
    assert not (checkpoints / "out").exists()
    assert run(*line, "bfloat16")[0] == 0


def test_convert_of_two_families_says_why_not(run, checkpoints, tmp_path):
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(tiny_pair("convnext")[1]).save_pretrained(tmp_path / "other")
    code, _, err = run("convert", checkpoints / "teacher", tmp_path / "other", "-o", tmp_path / "out")
    assert code == 1
    assert "teacher and student cannot be joined after block 1: the teacher has a 4x4 grid" in err
    assert not (tmp_path / "out").exists()


def test_convert_keeps_what_is_in_its_folder_unless_told_otherwise(run, checkpoints):
    output = checkpoints / "mine"
    output.mkdir()
    kept = ("pytorch_model.bin", "notes.txt", "model-00001-of-00002.safetensors")
    for name in (*kept, "model.safetensors", "README.md"):
        (output / name).write_text("mine")
    pair = [checkpoints / "teacher", checkpoints / "student", "--num-stages", 2]
    code, _, err = run("convert", *pair, "-o", output)
    assert code == 1
    assert "model.safetensors" in err
    assert "--overwrite" in err
    assert {path.name for path in output.iterdir()} == {*kept, "model.safetensors", "README.md"}
    code, _, err = run("convert", *pair, "-o", output, "--overwrite")
    assert code == 0, err
    assert all((output / name).read_text() == "mine" for name in kept)
    assert "mine" in (output / "README.md").read_text()
    PWLForImageClassification.from_pretrained(output)


@pytest.mark.parametrize("place", ["teacher", "student", ".", "link", "student/../teacher"])
def test_convert_into_a_networks_folder_ends_with_one_line_and_leaves_it(run, checkpoints, place):
    (checkpoints / "link").symlink_to("teacher")
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    arguments = ["convert", checkpoints / "teacher", checkpoints / "student", "--num-stages", 2]
    code, _, err = run(*arguments, "-o", checkpoints / place, "--overwrite")
    assert code == 1
    assert "made from" in err
    assert {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()} == before


def test_push_and_download_over_other_files_need_overwrite(run, hub, repo_id, folder, tmp_path):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {"model.safetensors": b"mine"})
    assert run("push", folder, repo_id)[0] == 1
    assert run("push", folder, repo_id, "--overwrite")[0] == 0
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text("{}")
    assert run("download", repo_id, "--local-dir", tmp_path / "here")[0] == 1
    assert run("download", repo_id, "--local-dir", tmp_path / "here", "--overwrite")[0] == 0


def test_evaluate_writes_its_results_over_no_file_of_the_repository(run, folder):
    before = (folder / "config.json").read_bytes()
    for option, name in (("--output", "config.json"), ("--output", "model.safetensors")):
        code, _, err = run("evaluate", folder, "--dataset", "digits", option, folder / name)
        assert code == 1
        assert "of the repository that is measured" in err
    assert (folder / "config.json").read_bytes() == before


def test_a_name_that_is_no_folder_and_no_hub_id_is_refused_without_asking_a_hub(run, hub):
    for command in (("info", "nope"), ("evaluate", "nope", "--dataset", "digits"), ("download", "nope")):
        with hub.record() as requests:
            code, _, err = run(*command)
        assert code == 1
        assert "there is no folder 'nope', and a Hub id has the form 'org/name'" in err
        assert not requests
