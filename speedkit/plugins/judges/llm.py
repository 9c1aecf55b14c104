"""The judge that asks a language model."""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from speedkit.core.components import Judge, Judgement, JudgeRequest, Options, Services
from speedkit.core.errors import SpeedkitError
from speedkit.core.files import printable
from speedkit.core.llm_types import LLMError, Message, Reply
from speedkit.core.prompting import Templates, changelog, head_and_tail
from speedkit.plugins.judges._reply import (
    MAX_CHANGES,
    Comparison,
    KeyChange,
    MalformedReply,
    read_comparison,
    read_key_changes,
    weighted,
)
from speedkit.plugins.judges._syntax import plain

if TYPE_CHECKING:
    from speedkit.core.llm import LLM

MAX_ECHO_TOKENS = 4000
"""Tokens of an answer that could not be used and is shown to the model again."""
_WITHHELD = ("content_filter", "refusal")
_T = TypeVar("_T")


class LLMJudgeOptions(Options):
    """Options of the judge ``llm``."""

    tries: int = Field(
        3, ge=1, le=10, description="how often a question is asked until the answer can be used"
    )
    prompts: Path | None = Field(
        None, description="folder of templates that replace the built-in ones"
    )


class LLMJudge(Judge):
    """Lets a model name the key changes of the human, then look for each in the agent's code.

    The key changes come from the records alone, so no code of the agent can bear on them or
    on their weights. The agent's code is shown without comments and docstrings, as data
    between markers that it cannot know. The score is computed from the table: a change counts
    only with a line of the agent's change to show for it. A change that leaves the code as it
    was scores 0, and nobody is asked.
    """

    needs_model = True
    Options = LLMJudgeOptions
    options: LLMJudgeOptions

    def bind(self, services: Services) -> None:
        """Load the templates."""
        super().bind(services)
        self.templates = Templates(self.options.prompts)
        self._key_changes: dict[str, list[KeyChange]] = {}

    def judge(self, request: JudgeRequest) -> Judgement:
        """Return the score.

        Raises:
            SpeedkitError: a script does not parse, or the records differ in no statement.
            LLMError: no usable answer came.
        """
        start, human, agent = map(_plain, (request.start, request.human, request.agent))
        human_diff, agent_diff = _diff(start, human), _diff(start, agent)
        if not human_diff:
            raise SpeedkitError("the two records differ in no statement, so there is no score")
        if not agent_diff:
            return Judgement(0.0, (), {"asked": False, "note": "the code is the start script's"})
        changes = self._changes(request, human_diff)
        trial = _Trial.of(self.services.llm(), changes, human_diff, agent_diff)
        reply, model = self._ask(
            "judge_compare",
            request.log_dir,
            lambda text: read_comparison(text, trial.weights, trial.marker, _changed(agent_diff)),
            task=request.task.name,
            changes=trial.listed,
            marker=trial.marker,
            human_diff="\n".join(human_diff),
            agent_diff="\n".join(agent_diff),
        )
        return _judgement(trial, reply, model)

    def _changes(self, request: JudgeRequest, human_diff: Sequence[str]) -> list[KeyChange]:
        """Return the key changes of the human, asked for once for each pair of records."""
        text = "\n".join(human_diff)
        if text not in self._key_changes:
            self._key_changes[text], _ = self._ask(
                "judge_changes",
                request.log_dir,
                read_key_changes,
                task=request.task.name,
                changelog=changelog(request.task),
                human_diff=text,
                marker=_marker(_chance(self.services.llm(), text)),
                most=MAX_CHANGES,
            )
        return self._key_changes[text]

    def _ask(
        self, template: str, log_dir: Path, read: Callable[[str], _T], **slots: Any
    ) -> tuple[_T, str | None]:
        """Ask until the answer can be read; return it, and the model that gave it."""
        messages: list[Message] = [
            {"role": "user", "content": self.templates.render(template, **slots)}
        ]
        problem = ""
        for sample in range(self.options.tries):
            reply = self.services.llm().complete(
                messages,
                system=self.templates.render("judge_system"),
                purpose=template,
                sample=sample,
                log_dir=log_dir,
            )
            try:
                return read(_whole(reply)), reply.model_served
            except MalformedReply as error:
                problem = printable(str(error))[:500]
            again = self.templates.render("judge_again", error=problem)
            messages = [messages[0], *_exchange(reply.text, again)]
        model = self.services.llm().settings.model
        raise LLMError(f"{model} gave no usable judgement in {self.options.tries} tries: {problem}")


@dataclass(frozen=True)
class _Trial:
    """What one comparison is made with: key changes under ids, and a marker for the data."""

    listed: tuple[dict[str, Any], ...]
    marker: str

    @classmethod
    def of(
        cls, llm: LLM, changes: Sequence[KeyChange], human: Sequence[str], agent: Sequence[str]
    ) -> _Trial:
        """Draw ids and marker."""
        chance = _chance(llm, "\0".join((*human, *agent)))
        ids = chance.sample(range(0x1000, 0x10000), len(changes))
        listed = tuple(
            {"id": f"c{i:x}", **change.model_dump()} for i, change in zip(ids, changes, strict=True)
        )
        return cls(listed, _marker(chance))

    @property
    def weights(self) -> dict[str, int]:
        """Weight of each key change by id."""
        return {change["id"]: change["weight"] for change in self.listed}


def _chance(llm: LLM, text: str) -> random.Random:
    """Return where ids and markers come from, which no code that is judged can foresee.

    Where replies are kept for replay, the same question must come out the same again: then
    they follow from a digest of all that is compared, the code itself included.
    """
    if llm.settings.cache is None:
        return random.SystemRandom()
    return random.Random(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest())


def _marker(chance: random.Random) -> str:
    return f"{chance.getrandbits(64):016x}"


def _judgement(trial: _Trial, reply: Comparison, model: str | None) -> Judgement:
    found = {change.id: change for change in reply.human_changes}
    titles = {change["id"]: change["title"] for change in trial.listed}
    table = [
        {
            "change": change["title"],
            "score": found[change["id"]].reproduced / 100,
            "weight": change["weight"],
            "description": change["description"],
            "reason": found[change["id"]].reason,
            "evidence": found[change["id"]].evidence,
        }
        for change in trial.listed
    ]
    details = {
        "asked": True,
        "model": model,
        "percentage": reply.percentage,
        "agent_changes": [
            {"change": c.change, "reproduces": [titles[i] for i in c.reproduces]}
            for c in reply.agent_changes
        ],
    }
    return Judgement(weighted(reply.human_changes, trial.weights) / 100, table, details)


def _whole(reply: Reply) -> str:
    if reply.truncated:
        raise MalformedReply("it was cut at the output limit; be brief")
    if reply.finish_reason in _WITHHELD:
        raise MalformedReply(f"the provider withheld it ({reply.finish_reason})")
    return reply.text


def _exchange(answer: str, asked: str) -> list[Message]:
    shown = head_and_tail(answer, MAX_ECHO_TOKENS, head=0.5).strip() or "(an empty answer)"
    return [{"role": "assistant", "content": shown}, {"role": "user", "content": asked}]


# --- what is compared -------------------------------------------------------------------


def _plain(files: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        name: printable(plain(text)).splitlines()
        for name, text in sorted(files.items())
        if name.endswith(".py")
    }


def _diff(old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        line
        for name in sorted(old.keys() | new.keys())
        for line in difflib.unified_diff(
            old.get(name, ()), new.get(name, ()), name, name, lineterm=""
        )
    ]


def _changed(diff: Sequence[str]) -> list[str]:
    """Return the lines that a difference adds or removes, without their sign."""
    return [x[1:] for x in diff if x[:1] in ("+", "-") and x[:3] not in ("+++", "---")]
