"""Fixtures for the tests of executors."""

from __future__ import annotations

import os
import secrets
import sys

import pytest
from executor_bench import Bench, wait_for

from speedkit.plugins.executors import sandbox as sandboxes


@pytest.fixture
def sandbox():
    """The option of that name, for all jobs of the bench; parametrise it to have another."""
    return "auto"


@pytest.fixture
def bench(tmp_path, sandbox):
    """A bench whose scripts must leave no process behind."""
    if sandbox == "bwrap" and sandboxes.find(sys.executable).bwrap is None:
        pytest.skip(f"no sandbox can be made here: {sandboxes.find(sys.executable).reason}")
    made = Bench(tmp_path, f"bench-{secrets.token_hex(8)}", sandbox)
    before = os.umask(0o022)
    made.workspace.mkdir()
    made.log_dir.mkdir()
    yield made
    os.umask(before)
    wait_for(lambda: not made.survivors() and not made.scratch_folders())


@pytest.fixture
def eventually():
    """Return a function that waits until something holds."""
    return wait_for
