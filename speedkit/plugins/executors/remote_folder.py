"""The folder through which a controller and a job on another machine speak.

It lies on a file system that both see. The controller writes ``order.json`` once, and
``cancel`` when the job is to end; the job appends to ``events.jsonl`` what a supervisor would
tell a controller at hand: ``started``, ``line``, at last ``result`` or ``failed``. Nothing of
it is held open by the reader, because network file systems look at the server again only when
a file is opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from speedkit.core.components import Ending, Execution, Job, RankError
from speedkit.core.files import read_tail, write_json

READ_SIZE = 4 << 20
"""Bytes read at one look."""
MAX_EVENT = 32 << 20
"""Bytes of an event; a longer one was not written by a job of ours and is dropped."""


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job, submitted once."""

    path: Path

    @classmethod
    def make(cls, parent: Path, engine: str) -> JobFolder:
        """Make a new folder below ``parent``, named after the engine."""
        path = parent / f"{engine}-{secrets.token_hex(4)}"
        path.mkdir(parents=True)
        return cls(path)

    @property
    def output(self) -> Path:
        """What the engine captures of the batch script and of this program on the node."""
        return self.path / "output.log"

    @property
    def rendezvous(self) -> Path:
        """Where the first of several nodes says how the others reach it."""
        return self.path / "rendezvous"

    def events(self, member: int = 0) -> Path:
        """The events of one of the nodes of a job, the first by default."""
        return self.path / ("events.jsonl" if member == 0 else f"events-{member}.jsonl")

    # --- the controller's side ----------------------------------------------------------------

    def write_order(self, job: Job, options: Mapping[str, Any], nodes: int) -> None:
        """Write what the nodes need to know of a job."""
        facts = {f.name: getattr(job, f.name) for f in fields(job) if f.name != "cancel"}
        text = json.dumps({"job": facts, "options": dict(options), "nodes": nodes}, default=str)
        write_json(self.path / "order.json", json.loads(text))

    def ask_to_end(self) -> None:
        """Ask the job to end, wherever it is."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "cancel").touch()

    def last_words(self) -> str:
        """The last line of what the engine captured, empty if there is none."""
        lines = read_tail(self.output, 4096).split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    # --- the node's side ----------------------------------------------------------------------

    def read_order(self, cancel: threading.Event) -> tuple[Job, dict[str, Any], int]:
        """Return the job, which an event cancels, the executor's options, number of nodes."""
        order = json.loads((self.path / "order.json").read_text(encoding="utf-8"))
        facts = order["job"]
        for field in fields(Job):
            if field.type == "Path":
                facts[field.name] = Path(facts[field.name])
            elif field.type == "Sequence[Path]":
                facts[field.name] = tuple(map(Path, facts[field.name]))
        return Job(**facts, cancel=cancel), order["options"], order["nodes"]

    def is_asked_to_end(self) -> bool:
        """Whether the controller wants the job to end."""
        return (self.path / "cancel").exists()


class EventWriter:
    """Appends events to a file that must not exist yet; usable from several threads."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._fd = os.open(path, flags, 0o644)
        self._lock = threading.Lock()
        self._is_dirty = False

    def put(self, event: str, **facts: Any) -> None:
        """Write an event, which others may see only after :meth:`sync`."""
        data = json.dumps({"event": event, **facts}).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]
            self._is_dirty = True

    def sync(self) -> None:
        """Let other machines see what was written."""
        with self._lock:
            if self._is_dirty:
                os.fsync(self._fd)
                self._is_dirty = False


class EventReader:
    """Returns the events that came since it was last asked, from the beginning on."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._begun = path, 0, bytearray()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield whole events; what is no event is passed over."""
        while data := self._read_more():
            self._offset += len(data)
            *lines, rest = data.split(b"\n")
            for line in lines:
                self._begun += line
                event = _parse(bytes(self._begun))
                self._begun.clear()
                if event is not None:
                    yield event
            if len(self._begun) + len(rest) <= MAX_EVENT:
                self._begun += rest

    def _read_more(self) -> bytes:
        """What was appended; nothing where a job has put something else in the file's place."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return b""
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return b""
            return os.pread(fd, READ_SIZE, self._offset)
        except OSError:
            return b""
        finally:
            os.close(fd)


def began(handle: Mapping[str, Any]) -> float | None:
    """When the job of an engine's handle began on its node, a Unix time; None while it waits."""
    first = next(EventReader(JobFolder(Path(handle["folder"])).events()).read(), {})
    at = first.get("at") if first.get("event") == "started" else None
    return float(at) if isinstance(at, (int, float)) else None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def execution_to_dict(execution: Execution) -> dict[str, Any]:
    """Return what became of a job as JSON values."""
    return {
        "ending": str(execution.ending),
        "exit_code": execution.exit_code,
        "errors": [asdict(error) for error in execution.errors],
        "wall_s": execution.wall_s,
        "reason": execution.reason,
        "collected": [str(path) for path in execution.collected],
    }


def execution_from_dict(facts: Mapping[str, Any]) -> Execution:
    """Undo :func:`execution_to_dict`.

    Raises:
        LookupError, TypeError, ValueError: the facts are not those of an execution.
    """
    return Execution(
        ending=Ending(facts["ending"]),
        exit_code=facts["exit_code"],
        errors=tuple(RankError(**error) for error in facts["errors"]),
        wall_s=float(facts["wall_s"]),
        reason=str(facts["reason"]),
        collected=tuple(Path(path) for path in facts["collected"]),
    )
