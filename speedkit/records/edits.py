"""Edits of a script at anchors that must be there: an edit that does not fit is an error."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass

from speedkit.core.errors import FamilyError
from speedkit.core.syntax import quiet


class EditError(FamilyError):
    """A script that does not have the form that an edit expects."""


@dataclass(frozen=True)
class Replacement:
    """A text to be replaced, which must occur exactly once.

    Attributes:
        note: what the replacement does, a phrase for the user.
    """

    old: str
    new: str
    note: str = ""

    def apply(self, source: str) -> str:
        """Return the source with the text replaced.

        Raises:
            EditError: the text occurs not at all, or more than once.
        """
        found = source.count(self.old)
        if found != 1:
            line = next(part for part in self.old.splitlines() if part.strip()).strip()
            raise EditError(f"the script has {found} places like {line!r}; exactly 1 is needed")
        return source.replace(self.old, self.new)


def replace_match(source: str, pattern: str, new: str, what: str) -> str:
    """Replace the one match of a pattern by a template of :func:`re.sub`.

    Raises:
        EditError: there is no match, or more than one; ``what`` names it.
    """
    text, count = re.subn(pattern, new, source)
    if count != 1:
        raise EditError(f"the script has {count} places with {what}; exactly 1 is needed")
    return text


def parse(source: str) -> ast.Module:
    """Parse a script.

    Raises:
        EditError: it is no Python.
    """
    try:
        with quiet():
            return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise EditError(f"the script is not valid Python: {error}") from None


def replace_nodes(source: str, edits: Iterable[tuple[ast.expr, str]]) -> str:
    """Put texts in the place of expressions, and leave every other character as it is."""
    # Columns of the syntax tree count bytes of UTF-8.
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans = [
        (
            starts[node.lineno - 1] + node.col_offset,
            starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0),
            text.encode(),
        )
        for node, text in edits
    ]
    for begin, end, text in sorted(spans, reverse=True):
        data = data[:begin] + text + data[end:]
    return data.decode()
