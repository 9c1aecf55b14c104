"""Elements of SVG, scales and axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from speedkit.analysis.report.text import visible

Value = str | float | None
Point = tuple[float, float]


def element(tag: str, *children: str, **attributes: Value) -> Markup:
    """Return an element; texts and attribute values are escaped, Markup is kept.

    ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``; an attribute that is
    None is left out.
    """
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(c if isinstance(c, Markup) else str(escape(visible(c))) for c in children)
    return Markup(f"<{tag}{shown}>{inner}</{tag}>")


def _attribute(value: str | float) -> str:
    if isinstance(value, (int, float)):
        return f"{value:.1f}".removesuffix(".0")
    return str(escape(visible(value)))


def picture(
    width: float, height: float, title: str, *children: str, class_: str, role: str = "img"
) -> Markup:
    """Return a whole SVG; ``title`` is what a reader who does not see it is told.

    Args:
        role: ``img``, whose parts are not read out, or ``group``, whose parts are.
    """
    return element(
        "svg",
        *children,
        class_=class_,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role=role,
        aria_label=title,
    )


def path(points: Iterable[Point], **attributes: Value) -> Markup:
    """Return a line through points."""
    return element("path", d=outline(points), **attributes)


def outline(points: Iterable[Point], *, closed: bool = False) -> str:
    """Return path data of straight lines through points."""
    steps = [f"{x:.1f} {y:.1f}" for x, y in points]
    return f"M{'L'.join(steps)}{'Z' if closed else ''}" if steps else ""


@dataclass(frozen=True)
class Scale:
    """Maps numbers from ``low`` to ``high`` to places from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a number, at most a picture's width outside the ends."""
        part = (value - self.low) / (self.high - self.low)
        return self.start + max(-2.0, min(3.0, part)) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round numbers from ``low`` to ``high``, roughly so many."""
        raw = (self.high - self.low) / about
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def spread(values: Sequence[float], *, pad: float = 0.05) -> tuple[float, float]:
    """Return limits that hold all values with some room, never of no width."""
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return low - room, high + room


@dataclass(frozen=True)
class Axes:
    """The frame of a plot.

    Args:
        width: of the whole picture, in pixels.
        height: of the whole picture.
    """

    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    x_label: str
    y_label: str
    width: float = 480
    height: float = 300

    LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 44

    @property
    def x(self) -> Scale:
        """Places from left to right."""
        return Scale(*self.x_limits, self.LEFT, self.width - self.RIGHT)

    @property
    def y(self) -> Scale:
        """Places from bottom to top."""
        return Scale(*self.y_limits, self.height - self.BOTTOM, self.TOP)

    def place(self, points: Iterable[Point]) -> list[Point]:
        """Return the places of points."""
        x, y = self.x, self.y
        return [(x(a), y(b)) for a, b in points]

    def frame(self, *, whole_x: bool = False) -> Markup:
        """Return grid, numbers and labels.

        Args:
            whole_x: put numbers on the x axis only where they are whole.
        """
        x, y = self.x, self.y
        across = [t for t in x.ticks() if not whole_x or t == int(t)]
        parts = [
            *(self._horizontal(y(t), _number(t)) for t in y.ticks()),
            *(self._vertical(x(t), _number(t)) for t in across),
            element(
                "text",
                self.x_label,
                class_="label",
                x=(x.start + x.end) / 2,
                y=self.height - 8,
                text_anchor="middle",
            ),
            element(
                "text",
                self.y_label,
                class_="label",
                transform=f"translate(13 {(y.start + y.end) / 2:g}) rotate(-90)",
                text_anchor="middle",
            ),
        ]
        return Markup("").join(parts)

    def _horizontal(self, place: float, text: str) -> Markup:
        line = element(
            "line", class_="grid", x1=self.LEFT, x2=self.width - self.RIGHT, y1=place, y2=place
        )
        label = element(
            "text", text, class_="tick", x=self.LEFT - 6, y=place + 4, text_anchor="end"
        )
        return line + label

    def _vertical(self, place: float, text: str) -> Markup:
        bottom = self.height - self.BOTTOM
        line = element("line", class_="grid", x1=place, x2=place, y1=self.TOP, y2=bottom)
        label = element("text", text, class_="tick", x=place, y=bottom + 16, text_anchor="middle")
        return line + label

    def inside(self, key: str, *children: str) -> Markup:
        """Return what is drawn in the frame and cut off at it; ``key`` is unique on a page."""
        box = element(
            "rect",
            x=self.LEFT,
            y=self.TOP,
            width=self.width - self.LEFT - self.RIGHT,
            height=self.height - self.TOP - self.BOTTOM,
        )
        clip = element("clipPath", box, id=f"clip-{key}")
        return clip + element("g", *children, clip_path=f"url(#clip-{key})")

    def picture(self, title: str, *children: str) -> Markup:
        """Return the whole picture."""
        return picture(self.width, self.height, title, *children, class_="plot")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
