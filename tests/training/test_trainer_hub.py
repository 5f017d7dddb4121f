"""What a run sends to the Hub."""

from __future__ import annotations

import pytest
from transformers import AutoImageProcessor, ViTImageProcessorPil

from pwl_hf import Metric, PWLForImageClassification
from pwl_hf.modeling.publishing.saving import write_metrics
from tests.hub import Fault
from tests.slow import slow_but
from tests.training.tiny_runs import differences, everything, tiny_trainer

PROCESSOR = {"size": {"height": 16, "width": 16}}


def _trainer(folder, repo_id, **options):
    options = {"max_steps": 2, "push_to_hub": True, "hub_model_id": repo_id} | options
    return tiny_trainer(folder, processing_class=ViTImageProcessorPil(**PROCESSOR), **options)


def _comparable(files, repo_id):
    """Files by path; the card names its repository."""
    ours = {path: data for path, data in files.items() if path != ".gitattributes"}
    return ours | {"README.md": ours["README.md"].replace(repo_id.encode(), b"").replace(repo_id[7:].encode(), b"")}


def test_push_gives_the_repository_that_the_model_pushes(hub, repo_id, tmp_path):
    trainer = _trainer(tmp_path, repo_id, save_strategy="steps", save_steps=1)
    trainer.args.hub_strategy = "end"
    trainer.train()
    trainer.save_state()
    commit = trainer.push_to_hub()
    assert hub.store.commits(repo_id)[0].oid == commit.oid
    trainer.model.save_pretrained(tmp_path / "again")
    for folder in ("again", "again/teacher"):
        trainer.processing_class.save_pretrained(tmp_path / folder)
    other = f"{repo_id}-model"
    PWLForImageClassification.from_pretrained(tmp_path / "again").push_to_hub(other)
    pushed = _comparable(hub.store.files(repo_id), repo_id)
    assert pushed == _comparable(hub.store.files(other), other)
    assert "trainer_state.json" not in pushed
    assert not [path for path in pushed if path.startswith("checkpoint")]
    assert AutoImageProcessor.from_pretrained(repo_id, backend="pil").size["height"] == 16


def test_push_carries_what_was_measured_and_said(hub, repo_id, tmp_path):
    trainer = _trainer(tmp_path, repo_id)
    trainer.train()
    trainer.save_model()
    write_metrics(tmp_path, {0: [Metric(name="accuracy", value=0.5, dataset="noise", split="test", n=4)]})
    trainer.push_to_hub(dataset_tags="noise", license="mit", tags=["tiny"])
    card = hub.store.files(repo_id)["README.md"].decode()
    assert "50" in card
    assert "license: mit" in card
    assert "- tiny" in card
    assert "datasets:\n- noise" in card


def test_push_of_what_is_unknown_is_refused_before_anything_is_sent(hub, repo_id, tmp_path):
    trainer = tiny_trainer(tmp_path, hub_model_id=repo_id)
    with hub.record() as requests:
        with pytest.raises(TypeError, match="unexpected keyword argument 'tasks'"):
            trainer.push_to_hub(tasks="image-classification")
        with pytest.raises(ValueError, match="blocking=False does not apply"):
            trainer.push_to_hub(blocking=False)
    assert not requests


def test_saving_pushes_when_it_is_asked_for(hub, repo_id, tmp_path):
    trainer = _trainer(tmp_path, repo_id)
    trainer.train()
    assert "pwl_index.json" not in hub.store.files(repo_id)
    trainer.save_model()
    loaded = PWLForImageClassification.from_pretrained(repo_id, keep_all=True)
    assert not differences(everything(loaded), everything(trainer.model))


@pytest.mark.parametrize(
    "strategy", slow_but(["end", "checkpoint"], ["end", "every_save", "checkpoint", "all_checkpoints"])
)
def test_hub_strategies(strategy, hub, repo_id, tmp_path):
    trainer = _trainer(tmp_path, repo_id, hub_strategy=strategy, save_strategy="steps", save_steps=1)
    trainer.train()
    files = hub.store.files(repo_id)
    titles = [commit.title for commit in hub.store.commits(repo_id)]
    folders = {path.split("/")[0] for path in files if "checkpoint" in path}
    assert (
        folders
        == {
            "end": set(),
            "every_save": set(),
            "checkpoint": {"last-checkpoint"},
            "all_checkpoints": {"checkpoint-1", "checkpoint-2"},
        }[strategy]
    )
    if strategy == "end":
        assert "pwl_index.json" not in files
        return
    assert "Training in progress, step 1" in titles
    assert "Training in progress, step 2" in titles
    loaded = PWLForImageClassification.from_pretrained(repo_id, keep_all=True)
    assert not differences(everything(loaded), everything(trainer.model))
    for folder in folders:
        assert {f"{folder}/{name}" for name in ("optimizer.pt", "trainer_state.json", "pwl_index.json")} <= files.keys()
    if strategy == "checkpoint":
        for name in ("model.safetensors", "trainer_state.json"):
            assert files[f"last-checkpoint/{name}"] == (tmp_path / "checkpoint-2" / name).read_bytes()


def test_a_later_push_sends_no_teacher(hub, repo_id, tmp_path):
    trainer = _trainer(tmp_path, repo_id, hub_strategy="every_save", save_strategy="steps", save_steps=1)
    trainer.train()
    sent = [set(commit.operations.lfs) for commit in hub.store.commits(repo_id)][:2]
    assert [any(path.startswith("teacher/") for path in paths) for paths in sent] == [False, True]


def test_a_hub_that_refuses_does_not_end_the_run(hub, repo_id, tmp_path):
    trainer = _trainer(tmp_path, repo_id, hub_strategy="every_save", save_strategy="steps", save_steps=2, max_steps=3)
    hub.faults.append(Fault("status", path="/commit/", method="POST", status=403))
    trainer.train()
    assert trainer.state.global_step == 3
    assert not [fault for fault in hub.faults if fault.times]
    assert next(commit.title for commit in hub.store.commits(repo_id)) == "Training in progress, step 3"


def test_create_model_card_writes_ours(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.save_model()
    trainer.create_model_card(license="mit")
    card = (tmp_path / "README.md").read_text()
    assert "progressive-weight-loading" in card
    assert "license: mit" in card
