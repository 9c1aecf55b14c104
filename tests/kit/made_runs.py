"""Run directories made up event by event, so that every outcome and any text can be in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedkit.core.calibration import Calibration
from speedkit.core.history import GitHistory, RunDirectory
from speedkit.core.journal import Journal
from speedkit.core.node import Node, Stage

TOY = Path(__file__).resolve().parent.parent / "families" / "toy"
START = Calibration("toy/1", "measured", (10000.0, 10100.0), (6000.0, 6100.0))


@dataclass(frozen=True)
class Made:
    """A node of a made-up run; times in milliseconds."""

    parent: int = 0
    outcome: str = "valid"
    time_ms: int | None = 8000
    loss: float = 0.9
    stage: str = "improve"
    hypothesis: str = "try something"
    reason: str = ""
    summary: str = "It ran."
    code: str = "print('changed')\n"
    stdout: str = "step:100/100 val_loss:0.9000 train_time:8000ms\n"
    stderr: str = ""
    findings: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, str] = field(default_factory=dict)


def make_run(
    path: Path,
    nodes: Sequence[Made],
    *,
    status: str | None = "finished",
    calls: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    calibration: Calibration | None = START,
) -> Path:
    """Write a run directory and return its path; ``status=None`` leaves the run open."""
    directory = RunDirectory.create(path, manifest(config or {}))
    history = GitHistory(path / "repo")
    events: list[dict[str, Any]] = [{"type": "run_started", "task": "toy/1"}]
    if calibration is not None:
        events.append({"type": "calibrated", "calibration": calibration.to_dict()})
        events += root(history)
    for call in calls:
        events.append({"type": "model_called", "call": dict(call)})
    commits = {0: next((e["commit"] for e in events if e.get("id") == 0), "")}
    for node_id, made in enumerate(nodes, start=1):
        commits[node_id] = commit(history, node_id, made, commits[made.parent])
        events += node_events(node_id, made, commits[node_id])
        write_logs(directory.node_dir(node_id), made)
    if status is not None:
        events.append({"type": "run_finished", "status": status})
    history.close()
    journal = Journal(directory.journal_path)
    for k, event in enumerate(events):
        journal.append({"at": 1000.0 + k, **event})
    journal.close()
    return path


def manifest(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``run.toml`` holds."""
    part = {"plugin": "builtin", "distribution": "speedkit", "version": "0.1.0"}
    kinds = {"scaffold": "aide", "coder": "llm", "executor": "torchrun", "summarizer": "rules"}
    return {
        "run_id": "0123456789abcdef",
        "created": "2026-01-02T03:04:05+0000",
        "speedkit": "0.1.0",
        "python": "3.11.0",
        "platform": "Linux",
        "config": {"task": f"{TOY}/1", "seed": 0, "scaffold": "aide", **config},
        "components": {k: {"name": n, **part, "options": {"a": 1}} for k, n in kinds.items()},
        "scripts": {"start": "aa", "target": "bb"},
        "hardware": {"cpu": "a processor", "cores": 2, "torch": "2.13.0"},
    }


def root(history: GitHistory) -> list[dict[str, Any]]:
    """Return the events of node 0."""
    node = Node(0, None, Stage.ROOT, 0, hypothesis="Record 1: slow")
    sha = history.commit(node, {"solve.py": "print('start')\n"}, None)
    made = Made(time_ms=10050, stage="root", hypothesis=node.hypothesis, summary="The start.")
    created, finished = node_events(0, made, sha)
    return [{**created, "parent": None, "step": 0, "coder": ""}, {**finished, "wall_s": None}]


def commit(history: GitHistory, node_id: int, made: Made, parent: str) -> str:
    """Commit the code of a node."""
    node = Node(node_id, made.parent, Stage(made.stage), node_id, hypothesis=made.hypothesis)
    return history.commit(node, {"solve.py": made.code}, parent)


def node_events(node_id: int, made: Made, sha: str) -> list[dict[str, Any]]:
    """Return what the journal says of a node; pending ones have no end."""
    created = {
        "type": "node_created",
        "id": node_id,
        "parent": made.parent,
        "stage": made.stage,
        "step": node_id,
        "commit": sha,
        "hypothesis": made.hypothesis,
        "coder": "llm",
        "model": "a-model",
        "notes": {},
    }
    if made.outcome == "pending":
        return [created]
    metrics = None
    if made.time_ms is not None:
        loss = made.loss if made.loss == made.loss else "nan"
        metrics = {"step": 100, "steps": 100, "val_loss": loss, "train_time_ms": made.time_ms}
    finished = {
        "type": "node_finished",
        "id": node_id,
        "outcome": made.outcome,
        "reason": made.reason,
        "metrics": metrics,
        "summary": made.summary,
        "wall_s": 12.5,
        "findings": [dict(f) for f in made.findings],
    }
    return [created, finished]


def write_logs(folder: Path, made: Made) -> None:
    """Write what a job leaves behind."""
    folder.mkdir(parents=True)
    (folder / "rank0.stdout.log").write_text(made.stdout, "utf-8", "surrogateescape")
    (folder / "rank0.stderr.log").write_text(made.stderr, "utf-8", "surrogateescape")
    values = {"ending": "finished", "script_changes": [], "curve": curve(made)}
    (folder / "metrics.json").write_text(json.dumps(values))
    for name, text in made.files.items():
        (folder / name).write_text(text)


def curve(made: Made) -> list[dict[str, Any]]:
    """Return validations that fall to the loss of a node."""
    if made.time_ms is None or made.loss != made.loss:
        return []
    return [
        {
            "step": 10 * k,
            "steps": 100,
            "val_loss": made.loss + 3 * (1 - k / 10) ** 2,
            "train_time_ms": made.time_ms * k // 10,
        }
        for k in range(11)
    ]
