"""The judge ``diff``: what matters to it, and what does not."""

from __future__ import annotations

import ast
import re
import time

import pytest

from speedkit.core.components import JudgeRequest
from speedkit.core.errors import SpeedkitError
from speedkit.core.task import find_family, find_task
from speedkit.judging import cases
from speedkit.plugins.judges._syntax import MAX_STATEMENTS
from speedkit.plugins.judges.diff import DiffJudge
from tests.judges.conftest import HUMAN, START

MINI = [f"mini/{i}" for i in find_family("mini").tasks]


def renamed(text, **names):
    """Return a text with whole words replaced."""
    for old, new in names.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


@pytest.fixture
def judge(request_of):
    """Return a function that judges an agent's script against HUMAN."""
    return lambda agent, **texts: DiffJudge().judge(request_of(agent, **texts))


# --- what is known --------------------------------------------------------------------------


@pytest.mark.parametrize("name", MINI)
def test_known_scores_of_the_records(name, tmp_path):
    task = find_task(name)
    human = {task.script: task.target.read()}
    scores = {}
    for case in cases(task):
        agent = {task.script: case.source}
        judgement = DiffJudge().judge(
            JudgeRequest(task, task.start_files(), human, agent, tmp_path)
        )
        scores[case.name] = judgement.score
    assert scores["oracle"] == 1
    assert scores["unchanged"] == 0
    assert scores["other"] < 0.1
    assert 0.1 < scores["half"] < 0.9


def test_the_whole_change_is_one_and_none_is_nought(judge):
    assert judge(HUMAN).score == 1
    assert judge(START).score == 0


# --- what does not matter -------------------------------------------------------------------

LOCALS = {"buffer": "ema", "x": "y", "a": "gram", "rounds": "ns_steps", "loss": "value"}
NAMES = {"Muon": "OrthogonalMomentum", "orthogonalize": "newton_schulz"}


@pytest.mark.parametrize(
    "agent",
    [
        ast.unparse(ast.parse(HUMAN)),
        HUMAN.replace("\n", "  # a comment\n").replace("    ", "\t"),
        HUMAN.replace('"""', "'''").replace("0.02", "2e-2").replace("60", "6_0"),
        HUMAN.replace("(step, total)", "(step: int, total: int) -> float"),
        HUMAN.replace(": float = ", " = "),
        renamed(HUMAN, **LOCALS),
        renamed(HUMAN, **NAMES),
        renamed(HUMAN, **LOCALS, **NAMES),
        renamed(HUMAN, step="i", total="n", group="g", optimizer="opt").replace(".i(", ".step(")
        .replace("def i(", "def step("),
    ],
    ids=["unparsed", "comments", "literals", "annotated", "bare", "locals", "names", "both", "old"],
)  # fmt: skip
def test_writing_does_not_matter(judge, agent):
    assert judge(agent).score == 1


def test_a_script_that_is_only_written_anew_is_unchanged(judge):
    agent = renamed(START, loss="value", optimizer="sgd", group="g", total="n")
    judgement = judge(f"# faster!\n{agent}")
    assert judgement.score == 0
    assert judgement.details["agent_statements"] == 0


def test_two_names_that_change_places_are_a_renaming(judge):
    start = "def f(a, b):\n    c = a - b\n    d = b * 2\n    return c + d * a\n"
    swapped = renamed(start, a="b_", b="a_", b_="b", a_="a")
    assert judge(swapped, start=start, human=HUMAN).details["agent_statements"] == 0


def test_the_place_of_a_function_does_not_matter(judge):
    head, muon, rest = re.split(r"(?=class Muon|def schedule)", HUMAN)
    assert judge(head + rest + muon).score == 1


# --- what does ------------------------------------------------------------------------------


def test_half_of_it_is_in_between(judge):
    only_muon = HUMAN.replace("60", "100").replace("0.02", "0.01").replace("2 * (", "(")
    only_numbers = START.replace("100", "60").replace("0.01", "0.02")
    assert 0.5 < judge(only_muon).score < 1
    assert 0 < judge(only_numbers).score < 0.3
    shares = {row["change"]: row["score"] for row in judge(only_numbers).table}
    assert shares["Hyperparameters: steps = 100 -> steps = 60"] == 1
    assert shares["Hyperparameters: momentum = 0.95"] == 0
    assert sum(shares.values()) == 2


def test_another_number_earns_nothing(judge):
    assert judge(START.replace("100", "80").replace("0.01", "0.03")).score == 0


def test_a_statement_in_part_is_worth_a_part(judge):
    agent = START.replace("min(1.0, (total", "min(0.5, 2 * (total")
    (row,) = [row for row in judge(agent).table if row["scope"] == "schedule"]
    assert 0 < row["score"] < 1


def test_swapped_statements_are_a_change(judge):
    agent = START.replace(
        "        loss = model(next(batches))\n        loss.backward()\n",
        "        loss.backward()\n        loss = model(next(batches))\n",
    )
    assert judge(agent).details["agent_statements"] > 0
    assert judge(agent).score == 0


def test_a_name_that_means_something_else_is_a_change(judge):
    start = "def f(a, b):\n    c = a + 1\n    d = b + 2\n    return g(c), h(d), a\n"
    human = start.replace("h(d)", "h(c)")
    assert judge(start, start=start, human=human).score == 0
    assert judge(human, start=start, human=human).score == 1


def test_more_than_the_human_did_lowers_precision_alone(judge):
    judgement = judge(HUMAN + "\n\ndef another():\n    print('nothing of the kind')\n")
    assert judgement.score == 1
    assert 0.5 < judgement.details["precision"] < 1
    assert judge(HUMAN).details["precision"] == 1


def test_the_table_has_every_statement_of_the_human_and_sums_up(judge):
    judgement = judge(HUMAN.replace("0.95", "0.9"))
    scores = [row["score"] for row in judgement.table]
    assert judgement.score == pytest.approx(sum(scores) / len(scores))
    assert len(scores) == judgement.details["human_statements"]
    (missed,) = [row for row in judgement.table if row["score"] < 1]
    assert missed["after"] == "momentum = 0.95"
    removed = {row["before"] for row in judgement.table if row["after"] is None}
    assert "for group in optimizer.param_groups:" in removed


# --- what cannot be judged ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("def f(:\n", r"the script does not parse: .* in line 1"),
        ("x = 1\n" + "\0", r"the script (does not|cannot be) parse"),
        ("x = " + "(" * 5000 + ")" * 5000, r"the script (does not|cannot be) parse"),
        ("x = " + "-" * 200_000 + "1", r"the script (does not|cannot be) parse"),
        ("x = 1\n" * (MAX_STATEMENTS + 1), r"over 4000 statements"),
        ("#" * 1_000_001, r"too long to be judged"),
    ],
)
def test_what_is_no_script_gets_no_score(judge, agent, message):
    with pytest.raises(SpeedkitError, match=message):
        judge(agent)


def test_records_that_differ_in_no_statement_have_no_score(judge):
    with pytest.raises(SpeedkitError, match="differ in no statement"):
        judge(HUMAN, human=f"# nothing\n{START}")


@pytest.mark.parametrize(
    "agent", ["x = 1\n" * MAX_STATEMENTS, "".join(f"v{i} = f(v{i - 1})\n" for i in range(3000))]
)
def test_a_script_made_to_be_slow_is_judged_in_bounded_time(judge, agent):
    begin = time.process_time()
    assert judge(agent).score < 0.2
    assert time.process_time() - begin < 20
