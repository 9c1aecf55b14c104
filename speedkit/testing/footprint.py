"""Sees what a piece of code leaves behind: files, processes, and changes of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SUBREAPER, _GET_SUBREAPER = 36, 37
_PATHS: dict[str, Callable[[tuple[Any, ...]], Sequence[Any]]] = {
    "open": lambda a: a[:1] if isinstance(a[2], int) and a[2] & _WRITING else (),
    "os.mkdir": lambda a: a[:1] if _is_plain(a[2]) else (),
    "os.remove": lambda a: a[:1] if _is_plain(a[1]) else (),
    "os.rmdir": lambda a: a[:1] if _is_plain(a[1]) else (),
    "os.rename": lambda a: a[:2] if _is_plain(a[2]) and _is_plain(a[3]) else (),
    "os.link": lambda a: a[1:2] if _is_plain(a[3]) else (),
    "os.symlink": lambda a: a[1:2] if _is_plain(a[2]) else (),
    "os.truncate": lambda a: a[:1],
    "os.chmod": lambda a: a[:1] if _is_plain(a[2]) else (),
}
"""What each audit event says of paths that are changed."""
_IGNORED = ("/dev/", "/proc/")
LINGER_S = 0.5
"""Seconds that a process which is ending may take."""


def _is_plain(folder: Any) -> bool:
    """Whether a path is relative to the working directory and not to a descriptor."""
    return folder in (None, -1)


@dataclass
class Footprint:
    """What was seen.

    Attributes:
        written: absolute paths that this process wrote, made, renamed or removed.
        left: files and folders that child processes or threads left in the home, the working
            directory or the temporary folder made for the purpose.
        processes: descriptions of processes that were still there; they were ended.
        changes: what of this process is not as it was, in words.
    """

    home: Path
    work: Path
    temp: Path
    written: set[Path] = field(default_factory=set)
    left: list[Path] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def outside(self, *allowed: Path) -> list[Path]:
        """Return what was written or left anywhere but below the allowed folders."""
        inside = tuple(os.path.realpath(path) for path in (*allowed, self.temp))
        found = {*self.written, *(p for p in self.left if self.temp not in p.parents)}
        return sorted(path for path in found if not _is_below(path, inside))

    @property
    def temporary(self) -> list[Path]:
        """What was left in the temporary folder."""
        return [path for path in self.left if path.parent == self.temp]


def _is_below(path: Path, folders: Sequence[str]) -> bool:
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


@contextmanager
def footprint(folder: Path) -> Iterator[Footprint]:
    """Watch a block of code, with a home, working and temporary folder of its own."""
    with surroundings(folder) as seen:
        before = _children()
        with _subreaper(), _audited(seen):
            try:
                yield seen
            finally:
                seen.processes = [_end(child) for child in _lingering(before)]
    folders = (seen.home, seen.work, seen.temp)
    seen.left = [path for root in folders for path in sorted(root.rglob("*"))]


# --- folders, environment ------------------------------------------------------------------


@contextmanager
def surroundings(folder: Path) -> Iterator[Footprint]:
    """Lead home, working directory and temporary files to new folders for a while.

    Afterwards working directory and environment are as they were; what was changed is noted.
    """
    seen = Footprint(folder / "home", folder / "work", folder / "tmp")
    for path in (seen.home, seen.work, seen.temp):
        path.mkdir(parents=True)
    environ, cwd, temp = dict(os.environ), os.getcwd(), tempfile.tempdir
    os.environ.update(HOME=str(seen.home), TMPDIR=str(seen.temp))
    tempfile.tempdir = None
    os.chdir(seen.work)
    given = dict(os.environ)
    try:
        yield seen
        seen.changes = list(_changes(seen, given))
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environ)
        tempfile.tempdir = temp


def _changes(seen: Footprint, given: Mapping[str, str]) -> Iterator[str]:
    if os.getcwd() != os.path.realpath(seen.work):
        yield f"the working directory is {os.getcwd()}"
    for name in sorted({*given, *os.environ}):
        if given.get(name) != os.environ.get(name):
            yield f"the environment variable {name} has changed"


# --- files, by the interpreter's audit events ----------------------------------------------

_watching: list[Footprint] = []
_installed = threading.Event()


@contextmanager
def _audited(seen: Footprint) -> Iterator[None]:
    if not _installed.is_set():
        sys.addaudithook(_audit)  # stays for good; without a watcher it returns at once
        _installed.set()
    _watching.append(seen)
    try:
        yield
    finally:
        _watching.remove(seen)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in _PATHS:
        return
    for path in _PATHS[event](arguments):
        if not isinstance(path, str | bytes | os.PathLike):
            continue
        full = os.path.abspath(os.fsdecode(path))
        if not full.startswith(_IGNORED) and "__pycache__" not in full:
            for seen in _watching:
                seen.written.add(Path(full))


# --- processes -----------------------------------------------------------------------------


@contextmanager
def _subreaper() -> Iterator[None]:
    """Have orphaned descendants become children of this process, where the system can."""
    if sys.platform != "linux":
        yield
        return
    libc, was = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(_GET_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, was.value, 0, 0, 0)


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _lingering(before: set[psutil.Process]) -> list[psutil.Process]:
    """Return new processes that are alive after a while."""
    limit = time.monotonic() + LINGER_S
    while alive := [child for child in _children() - before if _is_alive(child)]:
        if time.monotonic() > limit:
            return alive
        time.sleep(0.02)
    return []


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and is nobody's is taken off the list."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    except psutil.Error:
        pass
    return False


def _end(process: psutil.Process) -> str:
    """Kill a process and return what it was."""
    with contextlib.suppress(psutil.Error):
        words = " ".join(process.cmdline())[:80] or process.name()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(5)
        return f"{process.pid} ({words})"
    return str(process.pid)
