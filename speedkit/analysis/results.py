"""From run directories and results files to one table, a row a run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedkit.analysis.columns import COLUMNS, MISSING, NAMES
from speedkit.analysis.imported import SUFFIX, ResultsFile, read_results_file
from speedkit.analysis.reading import Reading, Row, Warn, folders_with, read_run, row_of
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

PathLike = str | os.PathLike[str]


def load(
    paths: PathLike | Iterable[PathLike],
    *,
    gate: float | None = None,
    on_warning: Warn | None = None,
) -> pd.DataFrame:
    """Return a table with one row a run; nothing that is read is changed.

    The columns are those of :data:`speedkit.analysis.columns.COLUMNS`. Texts that are missing
    are None, numbers that are missing are NaN and never 0.

    Args:
        paths: run directories, folders that contain some, and results files made by
            ``speedkit results import``.
        gate: judge nodes by this validation loss instead of each run's own. Results from a
            file cannot be judged anew: those of another gate become ``missing``.
        on_warning: receives a line on each run that cannot be read in full; by default
            these are Python warnings.

    Raises:
        UsageError: a path holds no results.
    """
    return collect(paths, on_warning).frame(gate)


@dataclass
class Sources:
    """Results as they were found, from which tables under several gates can be made."""

    runs: list[Reading] = field(default_factory=list)
    files: list[ResultsFile] = field(default_factory=list)
    on_warning: Warn = lambda text: None

    def rows(self, gate: float | None = None) -> list[Row]:
        """Return a row a run, under each run's own gate or under another."""
        heard = self.on_warning if gate is None else lambda text: None
        rows = [row_of(reading, gate, heard) for reading in self.runs]
        rows += [_under(row, gate) for file in self.files for row in file.rows]
        return rows

    def frame(self, gate: float | None = None) -> pd.DataFrame:
        """Return the rows as a table."""
        return frame_of(self.rows(gate))


def collect(paths: PathLike | Iterable[PathLike], on_warning: Warn | None = None) -> Sources:
    """Find and read results; the arguments are those of :func:`load`.

    A run that is reached twice, or a copy of one, is taken once.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    sources = Sources(on_warning=on_warning or _python_warning)
    seen: dict[str, Path] = {}
    for path in _unique(Path(p) for p in given):
        if path.is_file():
            _add_file(sources, path, seen)
        else:
            for run in _runs_at(path):
                _add_run(sources, run, seen)
    return sources


def _add_file(sources: Sources, path: Path, seen: dict[str, Path]) -> None:
    file = read_results_file(path)
    if first := seen.get(file.sha256):
        sources.on_warning(f"{path}: the same results as {first}, counted once")
        return
    seen[file.sha256] = path
    sources.files.append(file)


def _add_run(sources: Sources, path: Path, seen: dict[str, Path]) -> None:
    reading = read_run(path, sources.on_warning)
    run_id = reading.directory.run_id if reading.directory else str(path.resolve())
    if first := seen.get(run_id):
        if first.resolve() != path.resolve():
            sources.on_warning(f"{path}: a copy of the run {first}, counted once")
        return
    seen[run_id] = path
    sources.runs.append(reading)


def _unique(paths: Iterable[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        real = path.resolve()
        if real not in seen:
            seen.add(real)
            yield path


def _runs_at(path: Path) -> list[Path]:
    """Return the run directories at or below a path, sorted.

    Raises:
        UsageError: there is none.
    """
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}")
    found = list(folders_with(path, ("run.toml",)))
    if not found:
        raise UsageError(
            f"{path} holds no results: give run directories, folders that contain some, or "
            f"files (*{SUFFIX}) made by: speedkit results import FILE.csv"
        )
    return found


def _under(row: Row, gate: float | None) -> Row:
    """Return an imported row as it stands under a gate."""
    if gate is None or row.get("gate") == gate:
        return row
    judged = ("best_node", "train_time_ms", "fsr", "judge", "judge_score", "verdict")
    verified = ("verified_fsr", "verified_low", "verified_high")
    kept = {k: v for k, v in row.items() if k not in (*judged, *verified)}
    return {**kept, "result": MISSING, "gate": gate}


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table with every column, whatever the rows leave out."""
    import numpy as np
    import pandas as pd

    data: dict[str, Any] = {}
    for column in COLUMNS:
        values = [row.get(column.name) for row in rows]
        if column.kind == "text":
            data[column.name] = np.array([*values, None], dtype=object)[:-1]
        else:
            numbers = [float("nan") if v is None else float(v) for v in values]
            data[column.name] = np.array(numbers, dtype=float)
    return pd.DataFrame(data, columns=list(NAMES))


def _python_warning(text: str) -> None:
    warnings.warn(text, stacklevel=4)
