"""A plugin whose executor adds noise by the seed, whose coder writes what it is given, and whose
guard objects in verifications only."""

from __future__ import annotations

import functools
import io
import math
import random
import runpy
from typing import ClassVar

from pydantic import Field

import speedkit
from speedkit.core.components import Coder, Draft, Ending, Execution, Executor, Options, RankError
from speedkit.core.guards import Guard, GuardOptions, Level
from speedkit.core.metrics import parse_line


class NoisyOptions(Options):
    noise: float = Field(0.0, description="standard deviation of the logarithm of times")
    loss_sd: float = Field(0.01, description="standard deviation of losses")
    drift: float = Field(0.0, description="by what fraction each job is slower than the first")
    machine: str = Field("a", description="name of the machine")


class NoisyExecutor(Executor):
    """Runs scripts in this process, and adds noise to what they print.

    They find SEED, JOB and DATA among their globals; one that sets PINNED has the same loss
    whatever the seed.
    """

    Options = NoisyOptions
    jobs: ClassVar[list[str]] = []

    def execute(self, job, watch):
        watch.started({"job": job.name})
        self.jobs.append(job.name)
        seed = int(job.env["SPEEDKIT_SEED"])
        out, left, failure = io.StringIO(), {}, None
        given = {"SEED": seed, "JOB": job.name, "DATA": job.workspace / "data"}
        given["print"] = functools.partial(print, file=out)  # other threads print as well
        try:
            left = runpy.run_path(str(job.workspace / job.script), given, "__main__")
        except Exception as error:
            failure = RankError(0, f"{type(error).__name__}: {error}")
        rng = random.Random(f"{seed}/{job.name}")
        for line in out.getvalue().splitlines():
            watch.line(0, self.noisy(line, rng, left.get("PINNED")), 0.01)
        if failure is not None:
            return Execution(Ending.CRASHED, 1, (failure,), 0.01, reason=failure.message)
        if job.cancel.is_set():
            return Execution(Ending.CANCELLED)
        return Execution(Ending.FINISHED, 0, wall_s=0.01)

    def noisy(self, line, rng, pinned):
        found = parse_line(line)
        if found is None:
            return line
        slower = 1 + self.options.drift * len(self.jobs)
        time = found.train_time_ms * slower * math.exp(rng.gauss(0, self.options.noise))
        loss = found.val_loss + (0 if pinned else rng.gauss(0, self.options.loss_sd))
        return f"step:{found.step}/{found.steps} val_loss:{loss:.6f} train_time:{round(time)}ms"

    def reap(self, handle):
        self.jobs.append(f"reaped {handle['job']}")

    def fingerprint(self):
        return {"executor": "noisy", "machine": self.options.machine}


class GivenOptions(Options):
    script: str = Field("", description="the script of every node")


class GivenCoder(Coder):
    """Writes the script that its option holds."""

    Options = GivenOptions

    def write(self, request):
        return Draft({request.task.script: self.options.script}, "as given", repeat=True)


class LaterOptions(GuardOptions):
    level: str = Field("pass", description="level of its findings: pass, quarantine or reject")


class LaterGuard(Guard):
    """Objects to runs of a verification, never to those of the search."""

    Options = LaterOptions

    @property
    def name(self):
        return "later"

    def check_result(self, result):
        if "verify" in result.log_dir.parts:
            yield self.found(Level(self.options.level), "it looks odd now")


@speedkit.hookimpl
def register_executors(register):
    """Offer the executor."""
    register("noisy", NoisyExecutor)


@speedkit.hookimpl
def register_coders(register):
    """Offer the coder."""
    register("given", GivenCoder)


@speedkit.hookimpl
def register_guards(register):
    """Offer the guard."""
    register("later", LaterGuard)
