"""When to ask a server again, and how many calls to send it at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from speedkit.core.llm_types import LLMStopped

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
SUCCESSES_TO_RISE = 4


@dataclass(frozen=True)
class Clock:
    """What a client needs of time; tests put their own in.

    Attributes:
        monotonic: seconds that never jump.
        sleep: waits so many seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


def backoff_s(retry: int, rng: random.Random) -> float:
    """Return the seconds to wait before a retry, counted from 0: doubling, with jitter."""
    longest: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(retry, 30))
    return longest * rng.uniform(0.5, 1.0)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a server asks to wait, None if it does not.

    Args:
        headers: of the reply, with lower-case names.
        now: seconds since the epoch, for a header that gives a date.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if not value:
            continue
        seconds = _number(value)
        seconds = seconds * scale if seconds is not None else _seconds_until(value, now)
        if seconds is not None:
            return max(0.0, seconds)
    return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value < float("inf") else None


def _seconds_until(date: str, now: float) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return None


class Gate:
    """Lets a number of calls through at once: half as many after a 429, slowly more again.

    Args:
        limit: the most calls at once.
    """

    def __init__(self, limit: int) -> None:
        self.most = self.limit = limit
        self._inside = 0
        self._era = 0
        self._successes = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Wait for a place and hold it; gives the era, for :meth:`lower`.

        Raises:
            LLMStopped: the gate was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._inside < self.limit)
            if self._closed:
                raise LLMStopped("the model call was stopped")
            self._inside += 1
            era = self._era
        try:
            yield era
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def lower(self, era: int) -> None:
        """Halve the limit, once for all the calls that began in the same era."""
        with self._changed:
            if era == self._era:
                self._era += 1
                self._successes = 0
                self.limit = max(1, self.limit // 2)

    def succeeded(self) -> None:
        """Count a success; several of them raise the limit by one."""
        with self._changed:
            self._successes += 1
            if self._successes >= SUCCESSES_TO_RISE and self.limit < self.most:
                self.limit += 1
                self._successes = 0
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody through any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
