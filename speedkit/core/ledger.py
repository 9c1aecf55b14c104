"""What a run spends on language models, and the limits that it keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from speedkit.core.errors import BudgetReached


@dataclass(frozen=True)
class Usage:
    """Tokens of a call.

    Attributes:
        input: tokens of the prompt, cached ones included.
        cached: those of them that the provider took from its prompt cache.
        output: tokens of the reply, reasoning included.
    """

    input: int = 0
    cached: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """Input and output tokens."""
        return self.input + self.output

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input, self.cached + other.cached, self.output + other.output
        )


@dataclass(frozen=True)
class Intent:
    """A call about to be sent, and what is set aside for it.

    Attributes:
        usage: an upper estimate of its tokens.
        cost: the upper estimate in dollars; None if the price is unknown.
        input_cost: dollars of the prompt alone; None if the price is unknown.
    """

    request_id: str
    purpose: str
    model: str
    usage: Usage
    cost: float | None
    input_cost: float | None

    def as_json(self) -> dict[str, Any]:
        """Return JSON values that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Intent:
        """Return what :meth:`as_json` stored."""
        return cls(**{**value, "usage": Usage(**value["usage"])})


@dataclass(frozen=True)
class ModelCall:
    """A call that is over.

    Attributes:
        model: the model that was asked.
        model_served: the model that answered, by its own account; None if none did.
        usage: tokens of all attempts; of a cached reply, those of the original call.
        cost: dollars, 0 for a cached reply; None if the price is unknown.
        seconds: from the first attempt to the end, waiting included.
        attempts: how many requests were sent.
        cached: the reply came from the cache of replies and cost nothing.
        estimated: some of the tokens were estimated, because no count came back.
        status: ``ok``, ``failed``, ``refused``, ``overflow``, ``stopped``, or ``lost`` for a
            call whose end nobody saw.
    """

    request_id: str
    purpose: str
    model: str
    model_served: str | None
    usage: Usage
    cost: float | None
    seconds: float = 0.0
    attempts: int = 1
    cached: bool = False
    estimated: bool = False
    status: str = "ok"

    def as_json(self) -> dict[str, Any]:
        """Return JSON values that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelCall:
        """Return what :meth:`as_json` stored."""
        return cls(**{**value, "usage": Usage(**value["usage"])})


@dataclass(frozen=True)
class Totals:
    """What was spent.

    Attributes:
        calls: calls that were sent, however they ended.
        cached_replies: calls that were answered from the cache of replies.
        known_cost: dollars of the calls whose price is known.
        unpriced: calls whose price is unknown.
    """

    calls: int = 0
    cached_replies: int = 0
    usage: Usage = field(default_factory=Usage)
    known_cost: float = 0.0
    unpriced: int = 0

    @property
    def cost(self) -> float | None:
        """Dollars of all calls; None if the price of any is unknown."""
        return None if self.unpriced else self.known_cost

    def plus(self, call: ModelCall) -> Totals:
        """Return the totals with one call more."""
        if call.cached:
            return Totals(
                self.calls, self.cached_replies + 1, self.usage, self.known_cost, self.unpriced
            )
        return Totals(
            self.calls + (call.attempts > 0),
            self.cached_replies,
            self.usage + call.usage,
            self.known_cost + (call.cost or 0.0),
            self.unpriced + (call.cost is None),
        )

    def __str__(self) -> str:
        tokens = f"{self.usage.input:,} input ({self.usage.cached:,} cached)"
        cost = "cost unknown" if self.cost is None else f"${self.cost:.4f}"
        return f"{self.calls} calls, {tokens} and {self.usage.output:,} output tokens, {cost}"


class Ledger:
    """Counts calls, tokens and dollars, and keeps two limits. Safe to share between threads.

    What is in flight counts with its upper estimate. A call that would not fit waits until
    those in flight are settled; alone, it is let through as long as the limit is not reached.
    So the whole budget can be used, and no limit is passed by more than one call.

    Args:
        max_cost: limit in dollars; calls of unknown price do not count towards it.
        max_tokens: limit on input and output tokens together.
        on_intent: told of each call before it is sent; should not return before this is
            stored for good.
        on_call: told of each call that is over.
        purse: a ledger of several runs, whose limits hold as well.
    """

    def __init__(
        self,
        *,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        on_intent: Callable[[Intent], None] | None = None,
        on_call: Callable[[ModelCall], None] | None = None,
        purse: Ledger | None = None,
    ) -> None:
        self.max_cost, self.max_tokens = max_cost, max_tokens
        self._purse = purse
        self._on_intent, self._on_call = on_intent, on_call
        self._totals = Totals()
        self._open: dict[str, Intent] = {}
        self._changed = threading.Condition()

    @property
    def needs_prices(self) -> bool:
        """Whether a limit in dollars is kept."""
        return self.max_cost is not None or bool(self._purse and self._purse.needs_prices)

    @property
    def totals(self) -> Totals:
        """What was spent so far, without what is in flight."""
        with self._changed:
            return self._totals

    @property
    def in_flight(self) -> tuple[Intent, ...]:
        """The calls that were let through and are not over."""
        with self._changed:
            return tuple(self._open.values())

    def restore(self, calls: Iterable[ModelCall], intents: Iterable[Intent]) -> None:
        """Count what an earlier controller spent.

        A call that was about to be sent and of whose end nothing is known is charged with
        its prompt, once: ``on_call`` is told of it, and a later ``restore`` with that call
        among ``calls`` does not charge it again.

        Args:
            calls: the calls that are over.
            intents: all calls that were about to be sent, over or not.
        """
        over = {call.request_id: call for call in calls}
        lost = {i.request_id: _lost(i) for i in intents if i.request_id not in over}
        with self._changed:
            for call in (*over.values(), *lost.values()):
                self._totals = self._totals.plus(call)
        for call in lost.values():
            if self._purse:
                self._purse.settle(call)
            self._tell(call)

    def admit(self, intent: Intent) -> None:
        """Set aside what a call may cost; wait until it fits.

        Raises:
            BudgetReached: a limit is reached.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._may_pass(intent))
            self._open[intent.request_id] = intent
        try:
            if self._purse:
                self._purse.admit(intent)
            if self._on_intent:
                self._on_intent(intent)
        except BaseException:
            self._close(intent.request_id)
            raise

    def settle(self, call: ModelCall) -> None:
        """Count a call that is over and free what was set aside for it."""
        if self._purse:
            self._purse.settle(call)
        with self._changed:
            self._totals = self._totals.plus(call)
            self._open.pop(call.request_id, None)
            self._changed.notify_all()
        self._tell(call)

    def _tell(self, call: ModelCall) -> None:
        if self._on_call:
            self._on_call(call)

    def _close(self, request_id: str) -> None:
        with self._changed:
            self._open.pop(request_id, None)
            self._changed.notify_all()
        if self._purse:
            self._purse._close(request_id)

    def check_limits(self) -> None:
        """Raise BudgetReached if a limit is reached."""
        with self._changed:
            self._check_limits()

    def _may_pass(self, intent: Intent) -> bool:
        self._check_limits()
        return not self._open or self._fits(intent)

    def _check_limits(self) -> None:
        spent, tokens = self._totals.known_cost, self._totals.usage.total
        if self.max_cost is not None and spent >= self.max_cost:
            raise BudgetReached(
                f"the limit of ${self.max_cost:g} on model calls is reached (${spent:.4f} spent)"
                "; resume with a higher --max-cost"
            )
        if self.max_tokens is not None and tokens >= self.max_tokens:
            raise BudgetReached(
                f"the limit of {self.max_tokens:,} tokens is reached ({tokens:,} used)"
                "; resume with a higher --max-tokens"
            )

    def _fits(self, intent: Intent) -> bool:
        planned = (*self._open.values(), intent)
        cost = self._totals.known_cost + sum(item.cost or 0.0 for item in planned)
        tokens = self._totals.usage.total + sum(item.usage.total for item in planned)
        return (self.max_cost is None or cost <= self.max_cost) and (
            self.max_tokens is None or tokens <= self.max_tokens
        )


def _lost(intent: Intent) -> ModelCall:
    return ModelCall(
        request_id=intent.request_id,
        purpose=intent.purpose,
        model=intent.model,
        model_served=None,
        usage=Usage(input=intent.usage.input),
        cost=intent.input_cost,
        estimated=True,
        status="lost",
    )
