"""``speedkit diff``: what changed between two nodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from speedkit.cli.text import echo_diff, find_node
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    from speedkit.core.node import Node
    from speedkit.core.run import Run


@click.command("diff")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("node")
@click.argument("other", required=False)
@click.option("--stat", is_flag=True, help="Print how many lines of which file changed.")
def command(run: Path, node: str, other: str | None, stat: bool) -> None:
    """Print what NODE of the run directory RUN changed in its parent's code.

    With OTHER, print what leads from NODE to OTHER. A node is a number, or `best`.
    Control characters are left out; `git -C RUN/repo diff` has the bytes.
    """
    from speedkit.api import open_state

    state = open_state(run)
    one = find_node(state, node)
    old, new = (one, find_node(state, other)) if other else (_parent(state, one), one)
    text = diff_nodes(state, old, new, stat=stat)
    if not text.strip():
        click.echo(f"nodes {old.id} and {new.id} have the same code", err=True)
        return
    echo_diff(text.splitlines() if stat else text.split("\n"))


def _parent(run: Run, node: Node) -> Node:
    if node.parent is None:
        raise UsageError(
            f"node {node.id} is the start record and has no parent; to see what a node "
            f"changed in it: speedkit diff {run.directory.path} {node.id} NODE"
        )
    return run.tree[node.parent]


def diff_nodes(run: Run, old: Node, new: Node, *, stat: bool = False) -> str:
    """Return the unified diff from one node's code to another's, or its statistics."""
    from speedkit.core.history import GitHistory

    history = GitHistory(run.directory.path / "repo")
    try:
        return history.diff(old.commit, new.commit, stat=stat)
    finally:
        history.close()
