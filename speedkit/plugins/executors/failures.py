"""Why ranks failed: read from their standard error, their error files and the launcher."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import stat
from collections.abc import Callable, Iterable
from typing import Any

MAX_MESSAGE = 500
"""Characters of a message."""
MAX_TRACEBACK = 8192
"""Characters of a traceback; of a longer one the end is kept."""
MAX_ERROR_FILE = 1 << 20
"""Bytes of an error file that are read at most."""
TRACEBACK = "Traceback (most recent call last):"
"""How Python begins a traceback."""

_CHAINED = ("During handling of the above", "The above exception was the direct cause")
_PREFIX = re.compile(r"^\[rank\d+\]:[ ]?", re.MULTILINE)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?::.*)?")
# A script can write any of this: no pattern may take long, and no number be too large.
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)', re.MULTILINE)
_SUMMARY = re.compile(
    r"^ *rank *: *(\d{1,6}) .*\n *exitcode *: *(-?\d{1,6}) ", re.ASCII | re.MULTILINE
)


def rank_error(rank: int, status: int | None, stderr: str, error_file: str = "") -> dict[str, Any]:
    """Return the fields of a ``RankError`` for a rank that failed.

    Args:
        status: exit code, or minus the number of a signal; None if it is not known.
        stderr: the end of the rank's standard error.
        error_file: path of the file that torch lets a rank write; it may not exist.
    """
    stderr = _PREFIX.sub("", stderr)
    dump = fatal_dump(stderr)
    was_ending = _was_ending(dump)
    said = stderr.removesuffix(dump) if was_ending else stderr
    message, traceback = read_error_file(error_file) or last_traceback(said) or ("", "")
    name = None
    is_after = was_ending or status == -signal.SIGTERM
    if status is not None and status < 0 and not (traceback and is_after):
        name = signal_name(-status)
        message = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        traceback = dump
    return {
        "rank": rank,
        "message": one_line(message or _exit_message(status, stderr)),
        "traceback": traceback[-MAX_TRACEBACK:],
        "signal": name,
    }


def hang(rank: int, stderr: str, script: str) -> dict[str, Any] | None:
    """Return the fields of a ``RankError`` that says where a rank was, if its dump does.

    Args:
        stderr: ends with what Python wrote when the rank was told to abort.
        script: file name of the script, whose frames say most.
    """
    dump = fatal_dump(_PREFIX.sub("", stderr))
    frames = _FRAME.findall(dump.partition("Current thread")[2])
    if not frames:
        return None
    own = [frame for frame in frames if os.path.basename(frame[0]) == os.path.basename(script)]
    file, line, function = (own or frames)[0]
    message = f"was in {function}, {os.path.basename(file)} line {line}"
    fields = {"rank": rank, "message": one_line(message), "signal": None}
    return {**fields, "traceback": dump[:MAX_TRACEBACK]}


def launcher_error(status: int | None, output: str) -> dict[str, Any]:
    """Return the fields of a ``RankError`` for a launcher that failed without a rank."""
    return {**rank_error(-1, status, output), "rank": -1}


def grouped(errors: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return errors with those of one message together, the lower ranks first.

    Where all ranks fail in the same way, chance must not decide which is named.

    Args:
        errors: the first to fail first.
    """
    listed = list(errors)
    messages = [error["message"] for error in listed]
    return sorted(listed, key=lambda error: (messages.index(error["message"]), error["rank"]))


def reason(error: dict[str, Any], *, name_rank: bool) -> str:
    """Return the line for the user that tells of the first error."""
    message = str(error["message"])
    if "CUDA out of memory" in message or message.startswith("torch.OutOfMemoryError"):
        message = f"out of GPU memory: {message}"
    elif message.startswith("MemoryError") or "DefaultCPUAllocator: can't alloc" in message:
        message = f"out of memory: {message}"
    return f"rank {error['rank']}: {message}" if name_rank and error["rank"] >= 0 else message


def summary(output: str) -> dict[int, int]:
    """Read the failure summary of torchrun: exit code, or minus the signal, by rank."""
    return {int(rank): int(status) for rank, status in _SUMMARY.findall(output)}


def last_traceback(text: str) -> tuple[str, str] | None:
    """Return message and text of the last traceback in ``text``; None if there is none.

    A syntax error in the script itself has frames and no header; it is found as well.
    """
    lines = text.splitlines()
    start = _last(lines, lambda line: line == TRACEBACK)
    if start is None:
        start = _last(lines, lambda line: line.startswith('  File "'))
    if start is None:
        return None
    end = start + 1
    while end < len(lines) and (not lines[end] or lines[end][0].isspace()):
        end += 1
    if end == len(lines) or not _EXCEPTION.match(lines[end]):
        return None
    more = itertools.takewhile(lambda line: line[:1].isspace(), lines[end + 1 : end + 4])
    first = _chain_start(lines, start)
    return " ".join([lines[end], *more]), "\n".join(lines[first : end + 40])


def fatal_dump(text: str) -> str:
    """Return what Python wrote when a signal ended it, from the last such place on."""
    start = text.rfind("Fatal Python error: ")
    return text[start:] if start >= 0 else ""


def _was_ending(dump: str) -> bool:
    """Whether Python was taking itself apart when a signal ended it: no thread had a frame left.

    Libraries abort there when an exception has kept the script from closing what they opened.
    """
    return bool(dump) and not _FRAME.search(dump)


def read_error_file(path: str) -> tuple[str, str] | None:
    """Return message and traceback of a file that ``torch.distributed.elastic`` wrote.

    The file is the script's to write, so it may hold anything.
    """
    try:
        message = json.loads(_read_regular(path))["message"]
        if isinstance(message, str):
            return message, ""
        return str(message["message"]), str(message["extraInfo"]["py_callstack"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def signal_name(signum: int) -> str:
    """Return the name of a signal, for example ``SIGKILL``."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def one_line(text: str) -> str:
    """Return the text on one line, without control characters, of bounded length."""
    flat = " ".join(text[: 4 * MAX_MESSAGE].split())
    return "".join(c if c.isprintable() else "?" for c in flat)[:MAX_MESSAGE]


def _exit_message(status: int | None, stderr: str) -> str:
    said = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
    code = "failed" if status is None else f"exit code {status}"
    return f"{code}: {said}" if said else code


def _chain_start(lines: list[str], start: int) -> int:
    """The first header of the chain of exceptions whose last header is at ``start``."""
    while start >= 2 and lines[start - 2].startswith(_CHAINED):
        before = _last(lines[: start - 2], lambda line: line == TRACEBACK)
        if before is None:
            break
        start = before
    return start


def _last(lines: list[str], is_wanted: Callable[[str], bool]) -> int | None:
    return next((i for i in range(len(lines) - 1, -1, -1) if is_wanted(lines[i])), None)


def _read_regular(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.read(fd, MAX_ERROR_FILE)
    finally:
        os.close(fd)
