"""Nodes, and the tree that a search grows out of them."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from speedkit.core.findings import Finding
from speedkit.core.metrics import Metrics


class Outcome(str, Enum):
    """What became of a node."""

    PENDING = "pending"
    """Not run yet."""
    VALID = "valid"
    """Finished, metrics parsed, validation loss at or under the target, no objection."""
    QUARANTINED = "quarantined"
    """Would be valid, but a guard wants someone to look at it; keeps its numbers."""
    INVALID = "invalid"
    """Ran, but may not count; ``Node.reason`` says why."""
    BUGGY = "buggy"
    """Crashed, was ended at a limit, or printed no metrics."""
    STOPPED = "stopped"
    """Ended early, because it could not have won any more; ``Node.reason`` says why."""
    EDIT_FAILED = "edit_failed"
    """The coder came back without a usable edit; nothing was run."""
    DROPPED = "dropped"
    """Drafted ahead and never run, since its parent was superseded meanwhile."""

    def __str__(self) -> str:
        return self.value


class Stage(str, Enum):
    """Why a node was asked for (the vocabulary of AIDE)."""

    ROOT = "root"
    DRAFT = "draft"
    IMPROVE = "improve"
    DEBUG = "debug"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Node:
    """One candidate solution.

    Attributes:
        id: 0 for the start record, then in order of creation.
        parent: id of the parent node, None for node 0.
        stage: why it was asked for.
        other: id of a second parent, None if it has one only.
        step: the step of the scaffold that asked for it, from 1; 0 for node 0.
        commit: hex id of its git commit, empty if no code was ever committed.
        hypothesis: the coder's sentence on what it changed and why.
        outcome: what became of it.
        reason: why it is not valid, in words for the user; empty when valid. Of a node that
            is not run yet: why its coder failed.
        metrics: what its log said at the last validation, None when it said nothing.
        summary: the summarizer's text, which later prompts see.
        coder: name of the coder that wrote it.
        model: the model that answered, as served; None where no model was used.
        wall_s: seconds from the start of the job to its end, None if not run.
        notes: JSON values that the coder keeps for its own later use.
        findings: what guards had to say of it.
        same_as: id of an earlier node with the same code, whose outcome this one shares; it
            was not run itself.
        code: fingerprint of its code, empty where it is to be trained whatever it is.
        staleness: how many nodes were unfinished when it was asked for; 0 in strict order.
    """

    id: int
    parent: int | None
    stage: Stage
    step: int
    commit: str = ""
    hypothesis: str = ""
    outcome: Outcome = Outcome.PENDING
    reason: str = ""
    metrics: Metrics | None = None
    summary: str = ""
    coder: str = ""
    model: str | None = None
    wall_s: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    same_as: int | None = None
    code: str = ""
    staleness: int = 0
    other: int | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the node may count."""
        return self.outcome is Outcome.VALID

    @property
    def is_buggy(self) -> bool:
        """Whether the node is one to debug: it crashed, or its edit never came out."""
        return self.outcome in (Outcome.BUGGY, Outcome.EDIT_FAILED)

    @property
    def counts(self) -> bool:
        """Whether it takes one of the nodes that a run may have."""
        return self.id != 0 and self.same_as is None and self.outcome is not Outcome.DROPPED

    @property
    def train_time_ms(self) -> int | None:
        """Milliseconds of training at the last validation, if the log had them."""
        return self.metrics.train_time_ms if self.metrics else None


class Tree:
    """The nodes of one search, by id, with their kinship.

    Iteration is by id, whatever the order of creation. The tree is append-only: a node may
    be replaced by a later state of itself, never removed or moved. One thread at a time may
    change it; others may read it meanwhile, and see a tree that was.
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self._nodes: dict[int, Node] = {}
        self._order: list[int] = []
        self._children: dict[int, list[int]] = {}
        for node in nodes:
            self.put(node)

    def put(self, node: Node) -> None:
        """Add a node, or replace the earlier state of it.

        Raises:
            ValueError: the parent is unknown, or differs from that of the earlier state.
        """
        known = self._nodes.get(node.id)
        if known is None:
            self._attach(node)
        elif known.parent != node.parent:
            raise ValueError(f"node {node.id} cannot move from {known.parent} to {node.parent}")
        else:
            self._nodes[node.id] = node

    def _attach(self, node: Node) -> None:
        """Add a node; what names it comes last, so that nobody meets a name without a node."""
        if node.parent is not None and node.parent not in self._nodes:
            raise ValueError(f"node {node.id} has no parent {node.parent} in the tree")
        self._nodes[node.id], self._children[node.id] = node, []
        if node.parent is not None:
            bisect.insort(self._children[node.parent], node.id)
        bisect.insort(self._order, node.id)

    def update(self, node_id: int, **changes: Any) -> Node:
        """Replace fields of a node and return its new state."""
        node = replace(self[node_id], **changes)
        self.put(node)
        return node

    def snapshot(self) -> Tree:
        """Return an independent copy; nodes themselves are immutable and shared."""
        return self._copy(list(self._order))

    def as_known(self, first_id: int, pending: Collection[int] = ()) -> Tree:
        """Return a copy as it was before node ``first_id``, without the nodes that are pending."""
        order = self._order[: bisect.bisect_left(self._order, first_id)]
        return self._copy([i for i in order if i not in pending] if pending else order)

    def _copy(self, order: list[int]) -> Tree:
        """Return a tree of some of the nodes, given by their ids in order."""
        copy = Tree()
        nodes, children = copy._nodes, copy._children
        for node_id in order:
            nodes[node_id], children[node_id] = self._nodes[node_id], []
        copy._order = order
        for node_id, node in nodes.items():
            if node.parent is not None:
                children[node.parent].append(node_id)
        return copy

    def __getitem__(self, node_id: int) -> Node:
        return self._nodes[node_id]

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def __iter__(self) -> Iterator[Node]:
        return (self._nodes[i] for i in list(self._order))

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def root(self) -> Node:
        """Node 0, the start record."""
        return self._nodes[0]

    def children(self, node_id: int) -> list[Node]:
        """The children of a node, oldest first."""
        return [self._nodes[i] for i in self._children[node_id]]

    def is_leaf(self, node_id: int) -> bool:
        """Whether the node has no children."""
        return not self._children[node_id]

    def ancestors(self, node_id: int) -> list[Node]:
        """The chain from the parent of a node up to node 0."""
        chain: list[Node] = []
        parent = self._nodes[node_id].parent
        while parent is not None:
            chain.append(self._nodes[parent])
            parent = self._nodes[parent].parent
        return chain

    def branch(self, node_id: int) -> int:
        """The id of the child of node 0 that a node descends from, itself included."""
        node = self._nodes[node_id]
        while node.parent not in (None, 0):
            node = self._nodes[node.parent]
        return node.id

    def debug_depth(self, node_id: int) -> int:
        """How many debug nodes in a row end at this node."""
        depth, node = 0, self._nodes[node_id]
        while node.stage is Stage.DEBUG and node.parent is not None:
            depth, node = depth + 1, self._nodes[node.parent]
        return depth

    def best(
        self, *, root: bool = False, step: int | None = None, before: int | None = None
    ) -> Node | None:
        """The fastest valid node; of equals, the oldest.

        Args:
            root: whether node 0 takes part.
            step: only nodes of this step take part.
            before: only nodes of earlier steps than this one take part.
        """
        pool = (
            n
            for n in self
            if n.is_valid
            and (n.id != 0 or root)
            and (step is None or n.step == step)
            and (before is None or n.step < before)
        )
        return min(pool, key=speed_key, default=None)


def speed_key(node: Node) -> tuple[float, int]:
    """Sort key: faster first, then older; nodes without a time come last."""
    time = node.train_time_ms
    return (float("inf") if time is None else time, node.id)
