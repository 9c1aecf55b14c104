"""What became of the nodes of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from speedkit.analysis.cellscores import counted
from speedkit.analysis.columns import OUTCOMES
from speedkit.analysis.figures import rows as r
from speedkit.analysis.figures import style as s

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OTHER = "other"
_LOOKS = {
    "valid": ("#0072B2", ""),
    "quarantined": ("#56B4E9", "...."),
    "invalid": ("#E69F00", "////"),
    "buggy": ("#D55E00", "xxxx"),
    "stopped": ("#CC79A7", "\\\\\\\\"),
    "edit_failed": ("#BBBBBB", "||||"),
    "pending": ("#FFFFFF", ""),
}
_REST = ("#DDDDDD", "++++")
MOST = 16
"""Bars of the figure."""


@s.styled
def outcomes(results: r.Results, *, most: int = MOST) -> Figure:
    """Draw the shares of nodes by outcome: a bar for each scaffold, or scaffold and agent.

    Args:
        most: with more scaffolds and agents, scaffolds alone have bars.

    Raises:
        NothingToDraw: no run says how many nodes it has.
    """
    found = r.rows_with_agent(results)
    told = [row for row in found if row["nodes"]]
    if not told:
        raise s.NothingToDraw("no run says how many nodes it has")
    groups = r.grouped(told, (("scaffold", r.AGENT), ("scaffold",)), most)
    tallies = {name: _tally(rows) for name, rows in groups.items()}
    kinds = [k for k in (*_LOOKS, *_unknown(), OTHER) if any(t[k] for t in tallies.values())]
    keys = [(_patch(kind), kind.replace("_", " ")) for kind in kinds]
    height = 0.5 + 0.3 * len(groups)
    caption = [*_caption(found, told), r.pooled_note(list(groups.values()))]
    figure, [axes] = s.canvas("Nodes by outcome", caption, height, keys=keys)
    for y, (name, tally) in enumerate(tallies.items()):
        _bar(axes, y, tally, kinds)
        _count(axes, y, sum(tally.values()), len(groups[name]))
    axes.set_yticks(range(len(groups)), [s.shown(name, 40) for name in groups])
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the nodes (%), with their number")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def _unknown() -> list[str]:
    return [name for name in OUTCOMES if name not in _LOOKS]


def _tally(rows: Sequence[r.Row]) -> dict[str, int]:
    """Return the number of nodes by outcome; those that no column tells are other ones."""
    tally = {name: sum(row[f"nodes_{name}"] or 0 for row in rows) for name in OUTCOMES}
    rest = sum(row["nodes"] for row in rows) - sum(tally.values())
    return {**tally, OTHER: max(0, rest)}


def _caption(found: Sequence[r.Row], told: Sequence[r.Row]) -> list[str]:
    nodes = sum(row["nodes"] for row in told)
    unsaid = len(found) - len(told)
    return [
        f"n = {nodes} nodes of {counted(len(told))}, start scripts left out; whole counts, so "
        "there are no intervals.",
        f"Left out: {counted(unsaid)} without nodes, or which do not say how many."
        if unsaid
        else "",
        f"{OTHER.capitalize()}: outcomes that the results do not tell apart."
        if _tally(told)[OTHER]
        else "",
    ]


def _bar(axes: Axes, y: int, tally: dict[str, int], kinds: Sequence[str]) -> None:
    whole, left = sum(tally.values()), 0.0
    for kind in kinds:
        width = 100 * tally[kind] / whole
        color, hatch = _LOOKS.get(kind, _REST)
        axes.barh(
            *(y, width),
            left=left,
            height=0.62,
            color=color,
            hatch=hatch,
            edgecolor="white" if color != "#FFFFFF" else s.QUIET,
            linewidth=0.6,
        )
        if width > 3.5:
            axes.text(
                *(left + width / 2, y, str(tally[kind])),
                ha="center",
                va="center",
                fontsize=s.SMALL,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
            )
        left += width


def _count(axes: Axes, y: int, nodes: int, runs: int) -> None:
    axes.annotate(
        f"{nodes} nodes, {counted(runs)}",
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=s.SMALL,
        color=s.QUIET,
    )


def _patch(kind: str) -> Artist:
    from matplotlib.patches import Patch

    color, hatch = _LOOKS.get(kind, _REST)
    edge = s.QUIET if color == "#FFFFFF" else "white"
    return Patch(facecolor=color, hatch=hatch, edgecolor=edge, linewidth=0.6)
