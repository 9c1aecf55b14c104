"""What the observer tells MLflow: a stand-in, and the local stores where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import speedkit_mlflow
from speedkit_mlflow import flat

import speedkit
from speedkit.testing import tiny_plugins

HAS_MLFLOW = importlib.util.find_spec("mlflow") is not None


class StandIn:
    """Keeps what a client of MLflow is told; all instances share it."""

    calls: list[tuple[Any, ...]]
    tags: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> None:
            self.calls.append((name, *arguments, *more.values()))

        return call

    def get_experiment_by_name(self, name: str) -> Any:
        """Return an experiment."""
        return types.SimpleNamespace(experiment_id="1")

    def create_run(self, experiment: str, tags: dict[str, str]) -> Any:
        """Return a run."""
        self.tags.update(tags)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def search_runs(self, experiments: list[str], wanted: str, max_results: int) -> list[Any]:
        """Return the run if it was made."""
        if f"'{self.tags.get('speedkit.run_id')}'" not in wanted:
            return []
        return [types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """Put the stand-in in the place of MLflow."""
    StandIn.calls, StandIn.tags = [], {}
    module = types.ModuleType("mlflow")
    module.MlflowClient = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return StandIn


def test_what_mlflow_is_told(stand_in: type[StandIn], tiny_run: Any) -> None:
    """Parameters and tags first, then metrics of each node, then the end."""
    warnings: list[str] = []
    parts = {"coder": "scripted", "scaffold": "flat", "nodes": 3}
    tree = tiny_run("speedkit_mlflow", **parts, on_warning=warnings.append)
    assert warnings == []
    assert stand_in.tags["speedkit.task"] == "tiny/1"
    assert stand_in.tags["mlflow.runName"] == tree.path.name
    told = stand_in.calls
    assert ("log_param", "r1", "scaffold", "flat") in told
    assert ("set_tag", "r1", "speedkit.coder", "speedkit.testing.samples:scripted") in told
    assert ("log_metric", "r1", "train_time_s", 1.08, 1) in told
    assert ("log_metric", "r1", "valid", 0.0, 3) in told
    assert told[-1] == ("set_terminated", "r1", "FINISHED")


def test_the_module_does_not_import_mlflow() -> None:
    """Listing plugins must stay quick."""
    assert "mlflow" not in vars(speedkit_mlflow)


def test_nested_tables_are_laid_flat() -> None:
    """And what is not set is left out."""
    values = {"a": 1, "b": {"c": 2, "d": {}, "e": None}, "f": [], "g": False}
    assert dict(flat(values)) == {"a": 1, "b.c": 2, "g": False}


@pytest.mark.skipif(not HAS_MLFLOW, reason="MLflow is not installed")
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_a_run_and_its_continuation_in_a_local_store(
    store: str, tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One MLflow run, with the metrics of all nodes."""
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")
    addresses = {"file": tmp_path.joinpath("mlruns").as_uri(), "sqlite": f"sqlite:///{tmp_path}/db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", addresses[store])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    warnings: list[str] = []
    parts = {"coder": "scripted", "scaffold": "flat", "nodes": 2, "on_warning": warnings.append}
    tree = tiny_run("speedkit_mlflow", **parts)
    speedkit.run(
        resume=tree.path,
        nodes=4,
        plugins=tiny_plugins("speedkit_mlflow"),
        on_warning=warnings.append,
    )
    assert warnings == []
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=addresses[store])
    experiment = client.get_experiment_by_name("speedkit")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["nodes"] == "2"
    assert run.data.tags["speedkit.scaffold"] == "speedkit.plugins:flat"
    times = client.get_metric_history(run.info.run_id, "train_time_s")
    assert {m.step: m.value for m in times} == {1: 1.08, 2: 0.24, 4: 1.02}
