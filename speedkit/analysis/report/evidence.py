"""What jobs left in a run directory: curves, logs, verdicts and judgements.

These files may have been written by a script that was under test, so nothing outside the run
directory is followed, nothing but plain files is opened, and little of each is read.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedkit.analysis.report.text import Excerpt, log_text, subject, tail
from speedkit.core.metrics import Metrics, metrics_from_dict

MAX_LOG_BYTES = 32 * 1024
"""Bytes of the end of a log that are read."""
MAX_JSON_BYTES = 16 * 1024 * 1024
"""A larger file of JSON is left unread."""
MAX_ROWS, MAX_COLUMNS = 40, 6
"""Size of a judge's table."""
_RANKS = 8


@dataclass(frozen=True)
class Log:
    """The end of a log."""

    name: str
    end: Excerpt


@dataclass(frozen=True)
class JobFacts:
    """What ``metrics.json`` says of a job besides its curve."""

    ending: str = ""
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What came of verifying a node: FSR with its interval, and ``confirmed`` or not."""

    verdict: str
    fsr: float | None
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        """The verdict with its FSR."""
        return self.verdict if self.fsr is None else f"{self.verdict}, {self.fsr:+.3f}"

    @property
    def interval(self) -> str:
        """The interval of the FSR, empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:+.3f} to {self.high:+.3f}"


@dataclass(frozen=True)
class Judgement:
    """A judge's score of a node, and the table behind it."""

    judge: str
    score: float | None
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Folder:
    """Reads files below a run directory.

    Args:
        root: the run directory.
        points: the most validations of a curve.
        log_lines: last lines of a log.
        clean: takes secrets out of a text.
    """

    root: Path
    points: int
    log_lines: int
    clean: Callable[[str], str]

    def curve(self, place: str) -> tuple[Metrics, ...]:
        """Return the validations of a job that have a time and a finite loss, thinned out."""
        values = self._json(f"{place}/metrics.json").get("curve")
        found = [m for m in map(_validation, _list(values)) if m is not None]
        return self.thinned(found)

    def thinned(self, curve: Sequence[Metrics]) -> tuple[Metrics, ...]:
        """Return at most ``points`` validations, the first and the last among them."""
        last = len(curve) - 1
        if last < self.points:
            return tuple(curve)
        return tuple(curve[round(k * last / (self.points - 1))] for k in range(self.points))

    def job(self, place: str) -> JobFacts:
        """Return how a job ended and what was changed in its script."""
        values = self._json(f"{place}/metrics.json")
        changes = [self.clean(str(c)) for c in _list(values.get("script_changes"))[:MAX_ROWS]]
        return JobFacts(subject(str(values.get("ending", ""))), tuple(changes))

    def logs(self, place: str) -> tuple[Log, ...]:
        """Return the ends of rank 0's output, and of the errors of others if it has none."""
        names = ["rank0.stdout.log", "rank0.stderr.log"]
        found = [log for log in (self._log(place, n) for n in names) if log]
        if not any(log.name == names[1] for log in found):
            others = (f"rank{k}.stderr.log" for k in range(1, _RANKS))
            found += [log for log in (self._log(place, n) for n in others) if log][:1]
        return tuple(found)

    def _log(self, place: str, name: str) -> Log | None:
        data, cut = self._read(f"{place}/{name}", MAX_LOG_BYTES, end=True)
        text = self.clean(log_text(data.decode("utf-8", "backslashreplace")))
        return Log(name, tail(text, self.log_lines, cut=cut)) if text.strip() else None

    def verdicts(self) -> dict[int, Verdict]:
        """Return what verifying said, by node."""
        nodes = self._json("verify.json").get("nodes")
        if not isinstance(nodes, Mapping):
            return {}
        return {
            int(key): _verdict(value)
            for key, value in nodes.items()
            if key.isascii() and key.isdigit() and len(key) < 9 and isinstance(value, Mapping)
        }

    def judgements(self, place: str) -> tuple[Judgement, ...]:
        """Return what judges said of a node."""
        folder = self.root / place
        if not self._is_inside(folder):
            return ()
        names = sorted(p.name for p in folder.glob("judge-*.json"))[:MAX_COLUMNS]
        return tuple(self._judgement(place, name) for name in names)

    def _judgement(self, place: str, name: str) -> Judgement:
        values = self._json(f"{place}/{name}")
        table = [r for r in _list(values.get("table")) if isinstance(r, Mapping)][:MAX_ROWS]
        columns = list(dict.fromkeys(str(c) for row in table for c in row))[:MAX_COLUMNS]
        rows = [tuple(self.clean(str(row.get(c, "")))[:500] for c in columns) for row in table]
        judge = name.removeprefix("judge-").removesuffix(".json")
        return Judgement(judge, _finite(values.get("score")), tuple(columns), tuple(rows))

    # --- files --------------------------------------------------------------------------

    def _json(self, place: str) -> Mapping[str, Any]:
        data, cut = self._read(place, MAX_JSON_BYTES)
        try:
            values = {} if cut or not data else json.loads(data)
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    def _read(self, place: str, limit: int, *, end: bool = False) -> tuple[bytes, bool]:
        """Return the beginning or end of a plain file, and whether there is more of it."""
        path = self.root / place
        if not self._is_inside(path.parent):
            return b"", False
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b"", False
        with open(fd, "rb") as file:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                return b"", False
            file.seek(max(0, facts.st_size - limit) if end else 0)
            return file.read(limit), facts.st_size > limit

    def _is_inside(self, folder: Path) -> bool:
        return folder.resolve().is_relative_to(self.root.resolve())


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _finite(value: Any) -> float | None:
    """Return a number, None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e15 and math.isfinite(value) else None


def _validation(values: Any) -> Metrics | None:
    try:
        metrics = metrics_from_dict(values)
    except (TypeError, KeyError, ValueError):
        return None
    if metrics is None:
        return None
    numbers = (metrics.step, metrics.val_loss, metrics.train_time_ms)
    known = [_finite(number) for number in numbers]
    return metrics if all(n is not None and n >= 0 for n in known) else None


def _verdict(values: Mapping[str, Any]) -> Verdict:
    numbers = (_finite(values.get(k)) for k in ("fsr", "low", "high"))
    return Verdict(subject(str(values.get("verdict") or "undecided")), *numbers)
