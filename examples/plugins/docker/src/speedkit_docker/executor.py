"""The executor ``docker``: a container for each job, removed with all that runs in it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import speedkit
from speedkit import Ending, Execution, ExecutorError, Job, Watch
from speedkit_docker.command import DockerOptions, command, container_name

POLL_S = 0.1
"""Seconds between two looks at a running job."""
ENGINE_FAILED = 125
"""Exit status of ``docker run`` when the container was never started."""
KILLED = 137
"""Exit status of a script that was killed, for example for want of memory."""
MAX_LOG = 64 * 1024 * 1024
"""Bytes of each stream that are kept; a job that prints more is ended."""


class DockerExecutor(speedkit.Executor):
    """Runs scripts in containers of one image, without a network and without capabilities.

    The container is a process namespace of its own: when it is removed, nothing of the job is
    left, whatever the script did.
    """

    Options = DockerOptions
    options: DockerOptions

    def execute(self, job: Job, watch: Watch) -> Execution:
        """Run the job to its end and remove its container."""
        name = container_name(job, secrets.token_hex(4))
        if shutil.which(self.options.engine) is None:
            raise ExecutorError(f"there is no program {self.options.engine!r}: install an engine")
        watch.started({"engine": self.options.engine, "container": name})
        began = time.monotonic()
        with open(job.log_dir / "rank0.stderr.log", "wb") as errors:
            process = subprocess.Popen(
                command(self.options, job, name),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        reader = _Reader(process, job, watch, began)
        reader.start()
        try:
            ended = self._wait(process, job, reader, began)
        finally:
            self.reap({"engine": self.options.engine, "container": name})
            process.wait()
        reader.join()
        ending, reason = ended or _ending_of(process.returncode, job)
        wall_s = time.monotonic() - began
        return Execution(ending, process.returncode, (), wall_s, reason, _collect(job))

    def reap(self, handle: Mapping[str, Any]) -> None:
        """Remove a container, running or not; one that is gone is no fault."""
        arguments = [str(handle["engine"]), "rm", "--force", str(handle["container"])]
        subprocess.run(arguments, capture_output=True, check=False)

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what timings depend on: this machine, and the image's id."""
        arguments = [
            self.options.engine,
            "image",
            "inspect",
            "--format={{.Id}}",
            self.options.image,
        ]
        image = ""
        if shutil.which(self.options.engine) is not None:
            image = subprocess.run(arguments, capture_output=True, text=True).stdout.strip()
        machine = {"host": os.uname().nodename, "cores": os.cpu_count()}
        return {**machine, "image": image or self.options.image, "gpus": self.options.gpus}

    def _wait(
        self, process: subprocess.Popen[bytes], job: Job, reader: _Reader, began: float
    ) -> tuple[Ending, str] | None:
        """Wait for the end; say how it was ended from outside, if it was."""
        errors = job.log_dir / "rank0.stderr.log"
        while process.poll() is None:
            now = time.monotonic()
            if now - began > job.timeout_s:
                return Ending.TIMED_OUT, f"ended after {job.timeout_s:g} s"
            if now - reader.heard > job.stall_s:
                return Ending.STALLED, f"ended after {job.stall_s:g} s without output"
            if max(reader.size, errors.stat().st_size) > MAX_LOG:
                return Ending.FLOODED, f"ended after {MAX_LOG} bytes of output"
            if job.cancel.is_set():
                return Ending.CANCELLED, "cancelled"
            time.sleep(POLL_S)
        return None


class _Reader(threading.Thread):
    """Passes lines of standard output on, and keeps them."""

    def __init__(
        self, process: subprocess.Popen[bytes], job: Job, watch: Watch, began: float
    ) -> None:
        super().__init__(daemon=True)
        self.process, self.job, self.watch, self.began = process, job, watch, began
        self.heard, self.size = began, 0

    def run(self) -> None:
        """Read to the end; what is over the limit is not kept."""
        assert self.process.stdout is not None
        with open(self.job.log_dir / "rank0.stdout.log", "wb") as log:
            for raw in self.process.stdout:
                self.heard = time.monotonic()
                self.size += len(raw)
                if self.size <= MAX_LOG:
                    log.write(raw)
                    text = raw.decode("utf-8", "replace").rstrip("\r\n")
                    self.watch.line(0, text, self.heard - self.began)


def _ending_of(status: int, job: Job) -> tuple[Ending, str]:
    """Return what the exit status of ``docker run`` says.

    Raises:
        ExecutorError: the engine could not start a container.
    """
    if status == 0:
        return Ending.FINISHED, ""
    if status == ENGINE_FAILED:
        lines = (job.log_dir / "rank0.stderr.log").read_text("utf-8", "replace").splitlines()
        words = next((line for line in lines if line.strip()), "it gave no reason")
        raise ExecutorError(f"the engine could not start a container: {words[:300]}")
    if status == KILLED:
        return Ending.CRASHED, "the script was killed, for want of memory perhaps"
    return Ending.CRASHED, f"the script failed with exit status {status}"


def _collect(job: Job) -> tuple[Path, ...]:
    """Copy what was asked for to the log folder; a link is not followed."""
    folder = job.log_dir / "collected"
    found = [path for pattern in job.collect for path in sorted(job.workspace.glob(pattern))]
    copies = []
    for path in found:
        if path.is_file() and not path.is_symlink():
            folder.mkdir(exist_ok=True)
            copies.append(Path(shutil.copyfile(path, folder / path.name)))
    return tuple(copies)
