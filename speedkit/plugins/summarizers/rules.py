"""The rules summarizer: an outcome in plain words, by rules and without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pydantic import Field

from speedkit.core.components import (
    Ending,
    Execution,
    Options,
    RankError,
    Summarizer,
    SummaryRequest,
)
from speedkit.core.metrics import Metrics
from speedkit.core.node import Outcome

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_RANK = re.compile(r"^\[rank\d+\]:[ ]?", re.MULTILINE)
_HEAD = "Traceback (most recent call last):"

LINE_CHARS = 300
"""Characters of a line that are kept."""
REASON_WORDS = 20
"""Words of a reason that are kept."""
MESSAGE_WORDS = 12
"""Words of a rank's message that are kept; the traceback has it in full."""
LAST_WORDS = 5
"""Lines of standard error that are shown where there is no traceback."""

_ENDINGS = {
    Ending.FINISHED: "The job finished",
    Ending.CRASHED: "The job crashed",
    Ending.TIMED_OUT: "The job was ended at its time limit",
    Ending.STALLED: "The job was ended for printing nothing too long",
    Ending.FLOODED: "The job was ended for printing too much",
    Ending.CANCELLED: "The job was cancelled",
    Ending.LOST: "The job was lost by the machinery, not by the script",
}


class RulesOptions(Options):
    """Options of the rules summarizer."""

    curve_points: int = Field(
        6, ge=0, le=12, description="validations shown of the curve, first and last included"
    )
    traceback_lines: int = Field(
        15, ge=0, description="lines shown of the last traceback; 0 shows none"
    )


class RulesSummarizer(Summarizer):
    """Says in under 150 words what became of a node, followed by its last traceback."""

    Options = RulesOptions
    options: RulesOptions

    def summarize(self, request: SummaryRequest) -> str:
        """Return the summary, a sentence a line, then the traceback if there is one."""
        return "\n".join(self._lines(request))

    def _lines(self, request: SummaryRequest) -> Iterator[str]:
        yield _verdict(request)
        if request.execution is not None:
            yield _ending(request.execution, request.node.reason)
        if request.node.metrics is not None:
            yield _metrics(request.node.metrics, request.task.rules.target)
            yield from _early(request)
            yield from _comparisons(request)
        yield from self._curve(request.report.curve)
        yield from self._cause(request)

    def _curve(self, curve: Sequence[Metrics]) -> Iterator[str]:
        shown = spread_out(curve, self.options.curve_points)
        if len(shown) > 1:
            points = ", ".join(f"{m.step}: {m.val_loss:.4g}" for m in shown)
            yield f"Curve (step: val_loss): {points}."

    def _cause(self, request: SummaryRequest) -> Iterator[str]:
        """Yield the failed rank and the last traceback, where the script itself failed."""
        execution = request.execution
        if execution is None or _ended_well(execution, request):
            return
        error = execution.errors[0] if execution.errors else None
        if error is not None:
            yield _failed_rank(error)
        text = last_traceback(error.traceback if error else "") or last_traceback(request.stderr)
        if text and self.options.traceback_lines:
            yield _trim(text, self.options.traceback_lines)
        elif not text:
            yield from _last_words(request.stderr)


def spread_out(curve: Sequence[Metrics], count: int) -> list[Metrics]:
    """Return at most ``count`` points of a curve, evenly spread, first and last included."""
    if len(curve) <= count:
        return list(curve)
    if count < 2:
        return list(curve[-1:] if count else [])
    return [curve[round(i * (len(curve) - 1) / (count - 1))] for i in range(count)]


def last_traceback(text: str) -> str:
    """Return the last Python traceback in a text, cleaned; empty if there is none.

    It ends with the exception: its line, and the lines of its message up to a blank one.
    """
    text = clean(text)
    at = text.rfind(_HEAD)
    if at < 0:
        return ""
    lines = text[at:].splitlines()
    end = next((i for i, line in enumerate(lines[1:], 1) if not line.startswith(" ")), len(lines))
    while end < len(lines) and lines[end].strip():
        end += 1
    return "\n".join(lines[:end])


def clean(text: str) -> str:
    """Return the text without escape sequences, control characters and rank prefixes."""
    text = _ANSI.sub("", text.replace("\r\n", "\n"))
    return _RANK.sub("", _CONTROL.sub("", text.replace("\r", "\n")))


def _ended_well(execution: Execution, request: SummaryRequest) -> bool:
    return execution.ending is Ending.FINISHED and request.node.outcome is not Outcome.BUGGY


def _failed_rank(error: RankError) -> str:
    who = f"Rank {error.rank}" if error.rank >= 0 else "A rank"
    ended = f" (signal {error.signal})" if error.signal else ""
    return f"{who} failed{ended}: {_short(error.message, MESSAGE_WORDS) or 'no message'}"


def _last_words(stderr: str) -> Iterator[str]:
    """Yield the end of standard error: a syntax error, say, comes without a traceback."""
    lines = [line for line in clean(stderr).splitlines() if line.strip()]
    if lines:
        yield "\n".join(["End of stderr:", *(line[:LINE_CHARS] for line in lines[-LAST_WORDS:])])


def _trim(text: str, count: int) -> str:
    lines = [line[:LINE_CHARS] for line in text.splitlines()]
    if len(lines) > count:
        lines = [lines[0], "  …", *lines[len(lines) - count :]]
    return "\n".join(lines)


def _short(text: str, most: int = REASON_WORDS) -> str:
    """Return the text as one line of at most that many words."""
    words = clean(text)[: 20 * LINE_CHARS].split()
    cut = " ".join(words[:most])
    more = len(words) > most or len(cut) > LINE_CHARS
    return cut[:LINE_CHARS] + (" …" if more else "")


def _verdict(request: SummaryRequest) -> str:
    node = request.node
    origin = "" if node.parent is None else f" ({node.stage} of node {node.parent})"
    failed = node.outcome is Outcome.EDIT_FAILED
    outcome = "was not run, its edit failed" if failed else f"is {node.outcome}"
    reason = _short(node.reason).rstrip(".")
    return f"Node {node.id}{origin} {outcome}{': ' if reason else ''}{reason}."


def _ending(execution: Execution, known: str) -> str:
    status = "" if execution.exit_code in (None, 0) else f" with exit status {execution.exit_code}"
    reason = "" if execution.reason in known else _short(execution.reason).rstrip(".")
    said = f": {reason}" if reason else ""
    return f"{_ENDINGS[execution.ending]}{status} after {execution.wall_s:.1f} s{said}."


def _metrics(metrics: Metrics, target: float) -> str:
    steps = "" if metrics.steps is None else f" of {metrics.steps}"
    relation = "at or under" if metrics.val_loss <= target else "not under"
    time = "" if metrics.train_time_ms is None else f", train_time {metrics.train_time_ms} ms"
    return (
        f"Last validation: step {metrics.step}{steps}, val_loss {metrics.val_loss:.4f} "
        f"({relation} the target {target:g}){time}."
    )


def _early(request: SummaryRequest) -> Iterator[str]:
    """Yield where the target was reached before the end: there is time to save."""
    first, last = request.report.first_at_target(request.task.rules.target), request.report.last
    if first is not None and last is not None and first.step < last.step:
        time = "" if first.train_time_ms is None else f", {first.train_time_ms} ms"
        yield f"The target was reached at step {first.step} already{time}."


def _comparisons(request: SummaryRequest) -> Iterator[str]:
    time = request.node.train_time_ms
    if not time or time < 0:
        return
    if request.start_ms:
        yield f"{_compare(time, request.start_ms)} the start record."
    parent = request.parent
    if parent.id not in (0, request.node.id) and parent.is_valid and parent.train_time_ms:
        yield f"{_compare(time, parent.train_time_ms)} its parent, node {parent.id}."


def _compare(time_ms: float, other_ms: float) -> str:
    change = 100 * (other_ms - time_ms) / other_ms
    word = "faster" if change >= 0 else "slower"
    return f"{abs(change):.1f} % {word} than the {other_ms:.0f} ms of"
