"""Crossover of two texts: the changes of both against their common ancestor."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True)
class Hunk:
    """Lines ``begin`` to ``end`` of the ancestor, the latter not included, and their successors."""

    begin: int
    end: int
    lines: tuple[str, ...]

    def meets(self, other: Hunk) -> bool:
        """Whether two hunks change the same place, so that only one can be had."""
        if self.begin == other.begin:
            return True
        return self.begin < other.end and other.begin < self.end


def hunks(base: str, text: str) -> list[Hunk]:
    """Return what leads from one text to another, first to last."""
    old, new = base.splitlines(True), text.splitlines(True)
    codes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [Hunk(i1, i2, tuple(new[j1:j2])) for tag, i1, i2, j1, j2 in codes if tag != "equal"]


def cross(base: str, mother: str, father: str, rng: random.Random) -> str:
    """Return the ancestor with the changes of both; where they meet, chance decides."""
    chosen = hunks(base, mother)
    for hunk in hunks(base, father):
        rivals = [one for one in chosen if one.meets(hunk)]
        if not rivals:
            chosen.append(hunk)
        elif hunk not in rivals and rng.random() < 0.5:
            chosen = [one for one in chosen if one not in rivals] + [hunk]
    return apply(base, chosen)


def apply(base: str, chosen: Sequence[Hunk]) -> str:
    """Return a text with hunks applied that do not meet."""
    lines = base.splitlines(True)
    for hunk in sorted(chosen, key=lambda h: (h.begin, h.end), reverse=True):
        lines[hunk.begin : hunk.end] = hunk.lines
    return "".join(lines)
