"""Manifests and configs that claim more than there can be are refused at once; below that, cost grows with length."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pwl_hf import PWLConfig, RepositoryError
from pwl_hf.modeling.bounds import MAX_BLOCKS, MAX_FILES, MAX_LABELS, MAX_LEVELS, MAX_TEXT_BYTES
from pwl_hf.modeling.loading import read_config
from pwl_hf.modeling.repository.layout import converter_file, teacher_shard
from pwl_hf.modeling.repository.manifest import FileEntry, Manifest
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.schedule import Schedule
from tests.repository.helpers import INDEX

# Seconds. Refusing or reading takes milliseconds; what grows without a bound would take far longer than this.
LONG = 60.0
SHA = "0" * 64


def entry(path: str, blocks: tuple[int, ...] = ()) -> FileEntry:
    return FileEntry(path, 1, SHA, 1, blocks)


def manifest(num_blocks: int, shared: int = 0) -> str:
    files = [entry("model.safetensors"), *(entry(teacher_shard(k, num_blocks)) for k in range(1, num_blocks + 1))]
    files += [entry(converter_file(d, i)) for i in range(1, num_blocks) for d in ("encoder", "decoder")]
    every = tuple(range(1, num_blocks + 1))
    files += [entry(f"teacher/shared-{i}.safetensors", every) for i in range(shared)]
    return Manifest.build("float32", Schedule.prefixes(num_blocks), files).to_json()


def index(num_blocks: int, files: list[dict[str, Any]], reader: int = 2, **other: Any) -> str:
    """A manifest that has the right form and lists these files at stage 0."""
    masks = ["T" * k + "S" * (num_blocks - k) for k in range(num_blocks + 1)]
    stages = [{"stage": k, "sources": mask, "files": [] if k else files} for k, mask in enumerate(masks)]
    head = {"format_version": reader, "min_reader": reader, "dtype": "float32", "fingerprint": ""}
    return json.dumps({**head, "stages": stages, **other})


@pytest.fixture
def copied(copied: Callable[[str], Path]) -> Path:
    """A copy of a saved repository."""
    return copied("vit")


FILE: dict[str, Any] = {"path": "a.safetensors", "bytes": 1, "sha256": SHA, "parameters": 1}
METRIC = {"name": "a", "value": 1, "dataset": "d", "split": "s", "n": 1}
DIFFERENT = [{**FILE, "path": f"{i}.safetensors"} for i in range(MAX_FILES + 1)]
SHARED = {**FILE, "path": "teacher/shared-a.safetensors"}
LONG_MASKS = [{"stage": k, "sources": letter * 10**6, "files": []} for k, letter in enumerate("ST")]
BOMBS: dict[str, tuple[Callable[[], str], str]] = {
    "one stage too many": (lambda: index(2 * MAX_BLOCKS + 1, []), f"{2 * MAX_BLOCKS + 1} stages"),
    "1600 stages": (lambda: index(1600, []), "1600 stages"),
    "1600 stages of version 1": (lambda: index(1600, [], reader=1), "1600 stages"),
    "masks of a million blocks": (lambda: index(1, [], stages=LONG_MASKS), "1000000 blocks"),
    "4,000 times one file": (lambda: index(2, [FILE] * 4000), "lists 'a.safetensors' more than once"),
    "many files": (lambda: index(2, DIFFERENT), f"{MAX_FILES + 1} files"),
    "many other files": (lambda: index(2, [], other_files=DIFFERENT), f"{MAX_FILES + 1} files"),
    "many attachments": (lambda: index(2, [], attachments=[FILE] * 10**5), "100000 files"),
    "many metrics": (lambda: index(2, []).replace("[]", json.dumps([]), 1).replace(
        '"files": []', f'"files": [], "metrics": {json.dumps([METRIC] * 10**5)}', 1), "100000 metrics"),
    "a file of many blocks": (lambda: index(2, [{**SHARED, "blocks": [1] * 10**6}]), "from 1 to 2, each once"),
    "a file of blocks that are none": (lambda: index(2, [{**SHARED, "blocks": [0, 3]}]), "from 1 to 2, each once"),
}  # fmt: skip


def signed(text: str) -> str:
    """Under the fingerprint that its files really have, where that matters."""
    try:
        Manifest.from_json(text)
    except RepositoryError as error:
        if "its fingerprint" in str(error):
            return json.dumps({**json.loads(text), "fingerprint": str(error).rpartition(" ")[2]})
    return text


@pytest.mark.parametrize("kind", BOMBS)
def test_manifest_of_more_than_there_can_be_is_refused_at_once(kind):
    make, match = BOMBS[kind]
    text = signed(make())
    started = time.monotonic()
    with pytest.raises(RepositoryError, match=match) as caught:
        Manifest.from_json(text)
    assert time.monotonic() - started < LONG
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("num_blocks", "shared"), [(MAX_BLOCKS, 0), (MAX_BLOCKS, 500), (4, MAX_FILES - 11)])
def test_the_largest_manifests_are_read_soon(num_blocks, shared):
    text = manifest(num_blocks, shared)
    started = time.monotonic()
    read = Manifest.from_json(text)
    assert time.monotonic() - started < LONG
    assert read.num_blocks == num_blocks


def nested(levels: int, kind: str) -> str:
    return ("[" * levels + "]" * levels) if kind == "list" else '{"a":' * levels + "1" + "}" * levels


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any] | str], str]] = {
    "blocks": (lambda c: {**c, "num_stages": 10**9}, "1000000000"),
    "blocks without cuts": (
        lambda c: {k: v for k, v in c.items() if "cuts" not in k} | {"num_stages": MAX_BLOCKS + 1},
        f"num_blocks must be at most {MAX_BLOCKS}",
    ),
    "cuts": (lambda c: {**c, "num_stages": 10**6, "teacher_cuts": list(range(10**6))}, "1000000 entries"),
    "keys": (lambda c: {**c, **{f"k{i}": i for i in range(10**5)}}, "entries"),
    "keys of a network": (
        lambda c: {**c, "student_config": {**c["student_config"], **{f"k{i}": i for i in range(10**5)}}},
        "100... entries|entries in 'student_config'",
    ),
    "levels of a network": (
        lambda c: {**c, "student_config": {**c["student_config"], "depths": [1] * 10**6}},
        "1000000 entries in 'depths'",
    ),
    "labels": (lambda c: {**c, "id2label": {str(i): "" for i in range(MAX_LABELS + 1)}}, "entries in 'id2label'"),
    "deep": (lambda c: {**c, "x": json.loads(nested(MAX_LEVELS, "list"))}, "more than 32 levels"),
    "deep objects": (lambda c: {**c, "teacher_config": json.loads(nested(900, "dict"))}, "more than 32 levels"),
    "a million levels": (lambda c: json.dumps(c)[:-1] + ', "x": ' + nested(10**6, "list") + "}", "not JSON"),
    "a million levels of objects": (lambda c: json.dumps(c)[:-1] + ', "x": ' + nested(10**6, "dict") + "}", "not JSON"),
    "a long number": (lambda c: json.dumps(c)[:-1] + ', "x": ' + "9" * 10**6 + "}", "not JSON"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_config_of_more_than_there_can_be_is_refused_at_once(copied, kind):
    change, match = CONFIGS[kind]
    changed = change(json.loads((copied / "config.json").read_text()))
    (copied / "config.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
    started = time.monotonic()
    with pytest.raises(RepositoryError, match=match):
        read_config(Repository.open(copied), PWLConfig, {})
    assert time.monotonic() - started < LONG


def test_config_that_transformers_reads_is_held_to_the_same(copied):
    text = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**text, "x": json.loads(nested(MAX_LEVELS, "list"))}))
    with pytest.raises(ValueError, match="more than 32 levels"):
        AutoConfig.from_pretrained(copied)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_text_file_longer_than_any_is_not_read(copied: Path, name):
    with (copied / name).open("r+b") as file:
        # Sparse: of such a length, and no larger on disk.
        file.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(RepositoryError, match=f"{name}' has {MAX_TEXT_BYTES + 1} bytes"):
        Repository.open(copied).fetch_text(name)
