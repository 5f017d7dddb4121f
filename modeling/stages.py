"""What goes from stage to stage, at once or in the background, whatever runs it (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from .errors import StageError
from .parts.locking import StateLock
from .repository.manifest import ListedFile
from .repository.source import Repository
from .schedule import Schedule
from .sources import Sources
from .streaming.stream import StageStream

OnStage = Callable[[Any, int], None]


class Staged:
    """The stages of a model, and the ways between them.

    A subclass says where it is (`_sources`), how it gets to another mask (`_move_to`, `_advance`), and what that needs
    (`_files_of`, `_prepare`).
    """

    _schedule: Schedule
    _stream: StageStream | None

    @property
    def num_stages(self) -> int:
        """The last stage: stages go from 0, the student, to this one, the teacher."""
        return self._schedule.num_stages

    @property
    def schedule(self) -> tuple[str, ...]:
        """The mask of each stage, such as `("SS", "TS", "TT")`."""
        return tuple(mask.mask for mask in self._schedule)

    @property
    def sources(self) -> str:
        """Where each block of the current path comes from, such as `"TTSS"`."""
        return self._sources.mask

    @property
    def stage(self) -> int | None:
        """The current stage; None if the path is no stage's."""
        return self._schedule.stage_of(self._sources)

    def load_next_stage(self) -> int:
        """Take the next block from the teacher, or the next blocks.

        Returns:
            The new stage.

        Raises:
            StageError: If the model is the teacher already, or its path is no stage's; if stages are being streamed; or
                if a block that would be released was changed.
            RepositoryError: If a file is not what the manifest says. The model stays at its stage.
        """
        stage = self.stage
        if stage is None:
            raise StageError(f"sources {self.sources!r} is no stage, so it has no next one: call set_stage")
        if stage == self.num_stages:
            raise StageError(f"the model is at its last stage, {stage}: it is the teacher")
        self.set_stage(stage + 1)
        return stage + 1

    def set_stage(self, stage: int | str) -> None:
        """Go to a stage, up or down; stepping down brings the student's blocks back from the local file.

        Args:
            stage: 0 (the student) to `num_stages`, or `"teacher"`.

        Raises:
            ValueError: If there is no such stage.
            StageError: If stages are being streamed; if a block that would be released was changed since it was loaded.
            RepositoryError: If a file is not what the manifest says. The model stays at its stage.
        """
        self._move_to(self._schedule.mask(stage))

    def stream_stages(
        self,
        until_stage: int | str = "teacher",
        *,
        on_stage: OnStage | None = None,
        max_bytes_per_second: float | None = None,
        lookahead_bytes: int = 256_000_000,
        low_precision: bool | None = None,
    ) -> StageStream:
        """Load the remaining stages in the background while the model answers.

        Each stage is fetched, checked, built beside the model and warmed on inputs of the shapes seen last,
        before one assignment makes it the current one. A fault that outlasts the retries ends the stream;
        the model stays at its stage and keeps answering, and a new stream goes on from there.

        While it runs, changes of stage by others (`set_stage`, `load_next_stage`) are refused. Answers, copies, and
        with torch `to`, `train`, `eval` and `save_pretrained` are safe in any thread.

        Args:
            until_stage: The last stage to load, or `"teacher"`.
            on_stage: Called with the model and the stage after each swap, in the background thread.
            max_bytes_per_second: A limit on downloading.
            lookahead_bytes: How much may be fetched ahead of the stage that is being attached.
            low_precision: Whether to pass through the stages that have blocks in low precision; by default where that
                saves something: not where the teacher's shards are here already, or a tier that was added is made of
                them. Others are passed over.

        Returns:
            A handle: `wait`, `cancel`, `done`, `exception`, `stage`, `bytes_done`; a context manager.

        Raises:
            ValueError: If there is no such stage, or the model is past it.
            StageError: If a stream is running, or the model is not loaded stage by stage.

        Example:

            >>> with model.stream_stages() as stream:  # doctest: +SKIP
            ...     answer = model(pixel_values)
        """
        target = self._schedule.mask(until_stage)
        first, until = self.stage, self._schedule.stage_of(target)
        with self._lock:
            self._refuse_while_streaming(anyone=True)
            repository = self._growing_from()
            if first is None or until is None:
                raise StageError(
                    f"only a model that is at a stage can be streamed, and sources {self.sources!r} is none: call "
                    "set_stage first"
                )
            self._check_growth(target)
            if low_precision is None:
                low_precision = not self._has_shards()
            stages = [
                stage
                for stage in range(first, until + 1)
                if low_precision or stage in (first, until) or not self._schedule.masks[stage].low_blocks
            ]
            low = {block for stage in stages for block in self._schedule.masks[stage].low_blocks}
            stream = StageStream(
                repository,
                lambda stage: self._files_of(self._schedule.masks[stage], low),
                stages or [first],
                until,
                self._prepare,
                self._advance,
                on_stage=partial(on_stage, self) if on_stage is not None else None,
                max_bytes_per_second=max_bytes_per_second,
                lookahead_bytes=lookahead_bytes,
            )
            self._stream = stream
        return stream.start()

    @property
    def stream(self) -> StageStream | None:
        """The last stream, running or ended; None if there was none, or it is that of a parent process."""
        return self._stream if self._stream is not None and self._stream.is_of_this_process else None

    def _refuse_while_streaming(self, *, anyone: bool = False) -> None:
        stream = self.stream
        if stream is not None and not stream.done and (anyone or not stream.is_own_thread):
            raise StageError(
                f"stages are being streamed, up to stage {stream.until_stage}: cancel the stream and wait for it first"
            )

    # --- What a subclass says ---------------------------------------------------------------------------------------

    @property
    def _sources(self) -> Sources:
        """The current path."""
        raise NotImplementedError

    @property
    def _lock(self) -> StateLock:
        """Held while the path, or what is resident, changes."""
        raise NotImplementedError

    def _move_to(self, target: Sources) -> None:
        """Go to a mask's path, unless stages are being streamed by others."""
        raise NotImplementedError

    def _advance(self, stage: int) -> None:
        """The stream's step to a stage whose files are there and checked."""
        raise NotImplementedError

    def _growing_from(self) -> Repository:
        """Where later stages come from; raises a StageError if there are none to come."""
        raise NotImplementedError

    def _check_growth(self, target: Sources) -> None:
        """Refuse, with a StageError, a stream that would fail on its way to a mask, as far as that is known."""

    def _has_shards(self) -> bool:
        """Whether the teacher's own shards are all here, or needed anyway, so that low precision would save nothing."""
        raise NotImplementedError

    def _files_of(self, target: Sources, low: Collection[int]) -> Sequence[ListedFile]:
        """The files that a mask's path needs, if some blocks (from 1) will have been in low precision by then."""
        raise NotImplementedError

    def _prepare(self, files: Sequence[ListedFile], fetched: Mapping[str, Path], cancelled: Event) -> None:
        """Check the files of a stage, of which some were fetched just now, until the event is set."""
        raise NotImplementedError
