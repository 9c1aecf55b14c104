"""``speedkit log``: the search tree of a run as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import json_option
from speedkit.cli.text import echo, one_line, paint, print_json, seconds

if TYPE_CHECKING:
    from speedkit.core.node import Node, Tree
    from speedkit.core.run import Run


@click.command("log")
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def command(run: Path, as_json: bool) -> None:
    """Print the search tree of the run directory RUN, each node below its parent.

    A line has the node, its stage, outcome, training time, FSR and hypothesis; the best
    node has a star.
    """
    from speedkit.api import open_state

    state = open_state(run)
    if as_json:
        print_json([describe(state, node, depth) for node, depth, _ in walk(state.tree)])
        return
    for node, _, branch in walk(state.tree):
        echo(f"{branch}{_line(state, node)}")


def walk(tree: Tree) -> Iterator[tuple[Node, int, str]]:
    """Yield every node with its depth and the branches drawn before it, parents first."""
    if not len(tree):
        return
    stack = [(tree.root, 0, "", "")]
    while stack:
        node, depth, branch, below = stack.pop()
        yield node, depth, branch
        children = tree.children(node.id)
        for child in reversed(children):
            last = child is children[-1]
            arm, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
            stack.append((child, depth + 1, below + arm, below + rest))


def describe(run: Run, node: Node, depth: int) -> dict[str, Any]:
    """Return a node of the tree as JSON values."""
    from speedkit.cli.show import describe_node

    return {
        **describe_node(run, node),
        "depth": depth,
        "is_best": run.best is not None and run.best.id == node.id,
        "hypothesis": node.hypothesis,
    }


def _line(run: Run, node: Node) -> str:
    from speedkit.cli.display import COLORS

    outcome = str(node.outcome)
    fsr = run.node_fsr(node) if node.id else None
    facts = [
        f"{node.id} {node.stage}",
        paint(outcome, COLORS.get(outcome)),
        seconds(node.train_time_ms),
        None if fsr is None else f"FSR {fsr:+.3f}",
    ]
    star = "★ " if run.best is not None and run.best.id == node.id else ""
    shown = "  ".join(fact for fact in facts if fact)
    return f"{star}{shown}  {one_line(node.hypothesis)}".rstrip()
