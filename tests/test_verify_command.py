"""``speedkit verify``: what it prints, and how it ends."""

from __future__ import annotations

import json

import pytest

from tests.kit.noisy import NoisyExecutor
from tests.test_verify import BETTER, HONEST, LINE, later, same_chance, searched  # noqa: F401


@pytest.fixture
def run(searched):  # noqa: F811
    """Return a run with two nodes that are worth confirming."""
    return searched(BETTER, nodes=2)


def test_for_people(program, run):
    result = program("verify", run)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].endswith(", toy/1: 4 pairs")
    assert [line.split("  ")[0] for line in lines[1:7]] == [
        *("claimed", "verified", "noise floor", "time", "loss", "verdict")
    ]
    assert lines[6].endswith("confirmed")
    assert lines[3].endswith("the best of 2 unchanged scripts")
    assert len(result.err.splitlines()) == 8
    assert "pair 1, start: " in result.err.splitlines()[0]


def test_for_programs(program, run):
    result = program("verify", run, 2, "--pairs", 2, "--max-pairs", 6, "--target", "--json")
    facts = result.json
    assert facts["task"] == "toy/1"
    assert facts["nodes"]["2"]["plan"]["target"] is True
    assert facts["nodes"] == json.loads((run / "verify.json").read_text())["nodes"]
    again = program("verify", run, 2)
    assert "target" not in again.err, "it goes on with the plan that it began with"


def test_several_nodes_one_below_the_other(program, run):
    out = program("verify", run, 1, 2).out
    assert out.count("verdict") == 2
    assert "\n\nnode 2 of " in out


def test_begun_anew_it_says_which_attempt_this_is(program, run):
    program("verify", run, 1)
    out = program("verify", run, 1, "--fresh").out
    assert "4 pairs, attempt 2" in out


def test_what_scripts_write_cannot_fool_a_terminal(program, searched):  # noqa: F811
    path = searched(later(HONEST, 'raise ValueError("\\x1b[2Jhidden\\u202e")'))
    result = program("verify", path)
    assert "refuted" in result.out
    assert "hidden" in result.out
    for text in (result.out, result.err):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_an_interrupt_keeps_what_was_measured(program, run, monkeypatch):
    from speedkit.cli import verify

    def interrupt(node, pair, measured):
        if pair == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verify, "_say", interrupt)
        result = program("verify", run, 1)
    assert result.code == 130
    assert "the same command goes on" in result.err
    NoisyExecutor.jobs.clear()
    assert program("verify", run, 1).code == 0
    assert not any("-1-1-1-" in job for job in NoisyExecutor.jobs), "pair 1 was kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7,), "no node '7'"),
        ((0,), "node 0 is the start record"),
        (("--pairs", 1), "at least 2 pairs"),
        (("--pairs", 9, "--max-pairs", 5), "less than the 9 pairs"),
        (("--ablation",), "no training shards"),
    ],
)
def test_a_mistake_is_one_line(program, run, arguments, message):
    result = program("verify", run, *arguments)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_folder_that_is_no_run(program, tmp_path):
    result = program("verify", tmp_path)
    assert result.code == 2
    assert "no run directory" in result.err


def test_a_node_over_the_target_in_most_runs(program, searched):  # noqa: F811
    path = searched(later(HONEST, LINE.format(loss="1.02", ms=8000)))
    out = program("verify", path).out
    assert "refuted" in out
    assert "is over the target 1" in out
