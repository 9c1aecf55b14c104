"""A results table as CSV, JSON values or Markdown, safe to open and to paste."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from speedkit.analysis.cells import guarded
from speedkit.analysis.columns import BY_NAME, COLUMNS, NAMES
from speedkit.core.files import one_line

if TYPE_CHECKING:
    import pandas as pd

_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~&#])")


def rows_of(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield each row as JSON values by name of column; what is missing is None."""
    known = [c for c in COLUMNS if c.name in frame.columns]
    for values in frame[[c.name for c in known]].itertuples(index=False, name=None):
        yield {c.name: _plain(c.name, v) for c, v in zip(known, values, strict=True)}


def _plain(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if BY_NAME[name].kind == "text":
        return str(value)
    return int(value) if BY_NAME[name].kind == "integer" else float(value)


def to_csv(frame: pd.DataFrame) -> str:
    """Return the table as CSV that ``speedkit results import`` reads.

    Numbers are written so that they read back the same; what is missing is empty. A text that
    a spreadsheet would take for a formula, since it begins with ``=``, ``+``, ``-`` or ``@``,
    gets an apostrophe before it, which an import takes off.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(n for n in NAMES if n in frame.columns)
    for row in rows_of(frame):
        writer.writerow(_csv_cell(v) for v in row.values())
    return out.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return guarded(one_line(value)) if isinstance(value, str) else repr(value)


def to_markdown(headers: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    """Return a table in Markdown; whatever is in its cells is shown as it is."""
    body = [[_markdown_cell(cell) for cell in row] for row in rows]
    marked = [list(headers), ["---"] * len(headers), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in marked)


def _markdown_cell(text: str | None) -> str:
    return "–" if text is None else _MARKUP.sub(r"\\\1", one_line(text))
