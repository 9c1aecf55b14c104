"""How every figure looks, and how it is written so that equal figures are equal files."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from speedkit.core.errors import SpeedkitError
from speedkit.core.files import one_line

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches; the text of a page in print is as wide."""
DPI = 200
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
"""Colours that colour-blind readers can tell apart (Okabe and Ito, without their yellow)."""
MARKERS = ("o", "s", "D", "^", "v", "P", "*", "h")
"""A shape for each colour, for readers without any; a cross stands for invalid runs."""
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))
"""Styles of lines, so that one shows under another."""
INK, QUIET, PALE = "#222222", "#666666", "#BBBBBB"
SMALL = 7.5
"""Points of the smallest text."""
HATCH = "//////"
"""Drawn where something is missing."""
LOWEST, HIGHEST = -1.0, 2.0
"""FSR beyond which nothing but a mark at the edge of a figure is drawn."""

_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "savefig.dpi": DPI,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.constrained_layout.h_pad": 0.05,
    "svg.fonttype": "path",
    "svg.hashsalt": "speedkit",
    # Names come from outside: a dollar sign in one begins no formula.
    "text.parse_math": False,
}

Key = tuple["Artist", str]
"""An entry of a legend."""
Limits = tuple[float, float]
F = TypeVar("F", bound=Callable[..., Any])


class NothingToDraw(SpeedkitError):
    """The results have nothing for a figure; the message says why."""


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's settings for a while, whatever the user's own are."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def styled(function: F) -> F:
    """Let a function that draws do so in the style."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with style():
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def canvas(
    title: str,
    caption: Sequence[str],
    height: float,
    rows: int = 1,
    columns: int = 1,
    *,
    keys: Sequence[Key] = (),
    **kw: Any,
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, row by row.

    Title, legend and caption get room of their own, whatever is drawn between them.

    Args:
        caption: sentences that stand below the figure.
        height: inches of the axes with what is written at them.
        keys: entries of the legend between title and axes.
        kw: what ``Figure.subplots`` takes.
    """
    from matplotlib.figure import Figure

    text = textwrap.fill(" ".join(s for s in caption if s), 122)
    per_row = _legend_columns([name for _, name in keys])
    top = 0.30 + 0.18 * math.ceil(len(keys) / per_row)
    bottom = 0.12 + 0.135 * (text.count("\n") + 1)
    whole = height + top + bottom
    figure = Figure(figsize=(WIDTH, whole), layout="constrained")
    figure.get_layout_engine().set(rect=(0, bottom / whole, 1, height / whole))  # type: ignore[call-arg, union-attr]
    figure.text(0.008, 1 - 0.06 / whole, title, va="top", fontsize=10, fontweight="bold")
    look: dict[str, Any] = {"fontsize": SMALL, "color": QUIET, "linespacing": 1.25}
    figure.text(0.008, 0.05 / whole, text, va="bottom", **look)
    if keys:
        _legend(figure, keys, per_row, 1 - 0.24 / whole)
    axes = figure.subplots(rows, columns, squeeze=False, **kw)
    return figure, list(axes.flat)


def _legend(figure: Figure, keys: Sequence[Key], columns: int, top: float) -> None:
    handles, names = zip(*keys, strict=True)
    legend = figure.legend(
        list(handles),
        list(names),
        loc="upper left",
        bbox_to_anchor=(0.004, top),
        borderaxespad=0.2,
        borderpad=0.2,
        ncols=columns,
    )
    legend.set_in_layout(False)


def _legend_columns(names: Sequence[str]) -> int:
    """Return how many entries fit beside each other."""
    if sum(len(name) + 7 for name in names) <= 118:
        return max(1, len(names))
    most = max(1, 118 // (max(map(len, names)) + 7))
    return math.ceil(len(names) / math.ceil(len(names) / most))


def key(color: str, marker: str = "", **kw: Any) -> Artist:
    """Return what stands for a series in a legend."""
    from matplotlib.lines import Line2D

    line_style = kw.pop("linestyle", "none" if marker else "-")
    return Line2D([], [], color=color, marker=marker, linestyle=line_style, **kw)


def missing_key() -> Key:
    """Return the legend's entry for what is missing."""
    from matplotlib.patches import Patch

    return Patch(facecolor="none", edgecolor=PALE, hatch=HATCH, linewidth=0), "n/a: no result"


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and a marker for each name; those of the first 64 differ."""
    count = len(COLORS)
    return {
        name: (COLORS[k % count], MARKERS[(k + k // count) % count]) for k, name in enumerate(names)
    }


def shown(text: object, limit: int = 30) -> str:
    """Return a text from outside as it may stand in a figure."""
    flat = one_line(str(text))
    cut = flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
    return f" {cut}" if cut.startswith("_") else cut  # a legend drops what begins with _


def fsr_limits(values: Sequence[float], levels: Sequence[float] = (0.0, 1.0)) -> Limits:
    """Return the limits of an axis of FSR: the levels, and what does not lie far off."""
    near = [*levels, *(v for v in values if LOWEST <= v <= HIGHEST)] or [0.0, 1.0]
    pad = 0.05 * max(max(near) - min(near), 0.2)
    return min(near) - pad, max(near) + pad


def beyond_note(values: Sequence[float], limits: Limits, what: str) -> str:
    """Say which values an axis does not reach; empty if all are on it."""
    out = [v for v in values if not limits[0] <= v <= limits[1]]
    if not out:
        return ""
    far = f"{max(out, key=abs):.2f}".replace("-", "−")
    return f"{len(out)} {what} off the axis, drawn as triangles at its edge (farthest: {far})."


def level_lines(axes: Axes, *, upright: bool = False) -> None:
    """Draw where FSR is 0 and where it is 1."""
    for value in (0.0, 1.0):
        draw = axes.axvline if upright else axes.axhline
        draw(value, color=QUIET, linewidth=0.8, zorder=1)


def content_of(figure: Figure, form: str, title: str) -> bytes:
    """Return a figure as a file; equal figures give equal bytes.

    Args:
        form: ``png`` or ``svg``.
    """
    metadata: Mapping[str, Any] = {"Title": shown(title, 200), "Software": None}
    if form == "svg":
        metadata = {"Title": shown(title, 200), "Date": None, "Creator": None}
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=form, dpi=DPI, metadata=dict(metadata))
    return buffer.getvalue()


def save(figure: Figure, path: Path, title: str) -> None:
    """Write a figure in the form that the file's ending names."""
    path.write_bytes(content_of(figure, path.suffix.removeprefix("."), title))
