"""A plugin for grids of runs: an executor that threads may share, and a coder that can break."""

from __future__ import annotations

import re
import traceback

import speedkit
from speedkit.core.components import Coder, Draft, Ending, Execution, Executor, RankError

NAME = __name__
"""What to load."""


class Behaviour:
    """What tests set: called with each job, each request for code, and each finished node."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.on_job = lambda job: None
        self.on_code = lambda request: None
        self.on_node = lambda node: None
        self.wall_s = 0.01


now = Behaviour()


class QuickExecutor(Executor):
    """Runs a script in the thread at hand, with a ``print`` of its own."""

    def execute(self, job, watch):
        watch.started({"pid": 0})
        now.on_job(job)
        if job.cancel.is_set():
            return Execution(Ending.CANCELLED, reason="cancelled")
        lines = []
        code = compile((job.workspace / job.script).read_text(), job.script, "exec")
        try:
            exec(code, {"__name__": "__main__", "print": lines.append})
        except Exception as error:
            cause = RankError(0, f"{type(error).__name__}: {error}", traceback.format_exc())
            return Execution(Ending.CRASHED, 1, (cause,), now.wall_s, reason=cause.message)
        for line in lines:
            watch.line(0, line, 0.01)
        return Execution(Ending.FINISHED, 0, wall_s=now.wall_s)

    def fingerprint(self):
        return {"executor": "quick"}


class FewerStepsCoder(Coder):
    """Takes as many steps away as the node's id, so that no two have the same code."""

    def write(self, request):
        now.on_code(request)
        text = request.files[request.task.script]
        new = re.sub(r"int = \d+", f"int = {100 - request.node_id}", text)
        return Draft({request.task.script: new}, f"{request.node_id} steps fewer")


@speedkit.hookimpl
def register_executors(register):
    """Offer the executor."""
    register("quick", QuickExecutor)


@speedkit.hookimpl
def register_coders(register):
    """Offer the coder."""
    register("fewer", FewerStepsCoder)


@speedkit.hookimpl
def node_finished(node):
    """Tell of a node."""
    now.on_node(node)
