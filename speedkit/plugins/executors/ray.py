"""The ray executor: each job is an actor on one node of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from speedkit.core.components import Ending, Job
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors.ray_worker import END_S, JobActor
from speedkit.plugins.executors.remote import Fate, RemoteExecutor, RemoteOptions, name_of
from speedkit.plugins.executors.remote_folder import JobFolder

NAMESPACE = "speedkit"
"""Where the actors of jobs have their names."""
_CALLS = 8
"""Calls that an actor answers at once: the job itself, and those who wait for it."""
_lock = threading.Lock()


class RayOptions(RemoteOptions):
    """Options of the ray executor."""

    address: str | None = Field(
        None,
        description="address of the cluster, for example auto or HOST:6379; by default a new "
        "one on this machine, which ends with speedkit",
    )
    gpus: float | None = Field(
        None, ge=0, description="GPUs of a job; by default one a process where there are any"
    )
    cpus: float | None = Field(
        None, ge=0, description="CPUs of a job; by default one for each process"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory of a job, in GB")
    resources: tuple[str, ...] = Field(
        (), description="further resources of a job, as NAME=AMOUNT, which decide on the node"
    )

    def amounts(self) -> dict[str, float]:
        """Return the further resources by name."""
        pairs = (one.partition("=") for one in self.resources)
        return {name: float(amount or 1) for name, _, amount in pairs}


class RayExecutor(RemoteExecutor):
    """Runs each job as an actor, which outlives the controller where the cluster does."""

    Options = RayOptions
    engine = "ray"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._ends: dict[str, Any] = {}

    def submit(self, job: Job, folder: JobFolder) -> dict[str, Any]:
        """Make the actor and let it begin when its node has room."""
        ray = self._connect()
        actor = ray.remote(JobActor).options(**self._demand(ray, job)).remote()
        end = actor.run.remote(self._node_command(folder), str(folder.output))
        self._ends[str(folder.path)] = end
        return {
            "engine": self.engine,
            "name": name_of(job),
            "address": ray.get_runtime_context().gcs_address,
            "folder": str(folder.path),
        }

    def look(self, handle: Mapping[str, Any]) -> Fate | None:
        """Look whether the actor's only task is over."""
        ray = self._connect()
        end = self._ends.get(handle["folder"])
        if end is None:
            end = self._ends[handle["folder"]] = self._wait_of(handle)
        if end is None:
            return Fate(Ending.LOST, "Ray does not know the job any more")
        if not ray.wait([end], timeout=0)[0]:
            return None
        folder = JobFolder(Path(handle["folder"]))
        try:
            status = ray.get(end)
        except ray.exceptions.RayError as error:
            return Fate(Ending.LOST, f"Ray lost the job: {_first_line(error)}")
        said = f": {words}" if (words := folder.last_words()) else ""
        reason = f"the job ended on its node (status {status}) without a result{said}"
        return Fate(Ending.LOST, reason, may_blame=True)

    def end(self, handle: Mapping[str, Any]) -> None:
        """Let the actor end its job, then end the actor."""
        ray = self._connect()
        actor = self._actor(str(handle["name"]))
        if actor is None:
            return
        is_pending = not JobFolder(Path(handle["folder"])).output.exists()
        with contextlib.suppress(ray.exceptions.RayError):
            if not is_pending:
                ray.get(actor.stop.remote(), timeout=END_S + 5)
        ray.kill(actor)

    def end_unrecorded(self, name: str, folder: JobFolder) -> None:
        """End by its name an actor of which nobody knows, and its job."""
        self.end({"name": name, "folder": str(folder.path)})

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what of the options decides on the hardware, and the versions of the scripts."""
        names = ("gpus", "cpus", "resources")
        return {**super().fingerprint(), **{n: getattr(self.options, n) for n in names}}

    def forget(self, handle: Mapping[str, Any]) -> None:
        """Free the actor of a job that has ended by itself."""
        self._ends.pop(handle["folder"], None)
        actor = self._actor(str(handle["name"]))
        if actor is not None:
            self._connect().kill(actor)

    # --- the cluster --------------------------------------------------------------------------

    def _connect(self) -> ModuleType:
        """Return Ray, connected to the cluster.

        Raises:
            ExecutorError: Ray is not installed, or there is no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ExecutorError("Ray is not installed: pip install 'speedkit[ray]'") from error
        with _lock:
            if not ray.is_initialized():
                self._initialize(ray)
        return ray

    def _initialize(self, ray: Any) -> None:
        own = {} if self.options.address else {"include_dashboard": False}
        try:
            ray.init(
                address=self.options.address or "local",
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                **own,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ExecutorError(
                f"no Ray cluster at {self.options.address}: {_first_line(error)}"
            ) from error

    def _demand(self, ray: Any, job: Job) -> dict[str, Any]:
        options = self.options
        cpus = job.nproc if options.cpus is None else options.cpus
        gpus = options.gpus
        if gpus is None:
            gpus = job.nproc if ray.cluster_resources().get("GPU") else 0
        memory = {} if options.memory_gb is None else {"memory": options.memory_gb * 1e9}
        return {
            "name": name_of(job),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_concurrency": _CALLS,
            "max_restarts": 0,
            "num_cpus": cpus,
            "num_gpus": gpus,
            "resources": options.amounts(),
            **memory,
        }

    def _actor(self, name: str) -> Any | None:
        ray = self._connect()
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None

    def _wait_of(self, handle: Mapping[str, Any]) -> Any | None:
        """What becomes ready when a job ends that an earlier controller submitted."""
        actor = self._actor(str(handle["name"]))
        return None if actor is None else actor.wait.remote()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
