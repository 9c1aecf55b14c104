"""Measuring: the runs of a pair, the guards, and a run on shuffled tokens."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from speedkit.core.calibration import Calibration
from speedkit.core.components import Ending
from speedkit.core.errors import SpeedkitError, UsageError
from speedkit.core.evaluation import Recount
from speedkit.core.findings import Finding, Level, worst
from speedkit.core.inspection import Inspector
from speedkit.core.metrics import Metrics
from speedkit.core.trial import Listener, Trial, Trials
from speedkit.verifying.account import CANDIDATE, START, TARGET, Book, Measured, Pair, Untimed

SEED_BITS = 31
"""Seeds are as large as those of a search, so that a script cannot tell them apart."""
OnRun = Callable[[int, int, Measured], None]
OnLine = Callable[[str, "Metrics | None", str, float], None]


class Cancelled(Exception):
    """The verification was interrupted; nothing of the pair under way is kept."""


@dataclass(frozen=True)
class Bench:
    """Measures pairs of one node.

    Args:
        node: id of the node.
        trials: where scripts are run.
        inspector: asks the guards.
        files: what is run, text by file name, by script: start, candidate, and target where
            there is one.
        parent: files of the candidate's parent.
        calibration: times of the run, which guards may want to know.
        used: seeds that the search has used.
        on_run: told of each run: node, number of the pair, what was measured.
        on_line: told of each line of rank 0: job, metrics or None, text, seconds.
    """

    node: int
    trials: Trials
    inspector: Inspector
    files: Mapping[str, Mapping[str, str]]
    parent: Mapping[str, str]
    calibration: Calibration
    used: Collection[int]
    on_run: OnRun
    on_line: OnLine

    @property
    def cancel(self) -> threading.Event:
        """When set, the running job is ended."""
        return self.trials.cancel

    @cached_property
    def _apart(self) -> Mapping[str, Trials]:
        """Where each script is run: what one has compiled is not in another's reach."""
        cache = self.trials.cache
        return {which: replace(self.trials, cache=cache and cache / which) for which in self.files}

    def check_code(self) -> tuple[Finding, ...]:
        """Ask the guards about the candidate's code."""
        return self.inspector.code(self.parent, self.files[CANDIDATE])

    def end_left(self, book: Book) -> None:
        """End what a killed verification left running."""
        if book.account.handles:
            for handle in book.account.handles.values():
                self.trials.executor.reap(handle)
            book.record("jobs_ended")

    def measure_pair(self, book: Book) -> None:
        """Run every script once, in turn, and enter the pair.

        Every other pair is run in reverse order, so that a drift of the machine cancels. A
        pair whose candidate fails ends there.

        Raises:
            Cancelled: it was interrupted.
            SpeedkitError: the start or the target record does not run here.
        """
        number = len(book.account.pairs) + 1
        seed = fresh_seed(book.account.entropy, number, self.used)
        book.record("pair_begun", pair=number, seed=seed)
        runs: list[Measured] = []
        for which in order(number, target=book.account.plan.target):
            runs.append(self._measure(book, number, which, seed))
            self.on_run(self.node, number, runs[-1])
            if runs[-1].fault:
                break
        book.record("pair", pair=Pair(number, seed, tuple(runs)).to_dict())

    def _measure(self, book: Book, number: int, which: str, seed: int) -> Measured:
        name = f"verify-{self.node}-{book.attempt}-{number}-{which}"
        log_dir = book.folder / f"pair-{number:03d}" / which
        trials = self._apart[which]
        trial = trials.run(name, self.files[which], log_dir, seed, self._listener(book, name))
        self._check(trial, which)
        measured = _measured(which, trial)
        if which == CANDIDATE and not measured.fault:
            found = self.inspector.result(
                name,
                self.parent,
                self.files[which],
                trial,
                log_dir,
                self.calibration,
                None,
            )
            measured = replace(measured, findings=found)
        if worst(measured.findings) is None:
            _forget(trial)
        if self.cancel.is_set():
            raise Cancelled
        return measured

    def _listener(self, book: Book, name: str) -> Listener:
        def started(handle: Mapping[str, Any]) -> None:
            book.record("job_started", job=name, handle=dict(handle))

        return Listener(
            on_started=started,
            on_line=lambda metrics, text, at_s: self.on_line(name, metrics, text, at_s),
        )

    def _check(self, trial: Trial, which: str) -> None:
        """Refuse to go on after a run that tells nothing of the candidate."""
        if self.cancel.is_set():
            raise Cancelled
        if trial.outcome is None:
            raise SpeedkitError(
                f"a run of the {which} could not be made: {trial.reason}; what was measured is "
                "kept, and the same command goes on"
            )
        fault = _measured(which, trial).fault
        if fault and which != CANDIDATE:
            task = self.trials.task
            record = task.start if which == START else task.target
            raise SpeedkitError(
                f"record {record.index} of {task.family.name} did not run to its end, so that "
                f"there is nothing to compare with: {fault}"
            )

    def ablate(self, book: Book) -> None:
        """Run the candidate on shuffled training tokens, and enter what that tells."""
        from speedkit.plugins.guards.ablation import shuffle_data

        data = self.trials.data
        assert data is not None  # see check_ablation
        folder = (self.trials.work_dir / "shuffled").resolve()  # a link in a workspace leads there
        seed = fresh_seed(book.account.entropy, 0, self.used)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            shuffle_data(data, folder, seed)
            name = f"verify-{self.node}-{book.attempt}-ablation"
            trials = replace(self.trials, data=folder)
            trial = trials.run(
                name,
                self.files[CANDIDATE],
                book.folder / "ablation",
                seed,
                self._listener(book, name),
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _forget(trial)
        self._check(trial, CANDIDATE)
        finding = judge_ablation(trial, self.trials.task.rules.target)
        book.record("ablation", finding=finding.to_dict())

    def recount(self, book: Book) -> None:
        """Run the candidate below the family's counting program, and enter what that tells."""
        trials, data = self.trials, self.trials.data
        assert data is not None  # see counts_again
        assert trials.torch_version is not None
        made = trials.task.family.recount(
            trials.task, self.files[CANDIDATE], trials.torch_version, trials.rules.nproc, data
        )
        assert made is not None
        name = f"verify-{self.node}-{book.attempt}-recount"
        seed = fresh_seed(book.account.entropy, -1, self.used)
        trial = replace(trials, artifacts=made.artifacts).run(
            name, made.files, book.folder / "recount", seed, self._listener(book, name)
        )
        self._check(trial, CANDIDATE)
        found = judge_recount(trial, made)
        _forget(trial)
        book.record("recount", findings=[finding.to_dict() for finding in found])


def counts_again(trials: Trials) -> bool:
    """Whether the validations of a node can be counted from outside."""
    offered = trials.task.family.evaluation.recount is not None
    return offered and trials.data is not None and trials.torch_version is not None


def judge_recount(trial: Trial, made: Recount) -> tuple[Finding, ...]:
    """Say what a counted run tells; one that broke off tells nothing good."""
    fault = _measured(CANDIDATE, trial).fault
    if fault:
        reason = f"the run that counts validations did not come to its end: {fault}"
        return (Finding("recount", Level.QUARANTINE, reason),)
    try:
        paths = [trial.artifacts[name] for name in made.artifacts]
        return tuple(made.judge(paths, trial.report))
    except (KeyError, ValueError, OSError) as error:
        reason = f"what was counted cannot be read: {error}"
        return (Finding("recount", Level.QUARANTINE, reason),)


def check_ablation(data: Path | None) -> None:
    """See that the data have training tokens that can be shuffled.

    Raises:
        UsageError: they have none.
    """
    from speedkit.plugins.guards.ablation import TRAINING

    shards = data.rglob(f"*{TRAINING}*.bin") if data is not None else ()
    if not any(True for _ in shards):
        raise UsageError("the task has no training shards that could be shuffled: no --ablation")


def judge_ablation(trial: Trial, target: float) -> Finding:
    """Say what a run on shuffled tokens tells; one that broke off tells nothing good."""
    from speedkit.plugins.guards.ablation import judge

    finding = judge(trial.report, target)
    fault = _measured(CANDIDATE, trial).fault
    if finding.level is not Level.PASS or not fault:
        return finding
    reason = f"the run on shuffled tokens did not come to its end: {fault}"
    return replace(finding, level=Level.QUARANTINE, reason=reason)


def order(number: int, *, target: bool) -> tuple[str, ...]:
    """Return the order in which the scripts of a pair are run, given its number from 1."""
    scripts = (START, CANDIDATE, TARGET) if target else (START, CANDIDATE)
    return scripts if number % 2 else scripts[::-1]


def fresh_seed(entropy: int, number: int, used: Collection[int]) -> int:
    """Return the seed of a pair, none that the search has used."""
    rng = random.Random(f"{entropy}/{number}")
    while (seed := rng.getrandbits(SEED_BITS)) in used:
        pass
    return seed


def _measured(which: str, trial: Trial) -> Measured:
    """Return time and loss of a run; a loss over the target is for the test of the mean."""
    last, wall_s = trial.metrics, round(trial.execution.wall_s, 3)
    fault = trial.report.anomaly
    if trial.execution.ending is not Ending.FINISHED:
        fault = trial.reason or str(trial.execution.ending)
    if fault or last is None or last.train_time_ms is None:
        return Measured(which, fault=fault or "no validation line in the log", wall_s=wall_s)
    return Measured(
        which, float(last.train_time_ms), last.val_loss, wall_s=wall_s, untimed=untimed(trial)
    )


def untimed(trial: Trial) -> Untimed | None:
    """Return what a run's own clock did not count.

    None if its lines were not seen coming, or claim more than was seen: that is for guards.
    """
    uncounted = [at - (m.train_time_ms or 0) / 1000 for at, m in trial.arrivals]
    if min(uncounted, default=-1.0) < 0:
        return None
    first, last = uncounted[1 if len(uncounted) > 2 else 0], uncounted[-1]
    after = trial.execution.wall_s - trial.arrivals[-1][0]
    return Untimed(*(round(s, 4) for s in (first, last - first, after)))


def _forget(trial: Trial) -> None:
    """Free the disk of a checkpoint that nobody has to look at."""
    for path in trial.artifacts.values():
        path.unlink(missing_ok=True)
