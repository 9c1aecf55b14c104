"""The torchrun executor: runs scripts on this machine, and ends all that they start."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, cast

from pydantic import Field, field_validator

from speedkit.core.components import (
    Ending,
    Execution,
    Executor,
    Job,
    Options,
    RankError,
    Services,
    Watch,
)
from speedkit.core.config import split_names
from speedkit.core.errors import ExecutorError
from speedkit.core.files import read_tail
from speedkit.plugins.executors import (
    collect,
    gpu,
    machine,
    mounts,
    processes,
    sandbox,
    scratch,
)
from speedkit.plugins.executors.environment import is_secret, job_environment, passed
from speedkit.plugins.executors.lanes import Lane, Lanes, make_lanes, own_cpus, uses_gpus
from speedkit.plugins.executors.supervisor import BOOT, Order

POLL_S = 0.1
"""Seconds between two looks at whether a job is to be ended."""
GRACE_S = 30.0
"""Seconds beyond a job's limits after which its supervisor is itself taken for hung."""
END_S = 10.0
"""Seconds in which a supervisor has ended its job, when it is told to."""
MAX_COLLECTED = 4
"""All collected files together may be so many times as large as one."""
MAX_LOSSES = 2
"""So many losses of one job that a script may have caused are its script's doing."""
MB = 1_000_000
GB = 1_000_000_000
MAX_MB, MAX_GB = 1_000_000_000, 1_000_000
"""Sizes can be set up to this."""
_PACKAGE = Path(__file__).resolve().parent
_RANK_ENTRY = _PACKAGE / "rank_entry.py"
_WARM_ENTRY = _PACKAGE / "warm_entry.py"
_said: set[str] = set()
"""What the user has been told in this process, to be told once."""


class TorchrunOptions(Options):
    """Options of the torchrun executor."""

    nproc: int | None = Field(
        None, ge=1, le=1024, description="processes of a job, instead of what the task says"
    )
    timeout_s: float | None = Field(
        None, gt=0, description="wall-clock limit in seconds, instead of the task's"
    )
    stall_s: float | None = Field(
        None, gt=0, description="limit without any output in seconds, instead of the task's"
    )
    smoke_steps: int | None = Field(
        None, ge=1, description="let scripts stop after so many steps, to try whether they work"
    )
    lanes: int | None = Field(
        None,
        ge=0,
        le=64,
        description="jobs that run at once; by default as many as there are GPUs for, or without "
        "GPUs 1; 0 for as many as there are CPUs for, which disturbs the timings",
    )
    gpu_wait_s: float = Field(
        60, ge=0, description="seconds to wait for GPUs that others use, before they are given up"
    )
    gpu_used_mb: float = Field(
        1024, ge=0, description="MB of a GPU that others may have in use when a job gets it"
    )
    warm: bool = Field(
        False,
        description="import torch once for all ranks of a job and fork them, which starts sooner; "
        "Linux, one node",
    )
    python: str | None = Field(
        None, description="interpreter that runs the scripts; by default speedkit's own"
    )
    env: tuple[str, ...] = Field(
        (), description="names of further environment variables that jobs may see"
    )
    log_head_mb: float = Field(
        8, ge=0.001, le=MAX_MB, description="MB kept of the start of a stream"
    )
    log_tail_mb: float = Field(8, ge=0.001, le=MAX_MB, description="MB kept of the end of a stream")
    max_output_mb: float = Field(
        10_000, gt=0, le=MAX_MB, description="a job that writes more MB than this is ended"
    )
    collect_mb: float = Field(
        64, gt=0, le=MAX_MB, description="largest file taken from a job, in MB"
    )
    sandbox: Literal["auto", "bwrap", "none"] = Field(
        "auto", description="keep jobs apart by bubblewrap: where it works, always, or never"
    )
    readable: tuple[str, ...] = Field(
        (), description="further absolute paths that jobs may read in the sandbox"
    )
    max_processes: int = Field(
        16_384,
        ge=16,
        description="processes and threads of a job in the sandbox; under root of all jobs at once",
    )
    max_file_gb: float = Field(
        64, gt=0, le=MAX_GB, description="largest file that a job may write, in GB"
    )
    max_tmp_gb: float = Field(
        4, gt=0, le=MAX_GB, description="temporary files of a job in the sandbox, in GB of memory"
    )

    @field_validator("env", "readable", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split_names(value)

    @field_validator("readable")
    @classmethod
    def _absolute(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if not os.path.isabs(path):
                raise ValueError(f"{path} is not an absolute path")
        return paths

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if is_secret(name):
                raise ValueError(f"{name} looks like a secret, which no script may see")
        return names


class TorchrunExecutor(Executor):
    """Runs a script with torchrun, or with plain Python, on the machine at hand.

    Each job has a supervisor process of its own, which captures each rank apart, keeps
    the limits, and at the end kills every process that descends from the job. Where
    bubblewrap works, the job runs in a sandbox of it, which shows only what a job needs.
    """

    Options = TorchrunOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._losses: Counter[tuple[str, str]] = Counter()
        self._losses_lock = threading.Lock()
        self._lanes: Lanes | None = None
        self._lanes_lock = threading.Lock()

    def bind(self, services: Services) -> None:
        """Receive the services of the run, whose task decides on the lanes."""
        super().bind(services)
        self._lanes = None

    @property
    def lanes(self) -> int:
        """How many jobs may run at once.

        Raises:
            ExecutorError: there are not as many GPUs as the option asks for.
        """
        return len(self._open_lanes())

    @property
    def nproc(self) -> int | None:
        """Number of processes of a job, if the option gives one."""
        return None if self.options.nproc is None else int(self.options.nproc)

    @property
    def smoke_steps(self) -> int | None:
        """Steps of a smoke run, if the option gives them."""
        return None if self.options.smoke_steps is None else int(self.options.smoke_steps)

    @property
    def interpreter(self) -> str | None:
        """The Python that runs the scripts."""
        return machine.find_interpreter(self.options.python)

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this machine."""
        return True

    def execute(self, job: Job, watch: Watch) -> Execution:
        """Run a job to its end; may be called from several threads at once."""
        job = self._with_options(job)
        python = machine.find_interpreter(self.options.python)
        if job.launcher == "torchrun" and machine.versions(python)["torch"] is None:
            raise ExecutorError(
                f"torch is not installed for {python}: install it there, or set "
                "executor.python to an interpreter that has it"
            )
        found = self._sandbox(python)
        with self._open_lanes().hold(job.cancel) as lane:
            if lane is None:
                return Execution(Ending.CANCELLED, reason="cancelled")
            job = replace(job, env={**job.env, **lane.env})
            with _scratch_folder() as folder:
                execution = self._run(job, watch, python, found, folder, lane)
        return self._collect(job, execution)

    def reap(self, handle: Mapping[str, Any]) -> None:
        """End what is left of a job, if this is still the machine and the boot it ran on."""
        if (
            handle.get("host") != processes.host_name()
            or handle.get("boot_id") != processes.boot_id()
        ):
            return
        _end_supervisor(handle)
        folder = str(handle["scratch"])
        processes.end_marked(str(handle["marker"]), folder)
        scratch.remove(folder)
        if "workspace" in handle:
            scratch.make_removable(str(handle["workspace"]))

    def fingerprint(self) -> Mapping[str, Any]:
        """Return processors, accelerators, versions, and how jobs are kept apart and started."""
        python = machine.find_interpreter(self.options.python)
        facts: dict[str, Any] = {"sandbox": self._sandbox(python).kind}
        lanes = self._open_lanes()
        if len(lanes) > 1:
            facts.update(lanes=len(lanes), lane_cpus=lanes.cpus)
        if self.options.warm:
            facts["warm"] = True
        return {**machine.hardware(), **machine.versions(python), **facts}

    def use_lanes(self, lanes: Sequence[Lane]) -> None:
        """Run jobs on these lanes, until the executor is bound to a task."""
        options = self.options
        self._lanes = Lanes(
            lanes, limit_mb=options.gpu_used_mb, wait_s=options.gpu_wait_s, warn=_say_once
        )

    def _open_lanes(self) -> Lanes:
        """The lanes, made when they are first asked for: the task is known by then."""
        with self._lanes_lock:
            if self._lanes is None:
                self.use_lanes(self._make_lanes())
            assert self._lanes is not None
            return self._lanes

    def _make_lanes(self) -> Sequence[Lane]:
        """Share the machine out; without a task nobody knows what a job needs, or has."""
        wanted = self.options.lanes
        services: Services | None = getattr(self, "services", None)
        if services is None:
            return [Lane(number) for number in range(wanted or 1)]
        nproc = services.task.run_with(self.nproc).nproc
        return make_lanes(wanted, nproc, self._gpus(services), own_cpus())

    def _gpus(self, services: Services) -> Sequence[gpu.Gpu]:
        if not uses_gpus(services.task):
            return ()
        try:
            return gpu.visible({**os.environ, **services.task.run.env})
        except ExecutorError as error:
            _say_once(f"GPUs are not shared out among jobs: {error}")
            return ()

    def _sandbox(self, python: str) -> sandbox.Found:
        """The sandbox of jobs, as the option asks for it.

        Raises:
            ExecutorError: there must be one, and none can be made.
        """
        wanted = self.options.sandbox
        if wanted == "none":
            found = sandbox.Found(None, reason="executor.sandbox=none")
        else:
            found = sandbox.find(python)
        if found.bwrap is None:
            if wanted == "bwrap":
                raise ExecutorError(
                    f"no sandbox can be made: {found.reason}; see speedkit doctor --sandbox, "
                    "or set executor.sandbox=none"
                )
            processes.close_to_equals()
            if wanted == "auto":
                _say_once(f"jobs run without a sandbox ({found.reason}): {sandbox.UNPROTECTED}")
        return found

    def _with_options(self, job: Job) -> Job:
        chosen = {name: getattr(self.options, name) for name in ("timeout_s", "stall_s")}
        job = replace(job, **{name: value for name, value in chosen.items() if value is not None})
        return replace(job, nproc=1) if job.launcher == "python" else job

    def _run(
        self,
        job: Job,
        watch: Watch,
        python: str,
        found: sandbox.Found,
        folder: Path,
        lane: Lane,
    ) -> Execution:
        marker = f"{job.run_id}/{job.name}/{secrets.token_hex(8)}"
        order = self._order(job, python, found, folder, marker)._replace(cpus=lane.cpus)
        began = time.monotonic()
        process = _start_supervisor(marker, folder)
        handle = _handle(process.pid, marker, folder, job.workspace)
        result: dict[str, Any] | None = None
        try:
            result = _Conversation(process, job, watch, handle).hold(order)
        finally:
            _leave(process)
            if result is None:
                self.reap(handle)
            scratch.make_removable(str(job.workspace))
        if result is not None:
            execution = _execution(result)
        else:
            ending = Ending.CANCELLED if job.cancel.is_set() else Ending.LOST
            wall_s = round(time.monotonic() - began, 3)
            execution = Execution(ending, wall_s=wall_s, reason=_last_words(folder))
        may_be_caused = result is None or (found.bwrap is None and result["has_begun"])
        return self._blame(job, execution) if may_be_caused else execution

    def _blame(self, job: Job, execution: Execution) -> Execution:
        """Take a second loss of one job for its script's doing.

        Without a sandbox a script can end its own supervisor. In one it should not be able to;
        but a run whose supervisors go down with one script would end at it again and again.
        """
        if execution.ending is not Ending.LOST:
            return execution
        with self._losses_lock:
            self._losses[job.run_id, job.name] += 1
            count = self._losses[job.run_id, job.name]
        if count < MAX_LOSSES:
            return execution
        reason = f"{execution.reason}, {count} times: the script is taken to have done it"
        return replace(execution, ending=Ending.CRASHED, reason=reason)

    def _order(
        self, job: Job, python: str, found: sandbox.Found, folder: Path, marker: str
    ) -> Order:
        options = self.options
        env = job_environment(os.environ, options.env, job.env, folder, marker)
        if found.bwrap is None:
            command = self._command(job, python, folder, _RANK_ENTRY, _WARM_ENTRY)
            made = sandbox.Enclosed(command, "", 0o600)
        else:
            env = _enclosed_environment(env, job)
            made = self._enclose(found, job, python, folder, env)
        return Order(
            command=made.command,
            has_ranks=job.launcher == "torchrun",
            nproc=job.nproc,
            controller=os.getpid(),
            marker=marker,
            script=job.script,
            cwd=str(job.workspace),
            env=env,
            scratch=str(folder),
            log_dir=str(job.log_dir),
            timeout_s=job.timeout_s,
            stall_s=job.stall_s,
            max_bytes=int(options.max_output_mb * MB),
            log_head=int(options.log_head_mb * MB),
            log_tail=int(options.log_tail_mb * MB),
            filter=made.filter,
            pipe_mode=made.pipe_mode,
            # In a sandbox its own first program sets all limits.
            max_file=int(options.max_file_gb * GB) if found.bwrap is None else 0,
        )

    def _enclose(
        self,
        found: sandbox.Found,
        job: Job,
        python: str,
        folder: Path,
        env: Mapping[str, str],
    ) -> sandbox.Enclosed:
        options = self.options
        python = mounts.interpreter(python)["executable"]
        entries = (Path(sandbox.ENTRIES, entry.name) for entry in (_RANK_ENTRY, _WARM_ENTRY))
        command = self._command(job, python, folder, *entries)
        view = mounts.View(
            workspace=job.workspace,
            readable=(*job.readable, *map(Path, options.readable)),
            writable=(*job.writable, *mounts.caches(job.env)),
            hidden=(*job.hidden, job.log_dir),
        )
        limits = sandbox.Limits(
            processes=options.max_processes,
            file=int(options.max_file_gb * GB),
            tmp=int(options.max_tmp_gb * GB),
        )
        try:
            return sandbox.enclose(found, command, view, folder, env, limits)
        except OSError as error:
            raise ExecutorError(f"the job could not be started: {error}") from error

    def _command(
        self, job: Job, python: str, folder: Path, rank_entry: Path, warm_entry: Path
    ) -> list[str]:
        script = [job.script, *job.args]
        if job.launcher == "python":
            return [python, "-u", *script]
        if job.launcher != "torchrun":
            raise ExecutorError(f"no launcher named {job.launcher!r}; there are: python, torchrun")
        if self.options.warm and sys.platform == "linux":
            return [python, "-u", str(warm_entry), str(folder), str(job.nproc), *script]
        entry = [python, "-I", "-S", str(rank_entry), str(folder / "pipes"), python]
        return [*_torchrun(job, python, folder), *entry, *script]

    def _collect(self, job: Job, execution: Execution) -> Execution:
        if not job.collect:
            return execution
        limit = int(self.options.collect_mb * MB)
        found = collect.collect(
            job.workspace, job.collect, job.log_dir / "collected", limit, MAX_COLLECTED * limit
        )
        reason = "; ".join(filter(None, [execution.reason, *found.refused]))
        return replace(execution, collected=tuple(found.files), reason=reason)


class _Conversation:
    """What is said between controller and supervisor while a job runs."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        job: Job,
        watch: Watch,
        handle: Mapping[str, Any],
    ) -> None:
        self._words = cast(IO[bytes], process.stdin)
        self._answers = cast(IO[bytes], process.stdout)
        self._job, self._watch, self._handle = job, watch, handle
        self._result: dict[str, Any] | None = None
        self._deadline = time.monotonic() + job.timeout_s + GRACE_S
        self._is_cancelled = False
        self._begun = b""

    def hold(self, order: Order) -> dict[str, Any] | None:
        """Give the order and listen; None when the supervisor died or hangs.

        Raises:
            ExecutorError: the job could not be started.
        """
        self._say(json.dumps(order._asdict()))
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while self._result is None:
            if poll.poll(POLL_S * 1000):
                if not self._hear():
                    break
            elif time.monotonic() > self._deadline:
                break
            if self._job.cancel.is_set() and not self._is_cancelled:
                self._cancel()
        return self._result

    def _say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._words.write(line.encode() + b"\n")
            self._words.flush()

    def _cancel(self) -> None:
        self._is_cancelled = True
        self._say("cancel")
        self._deadline = min(self._deadline, time.monotonic() + GRACE_S)

    def _hear(self) -> bool:
        """Take what has been said; False when nothing more will come."""
        data = os.read(self._answers.fileno(), 1 << 16)
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            if not self._take(line):
                return False
        return bool(data)

    def _take(self, line: bytes) -> bool:
        """Act on an event; False when it is none, which a job may have put there."""
        try:
            event = json.loads(line)
            kind = event.pop("event")
        except (ValueError, LookupError, AttributeError):
            return False
        if kind == "line":
            self._watch.line(event["rank"], event["text"], event["at_s"])
        elif kind == "started":
            self._watch.started(self._handle)
        elif kind == "failed":
            raise ExecutorError(f"the job could not be started: {event['message']}")
        else:
            self._result = event
        return True


def _enclosed_environment(env: Mapping[str, str], job: Job) -> dict[str, str]:
    """The environment in a sandbox, without caches of the user's, which stay outside."""
    kept = {n: v for n, v in env.items() if n not in mounts.CACHE_VARIABLES or n in job.env}
    return sandbox.environment(kept)


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        logging.getLogger("speedkit").warning("speedkit: %s", line)


def _torchrun(job: Job, python: str, folder: Path) -> list[str]:
    # A port of 0 lets parallel jobs be, and an address needs no name service. Isolated, so
    # that no file of the workspace can take the place of one of the launcher's modules.
    return [
        *(python, "-I", "-u", "-m", "torch.distributed.run"),
        *("--nnodes=1", f"--nproc-per-node={job.nproc}", "--max-restarts=0"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
        *(f"--rdzv-id={folder.name}", f"--log-dir={folder / 'torch'}", "--no-python"),
    ]


# --- the supervisor as a process --------------------------------------------------------------


def _start_supervisor(marker: str, folder: Path) -> subprocess.Popen[bytes]:
    # Without site-packages it starts in a third of the time; only Linux can do without them.
    flags = ["-I", "-S"] if sys.platform == "linux" else ["-I"]
    command = [sys.executable, *flags, "-c", BOOT, str(_PACKAGE.parent), marker]
    try:
        with open(folder / "supervisor.log", "wb") as errors:
            return subprocess.Popen(
                command,
                cwd="/",
                env=passed(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
    except OSError as error:
        raise ExecutorError(
            f"no process can be started ({error}): end other programs or raise the limits"
        ) from error


def _leave(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes, on which a supervisor ends its job, and see it go."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            cast(IO[bytes], pipe).close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        for pid in _tree(process.pid):
            processes.kill(pid)
        process.wait()


def _handle(pid: int, marker: str, folder: Path, workspace: Path) -> dict[str, Any]:
    return {
        "host": processes.host_name(),
        "boot_id": processes.boot_id(),
        "pid": pid,
        "start_time": processes.start_time(pid),
        "marker": marker,
        "scratch": str(folder),
        "workspace": str(workspace),
    }


def _end_supervisor(handle: Mapping[str, Any]) -> None:
    """Have a supervisor end its job, then itself; kill it and its job when it does not."""
    pid = int(handle["pid"])
    if not _is_supervisor(handle):
        return
    processes.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    while _is_supervisor(handle) and time.monotonic() < deadline:
        time.sleep(0.01)
    processes.end_all(lambda: _tree(pid) if _is_supervisor(handle) else set(), END_S)


def _is_supervisor(handle: Mapping[str, Any]) -> bool:
    """Whether the pid is still the supervisor's, and not that of a later process."""
    pid = int(handle["pid"])
    return (
        processes.has_argument(pid, str(handle["marker"]))
        and processes.start_time(pid) == handle["start_time"]
    )


def _tree(pid: int) -> set[int]:
    return {pid} | processes.descendants([pid], processes.parents())


def _last_words(folder: Path) -> str:
    """A line on why there was no result."""
    lines = read_tail(folder / "supervisor.log", 4096).split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "the job's supervisor was killed or hung" + (f": {said}" if said else "")


def _execution(result: Mapping[str, Any]) -> Execution:
    reason = str(result["reason"])
    if result["left"]:
        reason += f"; these processes could not be ended: {result['left']}"
    return Execution(
        ending=Ending(result["ending"]),
        exit_code=result["exit_code"],
        errors=tuple(RankError(**error) for error in result["errors"]),
        wall_s=result["wall_s"],
        reason=reason,
    )


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            scratch.sweep()
            path = stack.enter_context(scratch.hold())
        except OSError as error:
            raise ExecutorError(
                f"no folder for temporary files ({error}): free space, or set TMPDIR to another "
                "disk"
            ) from error
        yield Path(path)
