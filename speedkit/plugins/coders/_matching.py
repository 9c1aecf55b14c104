"""Find the lines of a file that an edit quotes, and say what is nearest when they are absent."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speedkit.plugins.coders._text import MAX_WIDTH, EditError, bare, splice, split_lines

MAX_SHOWN = 24
"""Lines of a file that an error message shows."""
MAX_PLACES = 20
"""Places that are looked at; where there are more, an edit is ambiguous anyway."""


@dataclass(frozen=True)
class Edit:
    """A replacement of lines in one file.

    Attributes:
        what: the edit in words, for messages.
        choices: pairs of quoted and new lines; more than one where the reply can be read in
            several ways, of which only one may fit the file.
    """

    name: str
    what: str
    choices: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@dataclass(frozen=True)
class Place:
    """Where quoted lines stand.

    Attributes:
        start: index of the first line.
        add: indentation that the file has and the quote lacks.
        drop: indentation that the quote has and the file lacks.
    """

    start: int
    add: str = ""
    drop: str = ""

    def indent(self, lines: Sequence[str]) -> list[str]:
        """Shift new lines as the quoted ones were.

        Raises:
            EditError: a line has not the indentation that is to be dropped.
        """
        for line in lines:
            if line.strip() and not line.startswith(self.drop):
                raise EditError(
                    "the quoted lines are indented deeper than in the file, and this new line is"
                    f" not, so its place is unclear: {line[:MAX_WIDTH]!r}"
                )
        return [self.add + line[len(self.drop) :] if line.strip() else line for line in lines]


def apply_edit(text: str, edit: Edit) -> str:
    """Return the text of a file after an edit.

    Raises:
        EditError: the quoted lines are absent, or occur more than once.
    """
    results, errors = [], []
    for before, after in edit.choices:
        try:
            results.append(_replace(text, edit, before, after))
        except EditError as error:
            errors.append(error)
    if len(results) > 1:
        raise EditError(
            f"{edit.what} has several lines ======= and can be read in several ways; quote lines of"
            " the file that are no such line"
        )
    if not results:
        raise errors[0]
    return results[0]


def _replace(text: str, edit: Edit, before: Sequence[str], after: Sequence[str]) -> str:
    if not before:
        if text.strip():
            raise EditError(f"{edit.what} quotes no line of {edit.name}, so its place is unclear")
        return splice("", 0, 0, after)
    place = locate([bare(line) for line in split_lines(text)], before, edit)
    return splice(text, place.start, len(before), place.indent(after))


def locate(lines: Sequence[str], quoted: Sequence[str], edit: Edit) -> Place:
    """Find quoted lines in a file.

    An exact match counts first, then one that differs in white space at the ends of lines,
    then one whose lines are all indented more, or all less, by the same amount.

    Raises:
        EditError: there is no match, or there are several of the same kind.
    """
    if not any(line.strip() for line in quoted):
        raise EditError(f"{edit.what} quotes blank lines only; quote lines with text")
    for key in (_same, str.rstrip):
        places = [Place(i) for i in _positions(lines, quoted, key)]
        if places:
            return _only(places, edit)
    candidates = (_shifted(lines, quoted, i) for i in _positions(lines, quoted, str.strip))
    places = [place for place in candidates if place is not None]
    if places:
        return _only(places, edit)
    raise EditError(_absent(lines, quoted, edit))


def _same(line: str) -> str:
    return line


def _positions(lines: Sequence[str], quoted: Sequence[str], key: Callable[[str], str]) -> list[int]:
    """Return the indexes at which the quoted lines begin, by a search in one long string."""
    text = "\n" + "\n".join(map(key, lines)) + "\n"
    wanted = "\n" + "\n".join(map(key, quoted)) + "\n"
    found: list[int] = []
    at, line, seen = text.find(wanted), 0, 0
    while at >= 0 and len(found) < MAX_PLACES:
        line, seen = line + text.count("\n", seen, at), at
        found.append(line)
        at = text.find(wanted, at + 1)
    return found


def _shifted(lines: Sequence[str], quoted: Sequence[str], start: int) -> Place | None:
    shifts = {
        _shift(there, here)
        for there, here in zip(lines[start : start + len(quoted)], quoted, strict=True)
        if here.strip()
    }
    shift = shifts.pop() if len(shifts) == 1 else None
    return None if shift is None else Place(start, *shift)


def _shift(there: str, here: str) -> tuple[str, str] | None:
    """Return what to add to, or to drop from, the indentation of ``here``."""
    file, quote = (line[: len(line) - len(line.lstrip())] for line in (there, here))
    if file.endswith(quote):
        return file[: len(file) - len(quote)], ""
    if quote.endswith(file):
        return "", quote[: len(quote) - len(file)]
    return None


def _only(places: Sequence[Place], edit: Edit) -> Place:
    if len(places) == 1:
        return places[0]
    where = ", ".join(str(place.start + 1) for place in places[:10])
    more = ", …" if len(places) > 10 else ""
    raise EditError(
        f"{edit.what} quotes lines that occur {_count(len(places))} times in {edit.name}, at lines"
        f" {where}{more}; quote neighbouring lines too, until they occur once"
    )


def _count(number: int) -> str:
    return f"at least {number}" if number >= MAX_PLACES else str(number)


# --- the nearest match ------------------------------------------------------------------


def _absent(lines: Sequence[str], quoted: Sequence[str], edit: Edit) -> str:
    head = f"{edit.what} quotes lines that are not in {edit.name}."
    start = _nearest(lines, quoted)
    if start is None:
        return f"{head} No lines of the file are similar to {_cut(_longest(quoted))!r}."
    shown = range(max(0, start), min(len(lines), start + min(len(quoted), MAX_SHOWN)))
    listing = "\n".join(f"{i + 1:5} | {_cut(lines[i])}" for i in shown)
    return f"{head} {_difference(lines, quoted, start)}\nNearest lines of {edit.name}:\n{listing}"


def _nearest(lines: Sequence[str], quoted: Sequence[str]) -> int | None:
    """Return where most quoted lines would find their like; lines that are rare count more."""
    where: dict[str, list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        if line.strip():
            where[line.strip()].append(i)
    votes: dict[int, float] = defaultdict(float)
    for k, line in enumerate(quoted[:400]):
        found = where.get(line.strip(), ())
        for i in found[:50]:
            votes[i - k] += 1 / len(found)
    if votes:
        return max(votes, key=lambda start: (votes[start], -start))
    return _similar(where, quoted)


def _similar(where: dict[str, list[int]], quoted: Sequence[str]) -> int | None:
    wanted = _longest(quoted)
    known = {_cut(line): found[0] for line, found in list(where.items())[:5000]}
    near = difflib.get_close_matches(_cut(wanted.strip()), known, n=1, cutoff=0.5)
    return known[near[0]] - list(quoted).index(wanted) if near else None


def _difference(lines: Sequence[str], quoted: Sequence[str], start: int) -> str:
    for k, line in enumerate(quoted):
        there = lines[start + k] if 0 <= start + k < len(lines) else None
        if there is None:
            return f"Line {k + 1} of the quote, {_cut(line)!r}, would lie outside of the file."
        if there.rstrip() != line.rstrip():
            return (
                f"Line {k + 1} of the quote is {_cut(line)!r}, but line {start + k + 1} of the file"
                f" is {_cut(there)!r}."
            )
    return ""


def _longest(quoted: Sequence[str]) -> str:
    return max(quoted, key=lambda line: len(line.strip()))


def _cut(line: str) -> str:
    return line if len(line) <= MAX_WIDTH else line[:MAX_WIDTH] + "…"
