"""Ending a run, or what is left of it, from outside.

A controller on this machine is asked by a signal, and closes its run as after Ctrl-C. Where
there is none, the jobs that its journal names are ended directly; so are those of a
controller on another machine, which then sees that they were cancelled, and stops.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedkit.api import open_state
from speedkit.core.assemble import make_component
from speedkit.core.components import Executor
from speedkit.core.config import check_config
from speedkit.core.errors import RunDirectoryError, SpeedkitError
from speedkit.core.history import RunDirectory
from speedkit.core.plugins import Plugins
from speedkit.plugins.executors.remote import RemoteExecutor


@dataclass(frozen=True)
class Cancelled:
    """What was done to end a run.

    Attributes:
        controller: the process that was asked to end, None if there was none here.
        jobs: names of the jobs that were ended directly.
        remote: name of the machine on which a controller still holds the run, or empty.
    """

    controller: int | None = None
    jobs: tuple[str, ...] = ()
    remote: str = ""


def cancel_run(path: Path, wait_s: float = 90.0) -> Cancelled:
    """End the controller and the jobs of a run.

    Args:
        wait_s: how long a controller may take to end its jobs.

    Raises:
        RunDirectoryError: it is no run directory, or its controller cannot be asked alone.
        SpeedkitError: the controller did not end, or the executor cannot be reached.
    """
    directory = RunDirectory(path)
    if not directory.is_held():
        return Cancelled(jobs=_end_recorded(directory))
    holder = _holder(directory)
    pid, host = int(holder["pid"]), str(holder["host"])
    if host != socket.gethostname():
        return Cancelled(jobs=_end_jobs(directory), remote=host)
    if (count := _runs_held_by(pid)) > 1:
        return _end_one_of_many(directory, pid, count)
    os.kill(pid, signal.SIGTERM)
    _wait_until_free(directory, pid, wait_s)
    return Cancelled(controller=pid)


def _holder(directory: RunDirectory) -> Mapping[str, Any]:
    try:
        holder = json.loads((directory.path / "lock").read_text(encoding="utf-8"))
        return {"pid": holder["pid"], "host": holder["host"]}
    except (OSError, ValueError, LookupError, TypeError):
        raise RunDirectoryError(
            f"{directory.path} is held by a process that has not said who it is; try again"
        ) from None


def _runs_held_by(pid: int) -> int:
    """How many run directories a process holds, as far as this system shows; at least 1."""
    folder = Path(f"/proc/{pid}/fd")
    if not folder.is_dir():
        return 1
    targets = {os.path.realpath(link) for link in folder.iterdir()}
    locks = [Path(t) for t in targets if os.path.basename(t) == "lock"]
    return max(1, sum((lock.parent / "run.toml").exists() for lock in locks))


def _end_one_of_many(directory: RunDirectory, pid: int, count: int) -> Cancelled:
    """End only the jobs of one run, whose process is at work on others as well."""
    handles = open_state(directory.path).handles.values()
    if not all("engine" in handle for handle in handles):
        raise RunDirectoryError(
            f"process {pid} is at work on {count} runs, and jobs on this machine cannot be "
            f"cancelled for one of them alone; to end all {count}: kill {pid}"
        )
    return Cancelled(jobs=_end_jobs(directory))


def _wait_until_free(directory: RunDirectory, pid: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while directory.is_held():
        if time.monotonic() > deadline:
            raise SpeedkitError(
                f"process {pid} was asked to end and still holds {directory.path} after "
                f"{wait_s:g} s; to end it hard: kill -9 {pid}, then cancel again"
            )
        time.sleep(0.1)


# --- jobs without a controller --------------------------------------------------------------


def _end_recorded(directory: RunDirectory) -> tuple[str, ...]:
    """End the jobs that a dead controller left, and say so in the journal."""
    with directory.writing() as journal:
        names = _end_jobs(directory)
        for name in names:
            at = round(time.time(), 3)
            journal.append({"type": "job_ended", "at": at, "job": name, "ending": "cancelled"})
        executor = _executor(directory)
        if isinstance(executor, RemoteExecutor):
            names += executor.end_all_unrecorded(directory.path)
    return names


def _end_jobs(directory: RunDirectory) -> tuple[str, ...]:
    handles = dict(open_state(directory.path).handles)
    executor = _executor(directory)
    for handle in handles.values():
        executor.reap(handle)
    return tuple(handles)


def _executor(directory: RunDirectory) -> Executor:
    config = check_config(directory.manifest["config"])
    plugins = Plugins(config.load, config.block)
    executor: Executor = make_component(config, plugins, "executor", config.executor)
    return executor
