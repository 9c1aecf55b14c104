"""When a running job is hopeless: judged from its validations so far, line by line.

A node counts by its last validation, the one of its last step. So it can recover nothing when
a loss is no number, when its clock is past the start record's time, when the steps that are
left take it past that time at the fastest pace that it may still reach, or when its loss
cannot come down to the target in the steps that are left. Every guess errs on the side of
the run: ``benchmarks/early_stop_replay.py`` measures how often a winner would be stopped.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field

from speedkit.core.components import Options
from speedkit.core.metrics import Metrics

RECENT = 3
"""Intervals between validations from which pace and slope are taken, the best of them."""
MIN_INTERVALS = 2
"""Intervals before anything is foretold: the first often holds a compilation."""
MARGIN = 0.05
"""Part of the time to beat by which a run may be late where neither user nor family says."""


class CurveStop(Options):
    """When jobs that cannot recover anything are stopped."""

    mode: Literal["off", "clock", "safe"] = Field(
        "safe",
        description="off: never; clock: a loss that is no number, or a run that ends too late; "
        "safe: these, and a loss that cannot reach the target",
    )
    against: Literal["start", "best"] = Field(
        "start",
        description="whose time a run must beat: start, that of the start record; best, that of "
        "the best node so far, once there is one",
    )
    margin: float | None = Field(
        None,
        ge=0,
        description="part of that time by which a run may be late before it is stopped; default: "
        "the family's, or 0.05",
    )
    faster: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="part by which the steps that are left may be faster than the fastest of late",
    )
    optimism: float = Field(
        2.0,
        gt=0,
        description="the loss may still drop by this many times what the curves so far suggest",
    )
    slack: float = Field(
        0.03, ge=0, description="part of the target loss by which a forecast may miss it"
    )
    after: float = Field(
        0.1, ge=0, le=1, description="part of the steps before which nothing is foretold"
    )


class Reference:
    """A curve of a whole run, for telling how far the loss can still drop.

    Args:
        curve: the validations of the run, in order.
    """

    def __init__(self, curve: Sequence[Metrics]) -> None:
        points = [m for m in curve if math.isfinite(m.val_loss)]
        self._losses = [m.val_loss for m in points]
        self._steps = _rising(m.step for m in points)
        self._times = _rising(m.train_time_ms for m in points)

    def drop_left(self, progress: float, time_ms: float | None) -> float:
        """Return by how much the loss still fell, in nats; the more of two estimates.

        Args:
            progress: part of the steps done; the run is looked at when it had done as many.
            time_ms: milliseconds of training; the run is looked at when it was as old, too.
        """
        losses = []
        if self._steps:
            losses.append(_at(self._steps, self._losses, progress * self._steps[-1]))
        if self._times and time_ms is not None:
            losses.append(_at(self._times, self._losses, time_ms))
        return max(max(losses) - self._losses[-1], 0.0) if losses else 0.0


def _rising(values: Iterable[float | None]) -> list[float]:
    """Return the values as they are if all are there and each is over the one before."""
    known = list(values)
    numbers = [float(v) for v in known if v is not None]
    rises = all(a < b for a, b in pairwise(numbers))
    return numbers if rises and len(numbers) == len(known) else []


def _at(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Return the value at ``x`` of the line through the points; beyond an end, that end's."""
    right = bisect_left(xs, x)
    if right == 0 or right == len(xs):
        return ys[min(right, len(xs) - 1)]
    before, after = xs[right - 1], xs[right]
    part = (x - before) / (after - before)
    return ys[right - 1] + part * (ys[right] - ys[right - 1])


class CurveRule:
    """Says of one running job, after each validation, whether it should be stopped.

    Args:
        options: how careful to be.
        target: validation loss to reach, in nats per token.
        start_ms: time of the start record in milliseconds; None where it is not known, and
            then no run is too late.
        start_curves: whole curves of the start record, as far as they are known.
        best_curve: the curve of the best node, if there is one.

    Attributes:
        reason: why to stop, one line; None while there is no reason.
        wall_s: wall-clock seconds of the job when the reason was found.
    """

    def __init__(
        self,
        options: CurveStop,
        *,
        target: float,
        start_ms: float | None = None,
        start_curves: Iterable[Sequence[Metrics]] = (),
        best_curve: Sequence[Metrics] = (),
    ) -> None:
        self._options = options
        self._margin = MARGIN if options.margin is None else options.margin
        self._target = target
        self._limit_ms, self._whose = start_ms, "the start record's"
        best_ms = best_curve[-1].train_time_ms if best_curve else None
        if options.against == "best" and best_ms and best_ms < (start_ms or math.inf):
            self._limit_ms, self._whose = best_ms, "the best node's"
        self._references = [Reference(c) for c in (*start_curves, best_curve) if c]
        self._latest: deque[Metrics] = deque(maxlen=RECENT + 1)
        self._intervals = 0
        self.reason: str | None = None
        self.wall_s: float | None = None

    def feed(self, metrics: Metrics, wall_s: float) -> str | None:
        """Take the next validation; return why to stop the job, None to go on.

        Args:
            metrics: the validation.
            wall_s: seconds since the job was spawned.
        """
        if self.reason is None and self._options.mode != "off":
            self.reason = self._judge(metrics)
            self.wall_s = wall_s if self.reason else None
        return self.reason

    def _judge(self, now: Metrics) -> str | None:
        if not math.isfinite(now.val_loss):
            return f"val_loss is {now.val_loss} at step {now.step}"
        if self._latest and now.step > self._latest[-1].step:
            self._intervals += 1
        self._latest.append(now)
        if now.steps is not None and now.step >= now.steps:
            return None  # it is over: nothing is left to be saved
        reason = self._too_late(now)
        if self._foretells(now):
            reason = reason or self._too_slow(now)
            if self._options.mode == "safe":
                reason = reason or self._too_high(now)
        return reason

    def _foretells(self, now: Metrics) -> bool:
        """Whether enough was seen to say something of the end."""
        if not now.steps or self._intervals < MIN_INTERVALS:
            return False
        return now.step >= self._options.after * now.steps

    @property
    def _bound_ms(self) -> float:
        limit = math.inf if self._limit_ms is None else self._limit_ms
        return limit * (1 + self._margin)

    def _too_late(self, now: Metrics) -> str | None:
        if now.train_time_ms is None or now.train_time_ms <= self._bound_ms:
            return None
        return (
            f"train_time is {now.train_time_ms / 1000:.1f} s at step {now.step}"
            f"{_of(now.steps)}, past {self._limit_words()}"
        )

    def _too_slow(self, now: Metrics) -> str | None:
        """Return why the run will end too late at the fastest pace that it may reach."""
        pace = self._pace_ms()
        if pace is None or now.train_time_ms is None or now.steps is None:
            return None
        left_ms = (now.steps - now.step) * pace * (1 - self._options.faster)
        end_ms = now.train_time_ms + left_ms
        if end_ms <= self._bound_ms:
            return None
        return (
            f"at step {now.step} of {now.steps} after {now.train_time_ms / 1000:.1f} s it cannot "
            f"end before {end_ms / 1000:.1f} s, past {self._limit_words()}"
        )

    def _too_high(self, now: Metrics) -> str | None:
        """Return why the loss cannot come down to the target in the steps that are left."""
        if now.steps is None:
            return None
        progress = now.step / now.steps
        drops = [r.drop_left(progress, now.train_time_ms) for r in self._references]
        drops.append(self._slope() * (now.steps - now.step))
        lowest = now.val_loss - self._options.optimism * max(drops)
        if lowest <= self._target * (1 + self._options.slack):
            return None
        return (
            f"val_loss is {now.val_loss:.4f} at step {now.step} of {now.steps} and cannot come "
            f"under {lowest:.4f}; the target is {self._target:g}"
        )

    def _pace_ms(self) -> float | None:
        """Milliseconds a step in the fastest interval of late; None without a clock."""
        paces = [
            (after.train_time_ms - before.train_time_ms) / (after.step - before.step)
            for before, after in pairwise(self._latest)
            if after.step > before.step
            and before.train_time_ms is not None
            and after.train_time_ms is not None
        ]
        return max(min(paces), 0.0) if paces else None

    def _slope(self) -> float:
        """Nats a step by which the loss fell in the steepest interval of late."""
        slopes = [
            (before.val_loss - after.val_loss) / (after.step - before.step)
            for before, after in pairwise(self._latest)
            if after.step > before.step
        ]
        return max(0.0, *slopes) if slopes else 0.0

    def _limit_words(self) -> str:
        late = f" by over {self._margin:.0%}" if self._margin else ""
        return f"{self._whose} {(self._limit_ms or 0) / 1000:.1f} s{late}"


def _of(steps: int | None) -> str:
    return "" if steps is None else f" of {steps}"
