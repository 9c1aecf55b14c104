"""Writing and reading files so that neither a kill nor a hostile folder does harm."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls but for newline and tab
    r"\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text
    r"\ud800-\udfff]"  # lone surrogates, which no file can hold
)


def write_atomic(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace a file so that a reader, or a kill, sees the old text or the new one.

    Args:
        sync: wait until it is on disk, so that the same holds for a loss of power.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replace a file by JSON text."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", sync=sync)


def read_tail(path: Path, limit: int = 64 * 1024) -> str:
    """Return the last ``limit`` bytes of a file as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit))
            return file.read(limit).decode("utf-8", "backslashreplace")
    except FileNotFoundError:
        return ""


def printable(text: str) -> str:
    """Return the text without control characters that could fool a terminal.

    Newlines and tabs stay; C0 and C1 controls, bidirectional overrides and lone surrogates go.
    """
    return _CONTROL.sub("", text.replace("\r\n", "\n"))
