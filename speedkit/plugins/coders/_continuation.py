"""Join the parts of a reply that was cut off at the limit on output tokens."""

from __future__ import annotations

from collections.abc import Sequence

from speedkit.plugins.coders._names import Fence, opening

MAX_REPEATED = 40
"""Lines of the first part that the second may repeat at its start."""


def complete_lines(text: str) -> str:
    """Return a cut reply up to its last complete line with text; empty if there is none."""
    text = text.replace("\r\n", "\n")
    kept = text[: text.rfind("\n") + 1].rstrip()
    return kept + "\n" if kept else ""


def last_line(text: str) -> str:
    """Return the last line of what :func:`complete_lines` returned."""
    return text.rstrip("\n").rsplit("\n", 1)[-1]


def join_parts(kept: str, more: str) -> str:
    """Append a continuation, without the lines at its start that repeat the end of ``kept``.

    Args:
        kept: as :func:`complete_lines` returned it.
        more: what the model wrote next; asked to, it repeats the last line.
    """
    before = kept.rstrip("\n").split("\n")
    after = more.replace("\r\n", "\n").lstrip("\n").split("\n")
    fence = opening(after[0])
    if fence and fence.info and _open_fence(before):
        after = after[1:]
    return kept + "\n".join(after[_repeated(before, after) :])


def _repeated(before: Sequence[str], after: Sequence[str]) -> int:
    """Return how many lines at the start of ``after`` end ``before``; of several counts the least.

    The least, because code may hold the same line twice in a row.
    """
    ends = [line.rstrip() for line in before[-MAX_REPEATED:]]
    starts = [line.rstrip() for line in after[:MAX_REPEATED]]
    most = min(len(ends), len(starts))
    return next((n for n in range(1, most + 1) if ends[-n:] == starts[:n]), 0)


def _open_fence(lines: Sequence[str]) -> bool:
    current: Fence | None = None
    for line in lines:
        if current is None:
            current = opening(line)
        elif current.closed_by(line):
            current = None
    return current is not None
