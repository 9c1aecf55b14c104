"""FSR against the judge's score, and how far the two go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speedkit.analysis.cellscores import UNKNOWN, counted, is_over
from speedkit.analysis.columns import INVALID, VALID
from speedkit.analysis.figures import rows as r
from speedkit.analysis.figures import style as s

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 3
"""Runs that a correlation needs."""

Floats = NDArray[np.float64]


@s.styled
def fsr_against_judge(results: r.Results, *, choice: r.Choice | None = None) -> Figure:
    """Draw FSR against the judge's score of the best node, a point a run.

    Raises:
        NothingToDraw: no run has both.
    """
    choice = choice or r.Choice()
    found = r.rows_with_agent(results)
    both = [row for row in found if _has_both(row, choice.score)]
    if not both:
        raise s.NothingToDraw("no run has both an FSR and a judged best node")
    names = r.distinct(both, "scaffold")
    looks = s.looks(names)
    title = f"{choice.score_name} against the judge's score"
    keys = [(s.key(*looks[n], markerfacecolor="none"), s.shown(n)) for n in names]
    figure, [axes] = s.canvas(title, _caption(found, both, choice), 3.6, keys=keys)
    axes.set_ylim(*s.fsr_limits([row[choice.score] for row in both]))
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("judge's score: share of the human change that is there")
    axes.set_ylabel(choice.score_name)
    s.level_lines(axes)
    size = 5.0 if len(both) <= 200 else 3.2
    for name in names:
        own = [w for w in both if (w["scaffold"] or UNKNOWN) == name]
        _points(axes, own, choice, looks[name], size)
    return figure


def _has_both(row: r.Row, score: str) -> bool:
    known = None not in (row[score], row["judge_score"])
    return is_over(row) and row["result"] == VALID and known


def _points(
    axes: Axes, rows: Sequence[r.Row], choice: r.Choice, look: tuple[str, str], size: float
) -> None:
    low, high = axes.get_ylim()
    shapes = [_shape(row[choice.score], low, high, look[1]) for row in rows]
    for shape in sorted(set(shapes)):
        chosen = [row for row, own in zip(rows, shapes, strict=True) if own == shape]
        axes.plot(
            [row["judge_score"] for row in chosen],
            [min(max(row[choice.score], low), high) for row in chosen],
            linestyle="none",
            color=look[0],
            marker=shape,
            markersize=size,
            markerfacecolor="none",
            markeredgewidth=1.0 if size > 4 else 0.6,
            clip_on=False,
        )


def _shape(value: float, low: float, high: float, own: str) -> str:
    return own if low <= value <= high else "v" if value < low else "^"


def _caption(found: Sequence[r.Row], both: Sequence[r.Row], choice: r.Choice) -> list[str]:
    invalid = sum(row["result"] == INVALID for row in found)
    other = len(found) - len(both) - invalid
    judges = ", ".join(s.shown(j, 20) for j in r.distinct(both, "judge"))
    scores = [row[choice.score] for row in both]
    return [
        correlation_note([row["judge_score"] for row in both], scores),
        f"Left out: {invalid} invalid, {other} without a judged best node or not over.",
        f"A point is a run; judge: {judges}.",
        s.beyond_note(scores, s.fsr_limits(scores), "points"),
    ]


def correlation_note(x: Sequence[float], y: Sequence[float]) -> str:
    """Return both correlations in words, or why there is none."""
    n = counted(len(x))
    if len(x) < FEWEST:
        return f"No correlation: n = {n}, {FEWEST} are needed."
    if len(set(x)) == 1 or len(set(y)) == 1:
        return f"No correlation: one of the two is the same in all runs (n = {n})."
    a, b = np.array(x, dtype=float), np.array(y, dtype=float)
    return (
        f"Pearson's r = {pearson(a, b):.2f}, Spearman's ρ = {spearman(a, b):.2f}, n = {n}, of "
        "the values as they are; no interval, since runs of one task are not independent."
    )


def pearson(x: Floats, y: Floats) -> float:
    """Return the linear correlation of values that are not all the same."""
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Floats, y: Floats) -> float:
    """Return the correlation of ranks; of ties, each gets the mean of their ranks."""
    return pearson(ranks(x), ranks(y))


def ranks(values: Floats) -> Floats:
    """Return ranks from 1; of ties, the mean of their ranks."""
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, side="left")
    last = np.searchsorted(ordered, values, side="right")
    found: Floats = (first + last + 1) / 2
    return found
