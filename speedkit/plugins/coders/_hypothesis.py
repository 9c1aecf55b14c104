"""The sentence in which a model says what it changes and why."""

from __future__ import annotations

import re
from collections.abc import Sequence

from speedkit.core.files import printable
from speedkit.plugins.coders._names import opening

MAX_LENGTH = 600
"""Characters."""
MAX_LINES = 50
MISSING = "no hypothesis given"
_LABEL = re.compile(r"[\s#*_>`-]*HYPOTHESIS[\s*_`]*:[\s*_`]*(.*)", re.IGNORECASE)
_STOP = re.compile(r"\s*(#{1,6}\s|<{5,9}\s*SEARCH|---\s|@@|PLAN\b.*:?\s*$)")


def read_hypothesis(text: str, editable: Sequence[str] = ()) -> str:
    """Return the text behind ``HYPOTHESIS:`` as one line of bounded length.

    It ends at a blank line, a heading, a fence, an edit or the name of a file.
    """
    lines = printable(text).replace("\r", "\n").split("\n")
    for index, line in enumerate(lines):
        if match := _LABEL.fullmatch(line):
            words = " ".join(
                _paragraph([match[1], *lines[index + 1 : index + MAX_LINES]], editable)
            ).split()
            if words:
                return _bounded(" ".join(words).rstrip("*_` "))
    return MISSING


def _paragraph(lines: Sequence[str], editable: Sequence[str]) -> list[str]:
    """Return the lines up to the end of the first paragraph with text."""
    kept: list[str] = []
    for line in lines:
        ends = opening(line) or _STOP.match(line) or line.strip(" *`:#") in editable
        if ends or (kept and not line.strip()):
            break
        if line.strip():
            kept.append(line)
    return kept


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1].rstrip() + "…"
