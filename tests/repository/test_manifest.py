"""`pwl_index.json`: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import contextlib
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwl_hf.modeling.errors import RepositoryError
from pwl_hf.modeling.repository.layout import converter_file, shared_file, statistics_file, teacher_shard
from pwl_hf.modeling.repository.manifest import FORMAT_VERSION, FileEntry, Manifest, Metric, stages_of_files
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.modeling.sources import Sources
from tests.repository.helpers import fingerprint_of

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
SIZE = st.integers(0, 2**50)
WORD = st.text(max_size=20)
METRICS = st.builds(Metric, WORD, st.floats(allow_nan=False, allow_infinity=False), WORD, WORD, st.integers(0, 10**9))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    num_stages = draw(st.integers(1, 6))
    paths = ["model.safetensors", *(teacher_shard(k, num_stages) for k in range(1, num_stages + 1))]
    paths += [converter_file(d, i) for d in ("encoder", "decoder") for i in range(1, num_stages)]
    mixed = [mask for mask in Sources.all(num_stages) if mask.is_mixed]
    if mixed:
        paths += map(statistics_file, draw(st.lists(st.sampled_from(mixed), unique=True, max_size=4)))
    files = [FileEntry(path, draw(SIZE), draw(HEX), draw(SIZE)) for path in paths]
    if draw(st.booleans()):
        files.append(
            FileEntry(shared_file("x"), draw(SIZE), draw(HEX), draw(SIZE), (1,), draw(st.sampled_from([(), (1,)])))
        )
    metrics = draw(st.dictionaries(st.integers(0, num_stages), st.lists(METRICS, max_size=2).map(tuple), max_size=3))
    return Manifest.build(draw(st.sampled_from(["float32", "bfloat16"])), Schedule.prefixes(num_stages), files, metrics)


def example(num_stages: int = 2, *, shares: bool = False) -> dict[str, Any]:
    paths = ["model.safetensors", *(teacher_shard(k, num_stages) for k in range(1, num_stages + 1))]
    paths += [converter_file(d, i) for d in ("encoder", "decoder") for i in range(1, num_stages)]
    paths += [statistics_file(Sources("T" + "S" * (num_stages - 1)))]
    files = [FileEntry(path, 10, f"{i:064x}", 3) for i, path in enumerate(paths)]
    if shares:
        files.append(FileEntry(shared_file("with-student"), 10, "f" * 64, 3, (1,), (1,)))
    metrics = {1: (Metric("accuracy", 0.5, "digits", "test", 360),)}
    return json.loads(Manifest.build("float32", Schedule.prefixes(num_stages), files, metrics).to_json())


def read(data: Any, *, sign: bool = False) -> Manifest:
    """Read it; with `sign` under the fingerprint that its files really have."""
    if sign:
        data["fingerprint"] = fingerprint_of(data)
    return Manifest.from_json(json.dumps(data))


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_round_trip_gives_an_equal_manifest(manifest):
    text = manifest.to_json()
    again = Manifest.from_json(text)
    assert again == manifest
    assert again.to_json() == text
    assert Manifest.from_json(text.encode()) == manifest
    assert again.fingerprint == fingerprint_of(json.loads(text))


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_every_prefix_stage_needs_only_what_earlier_stages_and_it_list(manifest):
    for k in range(manifest.num_stages + 1):
        needed = {entry.path for entry in manifest.files_for(manifest.schedule.mask(k))}
        listed = {entry.path for stage in manifest.stages[: k + 1] for entry in stage.files}
        assert needed <= listed
        assert not any("decoder" in path for path in needed)


@settings(max_examples=60, deadline=None)
@given(manifests(), st.randoms(use_true_random=False))
def test_fingerprint_does_not_depend_on_order_or_metrics_but_on_every_hash(manifest, shuffle):
    data = json.loads(manifest.to_json())
    for stage in data["stages"]:
        shuffle.shuffle(stage["files"])
        stage["metrics"] = []
    assert read(data).fingerprint == manifest.fingerprint
    entry = shuffle.choice(manifest.files)
    for found in (e for stage in [*data["stages"], {"files": data["other_files"]}] for e in stage["files"]):
        if found["path"] == entry.path:
            found["sha256"] = entry.sha256[:-1] + ("0" if entry.sha256[-1] != "0" else "1")
    with pytest.raises(RepositoryError, match="fingerprint"):
        read(data)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(ANY_JSON)
def test_any_json_raises_nothing_but_repository_error(value):
    with pytest.raises(RepositoryError, match=r"pwl_index\.json"):
        Manifest.from_json(json.dumps(value))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_raise_nothing_but_repository_error(value):
    with pytest.raises(RepositoryError, match=r"pwl_index\.json"):
        Manifest.from_json(value)


STRANGE = [
    None, True, False, 0, 1, -1, 2**70, 10**400, 1.5, math.nan, math.inf, -0.0, "", "x", "T", "../x", "\x00",
    "\ud800", "model.safetensors", "statistics/TS.safetensors", "statistics/TTTTTT.safetensors", "a" * 5000,
    [], [[]], {}, {"stage": 0}, [{}] * 3, {"path": []}, "teacher/model-00001-of-00002.safetensors",
]  # fmt: skip


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in nested lists and dicts, as (container, key)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [spot for key in keys for spot in [(value, key), *spots(value[key])]]


def test_thousands_of_mutations_raise_nothing_but_repository_error():
    """Each is accepted as it is, with all that is read from it usable, or refused."""
    chance, accepted = random.Random(0), 0
    for _ in range(4000):
        data = example(chance.choice([1, 2, 3]), shares=chance.random() < 0.4)
        for _ in range(chance.choice([1, 1, 2, 4])):
            container, key = chance.choice(spots(data))
            action = chance.randrange(4)
            if action == 0:
                del container[key]
            elif action == 1 and isinstance(container, list):
                container.append(container[key])
            elif action == 2:
                _, other = chance.choice(spots(data))
                container[key] = other
            else:
                container[key] = chance.choice(STRANGE)
        sign = chance.random() < 0.7
        with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError, UnicodeError):
            if sign:
                data["fingerprint"] = fingerprint_of(data)
        try:
            manifest = Manifest.from_json(json.dumps(data))
        except RepositoryError as error:
            str(error).encode("utf-8", "backslashreplace")
            continue
        accepted += 1
        assert Manifest.from_json(manifest.to_json()) == manifest
        for k in range(manifest.num_stages + 1):
            assert manifest.files_for(manifest.schedule.mask(k))
    assert 50 < accepted < 3500


def test_text_cut_off_anywhere_raises_repository_error():
    text = json.dumps(example())
    for end in range(len(text)):
        with pytest.raises(RepositoryError):
            Manifest.from_json(text[:end])


@pytest.mark.parametrize("depth", [100, 900, 5000, 100_000])
def test_deep_nesting_raises_repository_error(depth):
    for text in ("[" * depth + "]" * depth, '{"stages":' * depth + "1" + "}" * depth):
        with pytest.raises(RepositoryError):
            Manifest.from_json(text)


def test_unknown_keys_are_ignored():
    data = example()
    expected = read(data)
    data |= {"later": {"a": 1}, "codec": "zstd"}
    data["stages"][0]["later"] = []
    data["stages"][0]["files"][0]["mirror"] = "elsewhere"
    data["stages"][1]["metrics"][0]["confidence"] = [0.4, 0.6]
    data["other_files"][0]["later"] = None
    assert read(data) == expected


def test_newer_format_that_old_readers_may_read_is_read_as_what_they_know_of_it():
    data = example() | {"format_version": 7}
    assert read(data) == read(example())
    assert json.loads(read(data).to_json()) == example()


@pytest.mark.parametrize("rest", ["kept", "changed beyond recognition"])
def test_larger_min_reader_says_upgrade(rest):
    newer = FORMAT_VERSION + 1
    data = {**example(), "min_reader": newer} if rest == "kept" else {"min_reader": newer, "blocks": "elsewhere"}
    says = f"format version {newer}, this one reads up to {FORMAT_VERSION}: upgrade pwl-hf"
    with pytest.raises(RepositoryError, match=says):
        read(data)


BAD_PATHS = [
    "../x.safetensors",
    "teacher/../../x.safetensors",
    "teacher/..",
    "/etc/x.safetensors",
    "//host/x.safetensors",
    "teacher\\x.safetensors",
    "C:x.safetensors",
    "C:/x.safetensors",
    "./x.safetensors",
    "teacher/./x.safetensors",
    "teacher//x.safetensors",
    "teacher/x.safetensors/",
    "",
    " ",
    ".",
    "model.bin",
    "config.json",
    "pwl_index.json",
    "modeling_pwl.py",
    ".safetensors.py",
    "x.safetensors\x00",
    "x\x00.safetensors",
    "x\n.safetensors",
    "x\u202e.safetensors",
    "\ud800.safetensors",
    "x?.safetensors",
    "x*.safetensors",
    "~/x.txt",
]


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize("place", ["stage", "other_files"])
def test_path_out_of_the_repository_raises(path, place):
    data = example()
    entry = {"path": path, "bytes": 1, "sha256": "0" * 64, "parameters": 0}
    (data["stages"][1]["files"] if place == "stage" else data["other_files"]).append(entry)
    with contextlib.suppress(UnicodeError):
        data["fingerprint"] = fingerprint_of(data)
    with pytest.raises(RepositoryError, match="must be a relative path") as refused:
        read(data)
    assert repr(path) in str(refused.value)


def test_file_listed_twice_raises():
    data = example()
    data["other_files"].append(data["stages"][0]["files"][0])
    with pytest.raises(RepositoryError, match=r"lists 'model.safetensors' more than once"):
        read(data, sign=True)


@pytest.mark.parametrize("path", ["model.safetensors", teacher_shard(2, 2), converter_file("encoder", 1)])
def test_file_that_a_stage_needs_and_nobody_lists_raises(path):
    data = example()
    for stage in data["stages"]:
        stage["files"] = [entry for entry in stage["files"] if entry["path"] != path]
    with pytest.raises(RepositoryError, match=f"does not list '{path}'"):
        read(data, sign=True)


@pytest.mark.parametrize("path", ["model.safetensors", teacher_shard(1, 2), statistics_file(Sources("TS"))])
@pytest.mark.parametrize("place", ["stage 2", "other_files"])
def test_file_listed_at_a_stage_it_does_not_belong_to_raises(path, place):
    data = example()
    moved = [entry for stage in data["stages"] for entry in stage["files"] if entry["path"] == path]
    for stage in data["stages"]:
        stage["files"] = [entry for entry in stage["files"] if entry["path"] != path]
    (data["stages"][2]["files"] if place == "stage 2" else data["other_files"]).extend(moved)
    with pytest.raises(RepositoryError, match=f"lists '{path}' in {place}, it belongs to stage"):
        read(data, sign=True)


def test_stages_out_of_order_or_missing_raise():
    data = example()
    data["stages"].reverse()
    with pytest.raises(RepositoryError, match=r"stages\[0\] is of stage 2, expected 0"):
        read(data)
    data = example()
    del data["stages"][1]
    with pytest.raises(RepositoryError, match=r"stages\[1\] is of stage 2, expected 1"):
        read(data, sign=True)
    data = example()
    data["stages"] = data["stages"][:1]
    with pytest.raises(RepositoryError, match=r"has 1 stage\(s\), a PWL repository has at least 2"):
        read(data, sign=True)


@pytest.mark.parametrize("mask", ["TTS", "S", "SS", "TT"])
def test_statistics_of_an_impossible_mask_raise(mask):
    data = example()
    data["other_files"].append(
        {"path": f"statistics/{mask}.safetensors", "bytes": 1, "sha256": "0" * 64, "parameters": 0}
    )
    with pytest.raises(RepositoryError, match=f"statistics/{mask}.safetensors.*2 blocks"):
        read(data, sign=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", "0" * 63), ("sha256", "G" * 64), ("sha256", "A" * 64), ("sha256", 7), ("bytes", -1),
        ("bytes", "10"), ("bytes", 1.0), ("bytes", True), ("parameters", -1), ("parameters", None), ("path", 7),
    ],
)  # fmt: skip
def test_impossible_entry_raises_with_its_key(key, value):
    data = example()
    data["stages"][0]["files"][0][key] = value
    with pytest.raises(RepositoryError, match=key):
        read(data)


@pytest.mark.parametrize(
    ("key", "value"), [("value", math.nan), ("value", math.inf), ("value", 10**400), ("value", "0.5"), ("value", None),
                       ("n", 0.5), ("n", None), ("name", 1), ("dataset", None), ("split", [])]
)  # fmt: skip
def test_impossible_metric_raises_with_its_key(key, value):
    data = example()
    data["stages"][1]["metrics"][0][key] = value
    with pytest.raises(RepositoryError, match=f"metrics.{key}"):
        read(data)


def test_whole_number_as_a_metric_is_a_number():
    data = example()
    data["stages"][1]["metrics"][0]["value"] = 1
    assert read(data).stages[1].metrics[0].value == 1.0


def test_a_file_belongs_to_the_first_stage_that_needs_it():
    stages = stages_of_files(Schedule.prefixes(4), [])
    assert stages.get("model.safetensors") == 0
    assert stages.get("teacher/model-00003-of-00004.safetensors") == 3
    assert stages.get("converters/encoder-00003.safetensors") == 3
    assert stages.get("converters/decoder-00003.safetensors") is None
    assert stages.get("statistics/TTSS.safetensors") == 2
    assert stages.get("statistics/STSS.safetensors") is None
