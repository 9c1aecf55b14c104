"""``speedkit show``: a run, or everything about one of its nodes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import json_option, print_table
from speedkit.cli.text import clean, echo, find_node, one_line, print_json, seconds

if TYPE_CHECKING:
    from speedkit.core.metrics import Metrics
    from speedkit.core.node import Node
    from speedkit.core.run import Run


@click.command("show")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("node", required=False)
@json_option
def command(run: Path, node: str | None, as_json: bool) -> None:
    """Show the run directory RUN, or one NODE of it (a number, or `best`).

    With --json, val_loss is null where it is not a finite number; FSR is never clipped.
    """
    from speedkit.api import RunTree, open_state

    state = open_state(run)
    if node is not None:
        _show_node(state, find_node(state, node), as_json)
    elif as_json:
        print_json(describe_run(state))
    else:
        from speedkit.cli.display import print_result

        print_result(RunTree(state))


# --- a run ----------------------------------------------------------------------------------


def describe_run(run: Run) -> dict[str, Any]:
    """Return the facts of a run as JSON values."""
    return {
        "task": run.task.name,
        "status": run.status,
        "best": run.best.id if run.best else None,
        "fsr": run.fsr,
        "lanes": run.lanes,
        "calibration": run.calibration.to_dict() if run.calibration else None,
        "nodes": [describe_node(run, node) for node in run.tree],
    }


def describe_node(run: Run, node: Node) -> dict[str, Any]:
    """Return the facts of a node as JSON values."""
    return {
        "id": node.id,
        "parent": node.parent,
        "stage": str(node.stage),
        "outcome": str(node.outcome),
        "reason": node.reason,
        "val_loss": finite(node.metrics.val_loss) if node.metrics else None,
        "train_time_ms": node.train_time_ms,
        "fsr": run.node_fsr(node),
        "commit": node.commit,
        "findings": [finding.to_dict() for finding in node.findings],
        "same_as": node.same_as,
    }


def finite(value: float) -> float | None:
    """Return a number, None for one that JSON does not have."""
    return value if math.isfinite(value) else None


# --- a node ---------------------------------------------------------------------------------


def describe_whole_node(run: Run, node: Node) -> dict[str, Any]:
    """Return everything that is known of a node as JSON values."""
    from speedkit.core.trial import read_curve

    folders = _log_folders(run, node)
    return {
        **describe_node(run, node),
        "is_best": run.best is not None and run.best.id == node.id,
        "step": node.step,
        "children": [child.id for child in run.tree.children(node.id)],
        "coder": node.coder or None,
        "model": node.model,
        "wall_s": node.wall_s,
        "staleness": node.staleness,
        "hypothesis": node.hypothesis,
        "summary": node.summary,
        "notes": dict(node.notes),
        "metrics": [_describe_metrics(m) for m in read_curve(folders[0])] if folders else [],
        "logs": [str(p) for f in folders for p in sorted(f.rglob("*")) if p.is_file()],
    }


def _log_folders(run: Run, node: Node) -> list[Path]:
    """Return where the logs of a node stand; those of node 0 are its calibration's."""
    path = run.directory.path
    folders = [run.directory.node_dir(node.id)]
    if node.id == 0:
        folders += sorted((path / "calibration").glob("calibrate-start-*"))
    return [f for f in folders if f.is_dir()]


def _describe_metrics(one: Metrics) -> dict[str, Any]:
    return {
        "step": one.step,
        "steps": one.steps,
        "val_loss": finite(one.val_loss),
        "train_time_ms": one.train_time_ms,
    }


def _show_node(run: Run, node: Node, as_json: bool) -> None:
    facts = describe_whole_node(run, node)
    if as_json:
        print_json(facts)
        return
    for key, value in _lines(facts):
        echo(f"{key:<12} {clean(value)}")
    for title in ("hypothesis", "summary"):
        if facts[title].strip():
            echo(f"\n{title}\n{_indented(facts[title])}")
    if facts["findings"]:
        echo("\nguards")
        for one in facts["findings"]:
            echo(f"  {one['level']:<11} {one['guard']}: {one_line(one['reason'], 1000)}")
    if held := _HELD.get(facts["outcome"]):
        echo(f"\n{held}")
    if facts["metrics"]:
        echo()
        print_table([_metrics_row(m) for m in facts["metrics"]], ("step", "val_loss", "time"))
    if facts["logs"]:
        echo("\nlogs")
        for path in facts["logs"]:
            echo(f"  {clean(path)}")


_HELD = {
    "quarantined": "Its numbers are kept, but it is neither the best node nor does it have an FSR: "
    "look at the diff and the findings. If it is honest, run again without that guard "
    "(--guards), or let it be lenient (-o guard.NAME.strictness=lenient).",
    "stopped": "It was ended early and has no score: it could not have recovered anything. "
    "To let such jobs run to their end: -o stop.mode=off.",
    "dropped": "It was drafted ahead and not run; its code is in the history.",
}
"""What else a reader of a node should know, by outcome."""


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    best = " (the best)" if facts["is_best"] else ""
    reason = f": {facts['reason']}" if facts["reason"] else ""
    fsr = facts["fsr"]
    values = {
        "node": f"{facts['id']}{best}",
        "parent": facts["parent"],
        "children": ", ".join(map(str, facts["children"])),
        "stage": f"{facts['stage']}, step {facts['step']}",
        "outcome": f"{facts['outcome']}{reason}",
        "val_loss": facts["val_loss"],
        "time": seconds(facts["train_time_ms"]),
        "FSR": None if fsr is None else f"{fsr:+.4f}",
        "wall time": None if facts["wall_s"] is None else f"{facts['wall_s']:.1f} s",
        "same as": None if facts["same_as"] is None else f"node {facts['same_as']}, not run again",
        "coder": facts["coder"],
        "model": facts["model"],
        "commit": facts["commit"],
    }
    return [(k, "–" if v in (None, "") else str(v)) for k, v in values.items()]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in clean(text).strip().splitlines())


def _metrics_row(one: dict[str, Any]) -> list[Any]:
    step = one["step"] if one["steps"] is None else f"{one['step']}/{one['steps']}"
    loss = None if one["val_loss"] is None else f"{one['val_loss']:.4f}"
    return [step, loss, seconds(one["train_time_ms"])]
