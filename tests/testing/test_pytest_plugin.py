"""The fixtures, and that pytest starts as quickly as without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request

import pytest

import speedkit
from speedkit import Outcome
from speedkit.testing import say

CODER = """
import speedkit

class Mine(speedkit.Coder):
    "Fewer steps."
    def write(self, request):
        script = request.task.script
        text = request.task.start.read().replace("= 200", f"= {170 - request.node_id}")
        return speedkit.Draft({**request.files, script: text}, "Fewer steps")

@speedkit.hookimpl
def register_coders(register):
    register("mine", Mine)
"""


def test_the_tiny_task_is_whole(tiny_task):
    assert tiny_task.name == "tiny/1"
    assert [tiny_task.start.time_ms, tiny_task.target.time_ms] == [1200, 480]
    assert all(tiny_task.hint(level) for level in (1, 2, 3))


def test_the_times_of_the_tiny_records_are_those_of_its_manifest(tiny_run):
    tree = tiny_run(coder="oracle", nodes=1, calibration="fresh")
    assert tree.calibration.start_ms == 1200
    assert tree.calibration.target_ms == 480
    assert tree.fsr() == 1


def test_a_run_with_a_plugin_of_ones_own(tiny_run, tmp_path):
    (tmp_path / "my_plugin.py").write_text(CODER)
    tree = tiny_run(str(tmp_path / "my_plugin.py"), coder="mine", nodes=2, scaffold="flat")
    assert [n.outcome for n in tree] == [Outcome.VALID] * 3
    assert round(tree.fsr(), 4) == round((1200 - 6 * 168) / (1200 - 480), 4)


def test_installed_plugins_do_not_take_part(tiny_run):
    tiny_run(nodes=1)
    from speedkit.testing import tiny_plugins

    names = [origin.plugin for origin in tiny_plugins().origins]
    assert names == ["speedkit.plugins", "speedkit.testing.samples"]


def test_the_run_directory_has_every_outcome(run_dir):
    tree = speedkit.open_run(run_dir)
    outcomes = {node.outcome for node in tree}
    assert outcomes == {Outcome.VALID, Outcome.INVALID, Outcome.BUGGY, Outcome.EDIT_FAILED}
    assert tree.status == "finished"
    buggy = next(n for n in tree if n.outcome is Outcome.BUGGY)
    log = run_dir / "nodes" / f"{buggy.id:04d}" / "rank0.stderr.log"
    assert "NameError: name 'undefined' is not defined" in log.read_text()


@pytest.mark.parametrize("time", ["first", "second"])
def test_each_test_has_a_run_directory_of_its_own(run_dir, time):
    (run_dir / "events.jsonl").unlink()


def test_the_fake_model_answers_as_it_is_told(fake_llm):
    fake_llm.script = [say("one"), say("two")]
    body = {"model": "fake", "messages": [{"role": "user", "content": "count"}]}
    request = urllib.request.Request(
        fake_llm.settings["api_base"] + "/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    texts = []
    for _ in range(2):
        with urllib.request.urlopen(request, timeout=10) as reply:
            texts.append(json.load(reply)["choices"][0]["message"]["content"])
    assert texts == ["one", "two"]
    assert [r.prompt for r in fake_llm.requests] == ["count", "count"]
    assert os.environ["OPENAI_API_KEY"] == "sk-fake"


def test_pytest_starts_without_anything_heavy():
    code = (
        "import sys, speedkit.testing.pytest_plugin\n"
        "heavy = {'torch', 'pandas', 'numpy', 'litellm', 'pydantic', 'git', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
