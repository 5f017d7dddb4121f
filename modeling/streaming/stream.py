"""Growing while serving: later stages come in the background while the model answers (no torch).

Two threads: one fetches the files of the next stages, at most `lookahead_bytes` ahead, a stage's small files beside
its large one; one lets the model check them, build what is new beside itself, warm it and swap it in. Forward passes
take no lock: each runs the route that it found when it began.
"""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from ..errors import FetchError, StageError
from ..repository.background import end_before_exit
from ..repository.limits import Interrupted, Pace
from ..repository.manifest import ListedFile
from ..repository.source import Repository

# Checks the files of a stage, of which some were fetched just now, until the event is set.
Prepare = Callable[[Sequence[ListedFile], Mapping[str, Path], threading.Event], None]

# How often a waiting thread looks whether it was cancelled, in seconds.
_PATIENCE = 0.1


class StageStream:
    """The growth of a model in the background; made by `stream_stages`.

    As a context manager it waits for the last stage and raises what went wrong; an error inside the block
    cancels it.

    Args:
        repository: Where the model's files come from.
        plan: The files of a stage; asked of the one that it is at, and of all that are to be loaded.
        stages: The stage that it is at, and those to load, in order.
        until_stage: The last stage to load.
        prepare: Checks the files of a stage.
        advance: Brings the model to a stage whose files are there and checked.
        on_stage: Called with the stage after each swap, in the background thread.
        max_bytes_per_second: A limit on downloading.
        lookahead_bytes: How much may be fetched ahead of the stage that is being attached; the next stage is in
            any case, unless it is 0.

    Raises:
        ValueError: For a number out of its range, or if the model is past `until_stage`.
    """

    def __init__(
        self,
        repository: Repository,
        plan: Callable[[int], Sequence[ListedFile]],
        stages: Sequence[int],
        until_stage: int,
        prepare: Prepare,
        advance: Callable[[int], None],
        *,
        on_stage: Callable[[int], None] | None = None,
        max_bytes_per_second: float | None = None,
        lookahead_bytes: int = 256_000_000,
    ) -> None:
        if max_bytes_per_second is not None and not max_bytes_per_second > 0:
            raise ValueError(f"max_bytes_per_second must be positive, got {max_bytes_per_second}")
        if not lookahead_bytes >= 0:
            raise ValueError(f"lookahead_bytes must not be negative, got {lookahead_bytes}")
        first, *later = stages
        if until_stage < first:
            raise ValueError(
                f"until_stage={until_stage} lies behind the model, which is at stage {first}: a stream goes up only, "
                "call set_stage to go down"
            )
        self.until_stage = until_stage
        # Let go of at the end: a handle that is kept must not keep the model.
        self._prepare: Prepare | None = prepare
        self._advance: Callable[[int], None] | None = advance
        self._on_stage = on_stage
        self._repository, self._stage, self._process = repository, first, os.getpid()
        self._lookahead = lookahead_bytes
        self._plan = {stage: tuple(plan(stage)) for stage in later}
        # The files of each stage that no earlier one needs.
        seen = {entry.path for entry in plan(first)}
        self._new: dict[int, tuple[ListedFile, ...]] = {}
        for stage, files in self._plan.items():
            self._new[stage] = tuple(entry for entry in files if entry.path not in seen)
            seen |= {entry.path for entry in files}
        self._bytes_done = 0
        self._exception: BaseException | None = None
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._pace = Pace(max_bytes_per_second, self._cancelled)
        # Of each stage the local paths of its new files, or why they did not come.
        self._fetched: queue.Queue[dict[str, Path] | BaseException] = queue.Queue()
        self._ahead, self._room = 0, threading.Condition()
        self._threads = [
            threading.Thread(target=self._fetch, name="pwl-fetch", daemon=True),
            threading.Thread(target=self._grow, name="pwl-grow", daemon=True),
        ]

    # --- What a caller sees -------------------------------------------------------------------------------------

    @property
    def stage(self) -> int:
        """The last stage that the stream has reached."""
        return self._stage

    @property
    def bytes_done(self) -> int:
        """Bytes of the files of the stages it has reached."""
        return self._bytes_done

    @property
    def bytes_total(self) -> int:
        """Bytes of the files of all stages it was asked for."""
        return sum(entry.bytes for files in self._new.values() for entry in files)

    @property
    def done(self) -> bool:
        """Whether it has ended: at its last stage, by an error, or cancelled."""
        return self._ended.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled.is_set() and self._exception is None and self._stage < self.until_stage

    @property
    def exception(self) -> BaseException | None:
        """What ended it; None while it runs, at its last stage, and if it was cancelled."""
        return self._exception

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended: from then on the model's stage is the caller's to change.

        Args:
            timeout: Seconds; without end by default.

        Returns:
            Whether it has ended.

        Raises:
            StageError: If called by the stream itself, in `on_stage`, without a timeout.
        """
        if timeout is None and self.is_own_thread:
            raise StageError("on_stage runs in the stream: waiting there for the stream's end would never return")
        return self._ended.wait(timeout)

    def cancel(self) -> None:
        """Ask it to end; the model stays at the stage it has reached. `wait` tells when it did.

        A download under way ends with the next bytes that come, or where none do when huggingface_hub stops
        waiting for them, after `HF_HUB_DOWNLOAD_TIMEOUT` seconds; through Xet, with the file. `wait` does not
        wait for it.
        """
        _ask_to_end(self._cancelled, self._room)

    def __enter__(self) -> StageStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancel()
        self.wait()
        if error is None and self._exception is not None:
            raise self._exception

    def start(self) -> StageStream:
        """Begin; done by `stream_stages`."""
        end_before_exit(self, partial(_ask_to_end, self._cancelled, self._room), self._threads)
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:
            # No more threads to be had: it must not look as if it went on.
            self._end()
            raise
        return self

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is the stream itself, which alone may change the stage while it runs."""
        return threading.current_thread() in self._threads

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was started here, and not in the process that this one was forked from."""
        return self._process == os.getpid()

    # --- The two threads ----------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        for stage, files in self._new.items():
            size = sum(entry.bytes for entry in files)
            with self._room:
                while not self._has_room(stage, size) and not self._cancelled.is_set():
                    self._room.wait()
                self._ahead += size
            try:
                local = self._repository.fetch_all(files, self._fetch_file)
            except BaseException as error:
                if not self._cancelled.is_set():
                    self._fetched.put(error)
                return
            self._fetched.put(local)

    def _fetch_file(self, entry: ListedFile, _: threading.Event) -> Path:
        repository = self._repository
        with self._pace.limit(entry.bytes if repository.local(entry.path) is None else 0):
            return repository.fetch(entry.path, cancelled=self._cancelled)

    def _has_room(self, stage: int, size: int) -> bool:
        """Whether a stage may be fetched now: its turn has come, or it is within the look-ahead."""
        is_next = self._ahead == 0 and self._lookahead > 0
        is_turn = all(other <= self._stage or other >= stage for other in self._new)
        return is_turn or is_next or self._ahead + size <= self._lookahead

    def _grow(self) -> None:
        try:
            for stage, files in self._new.items():
                fetched = self._await()
                if fetched is None:
                    return
                size = sum(entry.bytes for entry in files)
                with self._room:
                    self._ahead -= size
                    self._room.notify_all()
                self._attach(stage, size, fetched)
        except BaseException as error:
            # How a cancelled download ended is of no interest.
            if not (self._cancelled.is_set() and isinstance(error, Interrupted | FetchError)):
                _forget_locals(error)
                self._exception = error
        finally:
            self._end()

    def _attach(self, stage: int, size: int, fetched: dict[str, Path]) -> None:
        prepare, advance = self._prepare, self._advance
        if prepare is None or advance is None:
            return
        with self._pace.limit():
            prepare(self._plan[stage], fetched, self._cancelled)
        if self._cancelled.is_set():
            return
        advance(stage)
        with self._room:
            self._stage, self._bytes_done = stage, self._bytes_done + size
            self._room.notify_all()
        if self._on_stage is not None:
            self._on_stage(stage)

    def _end(self) -> None:
        self.cancel()
        self._prepare, self._advance, self._on_stage = None, None, None
        self._ended.set()

    def _await(self) -> dict[str, Path] | None:
        """Wait for the files of the next stage; None if cancelled."""
        while not self._cancelled.is_set():
            try:
                found = self._fetched.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            return found
        return None


def _forget_locals(error: BaseException | None) -> None:
    """Let a kept exception hold no modules and tensors: the frames that it passed had them at hand."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _ask_to_end(cancelled: threading.Event, room: threading.Condition) -> None:
    cancelled.set()
    with room:
        room.notify_all()
