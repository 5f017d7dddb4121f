"""PWL and what one could do instead, each as files, and as what a process loads of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

import benchmarks.real.family  # noqa: F401  registers it
from benchmarks.real.exits import block_file
from benchmarks.real.network import CifarResNetForImageClassification
from benchmarks.recipes.definitions import Definitions
from benchmarks.recipes.runs import Run, Training, teacher_of
from benchmarks.recipes.workplace import Workplace
from benchmarks.speed.hub import STUDENT, TEACHER
from benchmarks.speed.launching import RUNTIME_CLASS, SESSION_CLASS
from benchmarks.speed.measures.alternatives_forms import INT8, quantised
from pwl_hf import PWLForImageClassification
from pwl_hf.exporting import export_repository
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.repository.layout import MANIFEST_FILE, STUDENT_FILE
from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.quantising import quantise_repository

PWL_WAY, RUNTIME_WAY, RUNGS_WAY = "PWL, torch", "PWL, runtime", "PWL with rungs, runtime"
SESSION_WAY = "the teacher, onnxruntime alone"
TEACHER_WAY, STUDENT_WAY, INT8_WAY = "the teacher", "the student for ever", "int8 first, then the teacher"
EXITS_WAYS = {"frozen": "early exit", "trained": "early exit, backbone trained too"}
_EXITS_FILE = Path(__file__).with_name("exits.yaml")
_SERVING = "benchmarks.real.serving"


@dataclass(frozen=True)
class Way:
    """PWL, or a rival.

    Args:
        network: The class of its `Task`.
        folder: Its files.
        hub_id: Its repository on the Hub.
        task: The `way` of its `Task`.
        sizes: Bytes of weights that each of its answers needs, from the first one on.
        arrays: The library of the `Task`'s images.
    """

    network: str
    folder: Path
    hub_id: str
    task: str
    sizes: Sequence[int]
    arrays: str = "torch"


def exits_trainings(definitions: Definitions, pair: str) -> dict[str, Training]:
    """The trainings of early exit on a pair's teacher, cut where PWL cuts it, by the name of their way."""
    entry = definitions.pairs[pair]
    data = definitions.data[entry.data]
    asked: Mapping[str, Any] = yaml.safe_load(_EXITS_FILE.read_text(encoding="utf-8"))
    found = {}
    for name, given in asked.items():
        options = {"dataset": data.options["dataset"], "cuts": entry.training["teacher_cuts"], **given}
        script, teacher = "benchmarks.real.exits_training", teacher_of(definitions, pair)
        found[EXITS_WAYS[name]] = Training(f"exits-{name}", script, options, data.files, teacher)
    return found


def ways(run: Run, exits: Mapping[str, Training], workplace: Workplace, folder: Path) -> dict[str, Way]:
    """All ways for a run of PWL, by name; their files are made if they are not there.

    Args:
        run: The run; it must have been trained.
        exits: The trainings of early exit, by the name of their way; those that were not trained are left out.
        workplace: Where all were trained.
        folder: Where further files are made.

    Raises:
        FileNotFoundError: If the run's model is not in the workplace.
    """
    model, teacher = workplace.model_folder(run.training), None
    if run.training.teacher is not None:
        teacher = workplace.model_folder(run.training.teacher)
    if model is None or teacher is None:
        raise FileNotFoundError(f"{run.training.name} is not in the work folder: train it first, as `recipes` does")
    pwl, int8 = _with_graphs(model, folder / run.key), _int8(teacher, folder / "int8")
    rungs = _with_graphs(_with_rungs(model, folder / f"{run.key}-tier"), folder / f"{run.key}-rungs")
    manifest = _manifest(pwl)
    stages = _so_far(manifest)
    whole = _size(teacher, STUDENT_FILE)
    plain = f"{CifarResNetForImageClassification.__module__}:{CifarResNetForImageClassification.__name__}"
    found = {
        PWL_WAY: Way(f"{_SERVING}:PWLForImageClassification", pwl, "org/pwl", "stream", stages),
        RUNTIME_WAY: Way(RUNTIME_CLASS, pwl, "org/pwl", "stream", stages, "numpy"),
        RUNGS_WAY: Way(RUNTIME_CLASS, rungs, "org/pwl-rungs", "stream", _so_far(_manifest(rungs)), "numpy"),
        # What the runtime owes to onnxruntime alone.
        SESSION_WAY: Way(SESSION_CLASS, pwl, "org/pwl", "first", [sum(_shards(pwl))], "numpy"),
        TEACHER_WAY: Way(plain, teacher, TEACHER, "first", [whole]),
        STUDENT_WAY: Way(plain, pwl / "student", STUDENT, "first", [_size(pwl / "student", STUDENT_FILE)]),
        INT8_WAY: Way(
            f"{_SERVING}:Int8First", int8, "org/int8", "grow", [_size(int8, INT8), _size(int8, INT8) + whole]
        ),
    }
    for name, training in exits.items():
        if (place := workplace.model_folder(training)) is not None:
            sizes = list(accumulate(_size(place, block_file(block + 1)) for block in range(manifest.num_blocks)))
            hub_id = f"org/{training.name}"
            found[name] = Way("benchmarks.real.exits:EarlyExit", place, hub_id, "grow", sizes)
    return found


def _manifest(folder: Path) -> Manifest:
    return Manifest.from_json((folder / MANIFEST_FILE).read_bytes())


def _so_far(manifest: Manifest) -> list[int]:
    """Bytes of weights until each stage."""
    return list(accumulate(sum(file.bytes for file in stage.files) for stage in manifest.stages))


def _with_rungs(model: Path, folder: Path) -> Path:
    """A run's repository with the teacher in low precision besides."""
    if not (folder / MANIFEST_FILE).is_file():
        quantise_repository(str(model), folder, target=Target(str(model)))
    return folder


def _with_graphs(model: Path, folder: Path) -> Path:
    """A run's repository with ONNX graphs, and the plain student in `student/`."""
    if not (folder / "student" / STUDENT_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        export_repository(str(model), folder, target=Target(str(model)))
        loaded = PWLForImageClassification.from_pretrained(folder)
        loaded.student.save_pretrained(folder / "student")
    return folder


def _int8(teacher: Path, folder: Path) -> Path:
    """The teacher, and its weights in int8."""
    if not (folder / INT8).is_file():
        network = CifarResNetForImageClassification.from_pretrained(teacher)
        network.save_pretrained(folder)
        save_file(quantised(network.state_dict()), folder / INT8, metadata={"format": "pt"})
    return folder


def _shards(folder: Path) -> list[int]:
    """The bytes of each shard of the teacher in a repository."""
    return [path.stat().st_size for path in (folder / "teacher").glob("*.safetensors")]


def _size(folder: Path, file: str) -> int:
    return (folder / file).stat().st_size
