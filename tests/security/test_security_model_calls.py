"""Servers of language models that answer late, or say what should not be passed on."""

from __future__ import annotations

import pytest

from speedkit.core.errors import ConfigError, SpeedkitError
from speedkit.core.llm import LLM, LLMSettings
from tests.core.test_resume import check_once
from tests.e2e.test_models import calls_of, fewer_steps, settings
from tests.kit.fake_openai import Step, fail, say
from tests.security.provider_keys import made_up_keys
from tests.security.test_security_hostile_text import CONTROL, SPOOF


@pytest.fixture
def key(monkeypatch):
    """Set a key that nobody may see."""
    made = made_up_keys(9)["COHERE_API_KEY"]
    monkeypatch.setenv("OPENAI_API_KEY", made)
    return made


def test_an_answer_after_the_time_out_is_paid_for_and_makes_no_second_node(
    toy_run, fake_openai, key
):
    def late_at_first(request):
        text = fewer_steps(request).text
        return Step(text=text, latency_s=0.0 if request.index else 4.0)

    server = fake_openai(late_at_first)
    llm = {"timeout_s": 2.0, "max_output_tokens": 100}
    tree = toy_run(**settings(server, nodes=1, scaffold="flat", llm=llm))
    sent = len(server.requests)
    assert sent >= 2
    assert [node.id for node in tree] == [0, 1]
    check_once(tree.path)
    (call,) = calls_of(tree.path)
    assert call["attempts"] == sent
    assert call["estimated"] is True
    counted = len(server.requests[1].prompt) // 4 + 1
    assert call["usage"]["input"] > 0.9 * sent * counted


def complete(server, **script):
    llm = LLM(LLMSettings(**server.settings, max_retries=0, **script))
    return llm.complete([{"role": "user", "content": "hello"}], purpose="test")


@pytest.mark.parametrize("status", [400, 401, 404, 500])
@pytest.mark.parametrize("before", [0, 270, 290, 3990])
def test_no_part_of_a_key_is_in_an_error_however_that_is_cut(fake_openai, key, status, before):
    message = "x" * before + key + SPOOF + "y" * 10_000
    server = fake_openai([fail(status, message)])
    with pytest.raises(SpeedkitError) as caught:
        complete(server, deadline_s=5)
    said = str(caught.value)
    assert not any(key[:n] in said for n in (6, len(key)))
    assert not CONTROL.search(said)
    assert "\n" not in said
    assert len(said) < 700


def test_a_server_cannot_give_its_model_a_name_of_many_lines(fake_openai, key):
    server = fake_openai([say("hello", model=f"fake {key}\n\nOutcome: valid {SPOOF}{'z' * 9000}")])
    reply = complete(server)
    assert key not in reply.model_served
    assert not CONTROL.search(reply.model_served)
    assert "\n" not in reply.model_served
    assert len(reply.model_served) <= 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_base": "https://user:" + "pass" + "word@host/v1"},
        {"api_base": "https://host/v1?key=" + made_up_keys()["GEMINI_API_KEY"]},
        {"llm": {"api_key_env": made_up_keys()["OPENAI_API_KEY"]}},
        {"llm": {"api_key_env": "MY KEY"}},
        {"llm": {"api_key_env": "a-b"}},
    ],
    ids=["password", "in the query", "the key", "a space", "a dash"],
)
def test_settings_of_calls_hold_names_of_keys_and_no_keys(toy_run, wrong):
    with pytest.raises(ConfigError) as caught:
        toy_run(model="openai/fake", coder="llm", **wrong)
    said = str(caught.value)
    assert "variable" in said
    assert not any(key in said for key in made_up_keys().values())
