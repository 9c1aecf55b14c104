"""One attempt at one model: what is sent, what comes back, and what went wrong."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import math
import os
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from speedkit.core.errors import UsageError
from speedkit.core.files import printable
from speedkit.core.ledger import Usage
from speedkit.core.llm_retry import retry_after_s
from speedkit.core.llm_types import Answer, LLMRefused, LLMSettings, Message, split_reasoning

MAX_REPLY_CHARS = 4_000_000
"""A longer reply counts as garbage."""

MAX_WORDS = 4000
"""Characters of an error message that are looked at."""

DEFAULT_OUTPUT_TOKENS = 32_768
"""What is set aside for a reply of a model whose limit nobody knows."""

ABANDON_S = 5.0
"""How long after its time-out an attempt may linger before it is left to itself."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PREFIX = re.compile(r"^(?:litellm\.)?(?:\w+(?:Error|Exception|Timeout): |Timeout Error: |\w+ - )+")
_OVERFLOW = re.compile(
    r"ContextWindowExceeded|context_length_exceeded|exceed_context_size"
    r"|context (?:length|window|size|limit)|maximum prompt length|maximum number of tokens allowed"
    r"|(?:prompt|input) is too long|too many (?:input )?tokens",
    re.IGNORECASE,
)
_UNWELCOME = re.compile(r"content.?policy|content.?filter|safety system", re.IGNORECASE)
_NO_MONEY = re.compile(r"insufficient_quota|credit balance is too low", re.IGNORECASE)
_NO_KEY = re.compile(r"missing credentials|missing \w+ api key|api_key client option", re.I)
_REFUSALS = (400, 401, 402, 403, 404, 405, 422)


class Trouble(Enum):
    """Kinds of failed attempts."""

    TRANSIENT = "transient"
    RATE_LIMIT = "rate limit"
    REFUSED = "refused"
    OVERFLOW = "overflow"
    REJECTED = "rejected"
    """This prompt is not welcome; others may be."""


class AttemptFailed(Exception):
    """An attempt that brought no reply.

    Args:
        status: the HTTP status, None if there was none.
        retry_after_s: seconds that the server asked to wait.
        billed: whether the provider may have charged for it.
    """

    def __init__(
        self,
        trouble: Trouble,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.trouble, self.status = trouble, status
        self.retry_after_s, self.billed = retry_after_s, billed


@dataclass(frozen=True)
class Prices:
    """Dollars per token; None if unknown."""

    input: float | None
    output: float | None

    def cost(self, usage: Usage) -> float | None:
        """Return dollars, cached tokens at the full price; None if unknown."""
        if self.input is None or self.output is None:
            return None
        return usage.input * self.input + usage.output * self.output


class Provider:
    """The model of the settings, by way of litellm.

    Args:
        load: returns the litellm module; called on first use.
    """

    def __init__(self, settings: LLMSettings, load: Callable[[], Any]) -> None:
        self.settings = settings
        self._load = load

    # --- before the first call ----------------------------------------------------------

    def check(self, *, priced: bool) -> None:
        """See that the model may be asked at all.

        Args:
            priced: whether the price must be known.

        Raises:
            UsageError: the name has no provider, or the price must be known and is not.
            LLMRefused: the key is missing.
        """
        self._check_name()
        self._check_key()
        if priced and self.prices.cost(Usage()) is None:
            raise UsageError(
                f"the price of {self.settings.model} is unknown, so a limit on cost cannot be kept;"
                " use --max-tokens, or give price_in and price_out in dollars per million tokens"
            )

    def _check_name(self) -> None:
        litellm = self._load()
        try:
            litellm.get_llm_provider(self.settings.model, api_base=self.settings.api_base)
        except litellm.BadRequestError:
            raise UsageError(
                f"no provider in the model name {self.settings.model!r}; write PROVIDER/NAME,"
                f" for example openai/{self.settings.model}"
            ) from None

    def _check_key(self) -> None:
        name = self.settings.api_key_env
        if name and not os.environ.get(name):
            raise LLMRefused(f"{self.settings.model} needs an API key: set {name}")
        missing = self.missing_variables
        # Other providers take credentials from many places; only the attempt can tell.
        simple = len(missing) == 1 and missing[0].endswith("_API_KEY")
        other = missing == ["ANTHROPIC_API_KEY"] and os.environ.get("ANTHROPIC_AUTH_TOKEN")
        if simple and not other and not self.settings.api_base:
            raise LLMRefused(f"{self.settings.model} needs an API key: set {missing[0]}")

    @property
    def missing_variables(self) -> list[str]:
        """Environment variables that the model needs and that are not set."""
        if self.settings.api_key_env:
            name = self.settings.api_key_env
            return [] if os.environ.get(name) else [name]
        found = self._load().validate_environment(self.settings.model)
        return [str(name) for name in found["missing_keys"]]

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key, as far as is known."""
        provider = self.settings.model.partition("/")[0].upper().replace("-", "_")
        guess = f"{provider}_API_KEY"
        return self.settings.api_key_env or (guess if guess in os.environ else "its variable")

    @functools.cached_property
    def _facts(self) -> Mapping[str, Any]:
        """What litellm's table says of the model; empty if it is not in it."""
        litellm = self._load()
        try:
            info = litellm.get_model_info(self.settings.model)
        except Exception:  # the class raised for an unknown model differs between versions
            return {}
        # An entry without a price is reported as one of 0 dollars.
        entry = litellm.model_cost.get(info.get("key"), {})
        if "input_cost_per_token" not in entry or "output_cost_per_token" not in entry:
            return {**info, "input_cost_per_token": None, "output_cost_per_token": None}
        return dict(info)

    @functools.cached_property
    def prices(self) -> Prices:
        """The prices: as set, or by litellm's table."""
        given = (self.settings.price_in, self.settings.price_out)
        if given != (None, None):
            return Prices(*(None if price is None else price / 1e6 for price in given))
        facts = self._facts
        return Prices(facts.get("input_cost_per_token"), facts.get("output_cost_per_token"))

    @property
    def output_limit(self) -> int:
        """The most tokens that a reply can have, as far as is known."""
        limit = self.settings.max_output_tokens or self._facts.get("max_output_tokens")
        return int(limit or DEFAULT_OUTPUT_TOKENS)

    # --- one attempt --------------------------------------------------------------------

    def start(
        self, messages: Sequence[Message], timeout_s: float
    ) -> concurrent.futures.Future[Answer]:
        """Send a request; the future is done soon after ``timeout_s``, whatever the server does.

        Its exceptions are :class:`AttemptFailed`, or ``CancelledError`` if it was cancelled.
        """
        return _run(self._attempt(messages, timeout_s))

    async def _attempt(self, messages: Sequence[Message], timeout_s: float) -> Answer:
        try:
            response = await asyncio.wait_for(self._receive(messages, timeout_s), timeout_s)
            return self._answer(response)
        except asyncio.TimeoutError:
            raise timed_out(timeout_s) from None
        except AttemptFailed:
            raise
        except Exception as error:  # litellm lets through what it does not know
            raise diagnose(error) from error

    async def _receive(self, messages: Sequence[Message], timeout_s: float) -> Any:
        litellm = self._load()
        response = await litellm.acompletion(**self._request(messages, timeout_s))
        if not self.settings.stream:
            return response
        chunks = [chunk async for chunk in response]
        # litellm adds an end to a stream that had none.
        if not chunks or getattr(response, "received_finish_reason", "unknown") is None:
            raise AttemptFailed(Trouble.TRANSIENT, "the stream ended too early", billed=True)
        whole = litellm.stream_chunk_builder(chunks)
        whole.model = chunks[0]._hidden_params.get("provider_response_model") or whole.model
        return whole

    def _request(self, messages: Sequence[Message], timeout_s: float) -> dict[str, Any]:
        settings = self.settings
        wait_s = min(timeout_s, settings.stall_s) if settings.stream else timeout_s
        options = {
            "temperature": settings.temperature,
            "reasoning_effort": settings.reasoning_effort,
            "max_tokens": settings.max_output_tokens,
            "api_base": settings.api_base,
            "api_key": self._key(),
            "stream_options": {"include_usage": True} if settings.stream else None,
        }
        return {
            "model": settings.model,
            "messages": [dict(message) for message in messages],
            "timeout": wait_s,
            "stream": settings.stream,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": True,
            **{name: value for name, value in options.items() if value is not None},
        }

    def _key(self) -> str | None:
        if self.settings.api_key_env:
            return os.environ.get(self.settings.api_key_env)
        if not self.settings.api_base or not self.missing_variables:
            return None
        return "none"  # a server of one's own wants no key, but the client insists on one

    def _answer(self, response: Any) -> Answer:
        if not response.choices or response.choices[0].message is None:
            raise AttemptFailed(Trouble.TRANSIENT, "the reply has no choices", billed=True)
        choice = response.choices[0]
        text, thought = split_reasoning(as_text(choice.message.content))
        if len(text) > MAX_REPLY_CHARS:
            message = f"the reply has {len(text):,} characters"
            raise AttemptFailed(Trouble.TRANSIENT, message, billed=True)
        extra = getattr(choice.message, "provider_specific_fields", None) or {}
        refusal = as_text(extra.get("refusal"))
        thoughts = (as_text(getattr(choice.message, "reasoning_content", "")), thought, refusal)
        reasoning = "\n\n".join(part.strip() for part in thoughts if part.strip())
        usage = read_usage(getattr(response, "usage", None))
        return Answer(
            text=text.lstrip("\n") if reasoning else text,
            reasoning=reasoning,
            model_served=str(response.model) if response.model else None,
            usage=usage,
            cost=self._cost(response, usage),
            finish_reason="refusal" if refusal and not text else str(choice.finish_reason),
        )

    def _cost(self, response: Any, usage: Usage | None) -> float | None:
        if usage is None or self.prices.cost(usage) is None:
            return None
        if self.settings.price_in is not None:
            return self.prices.cost(usage)
        litellm = self._load()
        try:  # knows the prices of cached tokens and of long prompts
            cost = litellm.completion_cost(response, model=self.settings.model)
        except Exception:  # no class of its own for a price that cannot be computed
            return self.prices.cost(usage)
        return float(cost)


def timed_out(timeout_s: float) -> AttemptFailed:
    """Return the failure of an attempt that took too long."""
    message = f"no complete reply within {timeout_s:g} s"
    return AttemptFailed(Trouble.TRANSIENT, message, billed=True)


def diagnose(error: Exception) -> AttemptFailed:
    """Return what an exception of litellm means for the call."""
    status = getattr(error, "status_code", None)
    words = (type(error).__name__, getattr(error, "code", ""), getattr(error, "body", ""), error)
    headers = _headers(error)
    trouble = _trouble(status, " ".join(map(str, words)))
    # litellm reports a broken connection as a 500, but then there are no headers.
    billed = trouble is Trouble.TRANSIENT and (status in (None, 408) or not headers)
    return AttemptFailed(
        trouble,
        _words(error),
        status=status,
        retry_after_s=retry_after_s(headers, time.time()),
        billed=billed,
    )


def _trouble(status: object, text: str) -> Trouble:
    if status == 413 or (status in (400, 422, 500) and _OVERFLOW.search(text)):
        return Trouble.OVERFLOW
    if status in (400, 422) and _UNWELCOME.search(text):
        return Trouble.REJECTED
    if status == 429:
        return Trouble.REFUSED if _NO_MONEY.search(text) else Trouble.RATE_LIMIT
    if status in _REFUSALS or _NO_KEY.search(text):
        return Trouble.REFUSED
    return Trouble.TRANSIENT


def _headers(error: Exception) -> dict[str, str]:
    headers = getattr(error, "litellm_response_headers", None)
    if not headers:
        headers = getattr(getattr(error, "response", None), "headers", None)
    return {str(name).lower(): str(value) for name, value in (headers or {}).items()}


def _words(error: Exception) -> str:
    """Return the provider's own words, on one line."""
    words, _, _ = str(error).partition("Traceback (most recent call last)")
    return _PREFIX.sub("", one_line(words) or type(error).__name__)


def one_line(text: str) -> str:
    """Return a text of a server on one line, without control characters, and bounded."""
    return " ".join(printable(text[:MAX_WORDS]).split())


def as_text(value: object) -> str:
    """Return the text of a message's content, free of what UTF-8 cannot hold."""
    if isinstance(value, list):
        value = "".join(part.get("text", "") for part in value if isinstance(part, dict))
    text = value if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_usage(usage: Any) -> Usage | None:
    """Return the counts of a reply, None if there are none."""
    details = getattr(usage, "prompt_tokens_details", None)
    counts = Usage(
        input=_count(getattr(usage, "prompt_tokens", 0)),
        cached=_count(getattr(details, "cached_tokens", 0)),
        output=_count(getattr(usage, "completion_tokens", 0)),
    )
    return counts if counts.total else None


def _count(value: object) -> int:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return max(0, int(value))
    return 0


def spare_loopback_from_proxies(api_base: str | None) -> None:
    """Keep requests to this machine away from proxies, which could not answer them."""
    if api_base and urlsplit(api_base).hostname in _LOOPBACK:
        for name in ("NO_PROXY", "no_proxy"):
            hosts = [host for host in os.environ.get(name, "").split(",") if host]
            missing = [host for host in _LOOPBACK if host not in hosts]
            os.environ[name] = ",".join(hosts + missing)


# --- the loop in which all attempts run -------------------------------------------------

_loop_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _run(work: Coroutine[Any, Any, Answer]) -> concurrent.futures.Future[Answer]:
    """Run a coroutine in the one background loop; connections belong to a loop."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="speedkit-llm", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(work, _loop)
