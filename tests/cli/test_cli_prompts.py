"""``speedkit prompts``, and the prompt in the plan of a run."""

from __future__ import annotations

import sys

import pytest

from speedkit.core.config import check_config
from speedkit.core.errors import UsageError
from speedkit.core.plugins import Plugins
from speedkit.core.preview import first_prompt, prompt_tokens
from speedkit.core.prompting import SLOTS, Templates
from speedkit.core.task import find_task
from tests.conftest import INSTANT, TOY
from tests.kit.fake_openai import FakeOpenAI, say

TASK = f"{TOY}/1"
KEY = "sk" + "-canary-0123456789abcdefghijklmnop"


def content(plan):
    """Return the one message of a prompt."""
    (message,) = plan["messages"]
    assert message["role"] == "user"
    return message["content"]


# --- templates ------------------------------------------------------------------------------


def test_templates_are_listed_with_their_slots(program):
    lines = program("prompts").out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(SLOTS)
    assert "continue               last_line" in program("prompts").out
    rows = program("prompts", "--json").json
    assert {row["name"]: tuple(row["slots"]) for row in rows} == SLOTS


@pytest.mark.parametrize("name", ["draft", "hint_3", "system"])
def test_a_template_is_shown_as_it_is(program, name):
    assert program("prompts", name).out == Templates().source(name)
    assert program("prompts", name, "--json").json["source"] == Templates().source(name)


def test_a_template_of_ones_own_is_shown(program, tmp_path):
    (tmp_path / "draft.j2").write_text("Make {{ script }} faster.")
    assert program("prompts", "draft", "--prompts", tmp_path).out == "Make {{ script }} faster."
    rows = program("prompts", "--prompts", tmp_path, "--json").json
    assert {r["path"] for r in rows if r["name"] == "draft"} == {str(tmp_path / "draft.j2")}


# --- filled prompts -------------------------------------------------------------------------


def test_the_prompt_of_a_task_needs_no_model(program):
    result = program("prompts", "--task", TASK)
    assert result.code == 0, result.err
    assert result.out.startswith("--- system ---\n\n")
    assert "--- user ---\n\n# Task toy/1: sorting by fewer swaps" in result.out
    assert find_task(TASK).start.read().strip() in result.out
    assert "{{" not in result.out
    assert "tokens" in result.err


def test_hints_stand_in_the_prompt(program):
    result = program("prompts", "draft", "--task", "mini/1", "--hints", "1,2", "--json")
    assert result.err == ""
    text = content(result.json)
    assert all(find_task("mini/1").hint(level).strip() in text for level in (1, 2))
    assert find_task("mini/1").hint(3).strip() not in text


def test_without_knowledge_the_draft_is_unguided(program):
    named = program("prompts", "draft", "--task", TASK)
    assert "draft_unguided takes the place of draft" in named.err
    assert named.out == program("prompts", "draft_unguided", "--task", TASK).out


def test_the_template_named_is_the_one_that_is_filled(program, tmp_path):
    for name in ("draft", "draft_unguided", "improve"):
        (tmp_path / f"{name}.j2").write_text(f"template {name} of {{{{ task }}}}")
    own = ("--task", "mini/1", "--prompts", tmp_path, "--json")
    for name, hints in [("draft", "1"), ("draft_unguided", "none"), ("improve", "none")]:
        plan = program("prompts", name, *own, "--hints", hints).json
        assert content(plan) == f"template {name} of mini/1\n"


def test_the_options_of_the_coder_count(program):
    whole = ("-o", "coder.edit_format=whole")
    plan = program("prompts", "--task", TASK, "--json", *whole).json
    assert content(plan) != content(program("prompts", "--task", TASK, "--json").json)


def test_the_packages_are_those_of_the_interpreter_that_runs_the_scripts(
    program, tmp_path, monkeypatch
):
    for name in ("ours", "theirs"):
        python = tmp_path / name
        python.write_text(f'#!/bin/sh\necho \'[["{name}", "1"]]\'\n')
        python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    told = ("prompts", "--task", TASK, "-o", "executor.python=./theirs")
    assert "\n\ntheirs 1\n\n" in program(*told).out
    assert "\n\nours 1\n\n" in program(*told, "-o", f"coder.python={tmp_path / 'ours'}").out
    away = program("prompts", "--task", TASK, "-o", "executor.python=./nobody's")
    assert (away.code, away.out) == (2, "")
    assert "executor.python" in away.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drafd"], "did you mean draft?"),
        (["drafd", "--task", TASK], "did you mean draft?"),
        (["debug", "--task", TASK], "debug does not ask for node 1"),
        (["draft_unguided", "--task", "mini/1", "--hints", "1"], "without knowledge; name draft"),
        (["--task", TASK, "--coder", "noop"], "coder noop writes no prompt"),
        (["--task", TASK, "--hints", "1"], "toy/1 has no hint of level 1"),
        (["--task", "toys/1"], "no family named 'toys'"),
        (["draft", "--prompts", "/nowhere"], "no folder of prompt templates"),
    ],
)
def test_a_mistake_is_a_line_and_exit_status_2(program, arguments, message):
    result = program("prompts", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err


def test_secrets_are_left_out_as_in_a_run(program, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "notes.md").write_text(f"the key is {KEY}, and the rest is known")
    files = ("--knowledge", "files", "-o", f"knowledge.paths={[str(tmp_path / 'notes.md')]}")
    result = program("prompts", "--task", TASK, *files)
    assert "and the rest is known" in result.out, result.err
    assert KEY not in result.out


def test_a_terminal_gets_no_control_characters(program, tmp_path, monkeypatch):
    (tmp_path / "draft_unguided.j2").write_text("a\x1b[31mb")
    arguments = ("prompts", "--task", TASK, "--prompts", tmp_path)
    assert "a\x1b[31mb" in program(*arguments).out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "a[31mb" in program(*arguments).out


# --- the plan of a run ----------------------------------------------------------------------

INSTANTLY = ("--load", INSTANT, "--executor", "instant")
ASKING = ("--coder", "llm", "--model", "openai/fake")


def test_the_plan_has_the_first_prompt_and_its_size(program):
    plan = program("run", TASK, "--dry-run", "--json", *INSTANTLY, *ASKING).json["prompt"]
    size = len((plan["system"] + content(plan)).encode())
    assert size / 4 < plan["estimated_tokens"] < size / 2
    shown = program("run", TASK, "--dry-run", *INSTANTLY, *ASKING).out
    assert f"about {plan['estimated_tokens']:,} tokens" in shown
    assert content(plan).strip() in shown


def test_the_plan_of_a_coder_without_a_model_has_no_prompt(program):
    assert program("run", TASK, "--dry-run", "--json").json["prompt"] is None
    assert "--- user ---" not in program("run", TASK, "--dry-run").out


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scaffold", ["flat", "aide"])
def test_the_preview_is_what_the_run_sends_first(toy_run, monkeypatch, seed, scaffold):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    settings = {
        "task": TASK,
        "load": (str(INSTANT),),
        "executor": "instant",
        "coder": "llm",
        "model": "openai/fake",
        "calibration": "reference",
        "scaffold": scaffold,
        "nodes": 1,
        "seed": seed,
        "options": {"coder": {"max_reflections": 0}},
    }
    config = check_config(settings)
    system, messages = first_prompt(config, Plugins(config.load))
    with FakeOpenAI([say("no edit")]) as server:
        toy_run(**settings, api_base=server.url)
    sent = server.requests[0].body["messages"]
    assert [{"role": "system", "content": system}, *messages] == sent


def test_a_coder_without_prompts_has_none():
    with pytest.raises(UsageError, match="coder tuner writes no prompt"):
        first_prompt(check_config({"task": TASK}), Plugins())


def test_tokens_are_those_of_all_parts():
    one = prompt_tokens("", [{"role": "user", "content": "abc" * 100}])
    assert prompt_tokens("abc" * 100, [{"role": "user", "content": "abc" * 100}]) == 2 * one
