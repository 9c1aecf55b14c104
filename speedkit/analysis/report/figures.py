"""Figures of a report: training curves, best FSR so far, outcomes, FSR of several runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from speedkit.analysis.report.facts import NodeFacts, RunFacts
from speedkit.analysis.report.outcomes import in_words, look
from speedkit.analysis.report.svg import Axes, Point, element, path, picture, spread
from speedkit.analysis.report.text import subject
from speedkit.analysis.report.tree import shape
from speedkit.core.metrics import Metrics

ROW = 44
"""Height of the row of a group of runs, in pixels."""
WIDEST = 58
"""Characters of the label of a row."""
LOWEST_FSR = -1.0
"""FSR below which a point is drawn at the edge of a figure; its number is beside it."""


def curves(run: RunFacts) -> Markup | None:
    """Return the training curves of all nodes against both records; None without any."""
    nodes = [n for n in run.nodes if n.node.id and n.curve]
    drawn = sorted(nodes, key=lambda n: (n.is_best, n.node.is_valid))
    lines = [
        _line(n.curve, f"curve o-{look(n.outcome).key}" + (" best" if n.is_best else ""), n.title)
        for n in drawn
    ]
    return _curves(run, [n.curve for n in nodes], lines, f"{run.key}-curves")


def curve(run: RunFacts, facts: NodeFacts) -> Markup | None:
    """Return the training curve of one node against both records; None if it has none."""
    if not facts.curve:
        return None
    line = _line(facts.curve, f"curve best o-{look(facts.outcome).key}", facts.title)
    return _curves(run, [facts.curve], [line], f"{facts.key}-curve")


_Line = tuple[list[Point], str, str]


def _line(curve: Sequence[Metrics], style: str, title: str) -> _Line:
    return _points(curve), style, title


def _points(curve: Sequence[Metrics]) -> list[Point]:
    """Return seconds and losses."""
    return [((m.train_time_ms or 0) / 1000, m.val_loss) for m in curve]


def _curves(
    run: RunFacts, shown: Sequence[Sequence[Metrics]], lines: Sequence[_Line], key: str
) -> Markup | None:
    records = [
        _line(run.references[which], f"curve {which}", f"{which} record")
        for which in ("start", "target")
        if run.references[which]
    ]
    points = [p for curve in shown for p in _points(curve)]
    if not points:
        return None
    target = run.state.task.rules.target
    every = [*points, *(p for line, _, _ in records for p in line)]
    axes = Axes(
        _from_zero([x for x, _ in every] + _record_times(run)),
        _loss_limits([y for _, y in every], target),
        "training time (s)",
        "validation loss",
    )
    paths = [_drawn(axes, line) for line in [*records, *lines]]
    return axes.picture(
        "Validation loss against training time",
        axes.frame(),
        axes.inside(key, *_marks(run, axes, target), *paths),
    )


def _drawn(axes: Axes, line: _Line) -> Markup:
    points, style, title = line
    placed = axes.place(points)
    x, y = placed[-1]
    end = element("circle", cx=x, cy=y, r=3, class_=f"end {style}")
    return element("g", element("title", title), path(placed, class_=style), end)


def _marks(run: RunFacts, axes: Axes, target: float) -> list[Markup]:
    """Return the target loss as a line across, the times of both records as lines upright."""
    y = axes.y(target)
    left, right = axes.x.start, axes.x.end
    marks = [
        element("line", class_="target-loss", x1=left, x2=right, y1=y, y2=y),
        element(
            "text", f"target {target:g}", class_="note", x=left + 4, y=y - 4, text_anchor="start"
        ),
    ]
    for name, time in zip(("start", "target"), _record_times(run), strict=False):
        x = axes.x(time)
        top, bottom = axes.y.end, axes.y.start
        title = element("title", f"time of the {name} record: {time:.2f} s")
        marks.append(element("line", title, class_=f"time {name}", x1=x, x2=x, y1=top, y2=bottom))
        marks.append(element("text", name, class_="note", x=x - 3, y=top + 10, text_anchor="end"))
    return marks


def _record_times(run: RunFacts) -> list[float]:
    """Return seconds of the start and the target record."""
    calibration = run.calibration
    return (
        [] if calibration is None else [calibration.start_ms / 1000, calibration.target_ms / 1000]
    )


def _from_zero(values: Sequence[float]) -> tuple[float, float]:
    return 0.0, max(values) * 1.05 or 1.0


def _loss_limits(losses: Sequence[float], target: float) -> tuple[float, float]:
    """Return limits around the end of training; what is far over the target is cut off."""
    near = [y for y in losses if y <= 2 * target] or [min(losses)]
    return spread([*near, target], pad=0.08)


# --- best so far ------------------------------------------------------------------------------


def best_so_far(run: RunFacts) -> Markup | None:
    """Return FSR of each node, and of the best until then; None where FSR is not defined."""
    valid = [(n.node.id, n.fsr) for n in run.nodes if n.node.id and n.fsr is not None]
    if not valid:
        return None
    last = max(n.node.id for n in run.nodes)
    values = [max(LOWEST_FSR, v) for _, v in valid]
    axes = Axes((0.0, last + 0.5), spread([0.0, 1.0, *values], pad=0.07), "node", "FSR", height=300)
    steps = axes.place(_steps(valid, last))
    lines = [_level(axes, 1.0, "target record"), _level(axes, 0.0, "start record")]
    return axes.picture(
        "Best FSR so far against number of nodes",
        axes.frame(whole_x=True),
        *lines,
        axes.inside(f"{run.key}-best", path(steps, class_="curve o-valid best")),
        *(_dot(axes, float(i), v, f"node {i}: FSR {v:+.3f}") for i, v in valid),
    )


def _steps(valid: Sequence[tuple[int, float]], last: int) -> list[Point]:
    """Return the corners of the line of the best so far."""
    best = valid[0][1]
    corners: list[Point] = [(float(valid[0][0]), best)]
    for node_id, value in valid[1:]:
        if value > best:
            corners += [(float(node_id), best), (float(node_id), value)]
            best = value
    return [*corners, (float(last), best)]


def _level(axes: Axes, value: float, name: str) -> Markup:
    y = axes.y(value)
    line = element("line", class_="level-line", x1=axes.x.start, x2=axes.x.end, y1=y, y2=y)
    label = element("text", name, class_="note", x=axes.x.start + 4, y=y - 4)
    return line + label


def _dot(axes: Axes, x: float, value: float, title: str) -> Markup:
    """Return a point, a triangle at the edge for one that lies below the figure."""
    low = value < LOWEST_FSR
    mark = shape("triangle_down" if low else "circle", 4, class_="dot")
    at = f"translate({axes.x(x):.1f} {axes.y(max(LOWEST_FSR, value)):.1f})"
    return element("g", element("title", title), mark, transform=at, class_="o-valid")


# --- outcomes ---------------------------------------------------------------------------------


def outcomes(counts: Iterable[tuple[str, int]]) -> Markup | None:
    """Return a bar for each outcome; None without nodes."""
    found = [(outcome, n) for outcome, n in counts if n]
    if not found:
        return None
    row, left, width = 30, 104, 480
    most = max(n for _, n in found)
    bars = []
    for k, (outcome, n) in enumerate(found):
        length = max(2.0, (width - left - 44) * n / most)
        y = k * row + 6
        seen = look(outcome)
        mark = element(
            "g", shape(seen.shape, 6, class_="shape"), transform=f"translate(12 {y + 10})"
        )
        bar = element("rect", class_="bar", x=left, y=y, width=length, height=20, rx=2)
        name = element("text", in_words(outcome), class_="tick", x=26, y=y + 14)
        number = element("text", str(n), class_="tick", x=left + length + 6, y=y + 14)
        bars.append(element("g", mark, name, bar, number, class_=f"o-{seen.key}"))
    title = "Nodes by outcome: " + ", ".join(f"{n} {in_words(o)}" for o, n in found)
    return picture(width, len(found) * row + 6, title, *bars, class_="plot")


# --- several runs -----------------------------------------------------------------------------


def fsr_of_runs(runs: Sequence[RunFacts]) -> Markup | None:
    """Return the FSR of runs, those that differ in the seed alone in one row."""
    known = [(run, value) for run in runs if (value := _fsr(run)) is not None]
    groups: dict[str, list[tuple[RunFacts, float]]] = {}
    for label, pair in zip(_labels([run for run, _ in known]), known, strict=True):
        groups.setdefault(label, []).append(pair)
    if not groups:
        return None
    values = [max(LOWEST_FSR, v) for group in groups.values() for _, v in group]
    axes = Axes(
        spread([0.0, 1.0, *values], pad=0.04),
        (0.0, float(len(groups))),
        "FSR",
        "",
        height=len(groups) * ROW + Axes.TOP + Axes.BOTTOM,
    )
    rows = [_row(axes, k, label, group) for k, (label, group) in enumerate(groups.items())]
    return axes.picture("FSR of the runs", _ruler(axes), *rows)


def _fsr(run: RunFacts) -> float | None:
    """Return the FSR of a run; 0 where the start record stands, None where it is missing."""
    if run.result == "invalid":
        return 0.0
    return run.best.fsr if run.best is not None else None


def _labels(runs: Sequence[RunFacts]) -> list[str]:
    """Return what tells each run from others but for its seed; in short where room is scarce."""
    parts = [_settings(run) for run in runs]
    varied = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    if any(varied) and any(len(_label(own)) > WIDEST for own in parts):
        parts = [tuple(p if v else None for p, v in zip(own, varied, strict=True)) for own in parts]
    return [_label(own) for own in parts]


def _label(parts: Iterable[str | None]) -> str:
    return " · ".join(p for p in parts if p)


def _settings(run: RunFacts) -> tuple[str | None, ...]:
    return (
        run.state.task.name,
        run.component("scaffold"),
        run.component("coder"),
        run.model,
        f"hints {run.hints}",
        None if run.knowledge == "none" else run.knowledge,
    )


def _ruler(axes: Axes) -> Markup:
    """Return the numbers and the label below the rows."""
    bottom = axes.height - axes.BOTTOM
    numbers = [
        element("text", f"{t:g}", class_="tick", x=axes.x(t), y=bottom + 16, text_anchor="middle")
        for t in axes.x.ticks()
    ]
    middle = (axes.x.start + axes.x.end) / 2
    place = axes.height - 8
    label = element("text", "FSR", class_="label", x=middle, y=place, text_anchor="middle")
    return Markup("").join([*numbers, label])


def _uprights(axes: Axes, top: float) -> Markup:
    """Return the grid of one row."""
    lines = (
        element(
            "line",
            class_="level-line" if t in (0.0, 1.0) else "grid",
            x1=axes.x(t),
            x2=axes.x(t),
            y1=top,
            y2=top + ROW - 20,
        )
        for t in axes.x.ticks()
    )
    return Markup("").join(lines)


def _row(axes: Axes, k: int, label: str, group: Sequence[tuple[RunFacts, float]]) -> Markup:
    top = axes.TOP + k * ROW
    dots = []
    for run, value in group:
        at = f"translate({axes.x(max(LOWEST_FSR, value)):.1f} {top + 30})"
        title = element("title", f"{run.name}, seed {run.seed}: FSR {value:+.3f}")
        name = "triangle_down" if value < LOWEST_FSR else "circle"
        mark = shape(name if run.result == "valid" else "ring", 5, class_="dot")
        style = "o-valid" if run.result == "valid" else "o-pending"
        dots.append(element("g", title, mark, transform=at, class_=style))
    text = element("text", subject(label, WIDEST), class_="tick", x=4, y=top + 14)
    return element("g", text, _uprights(axes, top + 20), *dots)
