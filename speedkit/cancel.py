"""Ending a run, a sweep or a chain, or what is left of it, from outside.

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
from speedkit.chain import ASKED as CHAIN_FILE
from speedkit.core.assemble import make_component
from speedkit.core.components import Executor
from speedkit.core.config import check_config
from speedkit.core.errors import RunDirectoryError, SpeedkitError
from speedkit.core.history import RunDirectory, is_held
from speedkit.core.plugins import Plugins
from speedkit.plugins.executors.remote import RemoteExecutor
from speedkit.sweeping.sweep import FILE as SWEEP_FILE

COMMANDS = {"run.toml": "run", SWEEP_FILE: "sweep", CHAIN_FILE: "cumulative"}
"""The command that goes on with a directory, by the file that marks it."""
RUNS = {"sweep": "*/run.toml", "cumulative": "seed-*/task-*/run.toml"}
"""Where the runs are below a directory of several, by its command."""


@dataclass(frozen=True)
class Cancelled:
    """What was done to end a run, or several.

    Attributes:
        controller: the process that was asked to end, None if there was none here.
        jobs: names of the jobs that were ended directly, below a sweep with their run's.
        remote: name of the machine on which a controller still holds the run, or empty.
    """

    controller: int | None = None
    jobs: tuple[str, ...] = ()
    remote: str = ""


def command_of(path: Path) -> str:
    """Return the command that goes on with a directory: ``run``, ``sweep`` or ``cumulative``.

    Raises:
        RunDirectoryError: it is none of a run, a sweep or a chain.
    """
    for file, command in COMMANDS.items():
        if (path / file).is_file():
            return command
    raise RunDirectoryError(
        f"{path} is no run directory: it has no run.toml, and no {SWEEP_FILE} or {CHAIN_FILE}"
    )


def cancel(path: Path, wait_s: float = 90.0) -> Cancelled:
    """End the controller and the jobs of a run, or of all runs of a sweep or a chain.

    Args:
        wait_s: how long a controller may take to end its jobs.

    Raises:
        RunDirectoryError: it is no such directory, or its controller cannot be asked alone.
        SpeedkitError: the controller did not end, or the executor cannot be reached.
    """
    command = command_of(path)
    if command == "run":
        return cancel_run(path, wait_s)
    done = _ask(path, wait_s) if is_held(path) else Cancelled()
    if done.controller is not None:
        return done
    for run in sorted(file.parent for file in path.glob(RUNS[command])):
        one = cancel_run(run, wait_s)
        jobs = (f"{run.relative_to(path)}/{job}" for job in one.jobs)
        done = Cancelled(
            done.controller or one.controller, (*done.jobs, *jobs), done.remote or one.remote
        )
    return done


def cancel_run(path: Path, wait_s: float = 90.0) -> Cancelled:
    """End the controller and the jobs of a run; see :func:`cancel`."""
    directory = RunDirectory(path)
    if not directory.is_held():
        return Cancelled(jobs=_end_recorded(directory))
    holder = _holder(path)
    pid, host = int(holder["pid"]), str(holder["host"])
    if host != socket.gethostname():
        return Cancelled(jobs=_end_jobs(directory), remote=host)
    if others := _others_held_by(pid, path):
        return _end_one_of_many(directory, pid, others)
    return _ask(path, wait_s)


def _ask(path: Path, wait_s: float) -> Cancelled:
    """Ask the controller that holds a directory to end, if it is on this machine."""
    holder = _holder(path)
    pid, host = int(holder["pid"]), str(holder["host"])
    if host != socket.gethostname():
        return Cancelled(remote=host)
    os.kill(pid, signal.SIGTERM)
    _wait_until_free(path, pid, wait_s)
    return Cancelled(controller=pid)


def _holder(path: Path) -> Mapping[str, Any]:
    try:
        holder = json.loads((path / "lock").read_text(encoding="utf-8"))
        return {"pid": holder["pid"], "host": holder["host"]}
    except (OSError, ValueError, LookupError, TypeError):
        raise RunDirectoryError(
            f"{path} is held by a process that has not said who it is; try again"
        ) from None


def _others_held_by(pid: int, path: Path) -> list[Path]:
    """The further runs, and the sweep, that a process holds, as far as this system shows."""
    folder = Path(f"/proc/{pid}/fd")
    if not folder.is_dir():
        return []
    targets = {os.path.realpath(link) for link in folder.iterdir()}
    held = {Path(t).parent for t in targets if os.path.basename(t) == "lock"}
    marks = ("run.toml", SWEEP_FILE)
    return sorted(p for p in held - {path.resolve()} if any((p / m).exists() for m in marks))


def _end_one_of_many(directory: RunDirectory, pid: int, others: list[Path]) -> Cancelled:
    """End only the jobs of one run, whose process is at work on others as well."""
    handles = open_state(directory.path).handles.values()
    if not all("engine" in handle for handle in handles):
        sweep = next((p for p in others if (p / SWEEP_FILE).exists()), None)
        end = f"speedkit cancel {sweep}" if sweep else f"kill {pid}"
        raise RunDirectoryError(
            f"process {pid} is at work on other runs too, and jobs on this machine cannot be "
            f"cancelled for one of them alone; to end all of them: {end}"
        )
    return Cancelled(jobs=_end_jobs(directory))


def _wait_until_free(path: Path, pid: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while is_held(path):
        if time.monotonic() > deadline:
            raise SpeedkitError(
                f"process {pid} was asked to end and still holds {path} after "
                f"{wait_s:g} s; to end it hard: kill -9 {pid}, then cancel again"
            )
        time.sleep(0.1)


# --- jobs without a controller --------------------------------------------------------------


def _end_recorded(directory: RunDirectory) -> tuple[str, ...]:
    """End the jobs that a dead controller left, and say so in the journal."""
    with directory.writing() as journal:
        recorded = open_state(directory.path).handles
        names = _end_jobs(directory)
        for name in recorded:
            at = round(time.time(), 3)
            journal.append({"type": "job_ended", "at": at, "job": name, "ending": "cancelled"})
    return names


def _end_jobs(directory: RunDirectory) -> tuple[str, ...]:
    """End the jobs that the journal of a run names, and those that it does not."""
    handles = dict(open_state(directory.path).handles)
    if not handles and not any(directory.path.rglob(".*-submission")):
        return ()
    executor = _executor(directory)
    for handle in handles.values():
        executor.reap(handle)
    if not isinstance(executor, RemoteExecutor):
        return tuple(handles)
    return (*handles, *executor.end_all_unrecorded(directory.path))


def _executor(directory: RunDirectory) -> Executor:
    config = check_config(directory.manifest["config"])
    plugins = Plugins(config.load, config.block)
    executor: Executor = make_component(config, plugins, "executor", config.executor)
    return executor
