"""What a version changes in a script, and how much of one change another one holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import pairwise

from speedkit.plugins.judges._names import Tokens, Words, overlap

SAME_STATEMENT = 0.34
"""Overlap from which a new statement is an old one changed, and not one of its own."""
ALIKE = 0.5
"""Overlap under which two new statements have nothing in common that counts."""
MAX_PAIRS = 200_000
"""Pairs of statements that are compared closely; beyond, only equal ones count."""

_SILENT = frozenset("(),:")


@dataclass(frozen=True)
class Line:
    """A statement in words that can be compared, and as its author wrote it."""

    tokens: Tokens
    text: str

    @cached_property
    def grams(self) -> Counter[Tokens]:
        """Pairs of neighbouring tokens, those left out that only punctuate."""
        kept = ["", *(t for t in self.tokens if t not in _SILENT), ""]
        return Counter(pairwise(kept))


@dataclass(frozen=True)
class Edit:
    """One statement added, removed or changed.

    Attributes:
        index: position of the old statement in its scope of the start script; None if there
            is none.
    """

    scope: str
    index: int | None
    old: Line | None
    new: Line | None

    @cached_property
    def substance(self) -> tuple[str, Counter[Tokens]]:
        """What is new in it; for what only removes, what is gone."""
        old = self.old.grams if self.old else Counter()
        new = self.new.grams if self.new else Counter()
        if added := new - old:
            return "+", added
        return ("-", removed) if (removed := old - new) else ("+", new)


def edits(start: Words, version: Words) -> list[Edit]:
    """Return what leads from the start script to a version that is written in its words."""
    before, after = _lines(start), _lines(version)
    found: list[Edit] = []
    for scope in sorted(before.keys() | after.keys()):
        found += _scope_edits(scope, before.get(scope, []), after.get(scope, []))
    return found


def _lines(words: Words) -> dict[str, list[Line]]:
    spelled = words.spelling.tokens
    return {
        scope: [Line(spelled(s), s.text) for s in inside]
        for scope, inside in words.scopes().items()
    }


def _scope_edits(scope: str, old: Sequence[Line], new: Sequence[Line]) -> list[Edit]:
    matcher = SequenceMatcher(None, [x.tokens for x in old], [x.tokens for x in new], False)
    found = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        partner = _partners(old[i1:i2], new[j1:j2])
        changed = set(partner.values())
        found += [
            Edit(scope, i1 + i, line, new[j1 + partner[i]] if i in partner else None)
            for i, line in enumerate(old[i1:i2])
        ]
        found += [
            Edit(scope, None, None, line) for j, line in enumerate(new[j1:j2]) if j not in changed
        ]
    return found


def _partners(old: Sequence[Line], new: Sequence[Line]) -> dict[int, int]:
    """Say which old statement became which new one, the most alike first."""
    if len(old) * len(new) > MAX_PAIRS:
        return {}
    pairs = [
        (alike, i, j)
        for i, a in enumerate(old)
        for j, b in enumerate(new)
        if (alike := overlap(a.grams, b.grams)) >= SAME_STATEMENT
    ]
    return {i: j for i, j, _ in _greedy(pairs)}


def _greedy(pairs: list[tuple[float, int, int]]) -> list[tuple[int, int, float]]:
    """Choose pairs one to one, the highest first; of equals, the earliest."""
    left: set[int] = set()
    right: set[int] = set()
    chosen = []
    for alike, i, j in sorted(pairs, key=lambda p: (-p[0], p[1], p[2])):
        if i not in left and j not in right:
            left.add(i)
            right.add(j)
            chosen.append((i, j, alike))
    return chosen


# --- one change in another --------------------------------------------------------------


@dataclass
class Shares:
    """How much of each edit of one change stands in another change, from 0 to 1.

    Attributes:
        human: by edit of the change looked for.
        agent: the same shares, by the edit of the other change that earned them.
    """

    human: list[float]
    agent: list[float]


def shares(human: Sequence[Edit], agent: Sequence[Edit]) -> Shares:
    """Return how much of the human change the agent's holds, edit by edit."""
    found = Shares([0.0] * len(human), [0.0] * len(agent))
    left = _take_equal(human, agent, found)
    rest = [i for i, share in enumerate(found.human) if not share]
    if len(rest) * len(left) > MAX_PAIRS:
        return found
    pairs = [(a, i, j) for i in rest for j in left if (a := _alike(human[i], agent[j])) > 0]
    for i, j, alike in _greedy(pairs):
        found.human[i] = found.agent[j] = alike
    return found


def _take_equal(human: Sequence[Edit], agent: Sequence[Edit], found: Shares) -> list[int]:
    """Give full shares where both lead to the same; return the agent's edits that are left.

    A statement may be a changed one in one version and a new one in the other, depending on
    what stands around it. It counts in full if it is there and its old form is gone.
    """
    touched: dict[tuple[str, int | None], int] = {
        (e.scope, e.index): j for j, e in enumerate(agent) if e.index is not None
    }
    by_new: dict[tuple[str, Tokens], list[int]] = {}
    for j, edit in enumerate(agent):
        if edit.new:
            by_new.setdefault((edit.scope, edit.new.tokens), []).append(j)
    for i, edit in enumerate(human):
        place = (edit.scope, edit.index)
        if edit.new is None or (edit.old is not None and place not in touched):
            continue
        if candidates := by_new.get((edit.scope, edit.new.tokens)):
            same = touched.get(place)
            j = same if same is not None and same in candidates else candidates[0]
            candidates.remove(j)
            found.human[i] = found.agent[j] = 1.0
    for i, edit in enumerate(human):
        gone = touched.get((edit.scope, edit.index)) if edit.new is None else None
        if gone is not None and (agent[gone].new is None or found.agent[gone]):
            found.human[i] = found.agent[gone] = 1.0
    return [j for j, share in enumerate(found.agent) if not share]


def _alike(human: Edit, agent: Edit) -> float:
    """Return how much two edits have in common that the start script has not."""
    if human.scope != agent.scope:
        return 0.0
    (sign, bag), (other_sign, other_bag) = human.substance, agent.substance
    alike = overlap(bag, other_bag) if sign == other_sign else 0.0
    same_place = human.index is not None and human.index == agent.index
    return alike if same_place or alike >= ALIKE else 0.0
