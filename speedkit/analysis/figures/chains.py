"""Speedup of cumulative speedruns against the human records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speedkit.analysis.figures import style as s
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """A speedup over the first record: mean, interval, number of seeds."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class ChainCurve:
    """What a figure shows of a chain.

    Attributes:
        tasks: what is written under each task, by position.
        agent: speedup after each task; None where no seed got so far.
        human: the same of the records.
        reached: how many seeds did the task.
        seeds: speedups of each seed, as far as it came.
    """

    name: str
    family: str
    tasks: tuple[str, ...]
    agent: tuple[Point | None, ...]
    human: tuple[Point | None, ...]
    reached: tuple[int, ...]
    seeds: tuple[tuple[float, ...], ...]


def chain_curve(result: Mapping[str, Any], origin: str) -> ChainCurve:
    """Read the JSON values that a cumulative speedrun keeps in ``result.json``.

    Args:
        origin: the file, for messages and as a name.

    Raises:
        UsageError: they are not what ``speedkit cumulative`` writes.
    """
    try:
        return _chain_curve(result, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{origin} does not hold what speedkit cumulative writes "
            f"({type(error).__name__}: {error})"
        ) from None


def _chain_curve(result: Mapping[str, Any], origin: str) -> ChainCurve:
    rows = list(result["summary"])
    links = [list(seed["links"]) for seed in result["seeds"]]
    settings = result["settings"]
    parts = (settings.get("scaffold"), settings.get("coder"), settings.get("model"))
    return ChainCurve(
        name=" · ".join(str(p) for p in parts if p) or origin,
        family=str(result["family"]).rstrip("/").rpartition("/")[2],
        tasks=tuple(_task(row["id"], k, links) for k, row in enumerate(rows)),
        agent=tuple(_point(row["agent_speedup"]) for row in rows),
        human=tuple(_point(row["human_speedup"]) for row in rows),
        reached=tuple(int(row["reached"]) for row in rows),
        seeds=tuple(tuple(_finite(link["agent_speedup"]) for link in seed) for seed in links),
    )


def _task(task_id: Any, position: int, links: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    targets = {seed[position]["target_record"] for seed in links if len(seed) > position}
    aim = f"\n→ record {int(targets.pop())}" if len(targets) == 1 else ""
    return f"task {int(task_id)}{aim}"


def _point(value: Mapping[str, Any] | None) -> Point | None:
    if value is None:
        return None
    low, high = value["low"], value["high"]
    return Point(
        _finite(value["mean"]),
        None if low is None else _finite(low),
        None if high is None else _finite(high),
        int(value["n"]),
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no speedup")
    return number


@s.styled
def cumulative(chains: Sequence[ChainCurve]) -> Figure:
    """Draw the speedup over the first record after each task, agents beside the human records.

    Args:
        chains: of one family and the same tasks.

    Raises:
        NothingToDraw: no chain did a task.
    """
    done = [c for c in chains if any(p is not None for p in c.agent)]
    if not done:
        raise s.NothingToDraw("no chain has done a task yet")
    first = done[0]
    names = _names(done)
    looks = s.looks(names)
    keys = [
        (s.key(*looks[n], linestyle="-"), f"{s.shown(n, 46)} ({_seeds(len(c.seeds))})")
        for n, c in zip(names, done, strict=True)
    ]
    keys.insert(0, (s.key("#000000", "*", linestyle="--"), "human records"))
    title = f"Cumulative speedup, {s.shown(first.family)}"
    figure, [axes] = s.canvas(title, _caption(done), 3.5, keys=keys)
    for name, chain in zip(names, done, strict=True):
        _agent(axes, chain, looks[name])
    _human(axes, done)
    for k in _gaps(done):
        _no_result(axes, k)
    axes.set_xticks(range(len(first.tasks) + 1), ["start", *first.tasks])
    axes.set_xlim(-0.3, len(first.tasks) + 0.3)
    axes.set_ylim(bottom=min(0.9, axes.get_ylim()[0]))
    axes.set_ylabel("speedup over the first record (×)")
    return figure


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _names(chains: Sequence[ChainCurve]) -> list[str]:
    """Return a name for each chain, numbered where several have the same."""
    names = [c.name for c in chains]
    return [
        name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names, start=1)
    ]


def _agent(axes: Axes, chain: ChainCurve, look: tuple[str, str]) -> None:
    from matplotlib.patheffects import withStroke

    color, marker = look
    for seed in chain.seeds if len(chain.seeds) > 1 else ():
        axes.plot(range(len(seed) + 1), [1.0, *seed], color=color, linewidth=0.7, alpha=0.4)
    known = [(k, p) for k, p in enumerate(chain.agent, start=1) if p is not None]
    xs, ys = [0, *(k for k, _ in known)], [1.0, *(p.mean for _, p in known)]
    axes.plot(xs, ys, color=color, linewidth=1.8)
    for k, point in known:
        if point.low is not None and point.high is not None:
            axes.plot((k, k), (point.low, point.high), color=color, linewidth=1.2)
        kept = chain.reached[k - 1] < point.n
        face = "white" if kept else color
        axes.plot(k, point.mean, marker=marker, color=color, markerfacecolor=face, markersize=6)
        if kept or point.n < len(chain.seeds):
            axes.annotate(
                f"{chain.reached[k - 1]} of {len(chain.seeds)}",
                (k, point.mean),
                xytext=(6, -9),
                textcoords="offset points",
                fontsize=s.SMALL,
                color=color,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                zorder=6,
            )


def _gaps(chains: Sequence[ChainCurve]) -> list[int]:
    """Return the positions, from 1, of the tasks that no chain has reached."""
    positions = zip(*(c.agent for c in chains), strict=True)
    return [k for k, points in enumerate(positions, start=1) if not any(points)]


def _no_result(axes: Axes, x: float) -> None:
    axes.axvspan(x - 0.2, x + 0.2, facecolor="none", edgecolor=s.PALE, hatch=s.HATCH, linewidth=0)
    axes.text(
        *(x, 0.5, "n/a"),
        transform=axes.get_xaxis_transform(),
        ha="center",
        color=s.QUIET,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _human(axes: Axes, chains: Sequence[ChainCurve]) -> None:
    """Draw the records' speedups; of several chains, each measured them, the mean of those."""
    xs, ys = [0], [1.0]
    for k in range(len(chains[0].tasks)):
        found = [c.human[k] for c in chains]
        means = [p.mean for p in found if p is not None]
        if means:
            xs.append(k + 1)
            ys.append(sum(means) / len(means))
    axes.plot(xs, ys, color="#000000", linestyle="--", marker="*", markersize=7, zorder=5)


def _caption(chains: Sequence[ChainCurve]) -> list[str]:
    count = sum(len(c.seeds) for c in chains)
    several = any(len(c.seeds) > 1 for c in chains)
    kept = any(p and r < p.n for c in chains for p, r in zip(c.agent, c.reached, strict=True))
    return [
        f"n = {_seeds(count)} of {len(chains)} cumulative speedruns; each task starts from the "
        "agent's best script of the task before.",
        "Thin lines: seeds. Thick: their mean, with 95% intervals by Student's t."
        if several
        else "One seed a chain, so there are no intervals.",
        "Human records: times measured by the same chains, mean.",
        "Hollow: some seeds had ended before and keep their speedup; beside it, how many did it."
        if kept
        else "",
        "n/a: no seed got so far." if _gaps(chains) else "",
    ]
