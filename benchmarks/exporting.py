"""The `export` command: every family at its real size, exported in every dtype and compared with torch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.circumstances import circumstances
from benchmarks.store import Store
from pwl_hf.modeling.repository.files import write_text

DTYPES = ("float32", "bfloat16", "float16")
NAMES = ("vit-b", "deit-s", "dinov2-s", "resnet-50", "convnext-t", "swin-t", "vgg")
KIND = "exports"


def export(
    pair: Annotated[list[str] | None, typer.Option(help="A pair; may be given several times.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="A dtype; may be given several times.")] = None,
    output: Annotated[Path, typer.Option(help="The folder of results.")] = Path("benchmarks/results"),
    table_only: Annotated[bool, typer.Option("--table-only", help="Export nothing.")] = False,
) -> None:
    """Export every family at its real size with random weights: `export.json` and a table `export.md`."""
    for given, known, option in ((pair, NAMES, "--pair"), (dtype, DTYPES, "--dtype")):
        if unknown := sorted(set(given or ()) - set(known)):
            raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint=option)
    store = Store(output / "export.json", kinds=(KIND,))
    for name in () if table_only else pair or NAMES:
        for kind in dtype or DTYPES:
            typer.echo(f"{name}, {kind}", err=True)
            # In a process of its own, so that nothing is left of another's imports and memory.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
                store.add(KIND, f"{name}/{kind}", child.submit(measured, name, kind).result())
    text = render(store.read(KIND))
    write_text(output / "export.md", text)
    typer.echo(text)


def measured(name: str, dtype: str) -> dict[str, Any]:
    """Export a pair with random weights, and run its graphs on images that the export did not see.

    Args:
        name: The pair.
        dtype: The dtype that its weights are stored in.

    Returns:
        The entry for the store.
    """
    import numpy as np
    import onnxruntime
    import torch

    from pwl_hf import PWLForImageClassification
    from pwl_hf.modeling.arrays.mapped import MappedFile
    from pwl_hf.modeling.graphs.index import INDEX_FILE, TEACHER_GRAPH, GraphIndex, files_of
    from pwl_hf.modeling.graphs.session import GraphSession, run_chain
    from pwl_hf.modeling.repository.source import Repository

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # 1. The export.
        model, size = _model(name)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        began = time.perf_counter()
        model.export(folder, image_size=size)
        seconds = time.perf_counter() - began
        del model
        # 2. Each stage against the model that is loaded at it; at the last one the chain against the teacher's graph.
        manifest = Repository.open(folder).manifest()
        index = GraphIndex.from_json((folder / INDEX_FILE).read_bytes(), manifest)
        images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
        files = {file: MappedFile(folder / file) for file in files_of(index.graphs.values())}
        inputs, differences = {"pixel_values": images.numpy()}, []
        for stage in range(len(index.stages)):
            graphs = index.graphs_for(stage)
            sessions = [
                GraphSession(g, (folder / g.path).read_bytes(), files, onnxruntime.SessionOptions) for g in graphs
            ]
            found = run_chain(sessions, inputs)
            loaded = PWLForImageClassification.from_pretrained(folder, stage=stage, dtype=torch.float32)
            with torch.no_grad():
                expected = loaded(images).logits.numpy()
            differences.append(float(np.abs(found - expected).max() / np.ptp(expected)))
        whole = onnxruntime.InferenceSession(str(folder / TEACHER_GRAPH)).run(None, inputs)[0]
        sizes = [graph.bytes for graph in index.graphs.values()]
        return {
            "differences": differences,
            "is_whole": whole.tobytes() == found.tobytes(),
            "graphs": len(sizes),
            "graph_bytes": sum(sizes),
            "largest_graph": max(sizes),
            "weight_bytes": sum(entry.bytes for entry in manifest.files),
            "seconds": seconds,
            "onnx": {package: _version(package) for package in ("onnx", "onnxruntime", "onnxscript")},
            **circumstances(),
        }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _model(name: str) -> tuple[Any, int]:
    """A model of random weights whose statistics matter, and the size of its images."""
    import torch
    from torch import nn
    from transformers import ConvNextConfig, DeiTConfig, Dinov2Config, ResNetConfig, SwinConfig, ViTConfig

    from pwl_hf import PWLConfig, PWLForImageClassification, VGGConfig

    def plain(kind: Any, width: int, heads: int, **options: Any) -> Any:
        return kind(hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads, **options)

    narrow = {"depths": [1, 1, 1, 1], "hidden_sizes": [64, 128, 256, 512]}
    teacher, student, num_blocks, size = {
        "vit-b": lambda: (ViTConfig(), plain(ViTConfig, 192, 3), 4, 224),
        "deit-s": lambda: (plain(DeiTConfig, 384, 6), plain(DeiTConfig, 192, 3), 4, 224),
        # Trained at 518 pixels; at 224 its position embeddings are interpolated, as they usually are.
        "dinov2-s": lambda: (
            *(
                plain(Dinov2Config, width, heads, patch_size=14, image_size=518)
                for width, heads in ((384, 6), (192, 3))
            ),
            4,
            224,
        ),
        "resnet-50": lambda: (ResNetConfig(), ResNetConfig(**narrow), 4, 224),
        "convnext-t": lambda: (
            ConvNextConfig(),
            ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[48, 96, 192, 384]),
            4,
            224,
        ),
        "swin-t": lambda: (SwinConfig(), SwinConfig(embed_dim=48, depths=[1, 1, 2, 1]), 4, 224),
        "vgg": lambda: (VGGConfig(), VGGConfig(depths=[1] * 5, hidden_sizes=[32, 64, 128, 256, 256]), 5, 32),
    }[name]()
    torch.manual_seed(0)
    model = PWLForImageClassification(
        PWLConfig(teacher_config=teacher, student_config=student, num_blocks=num_blocks)
    ).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr, operator]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    if norms:
        images = torch.randn(8, 3, size, size)
        for stage in range(1, num_blocks):
            model.estimate_statistics(images, "T" * stage + "S" * (num_blocks - stage))
    return model, size


def render(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """All exports as Markdown; what has not been made is visibly empty.

    Args:
        stored: The store's entries by key.
    """
    parts = [
        "# Exports",
        "Made by `python -m benchmarks export`.",
        "Random weights at the real sizes, one thread. *From torch* is the largest difference of any stage's logits "
        "from those of the model that is loaded at it in float32, in parts of their range, over three images that the "
        "export did not see. *Chain* tells whether the teacher's blocks in a row give what its own graph gives in "
        "plain onnxruntime, bit for bit. *Seconds* are those of `model.export`, proof included.",
        _table(stored),
    ]
    if stored:
        latest = max(stored.values(), key=lambda entry: str(entry["date"]))
        versions = {"torch": latest["versions"]["torch"], **latest["onnx"]}
        named = ", ".join(f"{package} {number}" for package, number in versions.items())
        parts.append(f"{latest['device']}, {latest['date'][:10]}, {named}.")
    return "\n\n".join(parts) + "\n"


def _table(stored: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| pair | weights | from torch | chain | graphs | kB of graphs | the largest | MB of weights | seconds |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, dtype in ((name, dtype) for name in NAMES for dtype in DTYPES):
        found = stored.get(f"{name}/{dtype}")
        cells: Sequence[str] = ["not measured yet", *[""] * 6]
        if found is not None:
            cells = [
                f"{max(found['differences']):.1e}",
                "the same" if found["is_whole"] else "**differs**",
                f"{found['graphs']}",
                f"{found['graph_bytes'] / 1e3:,.0f}",
                f"{found['largest_graph'] / 1e3:,.0f}",
                f"{found['weight_bytes'] / 1e6:,.1f}",
                f"{found['seconds']:.0f}",
            ]
        lines.append(f"| {' | '.join([name, dtype, *cells])} |")
    return "\n".join(lines)
