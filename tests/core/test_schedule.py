"""Coding and running overlap, and what is decided does not depend on it."""

from __future__ import annotations

import shutil

import pytest

import speedkit
from speedkit.core.journal import read_events
from speedkit.core.lane_clock import LaneClock
from speedkit.core.node import Outcome
from tests.conftest import TOY
from tests.core.test_resume import check_once, facts, forget

PLUGIN = '''
import re, random, time
import speedkit
from speedkit.core.components import Coder, Draft, Ending, Execution, Executor, Options

SCRIPT = re.compile(r"num_iterations: int = ([0-9]+)")


class SlowCoder(Coder):
    class Options(Options):
        seconds: float = 0.0
        jitter: float = 0.0
        eldest: float = 0.0
        step: int = 1
        kinds: int = 3

    def write(self, request):
        o = self.options
        time.sleep(o.seconds + o.jitter * random.random())
        time.sleep(o.eldest if request.sibling == 0 else 0)
        source = request.files[request.task.script]
        fewer = o.step * (1 + request.node_id % o.kinds)
        old = int(SCRIPT.search(source)[1])
        source = SCRIPT.sub(f"num_iterations: int = {old - fewer}", source)
        return Draft({request.task.script: source}, f"{fewer} steps fewer")


class SlowExecutor(Executor):
    """Needs a fixed time, and says that a run takes as long as it has steps."""

    class Options(Options):
        seconds: float = 0.0
        jitter: float = 0.0
        lanes: int = 1

    @property
    def lanes(self):
        return self.options.lanes

    def execute(self, job, watch):
        watch.started({"pid": 0})
        time.sleep(self.options.seconds + self.options.jitter * random.random())
        steps = int(SCRIPT.search((job.workspace / job.script).read_text())[1])
        watch.line(0, f"step:{steps}/{steps} val_loss:1.0000 train_time:{steps}ms", 0.01)
        return Execution(Ending.FINISHED, 0, wall_s=0.01)

    def fingerprint(self):
        return {"executor": "slow"}


@speedkit.hookimpl
def register_coders(register):
    register("slow", SlowCoder)


@speedkit.hookimpl
def register_executors(register):
    register("slow", SlowExecutor)
'''


@pytest.fixture
def slow_run(toy_run, tmp_path):
    """Return a function that runs the toy family with a coder and an executor that take time."""
    plugin = tmp_path / "slow.py"
    plugin.write_text(PLUGIN)

    def run(out, coding=None, running=None, searching=None, **settings):
        options = {
            "coder": coding or {},
            "executor": running or {},
            "scaffold": searching or {},
        }
        common = {"load": (str(plugin),), "executor": "slow", "coder": "slow", "guards": ()}
        return toy_run(out, **{**common, "options": options, **settings})

    return run


@pytest.mark.parametrize("scaffold", ["flat", "tree", "forest", "aide", "multi_aide"])
def test_strict_order_decides_as_a_sequential_run(slow_run, scaffold):
    common = {"scaffold": scaffold, "nodes": 9, "seed": 5}
    quick = slow_run("quick", **common)
    jittered = slow_run("jittered", {"jitter": 0.05}, {"jitter": 0.05, "lanes": 3}, **common)
    assert facts(quick) == facts(jittered)


def test_which_of_two_with_the_same_code_is_run_does_not_depend_on_who_is_coded_first(slow_run):
    common = {"scaffold": "multi_aide", "nodes": 4, "seed": 5}
    quick = slow_run("quick", {"kinds": 1}, **common)
    late = slow_run("late", {"kinds": 1, "eldest": 0.1}, {"lanes": 3}, **common)
    assert [n.same_as for n in quick][:4] == [None, None, 1, 1]
    assert facts(quick) == facts(late)
    assert [n.summary for n in quick] == [n.summary for n in late]


def test_a_run_with_the_same_code_again_goes_on_after_every_cut(slow_run, tmp_path):
    settings = {"scaffold": "multi_aide", "nodes": 3, "seed": 5}
    whole = slow_run("whole", {"kinds": 1, "eldest": 0.02}, **settings)
    lines = (whole.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    coded = [k for k, line in enumerate(lines, start=1) if b'"node_created"' in line]
    for kept in coded[1:]:
        path = tmp_path / f"cut-{kept}"
        shutil.copytree(whole.path, path)
        (path / "events.jsonl").write_bytes(b"".join(lines[:kept]))
        forget(path, read_events(path / "events.jsonl"))
        assert facts(speedkit.run(resume=path)) == facts(whole), f"cut after {kept} events"
        check_once(path)


def lanes_of(tree):
    """Return what the end of a run says of its lanes."""
    events = read_events(tree.path / "events.jsonl")
    return next(e["lanes"] for e in reversed(events) if e["type"] == "run_finished")


def test_lookahead_keeps_the_lane_busy(slow_run):
    coder, executor = {"seconds": 0.2}, {"seconds": 0.3}
    common = {"scaffold": "aide", "nodes": 8, "seed": 1}
    strict = slow_run("strict", coder, executor, **common)
    ahead = slow_run("ahead", coder, executor, {"lookahead": 1}, **common)
    assert lanes_of(strict)["idle_s"]["coding"] > 1.0
    assert lanes_of(ahead)["idle_s"]["coding"] < lanes_of(strict)["idle_s"]["coding"] / 2
    assert {n.staleness for n in strict} == {0}
    assert any(n.staleness for n in ahead)
    assert sum(n.counts for n in ahead) == 8


def test_a_run_with_lookahead_goes_on_after_every_cut(slow_run, tmp_path):
    whole = slow_run("whole", {}, {"seconds": 0.02}, {"lookahead": 2}, nodes=5, scaffold="tree")
    lines = (whole.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(0, len(lines), 2):
        path = tmp_path / f"cut-{kept}"
        shutil.copytree(whole.path, path)
        (path / "events.jsonl").write_bytes(b"".join(lines[:kept]))
        forget(path, read_events(path / "events.jsonl"))
        resumed = speedkit.run(resume=path)
        assert sum(n.counts for n in resumed) == 5
        assert all(n.outcome is Outcome.VALID for n in resumed)
        check_once(path)


def test_superseded_drafts_are_kept_and_cost_nothing(slow_run):
    options = {"lookahead": 2, "drop_superseded": True}
    tree = slow_run("run", {}, {"seconds": 0.3}, options, nodes=8, scaffold="tree")
    dropped = [n for n in tree if n.outcome is Outcome.DROPPED]
    assert dropped
    assert all(n.commit and n.staleness and n.wall_s is None for n in dropped)
    most = 2 * 8
    assert sum(n.counts for n in tree) == 8 or len(tree) - 1 == most


DROPPING = """
import speedkit
from speedkit.core.node import Stage


class Dropping(speedkit.Scaffold):
    lookahead = 8

    def is_superseded(self, tree, node):
        return node.id == 2

    def propose(self, tree, rng):
        return [speedkit.Proposal(0, Stage.DRAFT)]


@speedkit.hookimpl
def register_scaffolds(register):
    register("dropping", Dropping)
"""


def test_code_that_was_dropped_is_run_once_when_it_comes_again(slow_run, tmp_path):
    plugin = tmp_path / "dropping.py"
    plugin.write_text(DROPPING)
    load = (str(tmp_path / "slow.py"), str(plugin))
    coding, running = {"kinds": 2}, {"seconds": 0.2}
    tree = slow_run("run", coding, running, {}, load=load, scaffold="dropping", nodes=3)
    alike = [n for n in tree if n.code == tree[2].code]
    assert len(alike) >= 2
    assert sum(n.wall_s is not None for n in alike) == 1
    assert all(n.outcome is Outcome.VALID for n in alike if n.id != 2)


ADOPTING = """
import pathlib, re, threading
import speedkit
from speedkit.core.node import Stage

FOLDER = pathlib.Path(__file__).parent
planned = threading.Event()


class Adopting(speedkit.Executor):
    def execute(self, job, watch):
        watch.started({"pid": 0})
        if job.name == "node-1":
            assert planned.wait(30)
        return self.train("run", job, watch)

    def adopt(self, job, handle, watch):
        return self.train("gone on with", job, watch)

    def train(self, what, job, watch):
        with (FOLDER / "jobs").open("a") as file:
            file.write(f"{job.name} {what}\\n")
        watch.line(0, "step:9/9 val_loss:1.0000 train_time:9ms", 0.01)
        return speedkit.Execution(speedkit.Ending.FINISHED, 0, wall_s=0.01)


class Impatient(speedkit.Scaffold):
    lookahead = 2

    def is_superseded(self, tree, node):
        return (FOLDER / "resumed").exists()

    def propose(self, tree, rng):
        if 1 in tree:
            planned.set()
        return [speedkit.Proposal(0, Stage.DRAFT)]


@speedkit.hookimpl
def register_executors(register):
    register("adopting", Adopting)


@speedkit.hookimpl
def register_scaffolds(register):
    register("impatient", Impatient)
"""


def test_a_job_that_still_runs_is_neither_dropped_nor_tried_out_again(
    slow_run, tmp_path, monkeypatch
):
    shutil.copytree(TOY, tmp_path / "toy")
    with (tmp_path / "toy/family.toml").open("a") as file:
        file.write('[hooks]\nsmoke = "shortened:smoke"\n')
    (tmp_path / "shortened.py").write_text("def smoke(text, steps, nproc):\n    return text, ()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = tmp_path / "adopting.py"
    plugin.write_text(ADOPTING)
    tree = slow_run(
        "run",
        load=(str(tmp_path / "slow.py"), str(plugin)),
        task=f"{tmp_path}/toy/1",
        executor="adopting",
        scaffold="impatient",
        smoke_first=True,
        nodes=2,
    )
    assert tree[2].staleness, "it may be dropped"
    jobs = (tmp_path / "jobs").read_text().split("\n")
    assert [job for job in jobs if "node-2" in job] == ["node-2-smoke run", "node-2 run"]

    events = read_events(tree.path / "events.jsonl")
    started = [e["type"] == "job_started" and e["job"] == "node-2" for e in events].index(True)
    lines = (tree.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    (tree.path / "events.jsonl").write_bytes(b"".join(lines[: started + 1]))
    forget(tree.path, read_events(tree.path / "events.jsonl"))
    (tmp_path / "resumed").touch()
    (tmp_path / "jobs").unlink()
    assert speedkit.run(resume=tree.path)[2].outcome is Outcome.VALID
    jobs = (tmp_path / "jobs").read_text().split("\n")
    assert [job for job in jobs if "node-2" in job] == ["node-2 gone on with"]


STOPPING = """
import speedkit


@speedkit.hookimpl
def node_finished(run, node):
    if node.id == 1:
        raise speedkit.StopRun
"""


def test_an_observer_ends_a_run_within_a_step(slow_run, tmp_path):
    plugin = tmp_path / "stopping.py"
    plugin.write_text(STOPPING)
    load = (str(tmp_path / "slow.py"), str(plugin))
    tree = slow_run("run", {"kinds": 50}, {"seconds": 0.1}, load=load, scaffold="flat", nodes=20)
    assert tree.status == "stopped"
    finished = [n.id for n in tree if n.outcome is not Outcome.PENDING]
    assert 2 <= len(finished) < 12
    resumed = speedkit.run(resume=tree.path)
    assert resumed.status == "finished"
    assert sum(n.counts for n in resumed) == 20


def test_the_same_code_is_run_once(slow_run):
    tree = slow_run("run", {"step": 0}, nodes=3, scaffold="flat")
    nodes = [n for n in tree if n.id]
    assert [n.same_as for n in nodes] == [0] * len(nodes), "each is the start record unchanged"
    assert len(nodes) == 6, "as many again as the budget, and then it ends"
    assert {n.metrics for n in nodes} == {tree.root.metrics}
    assert tree.status == "finished"


def test_the_same_code_is_run_again_where_that_is_asked_for(slow_run):
    tree = slow_run("run", {"step": 0}, nodes=3, scaffold="flat", train_duplicates=True)
    assert [n.same_as for n in tree] == [None] * 4


def test_siblings_with_the_same_code_share_one_run(toy_run):
    tree = toy_run(coder="oracle", scaffold="flat", nodes=3)
    assert [n.same_as for n in tree] == [None] * 4, "controls measure noise: they are repeated"


def test_a_script_that_does_not_parse_takes_no_lane(slow_run, tmp_path):
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "import speedkit\nfrom speedkit.core.components import Coder, Draft\n"
        "class Broken(Coder):\n"
        "    def write(self, request):\n"
        "        return Draft({request.task.script: 'def f(:\\n'}, 'broken')\n"
        "@speedkit.hookimpl\ndef register_coders(register):\n    register('broken', Broken)\n"
    )
    load = (str(tmp_path / "slow.py"), str(plugin))
    tree = slow_run("run", coder="broken", load=load, nodes=1, options={})
    assert tree[1].outcome is Outcome.BUGGY
    assert "line 1" in tree[1].reason
    assert tree[1].wall_s is None
    assert "SyntaxError" in (tree.path / "nodes/0001/rank0.stderr.log").read_text()


def test_the_clock_tells_what_idle_lanes_wait_for():
    now = [0.0]
    clock = LaneClock(2, lambda: now[0])
    with clock.at("coding"):
        now[0] += 3
    with clock.at("running"):
        now[0] += 4
    now[0] += 1
    facts = clock.facts()
    assert facts["busy_s"] == 4
    assert facts["idle_s"] == {"coding": 6.0, "summarizing": 0.0, "other": 6.0}
    assert facts["busy"] == pytest.approx(4 / 16)
    assert clock.mean_s("running") == 4
