"""The built-in ladder, searched by the real executor with real torchrun and gloo."""

from __future__ import annotations

import subprocess

import pytest

import speedkit
from speedkit.core.metrics import parse_log, read_lines


@pytest.mark.slow
def test_a_search_of_the_ladder_end_to_end(tmp_path):
    events = []
    tree = speedkit.run(
        "mini/6",
        scaffold="tree",
        coder="oracle",
        nodes=1,
        calibration_runs=1,
        out=tmp_path / "run",
        on_event=events.append,
    )
    node = tree[1]
    # One run in ten may end just over the target; everything else must hold.
    assert str(node.outcome) in ("valid", "invalid"), node.reason
    assert node.metrics.step == node.metrics.steps
    assert node.metrics.val_loss == pytest.approx(1.8, abs=0.15)
    assert tree.calibration.source == "measured"
    assert tree.calibration.recovers
    log = tree.path / "nodes/0001/rank0.stdout.log"
    with log.open("rb") as file:
        assert parse_log(read_lines(file)).last == node.metrics
    assert (tree.path / "nodes/0001/rank1.stdout.log").exists()
    assert {"run_started", "calibrated", "step_planned", "job_started"} <= {
        e["type"] for e in events
    }
    shown = subprocess.run(
        ["git", "-C", str(tree.path / "repo"), "log", "--graph", "--all"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Stage: draft" in shown
    assert f"Train-time-ms: {node.train_time_ms}" in shown
