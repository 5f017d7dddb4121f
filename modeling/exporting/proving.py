"""Comparing exported graphs with torch, and with each other, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from ..arrays.mapped import MappedFile
from ..errors import SaveError
from ..graphs.index import TEACHER_GRAPH, graphs_of, initialiser
from ..graphs.session import GraphSession, run_chain
from ..parts.parts import Parts
from ..parts.router import Router
from ..schedule import Schedule
from ..sources import Sources
from .examples import Examples
from .graphs import Exported

# Of the range of the logits: what another order of sums may change in float32.
TOLERANCE = 1e-5
# Of torch's own rounding, where that is more.
_NOISE = 2.0


def torch_logits(parts: Parts, schedule: Schedule, examples: Examples) -> dict[str, tuple[Logits, ...]]:
    """What torch says of each of the probes, by mask, in float32 and in float64.

    Args:
        parts: The parts of a model in float32; it is cast and cast back, which changes no value.
        schedule: The masks of its stages.
        examples: What the model is called with.
    """
    model = parts.networks.model

    def logits(probes: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, list[NDArray[Any]]]:
        # Another router each time: statistics of masks are other tensors after a cast.
        router = Router(parts)
        return {
            mask.mask: [router.of(mask.mask)(examples.given(probe)).logits.numpy() for probe in probes]
            for mask in schedule
        }

    with torch.no_grad():
        single = logits(examples.probes)
        model.double()
        try:
            double = logits(
                [{n: t.double() if t.is_floating_point() else t for n, t in p.items()} for p in examples.probes]
            )
        finally:
            model.float()
    return {name: tuple(map(_logits, found, double[name])) for name, found in single.items()}


class Logits(NamedTuple):
    """What torch says.

    Args:
        single: In float32, as it serves.
        double: In float64, as good as without rounding; in float32 where that overflows.
    """

    single: NDArray[Any]
    double: NDArray[Any]


def _logits(single: NDArray[Any], double: NDArray[Any]) -> Logits:
    # Attention that is always in float32 cannot hold the least number of float64, which masks are made of.
    is_worse = np.isfinite(single).all() and not np.isfinite(double).all()
    return Logits(single, single if is_worse else double)


def prove(
    exported: Mapping[str, Exported],
    schedule: Schedule,
    files: Mapping[str, MappedFile],
    examples: Examples,
    logits: Mapping[str, Sequence[Logits]],
) -> dict[int, float]:
    """Run every stage in onnxruntime on each of the probes, with as many samples as it has and with one.

    Args:
        exported: All graphs by path.
        schedule: The masks of the stages.
        files: The repository's weight files by path.
        examples: What the model is called with.
        logits: What torch says of the probes, by mask.

    Returns:
        The largest difference of each stage's logits from torch's in float64, in parts of their range.

    Raises:
        SaveError: If a weight does not lie where a graph says; if a stage differs from torch by more than `TOLERANCE`
            and by more than torch's own rounding, or the last one in a single bit from the teacher's own graph.
    """
    for found_graph in exported.values():
        _check_places(found_graph, files)
    given = [{name: tensor.numpy() for name, tensor in probe.items()} for probe in examples.probes]
    sessions: dict[str, GraphSession] = {}

    def session(path: str) -> GraphSession:
        if path not in sessions:
            graph, content = exported[path]
            sessions[path] = GraphSession(graph, content, files, onnxruntime.SessionOptions)
        return sessions[path]

    def sessions_of(mask: Sources) -> list[GraphSession]:
        return [session(path) for path in graphs_of(mask)]

    differences = {}
    for stage, mask in enumerate(schedule):
        expected = logits[mask.mask]
        # Of all probes: the logits of one sample may lie close together.
        extent = np.ptp(np.concatenate([found.double.ravel() for found in expected]))
        found = [
            _difference(
                run_chain(sessions_of(mask), {n: value[:count] for n, value in inputs.items()}), said.double, inputs
            )
            for inputs, said in zip(given, expected, strict=True)
            for count in {1, len(said.double)}
        ]
        # Not max(), which passes over a NaN that is not the first.
        scale = max(float(extent), float(np.finfo(np.float32).tiny))
        differences[stage] = float(np.max(found)) / scale
        noise = (
            float(
                np.max(
                    [
                        _difference(said.single, said.double, inputs)
                        for inputs, said in zip(given, expected, strict=True)
                    ]
                )
            )
            / scale
        )
        allowed = max(TOLERANCE, _NOISE * noise)
        if not differences[stage] <= allowed:
            raise SaveError(
                f"nothing was written: the graphs of stage {stage} ({mask}) differ from torch by "
                f"{differences[stage]:.1e} of the logits' range, at most {allowed:.1e} is expected; report it, with "
                "the versions of torch and onnxruntime"
            )
    for inputs in given:
        whole = session(TEACHER_GRAPH)(None, inputs)
        chained = run_chain(sessions_of(schedule.masks[-1]), inputs)
        if whole.tobytes() != chained.tobytes():
            raise SaveError(
                f"nothing was written: the chain of the teacher's blocks differs from {TEACHER_GRAPH} by "
                f"{np.abs(whole - chained).max():.1e}, where each bit should be the same; report it, with the version "
                "of onnxruntime"
            )
    return differences


def _check_places(exported: Exported, files: Mapping[str, MappedFile]) -> None:
    """Compare where a graph says that its weights lie with the files; sessions here get them by name."""
    graph, content = exported
    folder = PurePosixPath(graph.path).parent if graph.path == TEACHER_GRAPH else PurePosixPath()
    named = set()
    for tensor in onnx.ModelProto.FromString(content).graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        file, _, name = tensor.name.partition(":")
        place = files[file].places[name]
        where = {entry.key: entry.value for entry in tensor.external_data}
        found = ((folder / where["location"]).as_posix(), int(where["offset"]), int(where["length"]))
        is_same = (tensor.data_type, tuple(tensor.dims)) == (place.format.onnx, place.shape)
        if not is_same or found != (file, place.offset, place.length):
            raise SaveError(
                f"nothing was written: {graph.path!r} looks for {tensor.name!r} at {found[1]} of {found[0]!r}, which "
                f"is at {place.offset} of {file!r}; report it, with the version of onnx"
            )
        named.add(tensor.name)
    if named != {initialiser(file, name) for file, names in graph.tensors.items() for name in names}:
        raise SaveError(f"nothing was written: {graph.path!r} takes other weights than it should; report it")


def _difference(found: NDArray[Any], expected: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference from the first of what is expected, padding aside; NaN where either has one."""
    if found.shape[1:] != expected.shape[1:]:
        return float("inf")
    distance = np.abs(found - expected[: len(found)])
    # Of tokens there are logits for padding too, of which networks make what they like.
    kept = distance[inputs["attention_mask"][: len(found)] > 0] if distance.ndim > 2 else distance
    return float(kept.max())
