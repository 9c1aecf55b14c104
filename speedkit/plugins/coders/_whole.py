"""The edit format ``whole``: complete files in fenced blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from speedkit.plugins.coders._names import Fence, name_above, name_behind, only, opening
from speedkit.plugins.coders._text import (
    EditError,
    check_count,
    join_lines,
    newline_of,
    python_problem,
)

MIN_SHARE = 0.25
"""A block with a smaller share of the old file's lines is taken for a fragment."""
MIN_LINES = 40
"""Lines of the old file from which on fragments are looked for."""
MAX_ENDS = 20
"""Fences that are tried as the end of one block."""
_PYTHON = ("", "python", "python3", "py")


@dataclass(frozen=True)
class _Block:
    name: str | None
    language: str
    lines: tuple[str, ...]


def whole(
    lines: Sequence[str], files: Mapping[str, str], editable: Sequence[str]
) -> dict[str, str]:
    """Return the files that a reply gives anew.

    Raises:
        EditError: there is no complete file, or it is unclear which block is which file.
    """
    blocks = _blocks(lines, editable)
    given = _named(blocks) or _unnamed(blocks, files, editable)
    for name, block in given.items():
        if _is_fragment(block, files[name]):
            raise EditError(
                f"the block for {name} has {len(block)} lines, but the file has"
                f" {files[name].count(chr(10))}; give the complete file, not a part of it"
            )
    return {name: join_lines(block, newline_of(files[name])) for name, block in given.items()}


def _blocks(lines: Sequence[str], editable: Sequence[str]) -> list[_Block]:
    blocks, index = [], 0
    while index < len(lines):
        fence = opening(lines[index])
        if fence is None:
            index += 1
            continue
        name = name_behind(fence, editable) or name_above(lines, index, editable)
        end = _end(lines, index, fence, python=(name or editable[0]).endswith(".py"))
        blocks.append(_Block(name, fence.language, tuple(lines[index + 1 : end])))
        check_count(len(blocks))
        index = end + 1
    return blocks


def _end(lines: Sequence[str], start: int, fence: Fence, *, python: bool) -> int:
    """Return the line that ends a block.

    Python may hold fences in its strings: of the lines that could end the block the first
    one counts that leaves valid Python.
    """
    closing = (i for i in range(start + 1, len(lines)) if fence.closed_by(lines[i]))
    ends = list(islice(closing, MAX_ENDS if python else 1))
    if not ends:
        raise EditError(f"the block from line {start + 1} on is cut off: no fence ends it")
    if len(ends) > 1:
        for end in ends:
            if not python_problem("\n".join(lines[start + 1 : end]) + "\n"):
                return end
    return ends[0]


def _named(blocks: Sequence[_Block]) -> dict[str, tuple[str, ...]]:
    given: dict[str, tuple[str, ...]] = {}
    for block in blocks:
        if block.name is None:
            continue
        if given.setdefault(block.name, block.lines) != block.lines:
            raise EditError(f"{block.name} is given more than once, with different texts")
    return given


def _unnamed(
    blocks: Sequence[_Block], files: Mapping[str, str], editable: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    python = editable[0].endswith(".py")
    found = [b.lines for b in blocks if not python or b.language in _PYTHON]
    if not found:
        raise EditError(
            "there is no file in the answer: give the complete file in a fenced block, with its"
            f" name alone on the line before it; {only(editable)}"
        )
    if len(editable) != 1:
        raise EditError(f"a block does not say which file it is; {only(editable)}")
    if len(found) > 1:
        found = [lines for lines in found if not _is_fragment(lines, files[editable[0]])]
    if len(found) != 1:
        raise EditError(
            "there are several blocks, and it is unclear which of them is the file; give the"
            " complete file once, with its name alone on the line before the block"
        )
    return {editable[0]: found[0]}


def _is_fragment(lines: Sequence[str], old: str) -> bool:
    count = old.count("\n")
    return count >= MIN_LINES and len(lines) < MIN_SHARE * count
