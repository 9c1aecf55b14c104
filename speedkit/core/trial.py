"""One training run of a task's script: workspace, job, metrics, verdict."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from speedkit.core.compile_cache import cache_variables
from speedkit.core.components import Ending, Execution, Executor, Job
from speedkit.core.files import write_json
from speedkit.core.metrics import (
    Metrics,
    Report,
    is_malformed,
    metrics_to_dict,
    parse_line,
    parse_log,
    read_lines,
)
from speedkit.core.node import Outcome
from speedkit.core.task import RunRules, Task

SEED_VARIABLE = "SPEEDKIT_SEED"
"""Environment variable from which a training script may take its seed."""
MAX_ATTEMPTS = 3
"""How often a job is tried when the machinery fails, not the script."""
MAX_LINES = 200_000
"""Metrics lines kept of one run; a longer log is no training log."""

Started = Callable[[Mapping[str, Any]], None]
Progress = Callable[[Metrics | None, str, float], None]


@dataclass(frozen=True)
class Trial:
    """What one training run came to.

    Attributes:
        outcome: valid, invalid or buggy; None when the run was cancelled.
        reason: why it is not valid.
    """

    execution: Execution
    report: Report
    outcome: Outcome | None
    reason: str

    @property
    def metrics(self) -> Metrics | None:
        """The last validation."""
        return self.report.last


@dataclass
class Listener:
    """Collects the metrics lines of a job and passes them on.

    Attributes:
        on_started: receives the handle of the running job.
        on_line: receives each line of rank 0 with its metrics, if it has any, and the
            seconds since the job was spawned.
    """

    on_started: Started = lambda handle: None
    on_line: Progress = lambda metrics, text, at_s: None
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
        self.on_line(metrics, text, at_s)


@dataclass(frozen=True)
class Trials:
    """Runs scripts of one task on one executor.

    Args:
        work_dir: folder below which each job gets a workspace of its own for its time.
        data: what the workspace shows as ``data/``, None for nothing.
        cancel: when set, running jobs are ended.
        cache: folder in which jobs share what torch compiles, None for none.
    """

    task: Task
    executor: Executor
    run_id: str
    work_dir: Path
    data: Path | None
    cancel: threading.Event
    cache: Path | None = None

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
    ) -> Trial:
        """Run a script to its end, and again if the machinery failed.

        Args:
            name: unique name of the job within the run.
            files: text by file name.
            log_dir: where captured output and ``metrics.json`` go.
            seed: offered to the script as ``SPEEDKIT_SEED``.
        """
        log_dir.mkdir(parents=True, exist_ok=True)
        files, notes = self._fit(files)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            watch = Listener() if listener is None else listener
            watch.lines.clear()
            watch.arrivals.clear()
            execution = self._attempt(name, files, log_dir, seed, watch)
            if execution.ending is not Ending.LOST or self.cancel.is_set():
                break
            if attempt < MAX_ATTEMPTS:
                time.sleep(0.5 * attempt)
        report = self._report(execution, watch)
        write_json(log_dir / "metrics.json", _as_json(execution, report, watch, notes), sync=False)
        outcome, reason = verdict(execution, report, self.task.rules.target)
        if self.executor.smoke_steps and outcome in (Outcome.VALID, Outcome.INVALID):
            outcome = Outcome.INVALID
            reason = f"smoke run of {self.executor.smoke_steps} steps, which never counts"
        return Trial(execution, report, outcome, reason)

    def _fit(self, files: Mapping[str, str]) -> tuple[Mapping[str, str], tuple[str, ...]]:
        """Return the files as this machine's torch runs them, and a note for each change."""
        source = files[self.task.script]
        notes: tuple[str, ...] = ()
        if self.torch_version is not None:
            source, notes = self.task.family.adapt(source, self.torch_version)
        if steps := self.executor.smoke_steps:
            source, more = self.task.family.smoke(source, steps, self.rules.nproc)
            notes += more
        return {**files, self.task.script: source}, notes

    def _attempt(
        self, name: str, files: Mapping[str, str], log_dir: Path, seed: int, watch: Listener
    ) -> Execution:
        workspace = self.work_dir / name
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True)
        try:
            self._fill(workspace, files)
            job = self._job(name, workspace, log_dir, seed, files[self.task.script])
            return self.executor.execute(job, watch)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)

    def _fill(self, workspace: Path, files: Mapping[str, str]) -> None:
        for file, text in files.items():
            (workspace / file).write_text(text, encoding="utf-8", newline="")
        (workspace / "logs").mkdir()
        if self.data is not None:
            (workspace / "data").symlink_to(self.data, target_is_directory=True)

    def _job(self, name: str, workspace: Path, log_dir: Path, seed: int, text: str) -> Job:
        source = self.task.rules.source
        cache = cache_variables(self.cache, text) if self.cache else {}
        return Job(
            name=name,
            run_id=self.run_id,
            workspace=workspace.absolute(),
            log_dir=log_dir.absolute(),
            script=self.task.script,
            args=self.rules.args,
            launcher=self.rules.launcher,
            nproc=self.rules.nproc,
            env={**self.rules.env, **cache, SEED_VARIABLE: str(seed)},
            timeout_s=self.rules.timeout_s,
            stall_s=self.rules.stall_s,
            collect=() if source == "stdout" else (source,),
            cancel=self.cancel,
        )

    def _report(self, execution: Execution, watch: Listener) -> Report:
        if self.task.rules.source == "stdout":
            return parse_log(watch.lines)
        return parse_log(line for path in execution.collected for line in _lines_of(path))


def _lines_of(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from read_lines(file)


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
