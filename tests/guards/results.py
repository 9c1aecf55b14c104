"""Results for the guards' tests, made without running anything."""

from __future__ import annotations

from pathlib import Path

from speedkit.core.components import Ending, Execution
from speedkit.core.guards import Code, Result
from speedkit.core.metrics import parse_log
from speedkit.core.task import Task, find_task

HONEST = [
    "step:9/36 val_loss:2.4000 train_time:250ms step_avg:27.78ms",
    "step:18/36 val_loss:2.1000 train_time:500ms step_avg:27.78ms",
    "step:27/36 val_loss:1.9000 train_time:750ms step_avg:27.78ms",
    "step:36/36 val_loss:1.7900 train_time:1000ms step_avg:27.78ms",
]
ARRIVALS = [6.0, 6.5, 7.0, 7.5]


def no_program(*args, **kwargs):
    raise AssertionError("no program is to be run")


def result(folder: Path, lines=HONEST, at=ARRIVALS, wall_s=9.0, task: Task | None = None, **fields):
    """Return a result with a log whose lines came at given seconds."""
    task = task or find_task("mini/6")
    files = task.start_files()
    report = parse_log(lines)
    defaults = {
        "code": Code(task, files, files, files),
        "report": report,
        "execution": Execution(Ending.FINISHED, 0, wall_s=wall_s),
        "log_dir": folder,
        "run": no_program,
        "arrivals": tuple(zip(at, report.curve, strict=False)),
    }
    return Result(**{**defaults, **fields})
