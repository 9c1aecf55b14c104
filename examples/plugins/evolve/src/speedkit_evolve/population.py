"""Who is alive: the fittest valid nodes of a tree."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from speedkit import Node, Tree


def population(tree: Tree, size: int) -> list[Node]:
    """Return the fastest valid nodes, node 0 among them if it is one; equal code counts once."""
    valid = [node for node in tree if node.is_valid and node.same_as is None]
    return sorted(valid, key=fitness)[:size]


def fitness(node: Node) -> tuple[float, int]:
    """Return what sorts the fittest first: the time, then the age."""
    time = node.train_time_ms
    return (math.inf if time is None else time, node.id)


def tournament(nodes: Sequence[Node], rounds: int, rng: random.Random) -> Node:
    """Return the fittest of so many nodes drawn by chance."""
    return min((rng.choice(nodes) for _ in range(rounds)), key=fitness)
