"""Asking the Hub again when the network failed: which faults pass, how long to wait, when to give up.

huggingface_hub retries some faults and not others: a closed connection is resumed, a reset one and a 5xx
answer to GET are not. What it leaves is retried here.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

Result = TypeVar("Result")

# Answers that another try may change: time-out, too early, too many requests, and the server's own errors.
_PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
# Causes on this machine that another try will not change.
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class RetryPolicy:
    """How long to try, with exponential back-off and full jitter.

    Args:
        tries: How often at most.
        max_seconds: No try begins after this, counted from the first.
        first_wait: The longest wait before the second try, in seconds; it doubles from try to try.
        max_wait: The longest wait of all, also where the Hub asks for more (`Retry-After`).
    """

    tries: int = 5
    max_seconds: float = 300.0
    first_wait: float = 0.5
    max_wait: float = 60.0

    def __post_init__(self) -> None:
        if self.tries < 1 or min(self.max_seconds, self.first_wait, self.max_wait) < 0:
            raise ValueError(f"a retry policy needs at least one try and no negative times, got {self}")

    def run(self, attempt: Callable[[], Result], cancelled: threading.Event | None = None) -> Result:
        """Call `attempt` until it succeeds, fails for good, or the policy ends.

        Args:
            attempt: What to do.
            cancelled: Ends the waiting; the last error is raised.

        Raises:
            Exception: The last error of `attempt`.
        """
        started = time.monotonic()
        count = 0
        while True:
            count += 1
            try:
                return attempt()
            except Exception as error:
                wait = self.wait_after(error, count)
                over = time.monotonic() - started + wait > self.max_seconds
                if count == self.tries or over or not is_passing(error):
                    raise
                if cancelled is None:
                    time.sleep(wait)
                elif cancelled.wait(wait):
                    raise

    def wait_after(self, error: Exception, count: int) -> float:
        """Seconds to wait after the `count`-th failure: what the Hub asks for, or a random part of the back-off."""
        asked = _retry_after(error)
        if asked is not None:
            return min(asked, self.max_wait)
        return random.uniform(0, min(self.first_wait * 2 ** (count - 1), self.max_wait))


def is_passing(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, LocalEntryNotFoundError):
        # The Hub could not be asked; unless it was not to be.
        return not is_offline_mode() and error.__cause__ is not None and is_passing(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _PASSING
    if isinstance(error, httpx.HTTPError):
        return True
    # huggingface_hub's own complaint about a file of the wrong length, and the system's about connections.
    return isinstance(error, OSError) and error.errno not in _LASTING and not isinstance(error, FileNotFoundError)


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After") if response is not None else None
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None  # A date: the back-off does as well.
