"""The command that runs a job in a container."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

import speedkit
from speedkit import Job

LABEL = "speedkit.run"
"""Label of every container, with the id of the run."""


class DockerOptions(speedkit.Options):
    """Options of the executor."""

    image: str = Field(min_length=1, description="image with Python and what scripts import")
    engine: str = Field("docker", description="the client program: docker or podman")
    gpus: str | None = Field(None, description="accelerators of a container, for example all")
    network: str = Field("none", description="network of a container; none: nothing is reached")
    memory: str | None = Field(None, description="most memory of a container, for example 64g")
    cpus: float | None = Field(None, gt=0, description="most processors of a container")
    shm: str = Field("8g", description="size of /dev/shm, which processes of a job share")
    pids: int = Field(4096, ge=16, description="most processes and threads of a container")
    python: str = Field("python", description="the interpreter inside the image")
    arguments: tuple[str, ...] = Field((), description="further arguments of `docker run`")


def container_name(job: Job, token: str) -> str:
    """Return a name that no other container has."""
    return re.sub(r"[^a-zA-Z0-9_.-]", "-", f"speedkit-{job.run_id[:12]}-{job.name}-{token}")


def command(options: DockerOptions, job: Job, name: str) -> list[str]:
    """Return the command for a job; folders have the same path inside as outside."""
    return [
        *(options.engine, "run", "--rm", "--init", f"--name={name}"),
        *(f"--label={LABEL}={job.run_id}", "--log-driver=none"),
        *_limits(options),
        *_volumes(job),
        *(f"--env={key}={value}" for key, value in sorted(_environment(job).items())),
        *(f"--workdir={job.workspace}", f"--user={os.getuid()}:{os.getgid()}"),
        *options.arguments,
        options.image,
        *_launcher(options, job),
        job.script,
        *job.args,
    ]


def _limits(options: DockerOptions) -> Iterator[str]:
    yield from ("--cap-drop=ALL", "--security-opt=no-new-privileges")
    yield from (f"--network={options.network}", f"--pids-limit={options.pids}")
    yield from (f"--shm-size={options.shm}", "--tmpfs=/tmp:exec")
    if options.gpus is not None:
        yield f"--gpus={options.gpus}"
    if options.memory is not None:
        yield f"--memory={options.memory}"
    if options.cpus is not None:
        yield f"--cpus={options.cpus:g}"


def _volumes(job: Job) -> Iterator[str]:
    """Yield the workspace, what its links lead to, and further folders of the job."""
    writable = {job.workspace, *job.writable, *_caches(job)}
    links = (p for p in sorted(job.workspace.iterdir()) if p.is_symlink() and p.exists())
    readable = {*(link.resolve() for link in links), *job.readable} - writable
    yield from (f"--volume={path}:{path}" for path in sorted(writable))
    yield from (f"--volume={path}:{path}:ro" for path in sorted(readable))


def _caches(job: Job) -> Iterator[Path]:
    """Yield the folders that variables of the job name as caches, if they are there."""
    for name, value in job.env.items():
        if name.endswith("_CACHE_DIR") and os.path.isabs(value) and os.path.isdir(value):
            yield Path(value)


def _environment(job: Job) -> dict[str, str]:
    return {"HOME": "/tmp", "PYTHONUNBUFFERED": "1", **job.env}


def _launcher(options: DockerOptions, job: Job) -> list[str]:
    if job.launcher == "python":
        return [options.python, "-u"]
    ranks = f"--nproc-per-node={job.nproc}"
    return [
        *(options.python, "-u", "-m", "torch.distributed.run", "--standalone", ranks),
        "--local-ranks-filter=0",
    ]
