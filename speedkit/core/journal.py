"""An append-only file of events that survives a kill at any byte.

Each line is one JSON object, ``{"len": L, "crc": C, "event": {…}}``: the length in bytes
and the CRC-32 of the event's own text. A line that is torn, as the last one may be after a
kill, fails the check and is cut off when the journal is opened to go on.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speedkit.core.errors import RunDirectoryError

_FRAME = re.compile(rb'\{"len": ([0-9]+), "crc": "([0-9a-f]{8})", "event": (.*)\}\n', re.DOTALL)
MAX_EVENT = 1 << 20
"""Bytes; an event is small by design, large texts belong into files."""


def encode(event: Mapping[str, Any]) -> bytes:
    """Return the framed line of an event.

    Raises:
        ValueError: the event is too large or holds a value that is not JSON.
    """
    text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    body = text.encode("utf-8", "backslashreplace")
    if len(body) > MAX_EVENT:
        raise ValueError(f"event of {len(body)} bytes is too large for the journal")
    return b'{"len": %d, "crc": "%08x", "event": %s}\n' % (len(body), zlib.crc32(body), body)


def decode(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line, None if the line is not whole."""
    match = _FRAME.fullmatch(line)
    if match is None:
        return None
    length, crc, body = match.groups()
    if len(body) != int(length) or zlib.crc32(body) != int(crc, 16):
        return None
    event: dict[str, Any] = json.loads(body)
    return event


class Journal:
    """The journal of a run, open for reading and appending.

    Args:
        path: the file; created when absent.

    Raises:
        RunDirectoryError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        good = sum(len(line) for line, _ in _whole_lines(path)) if path.exists() else 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = good
        if os.fstat(self._fd).st_size != good:
            os.ftruncate(self._fd, good)
            os.fsync(self._fd)
        _fsync_folder(path.parent)

    def append(self, event: Mapping[str, Any]) -> None:
        """Write an event and wait until it is on disk.

        Raises:
            OSError: the disk is full, for example; nothing of the event is left behind.
        """
        line = encode(event)
        try:
            _write_all(self._fd, line, self._size)
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a journal; a torn last line is left out, the file untouched."""
    return [event for _, event in _whole_lines(path)]


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            event = decode(line)
            if event is None:
                if file.read(1):
                    raise RunDirectoryError(f"{path} is damaged at line {number}")
                return
            yield line, event


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
