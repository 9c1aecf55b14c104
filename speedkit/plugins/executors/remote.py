"""What executors have in common whose jobs run on other machines, under an engine of its own.

An engine queues, places and ends jobs. What happens inside a job is the torchrun executor's
business, which runs on the node; see :mod:`speedkit.plugins.executors.remote_job`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from speedkit.core.components import Ending, Execution, Job, RankError, Watch
from speedkit.core.errors import ExecutorError
from speedkit.core.files import write_atomic
from speedkit.plugins.executors import failures, machine
from speedkit.plugins.executors.remote_folder import (
    EventReader,
    JobFolder,
    execution_from_dict,
)
from speedkit.plugins.executors.remote_members import combined
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

SETTLE_S = 5.0
"""Seconds that the last events of a job have to be seen here, when the engine says it is over."""
GRACE_S = 120.0
"""Seconds beyond a job's limit after which it is taken for hung, node and all."""
END_S = 60.0
"""Seconds in which an engine has ended a job, when it is told to."""
MAX_PAUSE_S = 30.0
"""Seconds after which an engine that takes no job now is asked again, at the latest."""
PATIENCE_S = 3600.0
"""Seconds after which an engine that does not answer is given up; a full one never is."""
_log = logging.getLogger("speedkit")


class RemoteOptions(TorchrunOptions):
    """Options of all executors whose jobs run on other machines."""

    lanes: int = Field(8, ge=1, le=1024, description="jobs that are submitted at once")
    poll_s: float = Field(
        1.0, ge=0.02, description="seconds between two looks at what a job has written"
    )
    node_python: str | None = Field(
        None,
        description="interpreter on the nodes that has speedkit; by default speedkit's own path",
    )


@dataclass(frozen=True)
class Fate:
    """What an engine says of a job that is over.

    Attributes:
        ending: what it means when the job itself has left no result.
        reason: one line.
        may_blame: whether the script could have caused the loss of a job.
    """

    ending: Ending
    reason: str
    may_blame: bool = False


class RemoteExecutor(TorchrunExecutor):
    """Submits jobs to an engine and follows them through files that all machines see."""

    Options = RemoteOptions
    engine: str

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._said: set[str] = set()

    @property
    def lanes(self) -> int:
        """How many jobs are submitted at once; the engine places them."""
        return int(self.options.lanes)

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this machine: the engine decides where."""
        return False

    # --- what an engine does ------------------------------------------------------------------

    def nodes_of(self, job: Job) -> int:
        """Return on how many nodes a job runs."""
        return 1

    @abstractmethod
    def submit(self, job: Job, folder: JobFolder) -> dict[str, Any]:
        """Hand a job to the engine and return its handle, JSON values.

        Raises:
            ExecutorError: the engine takes no jobs, or not this one.
            Rejected: it does not take it now.
        """

    @abstractmethod
    def look(self, handle: Mapping[str, Any]) -> Fate | None:
        """Return how a job ended; None while it waits or runs, or while nobody knows."""

    @abstractmethod
    def end(self, handle: Mapping[str, Any]) -> None:
        """End a job and wait until the engine is rid of it; it may have ended already."""

    def forget(self, handle: Mapping[str, Any]) -> None:
        """Free what the engine keeps of a job that has ended."""

    @abstractmethod
    def end_unrecorded(self, name: str, folder: JobFolder) -> None:
        """End the job of this name, if there is one, and wait until the engine is rid of it."""

    # --- what the controller asks -------------------------------------------------------------

    def execute(self, job: Job, watch: Watch) -> Execution:
        """Run a job to its end; may be called from several threads at once."""
        job = self._with_options(job)
        handle = self._submitted(job)
        if handle is None:
            return Execution(Ending.CANCELLED, reason="cancelled")
        try:
            watch.started(handle)
            return self._follow(job, handle, watch)
        except BaseException:
            self.reap(handle)
            raise

    def adopt(self, job: Job, handle: Mapping[str, Any], watch: Watch) -> Execution | None:
        """Go on with a job that an earlier controller submitted.

        Returns:
            What became of it, lost if it was cancelled while nobody looked; None, after ending
            what may be left, when its files are gone.
        """
        if not self._can_adopt(job, handle):
            self.reap(handle)
            return None
        try:
            execution = self._follow(self._with_options(job), handle, watch)
        except BaseException:
            self.reap(handle)
            raise
        if execution.ending is Ending.CANCELLED and not job.cancel.is_set():
            return replace(execution, ending=Ending.LOST)
        return execution

    def reap(self, handle: Mapping[str, Any]) -> None:
        """End a job that this or an earlier controller submitted."""
        if handle.get("engine") == self.engine:
            JobFolder(Path(handle["folder"])).ask_to_end()
            self.end(handle)
            self._drop_note(handle)

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what was asked of the engine, which decides on the hardware, and versions."""
        python = machine.find_interpreter(self.options.python)
        facts = {"engine": self.engine, "sandbox": self.options.sandbox}
        warm = {"warm": True} if self.options.warm else {}
        return {**facts, **warm, **machine.versions(python)}

    def end_all_unrecorded(self, run: Path) -> tuple[str, ...]:
        """End the jobs below a run directory that no journal names, by the notes of them.

        These are what a controller submitted just before it was killed, and smoke runs and
        programs of guards.

        Returns:
            Their names, as the engine knows them.
        """
        notes = sorted(run.rglob(f".{self.engine}-submission"))
        return tuple(map(self._end_noted, notes))

    # --- submitting ---------------------------------------------------------------------------

    def _submitted(self, job: Job) -> dict[str, Any] | None:
        """Hand a job over as soon as the engine takes it; None if it was cancelled before.

        Raises:
            ExecutorError: the engine does not take it, or has not answered for long.
        """
        deadline, pause_s = time.monotonic() + PATIENCE_S, 1.0
        while True:
            folder = JobFolder.make(job.log_dir, self.engine)
            folder.write_order(job, self._node_options(), self.nodes_of(job))
            note = self._note(job, folder)
            try:
                return self.submit(job, folder)
            except Rejected as rejected:
                self._end_noted(note)  # it may have been taken, and only the answer lost
                shutil.rmtree(folder.path, ignore_errors=True)
                if not rejected.is_full and time.monotonic() > deadline:
                    raise ExecutorError(f"{rejected}, for {PATIENCE_S / 60:g} minutes") from None
                self._say_rejected(str(rejected))
            if job.cancel.wait(pause_s):
                return None
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _say_rejected(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            _log.warning("speedkit: %s; it is asked again until it takes one", reason)

    def _note(self, job: Job, folder: JobFolder) -> Path:
        """Note what is about to be submitted, until it is over.

        A note that is there already is of a job that a controller left when it was killed.
        """
        note = job.log_dir / f".{self.engine}-submission"
        if note.exists():
            self._end_noted(note)
        write_atomic(note, f"{name_of(job)}\n{folder.path.name}\n", sync=False)
        return note

    def _end_noted(self, note: Path) -> str:
        """End the job of a note through its files and by its name, which is returned."""
        name, _, folder = note.read_text(encoding="utf-8").strip().partition("\n")
        JobFolder(note.parent / folder).ask_to_end()
        self.end_unrecorded(name, JobFolder(note.parent / folder))
        note.unlink(missing_ok=True)
        return name

    def _drop_note(self, handle: Mapping[str, Any]) -> None:
        """Forget the note of a job that is over; there may be one of a later submission."""
        folder = Path(handle["folder"])
        note = folder.parent / f".{self.engine}-submission"
        with contextlib.suppress(FileNotFoundError):
            if note.read_text(encoding="utf-8").endswith(f"\n{folder.name}\n"):
                note.unlink()

    # --- following ----------------------------------------------------------------------------

    def _node_options(self) -> dict[str, Any]:
        """The options of the torchrun executor on the node."""
        names = TorchrunOptions.model_fields
        values = {name: getattr(self.options, name) for name in names}
        return TorchrunOptions(**{**values, "lanes": 1}).model_dump(mode="json")

    def _node_command(self, folder: JobFolder) -> list[str]:
        python = self.options.node_python or sys.executable
        return [python, "-I", "-m", "speedkit.plugins.executors.remote_job", str(folder.path)]

    def _can_adopt(self, job: Job, handle: Mapping[str, Any]) -> bool:
        if handle.get("engine") != self.engine:
            return False
        folder = JobFolder(Path(handle["folder"]))
        if not folder.path.is_dir() or folder.is_asked_to_end():
            return False
        return job.workspace.is_dir()

    def _follow(self, job: Job, handle: Mapping[str, Any], watch: Watch) -> Execution:
        folder = JobFolder(Path(handle["folder"]))
        following = _Following(job, folder, watch, int(handle.get("nodes", 1)))
        execution = self._hear_out(following, handle)
        self.forget(handle)
        self._drop_note(handle)
        return self._blame(job, execution) if following.may_blame else execution

    def _hear_out(self, following: _Following, handle: Mapping[str, Any]) -> Execution:
        while (execution := following.hear()) is None:
            if following.job.cancel.is_set():
                return self._cancel(following, handle)
            if following.is_overdue:
                following.folder.ask_to_end()
                self.end(handle)
                return following.without_result(
                    Fate(Ending.LOST, "the node is silent beyond all limits")
                )
            fate = self.look(handle)
            if fate is not None:
                return self._settle(following, handle, fate)
            time.sleep(self.options.poll_s)
        if following.is_signalled:
            return self._explain(following, handle, execution)
        return execution

    def _cancel(self, following: _Following, handle: Mapping[str, Any]) -> Execution:
        following.folder.ask_to_end()
        self.end(handle)
        execution = following.hear()
        if execution is not None and not following.is_signalled:
            return execution
        return following.without_result(Fate(Ending.CANCELLED, "cancelled"))

    def _settle(self, following: _Following, handle: Mapping[str, Any], fate: Fate) -> Execution:
        """Wait for the last events of a job that the engine says is over."""
        deadline = time.monotonic() + SETTLE_S
        while (execution := following.hear()) is None and time.monotonic() < deadline:
            if fate.ending is not Ending.LOST or not following.folder.events().exists():
                break  # Nothing will come: it was ended from outside, or never began.
            time.sleep(min(0.2, self.options.poll_s))
        if execution is None or following.is_signalled:
            following.folder.ask_to_end()  # If a node was only cut off, its job still runs.
            return following.without_result(fate)
        return execution

    def _explain(
        self, following: _Following, handle: Mapping[str, Any], execution: Execution
    ) -> Execution:
        """Ask the engine why it ended a job, as the job itself could not know."""
        deadline = time.monotonic() + END_S
        while (fate := self.look(handle)) is None and time.monotonic() < deadline:
            if following.job.cancel.is_set():
                return self._cancel(following, handle)
            time.sleep(min(0.5, self.options.poll_s))
        fate = fate or Fate(Ending.LOST, f"{self.engine} ended the job and does not say why")
        return replace(following.without_result(fate), wall_s=execution.wall_s)


def name_of(job: Job) -> str:
    """Return the name under which an engine knows a job, the same at every submission."""
    return f"speedkit-{job.run_id}-{job.name}"


class Rejected(Exception):
    """The engine does not take a job now, and may later.

    Attributes:
        is_full: whether that is because it has as many jobs as it may have.
    """

    def __init__(self, reason: str, *, is_full: bool = False) -> None:
        super().__init__(reason)
        self.is_full = is_full


class _Following:
    """What has been heard of a job so far.

    Attributes:
        is_signalled: whether the job was ended by the engine, as its result says.
        may_blame: whether the script could have caused the loss of the job.
    """

    def __init__(self, job: Job, folder: JobFolder, watch: Watch, nodes: int) -> None:
        self.job, self.folder, self._watch = job, folder, watch
        self._readers = [EventReader(folder.events(member)) for member in range(nodes)]
        self._results: dict[int, tuple[float, Execution]] = {}
        self._signalled: set[int] = set()
        self._began: float | None = None
        self.is_signalled = self.may_blame = False

    @property
    def is_overdue(self) -> bool:
        """Whether the job should have said that it has ended, long ago."""
        if self._began is None:
            return False
        return time.monotonic() > self._began + self.job.timeout_s + GRACE_S

    def hear(self) -> Execution | None:
        """Pass on what is new; return the result if all nodes have come to one.

        Raises:
            ExecutorError: a node cannot run the job.
        """
        for member, reader in enumerate(self._readers):
            for event in reader.read():
                self._take(member, event)
        if len(self._results) < len(self._readers):
            return None
        return self.heard

    @property
    def heard(self) -> Execution | None:
        """What the nodes have come to so far; None if none has come to anything by itself."""
        if not self._results:
            return None
        by_itself = {k: v for k, v in self._results.items() if k not in self._signalled}
        whole = len(by_itself) == len(self._readers)
        failed = any(e.ending is not Ending.FINISHED for _, e in by_itself.values())
        self.is_signalled = not (whole or failed)
        return combined(self._results if self.is_signalled else by_itself)

    def _take(self, member: int, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "failed":
            raise ExecutorError(f"on the node: {event.get('message')}")
        if kind == "started":
            self._began = self._began or time.monotonic()
        elif kind == "line":
            self._pass_on(event)
        elif kind == "result" and (result := _result(member, event, self.job)) is not None:
            self._results[member] = result
            self.may_blame |= bool(event.get("may_blame"))
            if event.get("signalled"):
                self._signalled.add(member)

    def _pass_on(self, event: Mapping[str, Any]) -> None:
        try:
            rank, text, at_s = int(event["rank"]), str(event["text"]), float(event["at_s"])
        except (LookupError, TypeError, ValueError):
            return  # No event of ours: a script may have found the file.
        self._watch.line(rank, text, at_s)

    def without_result(self, fate: Fate) -> Execution:
        """Return what became of a job of which only the engine's word is known."""
        began = self._began
        self.may_blame = fate.may_blame and began is not None
        return Execution(
            ending=fate.ending,
            errors=(RankError(-1, fate.reason),) if fate.ending is Ending.CRASHED else (),
            wall_s=0.0 if began is None else round(time.monotonic() - began, 3),
            reason=fate.reason,
        )


def _result(member: int, event: Mapping[str, Any], job: Job) -> tuple[float, Execution] | None:
    """When and how a node ended, its ranks numbered among those of all nodes."""
    try:
        execution = execution_from_dict(event)
        first = member * (job.nproc // int(event["nodes"]))
        return float(event["at"]), _renumbered(execution, first) if first else execution
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return None


def _renumbered(execution: Execution, first: int) -> Execution:
    """Count the ranks of a node from the number of its first one, in the reason as well."""
    moved = [replace(e, rank=e.rank + first) if e.rank >= 0 else e for e in execution.errors]
    reason = execution.reason
    if execution.ending is Ending.CRASHED and moved:
        reason = failures.reason(asdict(moved[0]), name_rank=True)
    return replace(execution, errors=tuple(moved), reason=reason)
