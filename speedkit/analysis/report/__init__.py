"""One self-contained HTML file about one run or several."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from speedkit.analysis.reading import folders_with
from speedkit.api import open_run
from speedkit.core.errors import SpeedkitError, UsageError

if TYPE_CHECKING:
    from speedkit.analysis.report.facts import RunFacts, Unreadable

__all__ = ["default_out", "find_runs", "render", "write_report"]

AnyPath = str | os.PathLike[str]


def render(paths: AnyPath | Iterable[AnyPath], *, base: AnyPath = ".") -> str:
    """Return the report on runs as HTML text.

    A run that is not over yet can be reported, too.

    Args:
        paths: run directories, or folders that hold run directories.
        base: folder in which the report will stand; links to other reports start there.

    Raises:
        UsageError: there is no run, or the only one cannot be read.
    """
    from speedkit.analysis.report.page import render_page

    runs, unreadable = _read(find_runs(paths))
    return render_page(runs, unreadable, Path(base))


def write_report(paths: AnyPath | Iterable[AnyPath], out: AnyPath | None = None) -> Path:
    """Write the report on runs to a file and return its path.

    Args:
        paths: run directories, or folders that hold run directories.
        out: the file, replaced if it is there; by default :func:`default_out`.

    Raises:
        UsageError: there is no run, the only one cannot be read, or ``out`` cannot be written.
    """
    given = _as_list(paths)
    target = Path(out) if out is not None else default_out(given)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give the name of a file, for example report.html")
    page = render(given, base=target.parent)
    try:
        _replace(target, page)
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}; choose another --out"
        ) from error
    return target


def default_out(paths: AnyPath | Iterable[AnyPath]) -> Path:
    """Return where a report goes: into the one folder that was given, else the current one."""
    given = _as_list(paths)
    return given[0] / "report.html" if len(given) == 1 else Path("speedkit-report.html")


def find_runs(paths: AnyPath | Iterable[AnyPath]) -> list[Path]:
    """Return the run directories among paths and in the folders among them, each once.

    Raises:
        UsageError: a path is no run directory and holds none.
    """
    found: dict[Path, Path] = {}
    for path in _as_list(paths):
        runs = list(folders_with(path, ("run.toml",)))
        if not runs:
            what = "does not exist" if not path.exists() else "holds no run"
            raise UsageError(f"{path} {what}; give the directory of a run, or a folder of runs")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _read(paths: list[Path]) -> tuple[list[RunFacts], list[Unreadable]]:
    from speedkit.analysis.report.facts import Limits, Unreadable, read_run

    unreadable: list[Unreadable] = []
    sizes: dict[Path, int] = {}
    for path in paths:
        try:
            sizes[path] = len(open_run(path))
        except SpeedkitError as error:
            if len(paths) == 1:
                raise
            unreadable.append(Unreadable(path, str(error)))
    limits = Limits.sharing(sum(sizes.values()))
    runs = [read_run(path, f"r{k}", limits) for k, path in enumerate(sizes, start=1)]
    return runs, unreadable


def _as_list(paths: AnyPath | Iterable[AnyPath]) -> list[Path]:
    if isinstance(paths, (str, os.PathLike)):
        return [Path(paths)]
    given = [Path(path) for path in paths]
    if not given:
        raise UsageError("no run was given; give the directory of a run, or a folder of runs")
    return given


def _replace(path: Path, content: str) -> None:
    """Replace a file so that a reader sees the old page or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("x", encoding="utf-8", newline="") as file:
            file.write(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
