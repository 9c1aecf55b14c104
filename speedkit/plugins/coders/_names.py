"""Which file a piece of a reply speaks of; only names on the list pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from speedkit.plugins.coders._text import MAX_WIDTH, EditError

_ALONE = re.compile(
    r"""[\s#*`]*(?:(?:file|filename|file\ name|path)\s*:\s*)?[`*"']*(\S+?)[`*"']*:?[`*\s]*""",
    re.IGNORECASE | re.VERBOSE,
)
_ATTRIBUTE = re.compile(r"(?:title|file|filename|name|path)=[\"']?([^\"'\s}]+)")
_PATH_LIKE = re.compile(r".*[/\\\0].*|\..+|.*\.[A-Za-z][A-Za-z0-9]{0,3}", re.DOTALL)
MAX_ABOVE = 10
"""Lines above an edit, blank ones included, among which its name is looked for."""
_FENCE = re.compile(r"( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)")


@dataclass(frozen=True)
class Fence:
    """A line that opens a fenced block.

    Attributes:
        mark: the run of backticks or tildes.
        info: what stands behind it.
    """

    mark: str
    info: str

    @property
    def language(self) -> str:
        """The first word behind the fence, in lower case."""
        return re.split(r"[\s:{,]", self.info.strip(), maxsplit=1)[0].lower()

    def closed_by(self, line: str) -> bool:
        """Whether a line ends the block."""
        other = opening(line)
        same = other is not None and not other.info and other.mark[0] == self.mark[0]
        return same and other is not None and len(other.mark) >= len(self.mark)


def opening(line: str) -> Fence | None:
    """Return the fence that a line is, None if it is none."""
    if "```" not in line and "~~~" not in line:
        return None
    match = _FENCE.fullmatch(line)
    return Fence(match[2], match[3].strip()) if match else None


def name_above(lines: Sequence[str], index: int, editable: Sequence[str]) -> str | None:
    """Return the file that stands alone above a line, or behind the fence above it.

    Args:
        lines: the reply.
        index: the line of the fence, or of the first marker of an edit.
        editable: the names that may be used.

    Raises:
        EditError: a path is named that is not on the list.
    """
    above = [line for line in lines[max(0, index - MAX_ABOVE) : index] if line.strip()][-2:]
    for line in reversed(above):
        fence = opening(line)
        name = name_behind(fence, editable) if fence else name_alone(line, editable)
        if name or not fence:
            return name
    return None


def name_alone(line: str, editable: Sequence[str]) -> str | None:
    """Return the file that a line names, if it holds nothing else."""
    match = _ALONE.fullmatch(line) if len(line) <= MAX_WIDTH else None
    return _allowed(match[1], editable) if match else None


def name_behind(fence: Fence, editable: Sequence[str]) -> str | None:
    """Return the file that is named behind a fence."""
    info = fence.info[:MAX_WIDTH]
    words = _ATTRIBUTE.findall(info) or re.split(r"[\s{},]+|(?<=[a-z]):(?=\S)", info)
    names = [_allowed(word.strip("`\"'*:"), editable) for word in words if word]
    return next((name for name in names if name), None)


def _allowed(word: str, editable: Sequence[str]) -> str | None:
    if word in editable:
        return word
    if _PATH_LIKE.fullmatch(word):
        raise EditError(f"{word[:200]!r} cannot be changed; {only(editable)}")
    return None


def only(editable: Sequence[str]) -> str:
    """Return a clause that lists the files."""
    return "files that can be changed: " + ", ".join(editable)


def sole(name: str | None, editable: Sequence[str], what: str) -> str:
    """Return the name, or the only file there is.

    Raises:
        EditError: no name is given and there are several files.
    """
    if name is None and len(editable) != 1:
        raise EditError(f"{what} does not say which file it changes; {only(editable)}")
    return name or editable[0]
