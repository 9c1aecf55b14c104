"""``speedkit show``, ``speedkit log`` and ``speedkit diff``."""

from __future__ import annotations

import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedkit.cli.log import walk
from speedkit.core.journal import read_events
from speedkit.core.node import Node, Stage, Tree

NODE_KEYS = [
    *("id", "parent", "stage", "outcome", "reason"),
    *("val_loss", "train_time_ms", "fsr", "commit", "findings", "same_as"),
]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


# --- show ---------------------------------------------------------------------------------


def test_a_run_as_json_has_exactly_these_keys(program, toy_run):
    tree = toy_run()
    facts = program("show", tree.path, "--json").json
    assert list(facts) == ["task", "status", "best", "fsr", "lanes", "calibration", "nodes"]
    assert all(list(node) == NODE_KEYS for node in facts["nodes"])
    best = tree.best()
    assert (facts["task"], facts["status"], facts["best"]) == ("toy/1", "finished", best.id)
    assert facts["fsr"] == tree.fsr() == facts["nodes"][best.id]["fsr"]
    assert facts["calibration"] == json.loads(json.dumps(tree.calibration.to_dict()))
    assert [n["commit"] for n in facts["nodes"]] == [n.commit for n in tree]


def test_a_run_as_a_table_ends_with_the_best_node(program, toy_run):
    tree = toy_run()
    result = program("show", tree.path)
    assert f"best     node {tree.best().id}" in result.out
    assert result.err == ""


def test_without_a_valid_node_there_is_no_best(program, hostile_run):
    facts = program("show", hostile_run.path, "--json").json
    outcomes = [n["outcome"] for n in facts["nodes"]]
    assert outcomes == ["valid", "valid", "invalid", "buggy", "buggy"]
    nan = facts["nodes"][2]
    assert nan["val_loss"] is None
    assert nan["train_time_ms"] == 4000
    assert "nan" in nan["reason"]
    assert nan["fsr"] is None


def test_a_run_that_has_not_begun(program, toy_run):
    path = toy_run(nodes=1).path
    (path / "events.jsonl").unlink()
    facts = program("show", path, "--json").json
    assert facts == {
        "task": "toy/1", "status": "new", "best": None, "fsr": None, "lanes": None,
        "calibration": None, "nodes": [],
    }  # fmt: skip
    assert "no valid node" in program("show", path).out
    assert program("log", path).out == ""
    for arguments in (("show", path, 0), ("diff", path, 0), ("show", path, "best")):
        assert program(*arguments).code == 2


def test_everything_on_a_node(program, toy_run):
    tree = toy_run()
    best = tree.best()
    facts = program("show", tree.path, "best", "--json").json
    assert facts["id"] == best.id
    assert facts["is_best"] is True
    assert facts["hypothesis"] == best.hypothesis
    assert facts["summary"] == best.summary
    assert facts["coder"] == "tuner"
    assert [m["train_time_ms"] for m in facts["metrics"]] == [best.train_time_ms]
    assert str(tree.path / f"nodes/{best.id:04d}/metrics.json") in facts["logs"]
    out = program("show", tree.path, best.id).out
    assert all(text in out for text in (best.hypothesis, "(the best)", "metrics.json", "val_loss"))


def test_the_logs_of_node_0_are_those_of_the_calibration(program, toy_run):
    facts = program("show", toy_run(nodes=1).path, 0, "--json").json
    assert len(facts["logs"]) == 3
    assert all("calibrate-start-" in path for path in facts["logs"])
    assert facts["metrics"][0]["train_time_ms"] == 10100


def test_a_damaged_metrics_file_is_left_out(program, toy_run):
    tree = toy_run(nodes=1)
    (tree.path / "nodes/0001/metrics.json").write_text('{"curve": [{"st')
    facts = program("show", tree.path, 1, "--json").json
    assert facts["metrics"] == []
    assert facts["train_time_ms"] == tree[1].train_time_ms


@pytest.mark.parametrize("command", ["show", "diff"])
@pytest.mark.parametrize("node", ["7", "x", "²", "9" * 5000])
def test_a_node_that_is_not_there(program, toy_run, command, node):
    result = program(command, toy_run(nodes=1).path, node)
    assert (result.code, result.out) == (2, "")
    assert "nodes are 0 to 1, or best" in result.err


@pytest.mark.parametrize("arguments", [("show",), ("log",), ("diff", "1")])
def test_what_is_no_run_directory(program, tmp_path, arguments):
    name, *rest = arguments
    result = program(name, tmp_path, *rest)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {tmp_path} is no run directory: it has no run.toml\n"


# --- what models write ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("show",), ("show", "--json"), ("show", 1), ("show", 3), ("show", 3, "--json"),
        ("log",), ("log", "--json"), ("diff", 1), ("diff", 1, 3), ("diff", 1, "--stat"),
    ],
)  # fmt: skip
def test_control_characters_reach_no_terminal(program, hostile_run, arguments):
    name, *rest = arguments
    result = program(name, hostile_run.path, *rest)
    assert result.code == 0
    assert result.out.strip()
    assert not CONTROL.search(result.out)
    assert not CONTROL.search(result.err)


def test_json_keeps_what_was_stored_and_controls_are_not_stored(program, hostile_run):
    facts = program("show", hostile_run.path, 1, "--json").json
    assert facts["hypothesis"] == hostile_run[1].hypothesis
    assert "red" in facts["hypothesis"]
    assert not set("\x1b\x9b\u202e") & set(facts["hypothesis"])


# --- log ----------------------------------------------------------------------------------


def test_the_tree_as_text(program, toy_run):
    tree = toy_run(scaffold="aide", seed=4)
    lines = program("log", tree.path).out.splitlines()
    assert len(lines) == len(tree)
    assert lines[0].startswith("0 root  valid")
    assert sum("★" in line for line in lines) == 1
    best = next(line for line in lines if "★" in line)
    assert re.search(rf"─ ★ {tree.best().id} \w+  valid  [\d.]+ s  FSR \+[\d.]+  \S", best)


def test_the_tree_as_json_has_parents_first(program, toy_run):
    nodes = program("log", toy_run(seed=4).path, "--json").json
    depths = {}
    for node in nodes:
        parent = node["parent"]
        assert node["depth"] == (0 if parent is None else depths[parent] + 1)
        depths[node["id"]] = node["depth"]
    assert sum(node["is_best"] for node in nodes) == 1


@given(st.lists(st.integers(0, 10**6), max_size=40))
def test_the_drawing_shows_who_is_whose_child(choices):
    tree = Tree([Node(0, None, Stage.ROOT, 0)])
    for i, choice in enumerate(choices, start=1):
        tree.put(Node(i, choice % i, Stage.DRAFT, i))
    path = []
    for node, depth, branch in walk(tree):
        assert len(branch) == 3 * depth
        del path[depth:]
        assert node.parent == (path[-1] if path else None)
        siblings = tree.children(node.parent) if depth else [node]
        assert not depth or branch.endswith("└─ " if node is siblings[-1] else "├─ ")
        path.append(node.id)


def test_a_chain_deeper_than_the_stack():
    nodes = [Node(0, None, Stage.ROOT, 0)]
    nodes += [Node(i, i - 1, Stage.IMPROVE, i) for i in range(1, 1500)]
    assert [node.id for node, _, _ in walk(Tree(nodes))] == list(range(1500))


# --- diff ---------------------------------------------------------------------------------


def test_a_node_against_its_parent(program, toy_run):
    tree = toy_run(nodes=1)
    out = program("diff", tree.path, 1).out
    assert out.startswith("diff --git a/solve.py b/solve.py\n")
    assert "-    num_iterations: int = 100\n" in out
    changed = [line for line in out.splitlines() if re.match(r"[-+] ", line)]
    assert {line[0] for line in changed} == {"-", "+"}


def test_from_a_node_to_another(program, toy_run):
    tree = toy_run(nodes=1)
    forth = program("diff", tree.path, 0, 1).out
    back = program("diff", tree.path, 1, 0).out
    assert forth == program("diff", tree.path, 1).out
    flipped = {line.translate(str.maketrans("+-", "-+")) for line in changes(forth)}
    assert flipped == set(changes(back))


def changes(diff):
    return [line for line in diff.splitlines() if re.match(r"[-+](?![-+])", line)]


def test_node_0_has_no_parent(program, toy_run):
    path = toy_run(nodes=1).path
    result = program("diff", path, 0)
    assert (result.code, result.out) == (2, "")
    assert f"speedkit diff {path} 0 NODE" in result.err


def test_the_same_code_is_no_output_and_a_word(program, toy_run):
    result = program("diff", toy_run(nodes=1, coder="noop").path, 1)
    assert (result.code, result.out) == (0, "")
    assert result.err == "nodes 0 and 1 have the same code\n"


def test_statistics(program, toy_run):
    out = program("diff", toy_run(nodes=1).path, 1, "--stat").out
    assert re.match(r" solve\.py \| \d+ \+*-*\n 1 file changed", out)


def test_colour_is_for_terminals_that_want_it(program, toy_run, monkeypatch):
    path = toy_run(nodes=1).path
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = program("diff", path, 1).out
    assert "\x1b" not in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    colored = program("diff", path, 1).out
    assert "\x1b[32m" in colored
    assert re.sub(r"\x1b\[\d*m", "", colored) == plain
    assert "\x1b[32mvalid\x1b[0m" in program("log", path).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert program("diff", path, 1).out == plain
    assert "\x1b" not in program("log", path).out


def test_reading_a_run_leaves_it_untouched(program, toy_run):
    path = toy_run().path
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    for arguments in (("show",), ("show", "1"), ("log",), ("diff", "1")):
        assert program(arguments[0], path, *arguments[1:]).code == 0
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert read_events(path / "events.jsonl")[-1]["type"] == "run_finished"
