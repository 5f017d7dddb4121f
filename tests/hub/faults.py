"""Rules that make the server misbehave, and the limits that make it slow."""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

FaultKind = Literal["status", "reset", "close", "truncate", "corrupt", "stall", "headers"]


@dataclass
class Fault:
    """One rule: which requests it strikes, how often, and what it does.

    - ``status``: answers ``status`` with ``headers`` in place of the server; the request has no effect.
    - ``reset``: breaks the connection (TCP reset); ``close``: ends it in good order. Both after ``after``
      bytes of the answer's body, or before any answer when that is None. The request has had its effect.
    - ``truncate``: sends only ``after`` bytes (None: half) and declares that length: a file cut short.
    - ``corrupt``: flips one bit of byte ``after`` of the answer's body (None: the middle one).
    - ``headers``: answers as it should, but with these ``headers`` as well.
    - ``stall``: pauses ``seconds`` after ``after`` bytes (None: before any answer), then goes on; so it does
      when the server is reset, and at the end of a block of `HubServer.faulty`.

    Args:
        kind: see above.
        path: regular expression searched for in the unquoted path.
        method: the method it strikes; "*" for all.
        times: how many requests it strikes; None for all.
        skip: how many matching requests it lets pass first.
    """

    kind: FaultKind
    path: str = ""
    method: str = "GET"
    times: int | None = 1
    skip: int = 0
    after: int | None = None
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 1.0

    def matches(self, method: str, path: str) -> bool:
        """Whether it is about such a request, count aside."""
        return self.method in ("*", method) and re.search(self.path, path) is not None


class Faults:
    """The rules in force; the first one that matches a request strikes it."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._rules))

    def __len__(self) -> int:
        return len(self._rules)

    def append(self, fault: Fault) -> Fault:
        """Add a rule; `Fault.times` and `Fault.skip` of it count down as it is used."""
        with self._lock:
            self._rules.append(fault)
        return fault

    def clear(self) -> None:
        """Drop all rules."""
        with self._lock:
            self._rules.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The rule that strikes this request, its count taken down by one."""
        with self._lock:
            for rule in self._rules:
                if rule.times == 0 or not rule.matches(method, path):
                    continue
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule
        return None


# Seconds between two transfers above which the line was idle meanwhile; below it, who asked was late in waking up.
_IDLE = 0.02


class Throttle:
    """A line shared by all connections, both ways: each transfer waits until its bytes have gone through.

    It goes on while its server wakes up late: the bytes of one transfer follow on those before.
    """

    def __init__(self) -> None:
        self.latency = 0.0
        self._bandwidth: float | None = None
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._stopped, self._released = False, threading.Event()

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second; None for no limit. What waits for the line goes on when it changes."""
        return self._bandwidth

    @bandwidth.setter
    def bandwidth(self, value: float | None) -> None:
        self._bandwidth = value
        self.release()

    def transfer(self, size: int) -> None:
        """Wait for as long as ``size`` bytes take at `bandwidth`."""
        with self._lock:
            released, bandwidth = self._released, self._bandwidth
            if bandwidth is None:
                return
            now = time.monotonic()
            start = self._free_at if now - self._free_at < _IDLE else now
            self._free_at = start + size / bandwidth
            delay = self._free_at - now
        released.wait(delay)

    def pause(self, seconds: float) -> None:
        """Wait, unless `release` ends it or the server stops."""
        released = self._released
        if seconds > 0 and not self._stopped:
            released.wait(seconds)

    def release(self) -> None:
        """End every wait; the line is free."""
        with self._lock:
            released, self._released = self._released, threading.Event()
            self._free_at = 0.0
        released.set()

    def stop(self) -> None:
        """End every wait, also later ones."""
        self._stopped, self._bandwidth = True, None
        self.release()
