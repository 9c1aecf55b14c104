"""The clean folder that one aider process works in, and what is taken out of it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from speedkit.core.files import read_tail
from speedkit.core.redact import Redactor
from speedkit.plugins.coders._text import MAX_FILE, EditError, newline_of

MAX_LOG = 8 * 1024 * 1024
"""Bytes of each of aider's logs that are read, the last ones."""
MAX_ANSWERS = 1000
_LOGS = {"chat": "chat.md", "llm": "llm.txt", "events": "events.jsonl", "output": "output.txt"}


@dataclass(frozen=True)
class AiderFolder:
    """A home, a working directory with nothing but the editable files, settings and logs.

    Aider looks for ``.env`` and ``.aider*`` files in its working directory, in the top folder
    of the git repository around it, and at home; what it finds there overrides environment
    and flags. So all three are below ``root``, and an empty repository of their own ends the
    search for another one.
    """

    root: Path

    @property
    def home(self) -> Path:
        """The home of the process."""
        return self.root / "home"

    @property
    def work(self) -> Path:
        """Its working directory."""
        return self.root / "work"

    def path(self, name: str) -> Path:
        """Return the file of a setting or log."""
        return self.root / name

    def log(self, kind: str) -> Path:
        """Return the file of a log: ``chat``, ``llm``, ``events`` or ``output``."""
        return self.root / _LOGS[kind]

    def fill(self, files: Mapping[str, str], settings: Any, metadata: Any) -> None:
        """Make the folders and write what does not change between rounds."""
        for folder in (self.home, self.root / "tmp", self.work / ".git"):
            folder.mkdir(parents=True)
        for name in ("objects", "refs"):
            (self.work / ".git" / name).mkdir()
        (self.work / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
        for name, text in files.items():
            path = self.editable(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("utf-8", "replace"))
        # Without a file of its own aider would look for one; with an empty one it fails.
        self.path("config.yml").write_text("encoding: utf-8\n")
        self.path("settings.yml").write_text(json.dumps(settings))
        self.path("metadata.json").write_text(json.dumps(metadata))
        # The answer to whatever aider asks: it may create no file, and open no page.
        self.path("answers.txt").write_text("n\n" * MAX_ANSWERS)

    def editable(self, name: str) -> Path:
        """Return the path of an editable file."""
        return self.work / PurePosixPath(name)

    def begin(self, message: str) -> None:
        """Write the message of a round and forget the logs of the one before."""
        self.path("message.txt").write_bytes(message.encode("utf-8", "replace"))
        for kind in _LOGS:
            self.log(kind).unlink(missing_ok=True)

    def read_log(self, kind: str) -> str:
        """Return the text of a log, empty if there is none."""
        return read_tail(self.log(kind), MAX_LOG)

    def keep_logs(self, log_dir: Path, redactor: Redactor) -> None:
        """Copy the logs of a round under the next free number, without secrets."""
        log_dir.mkdir(parents=True, exist_ok=True)
        number = 1
        while list(log_dir.glob(f"aider-{number:03d}-*")):
            number += 1
        for kind, name in _LOGS.items():
            path = log_dir / f"aider-{number:03d}-{name}"
            path.write_text(redactor.clean(self.read_log(kind)), encoding="utf-8", newline="\n")

    def read_files(self, before: Mapping[str, str]) -> dict[str, str]:
        """Read the editable files back, with the line ends that they had.

        Raises:
            EditError: one of them is gone, or is no ordinary text file any more.
        """
        return {name: _same_ends(_read(self.editable(name), name), before[name]) for name in before}


def _read(path: Path, name: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise EditError(f"{name} cannot be read: {error.strerror}") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise EditError(f"{name} is no ordinary file any more")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE:
        raise EditError(f"{name} would grow over {MAX_FILE} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise EditError(f"{name} is no UTF-8 text any more") from None


def _same_ends(text: str, before: str) -> str:
    """Return the text with one kind of line ends if aider unified those it had before."""
    plain = text.replace("\r\n", "\n")
    if plain == before.replace("\r\n", "\n"):
        return before
    return plain.replace("\n", newline_of(before))
