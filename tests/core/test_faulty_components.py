"""A component that breaks its promises is named in one line, and the run can be resumed."""

from __future__ import annotations

import pytest

import speedkit
from speedkit.core.node import Outcome
from tests.conftest import INSTANT

PLUGIN = """
import speedkit


class Faulty(speedkit.Coder):
    def write(self, request):
        raise KeyError("no such thing")


class Empty(speedkit.Coder):
    def write(self, request):
        return speedkit.Draft({}, "nothing")


class NoJson(speedkit.Coder):
    def write(self, request):
        return speedkit.Draft(dict(request.files), "notes", notes={"x": float("nan")})


class Wordy(speedkit.Coder):
    def write(self, request):
        return speedkit.Draft(dict(request.files), "words", failure="x" * 3_000_000)


class Silent(speedkit.Summarizer):
    def summarize(self, request):
        raise RuntimeError("nothing to say")


class Lost(speedkit.Scaffold):
    def propose(self, tree, rng):
        return ["node 1"]


class Down(speedkit.Executor):
    def execute(self, job, watch):
        raise ValueError("down")


@speedkit.hookimpl
def register_coders(register):
    for name, coder in dict(faulty=Faulty, empty=Empty, nojson=NoJson, wordy=Wordy).items():
        register(name, coder)


@speedkit.hookimpl
def register_summarizers(register):
    register("silent", Silent)


@speedkit.hookimpl
def register_scaffolds(register):
    register("lost", Lost)


@speedkit.hookimpl
def register_executors(register):
    register("down", Down)
"""


@pytest.fixture
def faulty_run(toy_run, tmp_path):
    """Return a function that runs the toy family with components of the plugin."""
    plugin = tmp_path / "faulty.py"
    plugin.write_text(PLUGIN)

    def run(**settings):
        return toy_run(load=(str(INSTANT), str(plugin)), nodes=1, guards=(), **settings)

    return run


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"coder": "faulty"}, "coder faulty failed: KeyError: 'no such thing'"),
        ({"coder": "nojson"}, "coder nojson failed: ValueError: .* not JSON"),
        ({"summarizer": "silent"}, "summarizer silent failed: RuntimeError: nothing to say"),
        ({"scaffold": "lost"}, "scaffold lost failed: AttributeError"),
        ({"executor": "down"}, "executor Down failed: ValueError: down"),
    ],
)
def test_the_one_at_fault_is_named(faulty_run, tmp_path, chosen, message):
    with pytest.raises(speedkit.PluginError, match=message):
        faulty_run(**chosen)
    assert speedkit.open_run(tmp_path / "run").status == "failed"


def test_a_coder_that_returns_no_script_has_failed_to_edit(faulty_run):
    node = faulty_run(coder="empty")[1]
    assert (node.outcome, node.reason) == (
        Outcome.EDIT_FAILED,
        "edit: the coder returned no solve.py",
    )


def test_a_long_reason_is_cut(faulty_run):
    node = faulty_run(coder="wordy")[1]
    assert node.outcome is Outcome.EDIT_FAILED
    assert len(node.reason) < 5000
