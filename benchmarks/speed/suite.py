"""All measures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import Measure

# Draws a measure's series to a file.
Plot = Callable[[Mapping[str, Any], Path], None]


@dataclass(frozen=True)
class Entry:
    """A measure of the suite.

    Args:
        title: Its heading.
        about: What its figures are, in a sentence or two.
        where: `module:function`, below `benchmarks.speed.measures`; imported when it is run.
        pairs: The pairs that it is measured on by default; none for those that the whole suite is run with.
        plot: `module:function` below `benchmarks.speed.plots`, which draws its series; None for no plot.
        needs: A package that `pip install -e ".[dev]"` does not bring; where it is missing the measure is left out.
    """

    title: str
    about: str
    where: str
    pairs: Sequence[str] = ()
    plot: str | None = None
    needs: str | None = None

    @property
    def is_missing(self) -> bool:
        """Whether the package that it needs is not installed."""
        return self.needs is not None and find_spec(self.needs) is None

    def load(self) -> Measure:
        """The measure itself."""
        found: Measure = _named("measures", self.where)
        return found

    def load_plot(self) -> Plot | None:
        """What draws it, if anything does."""
        return None if self.plot is None else _named("plots", self.plot)


def _named(folder: str, where: str) -> Any:
    module, name = where.split(":")
    return getattr(import_module(f"benchmarks.speed.{folder}.{module}"), name)


SUITE: dict[str, Entry] = {
    "loading-warm": Entry(
        "From local files, warm",
        "Time to load and answer one image, imports apart, one thread; files in the page cache, "
        "shards verified before.",
        "loading:warm",
    ),
    "loading-cold": Entry(
        "From local files, cold",
        "The same, the files dropped from the page cache before each.",
        "loading:cold",
    ),
    "memory": Entry(
        "Memory on the whole way",
        "The most memory above that of the imports, while requests are answered and all stages stream in from local "
        "files that were not verified before. Each in a fresh process; pages of mapped files count once they are read.",
        "memory:peak",
    ),
    "step-down": Entry(
        "Down to the student and back",
        "Time of `set_stage` and one answer, files verified; and the memory that comes back.",
        "memory:step_down",
    ),
    "hub": Entry(
        "From a Hub",
        "First load and first answer of a process whose imports are done, from a Hub at 20 MB/s and 20 ms latency, "
        "with an empty cache. A third of the rounds: each downloads the teacher three times.",
        "hub_loading:hub",
    ),
    "rungs-hub": Entry(
        "Rungs of precision, from a Hub",
        "First load and first answer of a process whose imports are done, from a Hub at 20 MB/s and 20 ms latency, "
        "with an empty cache: the teacher in low precision (`QQQQ`), and the whole way to the exact teacher by rungs "
        "and without. A third of the rounds.",
        "rungs:hub",
    ),
    "rungs-bytes": Entry(
        "Rungs of precision: bytes, and the speed of the split",
        "What all rungs weigh, student and encoders with them, against the teacher's shards, in three dtypes; and GB "
        "of a block a second on one thread, compression and proof with the splitting, decompression with the merging.",
        "rungs:weights",
    ),
    "fresh-process-hub": Entry(
        "Fresh process, from a Hub",
        "From the start of a process to its first answer, imports included, with the same Hub and an empty cache; one "
        "thread, an image that is prepared already. The runtime imports neither torch nor transformers. A third of "
        "the rounds. The floor is the same over local files: a download that hides behind the imports.",
        "fresh_process:from_hub",
    ),
    "fresh-process-local": Entry(
        "Fresh process, from local files",
        "The same from local files in the page cache, shards verified before. Two thirds of the rounds.",
        "fresh_process:from_local_files",
    ),
    "imports": Entry(
        "Imports",
        "What a fresh process imports before it can load anything, without the interpreter's own start; files in the "
        "page cache.",
        "imports:imports",
    ),
    "installed-size": Entry(
        "Installed size",
        "What the extras `runtime` and `torch` require, all that these require in turn with it: the bytes of the files "
        "that each distribution lists (RECORD) in the environment that measures, without bytecode and this package.",
        "installed_size:installed_size",
    ),
    "runtime-hub": Entry(
        "The runtime's whole way, from a Hub",
        "From the start of a process to an answer of the teacher, from a Hub at 20 MB/s and 20 ms latency with an "
        "empty cache: streamed, after an answer at stage 0, against `teacher/model.onnx` and its shards, fetched from "
        "the same repository and opened by onnxruntime alone. A third of the rounds.",
        "runtime_hub:hub",
    ),
    "runtime-memory": Entry(
        "Memory of a process at stage 0, runtime and torch",
        "The most memory that was ever resident, from the start of a process that loads stage 0 and answers once: "
        "libraries and mapped files count. Local files that were verified before. A third of the rounds.",
        "runtime_memory:memory",
    ),
    "runtime-forward": Entry(
        "Forward passes of the runtime",
        "One image, the chain of the teacher's blocks against the whole teacher in a plain session, whose logits are "
        "equal bit for bit; one thread and two. And against transformers' teacher, one thread.",
        "runtime_forward:forward",
    ),
    "floor-warm": Entry(
        "Against the bare floor, warm",
        "Time to load and answer one image, against the modules built on the meta device, mapped tensors assigned, "
        "nothing checked; one thread, files in the page cache, shards verified before.",
        "floor:warm",
    ),
    "floor-cold": Entry(
        "Against the bare floor, cold",
        "The same, the files dropped from the page cache before each.",
        "floor:cold",
    ),
    "forward": Entry(
        "Forward passes",
        "One image, one thread: the model at each stage against the very same modules called in a loop by hand, and at "
        "both ends against transformers' own networks.",
        "forward:forward",
    ),
    "growth": Entry(
        "Growth with stages and with the teacher",
        "Time to load and answer one image, warm and verified before; bytes and requests of a first load from a Hub "
        "with an empty cache. The pair cut into more blocks, and the same student below other teachers.",
        "growth:growth",
        pairs=("vit-b",),
    ),
    "hashing": Entry(
        "Verification",
        "Comparing shards with the manifest's sha256, the first time and when it is remembered, files in the page "
        "cache, one thread; and what each stage adds in bytes.",
        "hashing:hashing",
    ),
    "swaps": Entry(
        "What a swap costs",
        "Of each swap, how much slower the slowest of the 5 requests around it was than the idle p95 of its stage; "
        "below 0 where none was. Requests one after the other in a thread, local files that were verified before.",
        "swaps:swaps",
    ),
    "runtime-swaps": Entry(
        "What a swap of the runtime costs",
        "The same of the runtime, one thread a session.",
        "swaps:on_the_runtime",
    ),
    "requests-while-growing": Entry(
        "Requests while stages arrive",
        "Latency of requests, one after the other in a thread, while stages are downloaded from a Hub at 20 MB/s and "
        "20 ms, verified and attached; each against idle requests of the stage that answered it. Two cores.",
        "streaming:requests",
        plot="requests:draw",
    ),
    "ray-serve-from-zero": Entry(
        "Ray Serve: a request that finds no replica",
        "From the request to its answer, over HTTP, by the deployment of `examples/ray_serve.py` and by the same "
        "server around transformers' teacher: Ray sees the request, starts a process, which imports, loads and "
        "answers. Files on the node in the page cache; and a Hub at 20 MB/s and 20 ms with an empty cache. A third of "
        "the rounds, one machine of two cores.",
        "ray_serve:from_zero",
        needs="ray",
    ),
    "ray-serve-second": Entry(
        "Ray Serve: while a second replica comes up",
        "Latencies of 4 clients that ask at once, again and again, one replica being grown up when they come. Ray "
        "wants 2 requests a replica, sees 4, and starts the second one. Files on the node. A third of the rounds, one "
        "machine of two cores.",
        "ray_serve:second",
        needs="ray",
    ),
    "timeline": Entry(
        "Time line",
        "One run each, for the picture: PWL streaming, the teacher alone and the student alone, from a Hub at 20 MB/s "
        "and 20 ms with an empty cache, each in a fresh process whose imports are done. `digits` has accuracies, and a "
        "line that is scaled to its size.",
        "timeline:timeline",
        pairs=("vit-b", "digits"),
        plot="timeline:draw",
    ),
    "alternatives-warm": Entry(
        "What users would do instead, from local files, warm",
        "Time to load and answer one image, and until the teacher itself has answered; imports apart, one thread, "
        "files in the page cache, shards verified before. First answers are of different worth: see the accuracies.",
        "alternatives:warm",
    ),
    "alternatives-cold": Entry(
        "What users would do instead, from local files, cold",
        "The same, the files dropped from the page cache before each. Two thirds of the rounds.",
        "alternatives:cold",
    ),
    "alternatives-hub": Entry(
        "What users would do instead, from a Hub",
        "The same from a Hub at 20 MB/s and 20 ms latency, with an empty cache, and the bytes that it sends. A quarter "
        "of the rounds.",
        "alternatives:hub",
    ),
    "alternatives-memory": Entry(
        "What users would do instead: memory",
        "The most memory above that of the imports until the teacher has answered, each page once, from that Hub, each "
        "in a fresh process. One round.",
        "alternatives_memory:memory",
    ),
    "alternatives-accuracy": Entry(
        "What the first answers are worth",
        "Accuracy of what answers first, and the bytes of weights that it needs, for the pair that `pwl-hf demo` "
        "trains: tiny networks, one seed; single points are within the noise.",
        "alternatives_accuracy:accuracy",
        pairs=("digits",),
    ),
}
