"""Which runs enter a comparison, with what score, and in which cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speedkit.analysis.columns import INVALID, MISSING, OVER

FACTORS = (
    *("scaffold", "coder", "model", "hints", "knowledge", "start", "task", "family"),
    *("model_asked", "name", "source", "calibration", "gate", "speedkit"),
)
"""Columns by which runs can be told apart."""
SETTINGS = ("scaffold", "coder", "model", "hints", "knowledge", "start")
"""Columns in which the runs of one cell had better agree."""
SCORES = ("fsr", "verified_fsr")
"""Columns that can be compared."""
UNKNOWN = "–"
"""How a value that is not known is shown."""

Row = Mapping[str, Any]
Key = tuple[str, ...]


@dataclass
class CellScores:
    """The runs of one cell.

    Attributes:
        scores: of the runs that enter, by task.
        left_out: how many runs do not enter, by reason.
        rows: of the runs that enter.
    """

    scores: dict[str, list[float]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    rows: list[Row] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """Number of runs that enter."""
        return len(self.rows)

    @property
    def zeros(self) -> int:
        """Number of them that have no node that may count, and so enter as 0."""
        return sum(row["result"] == INVALID for row in self.rows)

    @property
    def invalid(self) -> int:
        """Number of runs that are over without a node that may count, dropped ones included."""
        return self.zeros + self.left_out["invalid"]

    def by_task(self, tasks: Iterable[str] | None = None) -> list[list[float]]:
        """Return the scores of the given tasks, by default of all, in order of the tasks."""
        return [self.scores[t] for t in (self.tasks if tasks is None else tasks)]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have runs, in order."""
        return tuple(sorted(self.scores, key=task_order))

    def add(self, row: Row, score: str, drop_invalid: bool) -> None:
        """Let a run enter, or count why it does not."""
        reason = _objection(row, score, drop_invalid)
        if reason:
            self.left_out[reason] += 1
            return
        value = 0.0 if row["result"] == INVALID else float(row[score])
        self.scores.setdefault(_task(row), []).append(value)
        self.rows.append(row)

    def keep(self, tasks: Container[str]) -> None:
        """Leave the runs of all other tasks out."""
        for task in [t for t in self.scores if t not in tasks]:
            self.left_out["task not in every cell"] += len(self.scores.pop(task))
        self.rows = [row for row in self.rows if _task(row) in tasks]


def _task(row: Row) -> str:
    return str(row["task"] or UNKNOWN)


def _objection(row: Row, score: str, drop_invalid: bool) -> str:
    """Return why a run does not enter; empty when it does."""
    if not is_over(row):
        return "not over"
    if row["result"] == MISSING:
        return "missing"
    if row["result"] == INVALID:
        return "invalid" if drop_invalid else ""
    return "" if row[score] is not None else "not verified"


def is_over(row: Row) -> bool:
    """Whether the search of a run is over, as far as is known."""
    return row["status"] is None or row["status"] in OVER


def task_order(name: str) -> tuple[str, int, str]:
    """Sort key that puts task 10 after task 9."""
    family, _, number = name.rpartition("/")
    return (family, int(number), "") if number.isdecimal() else (name, 0, number)


def cells_of(
    rows: Iterable[Row], by: Sequence[str], score: str, *, drop_invalid: bool = False
) -> dict[Key, CellScores]:
    """Sort runs into cells.

    Args:
        by: the columns that make a cell.
        score: the column that is compared.
        drop_invalid: leave runs without a node that may count out, instead of letting them
            count as 0.
    """
    cells: dict[Key, CellScores] = {}
    for row in rows:
        key = tuple(_label(row[name]) for name in by)
        cells.setdefault(key, CellScores()).add(row, score, drop_invalid)
    return {key: cells[key] for key in sorted(cells, key=lambda k: [task_order(v) for v in k])}


def _label(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


# --- what must be said of cells ------------------------------------------------------------------


def notes_on(cells: Mapping[Key, CellScores], by: Sequence[str]) -> list[str]:
    """Return a sentence on each thing that a reader of the cells should know."""
    notes = [_mixed(cells, by, name) for name in SETTINGS if name not in by]
    notes += [_differing(cells, name) for name in ("gate", "calibration") if name not in by]
    notes += [_single_runs(key, cell) for key, cell in cells.items()]
    return [n for n in (*notes, _unlike_tasks(cells, by), _repeats(cells), _imports(cells)) if n]


def _mixed(cells: Mapping[Key, CellScores], by: Sequence[str], name: str) -> str:
    mixed = [_values(cell, name) for cell in cells.values()]
    values = sorted({v for found in mixed if len(found) > 1 for v in found})
    if not values:
        return ""
    more = ",".join((*by, name))
    return f"runs of one cell differ in {name} ({', '.join(values)}); --by {more} tells them apart"


def _differing(cells: Mapping[Key, CellScores], name: str) -> str:
    """Name the values of a column in which runs of one task differ."""
    found: dict[str, set[str]] = {}
    for cell in cells.values():
        for row in cell.rows:
            found.setdefault(str(row["task"]), set()).add(_label(row[name]))
    values = sorted({v for seen in found.values() if len(seen) > 1 for v in seen})
    return f"runs of one task differ in {name}: {', '.join(values)}" if values else ""


def _values(cell: CellScores, name: str) -> set[str]:
    return {_label(row[name]) for row in cell.rows}


def _single_runs(key: Key, cell: CellScores) -> str:
    single = sum(len(scores) == 1 for scores in cell.scores.values())
    if not single:
        return ""
    label = ", ".join(key)
    if single == len(cell.scores):
        return f"{label}: one run a task, so there is no interval over seeds"
    return (
        f"{label}: {single} of {len(cell.scores)} tasks have one run, which varies in no "
        "resample, so the intervals over seeds are too narrow"
    )


def _unlike_tasks(cells: Mapping[Key, CellScores], by: Sequence[str]) -> str:
    sets = {cell.tasks for cell in cells.values() if cell.tasks}
    if len(sets) < 2 or "task" in by or "family" in by:
        return ""
    common = set.intersection(*map(set, sets))
    return (
        f"cells have different tasks, {len(common)} in common, so their aggregates do not "
        "compare; --common-tasks leaves the others out"
    )


def _repeats(cells: Mapping[Key, CellScores]) -> str:
    """Count runs that share cell, task, settings and seed; each is a run of its own."""
    names = ("task", "seed", *SETTINGS)
    tally = Counter(
        (key, *(row[n] for n in names))
        for key, cell in cells.items()
        for row in cell.rows
        if row["seed"] is not None
    )
    repeated = sum(count - 1 for count in tally.values())
    text = f"{counted(repeated)} with the task, settings and seed of another; all count"
    return text if repeated else ""


def _imports(cells: Mapping[Key, CellScores]) -> str:
    count = sum(row["source"] == "import" for cell in cells.values() for row in cell.rows)
    return f"{counted(count)} from imported results" if count else ""


def counted(runs: int) -> str:
    """Return a number of runs in words."""
    return "1 run" if runs == 1 else f"{runs} runs"
