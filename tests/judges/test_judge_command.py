"""``speedkit judge``, and the same from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import speedkit
from speedkit.core.errors import PluginError, UsageError
from speedkit.judging import auc, calibrate_judge, judge_run
from tests.conftest import TOY
from tests.judges.test_llm_judge import KEYS, asks_for_keys, comparison
from tests.kit.fake_openai import FakeOpenAI

PLUGIN = Path(__file__).with_name("plugin_of_judges.py")


@pytest.fixture
def oracle(toy_run):
    """Return a run of four nodes that hold the human change."""
    return toy_run(coder="oracle", nodes=2)


def files(tree, name="diff"):
    """Return the judgements on disk by node."""
    found = sorted(tree.path.glob(f"nodes/*/judge-{name}.json"))
    return {int(path.parent.name): json.loads(path.read_text()) for path in found}


# --- a run ----------------------------------------------------------------------------------


def test_the_best_node_is_judged_and_the_score_kept_beside_it(oracle, program):
    result = program("judge", oracle.path)
    assert result.code == 0, result.err
    (kept,) = files(oracle).values()
    assert kept["score"] == 1
    assert kept["commit"] == oracle.best().commit
    assert kept["judge"]["name"] == "diff"
    assert kept["judge"]["version"] == speedkit.__version__
    (row,) = kept["table"]
    assert (row["before"], row["after"]) == ("num_iterations = 100", "num_iterations = 60")
    assert "num_iterations = 100 -> num_iterations = 60" in result.out
    assert "score  1.000" in result.out


def test_a_node_by_number_and_a_score_anew(toy_run, program):
    tree = toy_run(coder="noop", nodes=2)
    for _ in range(2):
        result = program("judge", tree.path, "1", "--json")
        assert result.code == 0, result.err
    assert files(tree).keys() == {1}
    assert result.json["score"] == files(tree)[1]["score"] == 0
    assert result.json["file"] == str(tree.path / "nodes/0001/judge-diff.json")
    assert not list(tree.path.glob("nodes/*/.judge*"))


def test_all_judges_every_node_that_has_code_of_its_own(toy_run, program):
    tree = toy_run(nodes=4)
    result = program("judge", tree.path, "--all")
    assert result.code == 0, result.err
    assert files(tree).keys() == {1, 2, 3, 4}
    assert result.out.count("node ") == 4


def test_a_node_that_cannot_be_judged_is_named_and_the_others_are_kept(
    toy_run, program, monkeypatch
):
    from speedkit.plugins.coders.noop import NoopCoder

    write = NoopCoder.write

    def broken(self, request):
        draft = write(self, request)
        if request.node_id == 2:
            draft.files["solve.py"] = "def f(:\n"
        return draft

    monkeypatch.setattr(NoopCoder, "write", broken)
    tree = toy_run(coder="noop", nodes=3, scaffold="flat", train_duplicates=True)
    result = program("judge", tree.path, "--all")
    assert result.code == 1
    assert "error: node 2: the script does not parse" in result.err
    assert files(tree).keys() == {1, 3}


def test_a_third_partys_judge(oracle, program):
    result = program("judge", oracle.path, "--plugin", "judge=fixed", "--load", PLUGIN)
    assert result.code == 0, result.err
    (kept,) = files(oracle, "fixed").values()
    assert kept["score"] == 0.5
    assert "\x1b" not in result.out
    assert "escape" in result.out


def test_a_score_that_is_none_is_refused(oracle, program):
    result = program("judge", oracle.path, "--judge", "wrong", "--load", PLUGIN)
    assert result.code == 1
    assert "judge wrong returned nan for a score in [0, 1]" in result.err
    assert files(oracle, "wrong") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "7"], "no node '7'"),
        (["RUN", "1", "2"], "at most one node"),
        (["RUN", "1", "--all"], "give no NODE with it"),
        (["RUN", "--judge", "dif"], "did you mean diff?"),
        (["RUN", "--judge", "llm"], "judge llm needs a model; give --model"),
        (["RUN", "--plugin", "coder=noop"], "only a judge is used here"),
        (["RUN", "-o", "coder.x=1"], "only options of judge and llm"),
        (["RUN", "-o", "judge.tries=3"], "judge.tries: there is no such option"),
        (["nowhere"], "nowhere is no run directory"),
        (["--calibrate", "RUN"], "is no task"),
        (["--calibrate", "--all", "mini/1"], "--all belongs to a run"),
    ],
)
def test_a_mistake_is_exit_status_2(oracle, program, arguments, message):
    given = [str(oracle.path) if a == "RUN" else a for a in arguments]
    result = program("judge", *given)
    assert result.code == 2, result.err
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_run_without_a_valid_node_has_no_best(toy_run, program):
    tree = toy_run(coder="noop", nodes=1, target_loss=0.1)
    result = program("judge", tree.path)
    assert result.code == 2
    assert "has no valid node yet" in result.err


# --- the judge llm --------------------------------------------------------------------------


def script(request):
    only = {"changes": KEYS["changes"][1:2]}
    found = {"fewer steps": (100, "num_iterations = 60")}
    if asks_for_keys(request):
        return json.dumps(only)
    return json.dumps(comparison(request, found) | {"percentage": 100})


def test_a_model_judges_a_node_and_what_it_cost_is_said(oracle, program, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with FakeOpenAI(script) as server:
        model = ("--model", "openai/fake", "--api-base", server.url)
        result = program("judge", oracle.path, "--plugin", "judge=llm", *model)
        assert result.code == 0, result.err
        (kept,) = files(oracle, "llm").values()
        assert kept["score"] == 1
        assert kept["judge"]["model"] == "openai/fake"
        assert "2 calls" in result.err
        folder = oracle.path / f"nodes/{oracle.best().id:04d}/judge-llm"
        assert len(list(folder.glob("prompt-*.md"))) == 2

        prices = ("-o", "llm.price_in=1000", "-o", "llm.price_out=1000", "--max-cost", "0.001")
        result = program("judge", oracle.path, "--judge", "llm", *model, *prices)
        assert result.code == 4
        assert "limit of $0.001" in result.err


# --- what scores are worth ------------------------------------------------------------------


def test_known_changes_are_told_apart(program):
    result = program("judge", "--calibrate", "mini/1", "mini/4", "--json")
    assert result.code == 0, result.err
    assert result.json["auc"] == result.json["auc_half"] == 1
    scores = {(s["task"], s["case"]): s["score"] for s in result.json["scores"]}
    assert len(scores) == 8
    assert scores["mini/4", "oracle"] == 1
    assert scores["mini/4", "unchanged"] == 0
    shown = program("judge", "--calibrate", "mini/1")
    assert "3 of 6 hunks" in shown.out
    assert "AUC       1.000" in shown.out


def test_a_judge_that_tells_nothing_apart_has_an_auc_of_a_half():
    found = calibrate_judge(["mini/1"], judge="fixed", load=(str(PLUGIN),))
    assert (found.auc, found.auc_half) == (0.5, 0.5)
    with pytest.raises(PluginError, match="returned nan"):
        calibrate_judge(["mini/1"], judge="wrong", load=(str(PLUGIN),))
    with pytest.raises(UsageError, match="at least one task"):
        calibrate_judge([])


def test_cases_that_a_task_does_not_have_are_left_out():
    found = calibrate_judge([f"{TOY}/1"])
    scores = {s.case: (s.score, s.note) for s in found.scores}
    assert scores["oracle"][0] == 1
    assert scores["half"] == (None, "the change cannot be halved")
    assert scores["other"] == (None, "no other task has a hunk that fits")
    assert (found.auc, found.auc_half) == (1, None)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [([1], [0], 1), ([0], [1], 0), ([1, 0], [0.5], 0.5), ([1], [1, 0], 0.75), ([], [0], None)],
)
def test_auc(positive, negative, expected):
    assert auc(positive, negative) == expected


def test_from_python(oracle):
    found = judge_run(oracle.path, [1], judge="diff")
    assert found[1].score == 1
    with pytest.raises(UsageError, match="has no node 9"):
        judge_run(oracle.path, [9])
