"""Slurm's own commands: jobs are submitted, looked at and cancelled through them.

All jobs of a process are looked at by one ``squeue``, however many runs share it. The
accounting of ``sacct`` is not needed; the controller daemon remembers an ended job for a few
minutes, which is longer than a look takes to come round.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors.environment import passed

COMMAND_S = 60.0
"""Seconds that one of Slurm's commands may take."""
FRESH_S = 5.0
"""Seconds after its submission from which on a job must be known to Slurm."""
OVER = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
    }
)
"""States in which a job's processes are gone; all others are before that."""
UNKNOWN = "UNKNOWN"
"""What stands for the state of a job that Slurm does not know (any more)."""
_TRANSIENT = (
    *("Socket timed out", "Unable to contact", "Connection refused", "Zero Bytes were"),
    *("temporarily unable", "Slurm temporarily", "Slurm backup controller", "Resource temporarily"),
    *("job submit limit", "Transport endpoint", "timed out"),
)
_POLICY = re.compile(r"\b(?:QOS|Assoc)\w+")  # the limit that a job would break, by Slurm's name


class Answer(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def is_full(self) -> bool:
        """Whether there are as many jobs as there may be, so that one can be taken later."""
        return self.status != 0 and any("Submit" in limit for limit in _POLICY.findall(self.err))

    @property
    def is_transient(self) -> bool:
        """Whether the same command may well succeed in a while.

        Slurm's last line is the same for a limit on how many jobs there are and for one on
        what a job may be, so that the limit's name decides where it is told.
        """
        if _POLICY.search(self.err):
            return self.is_full
        return self.status != 0 and any(text in self.err for text in _TRANSIENT)


class JobState(NamedTuple):
    """What Slurm says of a job: its state, and why it is in it."""

    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether none of its processes is left."""
        return self.state in OVER or self.state == UNKNOWN


def call(command: Sequence[str], extra: Sequence[str] = ()) -> Answer:
    """Run one of Slurm's commands.

    Of the environment it sees what a job may see, so that no key gets into a job, and what
    tells it which cluster to speak to. ``SBATCH_*`` would override options, and is left out.

    Raises:
        ExecutorError: there is no such program here.
    """
    program = shutil.which(command[0])
    if program is None:
        raise ExecutorError(
            f"Slurm's {command[0]} is not on PATH: start speedkit on a machine from which "
            "jobs can be submitted"
        )
    try:
        found = subprocess.run(
            [program, *command[1:]],
            env=_environment(extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(1, "", f"{command[0]} timed out")
    except OSError as error:
        return Answer(1, "", f"{command[0]}: {error.strerror}: Resource temporarily unavailable")
    return Answer(found.returncode, found.stdout, found.stderr.strip())


def _environment(extra: Sequence[str]) -> dict[str, str]:
    own = {n: os.environ[n] for n in ("HOME", "SLURM_CONF") if n in os.environ}
    kept = {n: v for n, v in passed(os.environ, extra).items() if "VISIBLE_DEVICES" not in n}
    return {**kept, **own}


class Queue:
    """The user's jobs as one ``squeue`` shows them, shared by all who ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._answer: tuple[float, Mapping[str, JobState]] = (float("-inf"), {})

    def state(self, job_id: str, since: float, max_age_s: float) -> JobState | None:
        """Return the state of a job; None while there is no news of it.

        Args:
            since: monotonic time from which on the job was in the queue, so that it is
                unknown to Slurm if it is missing later.
            max_age_s: how long ago Slurm was asked last, whether it answered or not.
        """
        if time.monotonic() - self._asked_at > max_age_s and self._lock.acquire(blocking=False):
            try:
                self._ask()
            finally:
                self._lock.release()
        as_of, states = self._answer
        found = states.get(job_id)
        if found is None and as_of > since + FRESH_S:
            return JobState(UNKNOWN)
        return found

    def _ask(self) -> None:
        as_of = time.monotonic()  # a slow answer does not know of jobs submitted meanwhile
        answer = call(["squeue", "--me", "--states=all", "--noheader", "--format=%i|%T|%r"])
        if answer.status == 0:
            lines = (line for line in answer.out.splitlines() if "|" in line)
            self._answer = (as_of, dict(map(_parse, lines)))
        self._asked_at = time.monotonic()


def _parse(line: str) -> tuple[str, JobState]:
    job_id, state, reason = (*line.strip().split("|", 2), "", "")[:3]
    return job_id, JobState(state, "" if reason == "None" else reason)


@functools.lru_cache(maxsize=64)
def queue_of(config: str) -> Queue:
    """Return the one queue of a cluster, given the value of ``SLURM_CONF``."""
    return Queue()
