"""Results with known numbers, and run directories made of events."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import tomli_w

from speedkit.core.journal import Journal

HERE = Path(__file__).resolve().parent
TOY = HERE.parent / "families" / "toy"
CALIBRATION = {
    "task": "toy/1",
    "source": "measured",
    "start_runs": [10000.0],
    "start_losses": [0.7],
    "target_losses": [0.8],
    "fingerprint": {},
}


@pytest.fixture
def known():
    """The CSV file of a result set whose aggregates and intervals are known."""
    return HERE / "known_results.csv"


@pytest.fixture
def known_file(known, tmp_path):
    """The same, imported."""
    from speedkit.analysis import import_results

    return import_results(known, tmp_path / "known.results.json").path


@pytest.fixture
def made(tmp_path):
    """Return a function that writes a run directory out of nodes and further events.

    A node is a mapping with ``outcome`` and what else differs from a node that took 8 s.
    """

    def make(
        name="made", nodes=(), *, status="finished", calibrated=True, target_ms=6000.0, **given
    ):
        path = tmp_path / name
        path.mkdir(parents=True)
        manifest = _manifest(given.pop("config", {}), given.pop("components", {}))
        manifest["run_id"] = given.pop("run_id", uuid.uuid4().hex)
        (path / "run.toml").write_text(tomli_w.dumps(manifest))
        events = [{"type": "run_started"}]
        if calibrated:
            calibration = {**CALIBRATION, "target_runs": [target_ms]}
            events += [{"type": "calibrated", "calibration": calibration}, *_node(0, {})]
        events += given.pop("events", ())
        for node_id, node in enumerate(nodes, start=1):
            events += _node(node_id, node)
        if status is not None:
            events.append({"type": "run_finished", "status": status})
        journal = Journal(path / "events.jsonl")
        for k, event in enumerate(events):
            journal.append({"at": 1000.0 + k, **event})
        journal.close()
        assert not given
        return path

    return make


def _manifest(config, components):
    part = {"plugin": "builtin", "distribution": "speedkit", "version": "0", "options": {}}
    return {
        "schema": 1,
        "created": "2026-01-02T03:04:05+0000",
        "speedkit": "0.1.0",
        "config": {"task": f"{TOY}/1", "seed": 3, "scaffold": "aide", "hints": [], **config},
        "components": {
            "scaffold": {"name": "aide", **part},
            "coder": {"name": "tuner", **part},
            "knowledge": [],
            **components,
        },
        "scripts": {},
    }


def _node(node_id, node):
    facts = {"outcome": "valid", "reason": "", "loss": 0.9, "time": 8000, "model": None, **node}
    created = {
        "type": "node_created",
        "id": node_id,
        "parent": None if node_id == 0 else 0,
        "stage": "draft" if node_id else "root",
        "step": min(node_id, 1),
        "commit": "",
        "hypothesis": "",
        "coder": "tuner",
        "model": facts["model"],
        "notes": {},
    }
    if facts["outcome"] == "pending":
        return [created]
    metrics = None
    if facts["time"] is not None:
        metrics = {
            "step": 9,
            "steps": 9,
            "val_loss": facts["loss"],
            "train_time_ms": facts["time"],
        }
    finished = {
        "type": "node_finished",
        "id": node_id,
        "outcome": facts["outcome"],
        "reason": facts["reason"],
        "metrics": metrics,
        "summary": "",
        "wall_s": 2.5 if node_id else None,
        "same_as": facts.get("same_as"),
    }
    return [created, finished]
