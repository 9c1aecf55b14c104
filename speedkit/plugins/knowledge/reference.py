"""The API reference of an installed torch, asked from the interpreter that has it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from speedkit.core.components import KnowledgeEntry, KnowledgeSource, Options
from speedkit.core.errors import UsageError
from speedkit.core.task import Task
from speedkit.plugins.executors.environment import passed
from speedkit.plugins.executors.machine import find_interpreter

ASK_S = 180
"""Seconds that an interpreter may take to import torch and answer."""
MAX_LINE = 96
"""Characters of a signature on one line; a longer one has a line for each parameter."""

_NOTE_CHARS = 1_200
"""Room kept for the two notes at the end."""
_REMEDY = "set the option python to the interpreter that runs the scripts, or reference to false"

# Runs in the interpreter asked. Addresses of objects would make every answer another one, and
# a prompt that differs is not found in a cache of replies.
_PROGRAM = r"""
import importlib, inspect, json, re, sys

class Bare(str):
    __repr__ = str.__str__

def bare(value):
    return Bare(value) if isinstance(value, str) else value

def find(name):
    module, _, path = name.partition(":")
    value = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value

def signature(name, value, width):
    title = name.partition(":")[2]
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return title
    parts = [p.replace(annotation=bare(p.annotation)) for p in found.parameters.values()]
    found = found.replace(parameters=parts, return_annotation=bare(found.return_annotation))
    text = title + re.sub(r" at 0x[0-9a-f]+", "", str(found))
    if len(text) <= width:
        return text
    rows, star = [], False
    for p in parts:
        star = star or p.kind is p.VAR_POSITIONAL
        if p.kind is p.KEYWORD_ONLY and not star:
            rows.append("*")
            star = True
        rows.append(re.sub(r" at 0x[0-9a-f]+", "", str(p)))
    _, arrow, result = text.rpartition(" -> ")
    body = "".join("    " + row + ",\n" for row in rows)
    return title + "(\n" + body + ")" + (arrow + result if arrow else "")

width, names = json.loads(sys.argv[1])
answer = {"torch": None, "items": []}
try:
    import torch
    answer["torch"] = str(torch.__version__)
except ImportError:
    names = []
for name in names:
    try:
        value = find(name)
    except (ImportError, AttributeError):
        continue
    doc = re.sub(r" at 0x[0-9a-f]+", "", inspect.getdoc(value) or "")
    answer["items"].append([name, signature(name, value, width), doc])
sys.stdout.write("\n" + json.dumps(answer))
"""


@dataclass(frozen=True)
class Item:
    """One documented name; the docstring may be empty."""

    name: str
    signature: str
    doc: str


@dataclass(frozen=True)
class Reference:
    """What an installed torch says of some of its names, in the order asked.

    Attributes:
        torch: its version.
        missing: names that it does not have.
    """

    torch: str
    items: tuple[Item, ...]
    missing: tuple[str, ...]

    def text(self, max_chars: int) -> str:
        """Return signatures and docstrings of the first names, at most so many characters.

        What does not fit is named at the end, first without its docstring.
        """
        blocks: list[str] = []
        short: list[str] = []
        room = max_chars - _NOTE_CHARS
        for item in self.items:
            whole, bare = _block(item.signature, item.doc), _block(item.signature, "")
            chosen = next((block for block in (whole, bare) if len(block) <= room), "")
            if chosen != whole:
                short.append(_public(item.name))
            blocks.append(chosen)
            room -= len(chosen)
        notes = [
            _note("Left out for length, in whole or in part", short),
            _note(f"Not in torch {self.torch}", [_public(name) for name in self.missing]),
        ]
        return "".join([*blocks, *notes]).rstrip() + "\n"


def _block(signature: str, doc: str) -> str:
    return f"```\n{signature}\n```\n\n" + (f"{doc.strip()}\n\n" if doc.strip() else "")


def _note(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    text = f"{title}: {', '.join(names)}."
    return (text if len(text) < _NOTE_CHARS // 2 else text[: _NOTE_CHARS // 2 - 4] + " …") + "\n"


def _public(name: str) -> str:
    return name.partition(":")[2]


@functools.lru_cache(maxsize=8)
def ask(python: str, names: tuple[str, ...]) -> Reference:
    """Return what the torch of an interpreter says of names.

    Args:
        python: absolute path of the interpreter.
        names: ``module:attribute`` each; the attribute may have dots.

    Raises:
        UsageError: the interpreter has no torch, or does not answer.
    """
    command = [python, "-I", "-c", _PROGRAM, json.dumps([MAX_LINE, names])]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_S, check=True, env=_environment()
        )
        answer = json.loads(found.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise UsageError(f"the torch of {python} cannot be read: {last}; {_REMEDY}") from None
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"the torch of {python} cannot be read: {error}; {_REMEDY}") from None
    if answer["torch"] is None:
        raise UsageError(f"{python} has no torch; {_REMEDY}")
    items = tuple(Item(*item) for item in answer["items"])
    there = {item.name for item in items}
    return Reference(answer["torch"], items, tuple(n for n in names if n not in there))


def _environment() -> dict[str, str]:
    """Environment of the question: no secrets, and no look for accelerators."""
    return {
        "PATH": os.defpath,
        **passed(os.environ),
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }


# --- sources made of a guide and a reference ------------------------------------------------


class GuideOptions(Options):
    """Options of the knowledge sources that are a guide and an API reference."""

    guide: bool = Field(True, description="give the guide, with its examples")
    reference: bool = Field(True, description="give signatures and docstrings of installed torch")
    python: str | None = Field(
        None, description="interpreter whose torch is described; by default executor.python"
    )
    max_chars: int = Field(
        16_000, ge=2_000, le=1_000_000, description="size of the reference in characters, at most"
    )


class GuideKnowledge(KnowledgeSource):
    """Offers a guide that comes with speedkit, then the reference of the installed torch."""

    Options = GuideOptions
    options: GuideOptions
    name: ClassVar[str]
    title: ClassVar[str]
    guide: ClassVar[Path]
    names: ClassVar[tuple[str, ...]]

    def entries(self, task: Task) -> Sequence[KnowledgeEntry]:
        """Return guide and reference, as far as they are wanted; the task is not looked at.

        Raises:
            UsageError: the torch of the interpreter cannot be read.
            ExecutorError: there is no such interpreter.
        """
        found = []
        if self.options.guide:
            text = self.guide.read_text(encoding="utf-8")
            found.append(KnowledgeEntry(self.name, f"{self.title} guide", text))
        if self.options.reference:
            found.append(self._reference())
        return found

    def _reference(self) -> KnowledgeEntry:
        reference = ask(find_interpreter(self.options.python), self.names)
        title = f"{self.title} API reference, torch {reference.torch}"
        return KnowledgeEntry(self.name, title, reference.text(self.options.max_chars))
