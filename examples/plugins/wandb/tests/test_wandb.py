"""What the observer tells Weights & Biases: a stand-in, and the real one offline if installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from speedkit_wandb import is_fact

HAS_WANDB = importlib.util.find_spec("wandb") is not None


class StandIn:
    """Keeps what it is told."""

    def __init__(self, **facts: Any) -> None:
        self.facts, self.rows, self.summary, self.ended = facts, [], {}, None

    def log(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        """Keep how it ended."""
        self.ended = exit_code


def test_what_it_is_told(monkeypatch: pytest.MonkeyPatch, tiny_run: Any) -> None:
    """The settings, a row for each node, and the end."""
    made: list[StandIn] = []
    module = types.ModuleType("wandb")
    module.init = lambda **facts: made.append(StandIn(**facts)) or made[0]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    warnings: list[str] = []
    parts = {"coder": "scripted", "scaffold": "flat", "nodes": 3}
    tree = tiny_run("speedkit_wandb", **parts, on_warning=warnings.append)
    assert warnings == []
    (run,) = made
    assert run.facts["name"] == tree.path.name
    assert run.facts["config"]["scaffold"] == "flat"
    outcomes = {row["node"]: row["outcome"] for row in run.rows}
    assert outcomes == {1: "valid", 2: "invalid", 3: "buggy"}
    assert run.rows[-1]["best_fsr"] == pytest.approx(tree.fsr())
    assert (run.summary, run.ended) == ({"status": "finished"}, 0)


def test_only_facts_are_told() -> None:
    """Neither what is missing nor what is no number."""
    values = (None, float("nan"), float("inf"), 0.0, 1, "", False)
    assert [is_fact(value) for value in values] == [False, False, False, True, True, True, True]


@pytest.mark.skipif(not HAS_WANDB, reason="wandb is not installed")
def test_a_run_offline(tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one writes a folder and asks nobody."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    warnings: list[str] = []
    tiny_run("speedkit_wandb", coder="scripted", nodes=2, on_warning=warnings.append)
    assert warnings == []
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
