"""Reads the fenced blocks of a Markdown page, and what is to be done with each."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NOTE = re.compile(r"<!-- (not run: .+|dry run|fails: \d+) -->\n\Z")
_FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")
PROGRAMS = ("speedkit", "git", "make", "export", "pip", "python", ".venv/bin/speedkit")
"""What a line of commands begins with, in a block that does not say what it is."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: number of its first line in the page.
        language: what stands after the fence.
        note: what the comment before it says of running it; empty if there is none.
    """

    line: int
    language: str
    text: str
    note: str

    @property
    def reason(self) -> str:
        """Why it is not run; empty if it is."""
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else ""

    @property
    def status(self) -> int:
        """The exit status that it should end with."""
        return int(self.note.removeprefix("fails: ")) if self.note.startswith("fails: ") else 0

    @property
    def file(self) -> str:
        """The file whose contents it is; empty if it is none."""
        match = _FILE.match(self.text)
        return match[1] if match and self.language in ("python", "toml") else ""

    @property
    def commands(self) -> list[str]:
        """The lines that are to be typed; none if it holds no commands."""
        if self.language not in ("", "console", "sh"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        if typed or self.language == "console":
            return typed
        return [line for line in lines if line.startswith(PROGRAMS)]

    @property
    def script(self) -> str:
        """The commands as one shell script, dry where the note says so."""
        dry = self.note == "dry run"
        return "\n".join(map(_dry, self.commands) if dry else self.commands)

    @property
    def runs(self) -> bool:
        """Whether there is something in it that could be run."""
        return bool(self.commands) or self.language == "python"


def _dry(command: str) -> str:
    """Let a search say what it would do."""
    return re.sub(r"^(speedkit run\b[^#]*?)( *#.*)?$", r"\1 --dry-run\2", command)


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    return [_block(page, match) for match in _FENCE.finditer(page)]


def _block(page: str, match: re.Match[str]) -> Block:
    note = _NOTE.search(page, max(0, match.start() - 200), match.start())
    line = page.count("\n", 0, match.start()) + 2
    return Block(line, match[1], match[2], note[1] if note else "")
