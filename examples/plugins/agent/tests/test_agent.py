"""The coder keeps its promises with agents that behave, and those that do not."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError
from speedkit_agent.coder import AgentCoder, AgentOptions, hypothesis_of
from speedkit_agent.prompt import write_prompt
from speedkit_agent.sandbox import why_not

import speedkit
from speedkit.testing import check_component

EDIT = """
    import pathlib, sys
    prompt = sys.stdin.read()
    path = pathlib.Path("train.py")
    path.write_text(path.read_text() + "# by the agent\\n")
    print("HYPOTHESIS: a comment makes it faster")
"""


@pytest.fixture
def agent(tmp_path: Path) -> Any:
    """Return a function that makes the command of an agent from its source."""

    def make(source: str, *arguments: str) -> str:
        path = tmp_path / "agent.py"
        path.write_text(textwrap.dedent(source))
        return shlex.join([sys.executable, str(path), *arguments])

    return make


@pytest.fixture
def node(agent: Any, tiny_run: Any, tmp_path: Path) -> Any:
    """Return a function that lets an agent write node 1 of a search."""

    def write(source: str, *arguments: str, **options: Any) -> tuple[speedkit.Node, Path]:
        options.setdefault("command", agent(source, *arguments))
        options.setdefault("readable", [tmp_path, sys.prefix, sys.base_prefix])
        parts = {"coder": "agent", "nodes": 1, "options": {"coder": options}}
        tree = tiny_run("speedkit_agent", **parts)
        return tree[1], tree.path

    return write


def test_it_conforms(agent: Any, tmp_path: Path) -> None:
    """With an agent that adds a comment."""
    readable = [tmp_path, sys.prefix, sys.base_prefix]
    check_component(AgentCoder, options={"command": agent(EDIT), "readable": readable})


def test_a_change_is_a_success_whatever_the_status(node: Any) -> None:
    """And the sentence of the agent is the hypothesis."""
    one, path = node(EDIT + "    sys.exit(3)\n")
    assert one.hypothesis == "a comment makes it faster"
    assert one.notes == {"exit_status": 3}
    assert one.is_valid
    assert "HYPOTHESIS: a comment" in (path / "nodes" / "0001" / "agent.log").read_text()


def test_no_change_is_a_failure_whatever_the_status(node: Any) -> None:
    """And the agent's last words are told."""
    one, _ = node("print('thinking')\nprint('I am done, all is well')")
    assert one.outcome is speedkit.Outcome.EDIT_FAILED
    assert one.reason.endswith("status 0 and changed nothing: I am done, all is well")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("os.remove('train.py')", "cannot be read: No such file"),
        ("os.remove('train.py'); os.symlink('/etc/passwd', 'train.py')", "cannot be read"),
        ("os.remove('train.py'); os.mkfifo('train.py')", "no ordinary file"),
        ("os.link('train.py', 'other')", "no ordinary file"),
        ("open('train.py', 'wb').write(b'\\xff')", "no UTF-8 text"),
        ("open('train.py', 'w').write('x' * 3_000_000)", "grown over"),
    ],
)
def test_what_is_no_text_file_any_more_is_refused(node: Any, act: str, words: str) -> None:
    """Nothing of the machine gets into a node by a link."""
    one, _ = node(f"import os\n{act}")
    assert one.outcome is speedkit.Outcome.EDIT_FAILED
    assert words in one.reason


def test_the_agent_sees_a_clean_place(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file, an empty home, and of the environment what is allowed."""
    monkeypatch.setenv("OTHER_API_KEY", "canary-not-for-agents")
    monkeypatch.setenv("AGENT_KEY", "canary-for-the-agent")
    source = """
        import json, os
        print(json.dumps([os.listdir("."), os.listdir(os.environ["HOME"]), dict(os.environ)]))
    """
    _, path = node(source, pass_env=["AGENT_KEY"])
    log = (path / "nodes" / "0001" / "agent.log").read_text()
    assert log.startswith('[["train.py"], [], {')
    assert "canary-not-for-agents" not in log
    assert '"AGENT_KEY": "<AGENT_KEY>"' in log
    assert os.environ["HOME"] not in log.split('"HOME"')[1].split(",")[0]


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_in_the_sandbox_the_solution_is_out_of_sight(node: Any, tiny_task: Any) -> None:
    """And nothing but the folder of the agent can be written to; its program still runs."""
    secret = Path.home() / ".speedkit-agent-test"
    secret.write_text("canary-at-home")
    target = tiny_task.target.path
    assert target.is_file()
    source = f"""
        import pathlib
        for path in ({str(secret)!r}, {str(target)!r}):
            print(pathlib.Path(path).exists(), end=" ")
        try:
            pathlib.Path("/usr/speedkit-agent-test").write_text("x")
        except OSError as error:
            print(error.strerror)
    """
    try:
        one, _ = node(source, sandbox="bwrap")
        assert one.reason.endswith("changed nothing: False False Read-only file system")
    finally:
        secret.unlink()


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_program_that_the_sandbox_hides_is_told_before_the_run(node: Any, tmp_path: Path) -> None:
    """With what to do about it."""
    program = tmp_path / "hidden-agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(speedkit.UsageError, match=r"sandbox hides; name .* coder\.readable"):
        node("", command=str(program), readable=())


def test_an_agent_is_ended_with_all_that_it_started(node: Any) -> None:
    """Be it in a session of its own."""
    source = """
        import subprocess, sys, time
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)", "agent-test-survivor"]
        subprocess.Popen(sleeper, start_new_session=True)
        time.sleep(60)
    """
    one, _ = node(source, timeout_s=1.5)
    assert "was ended at its limit" in one.reason
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    assert not [p for p in left if "agent-test-survivor" in p.info["cmdline"]]


def test_an_agent_that_prints_without_end_is_ended(node: Any) -> None:
    """Long before its time limit."""
    one, path = node("while True: print('x' * 10_000)", max_output_mb=0.5, timeout_s=60)
    assert "was ended at its limit" in one.reason
    assert (path / "nodes" / "0001" / "agent.log").stat().st_size < 500e6


def test_the_prompt_can_be_an_argument(node: Any) -> None:
    """Where the command says so; it is one argument, whatever is in it."""
    source = "import sys\nprint(len(sys.argv), sys.argv[2][:8], sys.stdin.read() == '')"
    one, _ = node(source, "--message", "{prompt}")
    assert one.reason.endswith("3 The file True")


def test_the_prompt_says_what_is_wanted(tiny_task: Any, tmp_path: Path) -> None:
    """Target, rules, earlier attempts and knowledge."""
    stages = speedkit.Stage
    root = speedkit.Node(0, None, stages.ROOT, 0, outcome=speedkit.Outcome.VALID)
    made = speedkit.Node(1, 0, stages.DRAFT, 1, hypothesis="Try less.", summary="NameError")
    tree = speedkit.Tree([root, made])
    files = tiny_task.start_files()
    entry = speedkit.KnowledgeEntry("kit", "Momentum", "It helps.")
    request = speedkit.CodeRequest(
        *(tiny_task, tree, made, 2, stages.DEBUG, 0, 1, files, [entry], 1, tmp_path),
        read_files=lambda i: files,
    )
    prompt = write_prompt(request, 5)
    for words in ("train.py", "It fails.", "under 0.01", "Try less. NameError", "It helps."):
        assert words in prompt


def test_the_last_sentence_counts() -> None:
    """Without one there is a plain one."""
    assert hypothesis_of("HYPOTHESIS: a\n**HYPOTHESIS: b**\n") == "b"
    assert hypothesis_of("done") == "The agent changed the script and did not say how."


def test_a_program_that_is_not_there_is_told_before_the_run(tiny_run: Any) -> None:
    """And a command that is none."""
    options = {"coder": {"command": "no-such-agent-4711 --go"}}
    with pytest.raises(speedkit.UsageError, match="there is no program 'no-such-agent-4711'"):
        tiny_run("speedkit_agent", coder="agent", options=options)
    with pytest.raises(ValidationError, match="must name a program"):
        AgentOptions(command=" ")
