"""Runs a program that is not trusted with time, and ends all that it started."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "SPEEDKIT_AGENT"
"""Environment variable by which the processes of one program are known."""
POLL_S = 0.1
"""Seconds between two looks at the program."""


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    given: Path,
    output: Path,
    timeout_s: float,
    stop: Callable[[int], bool],
) -> int | None:
    """Run a program to its end or its limit; afterwards none of its processes is left.

    Args:
        command: the program and its arguments.
        env: its whole environment.
        folder: its working directory.
        given: file that is its standard input.
        output: file for what it prints.
        timeout_s: seconds after which it is ended.
        stop: told the size of the output so far, says whether the program is to be ended.

    Returns:
        The exit status, None if it was ended.

    Raises:
        OSError: it cannot be started.
    """
    mark = secrets.token_hex(8)
    limit = time.monotonic() + timeout_s
    with given.open("rb") as source, output.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env={**env, MARK: mark},
            cwd=folder,
            stdin=source,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while time.monotonic() < limit and not stop(os.fstat(sink.fileno()).st_size):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL_S)
            return None
        finally:
            end(process, mark)


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill the group of a program, what descends from it, and what carries its mark."""
    below = _descendants(process.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    while found := [p for p in {*below, *_marked(mark)} if _is_alive(p)]:
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.kill()
        time.sleep(0.01)
    process.wait()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _has_mark(process, mark)]


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == mark)
    except psutil.Error:
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
