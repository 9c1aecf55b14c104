"""What each node changed in its parent's code, from the git history of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speedkit.analysis.report.text import Excerpt, head, subject

if TYPE_CHECKING:
    from speedkit.core.history import GitHistory
    from speedkit.core.node import Node
    from speedkit.core.run import Run

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass
class Differences:
    """Reads differences while it is open; a damaged history gives a note instead.

    Args:
        lines: the most lines of one difference.
        clean: takes secrets out of a text.
    """

    state: Run
    lines: int
    clean: Callable[[str], str]
    _history: GitHistory | None = None
    _problem: str = ""
    _errors: tuple[type[Exception], ...] = ()

    def __enter__(self) -> Differences:
        from git.exc import GitError
        from gitdb.exc import ODBError

        from speedkit.core.errors import RunDirectoryError
        from speedkit.core.history import GitHistory

        self._errors = (GitError, ODBError, OSError, ValueError, RunDirectoryError)
        try:
            self._history = GitHistory(self.state.directory.path / "repo")
        except self._errors as error:
            self._problem = f"the git history cannot be read: {subject(str(error))}"
        return self

    def __exit__(self, *error: object) -> None:
        if self._history is not None:
            self._history.close()

    def of(self, node: Node) -> Excerpt:
        """Return the difference between a node and its parent, or why there is none."""
        if node.parent is None:
            return Excerpt((), "the start record has no parent")
        if self._history is None:
            return Excerpt((), self._problem)
        old, new = self.state.tree[node.parent].commit, node.commit
        if not (_COMMIT.fullmatch(old) and _COMMIT.fullmatch(new)):
            return Excerpt((), "the journal names no commit")
        try:
            text = self._history.diff(old, new)
        except self._errors as error:
            return Excerpt((), f"git cannot compare it: {subject(str(error))}")
        found = head(self.clean(text), self.lines)
        return found if found.lines else Excerpt((), "the code is that of its parent")
