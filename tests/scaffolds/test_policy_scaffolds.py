"""The shared policy: exact steps on hand-built trees, and what holds on any tree."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from speedkit.core.components import Proposal
from speedkit.core.metrics import Metrics
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.plugins.scaffolds.aide import AideScaffold
from speedkit.plugins.scaffolds.flat import FlatScaffold
from speedkit.plugins.scaffolds.forest import ForestScaffold
from speedkit.plugins.scaffolds.multi_aide import MultiAideScaffold
from speedkit.plugins.scaffolds.policy import UNBOUNDED, PolicyOptions, PolicyScaffold
from speedkit.plugins.scaffolds.tree import TreeScaffold

DRAFT, IMPROVE, DEBUG = Stage.DRAFT, Stage.IMPROVE, Stage.DEBUG
SCAFFOLDS = [FlatScaffold, TreeScaffold, ForestScaffold, AideScaffold, MultiAideScaffold]


def node(
    id_: int, parent: int | None, step: int, time: int | str, stage: Stage | None = None
) -> Node:
    """A valid node with a time, or one with the outcome that ``time`` names."""
    usual = Stage.ROOT if parent is None else DRAFT if parent == 0 else IMPROVE
    outcome = Outcome.VALID if isinstance(time, int) else Outcome(time)
    metrics = Metrics(10, 10, 2.0, time) if isinstance(time, int) else None
    return Node(id_, parent, stage or usual, step, outcome=outcome, metrics=metrics)


def grow(*nodes: Node, root: int = 100) -> Tree:
    return Tree([node(0, None, 0, root), *nodes])


def propose(scaffold: PolicyScaffold, tree: Tree, seed: int = 0) -> list[Proposal]:
    return list(scaffold.propose(tree, random.Random(seed)))


def policy(**options: object) -> PolicyScaffold:
    return PolicyScaffold(PolicyOptions(**options))


def parents(proposals: Iterable[Proposal]) -> set[tuple[int, Stage]]:
    return {(p.parent, p.stage) for p in proposals}


# --- the five settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaffold", "drafts", "children", "debug_prob", "trees"),
    [
        (FlatScaffold, None, 0, 0, "shared"),
        (TreeScaffold, 1, 3, 0, "shared"),
        (ForestScaffold, 3, 3, 0, "per_root"),
        (AideScaffold, 3, 1, 0.5, "shared"),
        (MultiAideScaffold, 3, 3, 0.5, "shared"),
    ],
)
def test_the_five_are_settings_of_one_policy(
    scaffold: type[PolicyScaffold], drafts: int | None, children: int, debug_prob: float, trees: str
) -> None:
    options = scaffold().options
    assert (options.drafts, options.children) == (drafts, children)
    assert (options.debug_prob, options.trees) == (debug_prob, trees)
    assert (options.max_debug_depth, options.selection) == (5, "global")
    assert scaffold.propose is PolicyScaffold.propose


@pytest.mark.parametrize("scaffold", SCAFFOLDS)
def test_every_option_has_a_description(scaffold: type[PolicyScaffold]) -> None:
    fields = scaffold.Options.model_fields
    assert set(fields) == set(PolicyOptions.model_fields)
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"drafts": 0},
        {"children": -1},
        {"debug_prob": 1.1},
        {"debug_prob": float("nan")},
        {"max_debug_depth": -1},
        {"selection": "best"},
        {"trees": "many"},
        {"nodes": 3},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AideScaffold.Options(**wrong)


@pytest.mark.parametrize(
    ("scaffold", "count"),
    [
        (FlatScaffold, UNBOUNDED),
        (TreeScaffold, 1),
        (ForestScaffold, 3),
        (AideScaffold, 3),
        (MultiAideScaffold, 3),
    ],
)
def test_step_1_drafts_node_0(scaffold: type[PolicyScaffold], count: int) -> None:
    assert propose(scaffold(), grow()) == [Proposal(0, DRAFT)] * count


def test_without_children_there_are_only_drafts() -> None:
    tree = grow(node(1, 0, 1, 90), node(2, 0, 1, "buggy"))
    more = propose(FlatScaffold(), tree)
    assert more == [Proposal(0, DRAFT)] * UNBOUNDED, "as long as the budget lasts"
    assert propose(policy(drafts=2, children=0, debug_prob=1), tree) == []


# --- improve ----------------------------------------------------------------------------


def test_the_best_of_all_nodes_is_improved() -> None:
    tree = grow(node(1, 0, 1, 80), node(2, 1, 2, 60), node(3, 1, 2, 70), node(4, 2, 3, 65))
    assert propose(TreeScaffold(), tree) == [Proposal(2, IMPROVE)] * 3


def test_of_equals_the_oldest_is_improved() -> None:
    tree = grow(node(1, 0, 1, 80), node(2, 0, 1, 80))
    assert parents(propose(TreeScaffold(), tree)) == {(1, IMPROVE)}


def test_invalid_nodes_are_never_improved() -> None:
    fast = Node(1, 0, DRAFT, 1, outcome=Outcome.INVALID, metrics=Metrics(1, 1, 9.0, 1))
    tree = grow(fast, node(2, 0, 1, 90))
    assert parents(propose(TreeScaffold(), tree)) == {(2, IMPROVE)}


@pytest.mark.parametrize("outcome", ["valid", "pending", "invalid"])
def test_node_0_is_drafted_from_again_where_it_is_the_best(outcome: str) -> None:
    root = Node(0, None, Stage.ROOT, 0, outcome=Outcome(outcome), metrics=Metrics(1, 1, 2.0, 100))
    tree = Tree([root, node(1, 0, 1, 120), node(2, 0, 1, "invalid")])
    assert propose(TreeScaffold(), tree) == [Proposal(0, DRAFT)] * 3


def test_any_valid_node_beats_a_node_0_of_unknown_time() -> None:
    tree = Tree([Node(0, None, Stage.ROOT, 0, outcome=Outcome.VALID), node(1, 0, 1, 10**6)])
    assert parents(propose(TreeScaffold(), tree)) == {(1, IMPROVE)}


# --- what the last step forgets ---------------------------------------------------------

DETOUR = [node(1, 0, 1, 60), node(2, 0, 1, "buggy"), node(3, 2, 2, 90, DEBUG)]


@pytest.mark.parametrize(
    ("selection", "nodes", "parent"),
    [
        ("global", DETOUR, 1),
        ("published", DETOUR, 3),
        ("last_step", DETOUR, 3),
        # a debug step that fails leaves nothing but node 0
        ("global", [*DETOUR[:2], node(3, 2, 2, "buggy", DEBUG)], 1),
        ("published", [*DETOUR[:2], node(3, 2, 2, "buggy", DEBUG)], 0),
        ("last_step", [*DETOUR[:2], node(3, 2, 2, "buggy", DEBUG)], 0),
        # children that are all worse than their parent
        ("global", [node(1, 0, 1, 60), node(2, 1, 2, 70), node(3, 1, 2, 80)], 1),
        ("published", [node(1, 0, 1, 60), node(2, 1, 2, 70), node(3, 1, 2, 80)], 1),
        ("last_step", [node(1, 0, 1, 60), node(2, 1, 2, 70), node(3, 1, 2, 80)], 2),
        # and worse than node 0
        ("published", [node(1, 0, 1, "buggy"), node(2, 1, 2, 130, DEBUG)], 0),
        ("last_step", [node(1, 0, 1, "buggy"), node(2, 1, 2, 130, DEBUG)], 2),
    ],
)
def test_selection(selection: str, nodes: list[Node], parent: int) -> None:
    scaffold = policy(selection=selection, children=2)
    expected = Proposal(parent, IMPROVE if parent else DRAFT)
    assert propose(scaffold, grow(*nodes)) == [expected] * 2


# --- debug ------------------------------------------------------------------------------


def test_a_debug_step_has_one_child() -> None:
    tree = grow(node(1, 0, 1, 60), node(2, 0, 1, "buggy"))
    assert propose(policy(debug_prob=1), tree) == [Proposal(2, DEBUG)]


@pytest.mark.parametrize("outcome", ["buggy", "edit_failed"])
def test_crashes_and_failed_edits_are_debugged(outcome: str) -> None:
    assert parents(propose(policy(debug_prob=1), grow(node(1, 0, 1, outcome)))) == {(1, DEBUG)}


@pytest.mark.parametrize("outcome", ["invalid", "pending"])
def test_other_outcomes_are_not(outcome: str) -> None:
    assert parents(propose(policy(debug_prob=1), grow(node(1, 0, 1, outcome)))) == {(0, DRAFT)}


def test_only_leaves_are_debugged() -> None:
    tree = grow(node(1, 0, 1, "buggy"), node(2, 1, 2, 70, DEBUG))
    assert parents(propose(policy(debug_prob=1), tree)) == {(2, IMPROVE)}


def test_node_0_is_never_debugged() -> None:
    root = Node(0, None, Stage.ROOT, 0, outcome=Outcome.BUGGY)
    tree = Tree([root, node(1, 0, 1, "invalid")])
    assert parents(propose(policy(debug_prob=1), tree)) == {(0, DRAFT)}


@pytest.mark.parametrize(("limit", "debugged"), [(0, False), (1, False), (2, False), (3, True)])
def test_no_row_of_debug_nodes_is_longer_than_the_limit(limit: int, debugged: bool) -> None:
    tree = grow(
        node(1, 0, 1, "buggy"), node(2, 1, 2, "buggy", DEBUG), node(3, 2, 3, "buggy", DEBUG)
    )
    step = propose(policy(debug_prob=1, max_debug_depth=limit), tree)
    assert parents(step) == ({(3, DEBUG)} if debugged else {(0, DRAFT)})


def test_every_buggy_leaf_has_its_chance() -> None:
    tree = grow(*(node(i, 0, 1, "buggy") for i in (1, 2, 3)))
    seen = [propose(policy(debug_prob=1), tree, seed)[0].parent for seed in range(300)]
    assert all(70 < seen.count(i) < 130 for i in (1, 2, 3))


def test_debug_prob_is_the_share_of_debug_steps() -> None:
    tree = grow(node(1, 0, 1, 60), node(2, 0, 1, "buggy"))
    steps = [propose(policy(debug_prob=0.3), tree, seed)[0].stage for seed in range(1000)]
    assert 240 < steps.count(DEBUG) < 360


@pytest.mark.parametrize("debug_prob", [0, 0.4, 1])
def test_the_draws_come_in_the_documented_order(debug_prob: float) -> None:
    tree = grow(node(1, 0, 1, 60), node(2, 0, 1, "buggy"), node(3, 0, 1, "buggy"))
    for seed in range(20):
        used, expected = random.Random(seed), random.Random(seed)
        step = policy(debug_prob=debug_prob).propose(tree, used)
        if expected.random() < debug_prob:
            assert list(step) == [Proposal(expected.choice([2, 3]), DEBUG)]
        assert used.getstate() == expected.getstate()


# --- forest -----------------------------------------------------------------------------


def test_the_trees_of_a_forest_take_turns() -> None:
    tree = grow(node(1, 0, 1, 90), node(2, 0, 1, 50), node(3, 0, 1, 120))
    order = []
    for step in range(2, 8):
        first = propose(ForestScaffold(), tree)[0]
        order.append(tree.branch(first.parent))
        tree.put(node(len(tree), first.parent, step, 95))
    assert order == [1, 2, 3, 1, 2, 3]


def test_each_tree_expands_its_own_best() -> None:
    nodes = [node(1, 0, 1, 90), node(2, 0, 1, 50), node(3, 1, 2, 80), node(4, 2, 3, 70)]
    assert propose(ForestScaffold(), grow(*nodes)) == [Proposal(3, IMPROVE)] * 3
    assert parents(propose(ForestScaffold(), grow(*nodes[:3]))) == {(2, IMPROVE)}


def test_a_tree_may_be_slower_than_node_0() -> None:
    tree = grow(node(1, 0, 1, 130), node(2, 0, 1, 90))
    assert parents(propose(ForestScaffold(), tree)) == {(1, IMPROVE)}


def test_a_tree_without_a_valid_node_is_passed_over() -> None:
    tree = grow(node(1, 0, 1, 90), node(2, 0, 1, "buggy"), node(3, 0, 1, 80), node(4, 1, 2, 85))
    assert parents(propose(ForestScaffold(), tree)) == {(3, IMPROVE)}


def test_without_any_valid_tree_node_0_is_drafted_from_again() -> None:
    tree = grow(node(1, 0, 1, "buggy"), node(2, 0, 1, "invalid"))
    assert propose(ForestScaffold(), tree) == [Proposal(0, DRAFT)] * 3


def test_new_drafts_are_trees_too_and_debug_steps_take_no_turn() -> None:
    nodes = [
        node(1, 0, 1, 90),
        node(2, 0, 1, "buggy"),
        node(3, 1, 2, 80),
        node(4, 2, 3, 99, DEBUG),
        node(5, 0, 4, 70),
    ]
    assert parents(propose(ForestScaffold(), grow(*nodes))) == {(4, IMPROVE)}
    nodes.append(node(6, 4, 5, 98))
    assert parents(propose(ForestScaffold(), grow(*nodes))) == {(5, IMPROVE)}


def test_a_shared_forest_is_a_tree_with_three_drafts() -> None:
    shared = ForestScaffold(ForestScaffold.Options(trees="shared"))
    tree = grow(node(1, 0, 1, 90), node(2, 0, 1, 50), node(3, 2, 2, 60))
    assert propose(shared, tree) == [Proposal(2, IMPROVE)] * 3


# --- what holds on any tree -------------------------------------------------------------

outcomes = st.one_of(st.integers(1, 200), st.sampled_from(["invalid", "buggy", "edit_failed"]))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A tree of up to 25 nodes such as a search may leave, finished and with any outcomes."""
    tree = grow(root=draw(st.integers(1, 200)))
    step = 0
    while len(tree) < draw(st.integers(2, 25)):
        step += 1
        parent = tree[draw(st.integers(0, len(tree) - 1))]
        stage = DEBUG if parent.is_buggy else DRAFT if parent.id == 0 else IMPROVE
        for _ in range(1 if stage is DEBUG else draw(st.integers(1, 3))):
            tree.put(node(len(tree), parent.id, step, draw(outcomes), stage))
    return tree


settings = st.builds(
    PolicyOptions,
    drafts=st.none() | st.integers(1, 5),
    children=st.integers(0, 4),
    debug_prob=st.sampled_from([0.0, 0.5, 1.0]),
    max_debug_depth=st.integers(0, 3),
    selection=st.sampled_from(["global", "last_step", "published"]),
    trees=st.sampled_from(["per_root", "shared"]),
)


@given(tree=trees(), options=settings, seed=st.integers())
def test_what_holds_on_any_tree(tree: Tree, options: PolicyOptions, seed: int) -> None:
    step = propose(PolicyScaffold(options), tree, seed)
    assert len(parents(step)) <= 1
    if not step:
        assert options.children == 0
        assert options.drafts
        return
    parent = tree[step[0].parent]
    if step[0].stage is DEBUG:
        assert len(step) == 1
        assert options.debug_prob > 0
        assert parent.is_buggy
        assert tree.is_leaf(parent.id)
        assert tree.debug_depth(parent.id) < options.max_debug_depth
    elif len(tree) == 1 or options.children == 0:
        assert step == [Proposal(0, DRAFT)] * (options.drafts or UNBOUNDED)
    else:
        assert len(step) == options.children
        assert parent.id == 0 or parent.is_valid
        assert step[0].stage is (IMPROVE if parent.id else DRAFT)


@given(tree=trees(), seed=st.integers())
def test_global_selection_takes_the_fastest_of_all(tree: Tree, seed: int) -> None:
    step = propose(TreeScaffold(), tree, seed)
    if len(tree) > 1:
        assert tree[step[0].parent] == tree.best(root=True)


@given(tree=trees(), options=settings, seed=st.integers())
def test_a_scaffold_is_a_pure_function(tree: Tree, options: PolicyOptions, seed: int) -> None:
    before = list(tree)
    scaffold = PolicyScaffold(options)
    first = propose(scaffold, tree, seed)
    propose(scaffold, grow(node(1, 0, 1, 5)), seed + 1)  # nothing of it may be remembered
    assert propose(scaffold, tree, seed) == first
    assert propose(PolicyScaffold(options), tree.snapshot(), seed) == first
    assert list(tree) == before


# --- a search ---------------------------------------------------------------------------


def forgets(selection: str, seed: int) -> bool:
    """Whether a search of 20 nodes ever improves on something slower than its best."""
    rng = random.Random(seed)
    scaffold = MultiAideScaffold(MultiAideScaffold.Options(selection=selection))
    tree, step = grow(), 0
    while len(tree) <= 20:
        step += 1
        for proposal in scaffold.propose(tree.snapshot(), random.Random(f"{seed}/{step}")):
            best = tree.best(root=True)
            assert best is not None
            if best.step < step and proposal.stage is not DEBUG and proposal.parent != best.id:
                return True
            time = round((tree[proposal.parent].train_time_ms or 100) * rng.uniform(0.85, 1.1))
            outcome = rng.choices([time, "invalid", "buggy"], [5, 2, 3])[0]
            tree.put(node(len(tree), proposal.parent, step, outcome, proposal.stage))
    return False


def test_only_global_selection_never_forgets_the_best() -> None:
    forgot = {
        s: sum(forgets(s, i) for i in range(50)) for s in ("global", "published", "last_step")
    }
    assert forgot["global"] == 0
    assert forgot["published"] > 25
    assert forgot["last_step"] > 25
