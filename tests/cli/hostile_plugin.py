"""A plugin whose coder writes control characters, nan and a crash, and whose clock is shaky."""

from __future__ import annotations

import functools
import io
import runpy

from pydantic import Field

import speedkit
from speedkit.core.components import Coder, Draft, Ending, Execution, Executor, Options

CONTROL = "\x1b[31mred\x1b[0m \x9b2J \u202egnp.exe \x07\r"
END = "step:9/9 val_loss:{loss} train_time:{ms}ms"


class HostileCoder(Coder):
    """Writes what a model might be talked into."""

    def write(self, request):
        lines = [
            f"# {CONTROL}",
            f"print({END.format(loss='0.5000', ms=5000)!r})",
            f"print({END.format(loss='nan', ms=4000)!r})",
            f"raise ValueError({CONTROL!r})",
        ]
        script = lines[0].replace("\r", "") + "\n" + lines[request.node_id % 4] + "\n"
        return Draft({request.task.script: script}, f"{CONTROL}\nmore {CONTROL}")


class ShakyOptions(Options):
    """Options of the executor."""

    jitter_ms: int = Field(0, ge=0, description="added to the time, more with each job")
    wait: bool = Field(False, description="wait for the end of the job instead of running it")


class ShakyExecutor(Executor):
    """Runs the script in this process; each job takes a little longer than the one before."""

    Options = ShakyOptions
    jobs = 0

    def execute(self, job, watch):
        watch.started({"pid": 0})
        if self.options.wait:
            print("waiting", flush=True)
            assert job.cancel.wait(60)
            return Execution(Ending.CANCELLED, reason="cancelled")
        out = io.StringIO()
        given = {"print": functools.partial(print, file=out)}  # other threads print as well
        try:
            runpy.run_path(str(job.workspace / job.script), given, "__main__")
        except Exception as error:
            return Execution(Ending.CRASHED, 1, reason=f"ValueError: {error}")
        for line in out.getvalue().split("\n"):
            watch.line(0, self._later(line), 0.01)
        self.jobs += 1
        return Execution(Ending.FINISHED, 0, wall_s=0.01)

    def _later(self, line):
        head, mark, time = line.partition("train_time:")
        if not mark:
            return line
        delay = self.jobs // 2 * self.options.jitter_ms
        return f"{head}{mark}{int(time.removesuffix('ms')) + delay}ms"

    def fingerprint(self):
        return {"executor": "shaky", "jitter": self.options.jitter_ms}


@speedkit.hookimpl
def register_coders(register):
    """Offer the coder."""
    register("hostile", HostileCoder)


@speedkit.hookimpl
def register_executors(register):
    """Offer the executor."""
    register("shaky", ShakyExecutor)
