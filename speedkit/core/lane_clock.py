"""How busy the lanes of an executor are, and what idle ones wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Work = Literal["running", "coding", "summarizing"]


class LaneClock:
    """Adds up lane seconds, busy and idle, by what is going on meanwhile.

    An idle lane waits for ``coding`` when a coder is at work, else for ``summarizing``, else
    for ``other`` things: git, the scaffold, the journal.

    Args:
        lanes: how many jobs may run at once.
        now: a monotonic clock in seconds.
    """

    def __init__(self, lanes: int, now: Callable[[], float] = time.monotonic) -> None:
        self.lanes = lanes
        self._now, self._lock = now, threading.Lock()
        self._began = self._seen = now()
        self._active: dict[Work, int] = {"running": 0, "coding": 0, "summarizing": 0}
        self._busy_s = 0.0
        self._idle_s = {"coding": 0.0, "summarizing": 0.0, "other": 0.0}
        self._done: dict[Work, list[float]] = {"running": [], "coding": [], "summarizing": []}

    @contextmanager
    def at(self, work: Work) -> Iterator[None]:
        """Count the time of the block as time at some work."""
        self._change(work, 1)
        began = self._now()
        try:
            yield
        finally:
            self._change(work, -1)
            self._done[work] = [*self._done[work][-19:], self._now() - began]

    def mean_s(self, work: Work) -> float | None:
        """Return the mean seconds of the last twenty pieces of some work; None before any."""
        done = self._done[work]
        return sum(done) / len(done) if done else None

    def _change(self, work: Work, by: int) -> None:
        with self._lock:
            self._pass()
            self._active[work] += by

    def _pass(self) -> None:
        """Attribute the time since the last change."""
        now = self._now()
        passed, self._seen = now - self._seen, now
        busy = min(self.lanes, self._active["running"])
        self._busy_s += busy * passed
        cause = next((w for w in ("coding", "summarizing") if self._active[w]), "other")
        self._idle_s[cause] += (self.lanes - busy) * passed

    def facts(self) -> dict[str, Any]:
        """Return the sums so far as JSON values: seconds of all lanes together."""
        with self._lock:
            self._pass()
            total = self.lanes * (self._seen - self._began)
            return {
                "lanes": self.lanes,
                "wall_s": round(self._seen - self._began, 3),
                "busy_s": round(self._busy_s, 3),
                "busy": round(self._busy_s / total, 4) if total else 0.0,
                "idle_s": {cause: round(s, 3) for cause, s in self._idle_s.items()},
            }
