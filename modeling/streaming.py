"""Growing while serving: later stages come in the background while the model answers.

Two threads: one fetches the files of the next stages, at most `lookahead_bytes` ahead; one checks them, builds
the block beside the model, warms it and swaps it in. Forward passes take no lock: each runs the route that it
found when it began.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from huggingface_hub.utils import tqdm

from .errors import PWLError, StageError
from .manifest import FileEntry
from .sources import Sources

if TYPE_CHECKING:
    from .staged_model import PWLPreTrainedModel

OnStage = Callable[["PWLPreTrainedModel", int], None]

# How often a waiting thread looks whether it was cancelled, in seconds.
_PATIENCE = 0.1


class _Cancelled(PWLError):
    """Ends a download that nobody waits for any more."""


class StageStream:
    """The growth of a model in the background; made by `stream_stages`.

    As a context manager it waits for the last stage and raises what went wrong; an error inside the block
    cancels it.

    Args:
        model: The model.
        until_stage: The last stage to load.
        on_stage: Called with the model and the stage after each swap, in the background thread.
        max_bytes_per_second: A limit on downloading.
        lookahead_bytes: How much may be fetched ahead of the stage that is being attached.
    """

    def __init__(
        self,
        model: PWLPreTrainedModel,
        until_stage: int,
        *,
        on_stage: OnStage | None = None,
        max_bytes_per_second: float | None = None,
        lookahead_bytes: int = 256_000_000,
    ) -> None:
        if max_bytes_per_second is not None and max_bytes_per_second <= 0:
            raise ValueError(f"max_bytes_per_second must be positive, got {max_bytes_per_second}")
        if lookahead_bytes < 0:
            raise ValueError(f"lookahead_bytes must not be negative, got {lookahead_bytes}")
        store, first = model._store, model.stage
        if store is None or first is None:
            raise StageError("only a model that is at a stage, and was loaded from a repository, can be streamed")
        self.until_stage = until_stage
        self._model, self._store, self._stage = model, store, first
        self._on_stage, self._rate, self._lookahead = on_stage, max_bytes_per_second, lookahead_bytes
        self._plan: dict[int, tuple[FileEntry, ...]] = {
            stage: store.manifest.files_for(Sources.prefix(stage, model.num_stages))
            for stage in range(first + 1, until_stage + 1)
        }
        self._new = self._new_files(first)
        self._bytes_done = 0
        self._exception: BaseException | None = None
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._fetched: queue.Queue[tuple[int, BaseException | None]] = queue.Queue()
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
        """Wait until it has ended.

        Args:
            timeout: Seconds; without end by default.

        Returns:
            Whether it has ended.
        """
        return self._ended.wait(timeout)

    def cancel(self) -> None:
        """Ask it to end; the model stays at the stage it has reached. `wait` tells when it did."""
        self._cancelled.set()
        with self._room:
            self._room.notify_all()

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
        for thread in self._threads:
            thread.start()
        return self

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is the stream itself, which alone may change the stage while it runs."""
        return threading.current_thread() in self._threads

    # --- The two threads ----------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        watch = self._watch()
        for stage, files in self._new.items():
            size = sum(entry.bytes for entry in files)
            with self._room:
                while self._ahead > 0 and self._ahead + size > self._lookahead and not self._cancelled.is_set():
                    self._room.wait()
                self._ahead += size
            try:
                for entry in files:
                    if self._cancelled.is_set():
                        return
                    self._store.repository.fetch(entry.path, watch=watch, cancelled=self._cancelled)
            except BaseException as error:
                self._fetched.put((stage, error))
                return
            self._fetched.put((stage, None))

    def _grow(self) -> None:
        try:
            for stage, files in self._new.items():
                if not self._await(stage):
                    return
                self._store.prepare([entry.path for entry in self._plan[stage]])
                if self._cancelled.is_set():
                    return
                self._model._advance(stage)
                size = sum(entry.bytes for entry in files)
                self._stage, self._bytes_done = stage, self._bytes_done + size
                with self._room:
                    self._ahead -= size
                    self._room.notify_all()
                if self._on_stage is not None:
                    self._on_stage(self._model, stage)
        except _Cancelled:
            pass
        except BaseException as error:
            self._exception = error
        finally:
            self.cancel()
            self._ended.set()

    def _await(self, stage: int) -> bool:
        """Wait for the files of a stage; False if cancelled."""
        while not self._cancelled.is_set():
            try:
                _, error = self._fetched.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return True
        return False

    def _new_files(self, first: int) -> dict[int, tuple[FileEntry, ...]]:
        """The files of each stage that no earlier one needs."""
        seen = {entry.path for entry in self._store.manifest.files_for(Sources.prefix(first, self._model.num_stages))}
        new: dict[int, tuple[FileEntry, ...]] = {}
        for stage, files in self._plan.items():
            new[stage] = tuple(entry for entry in files if entry.path not in seen)
            seen |= {entry.path for entry in files}
        return new

    def _watch(self) -> type[Any]:
        """A progress bar of the Hub's own kind that also keeps the rate and stops when cancelled."""
        cancelled, rate = self._cancelled, self._rate

        class Watch(tqdm):  # type: ignore[misc]
            def update(self, n: float | None = 1) -> bool | None:
                if cancelled.is_set():
                    raise _Cancelled("the stream was cancelled")
                if rate is not None and n:
                    time.sleep(n / rate)
                shown: bool | None = super().update(n)
                return shown

        return Watch
