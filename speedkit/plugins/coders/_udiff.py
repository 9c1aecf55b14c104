"""The edit format ``udiff``: unified diffs, placed by their text and not by line numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from speedkit.plugins.coders._matching import Edit, apply_edit
from speedkit.plugins.coders._names import name_above, only, opening, sole
from speedkit.plugins.coders._text import EditError, check_count

_REFUSED = {
    "new file mode": "created",
    "deleted file mode": "deleted",
    "old mode": "given another mode",
    "new mode": "given another mode",
    "rename ": "renamed",
    "copy ": "copied",
    "similarity index": "renamed",
    "GIT binary patch": "changed as binary data",
    "Binary files": "changed as binary data",
}


def udiff(
    lines: Sequence[str], files: Mapping[str, str], editable: Sequence[str]
) -> dict[str, str]:
    """Return the files that change, after all hunks of a reply.

    Raises:
        EditError: the reply, or one of its hunks, cannot be used.
    """
    changed: dict[str, str] = {}
    number = 0
    for name, block in _blocks(lines, editable):
        for edit in _Reader(name, editable, number).read(block):
            number += 1
            text = changed.get(edit.name, files[edit.name])
            changed[edit.name] = apply_edit(text, edit)
    if not changed:
        raise EditError(
            "there is no edit in the answer: give a unified diff, with a line @@ before each hunk,"
            " in a block between ```diff and ```"
        )
    return changed


def _blocks(
    lines: Sequence[str], editable: Sequence[str]
) -> Iterator[tuple[str | None, Sequence[str]]]:
    """Yield the fenced diffs, each with the name that stands above it."""
    index, count = 0, 0
    while index < len(lines):
        fence = opening(lines[index])
        if fence is None:
            index += 1
            continue
        count += 1
        check_count(count)
        ends = (i for i in range(index + 1, len(lines)) if fence.closed_by(lines[i]))
        end = next(ends, None)
        if end is None:
            raise EditError(f"the block from line {index + 1} on is cut off: no fence ends it")
        block = lines[index + 1 : end]
        if any(line.startswith("@@") for line in block) or fence.language in ("diff", "udiff"):
            yield name_above(lines, index, editable), block
        index = end + 1


@dataclass
class _Hunk:
    name: str
    number: int
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    changes: int = 0
    blanks: int = 0
    """Empty lines at the end so far, which may be no part of the hunk."""

    def add(self, line: str) -> None:
        sign, text = line[:1], line[1:]
        if sign in ("", " ", "-"):
            self.before.append(text)
        if sign in ("", " ", "+"):
            self.after.append(text)
        self.changes += sign in ("-", "+") and bool(sign)
        self.blanks = self.blanks + 1 if not sign else 0

    def edit(self) -> Edit:
        what = f"hunk {self.number}"
        if not self.changes:
            raise EditError(f"{what} has no line that begins with - or +")
        before = self.before[: len(self.before) - self.blanks]
        after = self.after[: len(self.after) - self.blanks]
        return Edit(self.name, what, ((tuple(before), tuple(after)),))


class _Reader:
    """Reads the hunks of one block."""

    def __init__(self, name: str | None, editable: Sequence[str], number: int) -> None:
        self.name, self.editable, self.number = name, editable, number
        self.hunk: _Hunk | None = None

    def read(self, block: Sequence[str]) -> Iterator[Edit]:
        """Yield the hunks as edits."""
        skip = False
        for i, line in enumerate(block):
            following = block[i + 1] if i + 1 < len(block) else ""
            if skip:
                skip = False
            elif line.startswith("--- ") and following.startswith("+++ "):
                yield from self._end()
                self.name = self._header(line, following)
                skip = True
            elif line.startswith("@@"):
                yield from self._end()
                self._begin()
            elif line.startswith("diff --git "):
                yield from self._end()
            elif not line.startswith("\\ No newline"):
                self._body(line)
        yield from self._end()

    def _header(self, old: str, new: str) -> str:
        names = {_path(old), _path(new)}
        if "/dev/null" in names:
            raise EditError(f"files cannot be created or deleted; {only(self.editable)}")
        if len(names) > 1 and names <= {f"{p}{n}" for p in ("", "a/", "b/") for n in self.editable}:
            names = {name[2:] if name[:2] in ("a/", "b/") else name for name in names}
        for name in sorted(names):
            if name not in self.editable:
                raise EditError(f"{name[:200]!r} cannot be changed; {only(self.editable)}")
        if len(names) > 1:
            raise EditError("files cannot be renamed: the lines --- and +++ name different ones")
        return names.pop()

    def _begin(self) -> None:
        self.number += 1
        check_count(self.number)
        name = sole(self.name, self.editable, f"hunk {self.number}")
        self.hunk = _Hunk(name, self.number)

    def _body(self, line: str) -> None:
        if self.hunk is None:
            self._refuse_special(line)
            if line[:1] not in ("-", "+", " "):
                return
            self._begin()
        if self.hunk is not None:
            if line[:1] not in ("", " ", "-", "+"):
                raise EditError(
                    f"hunk {self.number}: the line {line[:200]!r} begins with neither a space nor"
                    " - nor +"
                )
            self.hunk.add(line)

    def _refuse_special(self, line: str) -> None:
        for head, what in _REFUSED.items():
            if line.startswith(head):
                raise EditError(f"files cannot be {what}; only their lines can be changed")

    def _end(self) -> Iterator[Edit]:
        if self.hunk is not None:
            yield self.hunk.edit()
        self.hunk = None


def _path(header: str) -> str:
    return header[4:].split("\t")[0].strip().strip('"')
