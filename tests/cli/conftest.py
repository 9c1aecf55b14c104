"""A run of the plugin of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

PLUGIN = Path(__file__).with_name("hostile_plugin.py")


@pytest.fixture
def hostile_run(toy_run):
    """Return a run whose coder and scripts write what should not reach a terminal."""
    chosen = {"executor": "shaky", "coder": "hostile", "scaffold": "flat", "guards": ()}
    return toy_run(load=(str(PLUGIN),), nodes=4, **chosen)
