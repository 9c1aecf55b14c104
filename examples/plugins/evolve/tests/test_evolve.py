"""Scaffold and coder keep their promises; crossover and mutation do what they say."""

from __future__ import annotations

import random
import subprocess
from typing import Any

import pytest
from speedkit_evolve.coder import EvolveCoder, common_ancestor, is_python
from speedkit_evolve.crossover import cross
from speedkit_evolve.mutation import mutate, scaled
from speedkit_evolve.population import population, tournament
from speedkit_evolve.scaffold import EvolveScaffold

import speedkit
from speedkit import Metrics, Node, Outcome, Stage, Tree
from speedkit.testing import check_component

BASE = "one\ntwo\nthree\nfour\nfive\n"


def node(node_id: int, parent: int | None, time_ms: int | None, **more: Any) -> Node:
    """Return a finished node; without a time it is buggy."""
    outcome = Outcome.BUGGY if time_ms is None else Outcome.VALID
    metrics = None if time_ms is None else Metrics(10, 10, 1.0, time_ms)
    stage = Stage.ROOT if parent is None else Stage.IMPROVE
    return Node(node_id, parent, stage, node_id, outcome=outcome, metrics=metrics, **more)


def test_both_conform() -> None:
    """With the defaults and at the ends of their ranges."""
    check_component(EvolveScaffold)
    check_component(EvolveScaffold, options={"founders": 1, "offspring": 1, "size": 1})
    check_component(EvolveCoder)
    check_component(EvolveScaffold, options={"crossover": 1.0})


def test_only_the_fittest_live() -> None:
    """Valid nodes by time; a copy is not alive beside its original."""
    nodes = [node(0, None, 1000), node(1, 0, 500), node(2, 0, None), node(3, 0, 500, same_as=1)]
    tree = Tree([*nodes, node(4, 1, 400)])
    assert [n.id for n in population(tree, 2)] == [4, 1]
    assert [n.id for n in population(tree, 9)] == [4, 1, 0]


def test_a_tournament_of_many_rounds_is_won_by_the_fittest() -> None:
    """And one of one round by anybody."""
    nodes = [node(0, None, 1000), node(1, 0, 500), node(2, 0, 700)]
    rng = random.Random(0)
    assert tournament(nodes, 50, rng).id == 1
    assert {tournament(nodes, 1, rng).id for _ in range(50)} == {0, 1, 2}


def test_crossover_joins_changes_in_different_places() -> None:
    """Whatever chance says."""
    mother, father = BASE.replace("one", "ONE"), BASE.replace("four", "FOUR\nand more")
    children = {cross(BASE, mother, father, random.Random(seed)) for seed in range(20)}
    assert children == {"ONE\ntwo\nthree\nFOUR\nand more\nfive\n"}


def test_chance_decides_where_both_change_the_same_lines() -> None:
    """Both outcomes occur, and no other."""
    mother, father = BASE.replace("two", "TWO"), BASE.replace("two", "second")
    children = {cross(BASE, mother, father, random.Random(seed)) for seed in range(20)}
    assert children == {mother, father}


@pytest.mark.parametrize("other", [BASE, BASE.replace("one\n", ""), "", BASE + "six\n"])
def test_crossover_with_the_ancestor_or_with_oneself_changes_nothing(other: str) -> None:
    """Nothing is lost and nothing doubled."""
    assert cross(BASE, other, BASE, random.Random(0)) == other
    assert cross(BASE, BASE, other, random.Random(0)) == other
    assert cross(BASE, other, other, random.Random(0)) == other


def test_the_common_ancestor_may_be_one_of_the_two() -> None:
    """Or node 0."""
    parents = ((0, None), (1, 0), (2, 1), (3, 1), (4, 0))
    tree = Tree(node(node_id, parent, 500) for node_id, parent in parents)
    pairs = (((2, 3), 1), ((2, 1), 1), ((1, 2), 1), ((3, 4), 0), ((2, 2), 2))
    for (one, other), ancestor in pairs:
        assert common_ancestor(tree, tree[one], tree[other]).id == ancestor


def test_mutation_leaves_the_rest_of_the_script_alone() -> None:
    """Only numbers with a name of their own change, and never what is measured."""
    text = "rate: float = 0.01\nval_every = 5\nsteps = 100  # many\nx = f(3)\nseed = 7\n"
    seen = set()
    for seed in range(40):
        mutated, words = mutate(text, 0.5, random.Random(seed))
        before, after = text.splitlines(), mutated.splitlines()
        changed = {a.split()[0] for a, b in zip(before, after, strict=True) if a != b}
        assert len(words) == len(changed) <= 2
        seen |= changed
    assert seen == {"rate:", "steps"}


def test_numbers_keep_their_kind() -> None:
    """A whole number stays whole and positive."""
    assert [scaled(*p) for p in (("100", 0.5), ("1", 0.1), ("0", 3), ("0.02", 1.5))] == [
        "50",
        "1",
        "0",
        "0.03",
    ]
    assert is_python(f"x = {scaled('1e-3', 0.001)}")


def test_a_search_with_both(tiny_run: Any) -> None:
    """Some children have two parents, and git and journal say which."""
    parts = {"scaffold": "evolve", "coder": "evolve"}
    tree = tiny_run("speedkit_evolve", **parts, nodes=16, seed=3)
    crossed = [n for n in tree if n.other is not None]
    assert crossed
    command = ["git", "--git-dir", str(tree.path / "repo"), "rev-list", "--parents", "--branches"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    parents = {line.split()[0]: line.split()[1:] for line in lines if line}
    for n in crossed:
        assert f"ross node {n.parent} with node {n.other}" in n.hypothesis
        assert tree[n.other].is_valid
        assert parents[n.commit] == [tree[n.parent].commit, tree[n.other].commit]
    assert tree.fsr() > 0
    assert isinstance(speedkit.open_run(tree.path).best(), Node)
