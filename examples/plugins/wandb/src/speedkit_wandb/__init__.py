"""Shows runs of speedkit in Weights & Biases: a run for each, a row for each node."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import speedkit

if TYPE_CHECKING:
    import wandb

_open: dict[str, wandb.Run] = {}
"""The runs that this process writes to, by the id of the run directory."""


@speedkit.hookimpl
def run_started(run: speedkit.Run) -> None:
    """Open the run of a new run directory, or that of one which goes on."""
    import wandb

    _open[run.directory.run_id] = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "speedkit"),
        id=run.directory.run_id,
        name=run.directory.path.name,
        group=run.task.name,
        config=run.directory.manifest["config"],
        resume="allow",
        reinit="create_new",
    )


@speedkit.hookimpl
def node_finished(run: speedkit.Run, node: speedkit.Node) -> None:
    """Log what a node came to; nodes may finish in any order, so its id is a column."""
    if (opened := _open.get(run.directory.run_id)) is not None:
        opened.log(row(run, node))


@speedkit.hookimpl
def run_finished(run: speedkit.Run, status: str) -> None:
    """Close the run."""
    if (opened := _open.pop(run.directory.run_id, None)) is not None:
        opened.summary["status"] = status
        opened.finish(exit_code=1 if status == "failed" else 0)


def row(run: speedkit.Run, node: speedkit.Node) -> dict[str, Any]:
    """Return the facts of a node, and the best FSR so far; only finite numbers."""
    values = {
        "node": node.id,
        "outcome": str(node.outcome),
        "val_loss": node.metrics.val_loss if node.metrics else None,
        "train_time_s": None if node.train_time_ms is None else node.train_time_ms / 1000,
        "fsr": run.node_fsr(node),
        "best_fsr": run.node_fsr(run.best),
    }
    return {key: value for key, value in values.items() if is_fact(value)}


def is_fact(value: object) -> bool:
    """Whether there is a value, and no nan or infinity."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
