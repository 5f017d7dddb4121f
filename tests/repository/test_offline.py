"""A new process without a network: what was cached works, what was not says so."""

from __future__ import annotations

import json

import torch

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
    online = f"""{PRELUDE}
model = PWLForImageClassification.from_pretrained({repo_id!r}, stage=1)
model.load_next_stage()
print(json.dumps(logits(model)))
"""
    first = json.loads(run_python(online, fresh_env, tmp_path))
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
    assert answers[2] == first
    for k, answer in enumerate(answers):
        torch.testing.assert_close(torch.tensor(answer), logits(load(saved("resnet"), stage=k)))
    commit = hub.store.head(repo_id)
    assert said.startswith(
        f"LocalEntryNotFoundError: {repo_id}@{commit}: 'converters/encoder-00003.safetensors' is not in"
    )
    assert "tester/never-seen" in unseen
    assert "is not in the local cache" in unsaved


def test_fully_cached_model_is_saved_offline_with_a_warning_about_the_processor(
    hub, repo_id, saved, fresh_env, tmp_path
):
    """Whether the repository has an image processor cannot be asked, which must not cost anybody a training run."""
    publish(hub, repo_id, saved("vit"))
    code = f"""
import os
from pwl_hf import PWLForImageClassification

def run():
    model = PWLForImageClassification.from_pretrained({repo_id!r}, keep_all=True)
    return model

run()
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
model = run()
import torch
with torch.no_grad():
    model.student.classifier.bias.add_(1)
model.save_pretrained("out")
PWLForImageClassification.from_pretrained("out", stage="teacher")
"""
    run_python(code, fresh_env, tmp_path)
    assert (tmp_path / "out" / "pwl_index.json").exists()
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
