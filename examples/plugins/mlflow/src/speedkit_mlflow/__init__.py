"""Shows runs of speedkit in MLflow: a run for each, its nodes as steps of the metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import speedkit

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
"""Environment variable with the name of the experiment; by default ``speedkit``."""
TAG = "speedkit.run_id"
"""Tag by which the run of a run directory is found again."""
ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "interrupted": "KILLED"}
"""What MLflow calls the ways in which a run ends; others are failures."""
MAX_VALUE = 500
"""Characters of a parameter."""


@speedkit.hookimpl
def run_started(run: speedkit.Run) -> None:
    """Open the MLflow run of a new run, or that of one which goes on."""
    client = _client()
    if (known := _find(client, run)) is not None:
        client.set_terminated(known, status="RUNNING")
        return
    tags = {TAG: run.directory.run_id, "mlflow.runName": run.directory.path.name}
    made = client.create_run(_experiment(client), tags={**tags, "speedkit.task": run.task.name})
    for key, value in flat(run.directory.manifest["config"]):
        client.log_param(made.info.run_id, key, str(value)[:MAX_VALUE])
    for kind, part in run.directory.manifest["components"].items():
        if isinstance(part, Mapping) and "name" in part:
            client.set_tag(made.info.run_id, f"speedkit.{kind}", f"{part['plugin']}:{part['name']}")


@speedkit.hookimpl
def node_finished(run: speedkit.Run, node: speedkit.Node) -> None:
    """Log what a node came to, at the step of its id."""
    client = _client()
    if (known := _find(client, run)) is not None:
        for key, value in measures(run, node).items():
            client.log_metric(known, key, value, step=node.id)


@speedkit.hookimpl
def run_finished(run: speedkit.Run, status: str) -> None:
    """Close the MLflow run."""
    client = _client()
    if (known := _find(client, run)) is not None:
        client.set_terminated(known, status=ENDINGS.get(status, "FAILED"))


def measures(run: speedkit.Run, node: speedkit.Node) -> dict[str, float]:
    """Return the numbers of a node, and those of the run so far; only finite ones."""
    best = run.best
    values = {
        "valid": float(node.is_valid),
        "val_loss": node.metrics.val_loss if node.metrics else None,
        "train_time_s": None if node.train_time_ms is None else node.train_time_ms / 1000,
        "fsr": run.node_fsr(node),
        "best_fsr": run.node_fsr(best),
        "wall_s": node.wall_s,
    }
    return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested tables with dotted names; empty ones are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        elif value not in (None, [], ""):
            yield before + key, value


def _client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient()


def _experiment(client: MlflowClient) -> str:
    name = os.environ.get(EXPERIMENT, "speedkit")
    known = client.get_experiment_by_name(name)
    return str(known.experiment_id if known else client.create_experiment(name))


def _find(client: MlflowClient, run: speedkit.Run) -> str | None:
    """Return the id of the MLflow run of a run directory."""
    wanted = f"tags.`{TAG}` = '{run.directory.run_id}'"
    found = client.search_runs([_experiment(client)], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None
