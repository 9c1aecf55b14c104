"""The judge that compares syntax trees and needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speedkit.core.components import Judge, Judgement, JudgeRequest
from speedkit.core.errors import SpeedkitError
from speedkit.plugins.judges._changes import Edit, edits, shares
from speedkit.plugins.judges._names import Words, align
from speedkit.plugins.judges._syntax import MODULE, read_script


class DiffJudge(Judge):
    """Counts the statements of the human change that the agent's change has too.

    Comments, docstrings, annotations, formatting and the names of variables, functions and
    classes do not matter. A statement that was changed in another way earns the share of what
    is new in it. The score is the mean over the statements that the human changed.
    """

    def judge(self, request: JudgeRequest) -> Judgement:
        """Return the score.

        Raises:
            SpeedkitError: a script does not parse, or the records differ in no statement.
        """
        start = _words(request.start)
        target = align(start, _words(request.human))
        agent = align(target, align(start, _words(request.agent)), fixed=start)
        human, own = edits(start, target), edits(start, agent)
        if not human:
            raise SpeedkitError("the two records differ in no statement, so there is no score")
        found = shares(human, own)
        table = [_row(edit, share) for edit, share in zip(human, found.human, strict=True)]
        details = {
            "human_statements": len(human),
            "agent_statements": len(own),
            "precision": sum(found.agent) / len(own) if own else None,
        }
        return Judgement(sum(found.human) / len(human), table, details)


def _words(files: Mapping[str, str]) -> Words:
    """Return the Python files of a node as one script."""
    return Words.of(read_script("\n".join(files[n] for n in sorted(files) if n.endswith(".py"))))


def _row(edit: Edit, share: float) -> dict[str, Any]:
    before = edit.old.text if edit.old else None
    after = edit.new.text if edit.new else None
    where = "" if edit.scope == MODULE else f"{edit.scope}: "
    what = after if before is None else f"{before} -> {after}" if after else f"{before} removed"
    return {
        "change": f"{where}{what}",
        "score": round(share, 4),
        "weight": 1,
        "scope": edit.scope,
        "before": before,
        "after": after,
    }
