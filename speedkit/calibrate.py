"""Time the two records of a task on this machine, outside a run."""

from __future__ import annotations

import statistics
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from speedkit.core import calibration as calibrations
from speedkit.core.assemble import make_component, task_of
from speedkit.core.calibration import Calibration, OnRun
from speedkit.core.components import Executor, Services
from speedkit.core.config import check_config
from speedkit.core.errors import UsageError
from speedkit.core.interrupt import signals_as_interrupt
from speedkit.core.paths import cache_dir
from speedkit.core.plugins import Plugins
from speedkit.core.task import Task
from speedkit.core.trial import Trials


def calibrate(
    task: str,
    *,
    runs: int = 3,
    executor: str = "torchrun",
    options: Mapping[str, Any] | None = None,
    start: str | None = None,
    target_loss: float | None = None,
    plugins: Plugins | None = None,
    on_run: OnRun = lambda which, k, trial: None,
) -> Calibration:
    """Measure the start and target record of a task, and keep the times for later runs.

    Args:
        task: ``FAMILY/ID`` or ``PATH/OF/FOLDER/ID``.
        runs: how often each record is run.
        executor: where the records are run.
        options: options of the executor.
        start: file with the script that runs start from, if it is not the start record's.
        target_loss: the gate of the runs that are to use the times, if it is not the family's.
        plugins: the plugins to use; by default those that are installed.
        on_run: told of each run: ``"start"`` or ``"target"``, its number from 1, the trial.

    Raises:
        SpeedkitError: a record does not run here.
        KeyboardInterrupt: after the running job was ended; nothing was kept.
    """
    settings = {"executor": dict(options)} if options else {}
    values = {"task": task, "executor": executor, "start": start, "target_loss": target_loss}
    config = check_config({**values, "options": settings})
    found = task_of(config)
    part: Executor = make_component(config, plugins or Plugins(), "executor", executor)
    if part.smoke_steps:
        raise UsageError("a smoke run times nothing; calibrate without smoke_steps")
    part.bind(Services(task=found, seed=0, llm=_no_llm))
    place = None if part.is_local else cache_dir()  # which other machines can see
    if place:
        place.mkdir(parents=True, exist_ok=True)
    made = _measure(found, part, runs, on_run, place)
    calibrations.save(found, made)
    return made


def _measure(
    task: Task, executor: Executor, runs: int, on_run: OnRun, place: Path | None
) -> Calibration:
    """Measure in a thread, so that an interrupt ends the running job as a run would.

    Args:
        place: below which jobs have their files; None for the folder for temporary ones.
    """
    cancel = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="speedkit-calibrate-", dir=place) as name,
        ThreadPoolExecutor(1, thread_name_prefix="calibrate") as pool,
    ):
        folder = Path(name)
        data = task.data_folder()
        trials = Trials(task, executor, uuid.uuid4().hex, folder / "work", data, cancel)
        measure = partial(calibrations.measure, task, trials, folder / "logs", runs, on_run)
        try:
            with signals_as_interrupt():
                return pool.submit(measure).result()
        except KeyboardInterrupt:
            cancel.set()
            raise


def _no_llm() -> Any:
    raise UsageError("an executor that asks a language model cannot calibrate")


def spread(runs: Sequence[float]) -> float | None:
    """Standard deviation of times, in their unit; None for fewer than two."""
    return statistics.stdev(runs) if len(runs) > 1 else None


def fsr_noise(calibration: Calibration, sd_ms: float | None) -> float | None:
    """What a standard deviation of a time, in milliseconds, is in FSR.

    None where the deviation is unknown or there is no speedup to recover.
    """
    if sd_ms is None or not calibration.recovers:
        return None
    return sd_ms / (calibration.start_ms - calibration.target_ms)
