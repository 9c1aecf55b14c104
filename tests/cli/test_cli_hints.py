"""``speedkit hints``, and runs that take hints from elsewhere."""

from __future__ import annotations

import shutil

import pytest

from speedkit.core.errors import UsageError
from speedkit.core.llm import LLM, LLMSettings
from speedkit.core.task import HINT_FILES, find_task
from speedkit.hinting import MIN_CHARACTERS, changelog, generate, unwrapped
from tests.conftest import TOY
from tests.kit.fake_openai import FakeOpenAI, Step, fail, say

TASK = f"{TOY}/1"
LEVELS = {"Pseudocode of the change, from": 1, "description of the change in prose": 2}


def level_of(request):
    """Return the hint level that a prompt asks for."""
    asked = request.prompt.rpartition("## What to write")[2]
    return next((level for words, level in LEVELS.items() if words in asked), 3)


def hint(level, words="fewer steps"):
    return f"# Hint {level}\n\n" + f"{words} " * 40


def writer(request):
    """Answer with a hint of the level that is asked for."""
    return say(hint(level_of(request)))


@pytest.fixture
def generated(monkeypatch, program):
    """Return a function that generates hints of the toy task with a scripted server."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk" + "-canary-0123456789abcdefghijklmnop")

    def run(script, *arguments, task=TASK):
        with FakeOpenAI(script) as server:
            model = ("--model", "openai/fake", "--api-base", server.url)
            result = program("hints", "generate", task, *model, *arguments)
        return result, server.requests

    return run


def files(cache, family="toy"):
    """Return the levels of the generated hints and their texts."""
    folder = cache / "hints" / family / "1"
    found = {k: folder / name for k, name in HINT_FILES.items()}
    return {k: path.read_text() for k, path in found.items() if path.is_file()}


# --- generate -----------------------------------------------------------------------------


def test_all_levels_are_written_where_a_run_finds_them(generated, own_cache):
    result, requests = generated(writer)
    assert result.code == 0, result.err
    assert files(own_cache) == {k: hint(k).strip() + "\n" for k in (1, 2, 3)}
    folder = own_cache / "hints/toy/1"
    assert result.out.split() == [str(folder / name) for name in HINT_FILES.values()]
    assert [level_of(r) for r in requests] == [1, 2, 3]
    assert "3 calls" in result.err


def test_a_prompt_has_both_scripts_their_diff_and_the_notes(generated):
    _, requests = generated(writer, "--levels", "1")
    (request,) = requests
    assert "num_iterations 100 -> 60" in request.prompt
    assert "\n-    num_iterations: int = 100" in request.prompt
    assert "\n+    num_iterations: int = 60" in request.prompt
    for record in (find_task(TASK).start, find_task(TASK).target):
        assert record.read().strip() in request.prompt
    assert "read scripts and logs" in request.system


def test_level_3_is_written_from_the_other_two(generated):
    def script(request):
        return hint(level_of(request), f"words of level {level_of(request)},")

    _, requests = generated(script)
    assert "words of level 1, words" in requests[2].prompt
    assert "words of level 2, words" in requests[2].prompt
    assert "words of level" not in requests[1].prompt


def test_what_level_3_needs_is_made_if_it_is_missing(generated, own_cache):
    generated(writer, "--levels", "1")
    _, requests = generated(writer, "--levels", "3")
    assert [level_of(r) for r in requests] == [2, 3]
    assert set(files(own_cache)) == {1, 2, 3}


def test_what_is_there_is_kept_unless_forced(generated, own_cache):
    generated(writer, "--levels", "1,2")
    result, requests = generated([hint(9)], "--levels", "2")
    assert (result.code, len(requests)) == (0, 0)
    assert "there already" in result.err
    _, requests = generated([hint(9)], "--levels", "2", "--force")
    assert len(requests) == 1
    assert files(own_cache) == {1: hint(1).strip() + "\n", 2: hint(9).strip() + "\n"}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (say(""), "empty"),
        (say("too short"), "only 9 characters"),
        (say(hint(1), finish_reason="length"), "cut at the output limit"),
        (say(hint(1), finish_reason="content_filter"), "withheld"),
    ],
)
def test_an_unusable_reply_is_asked_again_once(generated, own_cache, bad, problem):
    result, requests = generated([bad, hint(1)], "--levels", "1")
    assert (result.code, len(requests)) == (0, 2)
    assert files(own_cache) == {1: hint(1).strip() + "\n"}
    result, requests = generated([bad], "--levels", "1", "--force")
    assert (result.code, len(requests)) == (1, 2)
    assert problem in result.err
    assert "Traceback" not in result.err
    assert files(own_cache) == {1: hint(1).strip() + "\n"}, "the old file stays"


def test_what_was_made_before_a_failure_stays(generated, own_cache):
    def script(request):
        return writer(request) if level_of(request) < 3 else Step(text="no")

    result, _ = generated(script)
    assert result.code == 1
    assert "openai/fake wrote no usable hint of level 3 in 2 tries" in result.err
    assert set(files(own_cache)) == {1, 2}
    _, requests = generated(writer)
    assert [level_of(r) for r in requests] == [3]


def test_prompts_and_replies_are_kept_without_the_key(generated, own_cache):
    generated(lambda r: hint(1, "sk" + "-canary-0123456789abcdefghijklmnop"), "--levels", "1")
    folder = own_cache / "hints/toy/1"
    texts = [p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(texts) == 3
    assert not any("sk-canary" in text for text in texts)


def test_own_templates_are_used(generated, tmp_path):
    (tmp_path / "hint_1.j2").write_text("Say it of {{ task }}.")
    _, requests = generated([hint(1)], "--levels", "1", "--prompts", tmp_path)
    assert requests[0].body["messages"][-1]["content"].strip() == "Say it of toy/1."


def test_the_limit_on_cost_ends_it_with_status_4(generated, own_cache):
    prices = ("-o", "llm.price_in=1000", "-o", "llm.price_out=1000")
    result, requests = generated(writer, "--max-cost", "0.01", *prices)
    assert (result.code, len(requests)) == (4, 1)
    assert "limit of $0.01" in result.err
    assert set(files(own_cache)) == {1}


def test_a_refused_key_is_one_line(generated, own_cache):
    result, requests = generated([fail(401, "bad key", "invalid_api_key")])
    assert (result.code, len(requests)) == (1, 1)
    assert "Traceback" not in result.err
    assert files(own_cache) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TASK], "hints are written by a language model; give --model"),
        ([TASK, "--levels", "4", "--model", "openai/fake"], "hint levels are 1, 2 and 3"),
        ([TASK, "--levels", "none", "--model", "openai/fake"], "give one at least"),
        ([f"{TOY}/2", "--model", "openai/fake"], "record 3 of toy has no script"),
        (["toys/1", "--model", "openai/fake"], "no family named 'toys'"),
    ],
)
def test_a_mistake_is_exit_status_2(program, arguments, message):
    result = program("hints", "generate", *arguments)
    assert result.code == 2
    assert message in result.err


def test_from_python(own_cache, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    told = []
    with FakeOpenAI(writer) as server:
        llm = LLM(LLMSettings(model="openai/fake", api_base=server.url))
        paths = generate(find_task(TASK), {2}, llm, on_hint=lambda *facts: told.append(facts))
        with pytest.raises(UsageError):
            generate(find_task(TASK), (), llm)
    assert paths == {2: own_cache / "hints/toy/1/2-text.md"}
    assert told == [(2, paths[2], True)]


def test_the_notes_are_those_of_the_target():
    assert changelog(find_task(TASK)) == "Record 2: fast\n- num_iterations 100 -> 60"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("```markdown\n# A\n\n```python\nb\n```\nc\n```", "# A\n\n```python\nb\n```\nc"),
        ("```md\n# A\n```\n", "# A"),
        ("  # A\n```python\nb\n```\n", "# A\n```python\nb\n```"),
        ("```python\nb\n```", "```python\nb\n```"),
        ("```markdown\n", "```markdown"),
    ],
)
def test_a_fence_around_everything_is_taken_off(reply, text):
    assert unwrapped(reply) == text


# --- show ---------------------------------------------------------------------------------


def test_a_shipped_hint_is_shown(program):
    assert program("hints", "show", "mini/1", 2).out == find_task("mini/1").hint(2)


def test_a_generated_hint_is_shown(program, generated):
    generated(writer, "--levels", "2")
    result = program("hints", "show", TASK, 2, "--from", "generated")
    assert result.out == hint(2).strip() + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TASK, 1], "toy/1 has no hint of level 1; it has no hints at all"),
        (["mini/1", 1, "--from", "generated"], "speedkit hints generate mini/1 --levels 1"),
        ([TASK, 1, "--from", "generated"], f"speedkit hints generate {TASK} --levels 1"),
        ([TASK, 1, "--from", "/nowhere"], "hints are shipped, generated, or in a folder"),
        ([TASK, 1, "--from", str(TOY)], f"no hint of level 1 in {TOY}"),
    ],
)
def test_a_hint_that_is_not_there(program, arguments, message):
    result = program("hints", "show", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_hint_that_is_no_text(program, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/2-text.md").write_bytes(b"\xff\xfe")
    result = program("hints", "show", TASK, 2, "--from", tmp_path)
    assert result.code == 2
    assert "2-text.md" in result.err


# --- runs that take them --------------------------------------------------------------------


def plan(program, *arguments):
    model = ("--coder", "llm", "--model", "openai/fake")
    return program("run", "--dry-run", "--json", *model, *arguments)


def test_a_run_takes_the_generated_hints(program, generated):
    generated(writer, "--levels", "1")
    result = plan(program, TASK, "--hints", "1", "--hints-from", "generated")
    assert result.code == 0, result.err
    assert hint(1).strip() in result.json["prompt"]["messages"][0]["content"]
    assert result.json["components"]["knowledge"][0]["options"]["source"] == "generated"


def test_a_run_takes_the_hints_of_a_folder(program, tmp_path, monkeypatch):
    shutil.copytree(find_task("mini/2").family.root / "hints/2", tmp_path / "mine/1")
    monkeypatch.chdir(tmp_path)
    result = plan(program, "mini/1", "--hints", "2", "--hints-from", "mine")
    assert find_task("mini/2").hint(2).strip() in result.json["prompt"]["messages"][0]["content"]
    options = result.json["components"]["knowledge"][0]["options"]
    assert options["source"] == str(tmp_path / "mine"), "a resumed run may start elsewhere"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hints-from", "generated"], "add --hints 1,2,3"),
        (["--hints", "1", "--hints-from", "generated"], "has no generated hint of level 1"),
        (["--hints", "1", "--hints-from", "genrated"], "hints are shipped, generated, or in"),
        (["--hints", "1", "-o", "knowledge.source="], "knowledge.source"),
    ],
)
def test_a_run_without_the_hints_is_refused(program, arguments, message):
    result = plan(program, TASK, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_the_source_of_hints_is_a_setting_from_a_flag(program):
    out = program("config", "show", "--hints", "1", "--hints-from", "generated").out
    (line,) = [line for line in out.splitlines() if "generated" in line]
    assert line == 'options.knowledge.hints.source = "generated"  # flag'


def test_the_shortest_hint_is_shorter_than_every_shipped_one():
    for name in ("mini", "nanogpt"):
        for task in find_task(f"{name}/1").family.tasks.values():
            texts = [task.hint(level) for level in task.hint_levels()]
            assert all(len(text) > MIN_CHARACTERS for text in texts)
