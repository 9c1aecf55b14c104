"""What all tests share: a cache folder of their own, a tiny family, the program as a function."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))

TOY = TESTS / "families" / "toy"
INSTANT = TESTS / "kit" / "instant.py"

# Git as it is without hooks, templates and habits of the user.
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}

# A suite that is started in the background inherits deafness to Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, on a machine however slow, and nothing left for the next time.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def no_sync():
    """Let this process not wait for the disk: only a loss of power could tell the difference.

    A file that is not open is still an error, and programs that tests start do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def new_caches(tmp_path_factory):
    """Return paths of new caches; ``mktemp`` for each test would list all that came before."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(new_caches, monkeypatch):
    """Keep calibrations and data of tests out of the user's cache."""
    folder = next(new_caches)
    folder.mkdir()
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
