"""The tree: kinship, order, the best node."""

from __future__ import annotations

import pytest

from speedkit.core.metrics import Metrics
from speedkit.core.node import Node, Outcome, Stage, Tree


def node(id, parent, time=None, stage=Stage.IMPROVE, step=1, outcome=None):
    metrics = None if time is None else Metrics(10, 10, 1.0, time)
    outcome = outcome or (Outcome.VALID if metrics else Outcome.BUGGY)
    return Node(id, parent, stage, step, metrics=metrics, outcome=outcome)


@pytest.fixture
def tree():
    return Tree(
        [
            node(0, None, 100, Stage.ROOT, 0),
            node(1, 0, 90),
            node(2, 0),
            node(3, 1, 80, step=2),
            node(4, 2, None, Stage.DEBUG, 2),
            node(5, 4, None, Stage.DEBUG, 3),
            node(6, 3, 80, step=3),
        ]
    )


def test_kinship(tree):
    assert [n.id for n in tree.children(0)] == [1, 2]
    assert [n.id for n in tree.ancestors(5)] == [4, 2, 0]
    assert tree.branch(5) == 2
    assert tree.branch(0) == 0
    assert tree.is_leaf(5)
    assert not tree.is_leaf(4)


def test_debug_depth_counts_the_chain(tree):
    assert [tree.debug_depth(i) for i in (0, 2, 4, 5)] == [0, 0, 1, 2]


def test_best_is_the_fastest_then_the_oldest(tree):
    assert tree.best().id == 3
    assert tree.best(step=1).id == 1
    assert tree.best(step=7) is None


def test_the_root_takes_part_only_when_asked():
    tree = Tree([node(0, None, 100, Stage.ROOT, 0), node(1, 0, 120)])
    assert tree.best().id == 1
    assert tree.best(root=True).id == 0


def test_order_is_by_id_whatever_the_order_of_creation():
    tree = Tree([node(0, None, 9), node(2, 0), node(1, 0)])
    assert [n.id for n in tree] == [0, 1, 2]
    assert [n.id for n in tree.children(0)] == [1, 2]


def test_a_node_needs_its_parent(tree):
    with pytest.raises(ValueError, match="no parent 77"):
        tree.put(node(8, 77))


def test_a_node_cannot_move(tree):
    with pytest.raises(ValueError, match="cannot move"):
        tree.put(node(6, 1))


def test_a_snapshot_does_not_follow(tree):
    copy = tree.snapshot()
    tree.put(node(7, 0))
    tree.update(1, outcome=Outcome.INVALID)
    assert 7 not in copy
    assert copy[1].is_valid
    assert [n.id for n in copy.children(0)] == [1, 2]
