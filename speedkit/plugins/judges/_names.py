"""Two scripts in the same words: renamed variables, functions and classes find each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeVar

from speedkit.plugins.judges._syntax import MARK, Name, Script, Statement

SAME_SCOPE = 0.6
"""Share of equal statements from which two functions of different names are the same one."""

Tokens = tuple[str, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Spelling:
    """How the names and scopes of a script are written.

    Attributes:
        names: text by the index of the name.
        scopes: dotted name by the script's own.
    """

    names: Mapping[int, str]
    scopes: Mapping[str, str]

    @classmethod
    def own(cls, script: Script) -> Spelling:
        """Return the words of the script itself."""
        scopes = {s.scope for s in script.statements} | {n.scope for n in script.names}
        return cls({i: n.text for i, n in enumerate(script.names)}, {s: s for s in scopes})

    def name(self, index: int, name: Name) -> Name:
        """Return a name of the script as it is written here."""
        return Name(self.scopes[name.scope], self.names[index])

    def tokens(self, statement: Statement) -> Tokens:
        """Return the tokens of a statement as they are written here."""
        return tuple(MARK + self.names[int(t[1:])] if t[0] == MARK else t for t in statement.tokens)


@dataclass(frozen=True)
class Words:
    """A script and how it is written."""

    script: Script
    spelling: Spelling

    @classmethod
    def of(cls, script: Script) -> Words:
        """Return a script in its own words."""
        return cls(script, Spelling.own(script))

    def scopes(self) -> dict[str, list[Statement]]:
        """Return the statements by scope."""
        found: dict[str, list[Statement]] = {}
        for statement in self.script.statements:
            found.setdefault(self.spelling.scopes[statement.scope], []).append(statement)
        return found

    def names(self) -> Iterator[tuple[int, Name]]:
        """Yield index and written form of every name."""
        for index, name in enumerate(self.script.names):
            yield index, self.spelling.name(index, name)


def align(reference: Words, other: Words, fixed: Words | None = None) -> Words:
    """Return the other script in the words of the reference, where both mean the same.

    Args:
        reference: the script whose words are used.
        other: the script to be written in them.
        fixed: what the other script calls by a word of this script keeps it.
    """
    taken = set(fixed.scopes()) if fixed else set()
    scopes = _match_scopes(reference.scopes(), other.scopes(), taken)
    renamed = {own: scopes.get(name, name) for own, name in other.spelling.scopes.items()}
    other = Words(other.script, Spelling(other.spelling.names, renamed))
    kept = {name for _, name in fixed.names()} if fixed else set()
    return Words(other.script, Spelling(_match_names(reference, other, kept), renamed))


def erased(statement: Statement) -> Tokens:
    """Return the tokens of a statement, all names that can be another alike."""
    return tuple(MARK if t[0] == MARK else t for t in statement.tokens)


def overlap(a: Counter[Tokens], b: Counter[Tokens]) -> float:
    """Return the Dice coefficient of two multisets, from 0 to 1; 0 if both are empty."""
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0


# --- scopes -----------------------------------------------------------------------------


def _match_scopes(
    reference: Mapping[str, Sequence[Statement]],
    other: Mapping[str, Sequence[Statement]],
    taken: Collection[str],
) -> dict[str, str]:
    """Pair scopes that only one side has by what stands in them."""
    bags = {
        side: {
            name: Counter(map(erased, inside))
            for name, inside in scopes.items()
            if name not in rival and name not in taken
        }
        for side, scopes, rival in (("new", other, reference), ("old", reference, other))
    }
    pairs = (
        (overlap(bag, candidate), new, old)
        for new, bag in bags["new"].items()
        for old, candidate in bags["old"].items()
    )
    alike = sorted((p for p in pairs if p[0] >= SAME_SCOPE), key=lambda p: (-p[0], p[1], p[2]))
    return _one_to_one((new, old) for _, new, old in alike)


# --- names ------------------------------------------------------------------------------


def _match_names(reference: Words, other: Words, kept: Collection[Name]) -> dict[int, str]:
    """Let statements that are alike but for names say which names are the same."""
    theirs, ours = dict(reference.names()), dict(other.names())
    fixed = set(ours.values()) & set(kept)
    votes: Counter[tuple[int, int]] = Counter()
    inside, before = other.scopes(), reference.scopes()
    for scope in inside.keys() & before.keys():
        for old, new in _alike(reference, before[scope], other, inside[scope]):
            votes.update(_pairs(old, new))
    pairs = [
        (count, new, old)
        for (new, old), count in votes.items()
        if ours[new].scope == theirs[old].scope
        and ours[new] not in fixed
        and theirs[old] not in fixed
    ]
    pairs.sort(key=lambda p: (-p[0], ours[p[1]] != theirs[p[2]], p[1], p[2]))
    chosen = _one_to_one((new, old) for _, new, old in pairs)
    used = {theirs[old] for old in chosen.values()}
    return {
        new: theirs[chosen[new]].text if new in chosen else _free(name, used)
        for new, name in ours.items()
    }


def _alike(
    reference: Words, old: Sequence[Statement], other: Words, new: Sequence[Statement]
) -> Iterator[tuple[Statement, Statement]]:
    """Yield pairs of statements that are equal, or equal but for their names."""
    before = [reference.spelling.tokens(s) for s in old]
    after = [other.spelling.tokens(s) for s in new]
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from zip(old[i1:i2], new[j1:j2], strict=True)
        elif tag == "replace":
            a, b = old[i1:i2], new[j1:j2]
            matcher = SequenceMatcher(None, [*map(erased, a)], [*map(erased, b)], autojunk=False)
            for i, j, size in matcher.get_matching_blocks():
                yield from zip(a[i : i + size], b[j : j + size], strict=True)


def _pairs(old: Statement, new: Statement) -> Iterator[tuple[int, int]]:
    for before, after in zip(old.tokens, new.tokens, strict=True):
        if before[0] == MARK:
            yield int(after[1:]), int(before[1:])


def _free(name: Name, used: Collection[Name]) -> str:
    """Return the text of a name that found no partner, and that no other name has taken."""
    text = name.text
    while Name(name.scope, text) in used:
        text += "′"
    return text


def _one_to_one(pairs: Iterator[tuple[_T, _T]]) -> dict[_T, _T]:
    """Keep each pair none of whose two is in an earlier one."""
    chosen: dict[_T, _T] = {}
    partners: set[_T] = set()
    for new, old in pairs:
        if new not in chosen and old not in partners:
            chosen[new] = old
            partners.add(old)
    return chosen
