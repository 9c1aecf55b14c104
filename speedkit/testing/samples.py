"""A plugin of the kit: an executor that runs scripts in this process, and a scripted coder."""

from __future__ import annotations

import contextlib
import io
import runpy
import traceback
from collections.abc import Mapping
from typing import Any

import speedkit
from speedkit.core.components import (
    Coder,
    CodeRequest,
    Draft,
    Ending,
    Execution,
    Executor,
    Job,
    RankError,
    Watch,
)
from speedkit.core.hookspecs import Register

WALL_S = 0.01
"""What every job is said to have taken, so that runs are the same everywhere."""


class InstantExecutor(Executor):
    """Runs a script in this process, in a millisecond; only for scripts that are trusted.

    It keeps no limit and cannot be interrupted. One job at a time.
    """

    def execute(self, job: Job, watch: Watch) -> Execution:
        """Run the script to its end, and keep what it printed."""
        watch.started({"executor": "instant"})
        out, err = io.StringIO(), io.StringIO()
        execution = Execution(Ending.FINISHED, 0, wall_s=WALL_S)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(job.workspace / job.script), run_name="__main__")
            except (Exception, SystemExit) as error:
                execution = _crashed(error)
                err.write(execution.errors[0].traceback)
        _keep(job, "stdout", out.getvalue())
        _keep(job, "stderr", err.getvalue())
        for line in out.getvalue().splitlines():
            watch.line(0, line, WALL_S)
        return execution

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what timings depend on: nothing."""
        return {"executor": "instant"}


def _crashed(error: BaseException) -> Execution:
    message = " ".join(f"{type(error).__name__}: {error}".split())
    cause = RankError(0, message, "".join(traceback.format_exception(error)))
    return Execution(Ending.CRASHED, 1, (cause,), WALL_S, reason=message)


def _keep(job: Job, stream: str, text: str) -> None:
    path = job.log_dir / f"rank0.{stream}.log"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


SCRIPTED = (
    ("Fewer steps", ("= 200", "= 180")),
    ("Far too few steps", ("= 200", "= 40")),
    ("A name that is not defined", ("args = Hyperparameters()", "args = undefined()")),
    ("Still fewer steps", ("= 200", "= 170")),
)
"""What the scripted coder does in turn: a hypothesis, and what it puts in whose place."""


class ScriptedCoder(Coder):
    """Changes the start record in four ways, in turn: valid, over the target, buggy, valid.

    Every fifth node it fails to make an edit.
    """

    def write(self, request: CodeRequest) -> Draft:
        """Return the change that is due at this node."""
        turn = (request.node_id - 1) % (len(SCRIPTED) + 1)
        if turn == len(SCRIPTED):
            return Draft(dict(request.files), "", failure="edit: the answer had no code")
        hypothesis, (old, new) = SCRIPTED[turn]
        script = request.task.script
        text = request.task.start.read().replace(old, new)
        return Draft({**request.files, script: f"{text}# node {request.node_id}\n"}, hypothesis)


@speedkit.hookimpl
def register_executors(register: Register) -> None:
    """Offer the executor ``instant``."""
    register("instant", InstantExecutor)


@speedkit.hookimpl
def register_coders(register: Register) -> None:
    """Offer the coder ``scripted``."""
    register("scripted", ScriptedCoder)
