"""Small models of each mechanism, and their graphs as onnxruntime and onnx see them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import ResNetConfig, SwinConfig

from pwl_hf import PWLConfig, PWLForImageClassification, VGGConfig
from pwl_hf.modeling.arrays.mapped import MappedFile
from pwl_hf.modeling.graphs.index import INDEX_FILE, Graph, GraphIndex
from pwl_hf.modeling.graphs.session import GraphSession, run_chain
from pwl_hf.modeling.repository.source import Repository
from tests.tiny import tiny_images, tiny_model

# Of the range of the logits.
TOLERANCE = 1e-5
_LABELS = {"id2label": dict(enumerate("abcde")), "label2id": {name: i for i, name in enumerate("abcde")}}
_SIZES = {"resnet": 32, "pwl_vgg": 16, "swin": 8}


def _network(name: str) -> Any:
    if name == "resnet":
        return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **_LABELS)
    if name == "pwl_vgg":
        return VGGConfig(hidden_sizes=[8, 16], depths=[1, 1], **_LABELS)
    # 4 x 4 patches in windows of 2: the second layer of a level shifts them.
    return SwinConfig(
        image_size=8, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=2, **_LABELS
    )


def small_model(name: str) -> PWLForImageClassification:
    """The tiny ViT, or two levels of another family, cut into two blocks; no statistic is trivial.

    Teacher and student are of one size: each kind of layer is traced once, and no shape tells whose a weight is.
    """
    if name == "vit":
        return tiny_model("vit")
    networks = {f"{role}_config": _network(name) for role in ("teacher", "student")}
    config = PWLConfig(**networks, num_blocks=2)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = PWLForImageClassification(config).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def small_images(name: str, n: int = 2) -> torch.Tensor:
    """(n, 3, H, W) of its size."""
    if name == "vit":
        return tiny_images("vit", n)
    return torch.randn(n, 3, _SIZES[name], _SIZES[name], generator=torch.Generator().manual_seed(1))


def read_index(folder: Path) -> GraphIndex:
    return GraphIndex.from_json((folder / INDEX_FILE).read_bytes(), Repository.open(folder).manifest())


def models_of(folder: Path) -> dict[str, onnx.ModelProto]:
    """Every graph of a repository by path, without its weights."""
    paths = sorted(path for path in folder.rglob("*.onnx"))
    return {p.relative_to(folder).as_posix(): onnx.load(p, load_external_data=False) for p in paths}


def locations(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    """The external data of each initialiser of a graph."""
    tensors = (tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL)
    return {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in tensors}


def mapped(folder: Path, graphs: Iterator[Graph] | tuple[Graph, ...]) -> dict[str, MappedFile]:
    return {file: MappedFile(folder / file) for graph in graphs for file in graph.tensors}


def sessions(folder: Path, stage: int) -> list[GraphSession]:
    """The sessions of a stage's graphs."""
    graphs = read_index(folder).graphs_for(stage)
    files = mapped(folder, graphs)
    return [GraphSession(g, (folder / g.path).read_bytes(), files, onnxruntime.SessionOptions) for g in graphs]


def run_stage(folder: Path, stage: int, images: torch.Tensor) -> NDArray[Any]:
    return run_chain(sessions(folder, stage), {"pixel_values": images.numpy()})


def plain_session(path: Path) -> onnxruntime.InferenceSession:
    """A graph as anyone opens it."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def difference(found: NDArray[Any], expected: torch.Tensor | NDArray[Any]) -> float:
    """The largest one, in parts of the range of what is expected."""
    expected = np.asarray(expected)
    return float(np.abs(found - expected).max() / np.ptp(expected))


def torch_logits(folder: Path, stage: int, images: torch.Tensor, **kwargs: Any) -> NDArray[Any]:
    """What the model says, loaded at a stage in float32."""
    model = PWLForImageClassification.from_pretrained(folder, stage=stage, dtype=torch.float32, **kwargs)
    with torch.no_grad():
        return model(images).logits.numpy()


def in_reverse(content: bytes) -> bytes:
    """The same safetensors file with its tensors in reverse order, and a longer header."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    moved, body = {}, b""
    for name, item in reversed(header.items()):
        begin, end = item["data_offsets"]
        moved[name] = {**item, "data_offsets": [len(body), len(body) + end - begin]}
        body += data[begin:end]
    text = json.dumps({"__metadata__": {"format": "pt", "by": "another"}, **moved}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def assert_equals_torch(folder: Path, batches: Mapping[int, torch.Tensor]) -> None:
    """Every stage of an exported repository equals torch, for each batch; the teacher's graph its chain, to the bit."""
    stages = range(len(read_index(folder).stages))
    for stage in stages:
        model = PWLForImageClassification.from_pretrained(folder, stage=stage, dtype=torch.float32)
        made = sessions(folder, stage)
        for images in batches.values():
            with torch.no_grad():
                expected = model(images).logits
            found = run_chain(made, {"pixel_values": images.numpy()})
            assert difference(found, expected) < TOLERANCE, stage
            if stage == stages[-1]:
                (whole,) = plain_session(folder / "teacher" / "model.onnx").run(None, {"pixel_values": images.numpy()})
                assert whole.tobytes() == found.tobytes()
