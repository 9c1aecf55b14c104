"""The built-in components keep their promises; the checks say so, and what they cannot say."""

from __future__ import annotations

import pytest

import speedkit
from speedkit.core.plugins import Plugins
from speedkit.testing import NonconformingError, check_component, find_faults
from speedkit.testing.conformance import CHECKS
from tests.conftest import TESTS

OPTIONS = {
    "files": {"paths": [str(TESTS / "conftest.py")]},
    "flexattention": {"reference": False},
    "muon": {"reference": False},
}
ENGINES = ("slurm", "ray")
"""Executors whose engine is not there; they have a suite of their own."""


def built_in():
    """Return the components that need no model and no engine."""
    found = Plugins(entry_points=False, load=["speedkit.plugins"]).registrations()
    return [r for r in found if r.name not in ENGINES and not r.load().needs_model]


@pytest.mark.parametrize("one", built_in(), ids=lambda r: f"{r.kind}-{r.name}")
def test_a_built_in_component_conforms(one):
    check_component(one.load(), options=OPTIONS.get(one.name))


@pytest.mark.parametrize("selection", ["last_step", "published"])
def test_a_scaffold_conforms_with_other_options(selection):
    cls = Plugins().find("scaffold", "multi_aide").load()
    options = {"selection": selection, "trees": "per_root", "lookahead": 2, "drop_superseded": True}
    check_component(cls, options=options)


def test_a_coder_that_asks_a_model_is_checked_against_a_scripted_one():
    cls = Plugins().find("coder", "llm").load()
    check_component(cls, skip=("request_untouched", "threads", "strange_files", "confinement"))


def test_every_kind_has_checks():
    assert set(CHECKS) == set(speedkit.core.plugins.REGISTER_HOOKS)


def test_what_is_no_component_is_refused():
    with pytest.raises(ValueError, match="no subclass of any of: Scaffold, Coder"):
        find_faults(dict)


def test_an_unknown_check_cannot_be_skipped():
    cls = Plugins().find("coder", "noop").load()
    with pytest.raises(ValueError, match=r"a coder has no check 'drats'.*drafts"):
        find_faults(cls, skip=["drats"])


def test_an_executor_that_cannot_run_here_says_so():
    class Nowhere(speedkit.Executor):
        """Has no engine."""

        def execute(self, job, watch):
            raise speedkit.ExecutorError("no engine")

    with pytest.raises(speedkit.ExecutorError, match="no engine"):
        check_component(Nowhere)


def test_all_faults_are_in_one_message():
    class Bad(speedkit.Judge):
        def judge(self, request):
            return speedkit.Judgement(2.0)

    with pytest.raises(NonconformingError) as caught:
        check_component(Bad)
    text = str(caught.value)
    assert text.startswith("Bad does not keep what a judge promises:\n")
    assert "documentation: the class has no docstring" in text
    assert "scores: the human change itself: the score is 2.0" in text
    assert {fault.check for fault in caught.value.faults} >= {"documentation", "scores"}
