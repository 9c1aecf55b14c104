"""Results of others: read strictly from a CSV file, kept as a results file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedkit.analysis.cells import CellError, check_row, check_value, parse_cell
from speedkit.analysis.columns import BY_NAME, NAMES
from speedkit.analysis.reading import Row
from speedkit.core.errors import UsageError, did_you_mean
from speedkit.core.files import write_json

SCHEMA = 1
SUFFIX = ".results.json"
"""Ending of results files."""
MAX_BYTES = 64 << 20
"""Bytes of a CSV file."""
MAX_STORED = 512 << 20
"""Bytes of a results file; that of the largest CSV file, whose cells all get names, fits."""
MAX_ROWS = 200_000
MAX_MISTAKES = 20
"""Mistakes of a file that are named."""
_DERIVED = ("run", "source")
"""Columns of an exported table that an import sets anew."""
_IDENTITY = (
    *("task", "name", "start", "scaffold", "coder", "model", "model_asked"),
    *("hints", "knowledge", "seed", "gate"),
)


@dataclass(frozen=True)
class ResultsFile:
    """An imported table.

    Attributes:
        origin: name of the CSV file.
        sha256: of the rows, so that the same ones are not counted twice.
        rows: mappings by name of column; what is missing is left out.
    """

    path: Path
    origin: str
    sha256: str
    rows: tuple[Row, ...]


def import_results(csv_file: Path, out: Path | None = None) -> ResultsFile:
    """Check a CSV file of results and keep it as a results file.

    The format is described in the guide on results. Nothing is written when there is a mistake.

    Args:
        out: the results file; by default beside the CSV file, ending in ``.results.json``.

    Raises:
        UsageError: with a line for each mistake, each with the number of the file's line.
    """
    rows = parse_csv(_read(csv_file, MAX_BYTES), str(csv_file))
    path = out or csv_file.with_name(csv_file.stem + SUFFIX)
    if path.exists():
        raise UsageError(f"{path} exists already; remove it, or choose another --out")
    content = {"speedkit_results": SCHEMA, "origin": csv_file.name, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return read_results_file(path)


def read_results_file(path: Path) -> ResultsFile:
    """Read a results file, checking it as strictly as an import does.

    Raises:
        UsageError: it is none, or does not hold together.
    """
    content = _content(path)
    rows, mistakes = [], _Mistakes(str(path))
    for number, values in enumerate(content["rows"], start=1):
        try:
            rows.append(_placed(check_row(_checked(values)), path, number))
        except CellError as error:
            mistakes.add(f"row {number}", str(error))
    mistakes.raise_any()
    text = json.dumps(content["rows"], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ResultsFile(path, str(content.get("origin", "")), digest, tuple(rows))


def _content(path: Path) -> dict[str, Any]:
    wrong = f"{path} is no results file; to make one: speedkit results import FILE.csv"
    text = _read(path, MAX_STORED)
    if not text[:100].lstrip().startswith("{"):
        raise UsageError(wrong)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no results file: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise UsageError(wrong)
    if content.get("speedkit_results") != SCHEMA:
        raise UsageError(
            f"{path} has format {ascii(content.get('speedkit_results'))[:20]}; "
            f"this speedkit knows {SCHEMA}"
        )
    return content


def _checked(values: Any) -> Row:
    if not isinstance(values, Mapping):
        raise CellError("it is no object")
    row: Row = {}
    for name, value in values.items():
        if name not in BY_NAME or name in _DERIVED:
            raise CellError(f"there is no column {ascii(name)[:60]}")
        try:
            row[name] = check_value(BY_NAME[name], value)
        except CellError as error:
            raise CellError(f"{name}: {error}") from None
    return row


def _placed(row: Row, path: Path, number: int) -> Row:
    name = row.get("name") or f"{path.name.removesuffix(SUFFIX)}-{number}"
    return {**row, "run": f"{path}#{number}", "name": name, "source": "import"}


# --- CSV --------------------------------------------------------------------------------------


class _Mistakes:
    """Collects the mistakes of a file, to report them together."""

    def __init__(self, file: str) -> None:
        self.file, self.lines, self.count = file, list[str](), 0

    def add(self, where: str, what: str) -> None:
        self.count += 1
        if self.count <= MAX_MISTAKES:
            self.lines.append(f"{self.file}: {where}: {what}")

    def raise_any(self) -> None:
        if self.count > MAX_MISTAKES:
            self.lines.append(f"{self.file}: {self.count - MAX_MISTAKES} further mistakes")
        if self.lines:
            raise UsageError("\n".join(self.lines))


def parse_csv(text: str, file: str) -> list[Row]:
    """Return the rows of a table in CSV; ``file`` is its name in messages.

    Raises:
        UsageError: with a line for each mistake.
    """
    mistakes = _Mistakes(file)
    lines = _records(text, mistakes)
    header_line, header = next(lines, (1, []))
    names = _header(header, header_line, mistakes)
    mistakes.raise_any()
    rows: list[Row] = []
    places: dict[tuple[Any, ...], int] = {}
    for line, cells in lines:
        row = _row(names, cells, line, mistakes)
        if row is not None:
            _check_repeat(row, line, places, mistakes)
            rows.append(row)
    if not rows and not mistakes.count:
        mistakes.add(f"line {header_line}", "there is no row below the header")
    mistakes.raise_any()
    return rows


def _records(text: str, mistakes: _Mistakes) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not empty, each with the line that it begins on."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    count, begin = 0, 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            mistakes.add(f"line {begin}", f"it is no CSV: {error}")
            return
        if any(cell.strip() for cell in cells):
            count += 1
            yield begin, cells
        if count > MAX_ROWS:
            mistakes.add(f"line {begin}", f"more than {MAX_ROWS} rows")
            return
        begin = reader.line_num + 1


def _header(cells: Sequence[str], line: int, mistakes: _Mistakes) -> list[str]:
    names = [cell.strip() for cell in cells]
    where = f"line {line}"
    if len(names) > 2 * len(NAMES):
        mistakes.add(where, f"{len(names)} columns; there are {len(NAMES)}")
        return names
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        mistakes.add(where, "columns must be separated by commas")
        return names
    for name in dict.fromkeys(names):
        if name not in BY_NAME:
            mistakes.add(where, f"no column named {ascii(name)[:60]}; {did_you_mean(name, NAMES)}")
        elif names.count(name) > 1:
            mistakes.add(where, f"column {name} stands there {names.count(name)} times")
    if "task" not in names:
        mistakes.add(where, "the first line must name the columns, and one of them be task")
    return names


def _row(names: Sequence[str], cells: Sequence[str], line: int, mistakes: _Mistakes) -> Row | None:
    where = f"line {line}"
    if len(cells) != len(names):
        mistakes.add(where, f"{len(cells)} cells, but the header names {len(names)} columns")
        return None
    values, before = {}, mistakes.count
    for name, cell in zip(names, cells, strict=True):
        if name in _DERIVED:
            continue
        try:
            values[name] = parse_cell(BY_NAME[name], cell)
        except CellError as error:
            mistakes.add(where, f"{name}: {error}")
    if mistakes.count > before:
        return None
    try:
        return check_row(values)
    except CellError as error:
        mistakes.add(where, str(error))
        return None


def _check_repeat(
    row: Row, line: int, places: dict[tuple[Any, ...], int], mistakes: _Mistakes
) -> None:
    """Refuse a run that stands there twice, which only its seed can tell."""
    if "seed" not in row:
        return
    first = places.setdefault(tuple(row.get(name) for name in _IDENTITY), line)
    if first != line:
        mistakes.add(f"line {line}", f"the same run and seed as on line {first}")


def _read(path: Path, limit: int) -> str:
    """Return the text of a file.

    Raises:
        UsageError: there is none, it is too large, or it is no UTF-8.
    """
    try:
        if not path.is_file():
            raise UsageError(f"no such file: {path}")
        if path.stat().st_size > limit:
            raise UsageError(f"{path} is larger than {limit >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}: line {line}: the text is not UTF-8") from None
