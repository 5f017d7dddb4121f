"""docs/tasks.md: its code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from pwl_hf import PWLForSequenceClassification, Sources
from pwl_hf.modeling.families.registry import FAMILIES
from tests.children import python
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import batch, network_config

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
SHOWN = re.findall(r"^```text\n(.*?)^```", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_first_block_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = bert_tokenizer(tmp_path / "words")
    for folder, model_type, role in (("my-bert", "bert", "teacher"), ("my-distilbert", "distilbert", "student")):
        AutoModelForSequenceClassification.from_config(network_config(model_type, role)).save_pretrained(
            tmp_path / folder
        )
        tokenizer.save_pretrained(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], str(DOCS), "exec"), {})
    assert capsys.readouterr().out == SHOWN[0]


@torch.no_grad()
def test_a_row_of_ones_own_is_enough_also_without_the_package(tmp_path: Path) -> None:
    same: Any = {"vocab_size": 50, "pad_token_id": 0, "mask_token_id": 4, "num_labels": 3}
    wide = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 4}
    narrow = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 3}
    configs = [AutoConfig.for_model("esm", **same, **size, max_position_embeddings=40) for size in (wide, narrow)]
    networks = [AutoModelForSequenceClassification.from_config(config).eval() for config in configs]
    exec(compile(BLOCKS[1], str(DOCS), "exec"), {})
    try:
        whole = PWLForSequenceClassification.from_teacher_student(*networks, num_blocks=3).eval()
        whole.save_pretrained(tmp_path, remote_code="standalone")
        model = PWLForSequenceClassification.from_pretrained(tmp_path)
        for mask in Sources.all(3):
            model.set_sources(str(mask))
            assert torch.equal(model(**batch("bert")).logits, whole(**batch("bert"), sources=str(mask)).logits)
    finally:
        del FAMILIES["esm"]
    torch.save(networks[0](**batch("bert")).logits, tmp_path / "expected.pt")
    torch.save(batch("bert"), tmp_path / "inputs.pt")
    done = python(
        "import torch, transformers\n"
        f"model = transformers.AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r}, "
        "trust_remote_code=True, stage='teacher')\n"
        f"inputs, expected = (torch.load({str(tmp_path)!r} + name) for name in ('/inputs.pt', '/expected.pt'))\n"
        "with torch.no_grad(): print(torch.equal(model(**inputs).logits, expected))\n"
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]
