"""Aggregates of FSR with intervals, a row for each hint level or scaffold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from speedkit.analysis.cellscores import CellScores, Key, cells_of
from speedkit.analysis.figures import rows as r
from speedkit.analysis.figures import style as s
from speedkit.analysis.statistics import AGGREGATES, Estimate, Strata, aggregate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"median": "Median", "iqm": "IQM", "mean": "Mean", "optimality_gap": "Optimality gap"}
LABELS = {"hints": "hint level", "scaffold": "scaffold"}
_ROW = 0.2
"""Inches of a row."""


@s.styled
def aggregates(
    results: r.Results, by: str = "hints", *, agents: bool = False, choice: r.Choice | None = None
) -> Figure:
    """Draw median, IQM, mean and optimality gap, a row a value of a column.

    Each value has two intervals: over seeds, with the tasks fixed, and over tasks.

    Args:
        by: ``hints`` or ``scaffold``.
        agents: a row for each agent (model, coder) too, instead of pooling them.

    Raises:
        NothingToDraw: no run has a result.
    """
    choice = choice or r.Choice()
    found = r.rows_with_agent(results)
    names = (by, r.AGENT) if agents else (by,)
    cells = cells_of(found, names, choice.score, drop_invalid=choice.drop_invalid)
    if not any(cell.scores for cell in cells.values()):
        raise s.NothingToDraw(f"no run has a result ({choice.score_name})")
    if agents and len(r.distinct(found, r.AGENT)) < 2:
        raise s.NothingToDraw("all runs have one agent (coder and model)")
    return _Rows(by, agents, choice, cells).draw()


class _Rows:
    """The rows of the figure: groups by the value of the column, in each a row an agent."""

    def __init__(
        self, by: str, agents: bool, choice: r.Choice, cells: Mapping[Key, CellScores]
    ) -> None:
        self.by, self.choice, self.cells = by, choice, cells
        self.values = sorted({k[0] for k in cells}, key=lambda v: r.order(by, v))
        self.agents: list[str] = sorted({k[1] for k in cells}) if agents else [""]
        self.looks = s.looks(self.agents)
        estimates = {k: self._estimates(cell) for k, cell in cells.items() if cell.scores}
        self.seeds = {k: pair[0] for k, pair in estimates.items()}
        self.tasks = {k: pair[1] for k, pair in estimates.items()}

    def _estimates(self, cell: CellScores) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
        strata, made = Strata(cell.by_task()), self.choice.bootstrap
        return aggregate(strata, made), aggregate(strata, made, over_tasks=True)

    def draw(self) -> Figure:
        """Return the figure."""
        split = [self.by, r.AGENT] if self.agents != [""] else [self.by]
        height = 0.75 + _ROW * len(self.places()) + 0.1 * len(self.values)
        what = LABELS[self.by] + (" and agent" if len(split) > 1 else "")
        figure, panels = s.canvas(
            f"{self.choice.score_name} by {what}",
            [*self._caption(), r.mixed_note(self.cells, split), r.unlike_tasks_note(self.cells)],
            height,
            columns=len(AGGREGATES),
            keys=self._keys() if len(split) > 1 else (),
            sharey=True,
        )
        for axes, name in zip(panels, AGGREGATES, strict=True):
            self._panel(axes, name)
        self._ticks(panels[0])
        self._counts(panels[-1])
        return figure

    def _keys(self) -> list[s.Key]:
        return [(s.key(*self.looks[a]), s.shown(a, 44)) for a in self.agents]

    def places(self) -> dict[Key, float]:
        """Return the height of each row, from 0 down."""
        places: dict[Key, float] = {}
        y = 0.0
        for value in self.values:
            for agent in self.agents:
                places[(value, agent) if agent else (value,)] = y
                y -= 1.0
            y -= 0.5
        return places

    def _caption(self) -> list[str]:
        single = any(e["mean"].low != e["mean"].low for e in self.seeds.values())
        return [
            r.runs_note(self.cells.values(), self.choice),
            f"Thick: {r.interval_note(self.choice.bootstrap)};",
            "thin: over tasks (tasks and seeds resampled).",
            "A single run a task has no interval over seeds." if single else "",
            "A single task has no interval over tasks." if self._one_task() else "",
            self._beyond(),
        ]

    def _limits(self, name: str) -> s.Limits:
        values = [v for k in self.seeds for v in _ends(self.seeds[k][name], self.tasks[k][name])]
        return s.fsr_limits(values, levels=())

    def _beyond(self) -> str:
        """Say which values are off the axes of their panels."""
        notes = {n: [e[n].value for e in self.seeds.values()] for n in AGGREGATES}
        found = [s.beyond_note(v, self._limits(n), f"{n} values") for n, v in notes.items()]
        return " ".join(n for n in found if n)

    def _one_task(self) -> bool:
        return any(len(cell.scores) == 1 for cell in self.cells.values())

    def _panel(self, axes: Axes, name: str) -> None:
        axes.set_xlim(*self._limits(name))
        axes.set_title(TITLES[name])
        axes.set_xlabel("lower is better" if name == "optimality_gap" else "higher is better")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        s.level_lines(axes, upright=True)
        for key, y in self.places().items():
            if key in self.seeds:
                self._row(axes, y, key, name)
            else:
                _no_result(axes, y)

    def _row(self, axes: Axes, y: float, key: Key, name: str) -> None:
        color, marker = self.looks[key[1] if len(key) > 1 else ""]
        for estimates, width in ((self.tasks, 0.9), (self.seeds, 3.2)):
            one = estimates[key][name]
            if one.low == one.low:
                ends = (one.low, one.high)
                axes.plot(ends, (y, y), color=color, linewidth=width, solid_capstyle="butt")
        _mark(axes, self.seeds[key][name].value, y, color, marker)

    def _ticks(self, axes: Axes) -> None:
        places = self.places()
        centers = [_mean([y for k, y in places.items() if k[0] == v]) for v in self.values]
        axes.set_yticks(centers, [s.shown(v, 20) for v in self.values])
        axes.set_ylim(min(places.values()) - 0.6, 0.6)
        axes.set_ylabel(LABELS[self.by])

    def _counts(self, axes: Axes) -> None:
        for key, y in self.places().items():
            runs = self.cells[key].runs if key in self.cells else 0
            axes.annotate(
                f"n = {runs}",
                (1.0, y),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=s.SMALL,
                color=s.QUIET,
            )


def _ends(*estimates: Estimate) -> list[float]:
    return [v for e in estimates for v in (e.value, e.low, e.high) if v == v]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mark(axes: Axes, value: float, y: float, color: str, marker: str) -> None:
    """Draw a value; at the edge and with its number if it is beyond."""
    low, high = axes.get_xlim()
    look: dict[str, Any] = {"color": color, "markeredgecolor": "white", "markeredgewidth": 0.5}
    if low <= value <= high:
        axes.plot(value, y, marker=marker, markersize=4.6, zorder=4, **look)
        return
    left = value < low
    axes.plot(low if left else high, y, marker="<" if left else ">", clip_on=False, **look)
    axes.annotate(
        f"{value:.2f}",
        (low if left else high, y),
        xytext=(5 if left else -5, 4),
        textcoords="offset points",
        ha="left" if left else "right",
        fontsize=s.SMALL,
    )


def _no_result(axes: Axes, y: float) -> None:
    axes.axhspan(y - 0.4, y + 0.4, facecolor="none", edgecolor=s.PALE, hatch=s.HATCH, linewidth=0)
    axes.text(
        0.5,
        y,
        "n/a",
        transform=axes.get_yaxis_transform(),
        ha="center",
        va="center",
        fontsize=s.SMALL,
        color=s.QUIET,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
