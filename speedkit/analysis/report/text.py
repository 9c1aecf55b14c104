"""Text from models and logs made fit to be shown, and numbers as the report writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but for tab and newline
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # no width
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # no characters at all
    "\U000e0000-\U000e0fff]"  # tags and selectors, in which text can hide
)
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")
MAX_LINE = 500
"""Characters of a line that are shown."""


def visible(text: str) -> str:
    """Return the text with each character that would not show, or would turn text, spelt out.

    An escape becomes ``[ESC]``, a right-to-left override ``[U+202E]``. Newlines and tabs stay.
    """
    return _HIDDEN.sub(_spelt, text.replace("\r\n", "\n"))


_NAMES = {0: "NUL", 7: "BEL", 8: "BS", 11: "VT", 12: "FF", 13: "CR", 27: "ESC", 127: "DEL"}


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"[{_NAMES.get(code, f'U+{code:04X}')}]"


def log_text(text: str) -> str:
    """Return a log without colours, a line for each state of a progress bar."""
    return _COLOR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def subject(text: str, limit: int = 80) -> str:
    """Return the first line of a text, cut to ``limit`` characters."""
    first = (text.strip().splitlines() or [""])[0]
    return first if len(first) <= limit else first[: limit - 1] + "…"


# --- excerpts -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Excerpt:
    """Part of a text, and a note on what was left out; empty when nothing was."""

    lines: tuple[str, ...]
    note: str = ""

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


def head(text: str, lines: int, width: int = MAX_LINE) -> Excerpt:
    """Return the first lines of a text, each cut to ``width`` characters."""
    found = text.rstrip("\n").split("\n") if text.strip() else []
    left = len(found) - lines
    note = f"{left:,} more lines are not shown" if left > 0 else ""
    return Excerpt(_short(found[:lines], width), note)


def tail(text: str, lines: int, *, cut: bool = False) -> Excerpt:
    """Return the last lines of a text.

    Args:
        cut: whether the text itself is only the end of a longer one.
    """
    found = text.rstrip("\n").split("\n") if text.strip() else []
    if cut:
        found = found[1:] or found  # the first may be half a line
    note = "earlier lines are not shown" if cut or len(found) > lines else ""
    return Excerpt(_short(found[-lines:], MAX_LINE), note)


def _short(lines: Iterable[str], width: int) -> tuple[str, ...]:
    return tuple(
        line if len(line) <= width else f"{line[:width]} … {len(line) - width:,} more"
        for line in lines
    )


_KINDS = {"+": "add", "-": "del", "@": "hunk", "\\": "meta"}


def diff_rows(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each line of a unified diff with what it is: add, del, same, hunk or meta."""
    inside = False
    for line in lines:
        if line.startswith("@@"):
            inside = True
        elif line.startswith("diff "):
            inside = False
        yield _KINDS.get(line[:1], "same") if inside else "meta", line


# --- numbers --------------------------------------------------------------------------------


def seconds(ms: float | None) -> str | None:
    """Return milliseconds as seconds."""
    if ms is None:
        return None
    return f"{ms / 1000:.2f} s" if ms < 1_000_000 else f"{ms / 1000:,.0f} s"


def duration(s: float | None) -> str | None:
    """Return seconds as hours, minutes or seconds."""
    if s is None:
        return None
    if s < 120:
        return f"{s:.1f} s"
    minutes = round(s / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: float | None) -> str | None:
    """Return an FSR: three decimals and a sign."""
    return None if value is None else f"{value:+.3f}"


def times(value: float | None) -> str | None:
    """Return a speedup."""
    return None if value is None else f"{value:.2f}×"


def loss(value: float | None) -> str | None:
    """Return a validation loss; one that is not finite as the word."""
    return None if value is None else f"{value:.4f}"


def dollars(value: float | None) -> str:
    """Return a sum; ``unknown`` where the price of a call is."""
    if value is None:
        return "unknown"
    if value == 0:
        return "$0"
    return f"${value:.4f}" if value < 1 else f"${value:,.2f}"


def plain(value: Any) -> str:
    """Return a configuration value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "none"
    return str(value)
