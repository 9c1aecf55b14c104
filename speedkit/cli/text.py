"""How commands write numbers, colours, differences and JSON."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from speedkit.core.errors import UsageError
from speedkit.core.files import printable

if TYPE_CHECKING:
    from speedkit.core.node import Node
    from speedkit.core.run import Run

_NOT_SHOWN_RAW = re.compile(
    r"[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
_PAINT = re.compile(r"(\x1b\[(?:3[0-7]|0)m)")
"""What :func:`paint` puts before and after a text."""
_DIFF_COLORS = (("---", None), ("+++", None), ("@@", "cyan"), ("-", "red"), ("+", "green"))
MAX_SUBJECT = 72
"""Characters of a hypothesis shown in a list."""


def seconds(ms: float | None) -> str | None:
    """Return milliseconds as seconds, None as None."""
    return None if ms is None else f"{ms / 1000:.2f} s"


def clean(text: str) -> str:
    """Return text from outside, fit for a terminal: no control characters, no half of a pair."""
    return printable(text)


def one_line(text: str, limit: int = MAX_SUBJECT) -> str:
    """Return the first line of a text from outside, cut to ``limit`` characters."""
    first = (clean(text).strip().splitlines() or [""])[0].expandtabs(1)
    return first if len(first) <= limit else first[: limit - 1] + "…"


def wants_color() -> bool:
    """Whether standard output is a terminal whose user has nothing against colour."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def paint(text: str, color: str | None) -> str:
    """Return the text in a colour, where colour is wanted."""
    return click.style(text, fg=color) if color and wants_color() else text


def echo(text: str = "") -> None:
    """Print data: on a terminal with the colours of :func:`paint`, and no other control."""
    if wants_color():
        parts = _PAINT.split(text)
        shown = "".join(p if _PAINT.fullmatch(p) else clean(p) for p in parts)
    else:
        shown = clean(click.unstyle(text))
    click.echo(shown, color=True)


def echo_diff(lines: Iterable[str]) -> None:
    """Print a unified diff, coloured on a terminal; its text may come from a model."""
    for line in lines:
        shown = clean(line)
        color = next((c for prefix, c in _DIFF_COLORS if shown.startswith(prefix)), None)
        echo(paint(shown, color))


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return JSON in which what could fool a terminal or an encoder stands escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return _NOT_SHOWN_RAW.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print one JSON value on standard output; ``indent=None`` keeps it on one line."""
    click.echo(json_text(value, indent))


def find_node(run: Run, name: str) -> Node:
    """Return a node of a run by its number, or ``best``.

    Raises:
        UsageError: there is no such node.
    """
    if name == "best":
        if run.best is None:
            raise UsageError(f"{run.directory.path} has no valid node yet, so none is the best")
        return run.best
    if name.isascii() and name.isdigit() and int(name[:18]) in run.tree:
        return run.tree[int(name[:18])]
    if not len(run.tree):
        raise UsageError(f"{run.directory.path} has no node yet")
    known = f"0 to {len(run.tree) - 1}"
    raise UsageError(f"{run.directory.path} has no node {name!r}; nodes are {known}, or best")
