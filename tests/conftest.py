"""What all tests share: a cache folder of their own, a tiny family, the program as a function."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, read as JSON."""
        return json.loads(self.out)


@pytest.fixture
def program(capsys):
    """Return a function that runs the program with arguments, as the shell would."""
    from speedkit.cli.main import main

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ending:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Result(ending.value.code or 0, captured.out, captured.err)

    return run
