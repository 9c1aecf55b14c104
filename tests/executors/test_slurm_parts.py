"""What is asked of Slurm and how its answers are read; no Slurm is needed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from speedkit.core.components import Ending, Job
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors import slurm, slurm_commands
from speedkit.plugins.executors.remote_folder import JobFolder
from speedkit.plugins.executors.slurm import (
    SlurmExecutor,
    SlurmOptions,
    batch_script,
    fate,
    sbatch_command,
)
from speedkit.plugins.executors.slurm_commands import OVER, UNKNOWN, Answer, JobState, Queue


@pytest.fixture
def job(tmp_path):
    return Job("node-1", "run", tmp_path / "work", tmp_path / "logs", "s.py", nproc=8)


@pytest.fixture
def folder(tmp_path):
    return JobFolder(tmp_path / "job")


def arguments(job, folder, nodes=1, **options):
    return sbatch_command(SlurmOptions(**options), job, folder, nodes)


def test_every_option_reaches_sbatch(job, folder):
    options = {
        "partition": "gpu,long",
        "account": "lab",
        "qos": "high",
        "gpus": "h100:8",
        "cpus": 64,
        "memory": "200G",
        "time": "2:00:00",
        "constraint": "a100&nvlink",
        "exclusive": True,
        "sbatch": ["--reservation=r"],
    }
    given = arguments(job, folder, **options)
    assert given[0] == "sbatch"
    assert {
        *("--partition=gpu,long", "--account=lab", "--qos=high", "--gpus-per-node=h100:8"),
        *("--cpus-per-task=64", "--mem=200G", "--time=2:00:00", "--constraint=a100&nvlink"),
        *("--exclusive", "--reservation=r", "--no-requeue", "--job-name=speedkit-run-node-1"),
    } <= set(given)


def test_what_is_not_given_is_left_to_the_cluster_but_for_processors_and_time(job, folder):
    given = arguments(job, folder)
    assert "--cpus-per-task=8" in given
    assert "--time=70" in given, "the job's hour and ten minutes"
    assert not [one for one in given if one.startswith(("--partition", "--gpus", "--mem"))]
    assert "--cpus-per-task=4" in arguments(job, folder, nodes=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "a b"},
        {"gpus": "many"},
        {"memory": "200 GB"},
        {"time": "tomorrow"},
        {"sbatch": ["rm"]},
        {"sbatch": ["--array=1-3"]},
        {"sbatch": ["--wait"]},
        {"container_runtime": "docker"},
        {"nodes": 0},
        {"partitoin": "x"},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        SlurmOptions(**wrong)


def test_a_number_of_gpus_may_be_a_number():
    assert SlurmOptions(gpus=8).gpus == "8"


def script_of(job, folder, nodes=1, **options):
    command = ["python", "-m", "job", "/shared/a folder"]
    return batch_script(SlurmOptions(**options), command, folder, job, nodes).splitlines()


def test_the_batch_script_ends_as_the_program(job, folder):
    first, second, *setup, last = script_of(job, folder, setup=["module load cuda"])
    assert (first, second, setup) == ("#!/bin/bash", "set -e", ["module load cuda"])
    assert last == "exec python -m job '/shared/a folder'"


def test_containers(job, folder):
    pyxis = script_of(job, folder, container="img.sqsh", container_mounts=["/data:/data"])[-1]
    assert pyxis.startswith("exec srun --nodes=1 --ntasks-per-node=1 --kill-on-bad-exit=1 ")
    assert "--container-image=img.sqsh" in pyxis
    assert f"{job.workspace}:{job.workspace}" in pyxis
    assert "/data:/data" in pyxis
    options = {"container": "img.sif", "container_runtime": "apptainer", "gpus": 1}
    apptainer = script_of(job, folder, **options)[-1]
    assert apptainer.startswith("exec apptainer exec --nv --bind=")
    assert " img.sif python -m job " in apptainer
    several = script_of(job, folder, nodes=2, **options)[-1]
    assert several.startswith("exec srun --nodes=2 ")
    assert "apptainer exec" in several


def test_processes_must_share_nodes_evenly(job):
    with pytest.raises(ExecutorError, match="shared evenly by 3 nodes"):
        SlurmExecutor(SlurmOptions(nodes=3)).nodes_of(job)


@pytest.mark.parametrize(
    ("state", "ending"),
    [
        *((s, Ending.LOST) for s in ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED", UNKNOWN)),
        *((s, Ending.LOST) for s in ("COMPLETED", "FAILED")),
        *((s, Ending.TIMED_OUT) for s in ("TIMEOUT", "DEADLINE")),
        ("CANCELLED", Ending.CANCELLED),
        ("OUT_OF_MEMORY", Ending.CRASHED),
    ],
)
def test_what_the_end_of_a_job_means(state, ending):
    found = fate("12", JobState(state), "said")
    assert found.ending is ending
    assert "Slurm job 12" in found.reason


def test_states_that_are_not_the_end():
    running = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")
    assert not [state for state in running if JobState(state).is_over]
    assert all(JobState(state).is_over for state in OVER)


def test_the_fingerprint_tells_kinds_of_node_apart():
    one = SlurmExecutor(SlurmOptions(constraint="h100")).fingerprint()
    other = SlurmExecutor(SlurmOptions(constraint="a100")).fingerprint()
    assert one != other
    assert one["torch"]
    boxed = SlurmExecutor(SlurmOptions(container="image"))
    assert "torch" not in boxed.fingerprint()
    assert boxed.interpreter is None


def test_the_queue_remembers_fails_softly_and_misses_nobody_too_soon(monkeypatch):
    answers = [
        Answer(0, "7|RUNNING|None\n8|PENDING|Resources, or so\n", ""),
        Answer(1, "", "squeue: error: Unable to contact slurm controller"),
        Answer(0, "8|RUNNING|None\n", ""),
    ]
    monkeypatch.setattr(slurm_commands, "call", lambda command, extra=(): answers.pop(0))
    clock = [1000.0]
    monkeypatch.setattr(slurm_commands.time, "monotonic", lambda: clock[0])
    queue = Queue()
    assert queue.state("7", 990, 10) == JobState("RUNNING")
    assert queue.state("8", 990, 10) == JobState("PENDING", "Resources, or so")
    assert queue.state("9", 999, 10) is None, "it was submitted just now"
    clock[0] = 1020.0
    assert queue.state("7", 990, 10) == JobState("RUNNING"), "no answer is no news"
    assert queue.state("7", 990, 10) == JobState("RUNNING"), "and Slurm is left alone for a while"
    clock[0] = 1031.0
    assert queue.state("7", 990, 10) == JobState(UNKNOWN)
    assert not answers


def test_a_slow_answer_does_not_lose_jobs_that_were_submitted_meanwhile(monkeypatch):
    """An answer is as old as the question, however long a busy Slurm took for it."""
    clock = [1000.0]

    def slow(command, extra=()):
        clock[0] += 30
        return Answer(0, "7|RUNNING|None\n", "")

    monkeypatch.setattr(slurm_commands, "call", slow)
    monkeypatch.setattr(slurm_commands.time, "monotonic", lambda: clock[0])
    queue = Queue()
    assert queue.state("8", since=1010, max_age_s=10) is None
    clock[0] += 11
    assert queue.state("8", since=1010, max_age_s=10) == JobState(UNKNOWN)


def test_slurm_is_missed_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorError, match="sbatch is not on PATH"):
        slurm_commands.call(["sbatch"])


def test_keys_do_not_reach_slurm(monkeypatch, tmp_path):
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\nenv\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("OPENAI_API_KEY", "SBATCH_PARTITION", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("SLURM_CONF", "/etc/here.conf")
    answer = slurm_commands.call(["sbatch"])
    assert "canary" not in answer.out
    assert "SLURM_CONF=/etc/here.conf" in answer.out


def test_a_busy_slurm_is_asked_again_and_a_wrong_request_is_not():
    assert Answer(1, "", "sbatch: error: Socket timed out on send/recv operation").is_transient
    assert not Answer(1, "", "sbatch: error: invalid partition specified: x").is_transient


@pytest.mark.parametrize(
    ("limit", "is_full"),
    [
        ("AssocMaxSubmitJobLimit", True),
        ("QOSMaxSubmitJobPerUserLimit", True),
        ("QOSMaxWallDurationPerJobLimit", False),
    ],
)
def test_a_limit_on_how_many_jobs_there_are_is_not_one_on_what_a_job_may_be(limit, is_full):
    last = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    answer = Answer(1, "", f"sbatch: error: {limit}\nsbatch: error: {last}")
    assert (answer.is_full, answer.is_transient) == (is_full, is_full)


# --- what Slurm does not take at once ---------------------------------------------------------

AWAY = Answer(1, "", "sbatch: error: Unable to contact slurm controller (connect failure)")
FULL = Answer(1, "", "sbatch: error: AssocMaxSubmitJobLimit")


class Patient(threading.Event):
    """A cancellation for which nobody waits; it is set after so many times."""

    waits = 0
    limit = 1000

    def wait(self, timeout=None):
        self.waits += 1
        return self.waits >= self.limit


@pytest.fixture
def offered(monkeypatch, tmp_path):
    """Return a function that offers a job to a Slurm with given answers, and what was asked."""
    asked = []

    def offer(*answers, cancel=None):
        left = list(answers)

        def call(command, extra=()):
            asked.append(command[0])
            if command[0] != "sbatch":
                return Answer(0, "", "")
            return left.pop(0) if len(left) > 1 else left[0]

        monkeypatch.setattr(slurm, "call", call)
        logs = tmp_path / "logs"
        logs.mkdir()
        cancel = cancel or Patient()
        job = Job("node-1", "run", tmp_path / "work", logs, "s.py", cancel=cancel)
        return SlurmExecutor()._submitted(job)

    offer.asked = asked
    return offer


def test_a_job_is_offered_until_it_is_taken(offered, tmp_path, caplog):
    handle = offered(AWAY, FULL, AWAY, Answer(0, "7\n", ""))
    assert handle["job_id"] == "7"
    assert offered.asked.count("sbatch") == 4
    assert offered.asked.count("scancel") == 3, "one that was taken all the same is ended"
    assert [p.name for p in (tmp_path / "logs").glob("slurm-*")] == [Path(handle["folder"]).name]
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2, "each reason is told once"
    assert told[0].startswith("speedkit: Slurm took no job: Unable to contact slurm controller")


def test_a_job_that_is_not_taken_can_be_cancelled(offered, tmp_path):
    cancel = Patient()
    cancel.limit = 50
    assert offered(FULL, cancel=cancel) is None
    assert offered.asked.count("sbatch") == 50
    assert not list((tmp_path / "logs").iterdir())


def test_a_slurm_that_stays_away_ends_the_run_and_a_full_one_does_not(offered, monkeypatch):
    monkeypatch.setattr("speedkit.plugins.executors.remote.PATIENCE_S", 0)
    with pytest.raises(ExecutorError, match=r"Unable to contact slurm controller.* for 0 minutes"):
        offered(FULL, AWAY)
