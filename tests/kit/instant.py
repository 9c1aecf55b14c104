"""A plugin with an executor that runs Python scripts in this process: fast and deterministic."""

from __future__ import annotations

import functools
import io
import runpy
import traceback

import speedkit
from speedkit.core.components import Ending, Execution, Executor, RankError


class InstantExecutor(Executor):
    """Runs the script by runpy; only for scripts that the tests wrote."""

    def execute(self, job, watch):
        watch.started({"pid": 0})
        out = io.StringIO()
        given = {"print": functools.partial(print, file=out)}  # other threads print as well
        try:
            runpy.run_path(str(job.workspace / job.script), given, "__main__")
        except Exception as error:
            cause = RankError(0, f"{type(error).__name__}: {error}", traceback.format_exc())
            return Execution(Ending.CRASHED, 1, (cause,), 0.01, reason=cause.message)
        for line in out.getvalue().splitlines():
            watch.line(0, line, 0.01)
        return Execution(Ending.FINISHED, 0, wall_s=0.01)

    def fingerprint(self):
        return {"executor": "instant"}


@speedkit.hookimpl
def register_executors(register):
    """Offer the executor."""
    register("instant", InstantExecutor)
