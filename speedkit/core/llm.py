"""The one place that talks to language models; nothing else imports litellm."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speedkit.core.errors import UsageError
from speedkit.core.ledger import Intent, Ledger, ModelCall, Usage
from speedkit.core.llm_cache import ReplyCache, Stored, request_key
from speedkit.core.llm_log import Transcript
from speedkit.core.llm_provider import Provider, one_line, spare_loopback_from_proxies
from speedkit.core.llm_retry import Clock
from speedkit.core.llm_send import Call, Sender
from speedkit.core.llm_types import (
    Answer,
    ContextOverflow,
    LLMError,
    LLMRefused,
    LLMSettings,
    LLMStopped,
    Message,
    Reply,
    estimate_tokens,
)
from speedkit.core.redact import Redactor

__all__ = [
    "LLM",
    "Clock",
    "ContextOverflow",
    "LLMError",
    "LLMRefused",
    "LLMSettings",
    "LLMStopped",
    "Message",
    "Reply",
    "estimate_tokens",
]

MAX_NAME = 200
"""Characters of a model's name that are kept."""
_STATUS = {LLMError: "failed", ContextOverflow: "overflow", LLMRefused: "refused"}

_import_lock = threading.Lock()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Let no garbage be collected, which is a sixth of the time that the import takes."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def preload() -> None:
    """Begin to import litellm in the background, which takes seconds."""
    threading.Thread(target=_litellm, name="speedkit-litellm", daemon=True).start()


def _litellm() -> Any:
    """Import litellm, quietly and without network, and return it."""
    with _import_lock:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # else it reads ./.env
        # It uses its libraries in ways that they warn about; no user can help it.
        warnings.filterwarnings("ignore", module=r"(litellm|pydantic)(\.|$)")
        with _without_collection():
            import litellm

        litellm.suppress_debug_info = True
        for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return litellm


class LLM:
    """Asks one model. Safe to share between threads.

    Args:
        ledger: counts what is spent; by default a new one with the limits of the settings.
        redactor: removes secrets from what is sent, stored and returned; by default those of
            the environment.
        clock: the time, and how to wait; by default the real one, and :meth:`stop` ends waits.
        rng: source of the jitter between attempts.

    Raises:
        UsageError: replies are to be replayed and there is no cache.
    """

    def __init__(
        self,
        settings: LLMSettings,
        *,
        ledger: Ledger | None = None,
        redactor: Redactor | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.ledger = ledger or Ledger(max_cost=settings.max_cost, max_tokens=settings.max_tokens)
        self.redactor = redactor or Redactor.from_environment(named=_own_key(settings))
        self._provider = Provider(settings, _litellm)
        self._sender = Sender(self._provider, self.redactor.clean, clock, rng)
        self._cache = _open_cache(settings)
        self._checked = False

    @property
    def concurrency(self) -> int:
        """How many calls may be in flight now; lowered after a 429, slowly raised again."""
        return self._sender.gate.limit

    @property
    def replaying(self) -> bool:
        """Whether every reply comes from the cache."""
        return self.settings.cache_mode == "replay"

    @property
    def provider(self) -> Provider:
        """What is known of the model's provider: prices, limits, the variable of its key."""
        return self._provider

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._sender.stopped

    def using(self, **changes: Any) -> LLM:
        """Return a client with other settings that shares the ledger and the redactor."""
        settings = LLMSettings.model_validate({**self.settings.model_dump(), **changes})
        return LLM(settings, ledger=self.ledger, redactor=self.redactor)

    def check(self) -> None:
        """See that the model may be asked, without asking it; done before the first call.

        Raises:
            UsageError: the model's name has no provider, or a limit on cost was set and the
                price is unknown.
            LLMRefused: the key is missing.
        """
        if not self._checked and not self.replaying:
            spare_loopback_from_proxies(self.settings.api_base)
            self._provider.check(priced=self.ledger.needs_prices)
        self._checked = True

    def stop(self) -> None:
        """End all calls under way, and refuse new ones, with :class:`LLMStopped`."""
        self._sender.stop()

    def close(self) -> None:
        """Close the cache of replies."""
        if self._cache:
            self._cache.close()

    def complete(
        self,
        messages: Sequence[Message],
        *,
        system: str = "",
        purpose: str,
        sample: int = 0,
        log_dir: Path | None = None,
    ) -> Reply:
        """Ask the model and return its reply.

        Args:
            messages: the talk so far, the last one from the user.
            system: the system prompt.
            purpose: a word for the ledger, for example ``draft`` or ``summary``.
            sample: which of several replies to the same prompt is meant, from 0; the cache
                keeps them apart.
            log_dir: folder for the prompt and the reply.

        Raises:
            LLMError: no reply in spite of all retries.
            ContextOverflow: the prompt is too long; a kind of ``LLMError``.
            LLMRefused: the provider refuses all such calls, or the cache lacks the reply
                that should be replayed.
            LLMStopped: :meth:`stop` was called.
            BudgetReached: a limit of the ledger is reached.
        """
        call = Call(self.settings.model, self._prompt(messages, system), purpose, sample)
        if log_dir is None:
            return self._reply(call)
        transcript = self._begin(log_dir, call)
        try:
            reply = self._reply(call)
        except Exception as error:
            transcript.end({"request": call.id}, [*_troubles(call), ("no reply", str(error))])
            raise
        transcript.end(_facts(reply), [*_troubles(call), *_sections(reply)])
        return reply

    # --- from the cache, or else from the model -----------------------------------------

    def _prompt(self, messages: Sequence[Message], system: str) -> list[Message]:
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        clean = self.redactor.clean
        return [{**item, "content": clean(item["content"])} for item in [*first, *messages]]

    def _reply(self, call: Call) -> Reply:
        if self._cache is None:
            return self._ask(call, "")
        key = request_key(self.settings, call.messages, call.sample)
        with self._cache.alone(key):
            stored = self._cache.get(key)
            if stored is None and self.replaying:
                raise LLMRefused(
                    f"the reply cache {self._cache.path} has no reply to this prompt"
                    f" ({call.purpose}): the run differs from the one that was recorded"
                )
            return self._ask(call, key) if stored is None else self._replay(call, stored)

    def _replay(self, call: Call, stored: Stored) -> Reply:
        reply = Reply(
            text=stored.text,
            reasoning=stored.reasoning,
            model_served=stored.model_served,
            usage=stored.usage,
            cost=0.0,
            finish_reason=stored.finish_reason,
            cached=True,
            request_id=call.id,
            attempts=0,
        )
        self._settle(call, "ok", reply)
        return reply

    def _ask(self, call: Call, key: str) -> Reply:
        self.check()
        self.ledger.admit(self._intent(call))
        reply, status = None, "stopped"
        try:
            reply = self._finished(call, self._sender.send(call))
            # Before it is settled: what was paid for must not be lost.
            reply = self._keep(call, key, reply) if key else reply
            status = "ok"
        except (LLMError, LLMRefused) as error:
            status = _STATUS[type(error)]
            raise
        finally:
            self._settle(call, status, reply)
        return reply

    def _finished(self, call: Call, answer: Answer) -> Reply:
        usage, cost, model = answer.usage, answer.cost, self.settings.model
        if usage is None:
            output = estimate_tokens(answer.text + answer.reasoning, model)
            usage = Usage(call.prompt_tokens, 0, output)
            cost = self._provider.prices.cost(usage)
        return Reply(
            text=self.redactor.clean(answer.text),
            reasoning=self.redactor.clean(answer.reasoning),
            model_served=self._name(answer.model_served),
            usage=usage,
            cost=cost,
            finish_reason=answer.finish_reason,
            estimated=answer.usage is None,
            request_id=call.id,
            seconds=call.seconds(self._sender.clock.monotonic()),
            attempts=call.attempts,
        )

    def _name(self, served: str | None) -> str | None:
        """Return what a server calls its model, fit for one line: that can be any text."""
        return self.redactor.clean(one_line(served or ""))[:MAX_NAME] or None

    def _keep(self, call: Call, key: str, reply: Reply) -> Reply:
        """Store a reply; if another process was faster, take its text, as a replay will."""
        assert self._cache is not None
        stored = self._cache.put(
            key,
            Stored(
                reply.text, reply.reasoning, reply.model_served, reply.usage, reply.finish_reason
            ),
            model=call.model,
            sample=call.sample,
        )
        return replace(
            reply,
            text=stored.text,
            reasoning=stored.reasoning,
            model_served=stored.model_served,
            finish_reason=stored.finish_reason,
        )

    # --- what it costs ------------------------------------------------------------------

    def _intent(self, call: Call) -> Intent:
        prompt, prices = Usage(input=call.prompt_tokens), self._provider.prices
        most = prompt + Usage(output=self._provider.output_limit)
        return Intent(
            request_id=call.id,
            purpose=call.purpose,
            model=call.model,
            usage=most,
            cost=prices.cost(most),
            input_cost=prices.cost(prompt),
        )

    def _settle(self, call: Call, status: str, reply: Reply | None) -> None:
        usage, cost = (reply.usage, reply.cost) if reply else (Usage(), 0.0)
        if call.lost:
            lost = self._provider.prices.cost(call.lost_usage)
            usage += call.lost_usage
            cost = None if cost is None or lost is None else cost + lost
        self.ledger.settle(
            ModelCall(
                request_id=call.id,
                purpose=call.purpose,
                model=call.model,
                model_served=reply.model_served if reply else None,
                usage=usage,
                cost=cost,
                seconds=call.seconds(self._sender.clock.monotonic()),
                attempts=call.attempts,
                cached=bool(reply and reply.cached),
                estimated=bool(call.lost or (reply and reply.estimated)),
                status=status,
            )
        )

    # --- what is written ----------------------------------------------------------------

    def _begin(self, log_dir: Path, call: Call) -> Transcript:
        facts = {
            "model": call.model,
            "purpose": call.purpose,
            "sample": call.sample,
            "request": call.id,
        }
        return Transcript.begin(log_dir, self.redactor, facts, call.messages)


def _own_key(settings: LLMSettings) -> tuple[str, ...]:
    return () if settings.api_key_env is None else (settings.api_key_env,)


def _open_cache(settings: LLMSettings) -> ReplyCache | None:
    if settings.cache_mode == "off":
        return None
    if settings.cache_mode == "replay":
        if settings.cache is None:
            raise UsageError("to replay, name the file of replies: --llm-cache FILE")
        if not settings.cache.is_file():
            raise UsageError(f"there is no reply cache {settings.cache} to replay")
    return ReplyCache(settings.cache) if settings.cache else None


def _facts(reply: Reply) -> dict[str, object]:
    usage = reply.usage
    return {
        "model": reply.model_served or "unknown",
        "finish": reply.finish_reason,
        "tokens": f"{usage.input} input ({usage.cached} cached), {usage.output} output",
        "cost": "unknown" if reply.cost is None else f"${reply.cost:.6f}",
        "cached": "yes" if reply.cached else "no",
        "seconds": f"{reply.seconds:.1f}",
        "attempts": reply.attempts,
        "request": reply.request_id,
    }


def _troubles(call: Call) -> list[tuple[str, str]]:
    return [("failed attempts", "\n".join(f"- {line}" for line in call.troubles))]


def _sections(reply: Reply) -> list[tuple[str, str]]:
    return [("reasoning", reply.reasoning), ("reply", reply.text or "(empty)")]
