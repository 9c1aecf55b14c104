"""The last table of a sweep: its arms compared by their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speedkit.core.errors import UsageError
from speedkit.sweeping.cells import Cell

if TYPE_CHECKING:
    from speedkit.analysis.compared import Comparison

COLUMNS = {
    "scaffold": "scaffold",
    "coder": "coder",
    "hints": "hints",
    "knowledge": "knowledge",
    "model": "model_asked",
}
"""Columns of the results table that tell values of a varied key apart."""


def compare_arms(
    folder: Path,
    cells: Sequence[Cell],
    over: Sequence[Path],
    on_warning: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare the arms of a sweep by the runs that are over.

    Args:
        folder: the sweep directory.
        over: the run directories of the searches that are over.

    Raises:
        UsageError: there is nothing to compare.
    """
    from speedkit.analysis import compare, load

    if not over:
        raise UsageError("no run is over yet, so there is nothing to compare")
    columns = columns_of(cells)
    if columns is not None:
        return compare(over, columns, on_warning=on_warning)
    labels = {str(folder / cell.name): cell.label for cell in cells}
    frame = load(over, on_warning=on_warning)
    frame["name"] = [labels.get(str(path), "–") for path in frame["run"]]
    return compare(frame, "name", on_warning=on_warning)


def columns_of(cells: Sequence[Cell]) -> list[str] | None:
    """Return the columns that tell the arms apart; None where there are none that do.

    A sweep that varies nothing is compared by task.
    """
    keys = list(dict.fromkeys(key for cell in cells for key in cell.arm))
    if not keys:
        return ["task"]
    if any(key not in COLUMNS for key in keys):
        return None
    return [COLUMNS[key] for key in keys]
