"""The log guard: whether a log is that of one training run, as far as its numbers tell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pydantic import Field

from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Guard, GuardOptions, Result
from speedkit.core.metrics import Metrics
from speedkit.plugins.guards._evaluation_code import settings
from speedkit.plugins.guards._syntax import read

UNTIMED_STEPS = 12
"""Steps that ``step_avg`` may leave out: many records do not time the first ten."""
FIRST_CHECKED = 20
"""Before this step an average over few steps says little."""
STANDSTILL = 0.1
"""Least time of steps between two validations, as a share of what is usual."""
VOCABULARIES = ("vocab_size", "num_vocab")


class LogOptions(GuardOptions):
    """Options of the log guard."""

    cliff: float = Field(
        1.5, gt=1, description="times as steep as before that the loss may fall at the end"
    )
    cliff_nats: float = Field(0.02, gt=0, description="a smaller fall at the end is no cliff")
    rush: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="least time of the last steps, as a share of the quickest before",
    )
    fresh: float = Field(
        0.9, gt=0, lt=1, description="least loss at step 0, as a share of ln(vocabulary)"
    )
    implausible: float = Field(
        0.8, gt=0, lt=1, description="least val_loss at the end, as a share of the target"
    )


class LogGuard(Guard):
    """Looks for numbers in a log that do not fit each other.

    That steps and times grow, that losses are finite and that there is one final line, which
    ends the run, is checked of every log by the strict parser already.
    """

    cost = 0
    title = "whether the numbers of the log fit each other"
    Options = LogOptions
    options: LogOptions

    @property
    def name(self) -> str:
        """The name in its findings."""
        return "log"

    def check_result(self, result: Result) -> Iterator[Finding]:
        """Return what does not fit; nothing is known of losses that scripts make up."""
        if result.task.family.evaluation.simulated:
            return
        curve = result.report.curve
        yield from self.check_curve(curve, vocabulary(result.code.script), result.task.rules.target)

    def check_curve(
        self, curve: Sequence[Metrics], vocab: int | None, target: float
    ) -> Iterator[Finding]:
        """Return what does not fit in a curve.

        Args:
            curve: the validations of a log that the strict parser takes for whole.
            vocab: number of token ids, None if it is not known.
            target: validation loss in nats per token.
        """
        if reason := _average_fault(curve):
            yield self.found(Level.REJECT, reason)
        if vocab is not None and (reason := self._start_fault(curve, vocab)):
            yield self.found(Level.REJECT, reason)
        for reason in (self._cliff(curve), self._rush(curve), self._implausible(curve, target)):
            if reason:
                yield self.found(Level.QUARANTINE, reason)

    def _start_fault(self, curve: Sequence[Metrics], vocab: int) -> str:
        first = curve[0]
        if first.step == 0 and first.val_loss < self.options.fresh * math.log(vocab):
            return (
                f"val_loss is {first.val_loss:.4f} before any training; a model that knows "
                f"nothing has {math.log(vocab):.2f} = ln({vocab})"
            )
        return ""

    def _cliff(self, curve: Sequence[Metrics]) -> str:
        if len(curve) < 4:
            return ""
        slopes = [(a.val_loss - b.val_loss) / (b.step - a.step) for a, b in pairwise(curve)]
        before, drop = max(slopes[-4:-1]), curve[-2].val_loss - curve[-1].val_loss
        if drop > self.options.cliff_nats and slopes[-1] > self.options.cliff * max(before, 0.0):
            return (
                f"the loss falls by {drop:.4f} in the last {curve[-1].step - curve[-2].step} "
                "steps, more steeply than before"
            )
        return ""

    def _rush(self, curve: Sequence[Metrics]) -> str:
        paces = _paces(curve)
        if len(paces) < 3:
            return ""
        quickest = min(paces[:-1])
        if paces[-1] < self.options.rush * quickest:
            return f"the last steps took {paces[-1]:.2f} ms each, those before {quickest:.2f} ms"
        usual = statistics.median(paces)
        if min(paces) < STANDSTILL * usual:
            return f"some steps took {min(paces):.2f} ms each, where {usual:.2f} ms are usual"
        return ""

    def _implausible(self, curve: Sequence[Metrics], target: float) -> str:
        loss = curve[-1].val_loss
        if loss < self.options.implausible * target:
            return f"val_loss {loss:.4f} is far under the target {target:g}"
        return ""


def _average_fault(curve: Sequence[Metrics]) -> str:
    """Return where ``step_avg`` does not follow from step and time; empty if nowhere."""
    for m in curve:
        if m.step < FIRST_CHECKED or m.step_avg_ms is None or m.train_time_ms is None:
            continue
        average = m.step_avg_ms
        least, most = (m.train_time_ms / n for n in (m.step + 1, m.step - UNTIMED_STEPS))
        if not least - 0.05 <= average <= most + 0.05:
            return (
                f"step_avg {average:g} ms at step {m.step} does not fit its "
                f"train_time of {m.train_time_ms} ms"
            )
    return ""


def _paces(curve: Sequence[Metrics]) -> list[float]:
    """Return milliseconds a step between validations, without the first steps."""
    return [
        ((b.train_time_ms or 0) - (a.train_time_ms or 0)) / (b.step - a.step)
        for a, b in pairwise(curve)
        if a.step > 0
    ]


def vocabulary(source: str) -> int | None:
    """Return the number of token ids that a script names, None if it names none."""
    try:
        found = settings(read(source))
    except ValueError:
        return None
    values = (found[name][1] for name in VOCABULARIES if name in found)
    return max((v for v in values if isinstance(v, int) and v > 1), default=None)
