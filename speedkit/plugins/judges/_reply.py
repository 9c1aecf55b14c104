"""Strict reading of what a model answers as a judge."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_CHANGES = 20
"""Key changes of a record."""
MAX_AGENT_CHANGES = 100
MAX_REPLY = 200_000
"""Characters; a longer reply is none."""
TOLERANCE = 20
"""Points of percentage by which the model's sum may differ from that of its own table."""
MIN_EVIDENCE = 3
"""Characters without blanks from which a line shows anything."""

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)
_Text = Annotated[str, Field(max_length=4000)]
_Model = TypeVar("_Model", bound="_Strict")


class MalformedReply(Exception):
    """A reply that does not have the form asked for; the message says why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class KeyChange(_Strict):
    """A change that the human made; ``weight`` from 1 to 5."""

    title: Annotated[str, Field(min_length=1, max_length=300)]
    description: _Text
    weight: Annotated[int, Field(ge=1, le=5)]


class KeyChanges(_Strict):
    """The reply to the first question."""

    changes: Annotated[list[KeyChange], Field(min_length=1, max_length=MAX_CHANGES)]


class AgentChange(_Strict):
    """A change that the agent made, and the ids of those that it reproduces."""

    change: _Text
    reproduces: Annotated[list[str], Field(max_length=MAX_CHANGES)]


class HumanChange(_Strict):
    """How much of a key change is there, in percent, and a line that shows it."""

    id: str
    reason: _Text
    evidence: _Text
    reproduced: Annotated[int, Field(ge=0, le=100)]


class Comparison(_Strict):
    """The reply to the second question."""

    agent_changes: Annotated[list[AgentChange], Field(min_length=1, max_length=MAX_AGENT_CHANGES)]
    human_changes: Annotated[list[HumanChange], Field(min_length=1, max_length=MAX_CHANGES)]
    percentage: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    marker: str


def read_key_changes(text: str) -> list[KeyChange]:
    """Read the reply to the first question.

    Raises:
        MalformedReply: it is not of the form asked for.
    """
    return _read(KeyChanges, text).changes


def read_comparison(
    text: str, weights: dict[str, int], marker: str, changed: Collection[str]
) -> Comparison:
    """Read the reply to the second question, and see that it holds together.

    Args:
        weights: weight of each key change by id.
        marker: what the reply must repeat.
        changed: the lines that the attempt added or removed.

    Raises:
        MalformedReply: it is not of the form asked for, names other ids, gives evidence that
            the attempt does not have, or sums up to something else than its table.
    """
    reply = _read(Comparison, text)
    if reply.marker != marker:
        raise MalformedReply("`marker` is not that of this request")
    _check_ids(reply, weights)
    lines = [squeezed(line) for line in changed]
    for change in reply.human_changes:
        if change.reproduced and not _stands_in(change.evidence, lines):
            raise MalformedReply(
                f"`evidence` of {change.id} is no line that the attempt added or removed"
            )
    total = weighted(reply.human_changes, weights)
    if abs(total - reply.percentage) > TOLERANCE:
        raise MalformedReply(
            f"`percentage` is {reply.percentage:g}, but the table comes to {total:.0f}"
        )
    return reply


def weighted(changes: Sequence[HumanChange], weights: dict[str, int]) -> float:
    """Return the weighted mean of what was reproduced, in percent."""
    return sum(c.reproduced * weights[c.id] for c in changes) / sum(weights.values())


def squeezed(text: str) -> str:
    """Return a text without blanks."""
    return "".join(text.split())


def _check_ids(reply: Comparison, weights: Collection[str]) -> None:
    ids = [c.id for c in reply.human_changes]
    if sorted(ids) != sorted(weights):
        raise MalformedReply("`human_changes` must have each id of the list once, and no other")
    named = {i for change in reply.agent_changes for i in change.reproduces}
    if named - set(weights):
        raise MalformedReply("`reproduces` names an id that is not in the list")
    for change in reply.human_changes:
        if change.reproduced and change.id not in named:
            raise MalformedReply(f"no entry of `agent_changes` reproduces {change.id}")


def _stands_in(evidence: str, lines: Sequence[str]) -> bool:
    """Whether every line of the evidence is part of one of the given lines."""
    pieces = [squeezed(piece.strip().lstrip("+-")) for piece in evidence.strip().splitlines()]
    return bool(pieces) and all(
        len(piece) >= MIN_EVIDENCE and any(piece in line for line in lines) for piece in pieces
    )


# --- JSON -------------------------------------------------------------------------------


def _read(model: type[_Model], text: str) -> _Model:
    try:
        return model.model_validate(_json_object(text))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise MalformedReply(f"{where}: {first['msg']}") from None


def _json_object(text: str) -> Any:
    """Return the JSON object that a reply consists of, alone or in one fence."""
    text = text.strip()
    if len(text) > MAX_REPLY:
        raise MalformedReply("it is too long")
    if match := _FENCED.fullmatch(text):
        text = match[1]
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except RecursionError:
        raise MalformedReply("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedReply(f"it is not one JSON object and nothing else ({error})") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedReply("a key stands twice in one object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise MalformedReply(f"{constant} is no number")
