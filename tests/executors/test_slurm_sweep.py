"""A sweep whose runs share one real Slurm: done, killed and gone on with, cancelled."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from executor_bench import wait_for

import speedkit
from speedkit.core.history import RunDirectory
from speedkit.core.journal import read_events
from tests.kit.slow_family import slow_family
from tests.kit.slurm import fixtures

session_slurm, slurm = fixtures.session_slurm, fixtures.slurm
pytestmark = pytest.mark.engines

QUICK = ("executor.poll_s=0.1", "executor.states_s=0.5", "executor.cpus=1", "executor.lanes=2")


@pytest.fixture
def family(tmp_path):
    """A family whose scripts wait for SECONDS, for which ``sweep`` puts a number."""
    return slow_family(tmp_path / "family", "SECONDS")


@pytest.fixture
def sweep(slurm, family, tmp_path):
    """Return a function that starts a sweep of two tasks and two seeds; its jobs take seconds."""
    path, processes = tmp_path / "s", []

    def start(seconds, *, jobs=4, nodes=2):
        for script in (family / "scripts").glob("*.py"):
            script.write_text(script.read_text().replace("SECONDS", str(seconds)))
        file = tmp_path / "grid.toml"
        file.write_text(
            f'tasks = ["{family}/1", "{family}/2"]\nseeds = 2\n[base]\nnodes = {nodes}\n'
            'coder = "tuner"\nscaffold = "flat"\ncalibration = "reference"\nguards = ["none"]\n'
        )
        options = [part for one in QUICK for part in ("-o", one)]
        command = ["sweep", file, "--plugin", "executor=slurm", *options]
        process = program(*command, "--jobs", jobs, "--out", path)
        processes.append(process)
        return process

    start.path, start.slurm = path, slurm
    yield start
    for process in processes:
        process.kill()
        process.communicate()


def program(*arguments):
    command = [sys.executable, "-m", "speedkit", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, limit_s=120):
    """Wait for a program; return its exit status, output and errors."""
    out, err = process.communicate(timeout=limit_s)
    return process.returncode, out, err


def runs(path):
    return sorted(p.parent for p in path.glob("*/run.toml"))


def submissions(path):
    """The ids of all jobs that the journals of a sweep know, by run and job."""
    found = {}
    for run in runs(path):
        events = read_events(run / "events.jsonl") if (run / "events.jsonl").exists() else []
        for event in events:
            if event["type"] == "job_started":
                key = (run.name, event["job"])
                found.setdefault(key, []).append(event["handle"]["job_id"])
    return found


def seen(slurm, path):
    """How many jobs of a sweep Slurm has had, by name."""
    ids = [RunDirectory(run).run_id for run in runs(path)]
    names = slurm.call("squeue", "--states=all", "--noheader", "--format=%j").split()
    ours = [name for name in names if any(run_id in name for run_id in ids)]
    return {name: ours.count(name) for name in ours}


def states(slurm, ids):
    told = slurm.call("squeue", "--states=all", "--noheader", "--format=%i %T").splitlines()
    return {state for job_id, _, state in (line.partition(" ") for line in told) if job_id in ids}


def test_the_runs_of_a_sweep_share_one_slurm(sweep):
    code, out, err = finish(sweep(0.2))
    assert code == 0, err
    assert "runs     4 of 4 over, 0 failed, 0 left" in out
    assert "disturb each other" not in err
    trees = [speedkit.open_run(run) for run in runs(sweep.path)]
    assert [(tree.status, len(tree)) for tree in trees] == [("finished", 3)] * 4
    assert all(node.metrics for tree in trees for node in tree if node.id)
    assert set(seen(sweep.slurm, sweep.path).values()) == {1}


def test_a_killed_sweep_goes_on_with_all_the_jobs_that_it_started(sweep):
    process = sweep(6, nodes=1)
    wait_for(lambda: len(submissions(sweep.path)) == 4, 60)
    process.kill()
    finish(process)
    before = submissions(sweep.path)
    code, _, err = finish(program("sweep", "--resume", sweep.path))
    assert code == 0, err
    assert submissions(sweep.path) == before, "no job was started again"
    assert set(seen(sweep.slurm, sweep.path).values()) == {1}
    trees = [speedkit.open_run(run) for run in runs(sweep.path)]
    assert [(tree.status, len(tree)) for tree in trees] == [("finished", 2)] * 4
    assert all(tree[1].metrics for tree in trees)


def test_a_sweep_that_was_killed_at_any_moment_leaves_each_job_once(sweep):
    """Killed while it submits, some jobs are in no journal, and are ended before they run anew."""
    process = sweep(3, nodes=2)
    wait_for(lambda: len(submissions(sweep.path)) >= 1, 60)
    process.kill()
    finish(process)
    code, _, err = finish(program("sweep", "--resume", sweep.path))
    assert code == 0, err
    assert {len(ids) for ids in submissions(sweep.path).values()} == {1}
    assert not list(sweep.path.rglob(".slurm-submission"))


def test_one_run_of_a_sweep_is_cancelled_and_the_others_go_on(sweep):
    process = sweep(6, nodes=1)
    wait_for(lambda: len(submissions(sweep.path)) == 4, 60)
    (first, *others) = runs(sweep.path)
    code, out, err = finish(program("cancel", first))
    assert (code, err) == (0, "")
    assert out.startswith("ended: node-1\n")
    code, out, err = finish(process)
    assert code == 1
    assert f"failed: {first.name}: " in err
    assert "was cancelled from outside" in err
    assert {speedkit.open_run(run).status for run in others} == {"finished"}
    code, out, _ = finish(program("sweep", "--resume", sweep.path))
    assert (code, speedkit.open_run(first).status) == (0, "finished")


@pytest.mark.parametrize("is_killed", [False, True], ids=["alive", "killed"])
def test_a_whole_sweep_is_cancelled(sweep, is_killed):
    process = sweep(60, nodes=1)
    wait_for(lambda: len(submissions(sweep.path)) == 4, 60)
    ids = {one for many in submissions(sweep.path).values() for one in many}
    if is_killed:
        process.kill()
        finish(process)
    code, out, err = finish(program("cancel", sweep.path, "--json"))
    assert (code, err) == (0, "")
    done = json.loads(out)
    if is_killed:
        assert done["jobs"] == [f"{run.name}/node-1" for run in runs(sweep.path)]
    else:
        assert (done["controller"], done["jobs"]) == (process.pid, [])
        assert finish(process)[0] == 130
    assert states(sweep.slurm, ids) == {"CANCELLED"}
    assert {speedkit.open_run(run).status for run in runs(sweep.path)} == {"interrupted"}
