"""Fixtures for the root ``conftest.py`` to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.kit.fake_openai import FakeOpenAI, Script


@pytest.fixture
def fake_openai() -> Iterator[Callable[[Script], FakeOpenAI]]:
    """Return a function that starts a server with a script; it is stopped after the test."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(FakeOpenAI(script))
