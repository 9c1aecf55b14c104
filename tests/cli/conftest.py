"""The program as a function, and the plugin of this folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).with_name("hostile_plugin.py")


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


@pytest.fixture
def hostile_run(toy_run):
    """Return a run whose coder and scripts write what should not reach a terminal."""
    chosen = {"executor": "shaky", "coder": "hostile", "scaffold": "flat", "guards": ()}
    return toy_run(load=(str(PLUGIN),), nodes=4, **chosen)
