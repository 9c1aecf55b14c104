"""What guards found of a node, and what it means for the node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Level(str, Enum):
    """What a finding means for a node."""

    PASS = "pass"
    """Worth knowing; the node may count."""
    QUARANTINE = "quarantine"
    """The node keeps its numbers and may not count until someone has looked at it."""
    REJECT = "reject"
    """The node may not count."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """What a guard has to say of a node.

    Attributes:
        guard: name of the guard, as it is registered.
        level: what it means for the node.
        reason: one line for the user: what was found, and where.
    """

    guard: str
    level: Level
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "level": str(self.level)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Undo :meth:`to_dict`."""
        return cls(values["guard"], Level(values["level"]), values["reason"])


def worst(findings: Iterable[Finding]) -> Finding | None:
    """Return the first of the most serious findings; None when all pass."""
    order = (Level.REJECT, Level.QUARANTINE)
    serious = [f for f in findings if f.level is not Level.PASS]
    return min(serious, key=lambda f: order.index(f.level), default=None)
