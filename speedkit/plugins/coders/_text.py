"""Text as lines: the reply of a model, the files it changes, and what is wrong with an edit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from speedkit.core.preflight import parse
from speedkit.core.prompting import END_MARKER

MAX_REPLY = 10 * 1024 * 1024
"""Bytes of a reply."""
MAX_FILE = 2 * 1024 * 1024
"""Bytes of a file that comes out of it."""
MAX_EDITS = 500
"""Edits, hunks or blocks in one reply."""
MAX_WIDTH = 200
"""Characters of a line that are looked at for a name or a remark, or shown in a message."""
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_ELISIONS = (
    re.compile(
        r"\s*#\s*(?:\.\.\.|…).*\b(?:rest|remain\w*|existing|unchanged|same|previous|original|"
        r"omitted|before)\b",
        re.IGNORECASE,
    ),
    re.compile(
        r"\s*#.*\b(?:rest|remainder) of (?:the |this )?(?:code|file|script|class|function|module)\b"
        r".*(?:unchanged|same|before|here|omitted|\.\.\.|…)",
        re.IGNORECASE,
    ),
    re.compile(r"\s*#\s*\(?(?:existing|unchanged) code\b", re.IGNORECASE),
    re.compile(
        r"\s*#\s*\(?(?:same|original) code(?:[\s.…:,-]+(?:as|before|above|below|here|goes|stays|"
        r"remains|continues|follows|unchanged|omitted|the|same))*[\s.…:)]*\Z",
        re.IGNORECASE,
    ),
)


class EditError(Exception):
    """Why a reply is no usable edit, in words for the model that wrote it."""


# --- replies ----------------------------------------------------------------------------


def reply_lines(text: str) -> list[str]:
    """Split a reply into lines without their ends, whatever line ends it uses.

    Raises:
        EditError: it is empty, too long, or no valid Unicode text.
    """
    if not text.strip():
        raise EditError("the answer is empty")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise EditError("the answer holds characters that are no valid Unicode text") from None
    if size > MAX_REPLY:
        raise EditError(f"the answer has {size} bytes; at most {MAX_REPLY} are read")
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def without_end(lines: Sequence[str]) -> tuple[list[str], bool]:
    """Return the lines without the end marker, and whether it was there.

    The marker counts on one of the last three lines with text: a closing fence or a
    good-bye may follow it.
    """
    filled = [i for i, line in enumerate(lines) if line.strip()]
    for i in reversed(filled[-3:]):
        if lines[i].strip(" \t`*_.#") == END_MARKER:
            return [*lines[:i], *lines[i + 1 :]], True
    return list(lines), False


# --- files ------------------------------------------------------------------------------


def split_lines(text: str) -> list[str]:
    r"""Split at ``\n`` only, keeping the line ends."""
    return _LINE.findall(text)


def bare(line: str) -> str:
    r"""Return a line without its ``\n`` or ``\r\n``."""
    return line[:-2] if line.endswith("\r\n") else line[:-1] if line.endswith("\n") else line


def newline_of(text: str) -> str:
    r"""Return the line end that most lines of a text have, ``\n`` or ``\r\n``."""
    return "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"


def join_lines(lines: Iterable[str], newline: str) -> str:
    """Join bare lines to a text whose last line has an end."""
    return "".join(line + newline for line in lines)


def check_count(number: int) -> None:
    """See that a reply has not too many parts.

    Raises:
        EditError: it has over :data:`MAX_EDITS`.
    """
    if number > MAX_EDITS:
        raise EditError(f"the answer has over {MAX_EDITS} parts; give fewer and larger ones")


def splice(text: str, start: int, count: int, new: Sequence[str]) -> str:
    """Replace ``count`` lines from index ``start`` by bare lines; the others stay as they are."""
    newline, lines = newline_of(text), split_lines(text)
    before, after = lines[:start], lines[start + count :]
    if before and not before[-1].endswith("\n"):
        before[-1] += newline
    return "".join([*before, *(line + newline for line in new), *after])


def check_file(name: str, old: str, new: str) -> None:
    """See that the new text of a file can be run.

    Raises:
        EditError: it is empty or too long, holds NUL characters, has a comment in place of code, or
            is no valid Python.
    """
    if not new.strip():
        raise EditError(f"{name} would be empty")
    if len(new.encode("utf-8")) > MAX_FILE:
        raise EditError(f"{name} would grow over {MAX_FILE} bytes")
    if "\0" in new:
        line = new[: new.index("\0")].count("\n") + 1
        raise EditError(f"{name}, line {line}: there is a NUL character")
    _check_elision(name, old, new)
    if name.endswith(".py") and (problem := python_problem(new)):
        raise EditError(f"{name} would be no valid Python: {problem}")


def _check_elision(name: str, old: str, new: str) -> None:
    known = set(old.splitlines())
    for number, line in enumerate(new.splitlines(), 1):
        if line not in known and any(p.match(line[:MAX_WIDTH]) for p in _ELISIONS):
            raise EditError(
                f"{name}, line {number}: the comment {line.strip()[:120]!r} stands for code that is"
                " left out; write that code, or leave it out of the edit"
            )


def python_problem(text: str) -> str:
    """Return why a text does not compile as Python, with the line; empty if it does."""
    if len(text) > MAX_FILE:
        return f"it has over {MAX_FILE} characters"
    try:
        parse(text)
    except SyntaxError as error:
        shown = (error.text or "").strip()[:200]
        return f"line {error.lineno}: {error.msg}" + (f": {shown!r}" if shown else "")
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
