"""An embedder that teacher and student share, without torch: every graph takes it from the one file."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import BertForSequenceClassification, ViTConfig, ViTForImageClassification

from pwl_hf import PWLForImageClassification, PWLForSequenceClassification, RepositoryError, runtime
from pwl_hf.modeling.graphs.index import INDEX_FILE, TEACHER_GRAPH, GraphIndex
from pwl_hf.modeling.repository.source import Repository
from tests.hub import HubServer
from tests.modeling.driven import texts
from tests.modeling.shared_embedders import SHARED, plain
from tests.modeling.texts import bert_tokenizer
from tests.once import made_once
from tests.repository.helpers import bodies, publish
from tests.tiny import tiny_images

KINDS: dict[str, Any] = {"texts": PWLForSequenceClassification, "images": PWLForImageClassification}
EMBEDDED = {"texts": "bert.embeddings.word_embeddings.weight", "images": "vit.embeddings.cls_token"}


def _networks(kind: str) -> tuple[Any, Any]:
    if kind == "texts":
        return plain()
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        configs = [ViTConfig(**sizes, num_hidden_layers=depth, patch_size=4, num_labels=5) for depth in (8, 4)]
        teacher, student = (ViTForImageClassification(config).eval() for config in configs)
    student.vit.embeddings.load_state_dict(teacher.vit.embeddings.state_dict())
    return teacher, student


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a model that shares, with graphs, of texts in low precision too; not to be written to."""

    @cache
    def export(kind: str) -> Path:
        def make(folder: Path) -> None:
            words = bert_tokenizer(folder.parent / f"{folder.name}.words") if kind == "texts" else None
            model = KINDS[kind].from_teacher_student(
                *_networks(kind), num_blocks=4, share_embedder=True, processing_class=words
            )
            if kind == "texts":
                model.add_tier()
            model.export(folder, **({} if kind == "texts" else {"image_size": 16}))

        return made_once(tmp_path_factory, f"shared-embedder-{kind}", make)

    return export


def inputs(kind: str) -> dict[str, torch.Tensor]:
    if kind == "images":
        return {"pixel_values": tiny_images("vit")}
    return {**texts(), "token_type_ids": torch.zeros_like(texts()["input_ids"])}


def arrays(kind: str) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in inputs(kind).items()}


@torch.no_grad()
def by_torch(folder: Path, kind: str, stage: int) -> Any:
    return KINDS[kind].from_pretrained(folder, stage=stage)(**inputs(kind)).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_answers_as_torch_does(exported: Any, kind: str) -> None:
    folder = exported(kind)
    growing = runtime.load(folder, threads=1)
    for stage in range(growing.num_stages + 1):
        growing.set_stage(stage)
        alone = runtime.load(folder, stage=stage, threads=1).logits(**arrays(kind))
        np.testing.assert_array_equal(growing.logits(**arrays(kind)), alone)
        np.testing.assert_allclose(alone, by_torch(folder, kind, stage), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_both_networks_take_it_from_one_file(exported: Any, kind: str) -> None:
    folder = exported(kind)
    index = GraphIndex.from_json((folder / INDEX_FILE).read_bytes(), Repository.open(folder).manifest())
    takes = {path for path, graph in index.graphs.items() if SHARED in graph.tensors}
    assert {path for path, graph in index.graphs.items() if EMBEDDED[kind] in graph.tensors.get(SHARED, ())} == takes
    for path, graph in index.graphs.items():
        names = [name for file, found in graph.tensors.items() if file != SHARED for name in found]
        assert not any(name.endswith(EMBEDDED[kind]) for name in names), path
    assert len(takes) == 3  # the teacher's, that of its first block, and the student's
    external = onnx.load(folder / TEACHER_GRAPH, load_external_data=False).graph.initializer
    located = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    assert Path(SHARED).name in located


def test_a_stream_from_the_hub_fetches_it_once(exported: Any, hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    publish(hub, repo_id, exported("texts"))
    with hub.record() as requests:
        model = runtime.load(repo_id, stream=True, cache_dir=tmp_path, threads=1)
        with model.stream:
            pass
    assert bodies(requests).count(SHARED) == 1
    np.testing.assert_allclose(
        model.logits(**arrays("texts")), by_torch(exported("texts"), "texts", model.num_stages), rtol=0, atol=1e-5
    )


def test_a_damaged_one_is_refused_by_name(exported: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(exported("texts"), tmp_path / "copy")
    content = (folder / SHARED).read_bytes()
    (folder / SHARED).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RepositoryError, match=f"'{SHARED}' has sha256"):
        runtime.load(folder)


@torch.no_grad()
def test_the_teacher_is_a_plain_checkpoint_beside_its_graph(exported: Any) -> None:
    teacher = BertForSequenceClassification.from_pretrained(exported("texts") / "teacher")
    assert torch.equal(teacher(**texts()).logits, plain()[0](**texts()).logits)
