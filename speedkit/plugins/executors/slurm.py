"""The slurm executor: jobs go through ``sbatch``, and are followed through shared files.

Slurm's own commands are used and not submitit, because submitit asks ``sacct`` for states,
which many clusters, and any without a data base, do not have.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from speedkit.core.components import Ending, Job
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors.remote import (
    END_S,
    Fate,
    Rejected,
    RemoteExecutor,
    RemoteOptions,
    name_of,
)
from speedkit.plugins.executors.remote_folder import JobFolder
from speedkit.plugins.executors.slurm_commands import UNKNOWN, Answer, JobState, call, queue_of

SPARE_MIN = 10
"""Minutes that Slurm's limit exceeds the job's own by, for set-up and clean-up."""
_NAME = r"^[A-Za-z0-9_.,+-]+$"
_OWN = frozenset(
    {
        *("--array", "--chdir", "--clusters", "--job-name", "--output", "--parsable", "--quiet"),
        *("--requeue", "--test-only", "--wait", "--wrap"),
    }
)
"""Options of ``sbatch`` after which a job cannot be found, or is more than one."""
_LOST = {
    "PREEMPTED": "it was preempted",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not start",
    "LAUNCH_FAILED": "it could not be launched",
    "RECONFIG_FAIL": "a node could not be set up",
    "REVOKED": "it was revoked",
    UNKNOWN: "Slurm does not know it any more",
}


class SlurmOptions(RemoteOptions):
    """Options of the slurm executor; those without a value are left to the cluster."""

    partition: str | None = Field(None, pattern=_NAME, description="partition, or several: a,b")
    account: str | None = Field(None, pattern=_NAME, description="account that is charged")
    qos: str | None = Field(None, pattern=_NAME, description="quality of service")
    nodes: int = Field(1, ge=1, le=128, description="nodes of a job; nproc is divided among them")
    gpus: str | None = Field(
        None,
        pattern=r"^([A-Za-z0-9_.-]+:)?[0-9]+$",
        description="GPUs on each node, for example 8 or h100:8",
    )
    cpus: int | None = Field(
        None, ge=1, description="CPUs on each node; by default one for each process"
    )
    memory: str | None = Field(
        None, pattern=r"^[0-9]+[KMGT]?$", description="memory on each node, for example 200G"
    )
    time: str | None = Field(
        None,
        pattern=r"^[0-9:-]+$",
        description="Slurm's time limit, for example 2:00:00; by default the job's and 10 minutes",
    )
    constraint: str | None = Field(None, description="features that nodes must have")
    exclusive: bool = Field(False, description="whether no other job may share the nodes")
    sbatch: tuple[str, ...] = Field((), description="further arguments of sbatch")
    setup: tuple[str, ...] = Field(
        (), description="shell commands to run first on a node, for example module load cuda"
    )
    container: str | None = Field(
        None, description="container image to run in; it must have speedkit and torch"
    )
    container_runtime: Literal["pyxis", "apptainer"] = Field(
        "pyxis", description="what runs the container"
    )
    container_mounts: tuple[str, ...] = Field(
        (), description="further folders that the container sees, as FROM:TO"
    )
    states_s: float = Field(
        10.0, ge=0.1, description="seconds between two questions to Slurm about all jobs"
    )

    @field_validator("gpus", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("sbatch")
    @classmethod
    def _are_options(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        for one in arguments:
            if not one.startswith("--"):
                raise ValueError(f"{one!r} is no option: write --name or --name=value")
            if one.partition("=")[0] in _OWN:
                raise ValueError(f"{one!r} would keep speedkit from following its jobs")
        return arguments


class SlurmExecutor(RemoteExecutor):
    """Submits each job with ``sbatch``; the nodes must see the run directory and speedkit."""

    Options = SlurmOptions
    engine = "slurm"

    @property
    def interpreter(self) -> str | None:
        """The Python that runs the scripts, None where it is in a container."""
        return None if self.options.container else super().interpreter

    def nodes_of(self, job: Job) -> int:
        """Return how many nodes a job has, which share its processes evenly.

        Raises:
            ExecutorError: they cannot.
        """
        nodes = int(self.options.nodes) if job.launcher == "torchrun" else 1
        if job.nproc % nodes:
            raise ExecutorError(
                f"{job.nproc} processes cannot be shared evenly by {nodes} nodes: set "
                "executor.nodes or executor.nproc"
            )
        return nodes

    def submit(self, job: Job, folder: JobFolder) -> dict[str, Any]:
        """Hand a job to ``sbatch``."""
        nodes = self.nodes_of(job)
        script = folder.path / "batch.sh"
        script.write_text(
            batch_script(self.options, self._node_command(folder), folder, job, nodes)
        )
        command = sbatch_command(self.options, job, folder, nodes)
        answer = call([*command, str(script)], self.options.env)
        if answer.status != 0:
            raise _refusal(answer)
        job_id, _, cluster = answer.out.strip().partition(";")
        if not job_id.isdigit():
            raise ExecutorError(f"sbatch answered {answer.out.strip()!r}, which is no job id")
        return {
            "engine": self.engine,
            "job_id": job_id,
            "cluster": cluster,
            "name": name_of(job),
            "folder": str(folder.path),
            "nodes": nodes,
            "submitted": time.time(),
        }

    def look(self, handle: Mapping[str, Any]) -> Fate | None:
        """Ask the shared queue."""
        state = self._state(handle, self.options.states_s)
        if state is None or not state.is_over:
            return None
        return fate(str(handle["job_id"]), state, JobFolder(Path(handle["folder"])).last_words())

    def end(self, handle: Mapping[str, Any]) -> None:
        """Cancel a job with ``scancel`` and wait until Slurm has no process of it left."""
        # Both the id and the name must be right, as ids are used anew after a while.
        call(["scancel", "--quiet", f"--name={handle['name']}", str(handle["job_id"])])
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            state = self._state(handle, 0.3)
            if state is not None and state.is_over:
                return
            time.sleep(0.1)

    def end_unrecorded(self, name: str, folder: JobFolder) -> None:
        """Cancel by its name a job whose id nobody knows, and wait until it is gone."""
        call(["scancel", "--quiet", "--me", f"--name={name}"])
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            answer = call(["squeue", "--me", "--noheader", f"--name={name}", "--format=%i"])
            if answer.status != 0 or not answer.out.strip():
                return
            time.sleep(0.2)

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what of the options decides on the hardware, and the versions of the scripts.

        The machine at hand has no say: timings are those of the nodes.
        """
        names = ("partition", "nodes", "gpus", "cpus", "constraint", "exclusive", "container")
        facts = {name: getattr(self.options, name) for name in names}
        if self.options.container:
            return {"engine": self.engine, **facts}
        return {**super().fingerprint(), **facts}

    def _state(self, handle: Mapping[str, Any], max_age_s: float) -> JobState | None:
        queue = queue_of(os.environ.get("SLURM_CONF", ""))
        age_s = max(0.0, time.time() - float(handle["submitted"]))
        return queue.state(str(handle["job_id"]), time.monotonic() - age_s, max_age_s)


def _refusal(answer: Answer) -> Exception:
    text = " ".join(answer.err.replace("sbatch: ", "").replace("error: ", "").split())
    if answer.is_transient:
        return Rejected(f"Slurm took no job: {text}", is_full=answer.is_full)
    return ExecutorError(f"sbatch refused the job: {text}")


def sbatch_command(options: SlurmOptions, job: Job, folder: JobFolder, nodes: int) -> list[str]:
    """Return ``sbatch`` with all its options for a job.

    Slurm must not requeue: a job that is lost is resubmitted with a clean workspace.
    """
    given = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "gpus-per-node": options.gpus,
        "mem": options.memory,
        "constraint": options.constraint,
        "cpus-per-task": options.cpus
        or (None if options.exclusive else math.ceil(job.nproc / nodes)),
        "time": options.time or _minutes(job),
    }
    return [
        *("sbatch", "--parsable", "--export=ALL", "--no-requeue", f"--job-name={name_of(job)}"),
        *(f"--nodes={nodes}", "--ntasks-per-node=1"),
        *(f"--output={folder.output}", f"--chdir={folder.path}"),
        *(f"--{key}={value}" for key, value in given.items() if value is not None),
        *(["--exclusive"] if options.exclusive else []),
        *options.sbatch,
    ]


def batch_script(
    options: SlurmOptions, command: list[str], folder: JobFolder, job: Job, nodes: int
) -> str:
    """Return what runs on the first node.

    The last command replaces the shell, so that it, and not the shell, is told by a signal
    when Slurm ends the job.
    """
    lines = ["#!/bin/bash", "set -e", *options.setup]
    lines.append(shlex.join(["exec", *_wrapped(options, command, folder, job, nodes)]))
    return "\n".join(lines) + "\n"


def _wrapped(
    options: SlurmOptions, command: list[str], folder: JobFolder, job: Job, nodes: int
) -> list[str]:
    seen = sorted({str(folder.path), str(job.workspace), str(job.log_dir)})
    mounts = ",".join([*(f"{path}:{path}" for path in seen), *options.container_mounts])
    if options.container and options.container_runtime == "apptainer":
        gpus = ["--nv"] if options.gpus else []
        command = ["apptainer", "exec", *gpus, f"--bind={mounts}", options.container, *command]
    is_pyxis = options.container and options.container_runtime == "pyxis"
    if nodes == 1 and not is_pyxis:
        return command
    image = [f"--container-image={options.container}", f"--container-mounts={mounts}"]
    return [
        *("srun", f"--nodes={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"),
        *(image if is_pyxis else []),
        *command,
    ]


def _minutes(job: Job) -> int:
    return math.ceil(job.timeout_s / 60) + SPARE_MIN


def fate(job_id: str, state: JobState, last_words: str = "") -> Fate:
    """Return what the end of a Slurm job means that has left no result of its own.

    A script's own failure always leaves a result. So what is left are limits, which are the
    script's fault, a cancellation, and failures of the machinery.
    """
    job = f"Slurm job {job_id}"
    said = f": {last_words}" if last_words else ""
    if state.state in ("TIMEOUT", "DEADLINE"):
        return Fate(Ending.TIMED_OUT, f"{job} reached Slurm's time limit")
    if state.state == "CANCELLED":
        return Fate(Ending.CANCELLED, f"{job} was cancelled from outside")
    if state.state == "OUT_OF_MEMORY":
        return Fate(Ending.CRASHED, f"out of memory: {job} needed more than Slurm gave it")
    if why := _LOST.get(state.state):
        return Fate(Ending.LOST, f"{job}: {why}{said}")
    reason = f"{job} ended ({state.state.lower()}) without a result{said}"
    return Fate(Ending.LOST, reason, may_blame=True)
