"""The scaffold ``evolve``: generations of children of the fittest."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import Field

import speedkit
from speedkit import Node, Proposal, Stage, Tree
from speedkit_evolve.population import population, tournament


class EvolveOptions(speedkit.Options):
    """Options of the scaffold."""

    founders: int = Field(4, ge=1, description="children of node 0 in the first generation")
    offspring: int = Field(4, ge=1, description="children in each later generation")
    size: int = Field(6, ge=1, description="nodes that are alive: the fastest valid ones")
    rounds: int = Field(
        2, ge=1, description="nodes drawn for each parent, of which the fastest is taken"
    )
    crossover: float = Field(0.5, ge=0, le=1, description="chance that a child has two parents")


class EvolveScaffold(speedkit.Scaffold):
    """Draws the parents of each child by tournament among the fittest of all generations."""

    Options = EvolveOptions
    options: EvolveOptions

    def propose(self, tree: Tree, rng: random.Random) -> Sequence[Proposal]:
        """Return the next generation."""
        if len(tree) == 1:
            return [Proposal(0, Stage.DRAFT)] * self.options.founders
        alive = population(tree, self.options.size)
        return [self._child(alive, rng) for _ in range(self.options.offspring)]

    def _child(self, alive: Sequence[Node], rng: random.Random) -> Proposal:
        parent = tournament(alive, self.options.rounds, rng)
        others = [node for node in alive if node.id not in (0, parent.id)]
        is_crossed = rng.random() < self.options.crossover and bool(others)
        other = tournament(others, self.options.rounds, rng).id if is_crossed else None
        return Proposal(parent.id, Stage.IMPROVE if parent.id else Stage.DRAFT, other)
