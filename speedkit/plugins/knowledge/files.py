"""The files knowledge source: texts of the user's own."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from speedkit.core.components import KnowledgeEntry, KnowledgeSource, Options
from speedkit.core.errors import UsageError
from speedkit.core.task import Task


class FilesOptions(Options):
    """Options of the files knowledge source."""

    paths: tuple[str, ...] = Field(
        (), description="paths and globs of text files, as notes.md,papers/**/*.txt"
    )
    max_bytes: int = Field(100_000, ge=1, description="size of a file in bytes, at most")
    max_files: int = Field(50, ge=1, description="number of files, at most")

    @field_validator("paths", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value


class FilesKnowledge(KnowledgeSource):
    """Offers the text of files, in the order of the patterns and sorted within each."""

    Options = FilesOptions
    options: FilesOptions

    def entries(self, task: Task) -> Sequence[KnowledgeEntry]:
        """Return an entry for each file; the task is not looked at.

        Raises:
            UsageError: a pattern matches nothing, or a file is too large or no UTF-8 text.
        """
        if not self.options.paths:
            raise UsageError(
                "knowledge files needs at least one path or glob: set its option paths"
            )
        paths = list(dict.fromkeys(p for pattern in self.options.paths for p in _expand(pattern)))
        if len(paths) > self.options.max_files:
            raise UsageError(
                f"knowledge files: {len(paths)} files match, the limit is "
                f"{self.options.max_files}; narrow paths or raise max_files"
            )
        return [self._entry(path) for path in paths]

    def _entry(self, path: Path) -> KnowledgeEntry:
        text = _read(path, self.options.max_bytes)
        return KnowledgeEntry(source="files", title=str(path), text=text)


def _expand(pattern: str) -> list[Path]:
    """Return the files that a pattern names; a path that exists is taken as it stands."""
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        raise UsageError(
            f"knowledge files: {pattern} is a folder; write {os.path.join(pattern, '*')} for "
            "the files in it"
        )
    found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [Path(name) for name in found if os.path.isfile(name)]
    if not files:
        raise UsageError(f"knowledge files: no file matches {pattern}")
    return files


def _read(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(f"knowledge files: cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise UsageError(
            f"knowledge files: {path} is larger than {max_bytes} bytes; shorten it or raise "
            "max_bytes"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"knowledge files: {path} is not UTF-8 text (byte {error.start}); convert it or "
            "leave it out"
        ) from error
