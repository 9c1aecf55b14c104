"""Sweeps that ask a model: one purse for all runs, and estimates that say what they leave out."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from speedkit.analysis import load
from speedkit.core.errors import BudgetReached, ConfigError
from speedkit.core.journal import read_events
from speedkit.core.ledger import Intent, Ledger, ModelCall, Usage
from speedkit.sweeping import make_sweep, plan_sweep, resume_sweep, run_sweep
from tests.conftest import TOY
from tests.e2e.test_models import fewer_steps
from tests.kit import grid_parts
from tests.kit.fake_openai import FakeOpenAI

# --- a ledger of several runs -----------------------------------------------------------------


def intent(name, cost):
    usage = Usage(input=10, output=10)
    return Intent(name, "draft", "m", usage, cost, cost / 2)


def call(name, cost, tokens=20):
    return ModelCall(name, "draft", "m", "m", Usage(input=tokens), cost)


def test_what_one_run_spends_is_missing_to_the_other():
    purse = Ledger(max_cost=1.0)
    one, other = Ledger(purse=purse), Ledger(purse=purse, max_cost=5.0)
    one.admit(intent("a", 0.9))
    one.settle(call("a", 1.2))
    assert purse.totals.known_cost == 1.2
    with pytest.raises(BudgetReached, match=r"limit of \$1 "):
        other.admit(intent("b", 0.1))
    assert other.in_flight == purse.in_flight == ()
    assert (one.totals.known_cost, other.totals.known_cost) == (1.2, 0.0)


def test_a_limit_of_a_run_leaves_the_purse_alone():
    purse = Ledger(max_cost=10.0)
    run = Ledger(purse=purse, max_cost=1.0)
    run.admit(intent("a", 0.5))
    run.settle(call("a", 1.0))
    with pytest.raises(BudgetReached):
        run.admit(intent("b", 0.5))
    assert purse.in_flight == ()
    Ledger(purse=purse).admit(intent("c", 0.5))


def test_a_call_that_does_not_fit_the_purse_waits_for_other_runs():
    purse = Ledger(max_cost=1.0)
    one, other = Ledger(purse=purse), Ledger(purse=purse)
    one.admit(intent("a", 0.8))
    admitted = threading.Event()
    thread = threading.Thread(target=lambda: (other.admit(intent("b", 0.5)), admitted.set()))
    thread.start()
    assert not admitted.wait(0.1)
    one.settle(call("a", 0.2))
    assert admitted.wait(30)
    thread.join()


def test_a_call_whose_end_nobody_saw_is_charged_to_the_purse_too():
    purse = Ledger(max_cost=1.0)
    Ledger(purse=purse).restore([call("a", 0.3)], [intent("a", 0.3), intent("b", 0.4)])
    assert purse.totals.known_cost == pytest.approx(0.2), (
        "the finished one is the caller's to count"
    )


def test_a_purse_needs_prices():
    assert Ledger(purse=Ledger(max_cost=1.0)).needs_prices
    assert not Ledger(purse=Ledger(max_tokens=1)).needs_prices


# --- sweeps -----------------------------------------------------------------------------------


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk" + "-canary-0123456789abcdefghijklmnop")


def grid(server, vary=None, seeds=2, jobs=1, **base):
    limits = {k: base.pop(k) for k in ("max_cost", "max_tokens", "max_hours") if k in base}
    given = {
        "load": (grid_parts.NAME,),
        "executor": "quick",
        "scaffold": "tree",
        "nodes": 3,
        "calibration": "reference",
        "guards": (),
        "train_duplicates": True,
        "model": "openai/fake",
        "api_base": server.url if server else "http://127.0.0.1:9/v1",
        "llm": {"price_in": 1000.0, "price_out": 1000.0},
    }
    return make_sweep([f"{TOY}/1"], vary, seeds=seeds, jobs=jobs, **limits, **{**given, **base})


def test_the_limit_on_dollars_holds_for_all_runs_together(key, tmp_path):
    with FakeOpenAI(fewer_steps) as server:
        whole = run_sweep(grid(server), out=tmp_path / "whole")
        one_call = whole.spent.known_cost / 6
        limit = round(3.5 * one_call, 2)
        result = run_sweep(grid(server, max_cost=limit), out=tmp_path / "s")
        assert result.exit_code == 4
        assert "open" in [e.status for e in result.ended.values()]
        assert f"--max-cost {limit:g} is reached" in result.limit
        assert limit <= result.spent.known_cost <= limit + 1.5 * one_call
        again = resume_sweep(tmp_path / "s")
        assert (again.exit_code, again.spent) == (4, result.spent), "nothing more was spent"
        done = resume_sweep(tmp_path / "s", max_cost=100)
    assert [e.status for e in done.ended.values()] == ["finished"] * 2
    assert done.spent.calls == 6
    assert len(server.requests) == 12


def kill(path, *, in_call):
    """Leave a run directory as a controller that is killed before, or in, its first call."""
    lines = (path / "events.jsonl").read_bytes().splitlines(keepends=True)
    types = [event["type"] for event in read_events(path / "events.jsonl")]
    (path / "events.jsonl").write_bytes(b"".join(lines[: types.index("model_intent") + in_call]))


def test_a_call_that_a_killed_controller_left_open_counts_as_in_the_table_of_results(key, tmp_path):
    with FakeOpenAI(fewer_steps) as server:
        run_sweep(grid(server), out=tmp_path / "s")
        for seed in (0, 1):
            kill(tmp_path / "s" / f"toy-1_seed={seed}", in_call=seed == 1)
        table = load(tmp_path / "s")
        assert (list(table["calls"]), table["dollars"].sum() > 0) == ([0, 1], True)
        cut = resume_sweep(tmp_path / "s", max_cost=table["dollars"].sum())
        assert (cut.exit_code, len(server.requests)) == (4, 6), "the other run may spend nothing"
        assert cut.spent.known_cost == pytest.approx(table["dollars"].sum())
        done = resume_sweep(tmp_path / "s", max_cost=100)
        table = load(tmp_path / "s")
    assert (done.exit_code, done.spent.calls, table["calls"].sum()) == (0, 7, 7), "each once"
    assert done.spent.known_cost == pytest.approx(table["dollars"].sum())


def test_runs_that_a_limit_stopped_go_on_when_the_sweep_has_none_any_more(key, tmp_path):
    with FakeOpenAI(fewer_steps) as server:
        result = run_sweep(grid(server, max_tokens=1), out=tmp_path / "s")
        assert [e.status for e in result.ended.values()] == ["open", "missing"]
        done = run_sweep(grid(server), out=tmp_path / "s")
    assert [e.status for e in done.ended.values()] == ["finished"] * 2
    assert len(server.requests) == 6


def test_runs_without_a_model_go_on_when_the_money_is_spent(key, tmp_path):
    with FakeOpenAI(fewer_steps) as server:
        sweep = grid(server, {"model": ["openai/fake", "none"]}, seeds=1, max_cost=0)
        result = run_sweep(sweep, out=tmp_path / "s")
    assert [e.status for e in result.ended.values()] == ["missing", "finished"]
    assert (result.exit_code, server.requests) == (4, [])


def test_a_limit_of_each_run_is_its_own_affair(key, tmp_path):
    with FakeOpenAI(fewer_steps) as server:
        sweep = grid(server)
        sweep = replace(sweep, base={**sweep.base, "max_tokens": 1})
        result = run_sweep(sweep, out=tmp_path / "s")
        assert [e.status for e in result.ended.values()] == ["stopped"] * 2
        assert (result.exit_code, len(server.requests)) == (0, 2)
        resume_sweep(tmp_path / "s")
    assert len(server.requests) == 2, "a run at its own limit is over"


def test_a_missing_key_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    sweep = grid(None, {"model": ["openai/gpt-4.1", "nobody/x"]}, api_base=None)
    with pytest.raises(ConfigError) as caught:
        run_sweep(sweep, out=tmp_path / "s")
    told = "\n".join(caught.value.problems)
    assert "set OPENAI_API_KEY" in told
    assert "no provider in the model name 'nobody/x'" in told
    assert not (tmp_path / "s").exists()


def test_an_estimate_knows_prompts_and_prices():
    plan = plan_sweep(grid(None, {"coder": ["llm", "tuner"]}))
    tokens, dollars = plan.amount("prompt_tokens"), plan.amount("prompt_dollars")
    assert tokens.unknown == dollars.unknown == 0
    assert dollars.value == pytest.approx(tokens.value * 1000 / 1e6)
    asking = [run for run in plan.runs if run.prompt_tokens]
    assert len(asking) == 2
    assert {run.reply_dollars for run in asking} == {3 * 1000 * 1000 / 1e6}


def test_an_unknown_price_is_unknown():
    plan = plan_sweep(grid(None, {"coder": ["llm", "tuner"]}, llm={}))
    assert plan.amount("prompt_tokens").unknown == 0
    assert vars(plan.amount("prompt_dollars")) == {"value": 0, "unknown": 2}
    assert vars(plan.amount("reply_dollars")) == {"value": 0, "unknown": 2}
