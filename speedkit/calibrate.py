"""Time the two records of a task on this machine, outside a run."""

from __future__ import annotations

import statistics
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from speedkit.core import calibration as calibrations
from speedkit.core.assemble import make_component
from speedkit.core.calibration import Calibration, OnRun
from speedkit.core.components import Executor, Services
from speedkit.core.config import check_config
from speedkit.core.errors import UsageError
from speedkit.core.interrupt import signals_as_interrupt
from speedkit.core.plugins import Plugins
from speedkit.core.task import Task, find_task
from speedkit.core.trial import Trials


def calibrate(
    task: str,
    *,
    runs: int = 3,
    executor: str = "torchrun",
    options: Mapping[str, Any] | None = None,
    plugins: Plugins | None = None,
    on_run: OnRun = lambda which, k, trial: None,
) -> Calibration:
    """Measure the start and target record of a task, and keep the times for later runs.

    Args:
        task: ``FAMILY/ID`` or ``PATH/OF/FOLDER/ID``.
        runs: how often each record is run.
        executor: where the records are run.
        options: options of the executor.
        plugins: the plugins to use; by default those that are installed.
        on_run: told of each run: ``"start"`` or ``"target"``, its number from 1, the trial.

    Raises:
        SpeedkitError: a record does not run here.
        KeyboardInterrupt: after the running job was ended; nothing was kept.
    """
    found = find_task(task)
    settings = {"executor": dict(options)} if options else {}
    config = check_config({"task": task, "executor": executor, "options": settings})
    part: Executor = make_component(config, plugins or Plugins(), "executor", executor)
    if part.smoke_steps:
        raise UsageError("a smoke run times nothing; calibrate without smoke_steps")
    part.bind(Services(task=found, seed=0, llm=_no_llm))
    made = _measure(found, part, runs, on_run)
    calibrations.save(found, made)
    return made


def _measure(task: Task, executor: Executor, runs: int, on_run: OnRun) -> Calibration:
    """Measure in a thread, so that an interrupt ends the running job as a run would."""
    cancel = threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="speedkit-calibrate-") as name,
        ThreadPoolExecutor(1, thread_name_prefix="calibrate") as pool,
    ):
        folder = Path(name)
        data = task.data_folder()
        trials = Trials(task, executor, uuid.uuid4().hex, folder / "work", data, cancel)
        future = pool.submit(calibrations.measure, task, trials, folder / "logs", runs, on_run)
        try:
            with signals_as_interrupt():
                return future.result()
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
