"""Asks a provider until it answers, is past help, or the time is up."""

from __future__ import annotations

import concurrent.futures
import random
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from speedkit.core.errors import SpeedkitError
from speedkit.core.ledger import Usage
from speedkit.core.llm_provider import ABANDON_S, AttemptFailed, Provider, Trouble, timed_out
from speedkit.core.llm_retry import Clock, Gate, backoff_s
from speedkit.core.llm_types import (
    Answer,
    ContextOverflow,
    LLMError,
    LLMRefused,
    LLMStopped,
    Message,
    estimate_tokens,
)

MAX_TROUBLE = 300
"""Characters that are kept of what a provider says of a failure."""
TOKENS_PER_MESSAGE = 8
"""What a message costs beside its text, at most."""


@dataclass
class Call:
    """A call under way.

    Attributes:
        began: when the first attempt was sent, monotonic seconds.
        attempts: requests sent so far.
        retries: attempts after errors, those after a 429 left out.
        lost: attempts without a reply that the provider may have charged for.
        troubles: what went wrong so far, one line each.
    """

    model: str
    messages: Sequence[Message]
    purpose: str
    sample: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float | None = None
    attempts: int = 0
    retries: int = 0
    lost: int = 0
    troubles: list[str] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, an upper estimate."""
        texts = (estimate_tokens(message["content"], self.model) for message in self.messages)
        return sum(texts) + TOKENS_PER_MESSAGE * len(self.messages)

    @property
    def lost_usage(self) -> Usage:
        """What the lost attempts are charged with: their prompts."""
        return Usage(input=self.lost * self.prompt_tokens)

    def seconds(self, now: float) -> float:
        """Return the seconds since the first attempt."""
        return 0.0 if self.began is None else now - self.began


class Sender:
    """Sends calls to a provider and retries them.

    Args:
        clean: removes secrets from the words of the provider.
        clock: the time, and how to wait; by default the real one, and :meth:`stop` ends waits.
    """

    def __init__(
        self,
        provider: Provider,
        clean: Callable[[str], str],
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.provider = provider
        self.settings = provider.settings
        self.gate = Gate(self.settings.concurrency)
        self._stopping = threading.Event()
        self.clock = clock or Clock(sleep=self._stopping.wait)
        self._rng = rng or random.Random()
        self._clean = clean
        self._under_way: set[concurrent.futures.Future[Answer]] = set()
        self._lock = threading.Lock()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End all calls under way, and refuse new ones, with :class:`LLMStopped`."""
        self._stopping.set()
        self.gate.close()
        with self._lock:
            for attempt in self._under_way:
                attempt.cancel()

    def send(self, call: Call) -> Answer:
        """Return the answer to a call.

        Raises:
            LLMError, ContextOverflow, LLMRefused, LLMStopped: there will be none.
        """
        while True:
            try:
                return self._attempt(call)
            except AttemptFailed as failure:
                wait_s = self._wait_s(call, failure)
            self.clock.sleep(wait_s)

    # --- one attempt --------------------------------------------------------------------

    def _attempt(self, call: Call) -> Answer:
        with self.gate.slot() as era:
            now = self.clock.monotonic()
            call.began = now if call.began is None else call.began
            call.attempts += 1
            left_s = max(0.001, self._left_s(call, now))
            try:
                answer = self._receive(call, min(self.settings.timeout_s, left_s))
            except AttemptFailed as failure:
                if failure.trouble is Trouble.RATE_LIMIT:
                    self.gate.lower(era)
                raise
        self.gate.succeeded()
        return answer

    def _receive(self, call: Call, timeout_s: float) -> Answer:
        attempt = self.provider.start(call.messages, timeout_s)
        self._enlist(attempt)
        try:
            return attempt.result(timeout_s + ABANDON_S)
        except AttemptFailed as failure:
            call.lost += failure.billed
            raise
        except BaseException as error:
            call.lost += 1
            attempt.cancel()
            if isinstance(error, concurrent.futures.TimeoutError):
                raise timed_out(timeout_s) from None
            if isinstance(error, concurrent.futures.CancelledError):
                raise LLMStopped("the model call was stopped") from None
            raise
        finally:
            with self._lock:
                self._under_way.discard(attempt)

    def _enlist(self, attempt: concurrent.futures.Future[Answer]) -> None:
        with self._lock:
            self._under_way.add(attempt)
            if self._stopping.is_set():
                attempt.cancel()

    # --- after a failed one -------------------------------------------------------------

    def _wait_s(self, call: Call, failure: AttemptFailed) -> float:
        """Return the seconds to wait before the next attempt; raise if there is none."""
        call.troubles.append(self._words(failure))
        if failure.trouble not in (Trouble.TRANSIENT, Trouble.RATE_LIMIT):
            raise self._final(call, failure) from None
        call.retries += failure.trouble is Trouble.TRANSIENT
        if call.retries > self.settings.max_retries:
            raise self._gave_up(call, failure) from None
        wait_s = backoff_s(len(call.troubles) - 1, self._rng)
        wait_s = max(wait_s, failure.retry_after_s or 0.0)
        if wait_s >= self._left_s(call, self.clock.monotonic()):
            raise self._gave_up(call, failure) from None
        return wait_s

    def _left_s(self, call: Call, now: float) -> float:
        return self.settings.deadline_s - call.seconds(now)

    def _gave_up(self, call: Call, failure: AttemptFailed) -> LLMError:
        seconds = call.seconds(self.clock.monotonic())
        asked = failure.retry_after_s
        wish = f", and asks to wait {asked:.0f} s" if asked else ""
        return LLMError(
            f"{call.model} gave no reply in {call.attempts} attempts over {seconds:.0f} s{wish};"
            f" the last: {self._words(failure)}"
        )

    def _final(self, call: Call, failure: AttemptFailed) -> SpeedkitError:
        words = self._words(failure)
        if failure.trouble is Trouble.OVERFLOW:
            size = f"{call.prompt_tokens:,}"
            return ContextOverflow(f"a prompt of about {size} tokens is too long; {words}")
        if failure.trouble is Trouble.REJECTED:
            return LLMError(f"{call.model} does not answer this prompt: {words}")
        return LLMRefused(self._refusal(failure, words))

    def _refusal(self, failure: AttemptFailed, words: str) -> str:
        model, place = self.settings.model, self.settings.api_base or "its provider"
        missing = self.provider.missing_variables
        if failure.status in (None, 401, 403, 500) and missing:
            return f"{model} needs credentials: set {' and '.join(missing)}; {words}"
        if failure.status in (401, 403):
            return f"{model} refuses the key in {self.provider.key_variable}: {words}"
        if failure.status == 404:
            return f"{place} knows no model {model}: {words}"
        if failure.status in (402, 429):
            return f"the account for {model} has no credit left: {words}"
        return f"{model} refuses the request: {words}"

    def _words(self, failure: AttemptFailed) -> str:
        status = f" (HTTP {failure.status})" if failure.status else ""
        # Cut after it was cleaned: of half a key nobody can tell that it is one.
        return self._clean(str(failure))[:MAX_TROUBLE] + status
