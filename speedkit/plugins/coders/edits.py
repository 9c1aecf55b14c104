"""From the reply of a model to changed files, completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from speedkit.core.prompting import END_MARKER
from speedkit.plugins.coders._search_replace import search_replace
from speedkit.plugins.coders._text import EditError, check_file, reply_lines, without_end
from speedkit.plugins.coders._udiff import udiff
from speedkit.plugins.coders._whole import whole

__all__ = ["FORMATS", "EditError", "EditResult", "apply_reply", "is_complete"]

FORMATS: Mapping[
    str, Callable[[Sequence[str], Mapping[str, str], Sequence[str]], dict[str, str]]
] = {"whole": whole, "search_replace": search_replace, "udiff": udiff}
"""The function of each edit format: from lines of a reply, files and editable names to the
files that change."""


@dataclass(frozen=True)
class EditResult:
    """The files after an edit.

    Attributes:
        files: all files, text by name.
        changed: names of those that differ from before.
    """

    files: Mapping[str, str]
    changed: tuple[str, ...]


def apply_reply(
    text: str,
    files: Mapping[str, str],
    fmt: str,
    editable: Sequence[str],
    *,
    finished: bool = False,
) -> EditResult:
    """Apply the edits of a reply, all or none.

    A reply may be cut between two edits without a trace. Its end is proved by the last line
    that the format asks for, or else by the word of the server.

    Args:
        text: the reply.
        files: the files as they are, text by name.
        fmt: one of :data:`FORMATS`.
        editable: names of the files that may change; nothing else ever does.
        finished: the server says that the model ended the reply by itself.

    Raises:
        EditError: the reply cannot be used; the message tells the model why.
    """
    lines, ended = without_end(reply_lines(text))
    if not (ended or finished):
        raise EditError(
            f"the answer breaks off: its last line is not {END_MARKER}; if it grew too long, make"
            " fewer and smaller edits"
        )
    given = FORMATS[fmt](lines, {name: files[name] for name in editable}, editable)
    changed = {name: new for name, new in given.items() if new != files[name]}
    if not changed:
        raise EditError("the edit changes nothing: the result is the file as it was")
    for name, new in changed.items():
        check_file(name, files[name], new)
    return EditResult({**files, **changed}, tuple(changed))


def is_complete(text: str) -> bool:
    """Whether a reply has the last line that proves its end."""
    return without_end(text.replace("\r", "\n").split("\n"))[1]
