"""What aider's own logs say: replies, tokens, cost, and why there is no reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SECTION = re.compile(
    r"^(TO LLM|LLM RESPONSE) \d{4}-\d\d-\d\dT[\d:]{8}$(.*?)(?=^(?:TO LLM|LLM RESPONSE) \d|\Z)",
    re.MULTILINE | re.DOTALL,
)
_ERROR = re.compile(r"^> litellm\.(\w+): (.*?)\s*$", re.MULTILINE)
_LIMIT = re.compile(r"^> Model .{1,200} has hit a token limit!", re.MULTILINE)
_GAVE_UP = re.compile(r"^> Only \d+ reflections allowed, stopping", re.MULTILINE)
_PREFIX = re.compile(r"^(?:\w+(?:Error|Exception)(?:: | - ))+")
_UNKNOWN = ("", "None")


@dataclass(frozen=True)
class Sent:
    """A reply that aider counted.

    Attributes:
        model: the model by aider's account; None if it keeps the name to itself.
        input: tokens of the prompt; 0, together with ``output``, if the server did not count.
        output: tokens of the reply.
        cost: dollars by aider's prices; 0 if it knows none.
        edit_format: aider's name of the format that it asked for.
    """

    model: str | None
    input: int
    output: int
    cost: float
    edit_format: str = ""


@dataclass(frozen=True)
class Events:
    """The analytics log of one aider process.

    Attributes:
        starts: messages that aider began to send, those under way included.
        sent: the replies that came, in their order.
    """

    starts: int
    sent: tuple[Sent, ...]

    @classmethod
    def parse(cls, text: str) -> Events:
        """Read the log; a last line that is not written to its end is left out."""
        events = list(_events(text))
        return cls(
            starts=sum(name == "message_send_starting" for name, _ in events),
            sent=tuple(_sent(facts) for name, facts in events if name == "message_send"),
        )

    @property
    def awaiting(self) -> bool:
        """Whether the last message has no reply, or none yet."""
        return self.starts > len(self.sent)


def _events(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line in text.split("\n")[:-1]:
        try:
            event = json.loads(line)
            yield str(event["event"]), dict(event["properties"])
        except (ValueError, TypeError, KeyError):
            continue


def _sent(facts: Mapping[str, Any]) -> Sent:
    model = str(facts.get("main_model", ""))
    known = model not in _UNKNOWN and not model.endswith("/REDACTED")
    return Sent(
        model=model if known else None,
        input=int(_number(facts.get("prompt_tokens"))),
        output=int(_number(facts.get("completion_tokens"))),
        cost=_number(facts.get("cost")),
        edit_format=str(facts.get("edit_format", "")),
    )


def _number(value: object) -> float:
    usable = isinstance(value, (int, float)) and 0 <= value < 1e12
    return float(value) if usable and isinstance(value, (int, float)) else 0.0


@dataclass(frozen=True)
class Talk:
    """The history of requests and replies of one aider process.

    Attributes:
        prompts: the text of each request, retries included.
        replies: the text of each reply, empty where none came.
    """

    prompts: tuple[str, ...]
    replies: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Talk:
        """Read the history; in it every line of a message is marked with its role."""
        parts = [(match[1], match[2]) for match in _SECTION.finditer(text)]
        return cls(
            tuple(body for kind, body in parts if kind == "TO LLM"),
            tuple(_spoken(body) for kind, body in parts if kind == "LLM RESPONSE"),
        )


def _spoken(body: str) -> str:
    lines = (line for line in body.split("\n") if line.startswith("ASSISTANT"))
    return "\n".join(line.removeprefix("ASSISTANT").removeprefix(" ") for line in lines).strip("\n")


@dataclass(frozen=True)
class Trouble:
    """Why a reply did not come or could not be used, by the chat history.

    Attributes:
        error: class of the last error of the provider; empty if there was none.
        words: its message.
        limit: the model's limit on tokens was hit.
        gave_up: edits still did not apply when aider stopped to ask again.
    """

    error: str
    words: str
    limit: bool
    gave_up: bool

    @classmethod
    def parse(cls, chat: str) -> Trouble:
        """Read the chat history, in which aider's own words are quoted."""
        errors = _ERROR.findall(chat)
        error, words = errors[-1] if errors else ("", "")
        limit, gave_up = bool(_LIMIT.search(chat)), bool(_GAVE_UP.search(chat))
        return cls(error, _PREFIX.sub("", words), limit, gave_up)
