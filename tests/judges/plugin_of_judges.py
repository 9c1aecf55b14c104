"""A plugin with judges of its own."""

from __future__ import annotations

import speedkit
from speedkit.core.components import Judge, Judgement


class FixedJudge(Judge):
    """Gives every node the same score."""

    score = 0.5

    def judge(self, request):
        return Judgement(self.score, [{"change": "an \x1b[31mescape"}])


class WrongJudge(FixedJudge):
    score = float("nan")


@speedkit.hookimpl
def register_judges(register):
    """Offer the judges."""
    register("fixed", FixedJudge)
    register("wrong", WrongJudge)
