"""Finding and ending processes: trees, marks in the environment, identities."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import scratch

MARKER = "SPEEDKIT_JOB"
"""Environment variable that marks every process of a job."""

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"


def become_subreaper() -> None:
    """Make orphaned descendants children of this process; Linux only, else nothing."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have this process killed when the thread that made it ends; Linux only, else nothing."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def close_to_equals() -> None:
    """Let no other process of this user read this one's memory and environment; Linux only.

    A process of root's, and one with the right to trace, reads them all the same.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def no_core_dumps() -> None:
    """Forbid core files for this process and its children."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_files(size: int) -> None:
    """Limit the size in bytes of a file that this process and its children write."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def offer_to_oom_killer() -> None:
    """Let memory that runs out end this process and its children before others."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


# --- identity -------------------------------------------------------------------------------


def host_name() -> str:
    """Return the name of this machine."""
    return os.uname().nodename


def boot_id() -> str:
    """Return what is the same until the machine is started anew."""
    if _LINUX:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    return str(round(_psutil().boot_time()))


def start_time(pid: int) -> float | None:
    """Return when a process began, in units of the system; None if there is none."""
    if _LINUX:
        entry = _read_stat(pid)
        return None if entry is None else entry[1]
    try:
        return float(_psutil().Process(pid).create_time())
    except _psutil().Error:
        return None


def has_argument(pid: int, text: str) -> bool:
    """Whether ``text`` is an argument on the command line of a process."""
    if _LINUX:
        return text.encode() in _read_proc(pid, "cmdline").split(b"\0")
    try:
        return text in _psutil().Process(pid).cmdline()
    except _psutil().Error:
        return False


def is_marked(pid: int, marker: str) -> bool:
    """Whether a process was started with this marker in its environment."""
    if _LINUX:
        return f"{MARKER}={marker}".encode() in _read_proc(pid, "environ").split(b"\0")
    try:
        return bool(_psutil().Process(pid).environ().get(MARKER) == marker)
    except (_psutil().Error, OSError):
        return False


# --- trees ----------------------------------------------------------------------------------


def parents() -> dict[int, int]:
    """Return the parent's pid of every process, by pid."""
    if _LINUX:
        entries = ((pid, _read_stat(pid)) for pid in _pids())
        return {pid: entry[0] for pid, entry in entries if entry is not None}
    found = _psutil().process_iter(["pid", "ppid"])
    return {p.info["pid"]: p.info["ppid"] for p in found}


def descendants(roots: Iterable[int], table: Mapping[int, int]) -> set[int]:
    """Return the pids below ``roots``, themselves not included.

    Args:
        table: parent's pid by pid, as :func:`parents` returns it.
    """
    children: dict[int, list[int]] = {}
    for pid, parent in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        new = [pid for pid in children.get(todo.pop(), ()) if pid not in found]
        found.update(new)
        todo.extend(new)
    return found


def is_holding(pid: int, folder: str) -> bool:
    """Whether a process has something open that lies in a folder; Linux only, else False."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_link(f"/proc/{pid}/fd/{name}").startswith(folder + os.sep) for name in names)


def marked(marker: str, table: Mapping[int, int]) -> set[int]:
    """Return the pids of the processes that carry a marker."""
    return {pid for pid in table if is_marked(pid, marker)}


def with_inner_pid(inner: int, pids: Iterable[int]) -> int | None:
    """Return which process has the pid ``inner`` in a namespace of processes below this one."""
    return next((pid for pid in pids if _inner_pid(pid) == inner), None)


def _inner_pid(pid: int) -> int | None:
    """The pid that a process has for itself; None if that is the one it has for all."""
    for line in _read_proc(pid, "status").splitlines():
        if line.startswith(b"NSpid:"):
            numbers = line.split()[1:]
            return int(numbers[-1]) if len(numbers) > 1 else None
    return None


# --- ending ---------------------------------------------------------------------------------


def end_all(find: Callable[[], set[int]], limit_s: float) -> set[int]:
    """Kill what ``find`` returns, again and again until it returns nothing.

    Processes that fork while they are being killed are met in the next round.

    Returns:
        The pids that were left after ``limit_s`` seconds, in the rule none.
    """
    deadline = time.monotonic() + limit_s
    pause_s = 0.001
    while left := find():
        for pid in left:
            kill(pid)
        if time.monotonic() > deadline:
            return left
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.02)
    return set()


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    """Send a signal to a process, which may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def own_descendants(marker: str) -> set[int]:
    """Return the pids below this process, those of ended ones among them until it waits for them.

    Where orphans do not come back to this process, the marker finds them.
    """
    table = parents()
    found = descendants([os.getpid()], table)
    return found if _LINUX else found | (marked(marker, table) - {os.getpid()})


def collect_zombies() -> dict[int, int]:
    """Wait for all children that have ended; return their wait status by pid."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def end_marked(marker: str, folder: str, limit_s: float = 5.0) -> set[int]:
    """Kill every process that carries a marker, and what is below it.

    Args:
        folder: private folder of the job. Who has one of its pipes open is a process of the
            job, even if it has thrown its environment away.

    Returns:
        The pids that were left after ``limit_s`` seconds.
    """

    def find() -> set[int]:
        table = parents()
        found = marked(marker, table)
        if scratch.is_scratch(folder):
            found |= {pid for pid in table if is_holding(pid, folder)}
        return (found | descendants(found, table)) - {os.getpid()}

    return end_all(find, limit_s)


def open_process(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends, if there can be one."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


# --- reading --------------------------------------------------------------------------------


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_proc(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.readall()
    except (OSError, ValueError):
        return b""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read_stat(pid: int) -> tuple[int, float] | None:
    """Parent's pid and start time in clock ticks; the command's name may hold anything."""
    fields = _read_proc(pid, "stat").rpartition(b") ")[2].split()
    return (int(fields[1]), float(fields[19])) if len(fields) > 19 else None


def _psutil() -> Any:
    import psutil

    return psutil
