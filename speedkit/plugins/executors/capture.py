"""Output of a job: read without limit, kept and passed on within limits."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator

READ_SIZE = 1 << 20
"""Bytes read at once, and asked of a pipe as its capacity."""
MAX_LINE = 8192
"""Bytes of a line that are passed on; the rest of the line is dropped."""
MAX_METRICS_LINES = 200_000
MAX_METRICS_BYTES = 64 << 20
"""Bytes of metrics lines passed on of one stream, together."""
METRICS_STARTS = (b"step:", b"s:")
"""How a line begins that may hold metrics."""
_TRACEBACK = b"Traceback (most recent call last):"
_F_SETPIPE_SZ = 1031
_METRICS_LINE = re.compile(rb"\ns(?:tep)?:")


class LogFile:
    """A file that keeps the head and the tail of what is written to it.

    The head is on disk at once. The tail, at most twice ``tail`` bytes, is held in memory
    until the file is closed. A full disk ends the log, never the caller.

    Args:
        head: bytes kept of the beginning.
        tail: bytes kept of the end.
    """

    def __init__(self, path: str, head: int, tail: int) -> None:
        self._room, self._tail_size = head, tail
        self._tail = bytearray()
        self._dropped = 0
        self._failed = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o644)

    def write(self, data: bytes) -> None:
        """Keep ``data``, or what there is room for."""
        head, rest = data[: self._room], data[self._room :] if self._room else data
        if head:
            self._room -= len(head)
            self._put(head)
        if rest:
            self._tail += rest
            if len(self._tail) > 2 * self._tail_size:
                self._trim()

    def close(self) -> None:
        """Write the tail, with a line before it that says how much was left out."""
        self._trim()
        if self._dropped:
            start = self._tail.find(b"\n") + 1
            self._dropped += start
            note = f"\n[speedkit: {self._dropped} bytes left out here]\n"
            self._tail[:start] = note.encode()
        self._put(self._tail)
        with contextlib.suppress(OSError):  # Some file systems say only now that they are full.
            os.close(self._fd)

    def _trim(self) -> None:
        surplus = max(0, len(self._tail) - self._tail_size)
        self._dropped += surplus
        del self._tail[:surplus]

    def _put(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        try:
            while view and not self._failed:
                view = view[os.write(self._fd, view) :]
        except OSError:
            self._failed = True
        finally:
            view.release()


class Allowance:
    """So many lines a second, and a reserve that fills up to ``burst``."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._level = float(burst)
        self._at = time.monotonic()

    @property
    def left(self) -> int:
        """Lines that may pass now."""
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        return int(self._level)

    def spend(self, count: int) -> None:
        """Take ``count`` lines from the reserve."""
        self._level -= count


class Lines:
    """Cuts a stream into lines and picks those that are passed on.

    Of the lines that may hold metrics all are passed on, up to a generous number; of the
    others as many as the allowance lets pass. Lines are passed without their newline and
    cut at :data:`MAX_LINE` bytes, and never split: the rest of a long line is no line.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._begun = b""
        self._metrics_lines = self._metrics_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Return the lines to pass on that ``data`` completes."""
        first = data.find(b"\n")
        if first < 0:
            self._begin(data)
            return
        self._begin(data[:first])
        whole, self._begun = self._begun, b""
        yield from self._pick(whole)
        last = data.rfind(b"\n")
        yield from self._scan(data, first + 1, last + 1)
        self._begun = data[last + 1 : last + 1 + MAX_LINE]

    def rest(self) -> Iterator[bytes]:
        """Return the line that was begun and never ended."""
        whole, self._begun = self._begun, b""
        if whole:
            yield from self._pick(whole)

    def _begin(self, data: bytes) -> None:
        self._begun += data[: MAX_LINE - len(self._begun)]

    def _scan(self, data: bytes, start: int, stop: int) -> Iterator[bytes]:
        """Look at each line while there is allowance, then only for metrics."""
        while start < stop and self._allowance.left > 0:
            end = data.find(b"\n", start, stop)
            yield from self._pick(data[start : min(end, start + MAX_LINE)])
            start = end + 1
        yield from self._scan_metrics(data, start, stop)

    def _scan_metrics(self, data: bytes, start: int, stop: int) -> Iterator[bytes]:
        while start < stop and not self._is_full:
            if data.startswith(METRICS_STARTS, start):
                end = data.find(b"\n", start, stop)
                yield from self._pick(data[start : min(end, start + MAX_LINE)])
                start = end + 1
            else:
                found = _METRICS_LINE.search(data, start, stop)
                start = found.start() + 1 if found else stop

    def _pick(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(METRICS_STARTS):
            if not self._is_full:
                self._metrics_lines += 1
                self._metrics_bytes += len(line)
                yield line
        elif self._allowance.left > 0:
            self._allowance.spend(1)
            yield line

    @property
    def _is_full(self) -> bool:
        return self._metrics_lines >= MAX_METRICS_LINES or self._metrics_bytes >= MAX_METRICS_BYTES


class Stream:
    """One stream of a job: read from a pipe, kept in a log.

    The pipe is a named one in a private folder, and its other end is kept open here, so
    that it never ends: whoever reads it stops when the job is over, and waits for nobody
    who still holds it.

    Args:
        path: where to make the named pipe.
        log: receives all that is read, if there is one.
        keep_recent: bytes of the end to keep in memory.
        mode: permissions of the pipe.

    Attributes:
        fd: the end that is read, non-blocking.
        write_fd: the other end, for a process that inherits it.
        traceback_at: monotonic time at which a traceback last began, None if none did;
            only known where ``keep_recent`` is not 0.
    """

    def __init__(
        self, path: str, log: LogFile | None = None, keep_recent: int = 0, mode: int = 0o600
    ) -> None:
        os.mkfifo(path, 0o600)
        os.chmod(path, mode)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.write_fd = os.open(path, os.O_WRONLY)
        self.log = log
        self.traceback_at: float | None = None
        self._recent, self._keep = bytearray(), keep_recent
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.fd, _F_SETPIPE_SZ, READ_SIZE)

    def read(self) -> bytes:
        """Read and log what there is, at most :data:`READ_SIZE` bytes; empty if nothing."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return b""
        if self.log is not None:
            self.log.write(data)
        if self._keep:
            self._remember(data)
        return data

    @property
    def recent(self) -> str:
        """The end of what was read, as text."""
        return self._recent.decode("utf-8", "backslashreplace")

    def _remember(self, data: bytes) -> None:
        if _TRACEBACK in data:
            self.traceback_at = time.monotonic()
        self._recent += data[-self._keep :]
        del self._recent[: -self._keep]
