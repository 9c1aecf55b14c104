"""The fixtures of the kit, whether or not its entry point is installed, and broken components."""

from __future__ import annotations

import pytest

from speedkit.testing.pytest_plugin import (  # noqa: F401
    _speedkit_finished_run,
    fake_llm,
    run_dir,
    tiny_run,
    tiny_task,
)


@pytest.fixture
def faults():
    """Return a function that gives the faults of a component: messages by check."""
    from speedkit.testing.checks import common
    from speedkit.testing.conformance import CHECKS, find_faults

    def find(cls, only=None, **settings):
        names = [check.__name__ for check in (*common.CHECKS, *CHECKS[cls.kind])]
        skip = [name for name in names if only not in (None, name)]
        found = {}
        for fault in find_faults(cls, skip=skip, **settings):
            found.setdefault(fault.check, []).append(fault.message)
        return found

    return find
