"""A job on several nodes: each has a launcher and a supervisor of its own, and they meet.

The ranks are numbered by node, so that rank 0 is on the first, whose log is the job's.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from speedkit.core.components import Ending, Execution, Job
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors.remote_folder import JobFolder
from speedkit.plugins.executors.supervisor import Order
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

MEET_S = 300.0
"""Seconds that the nodes of a job wait for the first of them."""


class Place(NamedTuple):
    """One node among those of a job; ``address`` and ``port`` are the first one's."""

    member: int
    nodes: int
    address: str
    port: int

    def first(self, job: Job) -> int:
        """The number of this node's first rank, given its share of the job."""
        return self.member * job.nproc


class MemberExecutor(TorchrunExecutor):
    """Runs one node's share of a job under a launcher that knows of the other nodes, if any."""

    def __init__(self, options: TorchrunOptions, place: Place | None) -> None:
        super().__init__(options)
        self._place = place

    def _order(self, job: Job, *rest: Any) -> Order:
        order = super()._order(job, *rest)
        if self._place is None:
            return order
        return order._replace(command=among_nodes(list(order.command), self._place))


def open_to_others(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a node's executor with the network open, without which none meet.

    A warm launcher knows of one node alone, so there is none.

    Raises:
        ExecutorError: the options want a sandbox, which closes the network.
    """
    if options["sandbox"] == "bwrap":
        raise ExecutorError(
            "the sandbox has no network, through which the nodes of a job meet: set "
            "executor.nodes=1 or executor.sandbox=none"
        )
    return {**options, "sandbox": "none", "warm": False}


def among_nodes(command: list[str], place: Place) -> list[str]:
    """Return the command of a launcher on one node, changed for a job on several."""
    changes = {
        "--nnodes": [f"--nnodes={place.nodes}", f"--node-rank={place.member}"],
        "--rdzv-backend": ["--rdzv-backend=static"],
        "--rdzv-endpoint": [f"--rdzv-endpoint={place.address}:{place.port}"],
        "--local-addr": [],
        "--rdzv-id": [f"--rdzv-id={place.port}"],
    }
    return [new for old in command for new in changes.get(old.partition("=")[0], [old])]


def share(job: Job, place: Place) -> Job:
    """Return what one node runs of a job; the first keeps the logs and takes the files."""
    part = replace(job, nproc=job.nproc // place.nodes)
    if place.member == 0:
        return part
    log_dir = job.log_dir / f"node{place.member}"
    log_dir.mkdir(exist_ok=True)
    return replace(part, log_dir=log_dir, collect=())


def meet(folder: JobFolder, member: int, cancel: threading.Event) -> tuple[str, int]:
    """Return address and port of the first node, which it lets the others know.

    Raises:
        ExecutorError: the first node does not show up.
    """
    if member == 0:
        _announce(folder.rendezvous)
    deadline = time.monotonic() + MEET_S
    while not folder.rendezvous.exists():
        if cancel.wait(0.2) or time.monotonic() > deadline:
            raise ExecutorError("the first node of the job did not show up")
    address, _, port = folder.rendezvous.read_text(encoding="ascii").rpartition(":")
    return address, int(port)


def _announce(path: Path) -> None:
    """Choose a free port of this node; srun has been started here, and says the address."""
    address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostname()
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    part = path.with_suffix(".part")
    part.write_text(f"{address}:{port}", encoding="ascii")
    part.rename(path)


def combined(results: dict[int, tuple[float, Execution]]) -> Execution:
    """Return what became of a job, given when and how each of its nodes ended.

    The first node that did not finish is to blame; the others only lost it.
    """
    ordered = [execution for _, execution in sorted(results.values(), key=lambda one: one[0])]
    blamed = next((e for e in ordered if e.ending is not Ending.FINISHED), None)
    first = results[0][1] if 0 in results else ordered[0]
    if blamed is None:
        return first
    others = [e for e in ordered if e is not blamed]
    errors = (*blamed.errors, *(error for e in others for error in e.errors))
    return replace(blamed, errors=errors, collected=first.collected)
