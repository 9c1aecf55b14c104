"""What all tests share: a cache folder of their own, a tiny family, an instant executor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))

TOY = TESTS / "families" / "toy"
INSTANT = TESTS / "kit" / "instant.py"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep calibrations and data of tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPEEDKIT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def toy_run(tmp_path):
    """Return a function that runs the toy family on the instant executor."""
    import speedkit

    def run(out="run", **settings):
        defaults = {
            "task": f"{TOY}/1",
            "load": (str(INSTANT),),
            "executor": "instant",
            "coder": "tuner",
            "nodes": 6,
        }
        return speedkit.run(out=tmp_path / out, **{**defaults, **settings})

    return run
