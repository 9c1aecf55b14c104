"""The coder ``llm``: what it asks, what it makes of the answers, and how it gives up."""

from __future__ import annotations

import functools
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from speedkit.core.components import KnowledgeEntry
from speedkit.core.errors import BudgetReached, UsageError
from speedkit.core.ledger import Usage
from speedkit.core.llm import LLM, LLMSettings
from speedkit.core.llm_types import ContextOverflow, LLMError, LLMRefused, LLMStopped, Reply
from speedkit.core.node import Outcome, Stage
from speedkit.core.prompting import END_MARKER, installed_packages
from speedkit.plugins.coders import llm as llm_module
from speedkit.plugins.coders._continuation import complete_lines, join_parts
from speedkit.plugins.coders._hypothesis import MAX_LENGTH, MISSING, read_hypothesis
from speedkit.plugins.coders.llm import LLMCoder
from tests.kit.code_requests import code_request, node, services, toy_task
from tests.kit.fake_openai import HANG, FakeOpenAI, fault, say

OLD = toy_task().start.read()
LINE = "    num_iterations: int = 100\n"


def edit(steps=60, end=True, hypothesis="fewer steps suffice"):
    new = LINE.replace("100", str(steps))
    body = f"<<<<<<< SEARCH\n{LINE}=======\n{new}>>>>>>> REPLACE"
    tail = f"\n\n{END_MARKER}\n" if end else "\n"
    return f"HYPOTHESIS: {hypothesis}\n\nsolve.py\n```python\n{body}\n```{tail}"


def whole(steps=60):
    return f"solve.py\n```python\n{new_code(steps)}```\n{END_MARKER}\n"


def new_code(steps=60):
    return OLD.replace(LINE, LINE.replace("100", str(steps)))


BROKEN = edit().replace(LINE, "    num_iterations: int = 101\n")


@pytest.fixture(autouse=True, scope="module")
def list_packages_once():
    """Ask the interpreter for its packages once, not for every coder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm_module, "installed_packages", functools.cache(installed_packages))
        yield


@dataclass
class FakeLLM:
    """Answers with texts, replies or exceptions, in order; the last one for ever after."""

    answers: list
    calls: list = field(default_factory=list)

    def complete(self, messages, *, system="", purpose, sample=0, log_dir=None):
        self.calls.append({"messages": messages, "system": system, "purpose": purpose})
        self.calls[-1].update(sample=sample, log_dir=log_dir)
        answer = self.answer(purpose, sample)
        answer = answer(messages) if callable(answer) else answer
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Reply) else reply(answer)

    def answer(self, purpose, sample):
        return self.answers[min(len(self.calls), len(self.answers)) - 1]

    @property
    def purposes(self):
        return [call["purpose"] for call in self.calls]

    def said(self, index):
        return "\n".join(message["content"] for message in self.calls[index]["messages"])


class PerSample(FakeLLM):
    """Answers each sample with its own, and a choice with the last; samples come in any order."""

    def answer(self, purpose, sample):
        return self.answers[-1 if purpose == "select" else sample % len(self.answers[:-1])]


def reply(text, finish_reason="stop", model="fake-1"):
    return Reply(text, model, Usage(1, 0, 1), 0.0, finish_reason)


def write(tmp_path, answers, request=None, **options):
    llm = answers if isinstance(answers, FakeLLM) else FakeLLM(list(answers))
    coder = LLMCoder(LLMCoder.Options(**options))
    coder.bind(services(llm))
    return coder.write(request or code_request(tmp_path)), llm


# --- edits ------------------------------------------------------------------------------


def test_an_edit_becomes_a_draft(tmp_path):
    draft, llm = write(tmp_path, [edit()])
    assert draft.files == {"solve.py": new_code()}
    assert draft.hypothesis == "fewer steps suffice"
    assert (draft.failure, draft.model) == ("", "fake-1")
    assert draft.notes == {"edit_format": "search_replace", "edit_errors": []}
    assert llm.purposes == ["code"]
    assert "validation loss" in llm.calls[0]["system"]
    assert llm.calls[0]["log_dir"] == tmp_path


@pytest.mark.parametrize(
    ("edit_format", "answer"),
    [
        ("whole", whole()),
        ("search_replace", edit()),
        (
            "udiff",
            f"```diff\n@@ @@\n-{LINE}+{LINE.replace('100', '60')}```\n",
        ),
    ],
)
def test_every_format_is_asked_for_and_applied(tmp_path, edit_format, answer):
    draft, llm = write(tmp_path, [answer], edit_format=edit_format)
    assert draft.files == {"solve.py": new_code()}
    marks = {"whole": "the complete file", "search_replace": "<<<<<<< SEARCH", "udiff": "```diff"}
    for name, mark in marks.items():
        assert (mark in llm.said(0)) == (name == edit_format)


def test_a_failed_edit_is_asked_again_with_the_exact_error(tmp_path):
    draft, llm = write(tmp_path, [BROKEN, edit()])
    assert draft.files == {"solve.py": new_code()}
    assert llm.purposes == ["code", "reflect"]
    roles = [message["role"] for message in llm.calls[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert llm.calls[1]["messages"][1]["content"] == BROKEN
    asked = llm.calls[1]["messages"][2]["content"]
    assert "edit 1 quotes lines that are not in solve.py" in asked
    assert "    num_iterations: int = 100" in asked
    assert "Repair 1 of at most 5" in asked
    assert len(draft.notes["edit_errors"]) == 1


def test_only_the_last_failed_answer_is_shown_again(tmp_path):
    _, llm = write(tmp_path, [BROKEN, "nothing", edit()], fallback=0)
    assert len(llm.calls[2]["messages"]) == 3
    assert "101" not in llm.said(2)


def test_equal_failures_do_not_make_equal_prompts(tmp_path):
    _, llm = write(tmp_path, [BROKEN], fallback=0)
    prompts = [llm.said(i) for i in range(len(llm.calls))]
    assert len(set(prompts)) == len(prompts) == 6


def test_python_that_does_not_parse_goes_back_to_the_model(tmp_path):
    draft, llm = write(tmp_path, [edit("(1"), edit()])
    assert not draft.failure
    assert "no valid Python: line 8" in llm.said(1)


def test_after_failed_edits_whole_files_are_asked_for(tmp_path):
    draft, llm = write(tmp_path, [BROKEN, BROKEN, whole()], fallback=2)
    assert draft.files == {"solve.py": new_code()}
    assert draft.notes["edit_format"] == "whole"
    assert "the complete file" not in llm.said(1)
    assert "another answer format" in llm.calls[2]["messages"][-1]["content"]
    assert "<<<<<<< SEARCH" not in llm.calls[2]["messages"][0]["content"]


def test_no_usable_edit_to_the_last_is_an_edit_failure(tmp_path):
    draft, llm = write(tmp_path, ["I cannot help with that."], max_reflections=3)
    assert len(llm.calls) == 4
    assert draft.failure.startswith("edit: none of 4 answers was a usable edit; the last: ")
    assert "\n" not in draft.failure
    assert draft.files == {"solve.py": OLD}
    assert draft.notes["failure"] == "edit"
    assert len(draft.notes["edit_errors"]) == 4


def test_no_reflections_means_one_call(tmp_path):
    draft, llm = write(tmp_path, [BROKEN], max_reflections=0)
    assert draft.failure.startswith("edit: ")
    assert llm.purposes == ["code"]


def test_an_empty_answer_is_not_sent_back_empty(tmp_path):
    draft, llm = write(tmp_path, ["", edit()])
    assert not draft.failure
    assert all(message["content"].strip() for message in llm.calls[1]["messages"])
    assert "the answer is empty" in llm.said(1)


def test_a_huge_answer_is_not_sent_back_whole(tmp_path):
    _, llm = write(tmp_path, ["x" * 11 * 1024 * 1024, edit()])
    assert len(llm.said(1)) < 60_000


def test_withheld_answers_are_no_edits(tmp_path):
    draft, llm = write(tmp_path, [reply(edit(), "content_filter"), edit()])
    assert not draft.failure
    assert "withheld by the provider (content_filter)" in llm.said(1)


def test_an_unknown_ending_needs_the_end_marker(tmp_path):
    draft, llm = write(tmp_path, [reply(edit(end=False), "unknown"), reply(edit(), "unknown")])
    assert not draft.failure
    assert "breaks off" in llm.said(1)


# --- errors of the client ---------------------------------------------------------------


@pytest.mark.parametrize("error", [LLMRefused("key"), BudgetReached("spent")])
def test_what_stops_a_run_is_not_swallowed(tmp_path, error):
    with pytest.raises(type(error)):
        write(tmp_path, [error])
    with pytest.raises(type(error)):
        write(tmp_path, [BROKEN, error])


def test_exhausted_retries_are_a_failure_of_the_node(tmp_path):
    draft, _ = write(tmp_path, [LLMError("no answer\nafter 7 attempts")])
    assert draft.failure == "model: no answer after 7 attempts"
    assert draft.notes["failure"] == "model"
    assert draft.model is None
    later, _ = write(tmp_path, [BROKEN, LLMError("gone")])
    assert later.failure == "model: gone"
    assert later.model == "fake-1"


# --- cut answers ------------------------------------------------------------------------


def cut(text, at, finish_reason="length"):
    return reply(text[:at], finish_reason)


@pytest.mark.parametrize("repeat", [True, False])
def test_a_cut_answer_is_continued_wherever_it_was_cut(tmp_path, repeat):
    text = edit()
    for at in range(1, len(text)):
        kept = complete_lines(text[:at])
        rest = text[len(kept) :]
        if repeat and kept:
            rest = kept.rstrip("\n").rsplit("\n", 1)[-1] + "\n" + rest
        draft, llm = write(tmp_path, [cut(text, at), rest if kept else text])
        assert draft.files == {"solve.py": new_code()}, at
        if len(llm.calls) > 1:
            assert llm.purposes[1] == ("continue" if kept else "reflect")


def test_a_continuation_shows_what_there_was_and_counts(tmp_path):
    text = whole()
    draft, llm = write(tmp_path, [cut(text, 300), text[300:]], edit_format="whole")
    first, second = llm.calls[1]["messages"][1:]
    assert first == {"role": "assistant", "content": complete_lines(text[:300])}
    assert "Go on from there" in second["content"]
    assert draft.notes.get("continuations") == 1


def test_an_answer_cut_for_ever_is_an_edit_failure(tmp_path):
    text = edit()
    draft, llm = write(
        tmp_path, [cut(text, 120)], max_reflections=1, max_continuations=2, fallback=0
    )
    assert draft.failure.startswith("edit: ")
    assert llm.purposes == ["code", "continue", "continue", "reflect", "continue", "continue"]
    assert draft.files == {"solve.py": OLD}


def test_a_cut_after_the_end_marker_needs_no_continuation(tmp_path):
    draft, llm = write(tmp_path, [reply(edit() + "Bye, and", "length")])
    assert not draft.failure
    assert llm.purposes == ["code"]


def test_all_tokens_spent_on_thought_is_a_failed_edit(tmp_path):
    draft, llm = write(tmp_path, [reply("", "length"), edit()])
    assert not draft.failure
    assert llm.purposes == ["code", "reflect"]
    assert "before the answer began" in llm.said(1)


CODE = "```python\nx = 1\nx = 1\ny = 2\n```\n"


@pytest.mark.parametrize(
    ("kept", "more", "whole_text"),
    [
        ("a\nb\n", "b\nc\n", "a\nb\nc\n"),
        ("a\nb\n", "c\n", "a\nb\nc\n"),
        ("a\nb\n", "a\nb\nc\n", "a\nb\nc\n"),
        ("a\nb\n", "\n\nb\r\nc\n", "a\nb\nc\n"),
        ("```python\nx = 1\n", "x = 1\nx = 1\ny = 2\n```\n", CODE),
        ("```python\nx = 1\nx = 1\n", "x = 1\ny = 2\n```\n", CODE),
        ("```python\nx = 1\nx = 1\n", "```python\nx = 1\ny = 2\n```\n", CODE),
        ("```python\nx = 1\nx = 1\ny = 2\n", "```\n", CODE),
        ("a\n", "", "a\n"),
    ],
)
def test_parts_are_joined_without_repetition(kept, more, whole_text):
    assert join_parts(kept, more) == whole_text


@given(st.lists(st.sampled_from(["a", "b", "  a", ""]), max_size=12), st.integers(0, 40))
def test_a_continuation_that_obeys_restores_the_text(lines, at):
    text = "\n".join(lines) + "\n"
    kept = complete_lines(text[:at])
    if not kept:
        return
    repeated = kept.rstrip("\n").rsplit("\n", 1)[-1] + "\n" + text[len(kept) :]
    if repeated.startswith("\n"):
        return
    assert join_parts(kept, repeated) == text


# --- context ----------------------------------------------------------------------------

LONG = [KnowledgeEntry("files", f"note {i}", "word " * 400) for i in range(5)]


def too_long_over(limit):
    def answer(messages):
        size = sum(len(message["content"]) for message in messages)
        return ContextOverflow("too long") if size > limit else reply(edit())

    return answer


def history_request(tmp_path, **fields):
    nodes = [node(1, outcome=Outcome.BUGGY, metrics=None, summary="seen " * 300)]
    return code_request(tmp_path, nodes=nodes, knowledge=LONG, **fields)


def test_a_prompt_that_is_too_long_loses_history_then_the_tail_of_knowledge(tmp_path):
    seen = []

    def answer(messages):
        text = messages[0]["content"]
        notes = len(re.findall(r"^### note", text, re.MULTILINE))
        seen.append(("Earlier attempts" in text, notes))
        return ContextOverflow("too long") if notes > 1 else reply(edit())

    draft, _ = write(tmp_path, [answer], history_request(tmp_path))
    assert seen == [(True, 5), (False, 5), (False, 2), (False, 1)]
    assert draft.notes["shortened"] == {"history_tokens": 0, "knowledge_entries": 1}
    assert not draft.failure


def test_a_prompt_that_never_fits_is_a_failure(tmp_path):
    draft, llm = write(tmp_path, [ContextOverflow("too long")], history_request(tmp_path))
    told = "context: the prompt does not fit the model, even at its shortest: too long"
    assert draft.failure == told
    assert draft.notes["failure"] == "context"
    assert len({llm.said(i) for i in range(len(llm.calls))}) == len(llm.calls) == 5


def test_without_history_and_knowledge_nothing_can_be_dropped(tmp_path):
    draft, llm = write(tmp_path, [ContextOverflow("too long")])
    assert draft.failure.startswith("context: ")
    assert len(llm.calls) == 1


def test_a_shortened_prompt_stays_short_for_repairs(tmp_path):
    base = len(history_request(tmp_path).files["solve.py"])
    answers = FakeLLM([too_long_over(base + 9000), BROKEN, edit()])
    draft, llm = write(tmp_path, answers, history_request(tmp_path))
    assert not draft.failure
    assert "Earlier attempts" not in llm.said(len(llm.calls) - 1)


# --- independence -----------------------------------------------------------------------


def test_siblings_have_the_same_prompt_and_their_own_samples(tmp_path):
    llm = FakeLLM([edit()])
    coder = LLMCoder()
    coder.bind(services(llm))
    with ThreadPoolExecutor(4) as pool:
        requests = [code_request(tmp_path, node_id=i, sibling=i, siblings=4) for i in range(1, 5)]
        drafts = list(pool.map(coder.write, requests))
    assert all(draft.files == {"solve.py": new_code()} for draft in drafts)
    assert sorted(call["sample"] for call in llm.calls) == [1, 2, 3, 4]
    assert len({llm.said(i) for i in range(4)}) == 1


def test_no_chat_is_carried_from_node_to_node(tmp_path):
    llm = FakeLLM([BROKEN, edit(), edit(70)])
    coder = LLMCoder()
    coder.bind(services(llm))
    coder.write(code_request(tmp_path, node_id=1))
    coder.write(code_request(tmp_path, node_id=2))
    assert llm.calls[2]["messages"] == llm.calls[0]["messages"]


def test_the_parent_of_the_request_is_what_is_edited(tmp_path):
    nodes = [node(1)]
    request = code_request(
        tmp_path, nodes, parent=1, stage=Stage.IMPROVE, files={"solve.py": new_code(80)}
    )
    answer = edit().replace("int = 100", "int = 80")
    draft, llm = write(tmp_path, [answer], request)
    assert draft.files == {"solve.py": new_code(60)}
    assert "num_iterations: int = 80" in llm.said(0)


# --- best of several --------------------------------------------------------------------


def test_the_best_of_several_drafts_is_chosen_by_the_model(tmp_path):
    answers = [edit(60), edit(50), edit(40), "The second is sound.\n**CHOICE: 2**"]
    draft, llm = write(tmp_path, PerSample(answers), best_of=3)
    assert draft.files == {"solve.py": new_code(50)}
    assert draft.notes["chosen"] == 1
    assert draft.notes["chosen_by"] == "model"
    assert llm.purposes == ["code", "code", "code", "select"]
    folders = {call["sample"]: call["log_dir"].relative_to(tmp_path) for call in llm.calls[:3]}
    assert {n: str(folder) for n, folder in folders.items()} == {
        3: "draft-1",
        4: "draft-2",
        5: "draft-3",
    }
    assert llm.calls[3]["log_dir"] == tmp_path
    for part in ("## Proposal 3", "+    num_iterations: int = 40", "fewer steps suffice"):
        assert part in llm.said(3)


@pytest.mark.parametrize(
    "answer", ["no idea", "CHOICE: 9", "CHOICE: 0", "", LLMError("gone"), ContextOverflow("long")]
)
def test_without_a_clear_choice_the_first_draft_is_taken(tmp_path, answer):
    draft, _ = write(tmp_path, PerSample([edit(60), edit(50), answer]), best_of=2)
    assert draft.files == {"solve.py": new_code(60)}
    assert draft.notes["chosen_by"] == "first"


def test_drafts_that_fail_take_no_part_in_the_choice(tmp_path):
    answers = PerSample([BROKEN, edit(50), "never asked"])
    draft, llm = write(tmp_path, answers, best_of=2, max_reflections=0)
    assert draft.files == {"solve.py": new_code(50)}
    assert draft.notes["chosen_by"] == "only"
    assert llm.purposes == ["code", "code"]
    failed, _ = write(tmp_path, [BROKEN], best_of=2, max_reflections=0)
    assert failed.failure.startswith("edit: ")


def test_only_drafts_are_drawn_several_times(tmp_path):
    request = code_request(tmp_path, [node(1)], parent=1, stage=Stage.IMPROVE)
    _, llm = write(tmp_path, [edit()], request, best_of=3)
    assert llm.purposes == ["code"]


# --- hypotheses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HYPOTHESIS: a b\n\nc", "a b"),
        ("Sure!\n\n**HYPOTHESIS:** a\nb\n\nc", "a b"),
        ("## Hypothesis:\n\na b\n```python\n", "a b"),
        ("HYPOTHESIS: a\nsolve.py\n```python\n", "a"),
        ("HYPOTHESIS: a\n<<<<<<< SEARCH\n", "a"),
        ("HYPOTHESIS: a\r\nb\r\n\r\nc", "a b"),
        ("HYPOTHESIS: a\x1b[31m\u202eb\tc", "a[31mb c"),
        ("HYPOTHESIS:\n```\ncode\n```", MISSING),
        ("no label", MISSING),
        ("", MISSING),
    ],
)
def test_hypotheses_are_read(text, expected):
    assert read_hypothesis(text, ("solve.py",)) == expected


@given(st.text())
def test_hypotheses_are_one_bounded_line(text):
    for source in (text, f"HYPOTHESIS: {text}", f"HYPOTHESIS: {text * 40}"):
        found = read_hypothesis(source)
        assert 0 < len(found) <= MAX_LENGTH
        assert not re.search(r"[\n\r\x00-\x1f]", found)


# --- options ----------------------------------------------------------------------------


def test_options_are_described_and_checked():
    assert all(field.description for field in LLMCoder.Options.model_fields.values())
    for wrong in ({"edit_format": "json"}, {"max_reflections": -1}, {"best_of": 0}, {"x": 1}):
        with pytest.raises(ValidationError):
            LLMCoder.Options(**wrong)


def test_own_prompts_are_used_and_checked(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "system.j2").write_text("Be brief.")
    _, llm = write(tmp_path, [edit()], prompts=folder)
    assert llm.calls[0]["system"].strip() == "Be brief."
    (folder / "system.j2").write_text("{{ nonsense }}")
    with pytest.raises(UsageError, match="unknown slot 'nonsense'"):
        write(tmp_path, [edit()], prompts=folder)


# --- the real client --------------------------------------------------------------------


def real_client(server, monkeypatch, **fields):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key")
    return LLM(LLMSettings(model="openai/fake", api_base=server.url, **fields))


def test_with_the_real_client_and_a_server(tmp_path, monkeypatch):
    script = [
        BROKEN,
        say(edit()[:130], finish_reason="length"),
        edit()[len(complete_lines(edit()[:130])) :],
    ]
    with FakeOpenAI(script) as server:
        coder = LLMCoder()
        coder.bind(services(real_client(server, monkeypatch)))
        draft = coder.write(code_request(tmp_path))
        assert draft.files == {"solve.py": new_code()}
        assert draft.notes["continuations"] == 1
        assert len(server.requests) == 3
        assert "validation loss" in server.requests[2].system
    assert any(tmp_path.iterdir())


def test_a_context_error_of_the_server_shortens_the_prompt(tmp_path, monkeypatch):
    def script(request):
        if "Earlier attempts" in request.prompt:
            message = "This model's maximum context length is 8 tokens."
            return say("", status=400, error=("context_length_exceeded", message))
        return edit()

    with FakeOpenAI(script) as server:
        coder = LLMCoder()
        coder.bind(services(real_client(server, monkeypatch)))
        draft = coder.write(history_request(tmp_path))
    assert draft.files == {"solve.py": new_code()}
    assert draft.notes["shortened"] == {"history_tokens": 0, "knowledge_entries": 5}


def all_at_once(texts):
    """Answer only when so many requests are there, those that came first last."""
    here = threading.Barrier(len(texts), timeout=60)

    def script(request):
        if request.index >= len(texts):
            return "CHOICE: 3"
        here.wait()
        return say(texts[request.index], latency_s=0.05 * (len(texts) - request.index))

    return script


def test_drafts_are_asked_for_at_once_and_replayed(tmp_path, monkeypatch):
    fields = {"cache": tmp_path / "cache.sqlite"}
    coder = LLMCoder(LLMCoder.Options(best_of=3))
    with FakeOpenAI(all_at_once([edit(60), edit(50), edit(40)])) as server:
        llm = real_client(server, monkeypatch, **fields)
        coder.bind(services(llm))
        draft = coder.write(code_request(tmp_path / "node"))
        assert server.max_in_flight == 3
        assert llm.ledger.totals.calls == 4
        assert llm.ledger.in_flight == ()
    assert draft.notes["chosen_by"] == "model"
    logs = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("node/*/*"))
    pair = ("prompt-001.md", "reply-001.md")
    assert logs == [f"node/draft-{n}/{name}" for n in (1, 2, 3) for name in pair]
    coder.bind(services(real_client(server, monkeypatch, **fields, cache_mode="replay")))
    assert coder.write(code_request(tmp_path / "again")) == draft
    for n in (1, 2, 3):
        folder = f"draft-{n}/reply-001.md"
        first, second = ((tmp_path / run / folder).read_text() for run in ("node", "again"))
        assert first.split("## reply")[1] == second.split("## reply")[1]


def test_drafts_together_keep_a_limit(tmp_path, monkeypatch):
    with FakeOpenAI([edit()], latency_s=0.1) as server:
        llm = real_client(server, monkeypatch, max_tokens=1)
        coder = LLMCoder(LLMCoder.Options(best_of=4))
        coder.bind(services(llm))
        with pytest.raises(BudgetReached, match="the limit of 1 tokens"):
            coder.write(code_request(tmp_path))
        assert len(server.requests) == 1, "what was in flight counted"
        assert llm.ledger.in_flight == ()


def test_drafts_end_when_the_run_does(tmp_path, monkeypatch):
    with FakeOpenAI([fault(HANG)]) as server:
        llm = real_client(server, monkeypatch)
        coder = LLMCoder(LLMCoder.Options(best_of=3))
        coder.bind(services(llm))

        def stop():
            while len(server.requests) < 3:
                time.sleep(0.01)
            llm.stop()

        threading.Thread(target=stop, daemon=True).start()
        with pytest.raises(LLMStopped):
            coder.write(code_request(tmp_path))
    assert llm.ledger.in_flight == ()
    assert not [t for t in threading.enumerate() if t.name.startswith("draft")]
