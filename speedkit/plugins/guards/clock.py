"""The clock guard: whether the claimed time fits what the harness saw on its own clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pydantic import Field

from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Guard, GuardOptions, Result
from speedkit.core.metrics import Metrics

Arrivals = Sequence[tuple[float, Metrics]]

PEAK_FLOPS = {
    "B200": 9.0e15,
    "H200": 1.98e15,
    "H100": 1.98e15,
    "L40S": 7.3e14,
    "A100": 3.12e14,
    "A10": 1.25e14,
    "V100": 1.25e14,
}
"""Operations a second of one GPU at best, in the narrowest type that training may use."""
PARAMETERS = 85e6
"""Weights of the twelve blocks of GPT-2, which take part in every token."""


class ClockOptions(GuardOptions):
    """Options of the clock guard."""

    slack_s: float = Field(
        0.25, ge=0, description="seconds by which a line may come sooner than it claims"
    )
    fastest: float = Field(
        0.5, ge=0, lt=1, description="least claimed time, as a share of the target record's"
    )
    startup_s: float | None = Field(
        None,
        gt=0,
        description="untimed seconds before the first steps, and after the last line, "
        "instead of the family's",
    )
    validation_s: float | None = Field(
        None, gt=0, description="untimed seconds for a validation, instead of the family's"
    )


class ClockGuard(Guard):
    """Compares claimed times with the moments at which lines came, and with floors."""

    cost = 0
    title = "whether the claimed time fits the harness's own clock, and is not too short"
    Options = ClockOptions
    options: ClockOptions

    @property
    def name(self) -> str:
        """The name in its findings."""
        return "clock"

    def check_result(self, result: Result) -> Iterator[Finding]:
        """Return what the claimed times contradict."""
        last = result.report.last
        if result.task.family.evaluation.simulated:
            return
        if last is None or last.train_time_ms is None:
            return
        claimed, wall = last.train_time_ms / 1000, result.execution.wall_s
        if claimed > wall + self.options.slack_s:
            yield self.found(
                Level.REJECT, f"{claimed:.2f} s are claimed, and the job took {wall:.2f} s"
            )
        yield from self._arrivals(result.arrivals)
        yield from self._untimed(result)
        yield from self._floors(result, last)

    def _arrivals(self, arrivals: Arrivals) -> Iterator[Finding]:
        """Yield where lines came sooner after one another than they claim."""
        slack = self.options.slack_s
        moments = [(0.0, 0.0, 0), *((at, _seconds(m), m.step) for at, m in arrivals)]
        for (at0, claimed0, _), (at1, claimed1, step) in pairwise(moments):
            seen, claimed = at1 - at0, claimed1 - claimed0
            if seen + slack < claimed:
                text = f"step {step} came {seen:.2f} s after the line before"
                yield self.found(Level.REJECT, f"{text}, and claims {claimed:.2f} s of training")
                return
        if len(arrivals) > 2 and (reason := _burst(arrivals)):
            yield self.found(Level.REJECT, reason)

    def _untimed(self, result: Result) -> Iterator[Finding]:
        """Yield where far more time passed than is claimed and may go uncounted."""
        rules, arrivals = result.task.family.evaluation, result.arrivals
        startup = self.options.startup_s or rules.startup_s
        validation = self.options.validation_s or rules.validation_s
        if not arrivals:
            return
        at, first = arrivals[0]
        before = at - _seconds(first)
        if startup is not None and before > startup + (validation or 0):
            yield self.found(
                Level.QUARANTINE,
                f"{before:.1f} s went by uncounted until step {first.step}; "
                f"{startup:g} s are usual",
            )
        after = result.execution.wall_s - arrivals[-1][0]
        if startup is not None and after > startup:
            yield self.found(
                Level.QUARANTINE,
                f"the job went on for {after:.1f} s after its last line; {startup:g} s are usual",
            )
        for (at0, one), (at1, other) in pairwise(arrivals):
            hidden = at1 - at0 - (_seconds(other) - _seconds(one))
            if validation is not None and hidden > validation:
                yield self.found(
                    Level.QUARANTINE,
                    f"{hidden:.2f} s went by uncounted between steps {one.step} and "
                    f"{other.step}; {validation:g} s are usual for a validation",
                )
                return

    def _floors(self, result: Result, last: Metrics) -> Iterator[Finding]:
        claimed = _seconds(last)
        if result.target_ms and 1000 * claimed < self.options.fastest * result.target_ms:
            yield self.found(
                Level.QUARANTINE,
                f"{claimed:.2f} s are claimed, less than {self.options.fastest:g} of the "
                f"target record's {result.target_ms / 1000:.2f} s",
            )
        floor = _compute_floor(result, last.step)
        if floor is not None and claimed < floor:
            yield self.found(
                Level.REJECT,
                f"{claimed:.1f} s are claimed; the GPUs need {floor:.1f} s at their peak rate",
            )


def _seconds(metrics: Metrics) -> float:
    return (metrics.train_time_ms or 0) / 1000


def _burst(arrivals: Arrivals) -> str:
    """Return why lines were written at once that claim to be of different times."""
    seen = arrivals[-1][0] - arrivals[0][0]
    claimed = _seconds(arrivals[-1][1]) - _seconds(arrivals[0][1])
    if claimed > 0.02 and seen < 0.7 * claimed:
        return f"all lines came within {seen:.2f} s, and claim {claimed:.2f} s between them"
    return ""


def _compute_floor(result: Result, steps: int) -> float | None:
    """Return the seconds that so many steps take at the peak rate; None if it is not known."""
    tokens, gpus = result.task.start.tokens_per_step, result.hardware.get("gpus")
    if tokens is None or not gpus:
        return None
    name = str(next(iter(gpus))).upper()
    peak = next((rate for model, rate in PEAK_FLOPS.items() if model in name), None)
    if peak is None:
        return None
    count = int(result.hardware.get("nproc") or sum(gpus.values()))
    return 6 * PARAMETERS * tokens * steps / (peak * count)
