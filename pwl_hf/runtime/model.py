"""RuntimeModel: a model that answers as its student and grows into its teacher, on onnxruntime.

Notation: B samples (images, texts or sounds), K labels.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.parts.locking import StateLock
from pwl_hf.modeling.repository.manifest import ListedFile
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.sources import Sources
from pwl_hf.modeling.stages import Staged
from pwl_hf.modeling.streaming.stream import StageStream
from pwl_hf.modeling.task_names import TASKS
from pwl_hf.runtime.chain import Chain, Graphs, Inputs, Like, Seen

if TYPE_CHECKING:
    from pwl_hf.runtime.tasks import Task


class RuntimeModel(Staged):
    """A model with stages whose graphs onnxruntime runs; made by `load`.

    Threads may share it: each call takes the sessions of one stage, and runs them to their end, whatever becomes of the
    model's stage meanwhile. Copies and pickles hold no weights: they map the same files again, and are at the same
    stage, without a stream. A forked process makes its sessions anew at its first call, and must end by `os._exit`, as
    those of multiprocessing do: onnxruntime itself does not live through the end of a forked interpreter.

    Args:
        graphs: The graphs of its repository.
        sources: The mask of the stage that it is to be at.

    Raises:
        RepositoryError: If a file is not what the manifest says, or onnxruntime refuses a graph.
        InputError: If a provider does not come up.

    Example:

        >>> model = runtime.load("org/pwl-vit")  # doctest: +SKIP
        >>> model.predict("cat.jpg", top_k=1)  # doctest: +SKIP
        [{'label': 'tabby', 'score': 0.9312}]
        >>> model.load_next_stage()  # doctest: +SKIP
        1
    """

    def __init__(self, graphs: Graphs, sources: Sources) -> None:
        self._graphs = graphs
        self._schedule = graphs.manifest.schedule
        self._stream: StageStream | None = None
        self._state_lock = StateLock()
        # The shapes of the last call: what comes is warmed on.
        self._seen: Seen | None = None
        self._chain = graphs.chain(sources)

    def __reduce__(self) -> tuple[type[RuntimeModel], tuple[Graphs, Sources]]:
        return type(self), (self._graphs, self._chain.sources)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._graphs.repository}, sources={self.sources!r})"

    # --- What it is ---------------------------------------------------------------------------------------------

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return self._schedule.num_blocks

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, in the order of the logits."""
        return self._graphs.index.labels

    @property
    def problem_type(self) -> str | None:
        """As in the config: how logits become scores."""
        return self._graphs.index.problem_type

    @property
    def task(self) -> str:
        """What it does, as transformers' pipelines and the Hub call it, such as `"text-classification"`."""
        return TASKS[self._graphs.index.task].pipeline

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each array that the model takes, by name, -1 for the batch and for a length that is free."""
        return self._graphs.index.inputs

    @cached_property
    def _task(self) -> Task:
        """What makes inputs of samples, and answers of logits."""
        from pwl_hf.runtime.tasks import task_of

        return task_of(self._graphs.index, self._graphs.repository)

    # --- Answers ------------------------------------------------------------------------------------------------

    def predict(self, samples: Any, /, **parameters: Any) -> Any:
        """The answers of transformers' pipeline of the model's task.

        Args:
            samples: One sample or several. Images: PIL images, numpy arrays, or paths of files. Texts: strings, or
                mappings with `text` and `text_pair`. Sounds: arrays (samples,) at the network's rate, paths or bytes of
                files (decoded by soundfile, the extra `audio`), or mappings with `array` and `sampling_rate`.
            parameters: As the pipeline takes them: `top_k` (5; None for all labels) and `function_to_apply`; of texts
                `truncation` (False: what is too long is refused) besides; of tokens `aggregation_strategy`,
                `ignore_labels`, `stride` and `truncation`; of arrays of sound `sampling_rate`.

        Returns:
            Of one sample its labels with their scores, the best first, or the entities of a text, in its order; of
            several a list of these.

        Raises:
            InputError: A ValueError that names the sample that cannot be read, or the parameter.
            ValueError: If `top_k` is below 1, or a function is unknown.
            RepositoryError: If the repository has no image processor, tokenizer or feature extractor, or one that is
                not supported.
            ImportError: If what decodes sounds is not installed.

        Example:

            >>> model.predict(["cat.jpg", "dog.jpg"], top_k=1)  # doctest: +SKIP
            [[{'label': 'tabby', 'score': 0.9312}], [{'label': 'beagle', 'score': 0.8121}]]
        """
        return self._task.predict(self._run, samples, **parameters)

    def logits(self, samples: Any = None, /, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """The logits of samples, or of arrays that are prepared already.

        Args:
            samples: One sample or several, as in `predict`.
            inputs: In their place, what the networks take, by name (see `inputs`), such as `pixel_values` (B, C, H, W)
                floating, or `input_ids` and `attention_mask` (B, L) of whole numbers.

        Returns:
            (B, K) float32, of tokens (B, L, K); all of one stage.

        Raises:
            InputError: A ValueError that names the sample that cannot be read, or the array that the model does not
                take.
            RepositoryError: For samples, if the repository has nothing that prepares them, or what is not supported.

        Example:

            >>> model.logits(pixel_values=numpy.zeros((2, 3, 224, 224), numpy.float32)).shape  # doctest: +SKIP
            (2, 1000)
        """
        if samples is None:
            return self._run([self._checked(inputs)])[0]
        if inputs:
            raise InputError(f"give {TASKS[self._graphs.index.task].samples} or {', '.join(inputs)!r:.100}, not both")
        return np.concatenate(self._run(self._task.batches(samples)))

    def _checked(self, inputs: Inputs) -> Inputs:
        """Arrays as the graphs take them."""
        if inputs.keys() != self.inputs.keys():
            raise InputError(
                f"the model takes {', '.join(self.inputs)}, got {', '.join(inputs) or 'nothing'}: give "
                f"{TASKS[self._graphs.index.task].samples}, or each array by its name"
            )
        found: dict[str, NDArray[Any]] = {}
        batches: set[int] = set()
        lengths: set[int] = set()
        for name, shape in self.inputs.items():
            array = np.asarray(inputs[name])
            dtype = self._graphs.index.dtypes.get(name, "float32")
            if array.dtype.kind not in ("f" if dtype == "float32" else "iub"):
                kind, what = ("floating", "prepare") if dtype == "float32" else ("whole", "make numbers of")
                samples = TASKS[self._graphs.index.task].samples
                raise InputError(f"{name} must be {kind} numbers, got {array.dtype}: {what} {samples} first")
            fits = (size in (-1, own) for size, own in zip(shape, array.shape, strict=False))
            if array.ndim != len(shape) or not all(fits):
                free = iter("BL")
                wanted = ", ".join(next(free) if size == -1 else str(size) for size in shape)
                raise InputError(f"{name} must be of shape ({wanted}), got {array.shape}")
            if 0 in array.shape:
                raise InputError(f"{name} is empty, of shape {array.shape}: give at least one sample")
            batches.add(array.shape[0])
            lengths.update(array.shape[1:2] if -1 in shape[1:] else ())
            found[name] = np.ascontiguousarray(array, dtype=dtype)
        if len(batches) > 1 or len(lengths) > 1:
            what, numbers = ("samples", batches) if len(batches) > 1 else ("lengths", lengths)
            raise InputError(f"the arrays are of {sorted(numbers)} {what}: give as many of each")
        return found

    def _run(self, batches: Sequence[Inputs]) -> list[NDArray[np.float32]]:
        # Once: the call has these sessions from start to end.
        chain = self._chain
        if chain.process != os.getpid():
            chain = self._renewed()
        found = []
        for inputs in batches:
            logits, outputs = chain(inputs)
            # After the run: what failed here would fail in the warm-up too.
            self._seen = Seen(chain.graphs, {name: Like.of(array) for name, array in inputs.items()}, outputs)
            found.append(logits)
        return found

    def _renewed(self) -> Chain:
        """The chain of a forked process, whose sessions had threads that only its parent has."""
        with self._lock:
            if self._chain.process != os.getpid():
                self._chain = self._graphs.chain(self._sources)
            return self._chain

    # --- Changes of stage ---------------------------------------------------------------------------------------

    @property
    def _sources(self) -> Sources:
        return self._chain.sources

    @property
    def _lock(self) -> StateLock:
        return self._state_lock

    def _move_to(self, target: Sources) -> None:
        with self._lock:
            self._refuse_while_streaming()
            if target != self._sources:
                self._swap(target)

    def _advance(self, stage: int) -> None:
        with self._lock:
            self._swap(self._schedule.mask(stage))

    def _swap(self, target: Sources) -> None:
        """Make a stage's chain beside the model, warm it, and take it; what is not needed goes with its last call."""
        chain = self._graphs.chain(target, self._renewed())
        seen = self._seen
        if seen is not None:
            warmed = chain.warm(seen)
            # What a request has left meanwhile counts for more.
            if self._seen is seen:
                self._seen = warmed
        self._chain = chain

    def _growing_from(self) -> Repository:
        return self._graphs.repository

    def _has_shards(self) -> bool:
        return self._graphs.repository.has_shards(self._graphs.manifest)

    def _files_of(self, target: Sources, low: Collection[int]) -> Sequence[ListedFile]:
        return self._graphs.files_of(target, low)

    def _prepare(self, files: Sequence[ListedFile], fetched: Mapping[str, Path], cancelled: Event) -> None:
        self._graphs.prepare(files, fetched, cancelled)
