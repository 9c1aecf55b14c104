"""The best FSR so far against what it took: nodes, device-seconds, dollars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from speedkit.analysis.cellscores import counted
from speedkit.analysis.columns import OVER
from speedkit.analysis.figures import rows as r
from speedkit.analysis.figures import style as s
from speedkit.analysis.statistics import Bootstrap, Estimate, Strata, aggregate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from speedkit.analysis.reading import Reading
    from speedkit.core.node import Node
    from speedkit.core.run import Run

AXES = {
    "nodes": "nodes",
    "seconds": "device-seconds (seconds of jobs times processes, one a device)",
    "dollars": "dollars spent on models",
}
"""What the best so far can be drawn against, and how the axis is called."""
MOST = 6
"""Lines of the figure."""
DRAWS = 1_000
"""Draws behind the interval at a point of a line."""
POINTS = 60
"""Points of a line."""


@dataclass(frozen=True)
class Step:
    """How far a run was after a node or a call of a model.

    Attributes:
        nodes: that took one of the budget.
        seconds: of their jobs times processes; NaN when the processes are not known.
        dollars: NaN from the first call of unknown price on.
        fsr: the best so far; NaN before the first valid node.
    """

    nodes: float = 0.0
    seconds: float = 0.0
    dollars: float = 0.0
    fsr: float = math.nan


@dataclass(frozen=True)
class Progress:
    """The steps of a run, and its row in the table of results."""

    row: Mapping[str, Any]
    steps: tuple[Step, ...]

    def reach(self, against: str) -> float:
        """Return what the run took in all; NaN when it is not known."""
        return float(getattr(self.steps[-1], against)) if self.steps else math.nan

    def best_at(self, against: str, xs: Sequence[float]) -> list[float]:
        """Return the best FSR when so much was taken; 0 before the first valid node.

        Until then the start script stands. A run that is over keeps its best.
        """
        taken = np.array([getattr(step, against) for step in self.steps])
        best = np.array([0.0, *(0.0 if t.fsr != t.fsr else t.fsr for t in self.steps)])
        found: list[float] = best[np.searchsorted(taken, xs, side="right")].tolist()
        return found


def progress_of(reading: Reading, row: Mapping[str, Any]) -> Progress | None:
    """Return the progress of a run; None when it cannot be told, or the run is not over."""
    run = reading.run
    if run is None or run.calibration is None or not run.calibration.recovers:
        return None
    if reading.status not in OVER or reading.directory is None:
        return None
    events = reading.directory.events()
    return Progress(row, tuple(_steps(run, events, _processes(reading))))


def _processes(reading: Reading) -> float:
    """Return how many processes a job has; NaN when that is not known."""
    run = reading.run
    said = (run.calibration.fingerprint or {}) if run and run.calibration else {}
    hardware = reading.manifest.get("hardware", {})
    for facts in (said, hardware if isinstance(hardware, Mapping) else {}):
        count = facts.get("nproc")
        if isinstance(count, int) and count > 0:
            return float(count)
    return math.nan if reading.task is None else float(reading.task.run.nproc)


def _steps(run: Run, events: Iterable[Mapping[str, Any]], processes: float) -> Iterator[Step]:
    step = Step()
    for event in events:
        if event["type"] == "model_called":
            cost = event["call"].get("cost")
            step = replace(step, dollars=step.dollars + (math.nan if cost is None else cost))
            yield step
        elif event["type"] == "node_finished" and event["id"] != 0:
            step = _after(step, run, run.tree[event["id"]], processes)
            yield step


def _after(step: Step, run: Run, node: Node, processes: float) -> Step:
    fsr = run.node_fsr(node)
    return Step(
        nodes=step.nodes + node.counts,
        seconds=step.seconds + (node.wall_s or 0.0) * processes,
        dollars=step.dollars,
        fsr=step.fsr if fsr is None else float(np.fmax(step.fsr, fsr)),
    )


@s.styled
def best_so_far(
    runs: Sequence[Progress], against: str = "nodes", *, choice: r.Choice | None = None
) -> Figure:
    """Draw the mean best FSR so far: a line for each scaffold, agent and hint level.

    With more than six lines, hint levels are pooled, then agents.

    Args:
        against: a key of :data:`AXES`.

    Raises:
        NothingToDraw: no run says what it took, or all took nothing.
    """
    choice = choice or r.Choice()
    told = [p for p in runs if p.reach(against) == p.reach(against)]
    if choice.drop_invalid:
        told = [p for p in told if not r.is_invalid(p.row)]
    if not any(p.reach(against) > 0 for p in told):
        raise s.NothingToDraw(_nothing(runs, told, against))
    groups = _groups(told)
    lines = {name: _line(group, against, choice) for name, group in groups.items()}
    looks = s.looks(list(groups))
    dashes = dict(zip(groups, cycle(s.DASHES), strict=False))
    keys = [
        (s.key(*looks[n], linestyle=dashes[n]), f"{s.shown(n, 46)} (n = {len(g)})")
        for n, g in groups.items()
    ]
    title = f"Best FSR so far against {against.replace('seconds', 'device-seconds')}"
    pooled = r.pooled_note([[p.row for p in group] for group in groups.values()])
    caption = [*_caption(runs, told, lines, choice), pooled]
    figure, [axes] = s.canvas(title, caption, 3.3, keys=keys)
    _frame(axes, lines, against)
    for name, points in lines.items():
        _draw(axes, points, looks[name], dashes[name])
    return figure


def _nothing(runs: Sequence[Progress], told: Sequence[Progress], against: str) -> str:
    if told:
        return f"no run took any {against}"
    why = {"dollars": "a price is unknown", "seconds": "the number of processes is unknown"}
    if runs:
        return why.get(against, "all runs are invalid")
    return "there is no run directory of a search that is over and calibrated"


def _groups(runs: Sequence[Progress]) -> dict[str, list[Progress]]:
    by_row = {id(p.row): p for p in runs}
    columns = ("scaffold", r.AGENT, "hints")
    found = r.grouped([p.row for p in runs], [columns[:k] for k in (3, 2, 1)], MOST)  # type: ignore[misc]
    return {name: [by_row[id(row)] for row in rows] for name, rows in found.items()}


Line = tuple[list[float], list[Estimate]]


def _line(group: Sequence[Progress], against: str, choice: r.Choice) -> Line:
    """Return the mean of the runs of a group, and its interval, at some points."""
    xs = _places(group, against)
    by_task: dict[str, list[list[float]]] = {}
    for one in group:
        by_task.setdefault(str(one.row["task"]), []).append(one.best_at(against, xs))
    made = choice.fewer(DRAWS)
    return xs, [_mean(by_task, k, made) for k in range(len(xs))]


def _places(group: Sequence[Progress], against: str) -> list[float]:
    """Return where the line may rise, thinned out."""
    every = sorted({0.0, *(float(getattr(step, against)) for p in group for step in p.steps)})
    picks = np.linspace(0, len(every) - 1, min(len(every), POINTS)).round().astype(int)
    return [every[k] for k in picks]


def _mean(by_task: Mapping[str, list[list[float]]], k: int, made: Bootstrap) -> Estimate:
    return aggregate(Strata([[run[k] for run in runs] for runs in by_task.values()]), made)["mean"]


def _frame(axes: Axes, lines: Mapping[str, Line], against: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(*_limits(lines))
    axes.set_xlim(0, max(xs[-1] for xs, _ in lines.values()) * 1.02)
    axes.set_xlabel(AXES[against])
    axes.set_ylabel("best FSR so far, mean")
    if against == "nodes":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    s.level_lines(axes)


def _limits(lines: Mapping[str, Line]) -> s.Limits:
    ends = [v for _, es in lines.values() for e in es for v in (e.value, e.low, e.high)]
    return s.fsr_limits([v for v in ends if v == v])


def _is_cut(lines: Mapping[str, Line]) -> bool:
    low, high = _limits(lines)
    return any(not low <= e.value <= high for _, es in lines.values() for e in es)


def _draw(axes: Axes, points: Line, look: tuple[str, str], dash: Any) -> None:
    from matplotlib.colors import to_rgba

    xs, means = points
    color, marker = look
    if all(e.low == e.low for e in means):
        ends = [e.low for e in means], [e.high for e in means]
        # Of bands that overlap, the edges tell which is which.
        band = {"facecolor": to_rgba(color, 0.08), "edgecolor": color, "linestyle": dash}
        axes.fill_between(xs, *ends, step="post", linewidth=0.6, **band)
    axes.plot(
        xs,
        [e.value for e in means],
        color=color,
        marker=marker,
        markevery=max(1, len(xs) // 8),
        drawstyle="steps-post",
        linestyle=dash,
        markeredgecolor="white",
        markeredgewidth=0.5,
    )


def _caption(
    runs: Sequence[Progress],
    told: Sequence[Progress],
    lines: Mapping[str, Line],
    choice: r.Choice,
) -> list[str]:
    tasks = len({p.row["task"] for p in told})
    out = len(runs) - len(told)
    band = any(e.low == e.low for _, es in lines.values() for e in es)
    return [
        f"n = {counted(len(told))}, over and calibrated, on {tasks} "
        f"{'task' if tasks == 1 else 'tasks'}.",
        f"Left out: {counted(out)} that do not say what they took, or are invalid and not wanted."
        if out
        else "",
        f"Line: mean, tasks weighing the same. Band: {r.interval_note(choice.fewer(DRAWS))}."
        if band
        else "Line: mean, tasks weighing the same; no bands: one run a task.",
        "Before its first valid node a run has 0, since the start script stands; a run that is "
        "over keeps its best. Calibration is not counted.",
        "Parts of lines are off the axis." if _is_cut(lines) else "",
    ]
