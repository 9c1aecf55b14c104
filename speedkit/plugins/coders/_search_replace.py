"""The edit format ``search_replace``: quoted lines and what to put in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from speedkit.plugins.coders._matching import Edit, apply_edit
from speedkit.plugins.coders._names import name_above, sole
from speedkit.plugins.coders._text import EditError, check_count

_SEARCH = re.compile(r"\s{0,3}<{5,9}\s*SEARCH\s*>?")
_DIVIDER = re.compile(r"\s{0,3}={5,9}")
_REPLACE = re.compile(r"\s{0,3}>{5,9}\s*REPLACE")
MAX_READINGS = 10
"""Lines of the form ``=======`` in one block."""


def search_replace(
    lines: Sequence[str], files: Mapping[str, str], editable: Sequence[str]
) -> dict[str, str]:
    """Return the files that change, after all edits of a reply.

    Raises:
        EditError: the reply, or one of its edits, cannot be used.
    """
    changed: dict[str, str] = {}
    for edit in read_edits(lines, editable):
        text = changed.get(edit.name, files[edit.name])
        changed[edit.name] = apply_edit(text, edit)
    if not changed:
        raise EditError(
            "there is no edit in the answer: no line <<<<<<< SEARCH was found; give at least one"
            " block with <<<<<<< SEARCH, ======= and >>>>>>> REPLACE"
        )
    return changed


def read_edits(lines: Sequence[str], editable: Sequence[str]) -> Iterator[Edit]:
    """Yield the edits of a reply in their order.

    A block without a name changes the file of the block before it.
    """
    name: str | None = None
    number, index = 0, 0
    while index < len(lines):
        if _is(_REPLACE, lines[index]):
            raise EditError(f"line {index + 1}: >>>>>>> REPLACE without <<<<<<< SEARCH before it")
        if not _is(_SEARCH, lines[index]):
            index += 1
            continue
        number += 1
        check_count(number)
        what = f"edit {number}"
        name = sole(name_above(lines, index, editable) or name, editable, what)
        end = _end_of_block(lines, index + 1, what)
        yield Edit(name, what, _readings(lines[index + 1 : end], what))
        index = end + 1


def _is(marker: re.Pattern[str], line: str) -> bool:
    return marker.fullmatch(line.rstrip()) is not None


def _end_of_block(lines: Sequence[str], start: int, what: str) -> int:
    for index in range(start, len(lines)):
        if _is(_REPLACE, lines[index]):
            return index
        if _is(_SEARCH, lines[index]):
            raise EditError(f"{what} is not closed by >>>>>>> REPLACE before the next one begins")
    raise EditError(f"{what} is cut off: it has no line >>>>>>> REPLACE")


def _readings(
    block: Sequence[str], what: str
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    at = [i for i, line in enumerate(block) if _is(_DIVIDER, line)]
    if not at:
        raise EditError(f"{what} has no line ======= between its two parts")
    if len(at) > MAX_READINGS:
        raise EditError(f"{what} has {len(at)} lines =======; it must have one")
    return tuple((tuple(block[:i]), tuple(block[i + 1 :])) for i in at)
