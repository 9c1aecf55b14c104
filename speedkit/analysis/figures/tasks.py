"""A score of every task, panel by panel: FSR of one scaffold, and judges' scores of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speedkit.analysis.cellscores import (
    UNKNOWN,
    CellScores,
    Key,
    cells_of,
    counted,
    is_over,
    task_order,
)
from speedkit.analysis.columns import VALID
from speedkit.analysis.figures import rows as r
from speedkit.analysis.figures import style as s
from speedkit.analysis.statistics import Bootstrap, Estimate, Strata, aggregate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWS = 10_000
"""Draws behind the interval of a single task."""
MOST_DASHES = 6
"""Runs of a mark up to which each is drawn."""
_PANEL = 1.55
"""Inches of a panel."""


@s.styled
def fsr_by_task(results: r.Results, scaffold: str, *, choice: r.Choice | None = None) -> Figure:
    """Draw the FSR of each task, hint level and agent, of the runs of one scaffold.

    The tasks and hint levels are those of all results, so what a scaffold lacks shows.

    Raises:
        NothingToDraw: the scaffold has no run with a result.
    """
    choice = choice or r.Choice()
    found = r.rows_with_agent(results)
    own = [row for row in found if (row["scaffold"] or UNKNOWN) == scaffold]
    by = (r.AGENT, "task", "hints")
    cells = cells_of(own, by, choice.score, drop_invalid=choice.drop_invalid)
    if not any(cell.scores for cell in cells.values()):
        raise s.NothingToDraw(f"scaffold {s.shown(scaffold)} has no run with a result")
    levels = r.distinct(found, "hints")
    names = {v: "no hints" if v == "none" else f"hints {v}" for v in levels}
    grid = _Grid(cells, r.distinct(own, r.AGENT), _tasks(found), levels, choice, names)
    pooled = r.mixed_note(cells, ("scaffold", r.AGENT, "task", "hints"))
    return grid.draw(
        f"{choice.score_name} by task, hint level and agent: {s.shown(scaffold)}",
        choice.score_name,
        [r.runs_note(cells.values(), choice), *grid.notes(), pooled],
    )


@s.styled
def judge_by_task(results: r.Results, *, choice: r.Choice | None = None) -> Figure:
    """Draw the judge's score of each task's best nodes by scaffold, a panel for each judge.

    Raises:
        NothingToDraw: no run was judged.
    """
    choice = choice or r.Choice()
    found = r.rows_with_agent(results)
    judged = [row for row in found if is_over(row) and _is_judged(row)]
    if not judged:
        raise s.NothingToDraw("no run that is over has a judged best node; run: speedkit judge RUN")
    for row in judged:
        row["judge"] = f"judge: {row['judge'] or UNKNOWN}"
    cells = cells_of(judged, ("judge", "task", "scaffold"), "judge_score")
    scaffolds = r.distinct(found, "scaffold")
    judges = r.distinct(judged, "judge")
    grid = _Grid(cells, judges, _tasks(found), scaffolds, choice, top=1.0)
    without = len(found) - len(judged)
    notes = [
        f"n = {counted(len(judged))}; left out: {without} without a judged best node or not over.",
        *grid.notes(),
        r.mixed_note(cells, ("scaffold", "task")),
    ]
    return grid.draw("Judge's score of the best nodes by task and scaffold", "judge's score", notes)


def _is_judged(row: r.Row) -> bool:
    return row["result"] == VALID and row["judge_score"] is not None


def _tasks(rows: Sequence[r.Row]) -> list[tuple[str, str]]:
    """Return the tasks by name with what is written under them."""
    facts = {row["task"] or UNKNOWN: row for row in rows}
    many = len({row["family"] for row in facts.values()}) > 1
    return [(t, _task_label(facts[t], many)) for t in sorted(facts, key=task_order)]


def _task_label(row: r.Row, with_family: bool) -> str:
    if with_family or row["task_id"] is None:
        return s.shown(row["task"], 14)
    if row["record"] is None or row["target_record"] is None:
        return str(row["task_id"])
    return f"{row['record']}\n→{row['target_record']}"


@dataclass
class _Grid:
    """Slots for series within tasks, within panels.

    Attributes:
        cells: by panel, task and series.
        names: of the series, where they differ from their values.
        top: the highest possible value, None for FSR.
    """

    cells: Mapping[Key, CellScores]
    panels: list[str]
    tasks: list[tuple[str, str]]
    series: list[str]
    choice: r.Choice
    names: Mapping[str, str] = field(default_factory=dict)
    top: float | None = None

    def __post_init__(self) -> None:
        made = self.bootstrap
        self.means: dict[Key, Estimate] = {
            key: aggregate(Strata(cell.by_task()), made)["mean"]
            for key, cell in self.cells.items()
            if cell.scores
        }
        self.looks = s.looks(self.series)

    @property
    def bootstrap(self) -> Bootstrap:
        """Draws of the interval of a task."""
        return self.choice.fewer(DRAWS)

    @property
    def width(self) -> float:
        """Width of a slot, where a task is 1 wide."""
        return 0.84 / len(self.series)

    @property
    def limits(self) -> s.Limits:
        """Limits of the axis of scores."""
        if self.top is not None:
            return -0.04 * self.top, 1.04 * self.top
        return s.fsr_limits(
            [v for c in self.cells.values() for vs in c.scores.values() for v in vs]
        )

    @property
    def dashes(self) -> bool:
        """Whether each run is drawn: not where a mark stands for many."""
        return max(cell.runs for cell in self.cells.values()) <= MOST_DASHES

    def notes(self) -> list[str]:
        """Say what is drawn."""
        single = any(e.low != e.low for e in self.means.values())
        interval = (
            f"line: {self.choice.bootstrap.level:.0%} interval of the mean over seeds "
            f"(percentiles of {self.bootstrap.draws:,} bootstrap draws)"
        )
        return [
            f"Mark: mean of the runs; {'dash: one run; ' if self.dashes else ''}{interval}"
            + (", none where there is one run." if single else "."),
            "Cross: every run invalid." if self._all_invalid() else "",
            s.beyond_note([e.value for e in self.means.values()], self.limits, "means"),
        ]

    def _all_invalid(self) -> bool:
        return any(cell.runs and cell.zeros == cell.runs for cell in self.cells.values())

    def draw(self, title: str, label: str, caption: Sequence[str]) -> Figure:
        """Return the figure."""
        height = _PANEL * len(self.panels) + 0.5
        grid = {"rows": len(self.panels), "sharex": True, "sharey": True}
        figure, panels = s.canvas(title, caption, height, keys=self._keys(), **grid)
        for axes, panel in zip(panels, self.panels, strict=True):
            self._panel(axes, panel, label)
        panels[-1].set_xticks(range(len(self.tasks)), [name for _, name in self.tasks])
        long = any(len(line) > 6 for _, name in self.tasks for line in name.split("\n"))
        if long and len(self.tasks) > 5:
            panels[-1].tick_params(axis="x", labelrotation=90)
        panels[-1].set_xlabel(self._x_label())
        return figure

    def _keys(self) -> list[s.Key]:
        names = {v: s.shown(self.names.get(v, v)) for v in self.series}
        keys = [(s.key(*self.looks[v]), names[v]) for v in self.series]
        return [*keys, *([s.missing_key()] if self._gaps() else [])]

    def _x_label(self) -> str:
        records = any("→" in name for _, name in self.tasks)
        return "task: start record → target record" if records else "task"

    def _gaps(self) -> list[Key]:
        slots = ((p, t, v) for p in self.panels for t, _ in self.tasks for v in self.series)
        return [key for key in slots if key not in self.means]

    def _panel(self, axes: Axes, panel: str, label: str) -> None:
        axes.set_title(s.shown(panel, 80))
        axes.set_ylabel(label)
        axes.set_xlim(-0.5, len(self.tasks) - 0.5)
        axes.set_ylim(*self.limits)
        axes.grid(False, axis="x")
        axes.tick_params(axis="x", length=0)
        s.level_lines(axes)
        for k in range(1, len(self.tasks)):
            axes.axvline(k - 0.5, color="#DDDDDD", linewidth=0.6, zorder=0)
        for k, (task, _) in enumerate(self.tasks):
            for j, series in enumerate(self.series):
                x = k - 0.42 + (j + 0.5) * self.width
                self._slot(axes, x, (panel, task, series))

    def _slot(self, axes: Axes, x: float, key: Key) -> None:
        if key not in self.means:
            half = self.width / 2
            axes.axvspan(
                *(x - half, x + half),
                facecolor="none",
                edgecolor=s.PALE,
                hatch=s.HATCH,
                linewidth=0,
            )
            return
        cell, mean = self.cells[key], self.means[key]
        color, marker = self.looks[key[2]]
        low, high = axes.get_ylim()
        runs = [v for values in cell.scores.values() for v in values if low <= v <= high]
        dash = min(0.8 * self.width, 0.12)
        if self.dashes:
            axes.hlines(runs, x - dash / 2, x + dash / 2, color=color, linewidth=0.7, alpha=0.6)
        if mean.low == mean.low:
            axes.vlines(x, max(low, mean.low), min(high, mean.high), color=color, linewidth=1.4)
        self._mark(axes, x, mean.value, color, "x" if cell.zeros == cell.runs else marker)

    def _mark(self, axes: Axes, x: float, value: float, color: str, marker: str) -> None:
        low, high = axes.get_ylim()
        if not low <= value <= high:
            marker = "v" if value < low else "^"
        size = 3.6 if len(self.tasks) * len(self.series) > 40 else 5.0
        axes.plot(
            x,
            min(max(value, low), high),
            color=color,
            marker=marker,
            markersize=size,
            markeredgewidth=0.9 if marker == "x" else 0.4,
            markeredgecolor=color if marker == "x" else "white",
            clip_on=False,
            zorder=4,
        )
