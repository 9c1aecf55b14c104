"""A kit for authors of plugins: pytest fixtures, and checks that a component keeps its promises.

::

    from speedkit.testing import check_component

    def test_it_conforms():
        check_component(MyCoder, options={"temperature": 0.5})

The fixtures ``tiny_task``, ``tiny_run``, ``run_dir`` and ``fake_llm`` are there in every test
of an environment that has speedkit installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speedkit.testing.conformance import (
        Fault,
        NonconformingError,
        check_component,
        find_faults,
    )
    from speedkit.testing.fake_openai import (
        FakeOpenAI,
        Request,
        Step,
        edit_script,
        fail,
        fault,
        say,
        too_many,
    )
    from speedkit.testing.tiny import TINY, tiny_plugins, tiny_task

_PUBLIC = {
    "FakeOpenAI": "fake_openai",
    "Fault": "conformance",
    "NonconformingError": "conformance",
    "Request": "fake_openai",
    "Step": "fake_openai",
    "TINY": "tiny",
    "check_component": "conformance",
    "edit_script": "fake_openai",
    "fail": "fake_openai",
    "fault": "fake_openai",
    "find_faults": "conformance",
    "say": "fake_openai",
    "tiny_plugins": "tiny",
    "tiny_task": "tiny",
    "too_many": "fake_openai",
}

__all__ = [
    "TINY",
    "FakeOpenAI",
    "Fault",
    "NonconformingError",
    "Request",
    "Step",
    "check_component",
    "edit_script",
    "fail",
    "fault",
    "find_faults",
    "say",
    "tiny_plugins",
    "tiny_task",
    "too_many",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that pytest starts without them."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'speedkit.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"speedkit.testing.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
