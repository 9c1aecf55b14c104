"""Times of the start and target record on the machine at hand.

FSR divides by the difference of two times, so both must come from the same machine as the
candidate's. They are measured interleaved, so that a machine that drifts spoils neither,
and kept under a fingerprint of hardware, versions and scripts.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from speedkit.core.components import Ending
from speedkit.core.errors import SpeedkitError, UsageError
from speedkit.core.files import write_json
from speedkit.core.metrics import Metrics, fsr, metrics_from_dict, metrics_to_dict
from speedkit.core.paths import cache_dir
from speedkit.core.task import Task
from speedkit.core.trial import Listener, Trial, Trials

SCHEMA = 1
CURVES = ("start_curve", "target_curve")
"""Fields of a calibration that hold validations."""
OnRun = Callable[[str, int, Trial], None]


@dataclass(frozen=True)
class Calibration:
    """Times of the two records of a task, in milliseconds.

    Attributes:
        source: ``measured``; ``reference`` when both come from the family's manifest;
            ``scaled`` when the target's is the manifest's ratio times the measured start.
        start_runs: train_time of each run of the start record.
        target_runs: the same of the target record.
        start_losses: final validation loss of each run of the start record.
        target_losses: the same of the target record.
        fingerprint: what the timings depend on.
        start_curve: the validations of one run of the start record, that of a middle time;
            empty where none was run.
        target_curve: the same of the target record.
    """

    task: str
    source: Literal["measured", "reference", "scaled"]
    start_runs: tuple[float, ...]
    target_runs: tuple[float, ...]
    start_losses: tuple[float, ...] = ()
    target_losses: tuple[float, ...] = ()
    fingerprint: Mapping[str, Any] | None = None
    start_curve: tuple[Metrics, ...] = ()
    target_curve: tuple[Metrics, ...] = ()

    @property
    def start_ms(self) -> float:
        """Median time of the start record."""
        return statistics.median(self.start_runs)

    @property
    def target_ms(self) -> float:
        """Median time of the target record."""
        return statistics.median(self.target_runs)

    @property
    def recovers(self) -> bool:
        """Whether there is a speedup to recover: the target record is the faster one."""
        return self.target_ms < self.start_ms

    def fsr(self, time_ms: float | None) -> float | None:
        """Fraction of the speedup recovered; None where it is not defined."""
        if time_ms is None or not self.recovers:
            return None
        return fsr(self.start_ms, self.target_ms, time_ms)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        curves = {name: [metrics_to_dict(m) for m in values[name]] for name in CURVES}
        return {**values, **curves, "start_ms": self.start_ms, "target_ms": self.target_ms}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Undo :meth:`to_dict`."""
        return cls(
            task=values["task"],
            source=values["source"],
            start_runs=tuple(values["start_runs"]),
            target_runs=tuple(values["target_runs"]),
            start_losses=tuple(values["start_losses"]),
            target_losses=tuple(values["target_losses"]),
            fingerprint=values["fingerprint"],
            start_curve=_curve(values.get("start_curve", ())),
            target_curve=_curve(values.get("target_curve", ())),
        )


def _curve(values: Iterable[dict[str, Any]]) -> tuple[Metrics, ...]:
    return tuple(m for m in map(metrics_from_dict, values) if m is not None)


def _middle(trials: Sequence[Trial]) -> tuple[Metrics, ...]:
    """Return the curve of the run with the middle time."""
    ranked = sorted(trials, key=lambda t: (t.metrics and t.metrics.train_time_ms) or 0)
    return ranked[len(ranked) // 2].report.curve if ranked else ()


def from_reference(task: Task) -> Calibration:
    """Take both times from the family's manifest.

    Raises:
        UsageError: the manifest does not have them, or they are of another clock.
    """
    if problem := task.reference_problem():
        raise UsageError(f"{task.name}: {problem}")
    times = {r.index: r.time_ms for r in (task.start, task.target)}
    start, target = times[task.start.index], times[task.target.index]
    if start is None or target is None:
        missing = [i for i, t in times.items() if t is None]
        raise UsageError(
            f"{task.name}: no reference time of record {missing[0]}; use calibration = auto"
        )
    return Calibration(task.name, "reference", (start,), (target,))


def measure(
    task: Task,
    trials: Trials,
    folder: Path,
    runs: int,
    on_run: OnRun,
    listen: Callable[[str], Listener] = lambda job: Listener(),
) -> Calibration:
    """Measure both records ``runs`` times, interleaved (start, target, start and so on).

    A target record without a script has its time scaled from the manifest.

    Args:
        folder: where the logs of the runs go.
        on_run: told of each run: ``"start"`` or ``"target"``, its number from 1, the trial.
        listen: makes the listener of a job, given its name.

    Raises:
        SpeedkitError: a record does not run here.
    """
    scripts = {"start": task.start_files()}
    if task.target.path is not None:
        scripts["target"] = {task.script: task.target.read()}
    ratio = 1.0 if "target" in scripts else _reference_ratio(task)
    times: dict[str, list[float]] = {name: [] for name in scripts}
    losses: dict[str, list[float]] = {name: [] for name in scripts}
    done: dict[str, list[Trial]] = {name: [] for name in scripts}
    for k in range(1, runs + 1):
        for which, files in scripts.items():
            name = f"calibrate-{which}-{k}"
            trial = trials.run(name, files, folder / name, k, listen(name))
            on_run(which, k, trial)
            time_ms, loss = _measured(task, which, trial)
            times[which].append(time_ms)
            losses[which].append(loss)
            done[which].append(trial)
    fingerprint = dict(trials.fingerprint)
    if "target" in scripts:
        return Calibration(
            task.name,
            "measured",
            tuple(times["start"]),
            tuple(times["target"]),
            tuple(losses["start"]),
            tuple(losses["target"]),
            fingerprint,
            _middle(done["start"]),
            _middle(done["target"]),
        )
    scaled = (statistics.median(times["start"]) * ratio,)
    start_losses = tuple(losses["start"])
    return Calibration(
        task.name,
        "scaled",
        tuple(times["start"]),
        scaled,
        start_losses,
        (),
        fingerprint,
        _middle(done["start"]),
    )


def _measured(task: Task, which: str, trial: Trial) -> tuple[float, float]:
    """Return time and loss; a loss somewhat over the target does not spoil the time."""
    last = trial.metrics
    whole = trial.execution.ending is Ending.FINISHED and not trial.report.anomaly
    if not whole or last is None or last.train_time_ms is None:
        record = task.start if which == "start" else task.target
        raise SpeedkitError(
            f"calibration of {task.name} failed: record {record.index} did not run to its end "
            f"on this machine: {trial.reason or 'cancelled'}"
        )
    return float(last.train_time_ms), last.val_loss


def _known_times(task: Task) -> tuple[float | None, float | None]:
    return task.start.time_ms, task.target.time_ms


def _reference_ratio(task: Task) -> float:
    if None in _known_times(task):
        raise UsageError(
            f"{task.name}: record {task.target.index} has no script, so its time is that of record "
            f"{task.start.index} times the ratio of their time_ms; give both a time_ms"
        )
    reference = from_reference(task)
    return reference.target_ms / reference.start_ms


# --- the store --------------------------------------------------------------------------


def store_key(task: Task, fingerprint: Mapping[str, Any]) -> str:
    """Return the key under which a calibration is kept: everything that timings depend on."""
    parts = {
        "schema": SCHEMA,
        "fingerprint": dict(fingerprint),
        "run": task.run.model_dump(mode="json"),
        "start": task.start_files()[task.script],
        "target": task.target.read() if task.target.path else _known_times(task),
        "target_loss": task.rules.target,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def store_path(task: Task, fingerprint: Mapping[str, Any]) -> Path:
    """Return the file in which the calibration of a task on this machine is kept."""
    name = f"{task.family.name}-{task.id}-{store_key(task, fingerprint)}.json"
    return cache_dir() / "calibration" / name


def load(task: Task, fingerprint: Mapping[str, Any]) -> Calibration | None:
    """Return the stored calibration, None if there is none that can be read."""
    try:
        values = json.loads(store_path(task, fingerprint).read_text(encoding="utf-8"))
        return Calibration.from_dict(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(task: Task, calibration: Calibration) -> Path:
    """Keep a calibration for later runs on this machine; return the file."""
    path = store_path(task, calibration.fingerprint or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, calibration.to_dict())
    return path
