"""Runs cheating scripts for real and asks every guard about them, each by itself."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedkit.core.calibration import Calibration
from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Guard
from speedkit.core.inspection import Inspector
from speedkit.core.node import Outcome
from speedkit.core.task import Task
from speedkit.core.trial import Trial, Trials
from speedkit.plugins.executors.torchrun import TorchrunExecutor
from speedkit.plugins.guards.clock import ClockGuard
from speedkit.plugins.guards.constraints import ConstraintsGuard
from speedkit.plugins.guards.data import DataGuard
from speedkit.plugins.guards.evaluation import EvaluationGuard
from speedkit.plugins.guards.log import LogGuard


@dataclass
class Verdict:
    """What became of a script.

    Attributes:
        findings: of every guard that was asked, by its name; notes that let a node pass are
            left out.
        trial: how it ran, None if it was not run.
    """

    findings: dict[str, list[Finding]] = field(default_factory=dict)
    trial: Trial | None = None

    @property
    def by_parser(self) -> str:
        """Why the log does not count, whatever guards say; empty if it does."""
        if self.trial is None or self.trial.outcome is Outcome.VALID:
            return ""
        return self.trial.reason

    def caught_by(self) -> list[str]:
        """Return the guards that hold the node back, and the parser."""
        names = [name for name, found in self.findings.items() if found]
        return [*names, "parser"] if self.by_parser else names


class Field:
    """A place to run scripts of a task: each gets fresh data, which it may spoil.

    Jobs are not isolated, so that what guards miss is seen.

    Args:
        folder: for workspaces, data and logs.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.start = task.start_files()
        source = task.data_folder()
        assert source is not None
        self.data_source = source
        self.evaluation = EvaluationGuard()

    def look(self, source: str) -> Verdict:
        """Return what the static guard says of a script."""
        inspector = Inspector([ConstraintsGuard()], self._trials(), self.start)
        found = inspector.code(self.start, {self.task.script: source})
        return Verdict({"constraints": _serious(found)})

    def run(self, name: str, source: str, seed: int = 0) -> Verdict:
        """Run a script, whatever the static guard says of it, and ask all guards."""
        verdict = self.look(source)
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(self.data_source, data)
        guards: list[Guard] = [LogGuard(), ClockGuard(), DataGuard(), self.evaluation]
        guards[2].remember(data)  # type: ignore[attr-defined]
        trials = self._trials()
        files, log_dir = {self.task.script: source}, self.folder / "logs" / name
        verdict.trial = trials.run(name, files, log_dir, seed)
        if verdict.trial.outcome is Outcome.VALID:
            for guard in guards:
                verdict.findings[guard.name] = self._ask(trials, guard, name, files, verdict.trial)
        return verdict

    def _ask(
        self, trials: Trials, guard: Guard, name: str, files: dict[str, str], trial: Trial
    ) -> list[Finding]:
        inspector = Inspector([guard], trials, self.start)
        log_dir = self.folder / "logs" / name
        known = self._calibration()
        return _serious(inspector.result(name, self.start, files, trial, log_dir, known, None))

    def _trials(self) -> Trials:
        return Trials(
            task=self.task,
            executor=TorchrunExecutor(_without_sandbox()),
            run_id="red-team",
            work_dir=self.folder / "work",
            data=self.folder / "data",
            cancel=threading.Event(),
            artifacts=self.task.family.artifacts,
        )

    def _calibration(self) -> Calibration:
        """Return the manifest's times: good enough for floors."""
        start, target = self.task.start.time_ms, self.task.target.time_ms
        assert start is not None
        assert target is not None
        return Calibration(self.task.name, "reference", (start,), (target,))


def _without_sandbox() -> Any:
    """Return options with which what a guard misses is not caught by isolation."""
    known = TorchrunExecutor.Options.model_fields
    return TorchrunExecutor.Options(**({"sandbox": "none"} if "sandbox" in known else {}))


def _serious(findings: tuple[Finding, ...]) -> list[Finding]:
    return [f for f in findings if f.level is not Level.PASS]
