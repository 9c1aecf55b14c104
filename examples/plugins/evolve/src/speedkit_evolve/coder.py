"""The coder ``evolve``: crossover of two nodes and mutation of numbers, without a model."""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator

from pydantic import Field

import speedkit
from speedkit import CodeRequest, Draft, Node, Tree
from speedkit_evolve.crossover import cross
from speedkit_evolve.mutation import mutate

TRIES = 20
"""Children that are drawn until one is new and is Python."""


class EvolveOptions(speedkit.Options):
    """Options of the coder."""

    spread: float = Field(
        0.3, gt=0, le=2, description="how far a mutation leads: deviation of the factor's logarithm"
    )


class EvolveCoder(speedkit.Coder):
    """Crosses the two parents that the scaffold asks for, or changes the numbers of the one.

    A child of two parents has the changes of both against their nearest common ancestor.
    """

    Options = EvolveOptions
    options: EvolveOptions

    def write(self, request: CodeRequest) -> Draft:
        """Return a child that differs from its parent, by the request's generator alone."""
        rng, script = request.rng, request.task.script
        for _ in range(TRIES):
            text, words = self._child(request, rng)
            if words and text != request.files[script] and is_python(text):
                return Draft({**request.files, script: text}, "; ".join(words))
        return Draft(dict(request.files), "", failure="edit: no child differs and is Python")

    def _child(self, request: CodeRequest, rng: random.Random) -> tuple[str, list[str]]:
        other = request.other
        script = request.task.script
        text, words = request.files[script], []
        if other is not None:
            base = request.read_files(common_ancestor(request.tree, request.parent, other).id)
            text = cross(base[script], text, request.read_files(other.id)[script], rng)
            words.append(f"Cross node {request.parent.id} with node {other.id}")
        if other is None or text == request.files[script]:
            text, changes = mutate(text, self.options.spread, rng)
            words += changes
        return text, words


def common_ancestor(tree: Tree, one: Node, other: Node) -> Node:
    """Return the nearest node that both descend from, which may be one of them."""
    above = {node.id for node in lineage(tree, one)}
    return next(node for node in lineage(tree, other) if node.id in above)


def lineage(tree: Tree, node: Node) -> Iterator[Node]:
    """Yield a node and those that it descends from, up to node 0."""
    yield node
    yield from tree.ancestors(node.id)


def is_python(text: str) -> bool:
    """Whether a text parses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return False
    return True
