"""Checking the cells of an imported table: strict, and clear about what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from speedkit.analysis.columns import INVALID, MISSING, RECORD, RESULTS, STARTS, VALID, Column
from speedkit.analysis.reading import VERDICTS, Row
from speedkit.core.files import printable
from speedkit.core.metrics import MAX_TIME_MS, fsr

STATUSES = ("finished", "stopped", "interrupted", "failed", "running")
MAX_TEXT = 300
"""Characters of a text."""
MAX_NUMBER = 1e15
"""No number of a result is as large."""
FSR_TOLERANCE = 0.01
"""How much a given FSR may differ from that of the given times, since both may be rounded."""
MAY_BE_NEGATIVE = frozenset({"fsr", "verified_fsr", "verified_low", "verified_high"})
CHOICES = {"result": RESULTS, "status": STATUSES, "verdict": VERDICTS, "start": STARTS}

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_TASK = re.compile(r"([a-z][a-z0-9_-]*)/([1-9][0-9]{0,8})")
_HINTS = re.compile(r"none|1(?:\+2)?(?:\+3)?|2(?:\+3)?|3")
# A spreadsheet takes a cell that begins so for a formula; some read the wide forms likewise.
_FORMULA = re.compile("'*[\\s]*[=+\\-@\uff1d\uff0b\uff0d\uff20]")


class CellError(ValueError):
    """A cell, or a row, that cannot be what it should; the message is for the user."""


def guarded(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """Undo :func:`guarded`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def parse_cell(column: Column, text: str) -> Any:
    """Return the value of a cell of a CSV file; None for an empty one.

    Raises:
        CellError: it is not what the column holds.
    """
    if not text.strip():
        return None
    if column.kind == "text":
        return check_value(column, unguarded(text.strip(" ")))
    bare = text.strip()
    if len(bare) > 40 or not _NUMBER.fullmatch(bare):
        raise CellError(f"{_shown(text)} is no number; write it like 12 or -0.25, without units")
    return check_value(column, float(bare))


def check_value(column: Column, value: Any) -> Any:
    """Return a value as a column holds it.

    Raises:
        CellError: it is not what the column holds.
    """
    return _check_text(column, value) if column.kind == "text" else _check_number(column, value)


def _check_text(column: Column, value: Any) -> str:
    if not isinstance(value, str):
        raise CellError(f"{_shown(value)} is no text")
    if len(value) > MAX_TEXT:
        raise CellError(f"the text has {len(value)} characters; {MAX_TEXT} are allowed")
    if printable(value) != value or "\n" in value or "\t" in value:
        raise CellError(f"{_shown(value)} holds characters that are not printable")
    choices = CHOICES.get(column.name)
    if choices and value not in choices:
        raise CellError(f"{_shown(value)} is none of {', '.join(choices)}")
    if column.name == "task" and not _TASK.fullmatch(value):
        raise CellError(f"{_shown(value)} is no task; write FAMILY/ID, for example nanogpt/3")
    if column.name == "hints" and not _HINTS.fullmatch(value):
        raise CellError(f"{_shown(value)}: write none, or levels in order like 1 or 1+2+3")
    return value


def _check_number(column: Column, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CellError(f"{_shown(value)} is no number")
    if not math.isfinite(value) or abs(value) > MAX_NUMBER:
        raise CellError(f"{value:g} is out of range")
    if value < 0 and column.name not in MAY_BE_NEGATIVE:
        raise CellError(f"{value:g} is negative")
    if column.kind == "integer" and value != int(value):
        raise CellError(f"{value:g} is no whole number")
    if column.name.endswith("_ms") and not 0 < value <= MAX_TIME_MS:
        raise CellError(f"{value:g} ms is no time of a training run")
    if column.name == "judge_score" and value > 1:
        raise CellError(f"{value:g} is over 1")
    return value


def _shown(value: Any) -> str:
    """Return a value as it may stand in a message."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


# --- the row --------------------------------------------------------------------------------


def check_row(values: Mapping[str, Any]) -> Row:
    """Return a row with what follows from it filled in.

    Args:
        values: checked cells by name of column; None and absent are the same.

    Raises:
        CellError: the cells contradict one another, or what is needed is not there.
    """
    row: Row = {k: v for k, v in values.items() if v is not None}
    row |= _whole_task(row)
    row.setdefault("status", "finished")
    row.setdefault("start", RECORD)
    row |= _whole_fsr(row)
    _check_result(row)
    return row


def _whole_task(row: Row) -> Row:
    if "task" not in row:
        raise CellError("task is empty; write FAMILY/ID, for example nanogpt/3")
    family, _, number = row["task"].rpartition("/")
    for name, value in (("family", family), ("task_id", int(number))):
        if row.get(name, value) != value:
            raise CellError(f"{name} is {row[name]}, but task is {row['task']}")
    return {"family": family, "task_id": int(number)}


def _whole_fsr(row: Row) -> Row:
    """Return result and FSR, the latter from the times where it is not given."""
    given = row.get("fsr")
    timed = _fsr_of_times(row) if row.get("result") in (VALID, None) else None
    if given is None and timed is not None:
        given = timed
    if given is not None and timed is not None and abs(given - timed) > FSR_TOLERANCE:
        raise CellError(f"fsr is {given:g}, but the times give {timed:.4f}")
    result = row.get("result") or (VALID if given is not None else None)
    if result is None:
        raise CellError("without fsr, result must say invalid or missing, which differ")
    return {"result": result} if given is None else {"result": result, "fsr": given}


def _fsr_of_times(row: Row) -> float | None:
    times = [row.get(name) for name in ("start_ms", "target_ms", "train_time_ms")]
    if any(t is None for t in times):
        return None
    try:
        return fsr(*(float(t) for t in times if t is not None))
    except ValueError as error:
        raise CellError(str(error)) from None


_RULES: dict[str, Callable[[Row], bool]] = {
    "a valid run needs fsr, or start_ms, target_ms and train_time_ms": (
        lambda row: row["result"] != VALID or "fsr" in row
    ),
    "an invalid run has no fsr: none of its nodes may count; leave fsr empty": (
        lambda row: row["result"] != INVALID or "fsr" not in row
    ),
    "a missing result has no fsr; leave fsr empty, or say valid": (
        lambda row: row["result"] != MISSING or "fsr" not in row
    ),
    "verified_low is over verified_high": (
        lambda row: row.get("verified_low", -math.inf) <= row.get("verified_high", math.inf)
    ),
}


def _check_result(row: Row) -> None:
    for message, holds in _RULES.items():
        if not holds(row):
            raise CellError(message)
