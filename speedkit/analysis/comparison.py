"""Comparing cells of runs: aggregates, differences, and what they depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from speedkit.analysis.cellscores import (
    FACTORS,
    SCORES,
    CellScores,
    Key,
    Row,
    cells_of,
    notes_on,
    task_order,
)
from speedkit.analysis.compared import (
    Cell,
    Comparison,
    InvalidAs,
    Pair,
    Sensitivity,
    TaskDifference,
)
from speedkit.analysis.export import rows_of
from speedkit.analysis.results import PathLike, Sources, collect, frame_of
from speedkit.analysis.statistics import (
    Bootstrap,
    Estimate,
    Floats,
    Strata,
    aggregate,
    paired,
)
from speedkit.core.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    import pandas as pd

RECORD_GATES = (3.28, 3.29)
"""The gate of the NanoGPT speedrun, and the one that allows for noise of single runs."""
MAX_PAIRED = 6
"""With more cells, each is compared with the first alone and not with every other."""


def compare(
    results: pd.DataFrame | PathLike | Iterable[PathLike],
    by: str | Sequence[str] = "scaffold",
    *,
    score: str = "fsr",
    invalid: InvalidAs = "zero",
    baseline: str | None = None,
    common_tasks: bool = False,
    gates: Sequence[float] | None = None,
    bootstrap: Bootstrap | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare cells of runs.

    A run that is not over, or whose result is missing, never enters.

    Args:
        results: paths as :func:`speedkit.analysis.load` takes them, or its table; the runs of
            a table cannot be judged by another gate.
        by: the columns that make a cell, one or several.
        score: ``fsr``, or ``verified_fsr``, where runs that were not verified stay out.
        invalid: what a run without a node that may count is: ``zero``, because its start
            script stands and nothing was recovered, or ``drop``.
        baseline: the cell that all others are compared with, its values joined by commas; by
            default all pairs are compared, or with many cells, all with the first.
        common_tasks: leave tasks out that some cell does not have.
        gates: validation losses by which all nodes are judged anew for the sensitivity rows;
            by default 3.28 and 3.29 for runs that had either.
        bootstrap: draws, seed and level of the intervals.

    Raises:
        UsageError: a wrong argument, or nothing to compare.
    """
    columns = _checked_by(by)
    if score not in SCORES:
        raise UnknownNameError("score", score, SCORES)
    sources = results if _is_frame(results) else collect(results, on_warning)
    work = _Work(columns, score, invalid, common_tasks, bootstrap or Bootstrap())
    rows = list(rows_of(sources.frame())) if isinstance(sources, Sources) else _rows(sources)
    scored = work.cells(rows)
    work.check(scored)
    pairs = work.pairs(scored, _partners(list(work.full(scored)), baseline))
    rules = [*work.plain_rules(rows), *_gate_rules(work, sources, rows, gates)]
    return Comparison(
        by=columns,
        score=score,
        invalid=invalid,
        bootstrap=work.bootstrap,
        cells=tuple(work.cell(key, cell) for key, cell in scored.items()),
        pairs=tuple(pairs),
        sensitivity=tuple(work.sensitivity(rules)),
        notes=(*notes_on(scored, columns), *_gate_notes(sources, score, rules)),
    )


def _is_frame(results: Any) -> bool:
    return hasattr(results, "itertuples")


def _rows(frame: Any) -> list[Row]:
    """Return the rows of a table, with whatever columns it lacks."""
    return list(rows_of(frame_of([dict(row) for row in rows_of(frame)])))


def _checked_by(by: str | Sequence[str]) -> tuple[str, ...]:
    names = by.split(",") if isinstance(by, str) else [n for b in by for n in b.split(",")]
    names = list(dict.fromkeys(n.strip() for n in names if n.strip()))
    for name in names:
        if name not in FACTORS:
            raise UnknownNameError("column to compare by", name, FACTORS)
    if not names:
        raise UsageError(f"say by what to compare: {', '.join(FACTORS)}")
    return tuple(names)


def _partners(keys: Sequence[Key], baseline: str | None) -> list[tuple[Key, Key]]:
    """Return the pairs of cells that are compared, the baseline second."""
    if baseline is None and len(keys) <= MAX_PAIRED:
        return [(b, a) for a, b in combinations(keys, 2)]
    known = {",".join(key): key for key in keys}
    if baseline is not None and baseline not in known:
        raise UnknownNameError("cell", baseline, known)
    base = keys[0] if baseline is None else known[baseline]
    return [(key, base) for key in keys if key != base]


Rule = tuple[str, dict[Key, CellScores], Callable[[Floats], Floats]]


def _same(scores: Floats) -> Floats:
    return scores


def _clipped(scores: Floats) -> Floats:
    return np.clip(scores, 0.0, 1.0)


def _gate_rules(
    work: _Work, sources: Any, rows: Sequence[Row], gates: Sequence[float] | None
) -> list[Rule]:
    """Return a rule for each gate under which runs can be judged anew."""
    if not isinstance(sources, Sources) or work.score != "fsr":
        return []
    chosen = gates if gates is not None else RECORD_GATES
    if gates is None and not any(row["gate"] in RECORD_GATES for row in rows):
        return []
    rules: list[Rule] = []
    for gate in chosen:
        under = rows_of(sources.frame(gate))
        pairs = zip(rows, under, strict=True)
        judged = [new if gates or old["gate"] in RECORD_GATES else old for old, new in pairs]
        rules.append((f"gate {gate:g}", work.cells(judged), _same))
    return rules


def _gate_notes(sources: Any, score: str, rules: Sequence[Rule]) -> list[str]:
    """Say why there are no rows for other gates, or what they cannot cover."""
    if any(name.startswith("gate ") for name, _, _ in rules):
        files = isinstance(sources, Sources) and sources.files
        text = "imported results cannot be judged by another gate than their own"
        return [text] if files else []
    if score != "fsr":
        return ["no rows for other gates: verification used one"]
    if not isinstance(sources, Sources):
        return ["no rows for other gates: a table has no nodes to judge anew"]
    return ["no rows for other gates: no run has 3.28 or 3.29; --gate LOSS adds one"]


@dataclass(frozen=True)
class _Work:
    """The arguments of a comparison, and its steps."""

    by: tuple[str, ...]
    score: str
    invalid: InvalidAs
    common_tasks: bool
    bootstrap: Bootstrap
    known: dict[bytes, dict[str, Estimate]] = field(default_factory=dict)

    def cells(self, rows: Iterable[Row]) -> dict[Key, CellScores]:
        """Sort runs into cells, and leave tasks out that not all have, if so asked."""
        cells = cells_of(rows, self.by, self.score, drop_invalid=self.invalid == "drop")
        if self.common_tasks:
            full = self.full(cells).values()
            common = set.intersection(*(set(c.scores) for c in full)) if full else set[str]()
            for cell in cells.values():
                cell.keep(common)
        return cells

    def full(self, cells: Mapping[Key, CellScores]) -> dict[Key, CellScores]:
        """Return the cells that have a run to compare."""
        return {key: cell for key, cell in cells.items() if cell.scores}

    def check(self, cells: Mapping[Key, CellScores]) -> None:
        """Refuse to compare nothing.

        Raises:
            UsageError: no run has a result.
        """
        if self.full(cells):
            return
        left_out = sum((cell.left_out for cell in cells.values()), Counter[str]())
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise UsageError(f"no run has a result that could be compared ({why or 'no run'})")

    def cell(self, key: Key, scored: CellScores) -> Cell:
        """Return the aggregates of a cell."""
        nothing: dict[str, Estimate] = {}
        sizes = [len(s) for s in scored.scores.values()] or [0]
        strata = Strata(scored.by_task()) if scored.scores else None
        return Cell(
            key=key,
            runs=scored.runs,
            tasks=scored.tasks,
            runs_a_task=(min(sizes), max(sizes)),
            invalid=scored.invalid,
            left_out=dict(scored.left_out),
            over_seeds=self.over_seeds(strata) if strata else nothing,
            over_tasks=aggregate(strata, self.bootstrap, over_tasks=True) if strata else nothing,
        )

    def pairs(
        self, cells: Mapping[Key, CellScores], partners: Iterable[tuple[Key, Key]]
    ) -> list[Pair]:
        """Return what became of each pair that has tasks in common."""
        found = []
        for x, y in partners:
            common = sorted(set(cells[x].scores) & set(cells[y].scores), key=task_order)
            if common:
                found.append(self._pair(x, y, cells[x], cells[y], common))
        return found

    def _pair(self, x: Key, y: Key, a: CellScores, b: CellScores, tasks: list[str]) -> Pair:
        one, other = Strata(a.by_task(tasks)), Strata(b.by_task(tasks))
        found = paired(one, other, self.bootstrap)
        by_task = (
            TaskDifference(t, len(a.scores[t]), len(b.scores[t]), d)
            for t, d in zip(tasks, found.by_task, strict=True)
        )
        return Pair(x, y, found.improvement, found.difference, tuple(by_task))

    def plain_rules(self, rows: Sequence[Row]) -> list[Rule]:
        """Return the rules that need no other gate."""
        zero = replace(self, invalid="zero").cells(rows)
        drop = replace(self, invalid="drop").cells(rows)
        own = zero if self.invalid == "zero" else drop
        return [
            ("unclipped", own, _same),
            ("clipped to [0, 1]", own, _clipped),
            ("invalid as 0", zero, _same),
            ("invalid dropped", drop, _same),
        ]

    def sensitivity(self, rules: Iterable[Rule]) -> list[Sensitivity]:
        """Return the aggregates of each cell under each rule."""
        found = []
        for name, cells, change in rules:
            for key, cell in self.full(cells).items():
                strata = Strata([change(np.array(s)) for s in cell.by_task()])
                estimates = self.over_seeds(strata)
                found.append(Sensitivity(name, key, cell.runs, strata.tasks, estimates))
        return found

    def over_seeds(self, strata: Strata) -> dict[str, Estimate]:
        """Return the aggregates of scores, made once for all rules that leave them the same."""
        data = strata.values.tobytes() + strata.task_of.tobytes()
        if data not in self.known:
            self.known[data] = aggregate(strata, self.bootstrap)
        return self.known[data]
