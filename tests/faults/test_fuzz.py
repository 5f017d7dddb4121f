"""A repository of arbitrary bytes: refused with an error of ours, or read as what its bytes say; never anything else.

The cases come from the files of `corpus/`, changed at random from a fixed seed. `from_pretrained` reads the files
through the same three readers: the manifest's, the config's and the weights'.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_bytes

from pwl_hf import Manifest, PWLConfig, PWLForImageClassification, RepositoryError
from pwl_hf.modeling.loading import read_config
from pwl_hf.modeling.parts import weights
from pwl_hf.modeling.parts.weights import WeightStore
from pwl_hf.modeling.repository import verification
from pwl_hf.modeling.repository.manifest import FileEntry
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.sources import PartId
from tests.faults.make_corpus import CORPUS, join, small_repository, split
from tests.repository.helpers import INDEX, STUDENT, encoder, load, logits, read_json, refresh, shard

ENCODER = PartId("encoder", 1)
PARTS = {
    encoder(1): ENCODER,
    STUDENT: PartId("student", 1),
    "teacher/model-00001-of-00002.safetensors": PartId("teacher", 1),
}
Case = tuple[str, bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound repository that the corpus was made from; not to be written to."""
    return small_repository(tmp_path_factory.mktemp("fuzz") / "repo")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "repo")


@pytest.fixture(scope="module")
def model(folder: Path) -> PWLForImageClassification:
    return load(folder)


_TOUCHING = {"open", "os.remove", "os.rename", "os.mkdir", "os.listdir", "os.scandir"}


class Opened:
    """What this process opens, while it is watched."""

    def __init__(self) -> None:
        self.paths: set[str] | None = None
        # There is no taking it back: it stays, and looks away.
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.paths is not None and event in _TOUCHING:
            self.paths |= {str(a) for a in arguments[:2] if isinstance(a, str | Path) and "/" in str(a)}

    @contextlib.contextmanager
    def watched(self) -> Iterator[set[str]]:
        self.paths = set()
        try:
            yield self.paths
        finally:
            self.paths = None


OPENED = Opened()


@pytest.fixture
def only_inside(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is touched but the folder, the notes, and Python's own modules; what safetensors opens counts too."""
    home = tmp_path / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    # Each case writes a new file: waiting for the clock to tick would be all that it does.
    monkeypatch.setattr(verification, "_TICK", 0)
    handed: set[str] = set()
    real = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", lambda path, **options: handed.add(str(path)) or real(path, **options))
    python = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).resolve().parents[2])]
    with OPENED.watched() as paths:
        yield
    # What names this start of the system is read along with the notes.
    allowed = (str(copied), str(home), str(verification._BOOT_ID), *python)
    assert handed | paths
    assert not [path for path in handed | paths if not path.startswith(allowed)]


def corpus(kind: str) -> list[Case]:
    found = [(path.name, path.read_bytes()) for path in sorted(CORPUS.glob(f"{kind}-*"))]
    assert len(found) > 20
    return found


def flipped(chance: random.Random, content: bytes) -> bytes:
    """Some bytes changed, removed, doubled or added."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        action = chance.randrange(5)
        if action == 0:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        elif action == 1:
            del changed[at : at + chance.choice([1, 1, 7, 100])]
        elif action == 2:
            changed[at:at] = changed[at : at + chance.choice([1, 8, 64])]
        elif action == 3:
            changed[at:at] = chance.choice([b"\0", b'"', b"}", b"{", b"9", b"-", b"e9", b",", b"\xff", b"null", b"[]"])
        else:
            digits = [i for i, byte in enumerate(changed[:4000]) if chr(byte).isdigit()]
            if digits:
                changed[chance.choice(digits)] = ord(chance.choice("0123456789"))
    return bytes(changed)


STRANGE = [None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e400, 0.5, "", "..", "/etc/passwd", "\0", "\ud800", [], {}, [[]]]


def spots(data: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as container and key."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [spot for key in keys for spot in [(data, key), *spots(data[key])]]


def rearranged(chance: random.Random, data: Any) -> Any:
    """Some values of a JSON document removed, exchanged or replaced."""
    for _ in range(chance.choice([1, 1, 2, 4])):
        places = spots(data)
        if not places:
            break
        container, key = chance.choice(places)
        other, other_key = chance.choice(places)
        action = chance.randrange(4)
        if action == 0:
            del container[key]
        elif action == 1:
            container[key], other[other_key] = other[other_key], container[key]
        elif action == 2:
            container[key] = chance.choice(STRANGE)
        else:
            container[key] = json.loads(json.dumps(other[other_key]))
    return data


def header_changed(chance: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    try:
        header, data = split(content)
        parsed = json.loads(header)
    except (struct.error, ValueError, RecursionError):
        return flipped(chance, content)
    if chance.random() < 0.5:
        return join(flipped(chance, header), data)
    return join(json.dumps(rearranged(chance, parsed)).encode(), data)


def document_changed(chance: random.Random, content: bytes) -> bytes:
    """A JSON document that says something else."""
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return flipped(chance, content)
    if chance.random() < 0.3:
        return flipped(chance, content)
    try:
        return json.dumps(rearranged(chance, parsed)).encode()
    except (ValueError, RecursionError):
        return content


def cases(kind: str, change: Callable[[random.Random, bytes], bytes], n: int) -> Iterator[Case]:
    """The corpus, then `n` changes of its files, half of them of the sound one."""
    chance, found = random.Random(kind), corpus(kind)
    sound = next(case for case in found if "-sound." in case[0])
    yield from found
    for i in range(n):
        name, content = sound if chance.random() < 0.5 else chance.choice(found)
        yield f"{name}, change {i}", change(chance, content)


def outcome(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What was read, or the error of ours that refused it; no other error is one."""
    try:
        return read(), None
    except RepositoryError as error:
        return None, str(error)


def store_for(model: PWLForImageClassification, folder: Path, path: str, content: bytes) -> WeightStore:
    """A store whose manifest says of a file what it is."""
    manifest = Manifest.from_json((folder / INDEX).read_text())
    true = FileEntry(path, len(content), hashlib.sha256(content).hexdigest(), 0)
    stages = tuple(
        replace(stage, files=tuple(true if entry.path == path else entry for entry in stage.files))
        for stage in manifest.stages
    )
    return WeightStore(Repository.open(folder), replace(manifest, stages=stages), model.parts.inventory)


def test_corpus_is_what_its_script_writes(tmp_path, monkeypatch):
    from tests.faults import make_corpus

    monkeypatch.setattr(make_corpus, "CORPUS", tmp_path / "corpus")
    make_corpus.main()
    known, made = ({path.name for path in root.iterdir()} for root in (CORPUS, tmp_path / "corpus"))
    assert known == made


def test_weights_changed_without_the_manifest_are_never_read(model, copied, only_inside):
    chance = random.Random(1)
    manifest = Manifest.from_json((copied / INDEX).read_text())
    for path, part_id in PARTS.items():
        content = (copied / path).read_bytes()
        for changed in (flipped(chance, content) for _ in range(400)):
            if changed == content:
                continue
            (copied / path).write_bytes(changed)
            store = WeightStore(Repository.open(copied), manifest, model.parts.inventory)
            with pytest.raises(RepositoryError, match=r"has \d+ bytes|has sha256"):
                store.read(store.inventory.parts[part_id])
        (copied / path).write_bytes(content)


def test_converter_of_the_right_hash_is_refused_or_read_as_an_independent_reader_does(model, copied, only_inside):
    expected = {"weight": (16, 24), "bias": (16,)}
    read, refused = 0, 0
    for name, content in cases("converter", header_changed, 1500):
        (copied / encoder(1)).write_bytes(content)
        store = store_for(model, copied, encoder(1), content)
        tensors, error = outcome(lambda: store.read(store.inventory.parts[ENCODER]))  # noqa: B023
        if error is not None:
            assert f"'{encoder(1)}'" in error, name
            refused += 1
            continue
        read += 1
        assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == {
            f"encoders.1.{n}": (shape, torch.float32) for n, shape in expected.items()
        }, name
        independent = {f"encoders.1.{n}": tensor for n, tensor in load_bytes(content).items()}
        assert independent.keys() == tensors.keys(), name
        for n, tensor in tensors.items():
            # Bit for bit, as a changed byte may make a NaN.
            assert tensor.numpy().tobytes() == independent[n].numpy().tobytes(), name
    assert read > 15
    assert refused > 800


@pytest.mark.parametrize("path", [STUDENT, "teacher/model-00001-of-00002.safetensors"])
def test_networks_file_of_the_right_hash_is_refused_or_has_every_tensor_as_it_must(model, copied, only_inside, path):
    chance, sound = random.Random(path), (copied / path).read_bytes()
    part_id = PARTS[path]
    specs = model.parts.inventory.parts[part_id].specs
    read = refused = 0
    for i in range(500):
        content = header_changed(chance, sound)
        (copied / path).write_bytes(content)
        store = store_for(model, copied, path, content)
        tensors, error = outcome(lambda: store.read(store.inventory.parts[part_id]))  # noqa: B023
        if error is not None:
            assert f"'{path}'" in error, i
            refused += 1
            continue
        read += 1
        assert {n: tuple(t.shape) for n, t in tensors.items()} == {n: spec.shape for n, spec in specs.items()}, i
        independent = load_bytes(content)
        for n, tensor in tensors.items():
            same = independent[specs[n].checkpoint_name]
            assert tensor.numpy().tobytes() == same.numpy().tobytes(), i
    assert refused > 250
    assert read > 5


def test_manifest_of_arbitrary_bytes_is_refused_or_says_the_same_when_written_again(copied, only_inside):
    read = refused = 0
    for name, content in cases("pwl_index", document_changed, 1500):
        (copied / INDEX).write_bytes(content)
        manifest, error = outcome(Repository.open(copied).manifest)
        if error is not None:
            assert INDEX in error, name
            assert str(copied) in error, name
            refused += 1
            continue
        read += 1
        assert Manifest.from_json(manifest.to_json()) == manifest, name
        assert all(not entry.path.startswith("/") and ".." not in entry.path for entry in manifest.files), name
    assert read > 30
    assert refused > 900


def test_config_of_arbitrary_bytes_is_refused_or_builds_a_network(copied, only_inside):
    repository = Repository.open(copied)
    read = refused = 0
    for name, content in cases("config", document_changed, 800):
        (copied / "config.json").write_bytes(content)
        config, error = outcome(lambda: read_config(repository, PWLConfig, {}))
        if error is not None:
            assert "config.json" in error, name
            assert str(copied) in error, name
            refused += 1
            continue
        read += 1
        assert isinstance(config, PWLConfig)
    assert read > 50
    assert refused > 200


def test_whole_repository_with_any_spoiled_document_loads_exactly_or_is_refused(copied, only_inside):
    expected = {stage: logits(load(copied, stage=stage)) for stage in range(3)}
    chance = random.Random(2)
    sound = {name: (copied / name).read_bytes() for name in ("config.json", INDEX)}
    spoiled = [(f"{kind}.json", case) for kind in ("config", "pwl_index") for case in corpus(kind)]
    chance.shuffle(spoiled)
    outcomes = {"loaded": 0, "refused": 0}
    for file, (name, content) in spoiled:
        for other, original in sound.items():
            (copied / other).write_bytes(original)
        (copied / file).write_bytes(content)
        try:
            model = load(copied)
            for stage in range(3):
                model.set_stage(stage)
                assert torch.equal(logits(model), expected[stage]), name
            outcomes["loaded"] += 1
        except RepositoryError:
            outcomes["refused"] += 1
    assert outcomes["loaded"] >= 2
    assert outcomes["refused"] > 40


def test_paths_that_lead_outside_are_refused_before_a_file_is_opened(copied, only_inside, tmp_path):
    # The file is there, and it is the right one: only its place is wrong.
    outside = tmp_path / "outside.safetensors"
    os.link(copied / encoder(1), outside)
    (copied / encoder(1)).unlink()
    index = json.dumps(read_json(copied / INDEX))
    for place in ("../outside.safetensors", str(outside), "converters/../../outside.safetensors"):
        (copied / INDEX).write_text(index.replace(encoder(1), place))
        with pytest.raises(RepositoryError, match="must be a relative path"):
            load(copied, stage=1)


def test_link_out_of_the_folder_is_followed_only_to_what_the_manifest_says(copied, tmp_path):
    # Links are how caches and shared disks work; the hash decides, not the place.
    shard_1 = copied / shard(1, 2)
    outside = tmp_path / "outside.safetensors"
    shutil.move(shard_1, outside)
    shard_1.symlink_to(outside)
    assert load(copied, stage=1).stage == 1
    outside.write_bytes(b"something else entirely")
    with pytest.raises(RepositoryError, match="has 23 bytes"):
        load(copied, stage=1)


def test_helpers_leave_the_sound_repository_sound(copied):
    refresh(copied)
    assert load(copied, stage="teacher").stage == 2
    with tempfile.TemporaryDirectory() as again:
        assert logits(load(copied)).equal(logits(load(small_repository(Path(again) / "repo"))))
