"""Time the human records of a family anew on this machine.

The records are run in turn, so that a machine that drifts spoils none more than the others.
The file is replaced after every run; a later call goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speedkit.core.assemble import make_component
from speedkit.core.components import Ending, Executor, Services
from speedkit.core.config import check_config
from speedkit.core.errors import FamilyError, UsageError
from speedkit.core.files import write_json
from speedkit.core.interrupt import signals_as_interrupt
from speedkit.core.plugins import Plugins
from speedkit.core.task import Family, Record, Task, Transition, find_family
from speedkit.core.trial import Trial, Trials

OnRun = Callable[[int, int, "Trial"], None]
"""Told of each run: index of the record, number of the run from 1, the trial."""


@dataclass(frozen=True)
class RecordTiming:
    """Times of one record.

    Attributes:
        runs_ms: train_time of each run here, in milliseconds.
        losses: final validation loss of each.
        reported_ms: the time of the record's own announcement, or else of the manifest; None
            where neither is known.
        sha256: of the script; empty without one.
        problem: why it was not run, or not as often as asked; empty if it was.
    """

    index: int
    title: str
    reported_ms: float | None
    sha256: str = ""
    runs_ms: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    problem: str = ""

    @property
    def median_ms(self) -> float | None:
        """Median of the runs; None without any."""
        return statistics.median(self.runs_ms) if self.runs_ms else None

    @property
    def ratio(self) -> float | None:
        """Measured over reported time; None where either is unknown."""
        if self.median_ms is None or self.reported_ms is None:
            return None
        return self.median_ms / self.reported_ms

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**vars(self), "runs_ms": list(self.runs_ms), "losses": list(self.losses)}


@dataclass(frozen=True)
class Timing:
    """Times of the records of a family on one machine.

    Attributes:
        hardware: what timings depend on, as the executor says it.
        target_loss: validation loss that a record is to reach.
    """

    family: str
    hardware: Mapping[str, Any]
    target_loss: float
    records: tuple[RecordTiming, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        records = [record.to_dict() for record in self.records]
        return {**vars(self), "hardware": dict(self.hardware), "records": records}


def retime(
    family: str,
    records: Sequence[int] | None = None,
    *,
    repeats: int = 3,
    out: str | Path | None = None,
    executor: str = "torchrun",
    options: Mapping[str, Any] | None = None,
    plugins: Plugins | None = None,
    on_run: OnRun = lambda index, k, trial: None,
) -> Timing:
    """Run each record until it has so many runs, in turn, and keep the times in a file.

    A record that cannot be run here, or that fails, is passed over with the reason.

    Args:
        family: built-in name or folder.
        records: indexes; all of them by default.
        repeats: runs of each record, those of earlier calls included.
        out: file of the times; by default ``FAMILY-times.json`` in the current folder.
        executor: where the records are run.
        options: options of the executor.
        plugins: the plugins to use; by default those that are installed.

    Raises:
        SpeedkitError: the file is of another family or machine, or nothing can be run at all.
        KeyboardInterrupt: after the running job was ended; what was measured is kept.
    """
    found = find_family(family)
    chosen = [found.record(i) for i in records] if records else list(found.records)
    settings = {"executor": dict(options)} if options else {}
    config = check_config({"executor": executor, "options": settings})
    part: Executor = make_component(config, plugins or Plugins(), "executor", executor)
    if part.smoke_steps:
        raise UsageError("a smoke run times nothing; leave smoke_steps out")
    path = Path(out) if out is not None else Path(f"{found.name}-times.json")
    clock = _Clock(found, chosen, part, path, repeats, on_run)
    return clock.go()


class _Clock:
    """One controller at work on the times of a family."""

    def __init__(
        self,
        family: Family,
        records: Sequence[Record],
        executor: Executor,
        path: Path,
        repeats: int,
        on_run: OnRun,
    ) -> None:
        self.family, self.executor, self.path = family, executor, path
        self.records = {record.index: record for record in records}
        self.repeats, self.on_run = repeats, on_run
        self.cancel = threading.Event()
        hardware = json.loads(json.dumps(dict(executor.fingerprint()), default=str))
        nproc = {} if executor.nproc is None else {"nproc": executor.nproc}
        self.hardware = {**hardware, **nproc}
        kept = _read(path, family.name, self.hardware)
        self.times = {i: _begin(r, kept.get(i), path) for i, r in self.records.items()}
        self.others = {i: t for i, t in kept.items() if i not in self.times}

    def go(self) -> Timing:
        """Run what is missing, in a thread, so that an interrupt ends the running job."""
        self._keep()
        with ThreadPoolExecutor(1, thread_name_prefix="timing") as pool:
            future = pool.submit(self._run_all)
            try:
                with signals_as_interrupt():
                    future.result()
            except KeyboardInterrupt:
                self.cancel.set()
                raise
        return self._timing()

    def _run_all(self) -> None:
        trials = {index: self._trials(record) for index, record in self.records.items()}
        with tempfile.TemporaryDirectory(prefix=".speedkit-time-", dir=self._place()) as name:
            for k in range(1, self.repeats + 1):
                for index, made in trials.items():
                    timed = self.times[index]
                    if made is not None and len(timed.runs_ms) < k and not timed.problem:
                        self._run_one(index, k, made, Path(name))
                    if self.cancel.is_set():
                        return

    def _place(self) -> Path | None:
        """Where jobs have their files: beside the times, where they run on other machines."""
        return None if self.executor.is_local else self.path.parent.absolute()

    def _trials(self, record: Record) -> Trials | None:
        """Return what runs a record; None, and the reason noted, where that cannot be."""
        if len(self.times[record.index].runs_ms) >= self.repeats:
            return None
        task = _task(self.family, record)
        problem = _objection(task, self.executor)
        if problem:
            self._note(record.index, problem=problem)
            return None
        self.executor.bind(Services(task=task, seed=0, llm=_no_llm))
        return Trials(
            task, self.executor, uuid.uuid4().hex, Path(), task.data_folder(), self.cancel
        )

    def _run_one(self, index: int, k: int, trials: Trials, folder: Path) -> None:
        name = f"record-{index}-{k}"
        made = replace(trials, work_dir=folder / "work")
        files = made.task.start_files()
        trial = made.run(name, files, folder / name, k)
        if trial.outcome is None and self.cancel.is_set():
            return
        self.on_run(index, k, trial)
        last = trial.metrics
        whole = trial.execution.ending is Ending.FINISHED and not trial.report.anomaly
        if not whole or last is None or last.train_time_ms is None:
            self._note(index, problem=f"it did not run to its end: {trial.reason}")
            return
        timed = self.times[index]
        runs = (*timed.runs_ms, float(last.train_time_ms))
        self._note(index, runs_ms=runs, losses=(*timed.losses, last.val_loss))

    def _note(self, index: int, **facts: Any) -> None:
        self.times[index] = replace(self.times[index], **facts)
        self._keep()

    def _keep(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self._timing().to_dict())

    def _timing(self) -> Timing:
        known = {**self.others, **self.times}
        target = self.family.rules.target
        records = tuple(known[i] for i in sorted(known))
        return Timing(self.family.name, self.hardware, target, records)


def _task(family: Family, record: Record) -> Task:
    """Return a record as a task that leads nowhere, so that its script is run by its own rules."""
    transition = Transition(id=record.index, start=record.index, target=record.index)
    return Task(family=family, transition=transition)


def _objection(task: Task, executor: Executor) -> str:
    """Return why a record cannot be run, a line; empty if nothing speaks against it."""
    record = task.start
    if record.path is None:
        return "it has no script"
    if not record.has_script():
        return f"its script is not at hand{task.family.scripts_hint}"
    try:
        task.run_with(executor.nproc)
    except UsageError as error:
        return str(error)
    if executor.is_local and executor.interpreter is not None:
        from speedkit.doctor import examine_task

        found = examine_task(task, python=executor.interpreter, nproc=executor.nproc)
        missing = [f for f in found if f.needed and not f.ok]
        if missing:
            return "; ".join(f"{f.name.removeprefix('task ')}: {f.found}" for f in missing)
    try:
        task.data_folder()
    except FamilyError as error:
        return str(error)
    return ""


def _begin(record: Record, kept: RecordTiming | None, path: Path) -> RecordTiming:
    """Return the times of a record so far; what it could not do before is tried again."""
    digest = hashlib.sha256(record.read().encode()).hexdigest() if record.has_script() else ""
    reported = record.known_time_s * 1000 if record.known_time_s else record.time_ms
    if kept is None:
        return RecordTiming(record.index, record.title, reported, digest)
    if kept.runs_ms and kept.sha256 != digest:
        raise UsageError(
            f"record {record.index} is not the one that {path} has times of; choose another --out"
        )
    return replace(kept, sha256=digest, reported_ms=reported, problem="")


def _read(path: Path, family: str, hardware: Mapping[str, Any]) -> dict[int, RecordTiming]:
    """Return the times that a file holds, by record; none where it is not there.

    Raises:
        UsageError: it cannot be read, or is of another family or machine.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; choose another --out") from None
    try:
        timing = _from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"{path} holds no times of records; choose another --out") from None
    if timing.family != family:
        raise UsageError(f"{path} has times of {timing.family}; choose another --out")
    if dict(timing.hardware) != dict(hardware):
        differ = [
            k for k in {**timing.hardware, **hardware} if timing.hardware.get(k) != hardware.get(k)
        ]
        raise UsageError(
            f"{path} was measured elsewhere or otherwise ({', '.join(differ)} differ); "
            "choose another --out"
        )
    return {record.index: record for record in timing.records}


def _from_dict(values: Mapping[str, Any]) -> Timing:
    records = [
        RecordTiming(**{**one, "runs_ms": tuple(one["runs_ms"]), "losses": tuple(one["losses"])})
        for one in values["records"]
    ]
    return Timing(
        str(values["family"]), dict(values["hardware"]), values["target_loss"], tuple(records)
    )


def _no_llm() -> Any:
    raise UsageError("an executor that asks a language model cannot time records")
