"""A real controller, killed with SIGKILL or interrupted, then resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import speedkit
from tests.core.test_resume import check_once, facts
from tests.kit.slow_family import slow_family

MOMENTS = int(os.environ.get("SPEEDKIT_TEST_KILLS", "8"))
"""How often the run is killed; the more, the longer the test takes."""
NODES = 6


@pytest.fixture
def family(tmp_path):
    """Return the toy family with scripts that take a while."""
    return slow_family(tmp_path / "family", 0.1)


def start(family, out, *extra):
    command = [sys.executable, "-m", "speedkit", "run", f"{family}/1", "--out", str(out)]
    command += ["--nodes", str(NODES), "--seed", "5", "--scaffold", "multi_aide"]
    command += ["--display", "none", *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def survivors(path):
    """Return the processes that carry the mark of a run."""
    run_id = speedkit.core.history.RunDirectory(path).run_id
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SPEEDKIT_JOB", "").startswith(run_id):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def events_of(path):
    """Return how many events a run has written down so far."""
    journal = path / "events.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
def test_kill_at_many_moments_leads_to_the_same_tree(family, tmp_path):
    assert start(family, tmp_path / "whole").wait() == 0
    whole = speedkit.open_run(tmp_path / "whole")
    events = events_of(tmp_path / "whole")
    cut_short = 0
    for moment in range(MOMENTS):
        path = tmp_path / f"run-{moment}"
        process = start(family, path, "--calibration", "fresh")
        while process.poll() is None and events_of(path) < moment / MOMENTS * events:
            time.sleep(0.01)
        time.sleep(0.3 if moment == 0 else moment % 4 * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if not (path / "run.toml").exists():
            continue
        cut_short += len(speedkit.open_run(path)) <= NODES
        resumed = speedkit.run(resume=path)
        assert facts(resumed) == facts(whole), f"killed at moment {moment}"
        check_once(path)
        assert not survivors(path)
        shutil.rmtree(path)
    assert cut_short >= MOMENTS // 4


def test_the_job_of_a_killed_controller_is_gone_before_the_next_starts(family, tmp_path):
    script = family / "scripts/slow.py"
    script.write_text("import time\ntime.sleep(60)\n" + script.read_text())
    path = tmp_path / "run"
    process = start(family, path)
    wait_until(lambda: (path / "run.toml").exists() and survivors(path))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not survivors(path), limit_s=30)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_cleanly_and_says_how_to_go_on(family, tmp_path, signum):
    path = tmp_path / "run"
    process = start(family, path)
    wait_until(lambda: Path(path / "events.jsonl").exists() and survivors(path))
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"speedkit run --resume {path}" in err
    assert "Traceback" not in err
    assert not survivors(path)
    assert speedkit.open_run(path).status == "interrupted"
    assert speedkit.run(resume=path).status == "finished"
