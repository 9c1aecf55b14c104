"""Searches with a language model: a real server on loopback, budgets, kills, replay."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import speedkit
from speedkit.core.journal import read_events
from tests.conftest import INSTANT, TOY
from tests.core.test_resume import facts
from tests.kit.fake_openai import FakeOpenAI, fail, say

KEY = "sk" + "-canary-0123456789abcdefghijklmnop"
STEPS = re.compile(r"num_iterations: int = ([0-9]+)")


def fewer_steps(request):
    """Answer a coding prompt with two steps fewer, anything else with a sentence."""
    text = request.body["messages"][-1]["content"]
    found = STEPS.findall(text)
    if "SEARCH" not in text or not found:
        return say("It ran faster.")
    old = int(found[-1])
    return say(
        f"HYPOTHESIS: fewer steps\n\nsolve.py\n```python\n<<<<<<< SEARCH\n"
        f"    num_iterations: int = {old}\n=======\n    num_iterations: int = {old - 2}\n"
        ">>>>>>> REPLACE\n```\n\nEND OF EDITS\n"
    )


@pytest.fixture
def key(monkeypatch):
    """Set a key that must never be seen again."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def settings(server, **more):
    """Return the settings of a run that asks the server."""
    common = {"coder": "llm", "model": "openai/fake", "nodes": 4, "train_duplicates": True}
    return {**common, "api_base": server.url, **more}


def everything_below(path):
    """Return the bytes of all files of a run, git objects unpacked."""
    data = b"".join(p.read_bytes() for p in path.rglob("*") if p.is_file())
    command = ["git", "-C", str(path / "repo"), "cat-file", "--batch-all-objects", "--batch"]
    return data + subprocess.run(command, capture_output=True, check=True).stdout


def calls_of(path):
    """Return the model calls that the journal of a run knows."""
    events = read_events(path / "events.jsonl")
    return [event["call"] for event in events if event["type"] == "model_called"]


@pytest.mark.parametrize("scaffold", ["flat", "tree", "forest", "aide", "multi_aide"])
def test_each_scaffold_with_a_model(toy_run, key, scaffold):
    with FakeOpenAI(fewer_steps) as server:
        tree = toy_run(**settings(server, scaffold=scaffold, summarizer="llm"))
    assert [str(n.outcome) for n in tree][1:] == ["valid"] * 4
    assert {n.model for n in tree if n.id} == {"fake"}
    assert tree.fsr() > 0
    assert key.encode() not in everything_below(tree.path)
    assert len(server.requests) == 8, "one call for the code and one for the summary of a node"


def test_children_of_a_step_are_asked_for_at_once(toy_run, key):
    all_here = threading.Barrier(4, timeout=60)

    def when_all_are_here(request):
        all_here.wait()
        return fewer_steps(request)

    with FakeOpenAI(when_all_are_here) as server:
        tree = toy_run(**settings(server, scaffold="flat"))
    assert (server.max_in_flight, len(tree)) == (4, 5)


def test_edit_failures_are_no_candidates(toy_run, key):
    with FakeOpenAI(lambda request: say("I would rather not.")) as server:
        options = {"coder": {"max_reflections": 1}}
        tree = toy_run(**settings(server, nodes=2, options=options))
    assert [str(n.outcome) for n in tree][1:] == ["edit_failed"] * 2
    assert tree.best() is None
    assert all("edit:" in n.reason for n in tree if n.id)
    assert not (tree.path / "nodes/0001/metrics.json").exists()


def test_a_refused_key_ends_the_run_at_once(toy_run, key):
    with (
        FakeOpenAI(lambda request: fail(401)) as server,
        pytest.raises(speedkit.SpeedkitError, match="OPENAI_API_KEY") as caught,
    ):
        toy_run(**settings(server, scaffold="tree"))
    assert len(server.requests) == 1
    assert KEY not in str(caught.value)


def test_a_budget_stops_cleanly_and_the_run_goes_on_with_more(toy_run, key, tmp_path):
    with FakeOpenAI(fewer_steps) as server:
        whole = toy_run("whole", **settings(server, scaffold="tree"))
        spent = [call["usage"]["input"] + call["usage"]["output"] for call in calls_of(whole.path)]
        limit = {"max_tokens": sum(spent) // 2, "llm": {"max_output_tokens": 500}}
        with pytest.raises(speedkit.SpeedkitError, match="--max-tokens") as caught:
            toy_run("short", **settings(server, scaffold="tree", **limit))
        assert caught.value.exit_code == 4
        stopped = speedkit.open_run(tmp_path / "short")
        assert stopped.status == "stopped"
        assert 1 < len(stopped) < 5
        assert len(calls_of(stopped.path)) < len(spent)
        resumed = speedkit.run(resume=tmp_path / "short", max_tokens=10_000_000)
    assert facts(resumed) == facts(whole)


def test_a_finished_search_is_replayed_offline_with_the_same_commits(toy_run, key, tmp_path):
    cache = {"llm_cache": str(tmp_path / "replies.sqlite")}
    with FakeOpenAI(fewer_steps) as server:
        whole = toy_run("whole", **settings(server, summarizer="llm", **cache))
    asked = len(server.requests)
    replayed = toy_run("again", **settings(server, summarizer="llm", llm_replay=True, **cache))
    assert [n.commit for n in replayed] == [n.commit for n in whole]
    assert [n.summary for n in replayed] == [n.summary for n in whole]
    assert len(server.requests) == asked
    costs = [call["cost"] for call in calls_of(replayed.path)]
    assert costs
    assert set(costs) == {0.0}


def test_kill_during_a_model_call_then_resume(toy_run, key, tmp_path):
    path, killed = tmp_path / "run", threading.Event()

    def late_at_first(request):
        if request.index == 0:
            killed.wait(60)
        return fewer_steps(request)

    with FakeOpenAI(late_at_first) as server:
        command = [sys.executable, "-m", "speedkit", "run", f"{TOY}/1", "--out", str(path)]
        command += ["--load", str(INSTANT), "--executor", "instant", "--nodes", "3"]
        command += ["--scaffold", "tree", "--model", "openai/fake", "--api-base", server.url]
        command += ["--train-duplicates"]
        process = subprocess.Popen([*command, "--display", "none"])
        deadline = time.monotonic() + 60
        while not server.requests:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed.set()
        resumed = speedkit.run(resume=path)
        whole = toy_run("whole", **settings(server, scaffold="tree", nodes=3))
    assert facts(resumed) == facts(whole)
    calls = calls_of(path)
    assert [c["status"] for c in calls].count("lost") == 1
    assert len(calls) == len({c["request_id"] for c in calls}) == 4


def test_the_training_job_does_not_see_the_key(tmp_path, key):
    family = tmp_path / "family"
    family.mkdir()
    (family / "family.toml").write_text((TOY / "family.toml").read_text())
    (family / "scripts").mkdir()
    for name in ("slow", "fast"):
        text = (TOY / "scripts" / f"{name}.py").read_text()
        spy = "import os\nprint(dict(os.environ))\n"
        (family / "scripts" / f"{name}.py").write_text(spy + text)
    tree = speedkit.run(f"{family}/1", coder="noop", nodes=1, out=tmp_path / "run")
    log = (tree.path / "nodes/0001/rank0.stdout.log").read_text()
    assert "PATH" in log
    assert key not in log
