"""Strict parsing of training logs, validity, and the fraction of speedup recovered."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import IO, Any

# ASCII digits only: `\d` would accept digits of other scripts.
_NUMBER = r"(?:[0-9]+\.[0-9]+|-?nan|-?inf|-[0-9]+\.[0-9]+)"
_COUNT = r"[0-9]{1,15}"
_VAL_LINE = re.compile(
    rf"step:({_COUNT})/({_COUNT}) val_loss:({_NUMBER}) train_time:(-?{_COUNT})ms"
    rf"(?: step_avg:({_NUMBER})ms)?"
)
_TEL_LINE = re.compile(rf"s:({_COUNT}) tel:({_NUMBER})")
# A number must follow `step:`, and no `#` go before it: some logs quote the source of their
# script, where `step:{step}` in a template or a comment is no torn validation. Only one way
# to match is left open at each place: a line of colons must not take half a second.
_LOOKS_LIKE_VAL = re.compile(
    r"[^\w#]*s\W?t\W?e\W?p[^\w:]*:\W*(?:\d|nan|inf).*val_?loss", re.IGNORECASE
)
MAX_LINE = 4096
"""Characters; a longer line is never a metrics line."""
MAX_TIME_MS = 10**10
"""Milliseconds; a longer train_time (115 days) is a mistake."""
MAX_CURVE = 100_000
"""Validations kept of a log; one with more is no training log."""


@dataclass(frozen=True)
class Metrics:
    """One validation of a training run.

    Attributes:
        step: optimisation steps done.
        steps: steps that the run was to do.
        val_loss: mean validation loss in nats per token.
        train_time_ms: milliseconds of training so far, validation excluded; None where
            the log has no clock.
        step_avg_ms: milliseconds a step as the line has it, None if it has none. It follows
            from the rest, so it is neither compared nor stored.
    """

    step: int
    steps: int | None
    val_loss: float
    train_time_ms: int | None
    step_avg_ms: float | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Report:
    """What a log said.

    Attributes:
        curve: every validation, in the order of the log.
        malformed: lines that look like a validation and are not one, at most ten.
        dropped: validations left out of ``curve`` because there were too many; the last
            one is always kept.
    """

    curve: tuple[Metrics, ...]
    malformed: tuple[str, ...] = ()
    dropped: int = 0

    @property
    def last(self) -> Metrics | None:
        """The last validation, the one that decides."""
        return self.curve[-1] if self.curve else None

    @property
    def valid_lines(self) -> int:
        """How many validations the log has."""
        return len(self.curve) + self.dropped

    def first_at_target(self, target: float) -> Metrics | None:
        """The first validation whose loss is at or under ``target``."""
        reached = (m for m in self.curve if m.val_loss <= target and not _is_negative(m.val_loss))
        return next(reached, None)

    @property
    def anomaly(self) -> str:
        """Why the log is not that of one whole training run; empty when it is.

        One anomaly anywhere spoils the log: a script that prints a line too many, or one
        out of order, does not get to choose which of its lines counts.
        """
        if self.malformed:
            return f"a validation line is malformed: {self.malformed[0]!r}"
        if self.last is None:
            return "no validation line in the log"
        if self.dropped:
            return f"the log has {self.valid_lines} validation lines; {MAX_CURVE} are too many"
        faults = (_value_fault(m) for m in self.curve)
        orders = (_order_fault(a, b) for a, b in pairwise(self.curve))
        found = (fault for faults_of in (faults, orders) for fault in faults_of if fault)
        return next(found, "") or _end_fault(self.last)

    def reason(self, target: float) -> str:
        """Why the log may not count towards ``target``; empty when it may."""
        if anomaly := self.anomaly:
            return anomaly
        if self.last is not None and not self.last.val_loss <= target:
            return f"val_loss {self.last.val_loss:.4f} is over the target {target:g}"
        return ""


def _value_fault(one: Metrics) -> str:
    """Return what is wrong with the values of a validation taken by itself."""
    if not math.isfinite(one.val_loss):
        return f"val_loss is {one.val_loss} at step {one.step}"
    if _is_negative(one.val_loss):
        return f"val_loss is negative at step {one.step}: {one.val_loss}"
    if one.train_time_ms is not None and not 0 <= one.train_time_ms <= MAX_TIME_MS:
        return f"train_time is out of range at step {one.step}: {one.train_time_ms} ms"
    return ""


def _is_negative(value: float) -> bool:
    """Whether a number has a minus sign: ``-0.0000`` is how a small negative loss is printed."""
    return math.copysign(1, value) < 0


def _order_fault(before: Metrics, after: Metrics) -> str:
    """Return why a validation cannot follow another in the log of one run."""
    if after.steps != before.steps:
        return f"the number of steps changes from {before.steps} to {after.steps}"
    if after.step <= before.step:
        return f"a validation of step {after.step} comes after one of step {before.step}"
    if (after.train_time_ms or 0) < (before.train_time_ms or 0):
        return (
            f"train_time goes back from {before.train_time_ms} to {after.train_time_ms} ms "
            f"at step {after.step}"
        )
    return ""


def _end_fault(last: Metrics) -> str:
    """Return why the last validation is not the end of a timed run."""
    if last.train_time_ms is None:
        return "the log has no train_time"
    if last.step != last.steps:
        return f"the log ends at step {last.step} of {last.steps}"
    if last.steps == 0:
        return "the log is of a run without a step"
    if last.train_time_ms == 0:
        return "train_time is 0 at the end"
    return ""


def parse_line(line: str) -> Metrics | None:
    """Read one line of a log; None when it is no validation line.

    Two grammars are known: ``step:N/M val_loss:X train_time:Yms`` with an optional
    ``step_avg:Zms``, and the ``s:N tel:X`` of the first trainers, which has no clock.
    A trailing newline is allowed, nothing else before or after.
    """
    line = line.removesuffix("\n")
    if len(line) > MAX_LINE:
        return None
    if match := _VAL_LINE.fullmatch(line):
        step, steps, loss, time, average = match.groups()
        step_avg = None if average is None else float(average)
        return Metrics(int(step), int(steps), float(loss), int(time), step_avg)
    if match := _TEL_LINE.fullmatch(line):
        return Metrics(int(match[1]), None, float(match[2]), None)
    return None


def is_malformed(line: str) -> bool:
    """Whether a line starts like a validation line without being one."""
    head = line[:MAX_LINE]
    return bool(_LOOKS_LIKE_VAL.match(head)) and parse_line(line) is None


def read_lines(file: IO[bytes]) -> Iterator[str]:
    r"""Yield the lines of a log, ended by ``\n`` alone, the rest of overlong ones left out.

    In text mode Python also ends lines at ``\r``, so that a progress bar could hide a
    metrics line from whoever watches a terminal. Bytes that are no UTF-8 become ``\xNN``.
    """
    begin = True
    while piece := file.readline(MAX_LINE + 1):
        if begin:
            yield piece.decode("utf-8", "backslashreplace")
        begin = piece.endswith(b"\n")


def parse_log(lines: Iterable[str]) -> Report:
    """Read a whole log, line by line, in constant memory whatever it holds."""
    curve: list[Metrics] = []
    malformed: list[str] = []
    dropped = 0
    for line in lines:
        if metrics := parse_line(line):
            if len(curve) == MAX_CURVE:
                curve.pop()
                dropped += 1
            curve.append(metrics)
        elif len(malformed) < 10 and is_malformed(line):
            malformed.append(line.removesuffix("\n")[:200])
    return Report(tuple(curve), tuple(malformed), dropped)


def fsr(start_ms: float, target_ms: float, time_ms: float) -> float:
    """Fraction of the speedup recovered, never clipped.

    ``(t_i - t') / (t_i - t_{i+1})`` with the start record's time ``t_i``, the target
    record's ``t_{i+1}`` and the candidate's ``t'``, all in milliseconds.

    Raises:
        ValueError: the target record is not faster than the start record, so that there
            is no speedup to recover.
    """
    if not target_ms < start_ms:
        raise ValueError(f"no speedup to recover: start {start_ms} ms, target {target_ms} ms")
    return (start_ms - time_ms) / (start_ms - target_ms)


def metrics_to_dict(metrics: Metrics | None) -> dict[str, Any] | None:
    """Return the fields as JSON values; a loss that is not finite becomes a string."""
    if metrics is None:
        return None
    values = asdict(metrics)
    del values["step_avg_ms"]
    if not math.isfinite(metrics.val_loss):
        values["val_loss"] = str(metrics.val_loss)
    return values


def metrics_from_dict(values: dict[str, Any] | None) -> Metrics | None:
    """Undo :func:`metrics_to_dict`."""
    if values is None:
        return None
    return Metrics(
        step=values["step"],
        steps=values["steps"],
        val_loss=float(values["val_loss"]),
        train_time_ms=values["train_time_ms"],
    )
