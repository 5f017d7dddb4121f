"""A new process without a network: what was cached works, what was not says so."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import constants

from tests.repository.helpers import load, logits, publish, run_python

PRELUDE = """
import json, torch
from pwl_hf import PWLForImageClassification

def logits(model):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images).logits.tolist()
"""


def test_offline_process_reuses_the_stages_that_were_cached(hub, repo_id, saved, fresh_env, tmp_path):
    publish(hub, repo_id, saved("resnet"))
    online = load(repo_id, stage=1, cache_dir=Path(fresh_env["HF_HOME"], "hub"))
    online.load_next_stage()
    offline = f"""{PRELUDE}
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained({repo_id!r})
answers = [logits(model)]
for _ in range(2):
    model.load_next_stage()
    answers.append(logits(model))
try:
    model.load_next_stage()
except OSError as error:
    said = f"{{type(error).__name__}}: {{error}}"
assert logits(model) == answers[2] and model.stage == 2
model.set_stage(0)
assert logits(model) == answers[0]
try:
    PWLForImageClassification.from_pretrained("tester/never-seen")
except Exception as error:
    unseen = str(error)
model = PWLForImageClassification.from_pretrained({repo_id!r}, stage=2)
try:
    model.save_pretrained("partly")
except OSError as error:
    unsaved = str(error)
print(json.dumps([answers, said, unseen, unsaved]))
"""
    hub.clear_requests()
    answers, said, unseen, unsaved = json.loads(
        run_python(offline, {**fresh_env, "HF_HUB_OFFLINE": "1"}, tmp_path).splitlines()[-1]
    )
    assert hub.requests == []
    for k, answer in enumerate(answers):
        torch.testing.assert_close(torch.tensor(answer), logits(load(saved("resnet"), stage=k)))
    commit = hub.store.head(repo_id)
    assert said.startswith(
        f"FetchError: {repo_id}@{commit}: 'teacher/model-00003-of-00004.safetensors' could not be fetched: it is not "
        "in the local cache"
    )
    assert "tester/never-seen" in unseen
    assert "is not in the local cache" in unsaved


def test_fully_cached_model_is_saved_offline_although_its_processor_is_unknown(
    hub, repo_id, saved, monkeypatch, tmp_path
):
    """Whether the repository has an image processor cannot be asked, which must not cost anybody a training run."""
    publish(hub, repo_id, saved("vit"))
    load(repo_id, keep_all=True, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = load(repo_id, keep_all=True, cache_dir=tmp_path / "cache")
    with torch.no_grad():
        model.student.classifier.bias.add_(1)
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))
    assert load(tmp_path / "out", stage="teacher").stage == 4
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
