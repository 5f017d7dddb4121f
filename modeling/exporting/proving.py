"""Comparing exported graphs with torch, and with each other, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ..errors import SaveError
from ..graphs.index import TEACHER_GRAPH, graphs_of
from ..graphs.session import GraphSession, run_chain
from ..graphs.tensors import MappedFile
from ..schedule import Schedule
from ..sources import Sources
from .graphs import Exported

# Of the range of the logits: what another order of sums may change in float32.
TOLERANCE = 1e-5


def prove(
    exported: Mapping[str, Exported],
    schedule: Schedule,
    files: Mapping[str, MappedFile],
    inputs: Mapping[str, torch.Tensor],
    logits: Callable[[Sources], torch.Tensor],
) -> dict[int, float]:
    """Run every stage in onnxruntime, with as many samples as the example has and with one.

    Args:
        exported: All graphs by path.
        schedule: The masks of the stages.
        files: The repository's weight files by path.
        inputs: Example inputs.
        logits: What torch says of them, by mask.

    Returns:
        The largest difference of each stage's logits from torch's, in parts of their range.

    Raises:
        SaveError: If a stage differs from torch by more than `TOLERANCE`, or the last one in a single bit from the
            teacher's own graph.
    """
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
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
        expected = logits(mask).numpy()
        differences[stage] = max(
            _difference(
                run_chain(sessions_of(mask), {name: value[:count] for name, value in given.items()}), expected[:count]
            )
            for count in (1, len(expected))
        )
        if not differences[stage] <= TOLERANCE:
            raise SaveError(
                f"nothing was written: the graphs of stage {stage} ({mask}) differ from torch by "
                f"{differences[stage]:.1e} of the logits' range, at most {TOLERANCE:.0e} is expected; report it, with "
                "the versions of torch and onnxruntime"
            )
    whole = session(TEACHER_GRAPH)(None, given)
    chained = run_chain(sessions_of(schedule.masks[-1]), given)
    if whole.tobytes() != chained.tobytes():
        raise SaveError(
            f"nothing was written: the chain of the teacher's blocks differs from {TEACHER_GRAPH} by "
            f"{np.abs(whole - chained).max():.1e}, where each bit should be the same; report it, with the version of "
            "onnxruntime"
        )
    return differences


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, in parts of the range of what is expected; NaN where either has one."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(np.ptp(expected), np.finfo(np.float32).tiny))
