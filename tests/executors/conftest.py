"""Fixtures for the tests of executors."""

from __future__ import annotations

import secrets

import pytest
from executor_bench import Bench, wait_for


@pytest.fixture
def bench(tmp_path):
    """A bench whose scripts must leave no process behind."""
    made = Bench(tmp_path, f"bench-{secrets.token_hex(8)}")
    made.workspace.mkdir()
    made.log_dir.mkdir()
    yield made
    wait_for(lambda: not made.survivors() and not made.scratch_folders(), 3)


@pytest.fixture
def eventually():
    """Return a function that waits until something holds."""
    return wait_for
