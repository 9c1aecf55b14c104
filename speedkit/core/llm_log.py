"""Writes each prompt and each reply to a file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speedkit.core.llm_types import Message
from speedkit.core.redact import Redactor


@dataclass(frozen=True)
class Transcript:
    """One prompt and its reply, ``prompt-001.md`` and ``reply-001.md``, without secrets."""

    log_dir: Path
    number: int
    redactor: Redactor

    @classmethod
    def begin(
        cls,
        log_dir: Path,
        redactor: Redactor,
        facts: Mapping[str, object],
        messages: Sequence[Message],
    ) -> Transcript:
        """Write the prompt under the next free number."""
        sections = [(message["role"], message["content"]) for message in messages]
        content = redactor.clean(_page(facts, sections))
        log_dir.mkdir(parents=True, exist_ok=True)
        number = 1
        while not _create(log_dir / f"prompt-{number:03d}.md", content):
            number += 1
        return cls(log_dir, number, redactor)

    def end(self, facts: Mapping[str, object], sections: Sequence[tuple[str, str]]) -> None:
        """Write the reply: a few facts, then texts with their headings; empty ones are left out."""
        content = self.redactor.clean(_page(facts, [item for item in sections if item[1]]))
        _create(self.log_dir / f"reply-{self.number:03d}.md", content)


def _page(facts: Mapping[str, object], sections: Sequence[tuple[str, str]]) -> str:
    head = "\n".join(f"{name}: {value}" for name, value in facts.items())
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections)]) + "\n"


def _create(path: Path, content: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(content)
    return True
