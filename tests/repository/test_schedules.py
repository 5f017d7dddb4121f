"""Stages in another order than blocks have: saved, loaded, streamed, measured and described by their masks."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from pwl_hf import PWLForImageClassification, RepositoryError, StageError
from pwl_hf.cli import app
from pwl_hf.downloading import download_stages
from pwl_hf.evaluation import evaluate_stages
from pwl_hf.modeling.publishing.saving import write_metrics
from pwl_hf.modeling.repository.manifest import Metric
from tests.evaluation.helpers import Images
from tests.repository.helpers import INDEX, decoder, edit_json, encoder, load, shard, tree
from tests.tiny import tiny_images, tiny_model

LAST_FIRST = ["SSSS", "SSST", "SSTT", "STTT", "TTTT"]
IN_TWO_STEPS = ["SSSS", "STST", "TTTT"]


def rescheduled(masks: list[str], model_type: str = "vit") -> PWLForImageClassification:
    model = tiny_model(model_type)
    model.set_schedule(masks)
    return model


@pytest.fixture(params=[LAST_FIRST, IN_TWO_STEPS], ids=["last first", "in two steps"])
def masks(request):
    return request.param


@torch.no_grad()
def test_every_stage_is_the_path_of_its_mask(tmp_path, masks):
    images, original = tiny_images("vit"), rescheduled(masks)
    original.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert (model.schedule, model.num_stages, model.num_blocks) == (tuple(masks), len(masks) - 1, 4)
    for stage, mask in enumerate(masks):
        assert (model.stage, model.sources) == (stage, mask)
        assert torch.equal(model(images).logits, original(images, sources=mask).logits)
        assert torch.equal(load(tmp_path, stage=stage)(images).logits, original(images, sources=mask).logits)
        if stage < model.num_stages:
            assert model.load_next_stage() == stage + 1
    with pytest.raises(StageError, match=rf"at its last stage, {len(masks) - 1}: it is the teacher"):
        model.load_next_stage()
    model.set_stage(0)
    model.set_sources("TSSS")
    assert model.stage is None
    with pytest.raises(StageError, match="'TSSS' is no stage"):
        model.load_next_stage()


@torch.no_grad()
def test_a_stream_goes_through_its_stages(hub, repo_id, masks):
    rescheduled(masks).push_to_hub(repo_id)
    model, seen = load(repo_id), []
    with model.stream_stages(on_stage=lambda grown, stage: seen.append((stage, grown.sources))):
        pass
    assert seen == list(enumerate(masks))[1:]
    assert torch.equal(model(tiny_images("vit")).logits, model.teacher(tiny_images("vit")).logits)


def test_a_stage_lists_what_it_adds(tmp_path):
    rescheduled(IN_TWO_STEPS).save_pretrained(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    assert (index["format_version"], index["min_reader"]) == (2, 2)
    assert [stage["sources"] for stage in index["stages"]] == IN_TWO_STEPS
    added = [{entry["path"] for entry in stage["files"]} for stage in index["stages"]]
    assert added[1] == {shard(2), shard(4), decoder(1), encoder(2), decoder(3)}
    assert added[2] == {shard(1), shard(3)}


def test_the_usual_order_is_written_as_ever(tmp_path, saved):
    model = load(saved("vit"))
    model.set_schedule(LAST_FIRST)
    model.set_schedule(["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"])
    model.save_pretrained(tmp_path)
    assert tree(tmp_path) == tree(saved("vit"))


def test_weights_do_not_depend_on_the_order(tmp_path, saved):
    model = load(saved("vit"), stage=2)
    model.set_schedule(LAST_FIRST)
    assert (model.sources, model.stage) == ("TTSS", None)
    model.save_pretrained(tmp_path)
    before, after = tree(saved("vit")), tree(tmp_path)
    assert {path for path in before if before[path] != after[path]} == {INDEX}


def test_what_was_measured_stays_with_its_mask(tmp_path, saved):
    load(saved("vit")).save_pretrained(tmp_path)
    write_metrics(tmp_path, {k: [Metric("accuracy", k / 10, "d", "test", 10)] for k in range(5)})
    model = load(tmp_path)
    model.set_schedule(IN_TWO_STEPS)
    model.save_pretrained(tmp_path / "again")
    stages = json.loads((tmp_path / "again" / INDEX).read_text())["stages"]
    assert [[metric["value"] for metric in stage["metrics"]] for stage in stages] == [[0.0], [], [0.4]]


def test_evaluation_goes_by_the_schedule(tmp_path):
    model = rescheduled(LAST_FIRST)
    model.save_pretrained(tmp_path)
    data = Images(tiny_images("vit", 6), [0, 1] * 3)
    whole, stepped = evaluate_stages(model, data), evaluate_stages(load(tmp_path), data)
    assert [mask.sources for mask in stepped.masks] == LAST_FIRST
    assert whole == stepped
    assert stepped["SSTT"].over_previous.reference == "SSST"


def test_info_and_download_know_it(hub, repo_id, tmp_path):
    rescheduled(IN_TWO_STEPS).push_to_hub(repo_id)
    printed = CliRunner().invoke(app, ["info", repo_id]).output
    assert re.findall(r"\b[ST]{4}\b", printed) == IN_TWO_STEPS
    assert "4 blocks" in printed
    download_stages(repo_id, 1, local_dir=tmp_path)
    assert load(tmp_path, stage=1).sources == "STST"
    with pytest.raises(ValueError, match="from 0 to 2 or 'teacher', got 3"):
        download_stages(repo_id, 3, local_dir=tmp_path)


@torch.no_grad()
def test_statistics_come_with_the_stage_of_their_mask(tmp_path):
    images, original = tiny_images("resnet", 8), rescheduled(LAST_FIRST, "resnet")
    original.estimate_statistics(images, LAST_FIRST[1:-1])
    original.save_pretrained(tmp_path)
    files = [stage["files"] for stage in json.loads((tmp_path / INDEX).read_text())["stages"]]
    assert "statistics/SSTT.safetensors" in {entry["path"] for entry in files[2]}
    model = load(tmp_path)
    for stage, mask in enumerate(LAST_FIRST):
        model.set_stage(stage)
        assert torch.equal(model(images).logits, original(images, sources=mask).logits)


def test_what_is_no_schedule_is_refused_and_changes_nothing(saved):
    model = load(saved("vit"))
    for masks, message in [(["SSS", "TTT"], "3 letters, but the model has 4 blocks"), (["SSSS"], "got 1 mask")]:
        with pytest.raises(ValueError, match=message):
            model.set_schedule(masks)
    with model.stream_stages() as stream:
        with pytest.raises(StageError, match="stages are being streamed"):
            model.set_schedule(LAST_FIRST)
        stream.cancel()
    assert model.schedule == ("SSSS", "TSSS", "TTSS", "TTTS", "TTTT")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stages: stages[1].pop("sources"), r"stages\[1\].sources must be str, got None"),
        (lambda stages: stages[1].update(sources="STS"), "must be of one length"),
        (lambda stages: stages[1].update(sources="SXSS"), "invalid sources mask 'SXSS'"),
        (lambda stages: stages[1].update(sources="TSSS"), "SSTT comes after TSSS"),
        (lambda stages: stages[2]["files"].append(stages[1]["files"].pop()), "belongs to stage 1"),
    ],
)
def test_a_manifest_whose_schedule_cannot_be_is_refused(tmp_path, change, message):
    rescheduled(LAST_FIRST).save_pretrained(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    change(index["stages"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(Exception, match=message):
        load(tmp_path)


def test_a_stage_without_a_mask_is_named_once(tmp_path):
    rescheduled(LAST_FIRST).save_pretrained(tmp_path)
    edit_json(tmp_path / INDEX, lambda index: index["stages"][1].pop("sources") and None)
    with pytest.raises(RepositoryError, match=rf"^{tmp_path}: pwl_index.json: stages\[1\].sources must be str"):
        load(tmp_path)
