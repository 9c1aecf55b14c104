"""The hints knowledge source: what the family tells of a task, by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from speedkit.core.components import KnowledgeEntry, KnowledgeSource, Options
from speedkit.core.errors import FamilyError
from speedkit.core.task import Task

TITLES = {1: "pseudocode", 2: "text", 3: "mini-paper"}
"""What a hint of each level is."""


class HintsOptions(Options):
    """Options of the hints knowledge source."""

    levels: tuple[int, ...] = Field(
        (1, 2, 3),
        description="hint levels: 1 pseudocode, 2 text, 3 mini-paper; any subset, as 1,3",
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
            FamilyError: the task lacks one of the levels.
        """
        missing = [k for k in self.options.levels if k not in task.hint_levels()]
        if missing:
            raise FamilyError(_complaint(task, missing))
        return [_entry(task, level) for level in self.options.levels]


def _entry(task: Task, level: int) -> KnowledgeEntry:
    title = f"Hint level {level}: {TITLES[level]}"
    return KnowledgeEntry(source="hints", title=title, text=task.hint(level))


def _complaint(task: Task, missing: Sequence[int]) -> str:
    there = task.hint_levels()
    has = f"it has {', '.join(map(str, there))}" if there else "it has no hints at all"
    return f"{task.name} has no hint of level {', '.join(map(str, missing))}; {has}"
