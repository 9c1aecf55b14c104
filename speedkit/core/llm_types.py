"""The words of a talk with a language model: settings, reply and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from speedkit.core.errors import SpeedkitError
from speedkit.core.ledger import Usage
from speedkit.core.redact import Redactor

Message = Mapping[str, str]
"""A message of a talk: ``role`` (``user`` or ``assistant``) and ``content``."""

CacheMode = Literal["off", "record", "replay"]
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class LLMError(SpeedkitError):
    """A call gave no reply in spite of all retries; another call may well succeed."""


class ContextOverflow(LLMError):
    """The prompt is too long for the model; a shorter one may do."""


class LLMRefused(SpeedkitError):
    """The provider refuses all such calls (key, model, request); the run cannot go on."""


class LLMStopped(SpeedkitError):
    """The client was told to stop while a call was under way."""


class LLMSettings(BaseModel):
    """How a language model is called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="PROVIDER/NAME as litellm knows it, for example openai/gpt-4.1")
    api_base: str | None = Field(None, description="URL of an OpenAI-compatible or other server")
    api_key_env: str | None = Field(
        None, description="environment variable that holds the key, if not the provider's usual one"
    )
    temperature: float | None = Field(None, ge=0, description="sampling temperature")
    reasoning_effort: str | None = Field(
        None, description="effort of reasoning models: low, medium, high, ..."
    )
    max_output_tokens: int | None = Field(None, gt=0, description="limit on tokens of one reply")
    stream: bool = Field(False, description="receive replies in pieces, and notice a stall sooner")
    timeout_s: float = Field(600, gt=0, description="seconds for one attempt")
    stall_s: float = Field(
        120, gt=0, description="seconds to the first piece of a streamed reply, and between two"
    )
    deadline_s: float = Field(1800, gt=0, description="seconds for one call, all attempts together")
    max_retries: int = Field(
        6, ge=0, description="retries after errors; a server that asks to wait does not use them up"
    )
    max_cost: float | None = Field(None, ge=0, description="limit in dollars for the run")
    max_tokens: int | None = Field(None, ge=0, description="limit in tokens for the run")
    price_in: float | None = Field(None, ge=0, description="dollars per million input tokens")
    price_out: float | None = Field(None, ge=0, description="dollars per million output tokens")
    cache: Path | None = Field(None, description="file that keeps replies for replay")
    cache_mode: CacheMode = Field(
        "record",
        description="record: ask only what the cache lacks; replay: never ask; off: no cache",
    )
    concurrency: int = Field(8, gt=0, description="most calls at once; fewer after a 429")

    @field_validator("api_base")
    @classmethod
    def _holds_no_key(cls, value: str | None) -> str | None:
        if value is not None and Redactor().clean(value) != value:
            raise ValueError("the address holds a key; put that into a variable: llm.api_key_env")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value and (not _VARIABLE.fullmatch(value) or Redactor().clean(value) != value):
            raise ValueError("give the name of the variable that holds the key, not the key")
        return value


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the reply without reasoning and without secrets.
        reasoning: what the model said that it thought; empty if it did not say.
        model_served: the model that answered, by its own account.
        usage: tokens; of a cached reply, those of the original call.
        cost: dollars, 0 for a cached reply; None if the price is unknown.
        finish_reason: ``stop``, ``length`` (cut off), ``content_filter``, ``refusal``, ...
        cached: the reply came from the cache of replies.
        estimated: the server did not count tokens, so they are estimated.
        seconds: from the first attempt to the reply.
        attempts: how many requests were sent; 0 for a cached reply.
    """

    text: str
    model_served: str | None
    usage: Usage
    cost: float | None
    finish_reason: str
    cached: bool = False
    estimated: bool = False
    reasoning: str = ""
    request_id: str = ""
    seconds: float = 0.0
    attempts: int = 1

    @property
    def truncated(self) -> bool:
        """Whether the reply was cut off at the limit on output tokens."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Answer:
    """What one successful attempt brought.

    Attributes:
        usage: None if the server did not count.
        cost: dollars by the price table; None if the price is unknown.
    """

    text: str
    reasoning: str
    model_served: str | None
    usage: Usage | None
    cost: float | None
    finish_reason: str


_THOUGHT = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_THOUGHT_END = re.compile(r"</think>")


def split_reasoning(text: str) -> tuple[str, str]:
    """Return the text without the ``<think>`` part at its start, and that part.

    Some servers put the opening tag into the prompt, so that only the closing one arrives.
    """
    match = _THOUGHT.match(text)
    if match:
        return text[match.end() :].lstrip(), match.group(2).strip()
    end = _THOUGHT_END.search(text)
    if end and "<think>" not in text[: end.start()]:
        return text[end.end() :].lstrip(), text[: end.start()].strip()
    return text, ""


_BYTES_PER_TOKEN = {"claude": 2.5, "llama-2": 2.5, "codellama": 2.5, "mistral": 2.5, "mixtral": 2.5}


def estimate_tokens(text: str, model: str = "") -> int:
    """Return how many tokens a text has at most, roughly; needs neither network nor tokenizer.

    Code has 3 to 4 bytes a token with most vocabularies; less with small ones.
    """
    name = model.lower()
    ratio = next((value for key, value in _BYTES_PER_TOKEN.items() if key in name), 3.0)
    return int(len(text.encode("utf-8", "replace")) / ratio) + 1
