"""The lanes of a machine: its GPUs and CPUs in equal shares, each for one job at a time."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speedkit.core.errors import ExecutorError
from speedkit.core.task import Task
from speedkit.plugins.executors import gpu
from speedkit.plugins.executors.gpu import Gpu

LOOK_S = 0.5
"""Seconds between two looks at whether a lane is free."""
_CPU_HARDWARE = re.compile(r"\b(cores?|CPUs?)\b", re.IGNORECASE)
_SYS = Path("/sys")
_changed = threading.Condition()
_taken: set[str] = set()
"""GPUs and CPUs that jobs of this process have, whichever executor gave them."""


@dataclass(frozen=True)
class Lane:
    """What one job may use.

    Attributes:
        gpus: names of GPUs, which are its own.
        sees: names for ``CUDA_VISIBLE_DEVICES``; None for what this process sees.
        cpus: its own CPUs; empty for all.
    """

    number: int = 0
    gpus: tuple[str, ...] = ()
    sees: tuple[str, ...] | None = None
    cpus: tuple[int, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """The variables of a job that runs on it."""
        return {} if self.sees is None else {gpu.VARIABLE: ",".join(self.sees)}

    @property
    def resources(self) -> frozenset[str]:
        """What no two jobs may have at once."""
        return frozenset([*self.gpus, *(f"cpu {number}" for number in self.cpus)])


class NoLane(ExecutorError):
    """No lane is left whose GPUs can be used."""


class Lanes:
    """Gives out lanes, each to one job at a time, and GPUs only when they are free.

    A lane whose GPUs stay in use although no job of this process has them is given up: what
    a job leaves behind, or other users, would spoil the timings of the next.

    Args:
        used_mb: returns the memory in use of each GPU by its name, None where that is not
            known, and leaves out those that do not answer.
        limit_mb: memory of a GPU that may be in use when a job is given it.
        wait_s: seconds to wait for a GPU that no job has.
        warn: receives a line for the user.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        used_mb: Callable[[], Mapping[str, float | None]] = gpu.used_mb,
        limit_mb: float = 1024,
        wait_s: float = 60,
        warn: Callable[[str], None] = lambda text: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lanes, self._used_mb, self._warn, self._now = tuple(lanes), used_mb, warn, now
        self._limit_mb, self._wait_s = limit_mb, wait_s
        self._queue: deque[object] = deque()
        self._waited_since: dict[Lane, float] = {}
        self._bad: dict[Lane, str] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def cpus(self) -> int:
        """CPUs of a lane; 0 if each may use all."""
        return len(self._lanes[0].cpus)

    @contextlib.contextmanager
    def hold(self, cancel: threading.Event) -> Iterator[Lane | None]:
        """Have a lane for the time of the block; None when cancelled while waiting for it.

        Raises:
            NoLane: none is left.
        """
        lane = self._take(cancel)
        try:
            yield lane
        finally:
            if lane is not None:
                self._give_back(lane)

    def _take(self, cancel: threading.Event) -> Lane | None:
        ticket = object()
        with _changed:
            self._queue.append(ticket)
            try:
                while not cancel.is_set():
                    lane = self._find() if self._queue[0] is ticket else None
                    if lane is not None:
                        _taken.update(lane.resources)
                        return lane
                    _changed.wait(LOOK_S)
                return None
            finally:
                self._queue.remove(ticket)
                _changed.notify_all()

    def _give_back(self, lane: Lane) -> None:
        with _changed:
            _taken.difference_update(lane.resources)
            _changed.notify_all()

    def _find(self) -> Lane | None:
        """Return a lane that is free; None if there will be one later."""
        left = [lane for lane in self._lanes if lane not in self._bad]
        if not left:
            raise NoLane(
                f"no GPU is free for a job: {'; '.join(self._bad.values())}. End what uses them "
                "(nvidia-smi lists it), raise executor.gpu_wait_s or executor.gpu_used_mb, or "
                f"name other GPUs in {gpu.VARIABLE}"
            )
        idle = [lane for lane in left if not lane.resources & _taken]
        usage = self._ask_of(idle) if any(lane.gpus for lane in idle) else {}
        for lane in idle:
            problem = self._problem(lane, usage)
            if not problem:
                self._waited_since.pop(lane, None)
                return lane
            self._wait_or_give_up(lane, problem)
        return None

    def _ask_of(self, idle: Sequence[Lane]) -> Mapping[str, float | None]:
        """Have the driver asked without the lock: it may take seconds, in which jobs end.

        Nobody gets these lanes meanwhile, lest the memory of another's job be taken for a fault.
        """
        held = frozenset().union(*(lane.resources for lane in idle))
        _taken.update(held)
        _changed.release()
        try:
            return self._usage()
        finally:
            _changed.acquire()
            _taken.difference_update(held)

    def _usage(self) -> Mapping[str, float | None]:
        try:
            return self._used_mb()
        except ExecutorError:
            return {}

    def _problem(self, lane: Lane, usage: Mapping[str, float | None]) -> str:
        """Why the GPUs of a lane cannot be used now; empty if they can."""
        for name in lane.gpus:
            if name not in usage and not name.startswith(gpu.PART):
                return f"{name} is not known to nvidia-smi"
            used = usage.get(name)
            if used is not None and used > self._limit_mb:
                return f"{name} has {used:.0f} MB in use"
        return ""

    def _wait_or_give_up(self, lane: Lane, problem: str) -> None:
        since = self._waited_since.setdefault(lane, self._now())
        if self._now() - since >= self._wait_s:
            self._bad[lane] = problem
            self._warn(f"lane {lane.number} is not used any more: {problem}")


# --- sharing out ----------------------------------------------------------------------------


def make_lanes(
    wanted: int | None,
    nproc: int,
    gpus: Sequence[Gpu],
    cpus: Sequence[int],
    near: Callable[[str], frozenset[int]] = gpu.near_cpus,
) -> tuple[Lane, ...]:
    """Share GPUs and CPUs out among lanes.

    Args:
        wanted: how many lanes; 0 for as many as there are GPUs, or without GPUs CPUs, for;
            None for the same, but one without GPUs, where more would disturb the timings.
        nproc: processes of a job, each of which uses one GPU if there are any.
        gpus: those that jobs may use; none if they use none.
        cpus: those that jobs may use, neighbours next to each other.
        near: returns the CPUs near a GPU, given its place on the bus.

    Raises:
        ExecutorError: there are not as many GPUs as so many lanes need.
    """
    count = _count(wanted, nproc, len(gpus), len(cpus))
    own = [gpus[number * nproc : (number + 1) * nproc] for number in range(count)]
    close = [frozenset().union(*(near(one.bus) for one in group if one.bus)) for group in own]
    parts = share(cpus, close) if count > 1 else [()]
    return tuple(
        _lane(number, [one.name for one in group], part, sees_all=len(group) == len(gpus))
        for number, (group, part) in enumerate(zip(own, parts, strict=True))
    )


def _count(wanted: int | None, nproc: int, gpus: int, cpus: int) -> int:
    if not wanted:
        by_default = cpus // nproc if wanted == 0 else 1
        return max(1, gpus // nproc if gpus else by_default)
    if gpus and wanted > 1 and wanted * nproc > gpus:
        raise ExecutorError(
            f"{wanted} lanes of {nproc} processes need {wanted * nproc} GPUs, of which {gpus} are "
            f"visible: set executor.lanes={max(1, gpus // nproc)}"
        )
    return wanted


def _lane(number: int, gpus: Sequence[str], cpus: tuple[int, ...], *, sees_all: bool) -> Lane:
    names = tuple(gpus)
    return Lane(number, names, None if sees_all else names, cpus)


def share(cpus: Sequence[int], near: Sequence[frozenset[int]]) -> list[tuple[int, ...]]:
    """Share CPUs out in equal parts, one for each lane, of those near its GPUs first.

    Where near ones are scarce the parts are smaller, so that no lane is better off.

    Args:
        cpus: neighbours next to each other.
        near: for each lane the CPUs near its GPUs; none where that is not known.

    Returns:
        The CPUs of each lane; none for all lanes if there are too few.
    """
    wanted = [known & frozenset(cpus) or frozenset(cpus) for known in near]
    most = len(cpus) // len(near)
    size = min(most, *(len(some) // wanted.count(some) for some in wanted)) or most
    left, parts = list(cpus), []
    for some in wanted:
        part = sorted(left, key=some.__contains__, reverse=True)[:size]
        left = [cpu for cpu in left if cpu not in part]
        parts.append(tuple(sorted(part)))
    return parts


def own_cpus() -> list[int]:
    """Return the CPUs that this process may use, neighbours next to each other; Linux only."""
    return in_order(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else []


def in_order(cpus: Sequence[int], sys: Path = _SYS) -> list[int]:
    """Sort CPUs so that neighbours follow each other: the threads of a core, then the node."""
    nodes = {cpu: number for number, some in _nodes(sys) for cpu in some}
    return sorted(cpus, key=lambda cpu: (nodes.get(cpu, 0), _core(cpu, sys), cpu))


def _nodes(sys: Path) -> Iterator[tuple[int, list[int]]]:
    for path in (sys / "devices/system/node").glob("node[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            yield int(path.name[4:]), gpu.parse_cpus((path / "cpulist").read_text())


def _core(cpu: int, sys: Path) -> int:
    """The first of the CPUs that are threads of the same core."""
    path = sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return min(gpu.parse_cpus(path.read_text()))
    except (OSError, ValueError):
        return cpu


def uses_gpus(task: Task) -> bool:
    """Whether the scripts of a task use GPUs: unless its records were timed on CPUs."""
    hardware = [record.hardware for record in (task.start, task.target) if record.hardware]
    return not hardware or not all(map(_CPU_HARDWARE.search, hardware))
