"""Jobs under a real Slurm: everything that can befall them, and controllers that come and go."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from executor_bench import EngineBench, Recorder, controller, wait_for

from speedkit.core.components import Ending
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors import scratch, slurm_commands
from speedkit.plugins.executors.slurm import SlurmExecutor, SlurmOptions
from tests.kit.slurm import fixtures

session_slurm, slurm = fixtures.session_slurm, fixtures.slurm
pytestmark = pytest.mark.engines

QUICK = {"poll_s": 0.1, "states_s": 0.5, "cpus": 1}
SLEEPER = "import time\nprint('up')\ntime.sleep(60)"
STEPS = """
import time
for n in range(1, 6):
    print(f"step:{n}/5 val_loss:3.{n}000 train_time:{n}ms")
    time.sleep(0.4)
"""
CONTROLLER = controller("slurm", "Slurm")


class SlurmBench(EngineBench):
    """A bench whose scripts run under Slurm."""

    slurm = None

    def make(self, **options):
        return SlurmExecutor(SlurmOptions(**{**QUICK, **options}))

    @property
    def job_id(self):
        return self.watch.handles[-1]["job_id"]

    def on_first_line(self, *command):
        """Let one of Slurm's commands be called when the first line has come."""

        def act(rank, text):
            self.watch.on_line = lambda rank, text: None
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1))
            words = (part.replace("JOB", self.job_id).replace("NOW", now) for part in command)
            self.slurm.call(*words)

        self.watch.on_line = act

    def notes(self):
        """What the executor has noted of jobs that may be under way."""
        return list(self.log_dir.rglob(".slurm-submission"))

    def submitted(self):
        """How many jobs of this bench Slurm has seen."""
        names = self.slurm.call("squeue", "--states=all", "--noheader", "--format=%j").split()
        return names.count(f"speedkit-{self.run_id}-job")


@pytest.fixture
def bench(slurm, tmp_path):
    """A bench under Slurm; its scripts must leave no process behind."""
    made = SlurmBench(tmp_path, f"bench-{secrets.token_hex(8)}")
    made.slurm = slurm
    made.workspace.mkdir()
    made.log_dir.mkdir()
    yield made
    wait_for(lambda: not made.survivors(), 10)


# --- what Slurm does to jobs ------------------------------------------------------------------


def test_scancel_from_outside_is_no_failure_of_the_script(bench):
    bench.on_first_line("scancel", "JOB")
    done = bench.run(SLEEPER)
    assert done.ending is Ending.CANCELLED
    assert done.reason == f"Slurm job {bench.job_id} was cancelled from outside"


def test_a_preempted_job_is_lost(bench):
    script = bench.folder / "urgent.sh"
    script.write_text("#!/bin/sh\nsleep 1\n")
    output = f"--output={bench.folder}/urgent.out"
    bench.on_first_line(
        *("sbatch", "--partition=urgent", "--exclusive", "--nodes=2", output, str(script))
    )
    done = bench.run(SLEEPER)
    assert (done.ending, done.errors) == (Ending.LOST, ())
    assert done.reason.startswith(f"Slurm job {bench.job_id}: it was preempted")


def test_a_node_that_fails_loses_its_job_and_the_next_attempt_runs_elsewhere(bench, slurm):
    slurm.call("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    try:
        bench.on_first_line("scontrol", "update", "nodename=node1", "state=down", "reason=test")
        done = bench.run(SLEEPER)
        assert done.ending is Ending.LOST
        assert done.reason.startswith(f"Slurm job {bench.job_id}: a node failed")
        slurm.call("scontrol", "update", "nodename=node2", "state=resume")
        assert bench.run("print('again')").ending is Ending.FINISHED
        assert bench.watch.texts()[-1] == "again"
    finally:
        slurm.resume_nodes()


@pytest.mark.slow
def test_slurms_own_time_limit(bench, slurm):
    bench.on_first_line("scontrol", "update", "jobid=JOB", "EndTime=NOW")
    done = bench.run(SLEEPER)
    assert done.ending is Ending.TIMED_OUT
    assert done.reason == f"Slurm job {bench.job_id} reached Slurm's time limit"


def test_waiting_does_not_count_against_the_time_limit(bench):
    cancel = threading.Event()
    executor = bench.make(sbatch=["--hold"])
    job = bench.job("print('done')", timeout_s=1.5, stall_s=1.5, cancel=cancel)
    results = []
    thread = threading.Thread(target=lambda: results.append(executor.execute(job, bench.watch)))
    thread.start()
    wait_for(lambda: bool(bench.watch.handles))
    time.sleep(2)
    assert thread.is_alive()
    bench.slurm.call("scontrol", "release", bench.job_id)
    thread.join(20)
    assert results[0].ending is Ending.FINISHED


def test_a_waiting_job_can_be_cancelled(bench):
    cancel = threading.Event()
    threading.Timer(1, cancel.set).start()
    done = bench.run("print('never')", {"sbatch": ["--hold"]}, cancel=cancel)
    assert (done.ending, done.reason, bench.watch.lines) == (Ending.CANCELLED, "cancelled", [])


def test_set_up_commands_run_first_and_their_failure_is_not_the_scripts(bench):
    done = bench.run(
        "import os\nprint(os.environ['PLACE'])",
        {"setup": ["export PLACE='over there'"], "env": ["PLACE"]},
    )
    assert (done.ending, bench.watch.texts()) == (Ending.FINISHED, ["over there"])
    done = bench.run("print('never')", {"setup": ["load_module cuda"]})
    assert done.ending is Ending.LOST
    assert "load_module: command not found" in done.reason


def test_what_sbatch_refuses_is_said_in_one_line(bench):
    with pytest.raises(ExecutorError, match=r"sbatch refused the job: .*invalid partition") as info:
        bench.run("", {"partition": "nowhere"})
    assert "\n" not in str(info.value)


def test_a_node_without_speedkit_is_a_lost_job(bench):
    done = bench.run("", {"node_python": "/usr/bin/no-such-python"})
    assert done.ending is Ending.LOST
    assert "no-such-python" in done.reason


def test_an_interpreter_that_is_missing_on_the_node_ends_the_search(bench, tmp_path):
    with pytest.raises(ExecutorError, match=r"on the node: no interpreter .*executor\.python"):
        bench.run("", {"python": "/no/such/python"})


def test_a_script_that_ends_its_keepers_is_lost_once_and_then_to_blame(bench, monkeypatch):
    monkeypatch.setattr("speedkit.plugins.executors.remote.SETTLE_S", 0.5)
    script = """
        import os, signal
        supervisor = os.getppid()
        with open(f"/proc/{supervisor}/stat") as file:
            keeper = int(file.read().rpartition(") ")[2].split()[1])
        os.kill(keeper, signal.SIGKILL)
        os.kill(supervisor, signal.SIGKILL)
    """
    executor = bench.make(sandbox="none")
    job = bench.job(script)
    assert executor.execute(job, bench.watch).ending is Ending.LOST
    done = executor.execute(job, bench.watch)
    assert done.ending is Ending.CRASHED
    assert "without a result" in done.reason
    for events in bench.log_dir.glob("slurm-*/events.jsonl"):  # Nobody was left to clear up.
        scratch.remove(json.loads(events.read_text().splitlines()[0])["handle"]["scratch"])


# --- several nodes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_of_two_nodes_meet_and_the_one_that_fails_is_named(bench):
    script = """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        print(f"step:1/1 val_loss:{total.item():.4f} train_time:{dist.get_rank()}ms", flush=True)
        dist.barrier()
        if dist.get_rank() == 1:
            raise ValueError("bad shape")
    """
    done = bench.run(script, {"nodes": 2}, launcher="torchrun", nproc=2)
    assert (done.ending, done.reason) == (Ending.CRASHED, "rank 1: ValueError: bad shape")
    lines = {rank: text for rank, text, _ in bench.watch.lines}
    assert lines == {n: f"step:1/1 val_loss:2.0000 train_time:{n}ms" for n in (0, 1)}
    assert (bench.log_dir / "node1" / "rank0.stdout.log").exists()


# --- controllers that come and go -------------------------------------------------------------


def start_controller(bench, script, **options):
    """Start a controller of its own; return it and the handle of its job."""
    bench.job(script)
    arguments = [str(bench.folder), bench.run_id, json.dumps({**QUICK, **options})]
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *arguments], stdout=subprocess.PIPE, text=True
    )
    return process, json.loads(process.stdout.readline())


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def job_of(bench, **facts):
    text = (bench.workspace / "script.py").read_text()
    return dataclasses.replace(bench.job(text), timeout_s=60.0, stall_s=60.0, **facts)


@pytest.mark.parametrize("pause_s", [0, 3], ids=["while it runs", "after its end"])
def test_the_job_of_a_killed_controller_is_found_again(bench, pause_s):
    process, handle = start_controller(bench, STEPS)
    assert process.stdout.readline().startswith("step:1/5")
    kill(process)
    time.sleep(pause_s)
    done = bench.make().adopt(job_of(bench), handle, bench.watch)
    assert done.ending is Ending.FINISHED
    assert [text.split("/")[0] for text in bench.watch.texts()] == [
        f"step:{n}" for n in range(1, 6)
    ]
    assert [at for _, _, at in bench.watch.lines] == sorted(at for _, _, at in bench.watch.lines)
    assert bench.submitted() == 1
    assert not bench.notes()


def test_a_waiting_job_of_a_killed_controller_is_found_again(bench):
    process, handle = start_controller(bench, "print('hi')", sbatch=["--hold"])
    kill(process)
    bench.slurm.call("scontrol", "release", handle["job_id"])
    done = bench.make().adopt(job_of(bench), handle, bench.watch)
    assert (done.ending, bench.watch.texts()) == (Ending.FINISHED, ["hi"])
    assert bench.submitted() == 1


def test_a_job_that_was_cancelled_while_nobody_looked_is_run_again(bench):
    process, handle = start_controller(bench, SLEEPER)
    assert process.stdout.readline() == "up\n"
    kill(process)
    bench.slurm.call("scancel", handle["job_id"])
    done = bench.make().adopt(job_of(bench), handle, bench.watch)
    assert done.ending is Ending.LOST, "which is tried again"


@pytest.mark.parametrize("what", ["workspace", "folder"])
def test_a_job_whose_files_are_gone_is_ended_and_run_again(bench, what):
    process, handle = start_controller(bench, SLEEPER)
    assert process.stdout.readline() == "up\n"
    kill(process)
    job = job_of(bench)
    gone = bench.workspace if what == "workspace" else Path(handle["folder"])
    gone.rename(gone.with_name("elsewhere"))
    assert bench.make().adopt(job, handle, bench.watch) is None
    wait_for(lambda: not bench.survivors())


def test_a_handle_of_another_executor_is_not_adopted(bench):
    handle = {"host": "here", "pid": 1, "marker": "m", "scratch": "s", "boot_id": "b"}
    assert bench.make().adopt(bench.job(""), handle, bench.watch) is None


def test_a_job_that_was_never_recorded_is_ended_before_the_next_is_submitted(bench):
    """The controller died between the submission and the journal."""
    executor = bench.make()
    submit = executor.submit

    def die(job, folder):
        submit(job, folder)
        raise SystemExit

    executor.submit = die
    with pytest.raises(SystemExit):
        executor.execute(bench.job(SLEEPER), bench.watch)
    wait_for(lambda: bool(bench.survivors()))
    done = bench.make().execute(bench.job("print('second')"), watch := Recorder())
    assert (done.ending, watch.texts()) == (Ending.FINISHED, ["second"])
    wait_for(lambda: not bench.survivors())


def test_a_job_that_no_journal_names_is_ended_before_it_is_run_again(bench):
    """Such are smoke runs and programs of guards, when their controller is killed."""
    process, _ = start_controller(bench, SLEEPER)
    assert process.stdout.readline() == "up\n"
    kill(process)
    assert bench.survivors()
    done = bench.make().execute(bench.job("print('second')"), bench.watch)
    assert (done.ending, bench.watch.texts()) == (Ending.FINISHED, ["second"])
    wait_for(lambda: not bench.survivors())
    assert not bench.notes()


def test_a_job_that_nobody_follows_is_ended_with_its_run(bench):
    process, handle = start_controller(bench, SLEEPER)
    assert process.stdout.readline() == "up\n"
    kill(process)
    assert bench.make().end_all_unrecorded(bench.folder) == (handle["name"],)
    wait_for(lambda: not bench.survivors())
    assert bench.make().end_all_unrecorded(bench.folder) == ()


# --- Slurm itself is away ---------------------------------------------------------------------


def test_a_job_goes_on_while_slurms_controller_does_not_answer(bench, monkeypatch):
    answers = []

    def away(command, extra=()):
        if command[0] == "squeue":
            answers.append(command)
            return slurm_commands.Answer(1, "", "squeue: error: Unable to contact slurm controller")
        return call(command, extra)

    call = slurm_commands.call
    monkeypatch.setattr(slurm_commands, "call", away)
    slurm_commands.queue_of.cache_clear()
    done = bench.run("import time\ntime.sleep(1)\nprint('done')")
    assert (done.ending, bench.watch.texts()) == (Ending.FINISHED, ["done"])
    assert answers
    slurm_commands.queue_of.cache_clear()


def test_one_question_serves_all_jobs_of_a_process(bench, monkeypatch):
    questions = []

    def count(command, extra=()):
        questions.append(command[0])
        return call(command, extra)

    call = slurm_commands.call
    monkeypatch.setattr(slurm_commands, "call", count)
    script = "import time\ntime.sleep(1)"

    def one(number):
        log_dir = bench.folder / f"logs-{number}"
        log_dir.mkdir()
        job = dataclasses.replace(bench.job(script), name=f"job-{number}", log_dir=log_dir)
        bench.make(states_s=1).execute(job, Recorder())

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert questions.count("squeue") <= 8


# --- a whole run ------------------------------------------------------------------------------


def test_a_search_runs_on_slurm(slurm, tmp_path):
    import speedkit
    from tests.conftest import TOY

    options = {"executor": {**QUICK, "lanes": 2}}
    tree = speedkit.run(
        f"{TOY}/1",
        out=tmp_path / "run",
        executor="slurm",
        coder="tuner",
        nodes=2,
        calibration="reference",
        options=options,
    )
    assert tree.status == "finished"
    assert len(tree) == 3
    assert all(node.metrics for node in tree if node.id)
    names = slurm.call("squeue", "--states=all", "--noheader", "--format=%j")
    run_id = speedkit.core.history.RunDirectory(tree.path).run_id
    assert names.count(f"speedkit-{run_id}-node-") >= 1


def test_a_killed_search_goes_on_with_the_job_that_it_started(slurm, tmp_path):
    import speedkit
    from speedkit.core.journal import read_events
    from tests.conftest import TOY

    folder, path = tmp_path / "family", tmp_path / "run"
    shutil.copytree(TOY, folder)
    for script in (folder / "scripts").glob("*.py"):
        script.write_text("import time\ntime.sleep(4)\n" + script.read_text())
    command = [sys.executable, "-m", "speedkit", "run", f"{folder}/1", "--out", str(path)]
    command += ["--nodes", "1", "--coder", "noop", "--calibration", "reference"]
    command += ["--executor", "slurm", "--display", "none"]
    for name, value in QUICK.items():
        command += ["-o", f"executor.{name}={value}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def started():
        journal = path / "events.jsonl"
        events = read_events(journal) if journal.exists() else []
        return [e["handle"]["job_id"] for e in events if e["type"] == "job_started"]

    wait_for(lambda: bool(started()), 40)
    process.kill()
    process.wait()
    tree = speedkit.run(resume=path)
    assert (tree.status, len(tree)) == ("finished", 2)
    assert tree[1].metrics is not None
    assert len(started()) == 1, "the job was not started again"
    assert not list((path / "work").iterdir())


def test_the_files_of_a_job_stand_beside_its_logs(bench):
    """The batch script and what the program on the node says stand in the job's folder."""
    bench.run("print('hi')")
    folder = Path(bench.watch.handles[0]["folder"])
    assert folder.parent == bench.log_dir
    assert textwrap.dedent((folder / "batch.sh").read_text()).startswith("#!/bin/bash\nset -e\n")
    assert "hi" not in (folder / "output.log").read_text()
