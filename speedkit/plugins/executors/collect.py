"""Taking files from a folder that a script has written, without trust in what lies there."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_FILES = 300
"""Files that are taken at most."""
MAX_ENTRIES = 100_000
"""Names that are looked at, at most."""
MAX_DEPTH = 32
"""Folders below one another that are looked into, at most."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass
class Collection:
    """What was taken.

    Attributes:
        files: the copies, sorted by their path.
        refused: a line for each file that matched and was not taken, at most ten.
    """

    files: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def refuse(self, path: str, why: str) -> None:
        """Take note of a file that is not taken."""
        if len(self.refused) < 10:
            self.refused.append(f"{path!r} was not collected: {why}")


def collect(
    workspace: Path, globs: Sequence[str], target: Path, max_bytes: int, max_total: int
) -> Collection:
    """Copy the files below ``workspace`` that match to the same path below ``target``.

    Only regular files with one name are taken. No symbolic link is followed, neither in a
    folder nor at the end. What was in ``target`` before is removed.

    Args:
        globs: patterns of relative paths; ``**`` stands for any number of folders.
        max_bytes: largest file that is taken.
        max_total: bytes that are taken together.
    """
    shutil.rmtree(target, ignore_errors=True)
    taken = Collection()
    patterns = [tuple(part for part in glob.split("/") if part not in ("", ".")) for glob in globs]
    try:
        root = os.open(workspace, _FOLDER)
    except OSError:  # The job may have moved it away, or put a link in its place.
        return taken
    try:
        for path, folder, name in _walk(root, "", patterns, [MAX_ENTRIES], MAX_DEPTH):
            if len(taken.files) >= MAX_FILES or max_total <= 0:
                taken.refuse(path, "there are too many")
                break
            max_total -= _take(folder, name, path, target, min(max_bytes, max_total), taken)
    finally:
        os.close(root)
    taken.files.sort()
    return taken


def _walk(
    folder: int, prefix: str, patterns: Sequence[tuple[str, ...]], room: list[int], depth: int
) -> Iterator[tuple[str, int, str]]:
    """Yield path, open folder and name of what matches, folders and links not followed."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in _limited(entries, room))
    for name in names:
        below = _below(patterns, name)
        if () in below:
            yield prefix + name, folder, name
        deeper = [pattern for pattern in below if pattern]
        if deeper and depth:
            with contextlib.suppress(OSError), _opened(name, _FOLDER, folder) as inner:
                yield from _walk(inner, f"{prefix}{name}/", deeper, room, depth - 1)


def _limited(entries: Iterator[os.DirEntry[str]], room: list[int]) -> Iterator[os.DirEntry[str]]:
    for entry in entries:
        if room[0] <= 0:
            return
        room[0] -= 1
        yield entry


def _below(patterns: Sequence[tuple[str, ...]], name: str) -> set[tuple[str, ...]]:
    """What is left of the patterns when ``name`` has been met; ``()`` says that it matches."""
    left: set[tuple[str, ...]] = set()
    for pattern in patterns:
        head, *rest = pattern or ("",)
        if head == "**":
            left.add(pattern)
            left |= _below([tuple(rest) or ("*",)], name)
        elif fnmatch.fnmatchcase(name, head):
            left.add(tuple(rest))
    return left


def _take(
    folder: int, name: str, path: str, target: Path, max_bytes: int, taken: Collection
) -> int:
    """Copy one file if it may be taken; return its size, 0 if it was not."""
    try:
        with _opened(name, _FILE, folder) as source:
            state = os.fstat(source)
            if stat.S_ISDIR(state.st_mode):
                return 0
            if not stat.S_ISREG(state.st_mode):
                taken.refuse(path, "it is not a regular file")
            elif state.st_nlink > 1:
                taken.refuse(path, "it has a second name")
            elif state.st_size > max_bytes:
                taken.refuse(path, f"it is larger than {max_bytes // 1_000_000} MB")
            else:
                taken.files.append(_copy(source, target / path, state.st_size))
                return state.st_size
    except OSError as error:
        taken.refuse(path, error.strerror or "it cannot be read")
    return 0


def _copy(source: int, path: Path, size: int) -> Path:
    """Copy so many bytes, and no more: without a sandbox somebody may still be writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as writer:
        while size > 0 and (data := os.read(source, min(size, 1 << 20))):
            writer.write(data)
            size -= len(data)
    return path


@contextlib.contextmanager
def _opened(name: str, flags: int, folder: int) -> Iterator[int]:
    fd = os.open(name, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)
