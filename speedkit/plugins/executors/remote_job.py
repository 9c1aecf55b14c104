"""What an engine starts on a node: it runs the job there as the torchrun executor runs it at hand.

Usage: ``python -m speedkit.plugins.executors.remote_job FOLDER``, where FOLDER is the job's
folder. Limits, capture, causes of failure and the end of all processes are therefore those of
the local executor; only what it tells goes into a file instead of a pipe.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speedkit.core.components import Ending, Execution, Job
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors import processes
from speedkit.plugins.executors.remote_folder import EventWriter, JobFolder, execution_to_dict
from speedkit.plugins.executors.remote_members import (
    MemberExecutor,
    Place,
    meet,
    open_to_others,
    share,
)
from speedkit.plugins.executors.torchrun import TorchrunOptions

TICK_S = 0.25
"""Seconds between two looks at whether the job is to end."""


class FileWatch:
    """Writes down what an executor tells.

    Args:
        first_rank: the number of this node's first rank among those of all nodes.
    """

    def __init__(self, events: EventWriter, first_rank: int = 0) -> None:
        self._events, self._first_rank = events, first_rank

    def started(self, handle: Mapping[str, Any]) -> None:
        """The script runs."""
        host = processes.host_name()
        self._events.put("started", at=time.time(), host=host, handle=dict(handle))
        self._events.sync()

    def line(self, rank: int, text: str, at_s: float) -> None:
        """A line of a rank."""
        self._events.put("line", rank=self._first_rank + rank, text=text, at_s=at_s)


class NodeExecutor(MemberExecutor):
    """The executor on a node; whose doing a loss is, the controller decides over all attempts.

    Attributes:
        may_blame: whether the script could have caused the loss of the job.
    """

    may_blame = False

    def _blame(self, job: Job, execution: Execution) -> Execution:
        self.may_blame = execution.ending is Ending.LOST
        return execution


class RemoteJob:
    """One job on the node that it runs on.

    Args:
        member: which of the job's nodes this is, from 0.
    """

    def __init__(self, folder: JobFolder, member: int = 0) -> None:
        self.folder, self.member = folder, member
        self.cancel = threading.Event()
        self._is_signalled, self._nodes = False, 1
        self._parent = os.getppid()

    def run(self) -> int:
        """Run the job to its end; return the exit status for the engine."""
        events = EventWriter(self.folder.events(self.member))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        outcome: list[Execution | ExecutorError] = []
        worker = threading.Thread(target=lambda: outcome.append(self._execute(events)))
        worker.start()
        while worker.is_alive():
            worker.join(TICK_S)
            events.sync()
            if self.folder.is_asked_to_end() or os.getppid() != self._parent:
                self.cancel.set()
        return self._report(events, outcome[0])

    def _on_signal(self, number: int, frame: object) -> None:
        """The engine ends the job; why, it will say itself."""
        self._is_signalled = True
        self.cancel.set()

    def _execute(self, events: EventWriter) -> Execution | ExecutorError:
        job, options, self._nodes = self.folder.read_order(self.cancel)
        try:
            place, first = None, 0
            if self._nodes > 1:
                options = open_to_others(options)
                place = Place(
                    self.member, self._nodes, *meet(self.folder, self.member, self.cancel)
                )
                job = share(job, place)
                first = place.first(job)
            self._executor = NodeExecutor(TorchrunOptions(**options), place)
            return self._executor.execute(job, FileWatch(events, first))
        except ExecutorError as error:
            return error

    def _report(self, events: EventWriter, outcome: Execution | ExecutorError) -> int:
        if isinstance(outcome, ExecutorError):
            events.put("failed", message=str(outcome))
            events.sync()
            return 1
        events.put(
            "result",
            signalled=self._is_signalled,
            may_blame=self._executor.may_blame,
            at=time.time(),
            nodes=self._nodes,
            **execution_to_dict(outcome),
        )
        events.sync()
        return 0 if outcome.ending is Ending.FINISHED else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job of a folder."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    return RemoteJob(JobFolder(Path(folder)), int(os.environ.get("SLURM_NODEID", "0"))).run()


if __name__ == "__main__":
    sys.exit(main())
