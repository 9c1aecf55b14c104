"""One training run of a task's script: workspace, job, metrics, verdict."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from speedkit.core.compile_cache import cache_variables
from speedkit.core.components import Ending, Execution, Executor, Job
from speedkit.core.errors import blamed
from speedkit.core.files import write_json
from speedkit.core.metrics import (
    Metrics,
    Report,
    is_malformed,
    metrics_from_dict,
    metrics_to_dict,
    parse_line,
    parse_log,
    read_lines,
)
from speedkit.core.node import Outcome
from speedkit.core.redact import Redactor
from speedkit.core.task import RunRules, Task

SEED_VARIABLE = "SPEEDKIT_SEED"
"""Environment variable from which a training script may take its seed."""
MAX_ATTEMPTS = 3
"""How often a job is tried when the machinery fails, not the script."""
MAX_LINES = 200_000
"""Metrics lines kept of one run; a longer log is no training log."""

Started = Callable[[Mapping[str, Any]], None]
Progress = Callable[[Metrics | None, str, float], None]
Stop = Callable[[Metrics, float], str | None]
"""Given a validation and the seconds since spawn, says why the job is to be ended, or nothing."""
PROGRAM = "guard_program.py"
"""Name of a trusted program in the workspace that it shares with a node's files."""
UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1", "TORCH_COMPILE_DISABLE": "1"}
"""Environment in which torch compiles nothing."""


@dataclass(frozen=True)
class Trial:
    """What one training run came to.

    Attributes:
        outcome: valid, invalid, buggy or stopped; None when the run was cancelled.
        reason: why it is not valid.
        arrivals: seconds since spawn at which each validation line came, and what it said.
        artifacts: files that the family asks to be kept of a run, by name; untrusted.
    """

    execution: Execution
    report: Report
    outcome: Outcome | None
    reason: str

    arrivals: tuple[tuple[float, Metrics], ...] = ()
    artifacts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def metrics(self) -> Metrics | None:
        """The last validation."""
        return self.report.last


class Cancel(threading.Event):
    """Set by itself, or with the event of the whole run."""

    def __init__(self, run: threading.Event) -> None:
        super().__init__()
        self._run = run

    def is_set(self) -> bool:
        """Whether either of the two is set."""
        return super().is_set() or self._run.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until either of the two is set, or so many seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (deadline is None or time.monotonic() < deadline):
            super().wait(0.05)
        return self.is_set()


@dataclass
class Listener:
    """Collects the metrics lines of a job and passes them on.

    Attributes:
        on_started: receives the handle of the running job.
        on_line: receives each line of rank 0 with its metrics, if it has any, and the
            seconds since the job was spawned.
        on_metrics: receives each validation and the seconds since spawn.
    """

    on_started: Started = lambda handle: None
    on_line: Progress = lambda metrics, text, at_s: None
    on_metrics: Callable[[Metrics, float], None] = lambda metrics, at_s: None
    lines: list[str] = field(default_factory=list)
    arrivals: list[tuple[float, Metrics]] = field(default_factory=list)

    def started(self, handle: Mapping[str, Any]) -> None:
        """Pass the handle on."""
        self.on_started(handle)

    def line(self, rank: int, text: str, at_s: float) -> None:
        """Keep lines of rank 0 and pass them on."""
        if rank != 0:
            return
        metrics = parse_line(text)
        if (metrics or is_malformed(text)) and len(self.lines) < MAX_LINES:
            self.lines.append(text)
            if metrics:
                self.arrivals.append((at_s, metrics))
                self.on_metrics(metrics, at_s)
        self.on_line(metrics, text, at_s)


@dataclass(frozen=True)
class Trials:
    """Runs scripts of one task on one executor.

    Args:
        work_dir: folder below which each job gets a workspace of its own for its time.
        data: what the workspace shows as ``data/``, None for nothing.
        cancel: when set, running jobs are ended.
        cache: folder in which jobs share what torch compiles, None for none.
        artifacts: names of further files to keep of a run, for guards.
        redactor: takes secrets out of the logs of a job when it has ended.
    """

    task: Task
    executor: Executor
    run_id: str
    work_dir: Path
    data: Path | None
    cancel: threading.Event
    cache: Path | None = None
    artifacts: tuple[str, ...] = ()
    redactor: Redactor = field(default_factory=Redactor.from_environment)

    @cached_property
    def rules(self) -> RunRules:
        """How scripts of the task are run on this executor."""
        return self.task.run_with(self.executor.nproc)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What timings depend on: hardware, versions, number of processes."""
        return {**self.executor.fingerprint(), "nproc": self.rules.nproc}

    @cached_property
    def torch_version(self) -> str | None:
        """The torch that will run the scripts, None if the executor does not say."""
        version = self.fingerprint.get("torch")
        return None if version is None else str(version)

    def run(
        self,
        name: str,
        files: Mapping[str, str],
        log_dir: Path,
        seed: int,
        listener: Listener | None = None,
        stop: Callable[[], Stop] | None = None,
        smoke_steps: int | None = None,
        handle: Mapping[str, Any] | None = None,
    ) -> Trial:
        """Run a script to its end, and again if the machinery failed.

        Args:
            name: unique name of the job within the run.
            files: text by file name.
            log_dir: where captured output and ``metrics.json`` go.
            seed: offered to the script as ``SPEEDKIT_SEED``.
            stop: makes what is asked at every validation whether the job is to be ended
                early; called anew for each attempt.
            smoke_steps: let the script make so many steps and never count, uncompiled unless
                it uses FlexAttention, which needs too much memory then; where the executor
                itself is set to smoke runs, its number holds.
            handle: of the same job, started by a dead controller; gone on with if it can be.
        """
        log_dir.mkdir(parents=True, exist_ok=True)
        steps = self.executor.smoke_steps or smoke_steps
        files, notes = self._fit(files, steps)
        env = UNCOMPILED if smoke_steps and not needs_compiling(files) else {}
        watch = Listener() if listener is None else listener
        early = _Early(stop, Cancel(self.cancel))
        watch.on_metrics = early
        for attempt in range(1, MAX_ATTEMPTS + 1):
            watch.lines.clear()
            watch.arrivals.clear()
            early.begin()
            job = self._job(name, log_dir, seed, files[self.task.script])
            job = replace(job, cancel=early.cancel, env={**job.env, **env})
            with self._blamed():
                execution = self._adopt(job, handle, watch) or self._attempt(job, files, watch)
            handle = None
            if execution.ending is not Ending.LOST or early.cancel.is_set():
                break
            if attempt < MAX_ATTEMPTS:
                time.sleep(0.5 * attempt)
        artifacts = {p.name: p for p in execution.collected if p.name in self.artifacts}
        self.redactor.clean_files(log_dir, spare=self.artifacts)
        report = self._report(execution, watch)
        facts = self.redactor.tree(_as_json(execution, report, watch, notes))
        write_json(log_dir / "metrics.json", facts, sync=False)
        outcome, reason = verdict(execution, report, self.task.rules.target)
        if early.reason and execution.ending is Ending.CANCELLED and not self.cancel.is_set():
            outcome, reason = Outcome.STOPPED, early.reason
        if steps and outcome in (Outcome.VALID, Outcome.INVALID):
            outcome = Outcome.INVALID
            reason = f"smoke run of {steps} steps, which never counts"
        return Trial(execution, report, outcome, reason, tuple(watch.arrivals), artifacts)

    def program(
        self,
        name: str,
        files: Mapping[str, str],
        artifacts: Mapping[str, Path],
        log_dir: Path,
        source: str,
        *,
        inputs: Mapping[str, bytes] | None = None,
        collect: Sequence[str] = (),
        timeout_s: float = 300.0,
    ) -> tuple[Execution, Mapping[str, Path]]:
        """Run a trusted program beside a node's files, where and as nodes are run.

        See :class:`speedkit.core.guards.RunProgram` for the arguments.
        """
        log_dir.mkdir(parents=True, exist_ok=True)
        files, _ = self._fit(files, None)
        with self._workspace(name) as workspace:
            for file, text in {**files, PROGRAM: source}.items():
                (workspace / file).write_text(text, encoding="utf-8", newline="")
            for file, path in artifacts.items():
                shutil.copyfile(path, workspace / file)
            for file, data in (inputs or {}).items():
                (workspace / file).write_bytes(data)
            job = Job(
                name=name,
                run_id=self.run_id,
                workspace=workspace.absolute(),
                log_dir=log_dir.absolute(),
                script=PROGRAM,
                launcher="python",
                timeout_s=timeout_s,
                stall_s=timeout_s,
                collect=tuple(collect),
                hidden=self._hidden,
                cancel=self.cancel,
            )
            with self._blamed():
                execution = self.executor.execute(job, Listener())
        self.redactor.clean_files(log_dir, spare=(*collect, *self.artifacts))
        return execution, {p.name: p for p in execution.collected}

    def _fit(
        self, files: Mapping[str, str], steps: int | None
    ) -> tuple[Mapping[str, str], tuple[str, ...]]:
        """Return the files as this machine's torch runs them, and a note for each change."""
        source = files[self.task.script]
        notes: tuple[str, ...] = ()
        if self.torch_version is not None:
            source, notes = self.task.family.adapt(source, self.torch_version)
        if steps:
            source, more = self.task.family.smoke(source, steps, self.rules.nproc)
            notes += more
        return {**files, self.task.script: source}, notes

    def _adopt(
        self, job: Job, handle: Mapping[str, Any] | None, watch: Listener
    ) -> Execution | None:
        """Go on with a job that a dead controller started; None where that cannot be."""
        if handle is None:
            return None
        execution = self.executor.adopt(job, handle, watch)
        if execution is not None:
            shutil.rmtree(job.workspace, ignore_errors=True)
        return execution

    def _attempt(self, job: Job, files: Mapping[str, str], watch: Listener) -> Execution:
        with self._workspace(job.name) as workspace:
            self._fill(workspace, files)
            return self.executor.execute(job, watch)

    def _blamed(self) -> AbstractContextManager[None]:
        return blamed("executor", type(self.executor).__name__)

    @contextmanager
    def _workspace(self, name: str) -> Iterator[Path]:
        """A fresh folder for a job, gone afterwards."""
        workspace = self.work_dir / name
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True)
        try:
            yield workspace
        finally:
            shutil.rmtree(workspace, ignore_errors=True)

    def _fill(self, workspace: Path, files: Mapping[str, str]) -> None:
        for file, text in files.items():
            (workspace / file).write_text(text, encoding="utf-8", newline="")
        (workspace / "logs").mkdir()
        if self.data is not None:
            (workspace / "data").symlink_to(self.data, target_is_directory=True)

    def _job(self, name: str, log_dir: Path, seed: int, text: str) -> Job:
        source = self.task.rules.source
        cache = cache_variables(self.cache, text) if self.cache else {}
        return Job(
            name=name,
            run_id=self.run_id,
            workspace=(self.work_dir / name).absolute(),
            log_dir=log_dir.absolute(),
            script=self.task.script,
            args=self.rules.args,
            launcher=self.rules.launcher,
            nproc=self.rules.nproc,
            env={**self.rules.env, **cache, SEED_VARIABLE: str(seed)},
            timeout_s=self.rules.timeout_s,
            stall_s=self.rules.stall_s,
            collect=(*self.artifacts, *(() if source == "stdout" else (source,))),
            hidden=self._hidden,
        )

    @property
    def _hidden(self) -> tuple[Path, ...]:
        """Where records and hints stand, which no script must see."""
        return (self.task.family.root, self.task.family.script_root)

    def _report(self, execution: Execution, watch: Listener) -> Report:
        if self.task.rules.source == "stdout":
            return parse_log(watch.lines)
        logs = (path for path in execution.collected if path.name not in self.artifacts)
        return parse_log(line for path in logs for line in _lines_of(path))


def _never(metrics: Metrics, at_s: float) -> str | None:
    return None


class _Early:
    """Asks at every validation whether to go on, and cancels the job when not."""

    def __init__(self, make: Callable[[], Stop] | None, cancel: Cancel) -> None:
        self.cancel = cancel
        self.reason = ""
        self._make = make
        self._stop: Stop = _never

    def begin(self) -> None:
        """Forget what an earlier attempt printed."""
        self._stop = self._make() if self._make else _never

    def __call__(self, metrics: Metrics, at_s: float) -> None:
        if not self.reason:
            self.reason = self._stop(metrics, at_s) or ""
            if self.reason:
                self.cancel.set()


def _lines_of(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from read_lines(file)


def read_curve(folder: Path) -> list[Metrics]:
    """Return every validation of a training run; empty if its ``metrics.json`` is not whole."""
    try:
        values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        curve = [metrics_from_dict(one) for one in values["curve"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [m for m in curve if m is not None]


def needs_compiling(files: Mapping[str, str]) -> bool:
    """Whether code runs out of memory uncompiled: attention of a mask that is a function."""
    return any("flex_attention" in text for text in files.values())


def verdict(execution: Execution, report: Report, target: float) -> tuple[Outcome | None, str]:
    """Decide between valid, invalid and buggy, with the reason for the user.

    Returns:
        The outcome, None for a job that was cancelled or lost and may be run again.
    """
    if execution.ending in (Ending.CANCELLED, Ending.LOST):
        return None, execution.reason
    if execution.ending is not Ending.FINISHED:
        return Outcome.BUGGY, execution.reason or str(execution.ending)
    if report.last is None and not report.malformed:
        return Outcome.BUGGY, "no validation line in the log"
    reason = report.reason(target)
    return (Outcome.INVALID, reason) if reason else (Outcome.VALID, "")


def _as_json(
    execution: Execution, report: Report, watch: Listener, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "script_changes": list(notes),
        "ending": str(execution.ending),
        "exit_code": execution.exit_code,
        "wall_s": round(execution.wall_s, 3),
        "curve": [metrics_to_dict(m) for m in report.curve],
        "arrived_s": [round(at, 3) for at, _ in watch.arrivals],
        "malformed": list(report.malformed),
    }
