"""``speedkit cancel``: with a controller here, without one, and for one run of many."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from executor_bench import wait_for

import speedkit
from speedkit.cancel import cancel_run
from speedkit.core.history import RunDirectory
from speedkit.core.journal import read_events
from tests.kit.slurm import fixtures

session_slurm, slurm = fixtures.session_slurm, fixtures.slurm
pytestmark = pytest.mark.engines

SLOW = "import time\ntime.sleep(60)\n"


@pytest.fixture
def family(tmp_path):
    """A family whose scripts take a minute."""
    import shutil

    from tests.conftest import TOY

    folder = tmp_path / "family"
    shutil.copytree(TOY, folder)
    for script in (folder / "scripts").glob("*.py"):
        script.write_text(SLOW + script.read_text())
    return folder


def start(family, out, executor="torchrun", *options):
    command = [sys.executable, "-m", "speedkit", "run", f"{family}/1", "--out", str(out)]
    command += ["--nodes", "1", "--coder", "tuner", "--calibration", "reference"]
    command += ["--executor", executor, "--display", "none", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(handles(out)) or process.poll() is not None, 40)
    return process


def start_slurm(family, out):
    options = (
        "executor.poll_s=0.1",
        "executor.states_s=0.5",
        "executor.cpus=1",
        "executor.lanes=1",
    )
    return start(family, out, "slurm", *(part for one in options for part in ("-o", one)))


def handles(path):
    if not (path / "events.jsonl").exists():
        return []
    return [e["handle"] for e in read_events(path / "events.jsonl") if e["type"] == "job_started"]


def cli(*arguments):
    command = [sys.executable, "-m", "speedkit", "cancel", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def kill(process):
    process.kill()
    process.communicate()


def test_a_controller_here_ends_its_jobs_and_its_run(family, tmp_path):
    path = tmp_path / "run"
    process = start(family, path)
    done = cli(path)
    _, err = process.communicate(timeout=10)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"process {process.pid} has ended its jobs and itself" in done.stdout
    assert f"speedkit run --resume {path}" in done.stdout
    assert process.returncode == 130, err
    assert speedkit.open_run(path).status == "interrupted"


def test_jobs_of_a_killed_controller_are_ended_by_their_handles(family, tmp_path, slurm):
    path = tmp_path / "run"
    kill(start_slurm(family, path))
    (job_id,) = [handle["job_id"] for handle in handles(path)]
    done = cli(path, "--json")
    assert json.loads(done.stdout) == {"controller": None, "jobs": ["node-1"], "remote": ""}
    state = slurm.call("squeue", "--states=all", "--noheader", f"--jobs={job_id}", "--format=%T")
    assert state.strip() == "CANCELLED"
    assert read_events(path / "events.jsonl")[-1]["type"] == "job_ended"
    assert cli(path).stdout.startswith("nothing was running\n")


def test_a_job_that_a_killed_controller_could_not_record_is_ended_as_well(slurm, toy_run):
    tree = toy_run(nodes=1, executor="slurm", calibration="reference")
    name = f"speedkit-{RunDirectory(tree.path).run_id}-node-2"
    (tree.path / "nodes" / "0001" / ".slurm-submission").write_text(f"{name}\nslurm-1234\n")
    slurm.call("sbatch", "--hold", f"--job-name={name}", "--wrap=sleep 60")
    assert cancel_run(tree.path).jobs == (name,)
    assert not slurm.call("squeue", "--noheader", f"--name={name}").strip()
    assert cancel_run(tree.path).jobs == ()


def test_a_controller_on_another_machine_sees_its_jobs_cancelled(family, tmp_path, slurm):
    path = tmp_path / "run"
    process = start_slurm(family, path)
    (path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "now"}))
    done = cancel_run(path)
    assert (done.jobs, done.remote) == (("node-1",), "elsewhere")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "was cancelled from outside" in err


def test_one_run_of_a_process_with_several_is_not_ended_with_the_others(tmp_path, toy_run):
    tree, other = toy_run("one", nodes=1), toy_run("other", nodes=1)
    with RunDirectory(tree.path).writing() as journal, RunDirectory(other.path).writing():
        handle = {"pid": 1, "host": socket.gethostname()}
        journal.append({"type": "job_started", "at": 0, "job": "node-9", "handle": handle})
        with pytest.raises(speedkit.SpeedkitError, match=f"kill {os.getpid()}"):
            cancel_run(tree.path)


def test_a_controller_that_does_not_end_is_named(tmp_path, toy_run):
    tree = toy_run(nodes=1)
    code = (
        "import signal, sys, time, speedkit.core.history as history; from pathlib import Path\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "with history.RunDirectory(Path(sys.argv[1])).writing():\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tree.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    with pytest.raises(speedkit.SpeedkitError, match=f"kill -9 {holder.pid}"):
        cancel_run(tree.path, wait_s=1)
    assert time.monotonic() - began < 10
    holder.send_signal(signal.SIGKILL)
    holder.communicate()


def test_what_is_no_run_directory_is_said_in_one_line(tmp_path):
    done = cli(tmp_path)
    assert done.returncode == 2
    assert "is no run directory" in done.stderr
    assert len(done.stderr.splitlines()) == 1
