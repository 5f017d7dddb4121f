"""Retrying requests to the Hub: which faults may pass, how long to wait, when to give up.

huggingface_hub resumes a closed connection and retries 408 and 429; a reset connection, a 5xx answer to a download
and a failed commit it raises at once. Those are retried here. Its errors are imported once there is one.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import PWLError

Outcome = TypeVar("Outcome")

# Answers that another try may change: time-out, too early, too many requests, and the server's own errors.
_PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
# Local causes, which another try will not change.
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
# 2.0 ** 1024 overflows.
_MAX_DOUBLINGS = 60


@dataclass(frozen=True)
class RetryPolicy:
    """How long to try, with exponential back-off and full jitter.

    Args:
        tries: The most tries.
        max_seconds: No try begins later than this after the first.
        first_wait: The longest wait before the second try, in seconds; it doubles from try to try.
        max_wait: The longest wait, also where the Hub asks for more (`Retry-After`).

    Raises:
        ValueError: For less than one try, or a negative time.
    """

    tries: int = 5
    max_seconds: float = 300.0
    first_wait: float = 0.5
    max_wait: float = 60.0

    def __post_init__(self) -> None:
        if self.tries < 1 or min(self.max_seconds, self.first_wait, self.max_wait) < 0:
            raise ValueError(f"a retry policy needs at least one try and no negative times, got {self}")

    def run(self, attempt: Callable[[], Outcome], cancelled: threading.Event | None = None) -> Outcome:
        """Call `attempt` until it succeeds, fails for good, or the policy ends.

        Args:
            attempt: What to do.
            cancelled: Ends the wait between tries.

        Raises:
            Exception: The last error of `attempt`.
        """
        from .transfers import ours

        started = time.monotonic()
        count = 0
        while True:
            count += 1
            try:
                with ours():
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
        longest = min(self.first_wait * 2.0 ** min(count - 1, _MAX_DOUBLINGS), self.max_wait)
        # Not the global generator: a seeded program must not depend on network faults.
        return random.SystemRandom().uniform(0, longest)


def is_passing(error: BaseException) -> bool:
    """True if another try may succeed."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    lasting = (
        # Raised by this library, after its own tries.
        PWLError,
        OfflineModeIsEnabled,
        LocalTokenNotFoundError,
        FileNotFoundError,
        PermissionError,
        NotADirectoryError,
        IsADirectoryError,
        # Malformed requests.
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
        httpx.TooManyRedirects,
    )
    error = root_cause(error)
    if isinstance(error, lasting):
        return False
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in _PASSING
    # Among OSErrors: huggingface_hub's about a file of the wrong length, and the system's about connections.
    return isinstance(error, httpx.HTTPError) or (isinstance(error, OSError) and error.errno not in _LASTING)


def root_cause(error: BaseException) -> BaseException:
    """The cause behind huggingface_hub's own error, which only says that a file was not found or an upload failed."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError

    wrappers = LocalEntryNotFoundError | RevisionResolutionError | RuntimeError
    while isinstance(error, wrappers) and not isinstance(error, PWLError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _retry_after(error: Exception) -> float | None:
    """Seconds that the Hub asks to wait; `Retry-After` is a number or a date."""
    response = getattr(root_cause(error), "response", None)
    value = response.headers.get("Retry-After") if response is not None else None
    if value is None:
        return None
    from email.utils import parsedate_to_datetime

    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        # What a date cannot be, it raises in several ways.
        except (ValueError, TypeError, OverflowError, OSError):
            return None
    return max(0.0, seconds)
