"""Which figures there are, and writing those that results have something for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from speedkit.analysis.figures.aggregates import aggregates
from speedkit.analysis.figures.chains import cumulative
from speedkit.analysis.figures.curves import training_curves
from speedkit.analysis.figures.judged import fsr_against_judge
from speedkit.analysis.figures.material import Material, find_material
from speedkit.analysis.figures.outcomes import outcomes
from speedkit.analysis.figures.progress import best_so_far
from speedkit.analysis.figures.records import record_times
from speedkit.analysis.figures.rows import Choice, distinct
from speedkit.analysis.figures.style import NothingToDraw, save
from speedkit.analysis.figures.tasks import fsr_by_task, judge_by_task
from speedkit.analysis.reading import Warn
from speedkit.core.errors import SpeedkitError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES = 24
"""Runs of which training curves are drawn without being asked for by name."""
FORMS = ("png", "svg")

PathLike = str | os.PathLike[str]
Made = tuple[str, Callable[[], "Figure"]]
"""What a file's name ends in, and how its figure is drawn."""


@dataclass(frozen=True)
class Wanted:
    """What is drawn, and whether it was asked for by name."""

    choice: Choice
    by_name: bool = False


@dataclass(frozen=True)
class Spec:
    """A figure.

    Attributes:
        meaning: one phrase.
        make: given what was found, yields the figures of this name.
    """

    meaning: str
    make: Callable[[Material, Wanted], Iterable[Made]]


def _one(draw: Callable[[Material, Choice], Figure]) -> Callable[[Material, Wanted], list[Made]]:
    return lambda material, wanted: [("", lambda: draw(material, wanted.choice))]


def _each_scaffold(material: Material, wanted: Wanted) -> Iterator[Made]:
    if not material.rows:
        raise NothingToDraw("there is no run")
    for name in distinct(material.rows, "scaffold"):
        yield (
            name,
            lambda name=name: fsr_by_task(  # type: ignore[misc]
                material.rows, name, choice=wanted.choice
            ),
        )


def _each_run(material: Material, wanted: Wanted) -> Iterator[Made]:
    runs = material.sources.runs
    if not runs:
        raise NothingToDraw("there is no run directory, and imported results have no curves")
    if len(runs) > MAX_CURVES and not wanted.by_name:
        raise NothingToDraw(f"there are {len(runs)} runs; --only curves draws all of them")
    for reading in runs:
        name = reading.path.resolve().name
        yield name, lambda reading=reading: training_curves(reading)  # type: ignore[misc]


def _each_chain(material: Material, wanted: Wanted) -> Iterator[Made]:
    if not material.chains:
        raise NothingToDraw("there is no cumulative speedrun; give its directory")
    groups = {(c.family, c.tasks[0], len(c.tasks)) for c in material.chains}
    for family, first, count in sorted(groups):
        own = [
            c
            for c in material.chains
            if (c.family, c.tasks[0], len(c.tasks)) == (family, first, count)
        ]
        yield "" if len(groups) == 1 else family, lambda own=own: cumulative(own)  # type: ignore[misc]


def _each_family(material: Material, wanted: Wanted) -> Iterator[Made]:
    if not material.times:
        raise NothingToDraw("there are no times of records; give a JSON file of them")
    for times in material.times:
        yield times.family, lambda times=times: record_times(times)  # type: ignore[misc]


def _progress(against: str) -> Callable[[Material, Wanted], list[Made]]:
    return _one(lambda m, choice: best_so_far(m.progress(), against, choice=choice))


FIGURES = {
    "hints": Spec(
        "aggregates by hint level, agents pooled",
        _one(lambda m, choice: aggregates(m.rows, "hints", choice=choice)),
    ),
    "scaffolds": Spec(
        "aggregates by scaffold, agents pooled",
        _one(lambda m, choice: aggregates(m.rows, "scaffold", choice=choice)),
    ),
    "hints-agents": Spec(
        "aggregates by hint level and agent",
        _one(lambda m, choice: aggregates(m.rows, "hints", agents=True, choice=choice)),
    ),
    "scaffolds-agents": Spec(
        "aggregates by scaffold and agent",
        _one(lambda m, choice: aggregates(m.rows, "scaffold", agents=True, choice=choice)),
    ),
    "tasks": Spec("FSR by task, hint level and agent, for each scaffold", _each_scaffold),
    "judge-tasks": Spec(
        "judge's score by task and scaffold",
        _one(lambda m, choice: judge_by_task(m.rows, choice=choice)),
    ),
    "judge-fsr": Spec(
        "FSR against the judge's score, with correlations",
        _one(lambda m, choice: fsr_against_judge(m.rows, choice=choice)),
    ),
    "cumulative": Spec("cumulative speedup against the human records", _each_chain),
    "records": Spec("reproduced against reported record times", _each_family),
    "curves": Spec("training curves of the nodes of each run", _each_run),
    "outcomes": Spec("nodes by outcome and scaffold", _one(lambda m, choice: outcomes(m.rows))),
    "best-nodes": Spec("best FSR so far against nodes", _progress("nodes")),
    "best-seconds": Spec("best FSR so far against device-seconds", _progress("seconds")),
    "best-dollars": Spec("best FSR so far against dollars", _progress("dollars")),
}
"""Every figure by name."""


@dataclass
class Written:
    """What came of drawing.

    Attributes:
        files: the files that were written.
        skipped: why a figure was not drawn, by its name.
    """

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def write_figures(
    paths: PathLike | Iterable[PathLike],
    out: PathLike,
    *,
    only: Sequence[str] = (),
    forms: Sequence[str] = FORMS,
    choice: Choice | None = None,
    on_warning: Warn | None = None,
) -> Written:
    """Draw every figure that results have something for; files of the same name are replaced.

    Args:
        paths: as :func:`speedkit.analysis.figures.find_material` takes them.
        out: folder for the files, made if it is not there.
        only: names of :data:`FIGURES`; by default all.
        forms: ``png``, ``svg``, or both.
        choice: score, invalid runs, draws.

    Raises:
        UsageError: a wrong argument, or a path that holds nothing.
    """
    for name in only:
        if name not in FIGURES:
            raise UnknownNameError("figure", name, FIGURES)
    if not forms or set(forms) - set(FORMS):
        raise UsageError(f"figures are written as {' or '.join(FORMS)}")
    material = find_material(paths, on_warning)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written, taken = Written(), set[str]()
    for name, spec in FIGURES.items():
        if name in only or not only:
            wanted = Wanted(choice or Choice(), bool(only))
            _write(name, spec, material, wanted, _Folder(folder, forms, taken, written))
    return written


@dataclass
class _Folder:
    """Where files go, and what was written there."""

    path: Path
    forms: Sequence[str]
    taken: set[str]
    written: Written

    def save(self, name: str, figure: Figure) -> None:
        """Write a figure in every form, under a name that none of this time has."""
        stem, count = name, 1
        while stem in self.taken:
            count += 1
            stem = f"{name}-{count}"
        self.taken.add(stem)
        for form in self.forms:
            path = self.path / f"{stem}.{form}"
            save(figure, path, stem)
            self.written.files.append(path)


def _write(name: str, spec: Spec, material: Material, wanted: Wanted, folder: _Folder) -> None:
    skipped = folder.written.skipped
    try:
        for part, draw in spec.make(material, wanted):
            whole = f"{name}-{_slug(part)}" if part else name
            try:
                folder.save(whole, draw())
            except NothingToDraw as why:
                skipped[whole] = str(why)
    except NothingToDraw as why:
        skipped[name] = str(why)


def _slug(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:80] or "unnamed"


def check_written(written: Written) -> None:
    """Refuse to have drawn nothing.

    Raises:
        SpeedkitError: with a line for each figure that says why it was not drawn.
    """
    if not written.files:
        lines = [f"{name}: {why}" for name, why in written.skipped.items()]
        raise SpeedkitError("\n".join(["no figure could be drawn", *lines]))
