"""Runs what is missing of a sweep and resumes the rest, several runs at once in one process.

::

    SWEEP/
      sweep.toml       what was asked for, resolved
      failures.json    runs that could not go on, and why; written when there is one
      NAME/            the run directory of each cell

Everything else is read from the run directories.
"""

from __future__ import annotations

import json
import math
import queue
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from speedkit import api
from speedkit.core.errors import (
    BudgetReached,
    ConfigError,
    PluginError,
    RunDirectoryError,
    SpeedkitError,
)
from speedkit.core.files import write_json
from speedkit.core.history import default_run_path, holding
from speedkit.core.interrupt import Interrupt, signals_as_interrupt
from speedkit.core.ledger import Ledger, ModelCall, Totals
from speedkit.core.plugins import Plugins
from speedkit.sweeping.cells import Cell, check_cells, make_cells
from speedkit.sweeping.state import (
    FAILURES,
    OVER,
    Begun,
    JobClock,
    read_all,
    read_begun,
    read_failures,
)
from speedkit.sweeping.sweep import FILE, Sweep, stored_sweep

JOB_ENDS = ("node_finished", "calibration_run")
LOOK_S = 0.5
"""Seconds between two looks at how long jobs have run."""
CUT = "a limit on the model calls of all runs is reached"
DISTURBED = (
    "the jobs of {jobs} runs share this machine and disturb each other's timings, so their FSR "
    "cannot be trusted; use --jobs 1, or executor=slurm or ray"
)

Status = Literal["missing", "open", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Ended:
    """How a run of a sweep ended, or that it has not.

    Attributes:
        status: ``finished``; ``stopped`` by a limit of its own or an observer; ``failed``;
            ``open`` when it can be resumed; ``missing`` when it has not begun.
        reason: why it failed, or could not go on, a line.
    """

    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Watch:
    """Who is told while a sweep runs; called from the threads of the runs.

    Attributes:
        on_start: a run begins, or goes on: cell, run directory, whether it goes on.
        on_event: an event of a run's journal.
        on_end: a run has ended.
        on_warning: a line for the user.
    """

    on_start: Callable[[Cell, Path, bool], None] = lambda cell, path, resumed: None
    on_event: Callable[[Cell, Mapping[str, Any]], None] = lambda cell, event: None
    on_end: Callable[[Cell, Ended], None] = lambda cell, ended: None
    on_warning: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        path: the sweep directory.
        ended: every run of the plan, by name.
        limit: which limit was reached, a line; empty if none was.
        spent: on model calls, by all runs of the plan.
        hours: that their jobs ran.
    """

    path: Path
    sweep: Sweep
    cells: tuple[Cell, ...]
    ended: Mapping[str, Ended]
    limit: str
    spent: Totals
    hours: float

    @property
    def failed(self) -> dict[str, str]:
        """The reasons of the runs that failed, by name."""
        return {n: e.reason for n, e in self.ended.items() if e.status == "failed"}

    @property
    def over(self) -> list[Path]:
        """The run directories of the searches that are over."""
        return [self.path / n for n, e in self.ended.items() if e.status in OVER]

    @property
    def exit_code(self) -> int:
        """4 when a limit left something undone, else 1 when a run failed, else 0."""
        return 4 if self.limit else int(bool(self.failed))


def run_sweep(
    sweep: Sweep,
    *,
    out: str | Path | None = None,
    plugins: Plugins | None = None,
    watch: Watch | None = None,
) -> SweepResult:
    """Run what is missing of a sweep and go on with what is not over.

    Args:
        out: the sweep directory; by default a new one below ``runs/``. One that is there
            already is gone on with; the plan may have grown since.
        plugins: the plugins to use; by default those that the settings name.
        watch: who is told.

    Raises:
        ConfigError: with one line for every mistake, before anything was run.
        RunDirectoryError: the folder holds something else, or is in use.
        KeyboardInterrupt: after all jobs were ended; the sweep can be resumed.
    """
    plugins = plugins or plugins_of(sweep)
    path = Path(out) if out is not None else default_run_path("sweep")
    cells, begun = _checked(sweep, path, plugins)
    path.mkdir(parents=True, exist_ok=True)
    with holding(path), signals_as_interrupt():
        sweep.save(path)
        return _Runner(sweep, path, cells, begun, plugins, watch or Watch()).go()


def resume_sweep(
    path: str | Path,
    *,
    jobs: int | None = None,
    plugins: Plugins | None = None,
    watch: Watch | None = None,
    **limits: float | None,
) -> SweepResult:
    """Go on with a sweep; runs that are over are not touched, those that failed are tried again.

    Args:
        jobs: how many runs go on at once, if it is not to be as before.
        limits: limits given anew, any of those of :class:`~speedkit.sweeping.Limits`.
    """
    sweep = raised(stored_sweep(Path(path)), jobs, **limits)
    return run_sweep(sweep, out=path, plugins=plugins, watch=watch)


def raised(sweep: Sweep, jobs: int | None = None, **limits: float | None) -> Sweep:
    """Return a sweep with what is given anew in place."""
    given: dict[str, Any] = {k: v for k, v in limits.items() if v is not None}
    return replace(sweep, jobs=jobs or sweep.jobs, limits=replace(sweep.limits, **given))


def plugins_of(sweep: Sweep) -> Plugins:
    """Return the plugins that the settings of a sweep name."""
    return Plugins(sweep.base.get("load", ()), sweep.base.get("block", ()))


def check_folder(path: Path, cells: Sequence[Cell]) -> None:
    """Refuse a folder that holds anything but this sweep, or an earlier, smaller one."""
    if not path.exists():
        return
    if not (path / FILE).exists():
        if any(path.iterdir()):
            raise RunDirectoryError(f"{path} is not empty, and no sweep; choose another --out")
        return
    names = {cell.name for cell in cells}
    other = sorted(p.parent.name for p in path.glob("*/run.toml") if p.parent.name not in names)
    if other:
        raise RunDirectoryError(
            f"{path} has {len(other)} runs that are not in this plan, {other[0]} for example; "
            "choose another --out"
        )


def _checked(sweep: Sweep, path: Path, plugins: Plugins) -> tuple[list[Cell], dict[str, Begun]]:
    """Return the runs, and those that have begun, after every mistake was looked for."""
    cells, problems = make_cells(sweep, plugins)
    begun: dict[str, Begun] = {}
    if not problems:
        check_folder(path, cells)
        begun, problems = read_all(path, cells)
    left = [c for c in cells if c.name not in begun or begun[c.name].status not in OVER]
    problems = [*check_cells(left, plugins), *problems]
    if problems:
        raise ConfigError(problems)
    return cells, begun


Note = Callable[[], None]
"""What the main thread does about something that happened in the thread of a run."""


class _Purse(Ledger):
    """What all runs spend on model calls, begun with what they have spent already.

    Calls that a killed controller left open are among that, so that a limit holds before their
    runs go on; when these tell of them, they are not counted again.
    """

    def __init__(self, calls: Sequence[ModelCall], **limits: Any) -> None:
        super().__init__(**limits)
        self.restore(calls, ())
        self._lost = {call.request_id for call in calls if call.status == "lost"}

    def settle(self, call: ModelCall) -> None:
        """Count a call that is over, once."""
        if call.request_id not in self._lost:
            super().settle(call)


@dataclass
class _Runner:
    """One controller at work on a sweep: the main thread decides, each run has one of its own."""

    sweep: Sweep
    path: Path
    cells: Sequence[Cell]
    begun: Mapping[str, Begun]
    plugins: Plugins
    watch: Watch
    ended: dict[str, Ended] = field(default_factory=dict)
    limit: str = ""

    def __post_init__(self) -> None:
        limits = self.sweep.limits
        calls = [call for found in self.begun.values() for call in found.calls]
        self._purse = _Purse(calls, max_cost=limits.max_cost, max_tokens=limits.max_tokens)
        self._past_s = sum(found.clock.seconds(0) for found in self.begun.values())
        self._clocks: dict[str, JobClock] = {}
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._active: dict[str, Interrupt] = {}
        self._calibrating: dict[str, str] = {}
        keys = (_calibration_key(c) for c in self.cells if self._is_calibrated(c))
        self._known = {key for key in keys if key is not None}
        self._failures = read_failures(self.path)

    def go(self) -> SweepResult:
        """Do what is left."""
        waiting = deque(self._waiting())
        if self.sweep.jobs > 1 and any(c.config.executor == "torchrun" for c in waiting):
            self.watch.on_warning(DISTURBED.format(jobs=self.sweep.jobs))
        with ThreadPoolExecutor(self.sweep.jobs, thread_name_prefix="sweep") as pool:
            try:
                while waiting or self._active:
                    self._look_at_limits(waiting)
                    self._start(waiting, pool)
                    self._take_note()
            except BaseException:
                self._end_all()
                raise
        if any(ended.status == "open" for ended in self.ended.values()):
            self._look_at_calls()
            if self._hours_left() < 0:
                self._note_hours()
        return self._result()

    def _waiting(self) -> list[Cell]:
        """Return the runs to be done, those that have begun first."""
        left = []
        for cell in self.cells:
            found = self.begun.get(cell.name)
            status: Status = found.status if found else "missing"
            self.ended[cell.name] = Ended(status)
            if status not in OVER:
                left.append(cell)
        return sorted(left, key=lambda cell: cell.name not in self.begun)

    # --- the main thread ------------------------------------------------------------------

    def _start(self, waiting: deque[Cell], pool: ThreadPoolExecutor) -> None:
        """Start runs while there is room; one at a time where times must be measured first."""
        held: list[Cell] = []
        while waiting and len(self._active) < self.sweep.jobs:
            cell = waiting.popleft()
            if self._must_wait(cell):
                held.append(cell)
                continue
            interrupt = self._active[cell.name] = Interrupt()
            self._clock(cell)
            pool.submit(self._run, cell, interrupt)
        waiting.extendleft(reversed(held))

    def _clock(self, cell: Cell) -> None:
        """Have the jobs of a run counted from its own events."""
        found = self.begun.get(cell.name)
        clock = found.clock if found else JobClock()
        self._past_s -= clock.seconds(0)
        self._clocks[cell.name] = clock

    def _must_wait(self, cell: Cell) -> bool:
        """Whether another run measures what this one will find in the store."""
        key = _calibration_key(cell)
        if key is None or key in self._known:
            return False
        return self._calibrating.setdefault(key, cell.name) != cell.name

    def _take_note(self) -> None:
        try:
            note = self._notes.get(timeout=LOOK_S)
        except queue.Empty:
            return
        note()

    def _is_calibrated(self, cell: Cell) -> bool:
        found = self.begun.get(cell.name)
        return found is not None and found.run.calibration is not None

    def _calibrated(self, cell: Cell) -> None:
        if key := _calibration_key(cell):
            self._known.add(key)

    def _ended(self, cell: Cell, ended: Ended, details: str) -> None:
        del self._active[cell.name]
        self._past_s += self._clocks.pop(cell.name).seconds(time.time())
        key = _calibration_key(cell)
        if key is not None and self._calibrating.get(key) == cell.name:
            del self._calibrating[key]
        self.ended[cell.name] = ended
        self._keep_failure(cell.name, ended, details)
        self.watch.on_end(cell, ended)

    def _keep_failure(self, name: str, ended: Ended, details: str) -> None:
        known = self._failures.pop(name, None)
        if ended.reason:
            self._failures[name] = {"reason": ended.reason, "details": details}
        if known or ended.reason:
            write_json(self.path / FAILURES, self._failures)

    def _look_at_limits(self, waiting: deque[Cell]) -> None:
        """Drop the runs that a limit forbids to start; end those that go on beyond the hours."""
        asking = [cell for cell in waiting if cell.config.model is not None]
        if asking and self._look_at_calls():
            for cell in asking:
                waiting.remove(cell)
        if (waiting and self._hours_left() <= 0) or (self._active and self._hours_left() < 0):
            self._note_hours()
            waiting.clear()
            self._end_all()

    def _hours_left(self) -> float:
        hours = self.sweep.limits.max_hours
        return math.inf if hours is None else hours - self._seconds() / 3600

    def _note_hours(self) -> None:
        self.limit = self.limit or self._reached("max_hours")

    def _look_at_calls(self) -> bool:
        """Whether a limit on model calls is reached, which is noted."""
        try:
            self._purse.check_limits()
        except BudgetReached:
            self.limit = self.limit or self._reached("max_cost", "max_tokens")
            return True
        return False

    def _reached(self, *keys: str) -> str:
        given = self.sweep.limits.given()
        told = " and ".join(f"--{k.replace('_', '-')} {given[k]:g}" for k in keys if k in given)
        more = " ".join(f"--{k.replace('_', '-')} MORE" for k in keys if k in given)
        return f"the limit {told} is reached; to go on: speedkit sweep --resume {self.path} {more}"

    def _seconds(self) -> float:
        now = time.time()
        return self._past_s + sum(clock.seconds(now) for clock in list(self._clocks.values()))

    def _end_all(self) -> None:
        for interrupt in list(self._active.values()):
            interrupt.ask()

    def _result(self) -> SweepResult:
        totals, hours = self._purse.totals, self._seconds() / 3600
        return SweepResult(
            self.path, self.sweep, tuple(self.cells), self.ended, self.limit, totals, hours
        )

    # --- the thread of a run ----------------------------------------------------------------

    def _run(self, cell: Cell, interrupt: Interrupt) -> None:
        ended, details = Ended("open"), ""
        try:
            ended = self._search(cell, interrupt)
        except KeyboardInterrupt:
            pass
        except (SpeedkitError, OSError) as error:
            ended = Ended("failed", " ".join(str(error).split()))
            details = traceback.format_exc() if isinstance(error, PluginError) else ""
        except Exception as error:  # a plugin may raise anything, and the other runs go on
            ended = Ended("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
            details = traceback.format_exc()
        finally:
            self._notes.put(lambda: self._ended(cell, ended, details))

    def _search(self, cell: Cell, interrupt: Interrupt) -> Ended:
        path, resumed = self.path / cell.name, (self.path / cell.name / "run.toml").exists()
        self.watch.on_start(cell, path, resumed)
        where: dict[str, Any] = {"out": path, "config": cell.config}
        if resumed:
            own = {key: getattr(cell.config, key) for key in ("max_cost", "max_tokens")}
            where = {"resume": path, **own}
        was_cut = False
        try:
            api.run(
                plugins=self.plugins,
                on_event=lambda event: self._heard(cell, event),
                on_warning=lambda text: self.watch.on_warning(f"{cell.name}: {text}"),
                interrupt=interrupt,
                purse=self._purse,
                **where,
            )
        except BudgetReached:
            was_cut = True
        found = read_begun(path, cell.config, was_cut=was_cut)
        status: Status = found.status if found else "missing"
        return Ended(status, CUT if status == "open" else "")

    def _heard(self, cell: Cell, event: Mapping[str, Any]) -> None:
        self._clocks[cell.name].apply(event)
        if event["type"] == "calibrated":
            self._notes.put(lambda: self._calibrated(cell))
        if event["type"] in JOB_ENDS and self._hours_left() < 0:
            self._end_all()
        self.watch.on_event(cell, event)


def _calibration_key(cell: Cell) -> str | None:
    """Return what runs share whose times are measured once and kept; None for no such run."""
    config = cell.config
    if config.calibration != "auto" or config.start is not None:
        return None
    options = json.dumps(config.options.get("executor", {}), sort_keys=True)
    return f"{cell.task} {config.target_loss} {config.executor} {options}"


__all__ = ["FAILURES", "Ended", "SweepResult", "Watch", "resume_sweep", "run_sweep"]
