"""A small version of the benchmark of survivors: each way to stay, each way to end."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from executor_bench import BOTH, wait_for

from speedkit.plugins.executors import sandbox as sandboxes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import survivors

PAIRS = list(zip(survivors.WAYS, itertools.cycle(survivors.ENDINGS), strict=False))


@BOTH
@pytest.mark.parametrize(("way", "ending"), PAIRS)
def test_no_process_outlives_its_job(way, ending, sandbox):
    if sandbox == "bwrap" and sandboxes.find(sys.executable).bwrap is None:
        pytest.skip("no sandbox can be made here")
    assert survivors.trial(way, ending, "python", sandbox) is not None


def test_a_survivor_is_seen_and_ended(monkeypatch):
    """The benchmark would notice."""
    left = []

    def leave_one(folder, token, *rest):
        command = [sys.executable, "-c", "import time; time.sleep(60)", token]
        left.append(subprocess.Popen(command))
        wait_for(lambda: survivors.survivors(token) != [])

    monkeypatch.setattr(survivors, "GONE_S", 0.2)
    monkeypatch.setattr(survivors, "end", leave_one)
    assert survivors.trial("fork", "ends", "python", "none") is None
    assert left[0].wait(5) == -signal.SIGKILL
