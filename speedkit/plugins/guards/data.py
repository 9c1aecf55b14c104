"""The data guard: whether the data are still what they were when the run began."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from speedkit.core.errors import SpeedkitError
from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Code, Guard, GuardOptions, Result

MB = 1_000_000
SAMPLES = 16
"""Places of a large file that are read."""
SAMPLE = 65_536
"""Bytes that are read at each."""
MAX_FILES = 4096


class DataOptions(GuardOptions):
    """Options of the data guard."""

    whole_mb: float = Field(
        16,
        ge=0,
        description="files up to so many MB are hashed whole; of larger ones size, time of "
        "change and samples are compared",
    )


class DataGuard(Guard):
    """Compares the data after a node with what they were before the first one.

    Once the data have been changed, no later node counts either, until they are as before.
    """

    cost = 1
    title = "whether the data are as they were when the run began, by SHA-256"
    Options = DataOptions
    options: DataOptions

    def __init__(self, options: DataOptions | None = None) -> None:
        super().__init__(options)
        self._before: dict[Path, dict[str, str]] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name in its findings."""
        return "data"

    def check_code(self, code: Code) -> Iterator[Finding]:
        """Take note of the data before the first node is run."""
        with self._lock:  # only once: asking for the folder may repair what is in it
            if self._before:
                return
            try:
                folder = code.task.family.data_folder()
            except SpeedkitError as error:
                yield self.found(Level.QUARANTINE, f"the data cannot be looked at: {error}")
                return
            if folder is not None:
                self._before[folder.resolve()] = self._digests(folder)

    def remember(self, folder: Path) -> None:
        """Take note of a folder, if that has not been done."""
        with self._lock:
            if folder.resolve() not in self._before:
                self._before[folder.resolve()] = self._digests(folder)

    def check_result(self, result: Result) -> Iterator[Finding]:
        """Return which files are not what they were."""
        if result.data is None:
            return
        self.remember(result.data)
        before, now = self._before[result.data.resolve()], self._digests(result.data)
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            yield self.found(
                Level.REJECT,
                f"{changed[0]}{more} of the data changed since the run began: by this node or "
                "one before; put the data back before going on",
            )

    def _digests(self, folder: Path) -> dict[str, str]:
        """Return a digest of every file below a folder, by relative path."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file())[:MAX_FILES]
        whole = int(self.options.whole_mb * MB)
        return {p.relative_to(folder).as_posix(): digest(p, whole) for p in paths}


def digest(path: Path, whole: int) -> str:
    """Return a digest of a file; of one larger than ``whole`` bytes, of samples of it."""
    state = path.stat()
    sha256 = hashlib.sha256(str(state.st_size).encode())
    with path.open("rb") as file:
        if state.st_size <= whole:
            while part := file.read(1 << 20):
                sha256.update(part)
            return sha256.hexdigest()
        sha256.update(f"{state.st_mtime_ns}/{state.st_ino}".encode())
        for i in range(SAMPLES):
            file.seek(i * (state.st_size - SAMPLE) // (SAMPLES - 1))
            sha256.update(file.read(SAMPLE))
    return sha256.hexdigest()
