"""Runs one aider process to its end, and no longer than it may take."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

POLL_S = 0.1
"""Seconds between two looks at a running process."""
END_S = 5.0
"""Seconds within which killed processes must be gone."""

_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""A start of the program that is killed when the thread that waits for it is gone."""


def run_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: Path,
    answers: Path,
    output: Path,
    timeout_s: float,
    tick: Callable[[], None],
) -> int | None:
    """Run a command; afterwards none of its processes is left, whatever happens.

    Args:
        command: the program by its absolute path, and its arguments.
        env: its whole environment.
        folder: working directory.
        answers: file that is its standard input.
        output: file for its standard output and error.
        timeout_s: seconds after which it is ended.
        tick: called several times a second; what it raises ends the process.

    Returns:
        The exit status, None if it was ended at the limit.
    """
    deadline = time.monotonic() + timeout_s
    with answers.open("rb") as source, output.open("wb") as sink:
        process = _start(command, env, folder, source, sink)
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL_S)
                tick()
            return None
        finally:
            end_tree(process)


def _start(
    command: Sequence[str], env: Mapping[str, str], folder: Path, source: BinaryIO, sink: BinaryIO
) -> subprocess.Popen[bytes]:
    bound: tuple[str, ...] = ()
    if sys.platform == "linux":
        bound = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()))
    return subprocess.Popen(
        [*bound, *command],
        env=dict(env),
        cwd=folder,
        stdin=source,
        stdout=sink,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, its group and its descendants."""
    if process.poll() is None:
        _signal(process.pid, signal.SIGSTOP)  # so that it makes no new ones meanwhile
        limit = time.monotonic() + END_S
        while (below := _descendants(process.pid)) and time.monotonic() < limit:
            for child in below:
                _signal(child, signal.SIGKILL)
            time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    try:
        found = psutil.Process(pid).children(recursive=True)
        return [child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []
