"""A tier of low precision in a repository: what is fetched of it, and what is refused."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pwl_hf import FetchError, Manifest, PWLForImageClassification, RepositoryError, RetryPolicy
from pwl_hf.cli import app
from pwl_hf.downloading import download_stages
from pwl_hf.evaluation import evaluate_stages
from pwl_hf.modeling.arrays import packing
from pwl_hf.modeling.publishing.model_card import write_card
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.publishing.saving import write_metrics
from pwl_hf.modeling.repository import manifest
from pwl_hf.modeling.repository.layout import quantised_file, refinement_file
from pwl_hf.modeling.repository.manifest import Metric
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.sources import Sources
from pwl_hf.quantising import quantise_repository
from tests.evaluation.helpers import Images
from tests.hub import Fault
from tests.repository.helpers import (
    INDEX,
    bodies,
    edit_json,
    encoder,
    fingerprint_of,
    load,
    publish,
    refresh,
    shard,
    tree,
    weights,
)
from tests.tiny import tiny_images, tiny_model

LADDER = ["SSSS", "QSSS", "QQSS", "QQQS", "QQQQ", "TQQQ", "TTQQ", "TTTQ", "TTTT"]


def low(block: int) -> str:
    return quantised_file(block, 4)


def rest(block: int) -> str:
    return refinement_file(block, 4)


@pytest.fixture(scope="session")
def with_tier(tmp_path_factory):
    """A ViT's folder with a tier, not to be written to."""

    @cache
    def save() -> Path:
        folder = tmp_path_factory.mktemp("tier") / "repo"
        model = tiny_model("vit")
        model.add_tier()
        model.save_pretrained(folder)
        return folder

    return save()


@pytest.fixture
def on_hub(hub, repo_id, with_tier):
    publish(hub, repo_id, with_tier)
    return repo_id


@torch.no_grad()
def teacher_logits(folder: Path) -> torch.Tensor:
    return load(folder, stage="teacher")(tiny_images("vit")).logits


# --- What is fetched --------------------------------------------------------------------------------------------------


def test_a_stage_lists_what_it_adds(with_tier):
    index = json.loads((with_tier / INDEX).read_text())
    assert (index["format_version"], index["min_reader"], index["tier"]) == (3, 3, {"bits": 8})
    assert [stage["sources"] for stage in index["stages"]] == LADDER
    added = [{entry["path"] for entry in stage["files"]} for stage in index["stages"]]
    assert added[1:] == [
        {low(1), encoder(1)},
        {low(2), encoder(2)},
        {low(3), encoder(3)},
        {low(4)},
        *({rest(block)} for block in (1, 2, 3, 4)),
    ]
    assert {shard(block) for block in (1, 2, 3, 4)} < {entry["path"] for entry in index["other_files"]}


def test_without_a_tier_the_manifest_is_written_as_ever(tmp_path, with_tier):
    tiny_model("vit").save_pretrained(tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / INDEX).read_text())
    assert (plain["format_version"], "tier" in plain) == (1, False)
    # What was made for the weights stays right with a tier.
    assert plain["fingerprint"] == json.loads((with_tier / INDEX).read_text())["fingerprint"]


@torch.no_grad()
def test_a_stream_from_the_hub_fetches_refinements_and_no_shard(hub, on_hub, with_tier, tmp_path):
    model = load(on_hub, cache_dir=tmp_path)
    seen = []
    with hub.record() as requests, model.stream_stages(on_stage=lambda m, stage: seen.append((stage, m.sources))):
        pass
    assert seen == list(enumerate(LADDER))[1:]
    assert sorted(bodies(requests)) == sorted(
        [*map(low, (1, 2, 3, 4)), *map(rest, (1, 2, 3, 4)), *map(encoder, (1, 2, 3))]
    )
    assert torch.equal(model(tiny_images("vit")).logits, teacher_logits(with_tier))


@torch.no_grad()
@pytest.mark.parametrize(
    ("stage", "files"),
    [
        (0, []),
        (2, [low(1), low(2), encoder(2)]),
        (4, [low(k) for k in (1, 2, 3, 4)]),
        (5, [shard(1), low(2), low(3), low(4)]),
        ("teacher", [shard(k) for k in (1, 2, 3, 4)]),
    ],
)
def test_a_stage_by_itself_fetches_what_it_needs(hub, on_hub, with_tier, tmp_path, stage, files):
    with hub.record() as requests:
        model = load(on_hub, stage=stage, cache_dir=tmp_path)
    student = ["model.safetensors"] if "S" in model.sources else []
    assert sorted(set(bodies(requests)) - {"config.json", INDEX}) == sorted([*files, *student])
    assert torch.equal(model(tiny_images("vit")).logits, load(with_tier, stage=stage)(tiny_images("vit")).logits)


@torch.no_grad()
def test_a_shard_that_is_here_already_is_used(hub, on_hub, with_tier, tmp_path):
    load(on_hub, stage="teacher", cache_dir=tmp_path)
    model = load(on_hub, stage=4, cache_dir=tmp_path)
    with hub.record() as requests:
        model.load_next_stage()
    assert bodies(requests) == []
    assert model.sources == "TQQQ"


@torch.no_grad()
def test_low_precision_that_is_here_already_is_refined(hub, on_hub, with_tier, tmp_path):
    load(on_hub, stage=4, cache_dir=tmp_path)
    with hub.record() as requests:
        model = load(on_hub, stage="teacher", cache_dir=tmp_path)
    assert sorted(set(bodies(requests)) - {"config.json", INDEX}) == [rest(k) for k in (1, 2, 3, 4)]
    assert torch.equal(model(tiny_images("vit")).logits, teacher_logits(with_tier))


@pytest.mark.parametrize(("sources", "low"), [("QQQQ", ()), ("TTTT", ()), ("TQQQ", (1, 2))])
def test_files_of_a_stage_are_looked_up_once(with_tier, monkeypatch, sources, low):
    repository, asked = Repository.open(with_tier), []
    found = repository.manifest()
    real = Repository.local
    monkeypatch.setattr(Repository, "local", lambda self, path: asked.append(path) or real(self, path))
    repository.files_for(found, Sources(sources), low=low)
    assert len(asked) == len(set(asked))


@torch.no_grad()
def test_a_ladder_that_skips_low_precision_fetches_shards_there(hub, repo_id, tmp_path):
    model = tiny_model("vit")
    model.add_tier()
    model.set_schedule(["SSSS", "SSSQ", "TSSQ", "TQSQ", "TTTQ", "TTTT"])
    model.push_to_hub(repo_id)
    found, masks = load(repo_id, cache_dir=tmp_path), []
    with hub.record() as requests, found.stream_stages(on_stage=lambda m, _: masks.append(m.sources)):
        pass
    assert masks == list(model.schedule[1:])
    fetched = {path for path in bodies(requests) if not path.startswith("converters/")}
    assert fetched == {low(4), shard(1), low(2), rest(2), shard(3), rest(4)}
    assert torch.equal(found(tiny_images("vit")).logits, model.teacher(tiny_images("vit")).logits)


@torch.no_grad()
@pytest.mark.parametrize(("asked", "expected"), [(None, ["TTTT"]), (False, ["TTTT"]), (True, LADDER[1:])])
def test_low_precision_that_is_made_of_shards_saves_nothing_and_is_passed_over(hub, repo_id, tmp_path, asked, expected):
    whole = tiny_model("vit")
    whole.push_to_hub(repo_id)
    model, seen = load(repo_id, cache_dir=tmp_path), []
    model.add_tier()
    with hub.record() as requests:
        stream = model.stream_stages(on_stage=lambda m, _: seen.append(m.sources), low_precision=asked)
        assert stream.wait(60)
    assert (stream.exception, seen) == (None, expected)
    assert {path for path in bodies(requests) if path.startswith("teacher/model-")} == {shard(k) for k in (1, 2, 3, 4)}
    assert torch.equal(model(tiny_images("vit")).logits, whole.teacher(tiny_images("vit")).logits)


def test_everything_kept_needs_no_file_of_the_tier(hub, on_hub, tmp_path):
    with hub.record() as requests:
        model = load(on_hub, keep_all=True, cache_dir=tmp_path)
        model.set_stage(3)
    assert model.sources == "QQQS"
    assert not [path for path in bodies(requests) if path.startswith(("quantised/", "refinements/"))]


@torch.no_grad()
def test_a_download_of_all_stages_holds_the_teacher(on_hub, with_tier, tmp_path):
    download_stages(on_hub, "teacher", cache_dir=tmp_path / "cache", local_dir=tmp_path / "copy")
    assert not list((tmp_path / "copy" / "teacher").glob("model-*"))
    model = load(tmp_path / "copy", stage="teacher")
    assert torch.equal(model(tiny_images("vit")).logits, teacher_logits(with_tier))
    download_stages(on_hub, 2, cache_dir=tmp_path / "cache2", local_dir=tmp_path / "two")
    assert load(tmp_path / "two", stage=2).sources == "QQSS"


def test_a_push_adds_the_tier(hub, repo_id, tmp_path, with_tier):
    tiny_model("vit").push_to_hub(repo_id)
    model = load(repo_id, cache_dir=tmp_path / "cache")
    model.add_tier()
    model.push_to_hub(repo_id)
    found = load(repo_id, cache_dir=tmp_path / "other")
    assert found.schedule == tuple(LADDER)
    found.save_pretrained(tmp_path / "saved")
    assert {k: v for k, v in weights(tmp_path / "saved").items() if k != INDEX} == {
        k: v for k, v in weights(with_tier).items() if k != INDEX
    }


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(with_tier, tmp_path):
    for path, content in tree(with_tier).items():
        target = tmp_path / "repo" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return tmp_path / "repo"


def entries(index: dict) -> list[dict]:
    return [entry for stage in index["stages"] for entry in stage["files"]] + index["other_files"]


def drop(index: dict, path: str) -> None:
    for files in (*(stage["files"] for stage in index["stages"]), index["other_files"]):
        files[:] = [entry for entry in files if entry["path"] != path]


def move(index: dict, path: str, stage: int) -> None:
    entry = next(entry for entry in entries(index) if entry["path"] == path)
    drop(index, path)
    index["stages"][stage]["files"].append(entry)


MALFORMED = {
    "no word of the tier": (lambda i: i.pop("tier"), "nothing of a tier"),
    "a tier of other bits": (lambda i: i.update(tier={"bits": 3}), "tier.bits must be 8 or 4, got 3"),
    "a tier that is no object": (lambda i: i.update(tier=8), "tier must be dict"),
    "bits that are no number": (lambda i: i.update(tier={"bits": "8"}), "tier.bits must be int"),
    "a missing block in low precision": (lambda i: drop(i, low(2)), "does not list 'quantised/model-00002"),
    "a missing refinement": (lambda i: drop(i, rest(4)), "does not list 'refinements/model-00004"),
    "a missing shard": (lambda i: drop(i, shard(3)), "does not list 'teacher/model-00003"),
    "a refinement at another stage": (lambda i: move(i, rest(1), 1), "stage 1, it belongs to stage 5"),
    "a shard at a stage": (lambda i: move(i, shard(1), 5), None),
    "a step down": (lambda i: i["stages"][6].update(sources="QQQQ"), "better ones"),
    "an unknown letter": (lambda i: i["stages"][1].update(sources="XSSS"), "invalid sources mask 'XSSS'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_manifest_that_disagrees_with_itself_is_refused(copied, name):
    change, message = MALFORMED[name]

    def changed(index: dict) -> None:
        change(index)
        index["fingerprint"] = fingerprint_of(index)

    edit_json(copied / INDEX, changed)
    if message is None:
        assert Manifest.from_json((copied / INDEX).read_text()).tier == 8  # of use to none, and no harm
        return
    with pytest.raises(RepositoryError, match=re.escape(message)):
        load(copied)


def test_an_older_reader_says_upgrade(copied):
    edit_json(copied / INDEX, lambda index: index.update(min_reader=99))
    with pytest.raises(RepositoryError, match="upgrade pwl-hf"):
        load(copied)


def test_a_reader_of_the_format_before_says_upgrade(with_tier, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 2)
    with pytest.raises(RepositoryError, match="format version 3, this one reads up to 2: upgrade pwl-hf"):
        load(with_tier)


def test_a_split_that_is_not_exact_is_not_written(tmp_path, monkeypatch):
    tiny_model("vit").save_pretrained(tmp_path)
    before = tree(tmp_path)
    real = packing.scaled
    calls: list[int] = []

    def once_wrong(q, scales, dtype, out, scratch):
        real(q, scales, dtype, out, scratch)
        calls.append(0)
        if len(calls) == 5:
            # As a processor that computes another product when it merges.
            monkeypatch.setattr(packing, "merge", lambda low, *_: None)

    monkeypatch.setattr(packing, "scaled", once_wrong)
    with pytest.raises(RuntimeError, match="did not come back bit for bit"):
        quantise_repository(str(tmp_path), target=Target("none"))
    assert {path: content for path, content in tree(tmp_path).items() if path in before} == before
    assert load(tmp_path).tier is None
    monkeypatch.undo()
    quantise_repository(str(tmp_path), target=Target("none"))
    assert load(tmp_path).schedule == tuple(LADDER)


def test_a_repository_says_nothing_of_a_tier_to_a_reader_of_version_two(copied):
    """As written by hand: a tier in the manifest of version 2 is not one."""
    edit_json(copied / INDEX, lambda index: index.update(min_reader=2))
    with pytest.raises(RepositoryError, match="low precision"):
        load(copied)


SPOILED = {
    "other matrices": lambda t, m: ({**t}, {"matrices": m["matrices"].replace("24", "42", 1)}),
    "no matrices": lambda t, _: (t, {}),
    "a stream less": lambda t, m: ({k: v for k, v in t.items() if k != "planes.q"}, m),
    "a tensor more": lambda t, m: ({**t, "more": torch.zeros(1)}, m),
    "a stream of another dtype": lambda t, m: ({**t, "planes.q": t["planes.q"].to(torch.int32)}, m),
    "fewer scales": lambda t, m: ({**t, "planes.scales": t["planes.scales"][1:]}, m),
    "a stream that is none": lambda t, m: ({**t, "planes.q": torch.zeros_like(t["planes.q"])}, m),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_file_that_is_not_of_the_block_is_refused_and_the_model_stays(copied, name):
    from safetensors import safe_open

    path = copied / low(2)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, metadata = SPOILED[name](load_file(path), metadata)
    save_file(tensors, path, metadata)
    refresh(copied)
    model = load(copied, stage=1)
    images = tiny_images("vit")
    with torch.no_grad():
        before = model(images).logits
        with pytest.raises(RepositoryError, match="quantised/model-00002"):
            model.load_next_stage()
        assert (model.stage, model.sources) == (1, "QSSS")
        assert torch.equal(model(images).logits, before)


@pytest.mark.parametrize("path", [low(2), rest(2)])
@pytest.mark.parametrize("kind", ["corrupt", "truncate", "reset", "status"])
def test_a_fault_ends_the_stream_at_its_stage_and_another_goes_on(hub, on_hub, with_tier, tmp_path, path, kind):
    fault = Fault(kind, path=re.escape(path), times=None, **({"status": 503} if kind == "status" else {}))
    model = load(on_hub, cache_dir=tmp_path, retry=RetryPolicy(tries=2, first_wait=0))
    with hub.faulty(fault):
        stream = model.stream_stages()
        assert stream.wait(60)
    assert isinstance(stream.exception, RepositoryError | FetchError)
    assert path in str(stream.exception)
    assert model.sources == ("QSSS" if path == low(2) else "TQQQ")
    with model.stream_stages():
        pass
    with torch.no_grad():
        assert torch.equal(model(tiny_images("vit")).logits, teacher_logits(with_tier))


# --- Tables, cards and commands ---------------------------------------------------------------------------------------


def test_stages_are_measured_and_described_by_their_masks(copied):
    data = Images(tiny_images("vit", 6), [0, 1] * 3)
    stepped, whole = (evaluate_stages(load(copied, **kwargs), data) for kwargs in ({}, {"keep_all": True}))
    assert [mask.sources for mask in stepped.masks] == LADDER
    assert stepped == whole
    write_metrics(copied, {k: [Metric("accuracy", k / 10, "d", "test", 10)] for k in range(9)})
    card = write_card(copied).read_text()
    assert "`Q` is a block of the teacher in 8 bits a weight" in card
    assert re.findall(r"`([SQT]{4})`", card) == LADDER


def test_info_shows_the_rungs(with_tier):
    printed = CliRunner().invoke(app, ["info", str(with_tier)]).output
    assert re.findall(r"\b[SQT]{4}\b", printed) == LADDER
    assert "the teacher in 8 bits too" in " ".join(printed.split())


@pytest.mark.parametrize("where", ["itself", "another folder", "the Hub"])
def test_the_command_adds_a_tier_to_a_repository(hub, repo_id, tmp_path, with_tier, where):
    folder, output = tmp_path / "plain", tmp_path / "tier"
    tiny_model("vit").save_pretrained(folder)
    write_card(folder)
    if where == "the Hub":
        publish(hub, repo_id, folder)
        arguments = [repo_id]
    else:
        arguments = [str(folder), *(["-o", str(output)] if where == "another folder" else [])]
    found = CliRunner().invoke(app, ["quantise", *arguments])
    assert found.exit_code == 0, found.output
    if where == "the Hub":
        model = PWLForImageClassification.from_pretrained(repo_id)
        model.save_pretrained(output)
    else:
        assert "QQQS" in found.output
    made = folder if where == "itself" else output
    assert {k: v for k, v in weights(made).items() if k != INDEX} == {
        k: v for k, v in weights(with_tier).items() if k != INDEX
    }
    if where == "itself":
        assert "8 bits a weight" in (folder / "README.md").read_text()


def test_the_command_refuses_other_bits_and_changes_nothing(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path)
    before = tree(tmp_path)
    found = CliRunner().invoke(app, ["quantise", str(tmp_path), "--bits", "5"])
    assert found.exit_code != 0
    assert "bits must be 8 or 4, got 5" in found.output + str(found.exception)
    assert tree(tmp_path) == before
