"""Writing and reading files so that neither a kill nor a hostile folder does harm."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls but for newline and tab
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text
    r"\U000e0000-\U000e007f"  # letters that nobody sees
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


def one_line(value: object) -> str:
    """Return a text as one printable line."""
    return " ".join(printable(str(value)).split())


def read_tail(path: Path, limit: int = 64 * 1024) -> str:
    """Return the last ``limit`` bytes of a regular file as text; empty when there is none."""
    return read_ends(path, 0, limit)


def read_ends(path: Path, head: int = 16 * 1024, tail: int = 64 * 1024) -> str:
    """Return the first and the last bytes of a regular file as text; empty when there is none.

    Where bytes are left out between them, a line says how many.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # none, a link, a socket
            return ""
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # a pipe, say, on which one would wait
        os.close(fd)
        return ""
    with open(fd, "rb") as file:
        left_out = file.seek(0, os.SEEK_END) - head - tail
        file.seek(0)
        first = file.read(head if left_out > 0 else head + tail)
        if left_out <= 0:
            return _text(first)
        file.seek(-tail, os.SEEK_END)
        last = _text(file.read(tail))
    return f"{_text(first)}\n[{left_out} bytes are left out here]\n{last}" if head else last


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Return the text without control characters that could fool a terminal.

    Newlines and tabs stay; C0 and C1 controls, bidirectional overrides, invisible letters and
    lone surrogates go.
    """
    return _CONTROL.sub("", text.replace("\r\n", "\n"))
