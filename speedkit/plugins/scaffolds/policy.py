"""The one search policy, of which the five scaffolds are settings."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from speedkit.core.components import Options, Proposal, Scaffold
from speedkit.core.node import Node, Stage, Tree, speed_key

UNBOUNDED = 1000
"""Children asked for where the budget alone is to decide; the search loop cuts them off."""

# Annotated, so that a scaffold which sets another default keeps limits and description.
Drafts = Annotated[
    int | None,
    Field(ge=1, description="initial children of node 0; null: as many as the budget allows"),
]
Children = Annotated[
    int, Field(ge=0, description="children of an improve step; 0 ends the search after step 1")
]
DebugProb = Annotated[
    float,
    Field(ge=0, le=1, allow_inf_nan=False, description="chance that a step debugs a buggy leaf"),
]
MaxDebugDepth = Annotated[
    int, Field(ge=0, description="longest row of debug nodes; a leaf that ends one is given up")
]
Selection = Annotated[
    Literal["global", "last_step", "published"],
    Field(
        description="whose best is improved: that of all nodes (global); of the last step, else "
        "node 0 (last_step); of the last step, the node it expanded and node 0 (published)"
    ),
]
Trees = Annotated[
    Literal["per_root", "shared"],
    Field(
        description="per_root: every child of node 0 keeps its own tree, and the trees take turns; "
        "shared: all nodes are one tree"
    ),
]
Lookahead = Annotated[
    int,
    Field(
        ge=0,
        le=16,
        description="steps planned from the tree as it is while jobs of earlier ones run; 0: a "
        "step begins when the one before it is complete, as in published comparisons",
    ),
]
DropSuperseded = Annotated[
    bool,
    Field(
        description="do not run an improvement drafted ahead when a better node than its parent "
        "has been found meanwhile; it is kept in the history and costs no node"
    ),
]


class PolicyOptions(Options):
    """The settings that tell the scaffolds apart."""

    drafts: Drafts = 3
    children: Children = 3
    debug_prob: DebugProb = 0.0
    max_debug_depth: MaxDebugDepth = 5
    selection: Selection = "global"
    trees: Trees = "shared"
    lookahead: Lookahead = 0
    drop_superseded: DropSuperseded = False


class PolicyScaffold(Scaffold):
    """Draft, then at every step either debug a buggy leaf or improve the best valid node.

    Step 1 asks for ``drafts`` children of node 0. A later step draws from the generator
    in this order: one ``random()``, always; one ``choice`` among the buggy leaves within
    the depth limit, oldest first, if the draw was under ``debug_prob`` and there are any.
    It then asks for one child of that leaf, stage debug. Otherwise it asks for
    ``children`` children of the best valid node.

    Node 0 is always valid and takes part; where it is the best, its children are drafts.

    ``selection=global`` looks at all nodes. ``published`` looks at node 0, the node that
    the last step expanded and that step's nodes, as the published code does: a debug
    step makes it forget the best node. ``last_step`` looks at the last step's nodes only
    and falls back to node 0 where none of them is valid: it also forgets a parent that
    is better than all its children.

    ``trees=per_root`` gives every child of node 0 a tree of its own, node 0 excluded.
    The trees take turns, in the order of their roots, at the improve steps; debug and
    draft steps take no turn. A tree without a node to improve is passed over; if there
    is none in any tree, node 0 is drafted from again. ``selection`` applies within each
    tree, to that tree's own last step.
    """

    Options = PolicyOptions
    options: PolicyOptions

    @property
    def lookahead(self) -> int:
        """How many steps may be planned while nodes of earlier ones are unfinished."""
        return self.options.lookahead

    def is_superseded(self, tree: Tree, node: Node) -> bool:
        """Whether the node's parent would not be chosen any more, where that matters."""
        if not self.options.drop_superseded or node.stage is not Stage.IMPROVE:
            return False
        rivals = list(tree)
        if self.options.trees == "per_root":
            branch = tree.branch(node.id)
            rivals = [n for n in tree if n.id != 0 and tree.branch(n.id) == branch]
        best = min((n for n in rivals if n.is_valid), key=speed_key, default=None)
        assert node.parent is not None
        return best is not None and speed_key(best) < speed_key(tree[node.parent])

    def propose(self, tree: Tree, rng: random.Random) -> Sequence[Proposal]:
        """Return the children of the next step.

        Where ``children`` is 0 there are only drafts: so many, or as the budget allows.
        """
        if len(tree) == 1:
            return _children(tree.root, self.options.drafts or UNBOUNDED)
        if self.options.children == 0:
            return [] if self.options.drafts else _children(tree.root, UNBOUNDED)
        if rng.random() < self.options.debug_prob and (leaves := self._debuggable(tree)):
            return [Proposal(rng.choice(leaves).id, Stage.DEBUG)]
        return _children(self._choose(tree), self.options.children)

    def _debuggable(self, tree: Tree) -> list[Node]:
        limit = self.options.max_debug_depth
        leaves = (n for n in tree if n.is_buggy and n.id != 0 and tree.is_leaf(n.id))
        return [n for n in leaves if tree.debug_depth(n.id) < limit]

    def _choose(self, tree: Tree) -> Node:
        if self.options.trees == "shared":
            return self._best(tree, list(tree)) or tree.root
        bests = (self._best(tree, nodes) for nodes in _in_turn(tree))
        return next((node for node in bests if node is not None), tree.root)

    def _best(self, tree: Tree, nodes: Sequence[Node]) -> Node | None:
        pool = (n for n in self._candidates(tree, nodes) if n.is_valid or n.id == 0)
        return min(pool, key=speed_key, default=None)

    def _candidates(self, tree: Tree, nodes: Sequence[Node]) -> Iterable[Node]:
        if self.options.selection == "global":
            return nodes
        step = max(n.step for n in nodes)
        last = [n for n in nodes if n.step == step]
        if self.options.selection == "last_step":
            return last
        known = {n.id for n in last} | {n.parent for n in last} | {0}
        return [n for n in nodes if n.id in known]


def _children(parent: Node, count: int) -> list[Proposal]:
    stage = Stage.DRAFT if parent.id == 0 else Stage.IMPROVE
    return [Proposal(parent.id, stage)] * count


def _in_turn(tree: Tree) -> list[list[Node]]:
    """Return the nodes of each child of node 0, that tree first whose turn it is."""
    trees: dict[int, list[Node]] = {}
    root_of: dict[int, int] = {}  # in one pass, since parents come before their children
    turn = None
    for node in tree:
        if node.parent is None:
            continue
        root = root_of[node.id] = root_of.get(node.parent, node.id)
        trees.setdefault(root, []).append(node)
        if node.stage is Stage.IMPROVE:
            turn = root
    start = 0 if turn is None else list(trees).index(turn) + 1
    groups = list(trees.values())
    return groups[start:] + groups[:start]
