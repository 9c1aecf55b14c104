"""What an aider process spends, entered in the run's ledger reply by reply."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from speedkit.core.ledger import Intent, ModelCall, Usage
from speedkit.core.llm import LLM
from speedkit.core.llm_types import estimate_tokens
from speedkit.plugins.coders._aider_log import Events, Sent, Talk, Trouble

REFUSALS = ("AuthenticationError", "PermissionDeniedError", "NotFoundError")
"""Errors after which no other request would fare better."""


@dataclass
class Account:
    """The calls of one aider process.

    Tokens are set aside for one reply. The reply that came last, or the request that has none
    yet, carries the id of the :class:`Intent`; those before it get ids of their own.

    Attributes:
        prompt_tokens: an upper estimate of the first prompt.
    """

    llm: LLM
    purpose: str
    prompt_tokens: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _settled: int = 0
    _since: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """Set aside what a reply may cost.

        Raises:
            BudgetReached: a limit is reached.
        """
        self.llm.ledger.admit(self._intent())
        self._since = time.monotonic()

    def see(self, events: Events, talk: Talk) -> None:
        """Enter the replies after which aider asks again.

        Raises:
            BudgetReached: a limit is reached, so that it must not.
        """
        over = events.sent[self._settled : max(0, events.starts - 1)]
        for sent in over:
            self._settle(f"{self.id}-{self._settled + 1}", self._call(sent, talk))
            self._settled += 1
        if over and events.awaiting and self._at_limit():
            self.llm.ledger.admit(self._intent())

    def close(self, events: Events, talk: Talk, trouble: Trouble, *, ended: bool) -> None:
        """Enter the rest and free what was set aside.

        Args:
            ended: aider was ended, and a request under way may have to be paid for.
        """
        calls, first = [], self._settled + 1
        for sent in events.sent[self._settled :]:
            calls.append(self._call(sent, talk, overflow=_overflowed(sent, talk, trouble)))
            self._settled += 1
        if events.awaiting or not calls:
            calls.append(self._without_count(events, talk, trouble, ended=ended))
        for number, call in enumerate(calls[:-1], first):
            self._settle(f"{self.id}-{number}", call)
        self._settle(self.id, calls[-1])

    # --- calls --------------------------------------------------------------------------

    def _call(self, sent: Sent, talk: Talk, *, overflow: bool = False) -> _Entry:
        usage = Usage(input=sent.input, output=sent.output)
        if overflow:
            return _Entry(Usage(), 0.0, sent.model, status="overflow")
        if usage.total:
            return _Entry(usage, self._cost(usage, sent.cost), sent.model)
        texts = [text for text in talk.replies if text]
        text = texts[self._settled] if self._settled < len(texts) else ""
        usage = Usage(self.prompt_tokens, 0, self._tokens(text))
        return _Entry(usage, self._cost(usage), sent.model, estimated=True)

    def _without_count(
        self, events: Events, talk: Talk, trouble: Trouble, *, ended: bool
    ) -> _Entry:
        """The request that aider did not count: refused, failed, cut off or under way."""
        attempts = max(0, len(talk.prompts) - len(events.sent))
        text = talk.replies[-1] if talk.replies else ""
        if events.awaiting and (text or ended):
            # Aider does not count a reply that was cut off at the output limit.
            usage = Usage(self.prompt_tokens, 0, 0 if ended else self._tokens(text))
            status = "stopped" if ended else "ok"
            return _Entry(usage, self._cost(usage), None, status, max(1, attempts), True)
        refused = trouble.error in REFUSALS
        return _Entry(Usage(), 0.0, None, "refused" if refused else "failed", attempts)

    def _tokens(self, text: str) -> int:
        return estimate_tokens(text, self.llm.settings.model) if text else 0

    def _cost(self, usage: Usage, by_aider: float = 0.0) -> float | None:
        """Aider's figure knows the prices of cached tokens, but not those of the settings."""
        if by_aider and self.llm.settings.price_in is None:
            return by_aider
        return self.llm.provider.prices.cost(usage)

    # --- the ledger ---------------------------------------------------------------------

    def _intent(self) -> Intent:
        provider = self.llm.provider
        most = Usage(input=self.prompt_tokens, output=provider.output_limit)
        return Intent(
            request_id=self.id,
            purpose=self.purpose,
            model=self.llm.settings.model,
            usage=most,
            cost=provider.prices.cost(most),
            input_cost=provider.prices.cost(Usage(input=self.prompt_tokens)),
        )

    def _settle(self, request_id: str, entry: _Entry) -> None:
        now = time.monotonic()
        self.llm.ledger.settle(
            ModelCall(
                request_id=request_id,
                purpose=self.purpose,
                model=self.llm.settings.model,
                model_served=entry.model,
                usage=entry.usage,
                cost=entry.cost,
                seconds=now - self._since,
                attempts=entry.attempts,
                estimated=entry.estimated,
                status=entry.status,
            )
        )
        self._since = now

    def _at_limit(self) -> bool:
        ledger, totals = self.llm.ledger, self.llm.ledger.totals
        return (ledger.max_cost is not None and totals.known_cost >= ledger.max_cost) or (
            ledger.max_tokens is not None and totals.usage.total >= ledger.max_tokens
        )


@dataclass(frozen=True)
class _Entry:
    usage: Usage
    cost: float | None
    model: str | None
    status: str = "ok"
    attempts: int = 1
    estimated: bool = False


def _overflowed(sent: Sent, talk: Talk, trouble: Trouble) -> bool:
    """Whether a counted message got no reply because its prompt was too long."""
    unanswered = not talk.replies or not talk.replies[-1]
    return trouble.limit and not sent.output and unanswered
