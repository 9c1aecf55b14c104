"""What is asked of scaffolds: purity above all, since resuming and replaying rest on it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from speedkit.core.components import Proposal
from speedkit.core.node import Outcome, Stage, Tree
from speedkit.testing.bench import OUTCOMES, SEED, Bench, WrongAnswerError, shown

STEPS = 12
"""Steps of a search that are tried."""
WIDTH = 4
"""Children of a step that are taken up; a scaffold may ask for more."""
MOST = 10_000
"""Children of one step; more are a mistake."""
COURSES: dict[str, Sequence[Outcome]] = {
    "mixed outcomes": OUTCOMES,
    "only valid nodes": (Outcome.VALID,),
    "only buggy nodes": (Outcome.BUGGY,),
    "only invalid nodes": (Outcome.INVALID, Outcome.QUARANTINED, Outcome.STOPPED),
    "only failed edits": (Outcome.EDIT_FAILED,),
    "dropped nodes": (Outcome.VALID, Outcome.DROPPED),
}
"""What may become of the nodes of a search, in turn."""


def purity(bench: Bench) -> Iterator[str]:
    """The same tree, options and generator give the same children, whatever came before."""
    for course, outcomes in COURSES.items():
        veteran = bench.make()
        for step, tree in _search(bench, outcomes):
            asked = _ask(veteran, tree, step)
            if _ask(veteran, tree, step) != asked:
                yield f"asked twice at step {step} of {course}, it answers differently"
                return
            if _ask(bench.make(), tree, step) != asked:
                yield f"at step {step} of {course}, a new instance answers differently"
                return


def answers(bench: Bench) -> Iterator[str]:
    """It asks for proposals whose parents are finished nodes of the tree."""
    if not _ask(bench.make(), Tree([bench.root()]), 1):
        yield "asks for no child of node 0, so that a search ends before it began"
    told = set()
    for course, outcomes in COURSES.items():
        for step, tree in _search(bench, outcomes):
            for fault in _faults(_ask(bench.make(), tree, step), tree):
                if fault not in told:
                    told.add(fault)
                    yield f"at step {step} of {course}, {fault}"


def tree_untouched(bench: Bench) -> Iterator[str]:
    """The tree is as it was."""
    for step, tree in _search(bench, OUTCOMES):
        before = _shape(tree)
        bench.make().propose(tree, _rng(step))
        if _shape(tree) != before:
            yield f"changes the tree that it is given at step {step}"
            return


def lookahead(bench: Bench) -> Iterator[str]:
    """With nodes that are not finished it asks for none of their children."""
    scaffold = bench.make()
    ahead = scaffold.lookahead
    if not isinstance(ahead, int) or ahead < 0:
        yield f"lookahead is {ahead!r}, not a number from 0"
    elif ahead:
        tree = bench.tree()
        for node_id in (6, 7):
            tree.update(node_id, outcome=Outcome.PENDING, metrics=None)
        yield from _faults(_ask(scaffold, tree, 8), tree)
    for node in bench.tree():
        verdict = scaffold.is_superseded(bench.tree(), node) if node.id else False
        if not isinstance(verdict, bool):
            yield f"is_superseded returns {verdict!r}, no truth value"


def _search(bench: Bench, outcomes: Sequence[Outcome]) -> Iterator[tuple[int, Tree]]:
    """Yield the tree before each step of a search whose nodes come out in the given way."""
    scaffold = bench.make()
    tree = Tree([bench.root()])
    for step in range(1, STEPS + 1):
        yield step, tree.snapshot()
        for proposal in _usable(_ask(scaffold, tree, step)[:WIDTH], tree):
            node_id = len(tree)
            node = bench.node(node_id, proposal, step, outcomes[(node_id - 1) % len(outcomes)])
            twin = node.id > 2 and node.id % 5 == 0
            tree.put(replace(node, same_as=node.id - 1) if twin else node)


def _ask(scaffold: Any, tree: Tree, step: int) -> tuple[Any, ...]:
    """Ask for a step, while the generator of the whole process is in no known state."""
    random.seed()
    answer = scaffold.propose(tree.snapshot(), _rng(step))
    if not isinstance(answer, Iterable):
        raise WrongAnswerError(f"propose() returned {shown(answer)}, no sequence of Proposals")
    return tuple(islice(answer, MOST + 1))


def _rng(step: int) -> random.Random:
    return random.Random(f"{SEED}/{step}")


def _usable(proposals: Sequence[Any], tree: Tree) -> list[Proposal]:
    return [p for p in proposals if isinstance(p, Proposal) and not list(_faults([p], tree))]


def _faults(proposals: Sequence[Any], tree: Tree) -> Iterator[str]:
    """Say what is wrong with the children of a step."""
    if len(proposals) > MOST:
        yield f"it asks for more than {MOST} children"
    for one in proposals[:WIDTH]:
        if not isinstance(one, Proposal):
            yield f"it asks for {shown(one)}, no Proposal"
        elif problem := _parent_fault(one.parent, tree):
            yield f"it asks for a child of {problem}"
        elif one.other is not None and (problem := _parent_fault(one.other, tree)):
            yield f"it asks for a second parent, {problem}"
        elif one.other == one.parent:
            yield f"it asks for a child of node {one.parent} whose second parent is the same"
        elif not isinstance(one.stage, Stage) or one.stage is Stage.ROOT:
            yield f"it asks for a node of stage {one.stage!r}; there are draft, improve and debug"


def _parent_fault(parent: Any, tree: Tree) -> str:
    """Say why nothing can be a child of a node; empty if something can."""
    if not isinstance(parent, int):
        return f"{shown(parent)}, which is no id of a node"
    if parent not in tree:
        return f"node {parent}, which is not in the tree"
    is_open = tree[parent].outcome is Outcome.PENDING
    return f"node {parent}, which is not finished" if is_open else ""


def _shape(tree: Tree) -> list[Any]:
    return [(node, [child.id for child in tree.children(node.id)]) for node in tree]


CHECKS = (purity, answers, tree_untouched, lookahead)
