"""Calls to a language model, by way of the real client and a server on this machine."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from speedkit.core.errors import BudgetReached, UsageError
from speedkit.core.ledger import Intent, Ledger, ModelCall, Usage
from speedkit.core.llm import (
    LLM,
    Clock,
    ContextOverflow,
    LLMError,
    LLMRefused,
    LLMSettings,
    LLMStopped,
    Reply,
)
from speedkit.core.redact import Redactor
from tests.kit.fake_openai import (
    DROP_BODY,
    EMPTY_CHOICES,
    HANG,
    MALFORMED,
    RESET,
    SHORT_STREAM,
    TRICKLE,
    FakeOpenAI,
    Request,
    Script,
    Step,
    fail,
    fault,
    say,
    too_many,
)

KEY = "sk" + "-canary-0123456789abcdef-XYZ"
ASK = [{"role": "user", "content": "make it faster"}]


class FakeTime:
    """A clock that stands still but for the waits, which it records."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        self.clock = Clock(monotonic=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], FakeOpenAI]]:
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(FakeOpenAI(script))


def client(server: FakeOpenAI, *, ledger: Ledger | None = None, **settings: Any) -> LLM:
    """A client of the server that waits in no real time; its waits are ``llm.waits``."""
    fake_time = FakeTime()
    values = {"model": "openai/fake", "api_base": server.url, **settings}
    llm = LLM(
        LLMSettings.model_validate(values),
        ledger=ledger,
        clock=fake_time.clock,
        rng=random.Random(0),
    )
    llm.waits = fake_time.waits  # type: ignore[attr-defined]
    return llm


def ask(llm: LLM, **options: Any) -> Reply:
    return llm.complete(ASK, **{"system": "be exact", "purpose": "draft", **options})


# --- the reply --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_brings_text_usage_and_the_served_model(serve: Any, stream: bool) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    server = serve([say("hello", model="fake-2025-01-01", usage=usage)])
    reply = ask(client(server, stream=stream))
    assert (reply.text, reply.model_served) == ("hello", "fake-2025-01-01")
    assert reply.usage == Usage(input=100, cached=64, output=7)
    assert (reply.finish_reason, reply.cached, reply.attempts) == ("stop", False, 1)
    assert reply.cost is None, "an unknown price is not 0"


def test_the_system_prompt_is_sent_with_every_call(serve: Any) -> None:
    server = serve(["ok"])
    llm = client(server)
    for _ in range(2):
        ask(llm, system="you are a careful engineer")
    assert [r.system for r in server.requests] == ["you are a careful engineer"] * 2


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        (say("half of", finish_reason="length"), "half of", "length"),
        (say(None), "", "stop"),
        (say(""), "", "stop"),
        (say(None, message={"refusal": "I will not"}), "", "refusal"),
        (say("bad \ud800 surrogate"), "bad ? surrogate", "stop"),
        (say("<think>secret plan\n</think>\n\nanswer"), "answer", "stop"),
        (say("no opening tag</think>answer"), "answer", "stop"),
        (say("<think>cut off", finish_reason="length"), "", "length"),
        (say("if a < b: # <think> stays"), "if a < b: # <think> stays", "stop"),
        (say("answer", message={"reasoning_content": "plan"}), "answer", "stop"),
    ],
)
def test_odd_replies(serve: Any, tmp_path: Path, step: Step, text: str, reason: str) -> None:
    reply = ask(client(serve([step])), log_dir=tmp_path)
    assert (reply.text, reply.finish_reason) == (text, reason)
    assert reply.truncated == (reason == "length")


def test_reasoning_is_kept_in_the_log_alone(serve: Any, tmp_path: Path) -> None:
    reply = ask(client(serve(["<think>try Muon</think>done"])), log_dir=tmp_path)
    assert (reply.text, reply.reasoning) == ("done", "try Muon")
    assert "try Muon" in (tmp_path / "reply-001.md").read_text()


@pytest.mark.parametrize(
    ("settings", "sent", "absent"),
    [
        ({"model": "openai/fake", "temperature": 0.3}, {"temperature": 0.3}, "reasoning_effort"),
        ({"model": "openai/fake"}, {}, "temperature"),
        (
            {"model": "openai/o3", "temperature": 0.3, "reasoning_effort": "low"},
            {"reasoning_effort": "low"},
            "temperature",
        ),
        ({"model": "openai/gpt-4.1", "reasoning_effort": "low"}, {}, "reasoning_effort"),
        ({"model": "openai/fake", "max_output_tokens": 99}, {"max_tokens": 99}, "temperature"),
    ],
)
def test_only_parameters_that_the_model_takes_are_sent(
    serve: Any, settings: dict[str, Any], sent: dict[str, Any], absent: str
) -> None:
    server = serve(["ok"])
    ask(client(server, **settings))
    body = server.requests[0].body
    assert {name: body[name] for name in sent} == sent
    assert absent not in body


# --- failures that pass -----------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 529])
def test_server_errors_are_retried_with_growing_waits(serve: Any, status: int) -> None:
    server = serve([fail(status)] * 3 + [say("at last")])
    llm = client(server)
    reply = ask(llm)
    assert (reply.text, reply.attempts, len(server.requests)) == ("at last", 4, 4)
    first, second, third = llm.waits  # type: ignore[attr-defined]
    assert 0.5 <= first <= 1 <= second <= 2 <= third <= 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", [DROP_BODY, RESET, MALFORMED, EMPTY_CHOICES])
def test_broken_replies_are_retried(serve: Any, name: str, stream: bool) -> None:
    server = serve([fault(name, text="a long text, of which half may come"), say("whole")])
    assert ask(client(server, stream=stream)).text == "whole"
    assert len(server.requests) == 2


def test_a_stream_that_ends_in_the_middle_is_no_reply(serve: Any) -> None:
    server = serve([fault(SHORT_STREAM, text="import torch\nos.remove(everything)"), say("whole")])
    assert ask(client(server, stream=True)).text == "whole"


def test_token_counts_that_are_no_numbers_are_garbage(serve: Any) -> None:
    server = serve([say("x", usage={"prompt_tokens": float("nan")}), say("ok")])
    assert ask(client(server)).text == "ok"


def test_a_reply_of_megabytes_is_garbage(serve: Any) -> None:
    server = serve([say("x" * 5_000_000), say("ok")])
    assert ask(client(server)).text == "ok"


def test_the_header_of_a_429_is_obeyed_and_fewer_calls_are_sent(serve: Any) -> None:
    server = serve([too_many(17), too_many("12.5"), too_many(), say("ok")])
    llm = client(server, concurrency=8, max_retries=0)
    assert ask(llm).text == "ok", "a 429 does not use up the retries"
    assert llm.waits[:2] == [17, 12.5]  # type: ignore[attr-defined]
    assert llm.concurrency == 1


def test_a_rate_limit_that_speaks_of_quotas_and_billing_is_still_one(serve: Any) -> None:
    words = "You exceeded your current quota, please check your plan and billing details"
    server = serve([fail(429, words, "rate_limit_exceeded"), say("ok")])
    assert ask(client(server)).text == "ok"


def test_the_header_of_a_429_may_be_a_date(serve: Any) -> None:
    def script(request: Request) -> Step:
        later = formatdate(time.time() + 100, usegmt=True)
        return say("ok") if request.index else too_many(later)

    llm = client(serve(script))
    ask(llm)
    assert llm.waits[0] == pytest.approx(100, abs=30)  # type: ignore[attr-defined]


def test_many_calls_at_once_get_through_a_rate_limit(serve: Any) -> None:
    lock, left, asking, most = threading.Lock(), [12], [0], [0]

    def script(request: Request) -> Step:
        with lock:
            left[0] -= 1
            asking[0] += 1
            most[0] = max(most[0], asking[0])
            busy = left[0] >= 0
        time.sleep(0 if busy else 0.05)
        with lock:  # before the answer, after which the client may be quicker than the server
            asking[0] -= 1
        return too_many(0) if busy else say("ok")

    server = serve(script)
    llm = client(server, concurrency=4)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda i: ask(llm, sample=i), range(16)))
    assert [reply.text for reply in replies] == ["ok"] * 16
    assert most[0] <= 4
    assert llm.ledger.totals.calls == 16
    assert llm.ledger.in_flight == ()


# --- failures that stay -----------------------------------------------------------------


def test_retries_come_to_an_end(serve: Any) -> None:
    server = serve([fail(503, "overloaded")])
    llm = client(server, max_retries=3)
    with pytest.raises(LLMError, match=r"no reply in 4 attempts.*overloaded \(HTTP 503\)"):
        ask(llm)
    assert len(server.requests) == 4
    assert llm.ledger.totals.cost == 0, "errors are not billed"


def test_no_wait_goes_past_the_deadline(serve: Any) -> None:
    llm = client(serve([too_many(3600)]), deadline_s=60)
    with pytest.raises(LLMError, match="asks to wait 3600 s"):
        ask(llm)
    assert llm.waits == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "step", [fault(HANG), fault(TRICKLE, text="x" * 999), say(latency_s=99, text="")]
)
def test_no_attempt_outlasts_its_time_out(serve: Any, step: Step, stream: bool) -> None:
    server = serve([step])
    llm = client(server, timeout_s=1.2, max_retries=0, stream=stream)
    began = time.monotonic()
    with pytest.raises(LLMError, match=r"(?i)within 1.2 s|time"):
        ask(llm)
    assert time.monotonic() - began < 30
    assert llm.ledger.totals.usage.input > 0, "the provider may have charged for it"


def test_a_stalled_stream_is_noticed_before_the_time_out(serve: Any) -> None:
    llm = client(serve([fault(HANG)]), timeout_s=60, stall_s=0.7, max_retries=0, stream=True)
    began = time.monotonic()
    with pytest.raises(LLMError):
        ask(llm)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (fail(400, "no such parameter"), "refuses the request: .*no such parameter"),
        (fail(401, f"Incorrect API key provided: {KEY}"), "refuses the key in OPENAI_API_KEY"),
        (fail(403, "not for you"), "refuses the key in OPENAI_API_KEY"),
        (fail(404, "no such model"), "knows no model openai/fake"),
        (fail(402, "pay first"), "no credit left"),
        (fail(429, "You exceeded your current quota", "insufficient_quota"), "no credit left"),
    ],
)
def test_refusals_are_final_and_say_why_in_one_line(serve: Any, step: Step, words: str) -> None:
    server = serve([step])
    with pytest.raises(LLMRefused, match=words) as caught:
        ask(client(server))
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    assert "openai/fake" in str(caught.value)


@pytest.mark.parametrize(
    "step",
    [
        fail(400, "This model's maximum context length is 4096 tokens", "context_length_exceeded"),
        fail(400, "the request exceeds the available context size", "exceed_context_size_error"),
        fail(400, "prompt is too long: 300000 tokens > 200000 maximum", "invalid_request_error"),
        fail(400, "This model's maximum prompt length is 9 but the request contains 10 tokens."),
        fail(400, "The model is loaded with context length of only 4096 tokens"),
        fail(413, "request entity too large"),
    ],
)
def test_an_overlong_prompt_is_an_error_of_its_own(serve: Any, step: Step) -> None:
    server = serve([step])
    with pytest.raises(ContextOverflow, match="too long"):
        ask(client(server))
    assert len(server.requests) == 1


def test_an_unwelcome_prompt_does_not_end_the_run(serve: Any) -> None:
    step = fail(400, "rejected by our safety system", "content_policy_violation")
    server = serve([step])
    with pytest.raises(LLMError, match="does not answer this prompt"):
        ask(client(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"model": "anthropic/claude-sonnet-4-5"}, LLMRefused, "set ANTHROPIC_API_KEY"),
        ({"model": "openai/x", "api_key_env": "MY_LLM_KEY"}, LLMRefused, "set MY_LLM_KEY"),
        ({"model": "some-model"}, UsageError, "for example openai/some-model"),
        ({"model": "openai/x", "max_cost": 1}, UsageError, "use --max-tokens, or give price_in"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        LLM(LLMSettings.model_validate(settings)).check()


def test_a_server_of_ones_own_needs_no_key(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(client(serve(["ok"]))).text == "ok"


def test_the_key_comes_from_the_named_variable(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_SERVER", "lab-key-123456")
    server = serve(["ok"])
    ask(client(server, api_key_env="LAB_SERVER"))
    assert server.requests[0].headers["authorization"] == "Bearer lab-key-123456"


def test_no_proxy_stands_before_a_server_on_this_machine(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "example.org")
    assert ask(client(serve(["ok"]), max_retries=0)).text == "ok"


def test_stop_ends_calls_under_way(serve: Any) -> None:
    server = serve([say("late", latency_s=60)])
    llm = client(server, concurrency=2)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(ask, llm, sample=i) for i in range(4)]
        while server.max_in_flight < 2:
            time.sleep(0.01)
        llm.stop()
        assert [type(call.exception(timeout=30)) for call in calls] == [LLMStopped] * 4
    with pytest.raises(LLMStopped):
        ask(llm)
    assert llm.ledger.totals.calls == 2


def test_nothing_is_printed(serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve([fail(500), fault(MALFORMED), fail(401)])
    with pytest.raises(LLMRefused):
        ask(client(server))
    with pytest.raises(UsageError):
        LLM(LLMSettings(model="nonsense")).check()
    assert capfd.readouterr() == ("", "")


def test_litellm_is_not_imported_with_the_module() -> None:
    code = "import sys, speedkit.core.llm; sys.exit('litellm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what it costs ----------------------------------------------------------------------


def test_the_price_table_is_used(serve: Any) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}
    reply = ask(client(serve([say("ok", usage=usage)]), model="openai/gpt-4.1"))
    assert reply.cost == pytest.approx(2.0 + 0.8)


def test_prices_may_be_given(serve: Any) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 500}
    reply = ask(client(serve([say("ok", usage=usage)]), price_in=3, price_out=6, max_cost=1))
    assert reply.cost == pytest.approx(0.006)


def test_uncounted_tokens_are_estimated_not_free(serve: Any) -> None:
    calls: list[ModelCall] = []
    llm = client(serve([say("some words", usage=None)]), ledger=Ledger(on_call=calls.append))
    reply = ask(llm)
    assert reply.estimated
    assert reply.usage.input > 0
    assert reply.usage.output > 0
    assert calls[0].estimated


def test_the_ledger_is_told_before_and_after(serve: Any) -> None:
    seen: list[Intent | ModelCall] = []
    ledger = Ledger(on_intent=seen.append, on_call=seen.append)
    server = serve([fail(500), say("ok", model="fake-9")])
    reply = ask(client(server, ledger=ledger, max_output_tokens=50), purpose="summary")
    intent, call = seen
    assert isinstance(intent, Intent)
    assert isinstance(call, ModelCall)
    assert intent.request_id == call.request_id == reply.request_id
    assert intent.usage.output == 50
    assert intent.usage.input >= call.usage.input
    assert (call.purpose, call.model, call.model_served) == ("summary", "openai/fake", "fake-9")
    assert (call.attempts, call.status, call.cached) == (2, "ok", False)


def test_the_token_limit_is_passed_by_one_call_at_most(serve: Any) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 100}
    server = serve([say("ok", latency_s=0.03, usage=usage)])
    llm = client(server, max_tokens=1000, max_output_tokens=150)

    def attempt(sample: int) -> str:
        try:
            return ask(llm, sample=sample).text
        except BudgetReached:
            return "limit"

    with ThreadPoolExecutor(12) as pool:
        ends = list(pool.map(attempt, range(30)))
    assert ends.count("ok") == len(server.requests) == 5
    assert 1000 <= llm.ledger.totals.usage.total <= 1200


def test_the_cost_limit_counts_what_was_spent_before(serve: Any) -> None:
    spent = ModelCall("a", "draft", "openai/fake", None, Usage(10, 0, 10), cost=0.99)
    unsettled = Intent("b", "draft", "openai/fake", Usage(10, 0, 99), cost=0.5, input_cost=0.02)
    ledger = Ledger(max_cost=1.0)
    ledger.restore([spent], [unsettled])
    server = serve(["ok"])
    with pytest.raises(BudgetReached, match=r"limit of \$1 .* \(\$1.0100 spent\)"):
        ask(client(server, ledger=ledger, price_in=1, price_out=1))
    assert server.requests == []


def test_settings_can_be_changed_on_one_ledger(serve: Any) -> None:
    server = serve(["ok"])
    llm = client(server)
    ask(llm)
    ask(llm.using(model="openai/other"))
    assert [r.body["model"] for r in server.requests] == ["fake", "other"]
    assert llm.ledger.totals.calls == 2


# --- the cache --------------------------------------------------------------------------


def test_a_search_is_replayed_offline_byte_for_byte(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "replies.sqlite"
    text = "déjà vu \u2028 \r\n\t<b>\x00 tail \N{SNAKE}"
    with FakeOpenAI(lambda r: say(f"{text} {r.index}", model="fake-7")) as server:
        llm = client(server, cache=cache)
        first = [ask(llm, sample=i) for i in range(3)]
        again = ask(llm, sample=1)
    assert len(server.requests) == 3
    assert (again.text, again.cached, again.cost) == (first[1].text, True, 0.0)

    offline = client(server, cache=cache, cache_mode="replay", max_cost=0)
    replayed = [ask(offline, sample=i) for i in range(3)]
    assert [r.text for r in replayed] == [r.text for r in first]
    assert [r.usage for r in replayed] == [r.usage for r in first]
    assert {r.model_served for r in replayed} == {"fake-7"}
    assert offline.ledger.totals.cached_replies == 3
    assert offline.ledger.totals.cost == 0
    with pytest.raises(LLMRefused, match="has no reply to this prompt"):
        ask(offline, sample=3)


@pytest.mark.parametrize(
    "change", [{"model": "openai/other"}, {"temperature": 0.5}, {"max_output_tokens": 5}]
)
def test_another_request_is_not_answered_from_the_cache(
    serve: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    server = serve(["ok"])
    ask(client(server, cache=tmp_path / "c"))
    assert not ask(client(server, cache=tmp_path / "c", **change)).cached
    assert not ask(client(server, cache=tmp_path / "c"), system="other").cached
    assert ask(client(server, cache=tmp_path / "c")).cached


def test_equal_requests_at_once_are_sent_once(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda r: say(f"reply {r.index}", latency_s=0.1))
    llm = client(server, cache=tmp_path / "c")
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: ask(llm), range(6)))
    assert {reply.text for reply in replies} == {"reply 0"}
    assert len(server.requests) == 1
    assert sum(reply.cached for reply in replies) == 5


def test_of_two_runs_that_ask_the_same_both_go_on_as_a_replay_will(
    serve: Any, tmp_path: Path
) -> None:
    def script(request: Request) -> Step:
        if request.index == 0:
            ask(client(server, cache=tmp_path / "c"))  # another run is asked later, and is faster
        return say(f"reply {request.index}", model=f"model-{request.index}")

    server = serve(script)
    replies = [ask(client(server, cache=tmp_path / "c")) for _ in range(2)]
    assert [reply.cached for reply in replies] == [False, True]
    assert [(r.text, r.model_served) for r in replies] == [("reply 1", "model-1")] * 2


@pytest.mark.parametrize("settings", [{}, {"cache": Path("/nowhere/replies")}])
def test_replay_without_a_cache_is_a_mistake(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="replay"):
        LLM(LLMSettings(model="openai/x", cache_mode="replay", **settings))


def test_a_file_that_is_no_cache_is_named(serve: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, just some text that is long enough" * 50)
    with pytest.raises(UsageError, match=r"notes\.txt cannot be used"):
        ask(client(serve(["ok"]), cache=path))


# --- what is written --------------------------------------------------------------------


def test_each_prompt_and_reply_has_a_file(serve: Any, tmp_path: Path) -> None:
    llm = client(serve([fail(500, "hiccup"), say("one"), say("two"), fail(401, "no")]))
    ask(llm, log_dir=tmp_path)
    ask(llm, log_dir=tmp_path)
    with pytest.raises(LLMRefused):
        ask(llm, log_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    numbers = ("001", "002", "003")
    assert names == [f"{kind}-{n}.md" for kind in ("prompt", "reply") for n in numbers]
    prompt, first, last = (
        (tmp_path / name).read_text() for name in ("prompt-001.md", "reply-001.md", "reply-003.md")
    )
    assert "## system\n\nbe exact\n\n## user\n\nmake it faster\n" in prompt
    assert "## failed attempts\n\n- hiccup (HTTP 500)\n\n## reply\n\none\n" in first
    assert "attempts: 2" in first
    assert "refuses the key in OPENAI_API_KEY" in last


def test_the_key_is_in_no_file_prompt_or_reply(serve: Any, tmp_path: Path) -> None:
    server = serve(
        [fail(500, f"bad key {KEY}"), say(f"echo {KEY}"), fail(401, f"Incorrect key: {KEY}")]
    )
    llm = client(server, cache=tmp_path / "replies.sqlite")
    prompt = [{"role": "user", "content": f"my key is {KEY}"}]
    reply = llm.complete(prompt, purpose="draft", log_dir=tmp_path / "logs")
    assert reply.text == "echo [secret OPENAI_API_KEY]"
    assert "canary" not in server.requests[0].prompt
    with pytest.raises(LLMRefused) as caught:
        llm.complete(prompt, purpose="draft", sample=1, log_dir=tmp_path / "logs")
    assert "canary" not in str(caught.value)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if b"canary" in path.read_bytes()]


def test_a_redactor_may_be_given(serve: Any) -> None:
    server = serve(["the launch code is 12345678"])
    settings = LLMSettings(model="openai/fake", api_base=server.url)
    llm = LLM(settings, redactor=Redactor({"CODE": "12345678"}))
    assert ask(llm).text == "the launch code is [secret CODE]"
