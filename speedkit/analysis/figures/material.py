"""What figures are made of, found in paths: runs, imported results, chains, record times."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedkit.analysis.figures.chains import ChainCurve, chain_curve
from speedkit.analysis.figures.progress import Progress, progress_of
from speedkit.analysis.figures.records import FamilyTimes, family_times
from speedkit.analysis.figures.rows import Row, rows_with_agent
from speedkit.analysis.reading import MAX_JSON, Warn, folders_with
from speedkit.analysis.results import PathLike, Sources, collect
from speedkit.chain import ASKED, load
from speedkit.core.errors import SpeedkitError


@dataclass
class Material:
    """What was found.

    Attributes:
        sources: runs and imported results. Runs of a chain are not among them, since they
            start from the agent's own scripts and not from records.
        chains: cumulative speedruns.
        times: times of records, a family each.
    """

    sources: Sources = field(default_factory=Sources)
    chains: list[ChainCurve] = field(default_factory=list)
    times: list[FamilyTimes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows: list[Row] = rows_with_agent(self.sources.frame())

    def progress(self) -> list[Progress]:
        """Return the progress of each run that has one."""
        pairs = zip(self.sources.runs, self.rows, strict=False)
        found = (progress_of(reading, row) for reading, row in pairs)
        return [p for p in found if p is not None]


def find_material(paths: PathLike | Iterable[PathLike], on_warning: Warn | None = None) -> Material:
    """Return what is at and below paths.

    Args:
        paths: run directories, folders that contain some, results files, directories of
            cumulative speedruns or their ``result.json``, and JSON files of record times.
        on_warning: receives a line on each run that cannot be read in full.

    Raises:
        UsageError: a path holds nothing, or a file is none of these.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    results: list[Path] = []
    chains: list[ChainCurve] = []
    times: list[FamilyTimes] = []
    for path in map(Path, given):
        values = _json_object(path)
        if "seeds" in values and "summary" in values:
            chains.append(chain_curve(values, str(path)))
        elif "records" in values:
            times.append(family_times(values, str(path)))
        else:
            found = list(folders_with(path, (ASKED, "run.toml"))) if path.is_dir() else []
            chains += _chains([p for p in found if (p / ASKED).is_file()], path, on_warning)
            runs = [p for p in found if not (p / ASKED).is_file()]
            results += runs if found else [path]
    return Material(collect(results, on_warning) if results else Sources(), chains, times)


def _chains(paths: Iterable[Path], given: Path, on_warning: Warn | None) -> Iterator[ChainCurve]:
    """Yield the chains at paths; one that cannot be read is fatal only if it was given."""
    for path in paths:
        try:
            yield chain_curve(load(path).as_json(), str(path))
        except SpeedkitError as error:
            if path == given or on_warning is None:
                raise
            on_warning(f"{error}; it is left out")


def _json_object(path: Path) -> Mapping[str, Any]:
    """Return the object of a JSON file; empty when it is none."""
    if not path.is_file() or path.stat().st_size > MAX_JSON:
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
