"""A Slurm for the tests of a session, started when the first of them asks for it."""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.slurm import LoopbackSlurm, missing


@functools.lru_cache(maxsize=1)
def _running() -> LoopbackSlurm:
    """The one Slurm of this process, however many modules import the fixture."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # Paths of sockets must be short.
    return LoopbackSlurm(folder, nodes=2, cpus=8).__enter__()


@pytest.fixture(scope="session")
def session_slurm() -> Iterator[LoopbackSlurm]:
    """Return a running Slurm of two nodes; the test is skipped where none is installed."""
    if reason := missing():
        pytest.skip(reason)
    yield _running()
    if _running.cache_info().currsize:
        _running().stop()
        shutil.rmtree(_running().folder, ignore_errors=True)
        _running.cache_clear()


@pytest.fixture
def slurm(session_slurm: LoopbackSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackSlurm]:
    """Return the session's Slurm, with its commands at hand; no job may be left in it."""
    for name, value in session_slurm.environment.items():
        monkeypatch.setenv(name, value)
    yield session_slurm
    left = _left(session_slurm)
    session_slurm.call("scancel", "--quiet", "--me", check=False)
    assert not left, f"jobs were left: {left}"


def _left(slurm: LoopbackSlurm, limit_s: float = 10.0) -> str:
    """The jobs that are not over after a while, in which ended ones are cleared up."""
    deadline = time.monotonic() + limit_s
    while left := slurm.call("squeue", "--me", "--noheader", "--format=%i %T").strip():
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return left
