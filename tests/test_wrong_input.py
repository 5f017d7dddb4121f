"""Input that cannot be used ends a command with one line that names it, and status 2."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from pwl_hf.cli import main
from pwl_hf.conversion import convert_pair

SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 3,
}


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pwl-hf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pwl-hf: ")]
        assert len(lines) <= 1
        return int(ended.value.code or 0), "".join(lines)

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that can and cannot be joined, and a repository; not to be written to."""
    root = tmp_path_factory.mktemp("made")
    ViTForImageClassification(ViTConfig(**SIZE, intermediate_size=16)).save_pretrained(root / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(root / "vit")
    deit = DeiTConfig(**SIZE, intermediate_size=16)
    DeiTForImageClassification(deit).save_pretrained(root / "deit")
    DeiTForImageClassificationWithTeacher(deit).save_pretrained(root / "distilled")
    Dinov2ForImageClassification(Dinov2Config(**SIZE, use_swiglu_ffn=True)).save_pretrained(root / "swiglu")
    shutil.copytree(root / "vit", root / "timm")
    timm = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {}}
    (root / "timm" / "config.json").write_text(json.dumps(timm))
    for name, labels in (("from one", [1, 2, 3]), ("with a gap", [0, 1, 3]), ("negative", [-1, 0, 1])):
        shutil.copytree(root / "vit", root / name)
        config = json.loads((root / "vit" / "config.json").read_text())
        config |= {"id2label": {str(i): f"c{i}" for i in labels}, "label2id": {f"c{i}": i for i in labels}}
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "empty").mkdir()
    convert_pair(root / "vit", root / "vit", root / "repo", num_blocks=2)
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Splits of class folders."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        for number, label in enumerate("abc"):
            (root / split / label).mkdir(parents=True)
            Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(root / split / label / "0.png")
    return root


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta", "disk", "cpu:x", "", "CPU", "\x1b[31m"])
def test_device_that_is_not_there(run, made, device):
    code, line = run("evaluate", made / "repo", "--dataset", "digits", "--device", device)
    assert code == 2
    assert "device" in line
    assert "give another" in line
    assert "\x1b" not in line


JOINED = {
    "timm teacher": ("timm", "vit", "timm"),
    "timm student": ("vit", "timm", "timm"),
    "teacher with a distillation head": ("distilled", "deit", "DeiTForImageClassificationWithTeacher"),
    "student with a distillation head": ("deit", "distilled", "DeiTForImageClassificationWithTeacher"),
    "SwiGLU": ("swiglu", "swiglu", "cannot be cut into shards"),
}


@pytest.mark.parametrize("kind", JOINED)
def test_networks_that_cannot_be_joined(run, made, tmp_path, kind):
    teacher, student, said = JOINED[kind]
    code, line = run("convert", made / teacher, made / student, "-o", tmp_path / "out", "--num-blocks", 2)
    assert code == 2
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["from one", "with a gap", "negative"])
def test_labels_that_are_not_numbered_from_0(run, made, tmp_path, name):
    code, line = run("convert", made / name, made / name, "-o", tmp_path / "out", "--num-blocks", 2)
    assert code != 0
    assert "must be numbered from 0" in line


def huge(path: Path) -> None:
    """A file of a few bytes that says it is a picture of 3.6 gigapixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


BROKEN: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "huge": huge,
}


@pytest.mark.parametrize("command", ["convert", "evaluate"])
@pytest.mark.parametrize("kind", BROKEN)
def test_image_that_cannot_be_read_is_named(run, made, images, tmp_path, command, kind):
    BROKEN[kind](images / "test" / "b" / "0.png")
    if command == "convert":
        line = ["convert", made / "vit", made / "vit", "-o", tmp_path / "out", "--num-blocks", 2]
        code, said = run(*line, "--images", images / "test")
    else:
        code, said = run("evaluate", made / "repo", "--dataset", images, "--quiet")
    assert code == 2
    assert str(images / "test" / "b" / "0.png") in said


def test_hidden_files_are_no_images(run, made, images, tmp_path):
    (images / "test" / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
    (images / "test" / ".thumbnails").mkdir()
    (images / "test" / ".thumbnails" / "0.png").write_bytes(b"no image")
    line = ["convert", made / "vit", made / "vit", "-o", tmp_path / "out", "--num-blocks", 2]
    assert run(*line, "--images", images / "test") == (0, "")


@pytest.mark.parametrize("command", ["convert", "evaluate"])
def test_folder_without_images(run, made, tmp_path, command):
    line = {
        "convert": [
            "convert",
            made / "vit",
            made / "vit",
            "-o",
            tmp_path / "out",
            "--num-blocks",
            2,
            "--images",
            made / "empty",
        ],
        "evaluate": ["evaluate", made / "repo", "--dataset", made / "empty"],
    }[command]
    code, said = run(*line)
    assert code == 2
    assert str(made / "empty") in said


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_beside_class_folders_is_named(run, made, images, name):
    row = "file_name,note\na/0.png,x\n" if name.endswith("csv") else '{"file_name": "a/0.png", "note": "x"}\n'
    (images / "test" / name).write_text(row)
    code, said = run("evaluate", made / "repo", "--dataset", images, "--quiet")
    assert code == 2
    assert str(images / "test" / name) in said
    assert "move it away" in said


def test_split_that_lacks_a_class_says_label_names(run, made, images):
    shutil.rmtree(images / "train")
    shutil.rmtree(images / "test" / "c")
    code, said = run("evaluate", made / "repo", "--dataset", images, "--quiet")
    assert code != 0
    assert "label_names" in said


def test_offline_hub_ends_with_one_line(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, said = run("info", "org/never-seen")
    assert code == 1
    assert "offline" in said
