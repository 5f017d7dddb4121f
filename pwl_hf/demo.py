"""The method in two minutes: a model of handwritten digits is trained, and then grows from student to teacher.

The one module of this package that looks into `pwl_hf.training`, and only when it runs: it tells a story from
end to end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pwl_hf.modeling.errors import PWLError
from pwl_hf.modeling.repository.layout import MANIFEST_FILE, STUDENT_FILE
from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.modeling.repository.output_folder import check_output

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

_NEEDED = ("accelerate", "datasets", "matplotlib", "sklearn")
_RECIPE = "vit-digits"
_CHART = "accuracy.png"
_SHOWN = 8
# Of a failed training's messages.
_LINES = 30


@dataclass(frozen=True)
class DemoStage:
    """A stage of the demo.

    Args:
        stage: Its number, 0 is the student.
        sources: Its mask, such as `"TTSS"`.
        added_bytes: The size of the weight files that it adds.
        total_bytes: The size of all weight files loaded so far.
        accuracy: The part of the test images that it names right.
    """

    stage: int
    sources: str
    added_bytes: int
    total_bytes: int
    accuracy: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Args:
        directory: The repository that was trained.
        stages: Its stages, the student first and the teacher last.
        chart: The picture of accuracy over bytes.
    """

    directory: Path
    stages: tuple[DemoStage, ...]
    chart: Path


def run_demo(
    output_dir: Path,
    seed: int = 0,
    quiet: bool = False,
    *,
    training_arguments: Sequence[str] = (),
    console: Console | None = None,
) -> DemoResult:
    """Train on the digits of scikit-learn, then load the result stage by stage, as a server would.

    Args:
        output_dir: The folder for the repository and the picture.
        seed: The seed of everything.
        quiet: Show no progress and none of the training's messages, unless it fails.
        training_arguments: More arguments for `training/train.py`.
        console: Where to print; the terminal by default.

    Returns:
        What was measured.

    Raises:
        OverwriteError: If the folder holds files that are not a PWL repository's and would be written over.
        PWLError: If a package of the extra `train` is missing, if the training fails, or if the last stage is
            not the teacher bit for bit.

    Example:

        >>> from pwl_hf.demo import run_demo
        >>> result = run_demo(Path("digits"))  # doctest: +SKIP
    """
    from rich.console import Console

    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise PWLError(f"the demo needs {', '.join(missing)}: pip install 'pwl-hf[train]'")
    directory = Path(output_dir)
    # The training asks the same of the rest.
    check_output(directory, {_CHART}, advice="give another folder")
    console = console or Console()
    _train(directory, seed, quiet, training_arguments)
    stages = _grow(directory, console)
    chart = _draw(stages, directory / _CHART)
    _say(console, f"The repository is {directory}, the picture of accuracy over bytes {chart}.")
    return DemoResult(directory, stages, chart)


def _train(directory: Path, seed: int, quiet: bool, arguments: Sequence[str]) -> None:
    # On the CPU and in one thread: the networks are tiny, and all machines then tell nearly the same story.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--num_cpu_threads_per_process", "1", "--module"]
    command = [*launch, "pwl_hf.training.train", _RECIPE, "--output_dir", str(directory), "--seed", str(seed)]
    command += ["--use_cpu", "true", *arguments]
    if quiet:
        command += ["--disable_tqdm", "true"]
    status, errors = _run(command, quiet=quiet)
    if status:
        said = "\n".join(errors.splitlines()[-_LINES:]) or "its messages are above"
        raise PWLError(f"the training ended with exit status {status}: {said}")


def _run(command: Sequence[str], *, quiet: bool) -> tuple[int, str]:
    """Run a command, which ends with this process: what it has started itself as well.

    Args:
        command: The command.
        quiet: Keep what it says, rather than show it.

    Returns:
        Its exit status, and what it said on stderr.
    """
    output = subprocess.PIPE if quiet else None
    with _raising_on_sigterm():
        # A session of its own: its children are not told when it is ended.
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True, start_new_session=True)
        try:
            _, errors = process.communicate()
        except BaseException:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            raise
    return process.returncode, errors or ""


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, by an exception; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _grow(directory: Path, console: Console) -> tuple[DemoStage, ...]:
    import torch
    from rich.table import Table
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from pwl_hf import PWLForImageClassification
    from pwl_hf.data.digits import load_splits
    from pwl_hf.data.processing import to_tensor

    manifest = Manifest.from_json((directory / MANIFEST_FILE).read_bytes())
    sizes = [sum(file.bytes for file in stage.files) for stage in manifest.stages]
    _, test = load_splits()
    processor = AutoImageProcessor.from_pretrained(directory)  # type: ignore[no-untyped-call]
    pixel_values, labels = to_tensor(test.images, processor), torch.tensor(test.labels)

    model = PWLForImageClassification.from_pretrained(directory)
    _say(console, f"\nThe student answers after one file, {STUDENT_FILE}: {sizes[0]:,} of {sum(sizes):,} bytes.")
    names = [model.config.id2label[i] for i in _predict(model, pixel_values[:_SHOWN]).argmax(-1).tolist()]
    _say(console, f"It reads {' '.join(names)} where {' '.join(map(str, test.labels[:_SHOWN]))} was written.\n")

    stages: list[DemoStage] = []
    table = Table("stage", "sources", "bytes added", "bytes so far", f"accuracy on {len(labels)} test images")
    logits = torch.empty(0)
    while True:
        logits = _predict(model, pixel_values)
        stage = model.stage or 0
        accuracy = (logits.argmax(-1) == labels).double().mean().item()
        found = DemoStage(stage, model.sources, sizes[stage], sum(sizes[: stage + 1]), accuracy)
        stages.append(found)
        table.add_row(
            str(stage), found.sources, f"{found.added_bytes:,}", f"{found.total_bytes:,}", f"{found.accuracy:.2%}"
        )
        if stage == model.num_stages:
            break
        model.load_next_stage()
    console.print(table)

    with _no_progress_bars():
        teacher = AutoModelForImageClassification.from_pretrained(directory, subfolder="teacher").eval()
    if not torch.equal(logits, _predict(teacher, pixel_values)):
        raise PWLError(f"the last stage of {directory} does not answer as the teacher in {directory / 'teacher'} does")
    _say(console, "The last stage's logits equal those of the teacher loaded on its own, bit for bit.")
    return tuple(stages)


def _predict(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        logits: torch.Tensor = model(pixel_values=pixel_values).logits
    return logits


def _say(console: Console, text: str) -> None:
    # As it is: paths are not broken, and brackets in them are no markup.
    console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _draw(stages: Sequence[DemoStage], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot, which would choose a window system for the whole process.
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kilobytes, percent = [s.total_bytes / 1000 for s in stages], [s.accuracy * 100 for s in stages]
    axes.plot(kilobytes, percent, marker="o", drawstyle="steps-post")
    for stage, x, y in zip(stages, kilobytes, percent, strict=True):
        axes.annotate(stage.sources, (x, y), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.set(xlabel="weights loaded (kB)", ylabel="test accuracy (%)", title="Handwritten digits, stage by stage")
    axes.margins(0.12, 0.18)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    return path
