"""How each outcome looks: a colour that colour-blind readers can tell, and a shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """How nodes of an outcome are drawn.

    Attributes:
        key: ending of the style's class name.
        shape: name of a shape of :func:`speedkit.analysis.report.tree.shape`.
        meaning: one phrase for the legend.
    """

    key: str
    shape: str
    meaning: str


_LOOKS = {
    "valid": Look("valid", "circle", "at the target, counts"),
    "invalid": Look("invalid", "diamond", "ran, may not count"),
    "quarantined": Look("quarantined", "hexagon", "a guard objects until someone has looked"),
    "buggy": Look("buggy", "square", "crashed or printed no metrics"),
    "stopped": Look("stopped", "octagon", "ended early, could not win"),
    "edit_failed": Look("failed", "triangle", "no usable edit, not run"),
    "dropped": Look("dropped", "triangle_down", "drafted ahead and not run"),
    "pending": Look("pending", "ring", "not finished"),
}
_OTHER = Look("other", "cross", "another outcome")


def look(outcome: str) -> Look:
    """Return how an outcome is drawn, also one that is not known here."""
    return _LOOKS.get(outcome, _OTHER)


def ordered(outcomes: Iterable[str]) -> list[str]:
    """Return distinct outcomes, the known ones first and from best to worst."""
    found = set(outcomes)
    return [o for o in _LOOKS if o in found] + sorted(found - set(_LOOKS))


def in_words(outcome: str) -> str:
    """Return the outcome as readers see it."""
    return outcome.replace("_", " ")
