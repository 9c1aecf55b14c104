"""A chain of tasks: what each starts from, where it ends, and how it goes on after a kill."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

import speedkit
from speedkit.chain import Interval
from speedkit.core.errors import BudgetReached, RunDirectoryError, UsageError
from speedkit.core.history import GitHistory, RunDirectory
from speedkit.core.node import Outcome
from speedkit.cumulative import Watch, load, resume_chain, run_chain
from tests.conftest import INSTANT, TOY

TIMES = (100, 80, 60, 40)
PLUGIN = """
from speedkit.core.components import Coder, Draft
import re, speedkit

class StepsCoder(Coder):
    'Takes a tenth of the steps away, but in the task named by STOP.'

    def write(self, request):
        text = request.files[request.task.script]
        steps = int(re.search(r"int = (\\d+)", text)[1])
        if request.task.id != STOP:
            text = text.replace(f"int = {steps}", f"int = {steps * 9 // 10}")
        return Draft({request.task.script: text}, f"{steps} steps and less")

@speedkit.hookimpl
def register_coders(register):
    register("steps", StepsCoder)
"""


@pytest.fixture(autouse=True)
def no_guards(monkeypatch):
    """Let made-up losses and times pass."""
    monkeypatch.setenv("SPEEDKIT_GUARDS", "none")


@pytest.fixture
def ladder(tmp_path):
    """Return a family of four records and three tasks."""
    folder = tmp_path / "ladder"
    shutil.copytree(TOY / "scripts", folder / "scripts")
    slow = (TOY / "scripts" / "slow.py").read_text()
    head = (TOY / "family.toml").read_text().partition("[[record]]")[0]
    records = []
    for index, steps in enumerate(TIMES, 1):
        (folder / f"scripts/r{index}.py").write_text(slow.replace("= 100", f"= {steps}"))
        records.append(
            f'[[record]]\nindex = {index}\ntitle = "r{index}"\nscript = "scripts/r{index}.py"\n'
        )
    (folder / "family.toml").write_text(head.replace('"toy"', '"ladder"') + "\n".join(records))
    return folder


@pytest.fixture
def chain(ladder, tmp_path):
    """Return a function that runs the ladder on the instant executor."""

    def run(out="chain", first=1, last=3, stop=0, **settings):
        plugin = tmp_path / "steps_coder.py"
        plugin.write_text(f"STOP = {stop}\n{PLUGIN}")
        given = {
            "load": (str(INSTANT), str(plugin)),
            "executor": "instant",
            "coder": "steps",
            "scaffold": "flat",
            "nodes": 1,
            "calibration_runs": 1,
            "train_duplicates": True,
        }
        return run_chain(str(ladder), first, last, out=tmp_path / out, **{**given, **settings})

    return run


def starts(found, seed=0):
    """Return the time of node 0 of each run of a chain, in steps."""
    paths = sorted((found.path / f"seed-{seed}").glob("task-*"))
    return [round(speedkit.open_run(p).root.train_time_ms / 101) for p in paths]


def git(found, *arguments, seed=0):
    repo = found.path / f"seed-{seed}" / "repo"
    done = subprocess.run(
        ["git", "-C", repo, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# --- the chain ------------------------------------------------------------------------------


def test_each_task_starts_from_the_best_script_of_the_one_before(chain):
    found = chain()
    assert found.status == "finished"
    assert starts(found) == [100, 90, 81]
    (seed,) = found.seeds
    assert [link.target_record for link in seed.links] == [2, 3, 4]
    assert [round(link.time_ms / 101) for link in seed.links] == [90, 81, 72]
    assert [round(link.target_ms / 101) for link in seed.links] == [80, 60, 40]
    assert [link.fsr for link in seed.links] == pytest.approx([10 / 20, 9 / 30, 9 / 41], rel=0.01)
    assert [link.agent_speedup for link in seed.links] == pytest.approx(
        [100 / 90, 100 / 81, 100 / 72], rel=0.01
    )
    assert [link.human_speedup for link in seed.links] == pytest.approx(
        [100 / 80, 100 / 60, 100 / 40], rel=0.01
    )


def test_with_the_oracle_the_chain_is_the_humans(chain):
    (seed,) = chain(coder="oracle").seeds
    for link in seed.links:
        assert link.fsr == 1
        assert link.agent_speedup == link.human_speedup


def test_node_0_of_a_later_task_is_measured_and_its_script_kept(chain):
    found = chain()
    run = speedkit.open_run(found.path / "seed-0/task-02")
    assert run.calibration.source == "measured"
    assert run.calibration.start_ms == run.root.train_time_ms == 9090
    history = GitHistory(run.path / "repo")
    assert "int = 90" in history.files(run.root.commit)["solve.py"]
    history.close()


def test_a_chain_may_begin_in_the_middle(chain):
    found = chain(first=2, last=3)
    assert starts(found) == [80, 72]
    assert found.seeds[0].links[0].human_speedup == pytest.approx(80 / 60, rel=0.01)


def test_it_ends_where_a_task_gives_nothing(chain):
    found = chain(stop=2)
    (seed,) = found.seeds
    assert (seed.status, found.status) == ("no gain", "finished")
    assert [link.gained for link in seed.links] == [True, False]
    assert seed.links[1].node is None
    assert seed.links[1].time_ms == seed.links[0].time_ms
    assert [row["reached"] for row in found.rows()] == [True, True, False]
    kept = [row["agent_speedup"] for row in found.rows()]
    assert kept[0] == kept[1] == kept[2]
    assert found.summary()[2]["human_speedup"] is None


def test_it_goes_on_where_that_is_asked(chain):
    found = chain(stop=2, go_on=True)
    assert [link.gained for link in found.seeds[0].links] == [True, False, True]
    assert starts(found) == [100, 90, 90]
    assert found.seeds[0].status == "finished"


def test_a_task_without_a_valid_node_gives_nothing(chain):
    found = chain(target_loss=0.71)
    assert [link.gained for link in found.seeds[0].links] == [False]
    assert found.seeds[0].links[0].fsr is None
    tree = speedkit.open_run(found.path / "seed-0/task-01")
    assert tree[1].outcome is Outcome.INVALID


# --- seeds and results ----------------------------------------------------------------------


def test_a_chain_has_one_controller(chain, tmp_path):
    seen = []

    def again(seed, task, path):
        with pytest.raises(RunDirectoryError, match="is in use: process") as caught:
            resume_chain(tmp_path / "chain")
        seen.append(caught)

    found = chain(last=1, watch=Watch(on_run=again))
    assert (found.status, len(seen)) == ("finished", 1)


def test_seeds_give_mean_and_interval(chain):
    found = chain(seeds=3, seed=5, last=1)
    assert [seed.seed for seed in found.seeds] == [5, 6, 7]
    (row,) = found.summary()
    assert row["reached"] == 3
    assert row["agent_speedup"]["n"] == 3
    assert row["agent_speedup"]["low"] == row["agent_speedup"]["mean"], "a ladder without noise"


def test_intervals():
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert Interval.of([2.0]) == Interval(2.0, None, None, 1)
    wide = Interval.of([0.0, 1.0] * 100)
    assert wide.high - wide.mean == pytest.approx(1.96 * 0.5013 / 200**0.5, rel=0.01)


def test_the_result_is_on_disk_as_it_was_returned(chain):
    found = chain(seeds=2, stop=2)
    assert load(found.path) == found
    stored = json.loads((found.path / "result.json").read_text())
    assert stored["status"] == "finished"
    assert stored["summary"] == json.loads(json.dumps(found.summary()))
    assert len(load(found.path).rows()) == 2 * 3


def test_all_hints_are_given_by_default(chain, ladder):
    for task_id, names in ((1, ["2-text.md"]), (2, ["1-pseudocode.md", "3-paper.md"])):
        folder = ladder / "hints" / str(task_id)
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("a hint")
    found = chain()
    assert [_hints(found, task) for task in (1, 2, 3)] == [[2], [1, 3], []]
    assert _hints(chain(out="none", hints="none", last=1), 1) == []


def _hints(found, task):
    run = RunDirectory(found.path / f"seed-0/task-{task:02d}")
    return run.manifest["config"]["hints"]


# --- one git history ------------------------------------------------------------------------


def test_the_chain_is_one_git_history(chain):
    found = chain()
    (seed,) = found.seeds
    first_parents = git(found, "log", "--first-parent", "--format=%s", "chain").splitlines()
    assert len(first_parents) == 4
    assert first_parents[-1] == "Record 1: r1"
    assert first_parents[0].startswith("ladder/3: 7272 ms, 1.39x")
    reachable = git(found, "rev-list", "chain").split()
    assert all(link.commit in reachable for link in seed.links)
    assert "int = 72" in git(found, "show", "chain:solve.py")
    assert "Outcome: valid" in git(found, "notes", "--ref=task-02", "show", seed.links[1].commit)
    assert git(found, "fsck", "--strict") == ""


def test_a_repository_that_a_kill_left_locked_is_made_anew(chain):
    found = chain(last=2)
    head = git(found, "rev-parse", "chain")
    repo = found.path / "seed-0/repo"
    (repo / "refs/heads/chain.lock").write_text("")
    resume_chain(found.path)
    assert git(found, "rev-parse", "chain") == head
    assert not (repo / "refs/heads/chain.lock").exists()


def test_two_chains_alike_have_equal_hashes(chain):
    heads = {git(chain(out=out, last=2), "rev-parse", "chain") for out in ("one", "two")}
    assert len(heads) == 1


# --- going on -------------------------------------------------------------------------------


class Killed(BaseException):
    """As a kill: nobody catches it."""


@pytest.mark.parametrize("at", [1, 8, 14])
def test_a_chain_that_was_killed_ends_as_one_that_was_not(chain, at, tmp_path):
    whole = chain(out="whole", last=2)
    seen = []

    def kill(event):
        seen.append(event)
        if len(seen) == at:
            raise Killed

    with pytest.raises(Killed):
        chain(out="killed", last=2, watch=Watch(on_event=kill))
    assert load(tmp_path / "killed").status == "running"
    again = resume_chain(tmp_path / "killed")
    assert again.seeds == whole.seeds
    assert git(again, "rev-parse", "chain") == git(whole, "rev-parse", "chain")


def test_a_finished_chain_does_nothing_again(chain):
    found = chain(last=2)
    told = []
    again = resume_chain(found.path, watch=Watch(on_run=lambda *facts: told.append(facts)))
    assert told == []
    assert again == found


def test_a_run_that_began_from_another_script_is_refused(chain):
    found = chain(last=2)
    first = found.path / "seed-0/task-01"
    shutil.rmtree(first)
    config = {"executor": "instant", "coder": "oracle", "nodes": 1, "load": (str(INSTANT),)}
    speedkit.run(f"{found.family}/1", out=first, **config)
    with pytest.raises(UsageError, match="task-02 began from another script"):
        resume_chain(found.path)


def test_limits_are_those_of_the_whole_chain(chain, monkeypatch, tmp_path):
    from speedkit import cumulative

    monkeypatch.setattr(cumulative, "_spent", lambda runs: {"max_cost": len(runs), "max_tokens": 0})
    with pytest.raises(BudgetReached, match=r"reached its max_cost of 2.*--max-cost MORE"):
        chain(max_cost=2)
    found = load(tmp_path / "chain")
    assert len(found.seeds[0].links) == 2
    again = resume_chain(found.path, max_cost=5)
    assert again.status == "finished"
    assert len(again.seeds[0].links) == 3
    with pytest.raises(UsageError, match="nodes cannot change"):
        resume_chain(found.path, nodes=3)


# --- a run that starts from a script of its own ---------------------------------------------


def test_a_run_keeps_the_script_it_started_from(toy_run, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text((TOY / "scripts" / "slow.py").read_text().replace("= 100", "= 90"))
    tree = toy_run(coder="oracle", nodes=1, start=str(script))
    assert (tree.root.train_time_ms, tree.fsr()) == (9090, 1)
    script.unlink()
    assert speedkit.open_run(tree.path).fsr() == 1
    assert len(speedkit.run(resume=tree.path, nodes=2)) == 3


def test_its_time_is_measured_and_not_looked_up(toy_run, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text((TOY / "scripts" / "slow.py").read_text().replace("= 100", "= 90"))
    with pytest.raises(UsageError, match="starts from a script of its own"):
        toy_run(start=str(script), calibration="reference")
    assert toy_run(out="record", coder="noop", nodes=1).root.train_time_ms == 10100
    with pytest.raises(UsageError, match="the script to start from cannot be read"):
        toy_run(out="none", start=str(tmp_path / "none.py"))


# --- verified -------------------------------------------------------------------------------


def verify(path, verdicts):
    nodes = {str(k): {"fsr": fsr, "verdict": verdict} for k, (fsr, verdict) in verdicts.items()}
    (path / "verify.json").write_text(json.dumps({"nodes": nodes}))


def test_only_verified_nodes_carry_on(chain, tmp_path):
    with pytest.raises(UsageError, match="task-01 is not verified yet; run: speedkit verify"):
        chain(verified=True, nodes=2, last=2)
    run = tmp_path / "chain/seed-0/task-01"
    verify(run, {1: (0.4, "confirmed"), 2: (0.9, "refuted")})
    with pytest.raises(UsageError, match="task-02 is not verified yet"):
        resume_chain(tmp_path / "chain")
    (seed,) = load(tmp_path / "chain").seeds
    assert (seed.links[0].node, seed.links[0].verified_fsr) == (1, 0.4)
    assert seed.links[0].time_ms == pytest.approx(10100 - 0.4 * 2020)


@pytest.mark.parametrize(
    "verdicts", [{}, {1: (0.9, "undecided")}, {1: (-0.1, "confirmed")}, {7: (0.9, "confirmed")}]
)
def test_a_task_without_a_confirmed_node_gives_nothing(chain, tmp_path, verdicts):
    with pytest.raises(UsageError):
        chain(verified=True)
    verify(tmp_path / "chain/seed-0/task-01", verdicts)
    found = resume_chain(tmp_path / "chain")
    assert found.seeds[0].status == "no gain"


# --- mistakes, and the command --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last": 4}, "no task named 'ladder/4'"),
        ({"first": 3, "last": 2}, "has no task in it"),
        ({"seeds": 0}, "at least one seed"),
        ({"calibration": "reference"}, "no times of the agent's scripts"),
        ({"start": "x.py"}, "unset start"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(chain, tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        chain(**arguments)
    assert not (tmp_path / "chain").exists()


def test_a_directory_that_is_in_use_is_refused(chain, tmp_path):
    found = chain(last=1)
    with pytest.raises(RunDirectoryError, match="cumulative speedrun already"):
        chain(last=1)
    with pytest.raises(UsageError, match="is no cumulative speedrun"):
        load(tmp_path)
    (found.path / "result.json").write_text("{")
    with pytest.raises(UsageError, match=r"result\.json cannot be read"):
        load(found.path)


def test_the_command(ladder, tmp_path, program):
    out = tmp_path / "chain"
    given = ("--load", INSTANT, "--executor", "instant", "--coder", "oracle", "--nodes", 1)
    result = program("cumulative", ladder, "--to", 2, "--out", out, *given, "--seeds", 2)
    assert result.code == 0, result.err
    assert "seed 1, ladder/2: 1.67x, human 1.67x" in result.err
    assert "task 2   agent 1.67x [1.67, 1.67], human 1.67x [1.67, 1.67]" in result.out
    again = program("cumulative", "--resume", out, "--json")
    assert again.code == 0, again.err
    assert again.json == json.loads((out / "result.json").read_text())
    assert program("cumulative", ladder, "--resume", out).code == 2
    assert program("cumulative", ladder).code == 2
    assert "limits" not in program("cumulative", "--help").err
