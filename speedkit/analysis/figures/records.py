"""Times of the human records as measured anew, against those that were reported."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speedkit.analysis.cellscores import counted
from speedkit.analysis.figures import style as s
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MINUTE = 60_000.0
FAR = 6.0
"""Ratio of the slowest to the fastest time from which the axis is logarithmic."""
_OWN, _REPORTED = s.COLORS[0], s.COLORS[1]


@dataclass(frozen=True)
class RecordTimes:
    """Times of one record, in milliseconds.

    Attributes:
        runs_ms: of runs here; none where the record was not run.
        reported_ms: the time in the history; None where there is none.
    """

    index: int
    runs_ms: tuple[float, ...]
    reported_ms: float | None

    @property
    def median_ms(self) -> float | None:
        """Median of the runs; None without any."""
        return statistics.median(self.runs_ms) if self.runs_ms else None


@dataclass(frozen=True)
class FamilyTimes:
    """Times of the records of a family, by index."""

    family: str
    records: tuple[RecordTimes, ...]


def family_times(values: Mapping[str, Any], origin: str) -> FamilyTimes:
    """Read record times from JSON values.

    The smallest form, to which keys may be added::

        {"family": "nanogpt",
         "records": [{"index": 1, "runs_ms": [2690000.0, 2701000.0], "reported_ms": 2700000}]}

    ``runs_ms`` is empty for a record that was not run, ``reported_ms`` null for one without a
    reported time.

    Args:
        origin: the file, for messages.

    Raises:
        UsageError: they are not of this form.
    """
    try:
        records = tuple(_record(one) for one in values["records"])
        return FamilyTimes(str(values["family"]), tuple(sorted(records, key=lambda r: r.index)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{origin} does not hold times of records ({type(error).__name__}: {error}); "
            'the form is {"family": …, "records": [{"index", "runs_ms", "reported_ms"}]}'
        ) from None


def _record(one: Mapping[str, Any]) -> RecordTimes:
    reported = one.get("reported_ms")
    return RecordTimes(
        int(one["index"]),
        tuple(_time(v) for v in one["runs_ms"]),
        None if reported is None else _time(reported),
    )


def _time(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{number} is no time")
    return number


@s.styled
def record_times(times: FamilyTimes) -> Figure:
    """Draw reproduced and reported times of records, and their ratio below.

    Raises:
        NothingToDraw: no record has a time.
    """
    known = [r for r in times.records if r.runs_ms or r.reported_ms]
    if not known:
        raise s.NothingToDraw(f"no record of {s.shown(times.family)} has a time")
    keys = [
        (s.key(_OWN, "o"), "reproduced: runs and their median"),
        (s.key(_REPORTED, "s", markerfacecolor="none", markersize=8), "reported"),
    ]
    gaps = any(not r.runs_ms or r.reported_ms is None for r in times.records)
    keys += [s.missing_key()] if gaps else []
    figure, [above, below] = s.canvas(
        f"Reproduced and reported record times, {s.shown(times.family)}",
        _caption(times),
        4.3,
        rows=2,
        sharex=True,
        height_ratios=(2.2, 1),
        keys=keys,
    )
    unit, name = _unit(times)
    for place, record in enumerate(times.records):
        _times(above, place, record, unit)
        _ratio(below, place, record)
    above.set_ylabel(f"training time ({name})")
    above.grid(False, axis="x")
    if _ratio_of_extremes(times) > FAR:
        _log_axis(above)
    _ratio_axis(below, times)
    return figure


def _unit(times: FamilyTimes) -> tuple[float, str]:
    """Return milliseconds of the unit and its name."""
    longest = max(v for r in times.records for v in (*r.runs_ms, r.reported_ms or 0.0))
    return (MINUTE, "minutes") if longest >= 3 * MINUTE else (1000.0, "s")


def _times(axes: Axes, x: int, record: RecordTimes, unit: float) -> None:
    if record.reported_ms is not None:
        look: dict[str, Any] = {"marker": "s", "markerfacecolor": "none", "markersize": 8}
        axes.plot(x, record.reported_ms / unit, color=_REPORTED, zorder=4, **look)
    if record.median_ms is None:
        _no_result(axes, x)
        return
    runs = [v / unit for v in record.runs_ms]
    axes.plot((x, x), (min(runs), max(runs)), color=_OWN, linewidth=1.1)
    axes.plot([x] * len(runs), runs, color=_OWN, marker="_", linestyle="none", markersize=7)
    axes.plot(x, record.median_ms / unit, color=_OWN, marker="o", markersize=5)


def _ratio(axes: Axes, x: int, record: RecordTimes) -> None:
    if record.median_ms is None or record.reported_ms is None:
        _no_result(axes, x)
        return
    ratios = [v / record.reported_ms for v in record.runs_ms]
    axes.plot((x, x), (min(ratios), max(ratios)), color=_OWN, linewidth=1.1)
    axes.plot(x, record.median_ms / record.reported_ms, color=_OWN, marker="o", markersize=5)


def _no_result(axes: Axes, x: int) -> None:
    axes.axvspan(x - 0.4, x + 0.4, facecolor="none", edgecolor=s.PALE, hatch=s.HATCH, linewidth=0)


def _ratio_of_extremes(times: FamilyTimes) -> float:
    every = [v for r in times.records for v in (*r.runs_ms, r.reported_ms) if v is not None]
    return max(every) / min(every)


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ratio_axis(axes: Axes, times: FamilyTimes) -> None:
    axes.axhline(1.0, color=s.QUIET, linewidth=0.8)
    axes.set_ylabel("reproduced /\nreported")
    axes.set_xlabel("record")
    axes.set_xticks(range(len(times.records)), [str(r.index) for r in times.records])
    axes.set_xlim(-0.6, len(times.records) - 0.4)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.9), max(high, 1.1))
    axes.grid(False, axis="x")


def _caption(times: FamilyTimes) -> list[str]:
    runs = [len(r.runs_ms) for r in times.records if r.runs_ms]
    span = (
        f"{min(runs)} to {max(runs)}" if runs and min(runs) != max(runs) else str(max(runs or [0]))
    )
    absent = sum(not r.runs_ms for r in times.records)
    return [
        f"n = {counted(sum(runs))} of {len(runs)} records, {span} a record.",
        "Dot: median; dashes: runs; line: from the fastest to the slowest, no interval.",
        f"{absent} of {len(times.records)} records were not run." if absent else "",
    ]
