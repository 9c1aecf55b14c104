"""Rows of a results table as figures need them: who wrote the nodes, which order, which groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from speedkit.analysis.cellscores import SETTINGS, UNKNOWN, CellScores, counted
from speedkit.analysis.columns import INVALID
from speedkit.analysis.export import rows_of
from speedkit.analysis.statistics import Bootstrap
from speedkit.core.errors import UsageError

Row = dict[str, Any]
Results = Any
"""A table of :func:`speedkit.analysis.load`, or its rows as mappings."""
SCAFFOLDS = ("flat", "tree", "forest", "aide", "multi_aide")
"""Those of the paper come first, in its order."""
AGENT = "agent"
"""Key of a row for the coder, the model, or both: what tells the writers of nodes apart."""


@dataclass(frozen=True)
class Choice:
    """What is drawn of runs.

    Attributes:
        score: ``fsr`` or ``verified_fsr``.
        invalid: what a run without a node that may count is: ``zero``, or ``drop``.
        bootstrap: draws behind the intervals of aggregates; those of single tasks and of
            curves take fewer.
    """

    score: str = "fsr"
    invalid: Literal["zero", "drop"] = "zero"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.score not in ("fsr", "verified_fsr"):
            raise UsageError(f"no score {self.score!r}: fsr, verified_fsr")
        if self.invalid not in ("zero", "drop"):
            raise UsageError(f"invalid runs cannot be {self.invalid!r}: zero, drop")

    @property
    def drop_invalid(self) -> bool:
        """Whether invalid runs are left out."""
        return self.invalid == "drop"

    @property
    def score_name(self) -> str:
        """The score as readers know it."""
        return {"fsr": "FSR", "verified_fsr": "verified FSR"}[self.score]

    def fewer(self, draws: int) -> Bootstrap:
        """Return a bootstrap with at most so many draws."""
        made = self.bootstrap
        return Bootstrap(min(made.draws, draws), made.seed, made.level)


def rows_with_agent(results: Results) -> list[Row]:
    """Return the rows of a table, each with its agent."""
    rows = _rows(results)
    coders = {r["coder"] for r in rows}
    for row in rows:
        row[AGENT] = _agent(row, several=len(coders) > 1)
    return rows


def _rows(results: Results) -> list[Row]:
    from speedkit.analysis.results import frame_of

    plain = rows_of(results) if hasattr(results, "itertuples") else results
    return list(rows_of(frame_of([dict(row) for row in plain])))


def _agent(row: Row, several: bool) -> str:
    model = row["model"] or row["model_asked"]
    coder = row["coder"] if several or not model else None
    return " · ".join(p for p in (coder, model) if p) or UNKNOWN


def hint_order(name: str) -> tuple[int, str]:
    """Sort key of hint levels: none, then one level, two, three."""
    return (0, "") if name == "none" else (1 + name.count("+"), name)


def order(column: str, value: str) -> tuple[int, str]:
    """Sort key of the values of a column, in an order for readers."""
    if column == "hints":
        return hint_order(value)
    known = column == "scaffold" and value in SCAFFOLDS
    return (SCAFFOLDS.index(value) if known else len(SCAFFOLDS), value)


def distinct(rows: Iterable[Row], column: str) -> list[str]:
    """Return the values of a column, in an order for readers."""
    return sorted({_value(r, column) for r in rows}, key=lambda v: order(column, v))


def grouped(
    rows: Sequence[Row], candidates: Sequence[Sequence[str]], most: int
) -> dict[str, list[Row]]:
    """Return rows by label, split by the first columns that make at most so many groups.

    Columns in which no rows differ are left out of the labels.
    """
    for names in candidates:
        varied = [n for n in names if len(distinct(rows, n)) > 1] or list(names[:1])
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(tuple(_value(row, n) for n in varied), []).append(row)
        if len(groups) <= most or names is candidates[-1]:
            keys = sorted(groups, key=lambda k: [*map(order, varied, k)])
            return {_label(varied, k): groups[k] for k in keys}
    raise ValueError("no columns to group by")


def _value(row: Row, name: str) -> str:
    return UNKNOWN if row[name] is None else str(row[name])


def _label(names: Sequence[str], values: Sequence[str]) -> str:
    parts = (f"hints {v}" if n == "hints" else v for n, v in zip(names, values, strict=True))
    return " · ".join(parts)


# --- what is said below a figure ----------------------------------------------------------------


def runs_note(cells: Iterable[CellScores], choice: Choice) -> str:
    """Say how many runs enter, how many count as 0, and how many do not enter, and why."""
    cells = list(cells)
    runs, zeros = sum(c.runs for c in cells), sum(c.zeros for c in cells)
    tasks = len({t for c in cells for t in c.scores})
    text = f"n = {counted(runs)} on {tasks} {'task' if tasks == 1 else 'tasks'}"
    if zeros:
        text += f", {zeros} of them invalid, which count as {choice.score_name} 0"
    left_out = sum((c.left_out for c in cells), Counter[str]())
    reasons = ", ".join(f"{n} {why}" for why, n in sorted(left_out.items()))
    return f"{text}; left out: {reasons or 'none'}."


def mixed_note(cells: Mapping[Any, CellScores], split_by: Sequence[str]) -> str:
    """Say in which settings the runs of one cell differ; empty if in none."""
    known = (*split_by, *(("coder", "model") if AGENT in split_by else ()))
    return pooled_note([cell.rows for cell in cells.values()], known)


def pooled_note(groups: Sequence[Sequence[Mapping[str, Any]]], known: Sequence[str] = ()) -> str:
    """Say in which settings, but for the known ones, the runs of one group differ."""
    names = [n for n in SETTINGS if n not in known and any(_differ(g, n) for g in groups)]
    return f"Runs that are pooled differ in {', '.join(names)}." if names else ""


def _differ(group: Sequence[Mapping[str, Any]], name: str) -> bool:
    return len({row[name] for row in group}) > 1


def unlike_tasks_note(cells: Mapping[Any, CellScores]) -> str:
    """Say that aggregates do not compare, where they are of different tasks."""
    sets = {cell.tasks for cell in cells.values() if cell.tasks}
    return "Rows have different tasks, so they do not compare." if len(sets) > 1 else ""


def interval_note(bootstrap: Bootstrap, over: str = "over seeds (tasks fixed)") -> str:
    """Say what the intervals are."""
    return (
        f"{bootstrap.level:.0%} intervals {over}: percentiles of {bootstrap.draws:,} "
        "stratified bootstrap draws"
    )


def is_invalid(row: Mapping[str, Any]) -> bool:
    """Whether a run is over without a node that may count."""
    return bool(row["result"] == INVALID)
