"""Training curves of a run's nodes against both records and the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speedkit.analysis.figures import style as s
from speedkit.analysis.report.evidence import Folder
from speedkit.core.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from speedkit.analysis.reading import Reading
    from speedkit.core.calibration import Calibration
    from speedkit.core.node import Node

POINTS = 400
"""Validations of a curve that are drawn."""
RECORDS = {"start": ("#000000", "--"), "target": ("#000000", ":")}
OTHERS = {"invalid": "#E69F00", "quarantined": "#CC79A7", "buggy": "#D55E00", "stopped": "#7F7F7F"}
VALID, BEST = "#56B4E9", "#0072B2"

Curve = Sequence[Metrics]


@s.styled
def training_curves(run: Reading | str | Path) -> Figure:
    """Draw validation loss against training time for the nodes of a run.

    Args:
        run: a run directory.

    Raises:
        NothingToDraw: it cannot be read, or no node has a validation.
    """
    reading = _read(run)
    if reading.run is None or reading.directory is None:
        raise s.NothingToDraw(f"{s.shown(reading.path, 200)} cannot be read")
    folder = Folder(reading.path, POINTS, 0, str)
    nodes = [n for n in reading.run.tree if n.id != 0]
    curves = [(n, folder.curve(f"nodes/{n.id:04d}")) for n in nodes]
    drawn = [(n, curve) for n, curve in curves if curve]
    if not drawn:
        raise s.NothingToDraw(f"no node of {s.shown(reading.path, 200)} has a validation")
    best = reading.run.best
    drawn.sort(key=lambda pair: (best is not None and pair[0].id == best.id, pair[0].is_valid))
    return _Picture(reading, reading.run.calibration, drawn, len(nodes), best).draw()


def _read(run: Reading | str | Path) -> Reading:
    from speedkit.analysis.reading import read_run

    return read_run(Path(run), lambda text: None) if isinstance(run, (str, Path)) else run


class _Picture:
    """The curves of one run."""

    def __init__(
        self,
        reading: Reading,
        calibration: Calibration | None,
        drawn: list[tuple[Node, tuple[Metrics, ...]]],
        nodes: int,
        best: Node | None,
    ) -> None:
        self.reading, self.calibration, self.drawn = reading, calibration, drawn
        self.nodes, self.best = nodes, best
        self.records: dict[str, Curve] = {}
        self.times: dict[str, float] = {}
        if calibration is not None:
            curves = {"start": calibration.start_curve, "target": calibration.target_curve}
            self.records = {which: curve for which, curve in curves.items() if curve}
            self.times = {"start": calibration.start_ms, "target": calibration.target_ms}

    def draw(self) -> Figure:
        """Return the figure."""
        name = s.shown(self.reading.path.resolve().name, 60)
        figure, [axes] = s.canvas(
            f"Training curves of {name}", self._caption(), 3.5, keys=self._keys()
        )
        axes.set_xlim(0, self._end() * 1.04)
        axes.set_ylim(*self._losses())
        axes.set_xlabel("training time (s)")
        axes.set_ylabel("validation loss")
        self._marks(axes)
        for which, curve in self.records.items():
            color, dash = RECORDS[which]
            xs, ys = _points(curve)
            axes.plot(xs, ys, color=color, linestyle=dash, linewidth=1.6, zorder=3)
            axes.plot(xs[-1:], ys[-1:], color=color, marker="d", markersize=4.5, zorder=5)
        for node, curve in self.drawn:
            color, width = self._look(node)
            xs, ys = _points(curve)
            axes.plot(xs, ys, color=color, linewidth=width, zorder=4 if width > 2 else 2)
            marker = "o" if node.is_valid else "x"
            axes.plot(xs[-1], ys[-1], color=color, marker=marker, markersize=4.5, zorder=5)
        return figure

    def _look(self, node: Node) -> tuple[str, float]:
        if self.best is not None and node.id == self.best.id:
            return BEST, 2.4
        return (VALID if node.is_valid else OTHERS.get(str(node.outcome), s.QUIET)), 1.0

    def _keys(self) -> list[s.Key]:
        keys = [
            (s.key(color, linestyle=dash), f"{which} record")
            for which, (color, dash) in RECORDS.items()
            if which in self.records
        ]
        if self.best is not None:
            keys.append((s.key(BEST, linewidth=2.4), f"best: node {self.best.id}"))
        counts: dict[str, int] = {}
        for node, _ in self.drawn:
            if self._look(node)[0] != BEST:
                name = str(node.outcome)
                counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            color = VALID if name == "valid" else OTHERS.get(name, s.QUIET)
            look = s.key(color, "o" if name == "valid" else "x", linestyle="-")
            keys.append((look, f"{name} ({count})"))
        return keys

    def _caption(self) -> list[str]:
        without = self.nodes - len(self.drawn)
        absent = [w for w in RECORDS if w not in self.records]
        return [
            f"n = 1 run, {len(self.drawn)} of {self.nodes} nodes have a curve"
            + (f"; {without} printed no validation or were not run." if without else "."),
            "Each curve is one training run, so there are no intervals.",
            "Upright: median times of the two records." if self.times else "Not calibrated.",
            f"No curve of the {' and the '.join(absent)} record is known." if absent else "",
            "Losses far over the target are cut off.",
        ]

    def _end(self) -> float:
        """Return the seconds at the right edge."""
        times = [t / 1000 for t in self.times.values()]
        curves = [c for _, c in self.drawn] + list(self.records.values())
        return max([*times, *(x for c in curves for x in _points(c)[0])]) or 1.0

    def _losses(self) -> tuple[float, float]:
        """Return limits around the end of training."""
        curves = [c for _, c in self.drawn] + list(self.records.values())
        losses = [y for c in curves for y in _points(c)[1]]
        gate = self.reading.gate
        near = losses if gate is None else [y for y in losses if y <= 2 * gate] or [min(losses)]
        near = near if gate is None else [*near, gate]
        pad = 0.06 * (max(near) - min(near)) or 0.1
        return min(near) - pad, max(near) + pad

    def _marks(self, axes: Axes) -> None:
        gate = self.reading.gate
        if gate is not None:
            axes.axhline(gate, color=s.QUIET, linewidth=1.0)
            axes.annotate(
                f"target loss {gate:g}",
                (0.0, gate),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=s.SMALL,
                color=s.QUIET,
            )
        first = min(self.times.values(), default=0.0)
        for which, time in self.times.items():
            axes.axvline(time / 1000, color=s.QUIET, linestyle=RECORDS[which][1], linewidth=0.9)
            left = time == first and len(set(self.times.values())) > 1
            axes.annotate(
                f"{which}: {time / 1000:.2f} s",
                (time / 1000, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(2 if left else -2, 3),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=s.SMALL,
                color=s.QUIET,
            )


def _points(curve: Curve) -> tuple[list[float], list[float]]:
    """Return seconds and losses."""
    return [(m.train_time_ms or 0) / 1000 for m in curve], [m.val_loss for m in curve]
