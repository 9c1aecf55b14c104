"""The hints knowledge source: what is told of a task, by level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from speedkit.core.components import KnowledgeEntry, KnowledgeSource, Options
from speedkit.core.errors import FamilyError, UsageError
from speedkit.core.paths import cache_dir
from speedkit.core.task import BUILTIN_ROOT, HINT_FILES, Task

TITLES = {1: "pseudocode", 2: "text", 3: "mini-paper"}
"""What a hint of each level is."""
SHIPPED = "shipped"
"""Name of the hints that come with the family."""
GENERATED = "generated"
"""Name of the hints that a model wrote, kept in the user's cache folder."""


class HintsOptions(Options):
    """Options of the hints knowledge source."""

    levels: tuple[int, ...] = Field(
        (1, 2, 3),
        description="hint levels: 1 pseudocode, 2 text, 3 mini-paper; any subset, as 1,3",
    )
    source: str = Field(
        SHIPPED,
        min_length=1,
        description="whose hints: shipped, generated, or a folder that holds TASK_ID/FILE",
    )

    @field_validator("levels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int) else value

    @field_validator("levels")
    @classmethod
    def _known(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if set(value) - set(TITLES):
            raise ValueError("hint levels are 1, 2 and 3")
        return tuple(sorted(set(value)))


class HintsKnowledge(KnowledgeSource):
    """Offers the hints of the chosen levels, in the order of the levels."""

    Options = HintsOptions
    options: HintsOptions

    def entries(self, task: Task) -> Sequence[KnowledgeEntry]:
        """Return an entry for each level.

        Raises:
            UsageError: the source is no folder.
            FamilyError: the source lacks one of the levels.
        """
        levels, source = self.options.levels, self.options.source
        there = hint_levels(task, source)
        if missing := [level for level in levels if level not in there]:
            raise FamilyError(_complaint(task, missing, source))
        return [_entry(level, read_hint(task, level, source)) for level in levels]


def hint_folder(task: Task, source: str = SHIPPED) -> Path:
    """Return the folder of a task's hints, which need not exist.

    Args:
        source: ``shipped``, ``generated``, or the path of a folder with one for each task id.

    Raises:
        UsageError: the source is neither a name nor a folder.
    """
    if source == SHIPPED:
        return task.family.root / "hints" / str(task.id)
    if source == GENERATED:
        return cache_dir() / "hints" / task.family.name / str(task.id)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UsageError(f"hints are {SHIPPED}, {GENERATED}, or in a folder; {source} is none")
    return folder / str(task.id)


def hint_levels(task: Task, source: str = SHIPPED) -> tuple[int, ...]:
    """Return the hint levels that a source has for a task."""
    folder = hint_folder(task, source)
    return tuple(level for level, name in HINT_FILES.items() if (folder / name).is_file())


def read_hint(task: Task, level: int, source: str = SHIPPED) -> str:
    """Return the text of a hint level.

    Raises:
        UsageError: the source is no folder.
        FamilyError: the source has no such hint, or it cannot be read.
    """
    path = hint_folder(task, source) / HINT_FILES[level]
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FamilyError(_complaint(task, [level], source)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FamilyError(f"{path}: {error}") from None


def _entry(level: int, text: str) -> KnowledgeEntry:
    title = f"Hint level {level}: {TITLES[level]}"
    return KnowledgeEntry(source="hints", title=title, text=text)


def _complaint(task: Task, missing: Sequence[int], source: str) -> str:
    levels = ", ".join(map(str, missing))
    if source == GENERATED:
        command = f"speedkit hints generate {_spelled(task)} --levels {','.join(map(str, missing))}"
        return f"{task.name} has no generated hint of level {levels}; to make it: {command}"
    there = hint_levels(task, source)
    has = f"it has {', '.join(map(str, there))}" if there else "it has no hints at all"
    where = "" if source == SHIPPED else f" in {source}"
    return f"{task.name} has no hint of level {levels}{where}; {has}"


def _spelled(task: Task) -> str:
    """Return the task as it must be written on a command line."""
    builtin = task.family.root.parent == BUILTIN_ROOT
    return task.name if builtin else f"{task.family.root}/{task.id}"
