"""Parts of a human change, to see what a judge makes of them."""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from speedkit.core.syntax import quiet

TRIES = 200
"""How many halves of a change are tried until one is Python."""


@dataclass(frozen=True)
class Hunk:
    """Lines ``begin`` to ``end`` (not included) of a text, and what stands in their place."""

    begin: int
    end: int
    lines: tuple[str, ...]


def hunks(old: str, new: str) -> list[Hunk]:
    """Return what leads from one text to another."""
    before, after = old.splitlines(True), new.splitlines(True)
    codes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [Hunk(i1, i2, tuple(after[j1:j2])) for tag, i1, i2, j1, j2 in codes if tag != "equal"]


def apply(text: str, chosen: Sequence[Hunk]) -> str:
    """Return a text with hunks applied; they must not overlap."""
    lines = text.splitlines(True)
    for hunk in sorted(chosen, key=lambda h: h.begin, reverse=True):
        lines[hunk.begin : hunk.end] = hunk.lines
    return "".join(lines)


def half(old: str, new: str, seed: str) -> tuple[str, int, int] | None:
    """Return a text with half of the hunks of a change, and how many of how many.

    None if the change has one hunk, or no half of it that was tried is Python.
    """
    found = hunks(old, new)
    rng = random.Random(seed)
    for _ in range(TRIES if len(found) > 1 else 0):
        chosen = rng.sample(found, len(found) // 2)
        text = apply(old, chosen)
        if parses(text):
            return text, len(chosen), len(found)
    return None


def transplant(old: str, new: str, onto: str) -> tuple[str, int, int]:
    """Apply a change to another text, hunk by hunk, where the lines it replaces stand there.

    Returns:
        The text, and how many of how many hunks are in it. A hunk that leaves no Python is
        left out.
    """
    found = hunks(old, new)
    matcher = SequenceMatcher(None, old.splitlines(True), onto.splitlines(True), autojunk=False)
    place = {
        block.a + k: block.b + k
        for block in matcher.get_matching_blocks()
        for k in range(block.size)
    }
    chosen: list[Hunk] = []
    for hunk in found:
        moved = _moved(hunk, place)
        if moved is not None and parses(apply(onto, [*chosen, moved])):
            chosen.append(moved)
    return apply(onto, chosen), len(chosen), len(found)


def _moved(hunk: Hunk, place: dict[int, int]) -> Hunk | None:
    """Return a hunk at its place in another text; None where its lines are not there."""
    if hunk.begin == hunk.end:
        before, after = place.get(hunk.begin - 1), place.get(hunk.begin)
        at = after if before is None else before + 1
        return None if at is None else Hunk(at, at, hunk.lines)
    places = [place.get(line) for line in range(hunk.begin, hunk.end)]
    first = places[0]
    if first is None or places != list(range(first, first + len(places))):
        return None
    return Hunk(first, first + len(places), hunk.lines)


def parses(text: str) -> bool:
    """Whether a text is Python."""
    try:
        with quiet():
            ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True
