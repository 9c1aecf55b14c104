"""The scaffold ``mcts``: UCT over the valid nodes, with progressive widening."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

import speedkit
from speedkit import Node, Proposal, Stage, Tree


class MctsOptions(speedkit.Options):
    """Options of the scaffold."""

    exploration: float = Field(
        0.7, ge=0, description="weight of what has been tried seldom; 0: only what is best"
    )
    optimism: float = Field(
        0.5, ge=0, le=1, description="share of the best node in the value of a subtree; rest: mean"
    )
    width: float = Field(2.0, ge=1, description="children of a node that has just been added")
    widening: float = Field(
        0.5, ge=0, le=1, description="a subtree of n nodes lets its root have width*n**widening"
    )


class MctsScaffold(speedkit.Scaffold):
    """Goes down from node 0 to a node that may have one more child, by upper confidence bounds.

    A node that is not valid is worth nothing and has no children, and counts as a try of all
    nodes above it. Everything follows from the tree; of equal nodes the oldest is taken.
    """

    Options = MctsOptions
    options: MctsOptions

    def propose(self, tree: Tree, rng: random.Random) -> Sequence[Proposal]:
        """Return the one child of the next step."""
        values = subtree_values(tree)
        node = tree.root
        while not self._may_widen(tree, node, values):
            valid = [child for child in tree.children(node.id) if child.is_valid]
            if not valid:
                break
            tries = values[node.id].tries
            node = max(valid, key=lambda n: (self._bound(values[n.id], tries), -n.id))
        return [Proposal(node.id, Stage.IMPROVE if node.id else Stage.DRAFT)]

    def _may_widen(self, tree: Tree, node: Node, values: dict[int, Value]) -> bool:
        most = self.options.width * math.pow(values[node.id].tries, self.options.widening)
        return len(tree.children(node.id)) < math.floor(most)

    def _bound(self, value: Value, tries: int) -> float:
        """Return the upper confidence bound of a child, given the tries of its parent."""
        share = self.options.optimism
        worth = share * value.best + (1 - share) * value.total / value.tries
        return worth + self.options.exploration * math.sqrt(math.log(tries) / value.tries)


@dataclass
class Value:
    """What a subtree has been worth so far.

    Attributes:
        tries: its nodes.
        total: sum of their rewards.
        best: the highest reward.
    """

    tries: int = 0
    total: float = 0.0
    best: float = 0.0

    def add(self, reward: float) -> None:
        """Count a node of the subtree."""
        self.tries += 1
        self.total += reward
        self.best = max(self.best, reward)


def subtree_values(tree: Tree) -> dict[int, Value]:
    """Return the value of every node's subtree, by the id of the node."""
    values = {node.id: Value() for node in tree}
    for node, reward in zip(tree, rewards(tree), strict=True):
        for above in (node, *tree.ancestors(node.id)):
            values[above.id].add(reward)
    return values


def rewards(tree: Tree) -> list[float]:
    """Return a reward from 0 to 1 for each node: the share of the best speedup, in logarithms."""
    start = tree.root.train_time_ms
    best = tree.best(root=True)
    fastest = best.train_time_ms if best else None
    if not start or not fastest or fastest >= start:
        return [0.0] * len(tree)
    whole = math.log(start / fastest)
    return [_speedup(node, start) / whole for node in tree]


def _speedup(node: Node, start: int) -> float:
    time = node.train_time_ms
    return max(0.0, math.log(start / time)) if node.is_valid and time else 0.0
