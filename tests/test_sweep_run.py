"""Running a sweep: what is done, what is done again, and what ends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import pytest

import speedkit
from speedkit.core.errors import ConfigError, RunDirectoryError, StopRun, UsageError
from speedkit.core.interrupt import Interrupt
from speedkit.core.journal import read_events
from speedkit.plugins.executors.remote_folder import EventWriter, began
from speedkit.plugins.executors.remote_job import FileWatch
from speedkit.sweeping import Watch, compare_arms, make_sweep, plan_sweep, resume_sweep, run_sweep
from speedkit.sweeping.state import JobClock
from tests.conftest import TOY
from tests.kit import grid_parts

TASK = f"{TOY}/1"


@pytest.fixture(autouse=True)
def behaviour():
    yield grid_parts.now
    grid_parts.now.reset()


@pytest.fixture
def grid(tmp_path):
    """Return a function that makes a sweep of the toy family."""

    def make(vary=None, seeds=1, jobs=1, **base):
        limits = {k: base.pop(k) for k in ("max_cost", "max_tokens", "max_hours") if k in base}
        given = {
            "load": (grid_parts.NAME,),
            "executor": "quick",
            "coder": "fewer",
            "scaffold": "flat",
            "nodes": 2,
            "calibration_runs": 1,
            "guards": (),
        }
        tasks = base.pop("tasks", [TASK])
        return make_sweep(tasks, vary, seeds=seeds, jobs=jobs, **limits, **{**given, **base})

    return make


def statuses(result):
    return [ended.status for ended in result.ended.values()]


def journals(path):
    return {p.parent.name: p.read_bytes() for p in path.glob("*/events.jsonl")}


# --- running, and running again ---------------------------------------------------------------


def test_every_run_of_a_grid_is_done(grid, tmp_path):
    told = []
    watch = Watch(on_start=lambda cell, path, resumed: told.append((cell.name, resumed)))
    result = run_sweep(grid({"scaffold": ["flat", "tree"]}, 2), out=tmp_path / "s", watch=watch)
    assert statuses(result) == ["finished"] * 4
    assert (result.exit_code, result.limit, result.failed) == (0, "", {})
    assert told == [(name, False) for name in result.ended]
    tree = speedkit.open_run(tmp_path / "s" / "toy-1_scaffold=tree_seed=1")
    assert (tree.status, len(tree)) == ("finished", 3)
    assert not (tmp_path / "s" / "failures.json").exists()


def test_what_is_over_is_not_touched_again(grid, tmp_path):
    sweep = grid(seeds=2)
    run_sweep(sweep, out=tmp_path / "s")
    before = journals(tmp_path / "s")
    assert statuses(resume_sweep(tmp_path / "s")) == ["finished"] * 2
    assert statuses(run_sweep(sweep, out=tmp_path / "s")) == ["finished"] * 2
    assert journals(tmp_path / "s") == before


def test_a_plan_that_has_grown_runs_only_what_is_missing(grid, tmp_path):
    run_sweep(grid({"scaffold": ["flat"]}), out=tmp_path / "s")
    before = journals(tmp_path / "s")
    result = run_sweep(grid({"scaffold": ["flat", "tree"]}, 2), out=tmp_path / "s")
    after = journals(tmp_path / "s")
    assert len(after) == 4
    assert before.items() <= after.items()
    assert statuses(resume_sweep(tmp_path / "s")) == statuses(result) == ["finished"] * 4


def test_a_plan_with_other_settings_is_refused(grid, tmp_path):
    run_sweep(grid(), out=tmp_path / "s")
    with pytest.raises(ConfigError, match="began with nodes = 2, the plan says 3"):
        run_sweep(grid(nodes=3), out=tmp_path / "s")
    with pytest.raises(RunDirectoryError, match="1 runs that are not in this plan, toy-1_seed=0"):
        run_sweep(grid({"scaffold": ["tree"]}), out=tmp_path / "s")
    assert "nodes = 2" in (tmp_path / "s/sweep.toml").read_text()


def test_folders_of_prompts_may_be_varied(grid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    run_sweep(grid({"prompts": ["short", "long"]}), out=tmp_path / "s")
    assert statuses(resume_sweep(tmp_path / "s")) == ["finished"] * 2


def test_runs_of_scripts_that_have_changed_are_not_mixed_with_others(grid, tmp_path):
    shutil.copytree(TOY, tmp_path / "toy")
    task = f"{tmp_path}/toy/1"
    run_sweep(grid(tasks=[task]), out=tmp_path / "s")
    script = tmp_path / "toy/scripts/slow.py"
    text = script.read_text()
    script.write_text(text.replace("= 100", "= 90"))
    with pytest.raises(ConfigError, match="the records of toy/1 have changed since"):
        run_sweep(grid(tasks=[task], seeds=2), out=tmp_path / "s")
    script.unlink()
    assert statuses(resume_sweep(tmp_path / "s")) == ["finished"], "what is over needs no script"


def test_a_folder_of_something_else_is_refused(grid, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is not empty"):
        run_sweep(grid(), out=tmp_path)
    with pytest.raises(UsageError, match="no sweep directory"):
        resume_sweep(tmp_path)


def test_nothing_is_made_where_there_is_a_mistake(grid, tmp_path):
    with pytest.raises(ConfigError, match="no coder named 'nop'"):
        run_sweep(grid({"coder": ["fewer", "nop"]}), out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_sweep_has_one_controller(grid, tmp_path, behaviour):
    seen = []

    def again(job):
        if not seen:
            with pytest.raises(RunDirectoryError, match="is in use: process") as caught:
                run_sweep(grid(), out=tmp_path / "s")
            seen.append(caught)

    behaviour.on_job = again
    run_sweep(grid(), out=tmp_path / "s")
    assert seen


# --- one run fails ----------------------------------------------------------------------------


def test_the_failure_of_a_run_is_recorded_and_the_others_go_on(grid, tmp_path, behaviour):
    def break_one(request):
        if "seed=1" in str(request.log_dir):
            raise ZeroDivisionError("in the\ncoder")

    behaviour.on_code = break_one
    result = run_sweep(grid(seeds=3, scaffold="tree"), out=tmp_path / "s")
    assert statuses(result) == ["finished", "failed", "finished"]
    assert result.exit_code == 1
    ((name, reason),) = result.failed.items()
    assert "ZeroDivisionError: in the coder" in reason
    assert "\n" not in reason
    stored = json.loads((tmp_path / "s/failures.json").read_text())
    assert stored[name]["reason"] == reason
    assert "break_one" in stored[name]["details"], "the traceback is kept"

    behaviour.reset()
    result = resume_sweep(tmp_path / "s")
    assert statuses(result) == ["finished"] * 3
    assert json.loads((tmp_path / "s/failures.json").read_text()) == {}


def test_a_record_that_does_not_run_fails_in_one_line(grid, tmp_path, behaviour):
    def crash(job):
        if "calibrate" in job.name:
            (job.workspace / job.script).write_text("1 / 0")

    behaviour.on_job = crash
    result = run_sweep(grid(), out=tmp_path / "s")
    (reason,) = result.failed.values()
    assert "record 1 did not run to its end" in reason
    assert "\n" not in reason


# --- several at once --------------------------------------------------------------------------


def test_so_many_runs_go_on_at_once(grid, tmp_path, behaviour):
    barrier = threading.Barrier(4, timeout=60)
    behaviour.on_job = lambda job: barrier.wait() if job.name == "node-1" else None
    result = run_sweep(grid(seeds=4, jobs=4, calibration="reference"), out=tmp_path / "s")
    assert statuses(result) == ["finished"] * 4


def test_runs_of_a_task_measure_its_records_once(grid, tmp_path, behaviour):
    jobs, lock = [], threading.Lock()

    def note(job):
        with lock:
            jobs.append(job.name)
        time.sleep(0.01)

    behaviour.on_job = note
    result = run_sweep(grid(seeds=6, jobs=6, calibration_runs=2), out=tmp_path / "s")
    assert statuses(result) == ["finished"] * 6
    assert sorted(j for j in jobs if "calibrate" in j) == [
        "calibrate-start-1",
        "calibrate-start-2",
        "calibrate-target-1",
        "calibrate-target-2",
    ]


def test_the_tree_of_a_run_does_not_depend_on_its_neighbours(grid, tmp_path):
    sweep = grid(seeds=4, jobs=4, coder="tuner", scaffold="aide", nodes=4)
    alone = grid(seeds=4, jobs=1, coder="tuner", scaffold="aide", nodes=4)
    together, apart = run_sweep(sweep, out=tmp_path / "a"), run_sweep(alone, out=tmp_path / "b")
    for name in together.ended:
        one, other = (speedkit.open_run(r.path / name) for r in (together, apart))
        assert [n.commit for n in one] == [n.commit for n in other]


def test_timings_that_are_disturbed_are_warned_of(grid, tmp_path):
    heard = []
    watch = Watch(on_warning=heard.append)
    base = {"executor": "torchrun", "nodes": 1, "calibration": "reference", "coder": "noop"}
    run_sweep(grid(jobs=2, **base), out=tmp_path / "s", watch=watch)
    assert any("the jobs of 2 runs share this machine" in text for text in heard)
    heard.clear()
    run_sweep(grid(jobs=2), out=tmp_path / "t", watch=watch)
    assert heard == []


# --- interrupts -------------------------------------------------------------------------------


def interrupt_when(condition):
    """Send this process an interrupt as soon as a condition holds."""

    def wait():
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("where", ["node-1", "calibrate-start-1"])
def test_an_interrupt_ends_all_runs_and_the_sweep_can_be_resumed(grid, tmp_path, behaviour, where):
    running = []

    def hang(job):
        if job.name == where:
            running.append(job.run_id)
            assert job.cancel.wait(60), "the job was not ended"

    behaviour.on_job = hang
    sweep = grid(seeds=3, jobs=3, calibration="fresh")
    interrupt_when(lambda: len(running) == 3)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, out=tmp_path / "s")
    paths = sorted((tmp_path / "s").glob("*/run.toml"))
    assert [speedkit.open_run(p.parent).status for p in paths] == ["interrupted"] * 3

    behaviour.reset()
    assert statuses(resume_sweep(tmp_path / "s")) == ["finished"] * 3
    for path in paths:
        finished = [
            e["id"]
            for e in read_events(path.with_name("events.jsonl"))
            if e["type"] == "node_finished"
        ]
        assert sorted(finished) == [0, 1, 2], "nothing was done twice"


def test_a_run_can_be_ended_from_another_thread(toy_run, behaviour, tmp_path):
    interrupt = Interrupt()

    def ask(job):
        if job.name == "node-2":
            threading.Timer(0.05, interrupt.ask).start()
            assert job.cancel.wait(60)

    behaviour.on_job = ask
    settings = {"load": (grid_parts.NAME,), "executor": "quick", "guards": (), "nodes": 4}
    with pytest.raises(KeyboardInterrupt):
        toy_run(interrupt=interrupt, **settings)
    assert speedkit.open_run(tmp_path / "run").status == "interrupted"
    behaviour.reset()
    assert speedkit.run(resume=tmp_path / "run").status == "finished"


def test_a_run_that_is_to_end_before_it_began_does_nothing(toy_run, tmp_path):
    interrupt = Interrupt()
    interrupt.ask()
    with pytest.raises(KeyboardInterrupt):
        toy_run(interrupt=interrupt, calibration="reference")
    tree = speedkit.open_run(tmp_path / "run")
    assert (tree.status, len(tree)) == ("interrupted", 1)


def test_a_run_that_an_observer_ended_is_over_whatever_the_limits(grid, tmp_path, behaviour):
    def stop(node):
        if node.id == 1:
            raise StopRun("enough")

    behaviour.on_node = stop
    result = run_sweep(grid(scaffold="tree", max_tokens=1000), out=tmp_path / "s")
    assert statuses(result) == ["stopped"]
    behaviour.reset()
    before = journals(tmp_path / "s")
    assert statuses(resume_sweep(tmp_path / "s")) == ["stopped"]
    assert journals(tmp_path / "s") == before


# --- limits on hours --------------------------------------------------------------------------


def test_no_run_starts_beyond_the_hours(grid, tmp_path, behaviour):
    behaviour.wall_s = 1800  # half an hour
    sweep = grid(seeds=4, max_hours=2.4, calibration="reference", scaffold="tree")
    result = run_sweep(sweep, out=tmp_path / "s")
    assert statuses(result) == ["finished", "finished", "open", "missing"]
    assert (result.exit_code, result.hours) == (4, pytest.approx(2.5, abs=0.01))
    assert result.limit == (
        f"the limit --max-hours 2.4 is reached; to go on: speedkit sweep --resume {tmp_path / 's'} "
        "--max-hours MORE"
    )
    result = resume_sweep(tmp_path / "s", max_hours=10)
    assert statuses(result) == ["finished"] * 4
    assert result.hours == pytest.approx(4, abs=0.01)
    assert "max_hours = 10" in (tmp_path / "s/sweep.toml").read_text()


def test_running_jobs_are_ended_at_the_limit(grid, tmp_path, behaviour):
    behaviour.on_job = lambda job: job.cancel.wait(60) if job.name == "node-1" else None
    sweep = grid(seeds=2, jobs=2, max_hours=1 / 3600, calibration="reference")
    result = run_sweep(sweep, out=tmp_path / "s")
    assert "open" in statuses(result)
    assert set(statuses(result)) <= {"open", "missing"}, "one may not have begun by then"
    assert result.exit_code == 4
    assert 1 <= result.hours * 3600 < 30


def test_a_limit_that_leaves_nothing_undone_is_not_told(grid, tmp_path, behaviour):
    behaviour.wall_s = 1800
    result = run_sweep(grid(max_hours=1, calibration="reference"), out=tmp_path / "s")
    assert (statuses(result), result.limit) == (["finished"], "")


def event(kind, at, **facts):
    return {"type": kind, "at": at, **facts}


def started(at, job, **handle):
    return event("job_started", at, job=job, handle=handle)


def test_the_clock_of_jobs():
    clock = JobClock()
    clock.apply(started(10, "node-1"))
    assert clock.seconds(now=14) == 4
    clock.apply(event("node_finished", 15, id=1, wall_s=4.5))
    clock.apply(event("node_finished", 15, id=2, wall_s=None))  # the code of node 1
    assert clock.seconds(now=99) == 4.5
    clock.apply(started(20, "calibrate-start-1"))
    clock.apply(event("calibration_run", 22, record="start", run=1, wall_s=2))
    assert clock.seconds(now=99) == 6.5


def test_the_clock_counts_jobs_that_were_cut_off():
    clock = JobClock()
    clock.apply(started(10, "node-1"))
    clock.apply(started(10, "node-2"))
    clock.apply(event("run_finished", 13))
    assert clock.seconds(now=99) == 6
    clock.apply(event("run_started", 50))
    clock.apply(started(51, "node-1"))  # again, from its start
    clock.apply(event("node_finished", 55, id=1, wall_s=4))
    clock.apply(event("node_finished", 60, id=2, wall_s=9))  # gone on with: its whole time
    assert clock.seconds(now=99) == 3 + 4 + 9


def test_the_clock_of_a_run_that_was_killed():
    clock = JobClock()
    clock.apply(started(10, "node-1"))
    clock.apply(event("node_created", 12, id=2))
    clock.close()
    assert clock.seconds(now=99) == 2


def test_the_time_between_a_kill_and_the_next_controller_is_nobodys():
    """The next one tells of what was left before it says that it is there."""
    clock = JobClock()
    clock.apply(started(10, "node-1"))
    clock.apply(started(11, "node-2"))
    clock.apply(event("node_created", 15, id=3))
    for job in ("node-1", "node-2"):
        clock.apply(event("job_ended", 90_000, job=job, ending="lost"))
    clock.apply(event("model_called", 90_000, call={"status": "lost"}))
    clock.apply(event("run_started", 90_001))
    assert clock.seconds(now=90_002) == 5 + 4


def test_the_clock_counts_an_attempt_that_was_lost():
    clock = JobClock()
    clock.apply(started(10, "node-1"))
    clock.apply(started(40, "node-1"))
    clock.apply(event("node_finished", 50, id=1, wall_s=9))
    assert clock.seconds(now=99) == 30 + 9


def test_waiting_in_the_queue_of_an_engine_costs_nothing():
    begun = {}
    clock = JobClock(lambda handle: begun.get(handle["folder"]))
    for job in ("node-1", "node-2", "node-3"):
        clock.apply(started(10, job, engine="slurm", folder=job))
    assert clock.seconds(now=100) == 0
    begun.update({"node-1": 90, "node-2": 95})
    assert clock.seconds(now=110) == 20 + 15
    clock.apply(event("node_finished", 120, id=1, wall_s=28))
    clock.apply(event("run_finished", 130))
    assert clock.seconds(now=999) == 28 + 35, "one never began, one was cut off"
    clock.apply(event("run_started", 500))
    clock.apply(event("node_finished", 510, id=2, wall_s=400))
    assert clock.seconds(now=999) == 28 + 400, "it was gone on with"


def test_when_a_job_began_stands_in_its_folder(tmp_path):
    handle = {"engine": "slurm", "folder": str(tmp_path)}
    assert began(handle) is None
    events = EventWriter(tmp_path / "events.jsonl")
    FileWatch(events).started({})
    events.put("line", rank=0, text="hi", at_s=1.0)
    assert began(handle) == pytest.approx(time.time(), abs=60)


# --- comparison -------------------------------------------------------------------------------


def test_arms_are_compared_by_columns_where_there_are_some(grid, tmp_path):
    result = run_sweep(grid({"scaffold": ["flat", "tree"]}, 2), out=tmp_path / "s")
    found = compare_arms(result.path, result.cells, result.over)
    assert found.by == ("scaffold",)
    assert {cell.key: cell.runs for cell in found.cells} == {("flat",): 2, ("tree",): 2}


def test_arms_of_options_are_compared_by_their_labels(grid, tmp_path):
    result = run_sweep(grid({"scaffold.drafts": [1, 2]}, 2), out=tmp_path / "s")
    found = compare_arms(result.path, result.cells, result.over)
    assert {cell.key: cell.runs for cell in found.cells} == {
        ("scaffold.drafts=1",): 2,
        ("scaffold.drafts=2",): 2,
    }


def test_runs_that_are_not_over_are_not_compared(grid, tmp_path, behaviour):
    behaviour.wall_s = 1800
    sweep = grid({"scaffold": ["tree", "aide"]}, max_hours=1.4, calibration="reference")
    result = run_sweep(sweep, out=tmp_path / "s")
    found = compare_arms(result.path, result.cells, result.over)
    assert [cell.key for cell in found.cells] == [("tree",)]
    with pytest.raises(UsageError, match="no run is over yet"):
        compare_arms(result.path, result.cells, [])


# --- plans ------------------------------------------------------------------------------------


def test_a_plan_counts_what_is_left(grid, tmp_path, behaviour):
    behaviour.wall_s = 1800
    sweep = grid(seeds=4, max_hours=2.4, calibration="reference", scaffold="tree")
    plan = plan_sweep(sweep, out=tmp_path / "s")
    assert plan.states == {"missing": 4, "open": 0, "finished": 0, "stopped": 0}
    assert (plan.nodes, plan.amount("job_hours").value) == (8, pytest.approx(8 * 10 / 3600))
    assert not (tmp_path / "s").exists()
    run_sweep(sweep, out=tmp_path / "s")
    plan = plan_sweep(sweep, out=tmp_path / "s")
    assert plan.states == {"missing": 1, "open": 1, "finished": 2, "stopped": 0}
    assert plan.nodes == 3
    assert plan.amount("prompt_tokens").value == 0


def test_a_plan_says_where_times_come_from(grid, tmp_path):
    plan = plan_sweep(grid(seeds=2, calibration_runs=3))
    assert {run.times for run in plan.runs} == {"reference"}
    expected = (4 * 10 + 3 * (10 + 6)) / 3600
    assert plan.amount("job_hours").value == pytest.approx(expected), "measured once"
    fresh = plan_sweep(grid(seeds=2, calibration_runs=3, calibration="fresh"))
    expected = (4 * 10 + 2 * 3 * (10 + 6)) / 3600
    assert fresh.amount("job_hours").value == pytest.approx(expected), "measured by each run"
    run_sweep(grid(), out=tmp_path / "s")
    plan = plan_sweep(grid(seeds=2))
    assert {run.times for run in plan.runs} == {"measured"}
    assert plan.amount("job_hours").value == pytest.approx(4 * 10.1 / 3600, rel=0.01)


def test_what_is_unknown_is_said_to_be(grid, tmp_path):
    script = tmp_path / "start.py"
    script.write_text((TOY / "scripts/slow.py").read_text())
    plan = plan_sweep(grid(start=str(script)))
    assert vars(plan.amount("job_hours")) == {"value": 0, "unknown": 1}
