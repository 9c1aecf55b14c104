"""What is counted, and when a limit is reached."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from speedkit.core.errors import BudgetReached
from speedkit.core.ledger import Intent, Ledger, ModelCall, Totals, Usage


def intent(name: str, tokens: int = 100, cost: float | None = 0.1) -> Intent:
    half = None if cost is None else cost / 2
    return Intent(name, "draft", "m", Usage(tokens // 2, 0, tokens - tokens // 2), cost, half)


def call(name: str, tokens: int = 100, cost: float | None = 0.1, **fields: object) -> ModelCall:
    usage = Usage(tokens // 2, tokens // 4, tokens - tokens // 2)
    return ModelCall(name, "draft", "m", "m-1", usage, cost, **fields)  # type: ignore[arg-type]


def test_totals_add_up() -> None:
    ledger = Ledger()
    ledger.settle(call("a"))
    ledger.settle(call("b", tokens=300, cost=0.2))
    totals = ledger.totals
    assert totals.calls == 2
    assert totals.usage == Usage(200, 100, 200)
    assert totals.cost == pytest.approx(0.3)
    assert str(totals) == "2 calls, 200 input (100 cached) and 200 output tokens, $0.3000"


def test_an_unknown_price_is_never_zero() -> None:
    ledger = Ledger()
    ledger.settle(call("a", cost=1.0))
    ledger.settle(call("b", cost=None))
    assert ledger.totals.cost is None
    assert ledger.totals.known_cost == 1.0
    assert "cost unknown" in str(ledger.totals)


def test_a_cached_reply_costs_nothing() -> None:
    ledger = Ledger(max_tokens=10)
    ledger.settle(call("a", tokens=1000, cost=0.0, cached=True, attempts=0))
    assert ledger.totals == Totals(cached_replies=1)
    ledger.admit(intent("b"))


@pytest.mark.parametrize("ledger", [Ledger(max_cost=0.0), Ledger(max_tokens=0)])
def test_a_limit_of_nothing_lets_nothing_through(ledger: Ledger) -> None:
    with pytest.raises(BudgetReached, match="limit"):
        ledger.admit(intent("a"))


def test_a_lone_call_may_pass_the_limit_and_the_next_may_not() -> None:
    ledger = Ledger(max_tokens=150)
    for name in ("a", "b"):
        ledger.admit(intent(name))
        ledger.settle(call(name))
    with pytest.raises(BudgetReached, match=r"150 tokens is reached \(200 used\)"):
        ledger.admit(intent("c"))


def test_a_call_waits_for_those_in_flight_and_then_fits() -> None:
    ledger = Ledger(max_cost=1.0)
    ledger.admit(intent("big", cost=0.95))
    passed = threading.Event()

    def wait() -> None:
        ledger.admit(intent("small"))
        passed.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not passed.wait(0.1), "0.95 and 0.1 do not fit into 1"
    ledger.settle(call("big", cost=0.2))
    assert passed.wait(30)
    waiter.join()
    assert [item.request_id for item in ledger.in_flight] == ["small"]


def test_a_call_that_waits_is_told_when_the_limit_is_reached() -> None:
    ledger = Ledger(max_cost=1.0)
    ledger.admit(intent("big", cost=0.95))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ledger.admit, intent("small"))
        ledger.settle(call("big", cost=1.1))
        assert isinstance(waiting.exception(timeout=30), BudgetReached)


@pytest.mark.parametrize("true_share", [0.05, 0.5, 1.0])
def test_no_limit_is_passed_by_more_than_one_call(true_share: float) -> None:
    ledger = Ledger(max_cost=1.0)
    each = 0.13

    def spend(i: int) -> None:
        ledger.admit(intent(str(i), cost=each))
        time.sleep(0.001)
        ledger.settle(call(str(i), cost=each * true_share))

    with ThreadPoolExecutor(8) as pool:
        ends = [pool.submit(spend, i).exception() for i in range(300)]
    assert 1.0 <= ledger.totals.known_cost < 1.0 + each
    assert {type(end) for end in ends} == {type(None), BudgetReached}


def test_an_unsettled_call_is_charged_with_its_prompt_and_only_once() -> None:
    journal: list[ModelCall] = [call("a", cost=0.3)]
    intents = [intent("a"), intent("b", tokens=80, cost=0.5)]
    first = Ledger(on_call=journal.append)
    first.restore(list(journal), intents)
    assert first.totals.known_cost == pytest.approx(0.3 + 0.25)
    assert first.totals.usage.total == 100 + 40
    assert (journal[-1].request_id, journal[-1].status) == ("b", "lost")

    second = Ledger(on_call=journal.append)
    second.restore(list(journal), intents)
    assert second.totals == first.totals
    assert len(journal) == 2


def test_a_call_of_unknown_price_that_was_lost_leaves_the_cost_unknown() -> None:
    ledger = Ledger()
    ledger.restore([], [intent("a", cost=None)])
    assert ledger.totals.cost is None


def test_an_intent_that_cannot_be_stored_is_not_sent_and_not_kept() -> None:
    def disk_full(_: Intent) -> None:
        raise OSError("no space left")

    ledger = Ledger(on_intent=disk_full)
    with pytest.raises(OSError, match="no space"):
        ledger.admit(intent("a"))
    assert ledger.in_flight == ()


def test_what_is_stored_can_be_read_again() -> None:
    for item in (intent("a"), intent("b", cost=None)):
        assert Intent.from_json(json.loads(json.dumps(item.as_json()))) == item
    done = call("c", cost=None, seconds=1.5, attempts=3, status="failed")
    assert ModelCall.from_json(json.loads(json.dumps(done.as_json()))) == done
