"""The scaffold keeps its promises, and its choices follow from the tree."""

from __future__ import annotations

import random
from typing import Any

from speedkit_mcts.scaffold import MctsOptions, MctsScaffold, rewards, subtree_values

from speedkit import Metrics, Node, Outcome, Stage, Tree
from speedkit.testing import check_component


def tree_of(*nodes: tuple[int, int | None]) -> Tree:
    """Return a tree of pairs of parent and time; without a time a node is buggy."""
    tree = Tree([node(0, None, 1000)])
    for node_id, (parent, time_ms) in enumerate(nodes, start=1):
        tree.put(node(node_id, parent, time_ms))
    return tree


def node(node_id: int, parent: int | None, time_ms: int | None) -> Node:
    """Return a finished node."""
    outcome = Outcome.BUGGY if time_ms is None else Outcome.VALID
    metrics = None if time_ms is None else Metrics(10, 10, 1.0, time_ms)
    stage = Stage.ROOT if parent is None else Stage.IMPROVE
    return Node(node_id, parent, stage, node_id, outcome=outcome, metrics=metrics)


def choice(tree: Tree, **options: Any) -> int:
    """Return whose child is asked for."""
    (proposal,) = MctsScaffold(MctsOptions(**options)).propose(tree, random.Random(0))
    assert proposal.stage is (Stage.IMPROVE if proposal.parent else Stage.DRAFT)
    return proposal.parent


def test_it_conforms() -> None:
    """With the defaults, greedy, and wide."""
    check_component(MctsScaffold)
    check_component(MctsScaffold, options={"exploration": 0, "optimism": 1, "width": 1})


def test_rewards_are_shares_of_the_best_speedup() -> None:
    """In logarithms; what is slower than the start, or not valid, is worth nothing."""
    tree = tree_of((0, 500), (0, 250), (0, 2000), (0, None))
    assert [round(reward, 6) for reward in rewards(tree)] == [0, 0.5, 1, 0, 0]
    assert rewards(tree_of((0, 1500))) == [0, 0]


def test_a_subtree_counts_for_all_above_it() -> None:
    """Tries, mean and best."""
    values = subtree_values(tree_of((0, 500), (1, 250), (1, None)))
    assert (values[0].tries, values[1].tries, values[2].tries) == (4, 3, 1)
    assert (values[1].best, round(values[1].total, 6)) == (1, 1.5)


def test_the_root_is_widened_first() -> None:
    """Until it has as many children as it may."""
    assert choice(tree_of()) == 0
    assert choice(tree_of((0, 500)), width=2, widening=0) == 0
    assert choice(tree_of((0, 500), (0, 400)), width=2, widening=0) == 2


def test_without_exploration_the_best_is_followed() -> None:
    """And what fails below it does not lead away, if only the best counts."""
    tree = tree_of((0, 500), (0, 250), (2, None), (2, None))
    greedy = {"exploration": 0, "optimism": 1, "widening": 0}
    assert choice(tree, width=3, **greedy) == 0
    assert choice(tree, width=2, **greedy) == 2
    assert choice(tree_of((0, 500), (0, 250), (2, 200), (2, None)), width=2, **greedy) == 3


def test_exploration_leads_to_what_was_tried_seldom() -> None:
    """Once the better one has had its turns."""
    tree = tree_of((0, 400), (0, 380), *((2, None) for _ in range(6)))
    assert choice(tree, exploration=2, width=2, widening=0) == 1


def test_a_search_with_it(tiny_run: Any) -> None:
    """It uses every node that it may have."""
    tree = tiny_run("speedkit_mcts", scaffold="mcts", coder="tuner", nodes=8)
    assert sum(n.counts for n in tree) == 8
    assert all(tree[n.parent].is_valid for n in tree if n.id)
