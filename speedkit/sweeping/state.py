"""What has become of the runs of a sweep, read from their run directories."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speedkit.api import RAISABLE, stored_task
from speedkit.core.config import RunConfig, check_config
from speedkit.core.errors import ConfigError, SpeedkitError
from speedkit.core.history import RunDirectory
from speedkit.core.ledger import Totals
from speedkit.core.run import Run
from speedkit.core.task import find_task
from speedkit.sweeping.cells import Cell
from speedkit.sweeping.values import NONE

Status = Literal["missing", "open", "finished", "stopped"]
"""``open``: begun and not over. ``stopped``: ended by a limit of its own, or by an observer."""
OVER = ("finished", "stopped")
_APART = (*(key for key in RAISABLE if key != "nodes"), "task", "start", "load")
"""Keys that may differ from the plan, or are compared in another way."""


class JobClock:
    """Adds up how long the jobs of a run took, from its events; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, float] = {}
        self._cut: dict[str, float] = {}
        self._done = self._last = 0.0

    def apply(self, event: Mapping[str, Any]) -> None:
        """Count an event of the journal."""
        kind, at = event["type"], float(event.get("at", self._last))
        with self._lock:
            if kind == "job_started":
                self._done += self._cut.pop(event["job"], 0.0)
                self._open[event["job"]] = at
            elif kind == "node_finished":
                self._end(f"node-{event['id']}", event["wall_s"])
            elif kind == "calibration_run":
                self._end(f"calibrate-{event['record']}-{event['run']}", event["wall_s"])
            elif kind == "run_started":
                self._cut_off(self._last)  # what a killed controller left
            elif kind == "run_finished":
                self._cut_off(at)
            self._last = at

    def _end(self, job: str, wall_s: float | None) -> None:
        self._open.pop(job, None)
        cut = self._cut.pop(job, 0.0)  # the same job, if a later controller went on with it
        self._done += cut if wall_s is None else wall_s

    def _cut_off(self, at: float) -> None:
        for job, began in self._open.items():
            self._cut[job] = max(0.0, at - began)
        self._open.clear()

    def close(self) -> None:
        """Count jobs whose end nobody saw up to the last event."""
        with self._lock:
            self._cut_off(self._last)

    def seconds(self, now: float) -> float:
        """Return the seconds of all jobs; those that run count up to ``now``, a Unix time."""
        with self._lock:
            running = sum(max(0.0, now - began) for began in self._open.values())
            return self._done + sum(self._cut.values()) + running


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
    def spent(self) -> Totals:
        """What its model calls cost."""
        return _totals(self.run)


def read_begun(path: Path, config: RunConfig, *, limited: bool) -> Begun | None:
    """Return what is known of a run; None where it has not begun.

    Args:
        config: of the run, as the plan has it.
        limited: whether the sweep has a limit on model calls, which may have stopped the run.
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
    return Begun(run, _status(run, config, limited), sum(node.counts for node in begun), clock)


def _status(run: Run, config: RunConfig, limited: bool) -> Status:
    if run.status == "stopped":
        return "open" if limited and not _at_own_limit(run, config) else "stopped"
    return "finished" if run.status == "finished" else "open"


def _at_own_limit(run: Run, config: RunConfig) -> bool:
    """Whether a run has spent what its own configuration allows for model calls."""
    spent = _totals(run)
    cost, tokens = config.max_cost, config.max_tokens
    return (cost is not None and spent.known_cost >= cost) or (
        tokens is not None and spent.usage.total >= tokens
    )


def _totals(run: Run) -> Totals:
    totals = Totals()
    for call in run.calls:
        totals = totals.plus(call)
    return totals


def read_all(
    folder: Path, cells: Sequence[Cell], *, limited: bool
) -> tuple[dict[str, Begun], list[str]]:
    """Return the runs that have begun, by name, and a line for each that cannot be gone on with.

    A run whose configuration is not that of the plan is such a one.
    """
    begun, problems = {}, []
    for cell in cells:
        path = folder / cell.name
        try:
            found = read_begun(path, cell.config, limited=limited)
            if found is None:
                continue
            problems += [f"{path}: {line}" for line in _differences(cell, found.run)]
            begun[cell.name] = found
        except (SpeedkitError, OSError) as error:
            problems += [f"{path}: {line}" for line in str(error).splitlines()]
    return begun, problems


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
    return lines


def _plain(config: RunConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude=set(_APART))
    return {**values, "options": {k: v for k, v in values["options"].items() if v}}


def _shown(value: Any) -> str:
    return NONE if value in (None, [], {}) else str(value)
