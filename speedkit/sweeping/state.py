"""What has become of the runs of a sweep, read from their run directories."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speedkit.api import RAISABLE, check_scripts, stored_task
from speedkit.core.config import RunConfig, check_config
from speedkit.core.errors import ConfigError, RunDirectoryError, SpeedkitError
from speedkit.core.history import RunDirectory
from speedkit.core.ledger import ModelCall
from speedkit.core.run import Run
from speedkit.core.task import find_task
from speedkit.plugins.executors.remote_folder import began
from speedkit.sweeping.cells import Cell
from speedkit.sweeping.values import NONE

Status = Literal["missing", "open", "finished", "stopped"]
"""``open``: begun and not over. ``stopped``: ended by a limit of its own, or by an observer."""
OVER = ("finished", "stopped")
FAILURES = "failures.json"
"""Runs that could not go on, and why: they failed, or the sweep's limit stopped them."""
_APART = (*(key for key in RAISABLE if key != "nodes"), "task", "start", "load")
"""Keys that may differ from the plan, or are compared in another way."""
LOOK_S = 5.0
"""Seconds between two looks at which of the jobs that wait in an engine's queue have begun."""


@dataclass
class _Job:
    """A job that has not ended; ``since`` is None while it waits in the queue of an engine."""

    handle: Mapping[str, Any]
    since: float | None

    def seconds(self, now: float) -> float:
        return 0.0 if self.since is None else max(0.0, now - self.since)


class JobClock:
    """Adds up how long the jobs of a run took, from its events; any thread may ask.

    Args:
        began: when a job of an engine began, given its handle; None while it waits for a node,
            which costs nothing.
    """

    def __init__(self, began: Callable[[Mapping[str, Any]], float | None] = began) -> None:
        self._lock = threading.Lock()
        self._began = began
        self._open: dict[str, _Job] = {}
        self._cut: dict[str, float] = {}
        self._done = self._last = 0.0
        self._look_at = float("-inf")

    def apply(self, event: Mapping[str, Any]) -> None:
        """Count an event of the journal."""
        kind, at = event["type"], float(event.get("at", self._last))
        with self._lock:
            if _is_of_the_dead(event):
                return
            if kind == "job_started":
                self._start(event["job"], event["handle"], at)
            elif kind == "node_finished":
                self._end(f"node-{event['id']}", event["wall_s"])
            elif kind == "calibration_run":
                self._end(f"calibrate-{event['record']}-{event['run']}", event["wall_s"])
            elif kind == "run_started":
                self._cut_off(self._last)  # what a killed controller left
            elif kind == "run_finished":
                self._cut_off(at)
            self._last = at

    def _start(self, name: str, handle: Mapping[str, Any], at: float) -> None:
        self._look()
        lost = self._open.pop(name, None)  # an earlier attempt
        self._done += self._cut.pop(name, 0.0) + (lost.seconds(at) if lost else 0.0)
        self._open[name] = _Job(handle, None if "engine" in handle else at)

    def _end(self, name: str, wall_s: float | None) -> None:
        self._open.pop(name, None)
        cut = self._cut.pop(name, 0.0)  # the same job, if a later controller went on with it
        self._done += cut if wall_s is None else wall_s

    def _cut_off(self, at: float) -> None:
        self._look()
        self._cut |= {name: job.seconds(at) for name, job in self._open.items()}
        self._open.clear()

    def _look(self) -> None:
        """See which of the waiting jobs have begun."""
        for job in self._open.values():
            if job.since is None:
                job.since = self._began(job.handle)

    def close(self) -> None:
        """Count jobs whose end nobody saw up to the last event."""
        with self._lock:
            self._cut_off(self._last)

    def seconds(self, now: float) -> float:
        """Return the seconds of all jobs; those that run count up to ``now``, a Unix time."""
        with self._lock:
            if now > self._look_at:
                self._look()
                self._look_at = now + LOOK_S
            running = sum(job.seconds(now) for job in self._open.values())
            return self._done + sum(self._cut.values()) + running


def _is_of_the_dead(event: Mapping[str, Any]) -> bool:
    """Whether an event tells of what a killed controller left, when that is long over."""
    if event["type"] == "model_called":
        return bool(event["call"]["status"] == "lost")
    return bool(event["type"] == "job_ended")


@dataclass(frozen=True)
class Begun:
    """A run of a sweep that has begun.

    Attributes:
        nodes: how many took one of the run's budget.
        clock: of its jobs.
    """

    run: Run
    status: Status
    nodes: int
    clock: JobClock

    @property
    def calls(self) -> list[ModelCall]:
        """Its model calls, as the table of results counts them."""
        return _calls(self.run)


def read_begun(path: Path, config: RunConfig, *, was_cut: bool) -> Begun | None:
    """Return what is known of a run; None where it has not begun.

    Args:
        config: of the run, as the plan has it.
        was_cut: whether a limit on model calls of the sweep has stopped it.
    """
    if not (path / "run.toml").exists():
        return None
    directory = RunDirectory(path)
    run, clock = Run(directory, stored_task(directory)), JobClock()
    for event in directory.events():
        run.apply(event)
        clock.apply(event)
    clock.close()
    begun = [n for n in run.tree if n.id != 0 and run.is_finished(n.id)]
    status = _status(run, config, was_cut)
    return Begun(run, status, sum(node.counts for node in begun), clock)


def _status(run: Run, config: RunConfig, was_cut: bool) -> Status:
    if run.status == "stopped":
        return "open" if was_cut and not _at_own_limit(run, config) else "stopped"
    return "finished" if run.status == "finished" else "open"


def _at_own_limit(run: Run, config: RunConfig) -> bool:
    """Whether a run has spent what its own configuration allows for model calls."""
    from speedkit.analysis.reading import totals_of

    spent = totals_of(_calls(run))
    cost, tokens = config.max_cost, config.max_tokens
    return (cost is not None and spent.known_cost >= cost) or (
        tokens is not None and spent.usage.total >= tokens
    )


def _calls(run: Run) -> list[ModelCall]:
    from speedkit.analysis.reading import calls_of, status_of

    return calls_of(run, status_of(run))


def read_all(folder: Path, cells: Sequence[Cell]) -> tuple[dict[str, Begun], list[str]]:
    """Return the runs that have begun, by name, and a line for each that cannot be gone on with.

    A run whose configuration or scripts are not those of the plan is such a one.
    """
    begun, problems = {}, []
    failures = read_failures(folder)
    for cell in cells:
        path = folder / cell.name
        try:
            found = read_begun(path, cell.config, was_cut=cell.name in failures)
            if found is None:
                continue
            problems += [f"{path}: {line}" for line in _differences(cell, found.run)]
            begun[cell.name] = found
        except (SpeedkitError, OSError) as error:
            problems += [f"{path}: {line}" for line in str(error).splitlines()]
    return begun, problems


def read_failures(folder: Path) -> dict[str, Any]:
    """Return what a sweep has noted of runs that could not go on, by name."""
    try:
        values = json.loads((folder / FAILURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _differences(cell: Cell, run: Run) -> list[str]:
    try:
        began_with = check_config(run.directory.manifest["config"])
    except ConfigError as error:
        return list(error.problems)
    was, planned = _plain(began_with), _plain(cell.config)
    lines = [
        f"it began with {key} = {_shown(was[key])}, the plan says {_shown(planned[key])}; "
        "choose another --out"
        for key in planned
        if was[key] != planned[key]
    ]
    family = find_task(cell.task).family.root
    if run.task.family.root != family:
        lines.append(f"its family is {run.task.family.root}, the plan says {family}")
    return [*lines, *_changes(run)]


def _changes(run: Run) -> list[str]:
    """Return a line if scripts of the run's task have changed, as far as they are at hand."""
    try:
        check_scripts(run.directory, run.task)
    except RunDirectoryError as error:
        return [str(error)]
    except (SpeedkitError, OSError):
        return []  # a run that is over needs them no more, and another says so when it begins
    return []


def _plain(config: RunConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude=set(_APART))
    for key in ("prompts", "llm_cache"):  # a run keeps them absolute
        values[key] = values[key] and str(Path(values[key]).resolve())
    return {**values, "options": {k: v for k, v in values["options"].items() if v}}


def _shown(value: Any) -> str:
    return NONE if value in (None, [], {}) else str(value)
