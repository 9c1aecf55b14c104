"""The tree: kinship, order, the best node."""

from __future__ import annotations

import sys
import threading

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


def test_what_was_known_at_a_step_is_the_tree_without_later_and_unfinished_nodes(tree):
    known = tree.as_known(6, pending={5})
    assert [n.id for n in known] == [0, 1, 2, 3, 4]
    assert known.is_leaf(4)
    assert known.is_leaf(3)
    assert [n.id for n in tree.as_known(2)] == [0, 1]
    assert len(tree) == 7


def test_a_tree_may_be_read_while_it_grows():
    tree, failures = Tree([node(0, None, 100, Stage.ROOT, 0)]), []
    grown = threading.Event()

    def read():
        try:
            while not grown.is_set():
                for one in (tree.snapshot(), tree.as_known(500), tree):
                    assert all(n.parent is None or n.parent in one for n in one)
                    one.best()
        except Exception as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    readers = [threading.Thread(target=read) for _ in range(2)]
    try:
        for reader in readers:
            reader.start()
        for k in range(1, 1000):
            tree.put(node(k, k // 3, 100 + k))
    finally:
        grown.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(before)
    assert failures == []
