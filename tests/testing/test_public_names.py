"""What others build on does not change unnoticed: public names, and the hooks' signatures."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

import speedkit
from speedkit.core import hookspecs
from tests.conftest import TESTS

NAMES = {
    "speedkit": """
        Code CodeRequest Coder Draft Ending Execution Executor ExecutorError Finding Guard
        GuardOptions Job Judge JudgeRequest Judgement KnowledgeEntry KnowledgeSource LLMError Level
        Message Metrics Node Options Outcome PluginError Proposal RankError Register RegisterCommand
        Reply Report Result Run RunTree Scaffold Services SpeedkitError Stage StopRun Summarizer
        SummaryRequest Task Tree UsageError Watch fsr hookimpl open_run run
    """,
    "speedkit.testing": """
        TINY FakeOpenAI Fault NonconformingError Request Step check_component edit_script fail
        fault find_faults say tiny_plugins tiny_task too_many
    """,
}
"""Public modules and what they offer; a name that goes is a breaking change."""

HOOKS = {
    "register_scaffolds": "(register: 'Register') -> 'None'",
    "register_coders": "(register: 'Register') -> 'None'",
    "register_executors": "(register: 'Register') -> 'None'",
    "register_summarizers": "(register: 'Register') -> 'None'",
    "register_judges": "(register: 'Register') -> 'None'",
    "register_knowledge": "(register: 'Register') -> 'None'",
    "register_guards": "(register: 'Register') -> 'None'",
    "register_commands": "(register: 'RegisterCommand') -> 'None'",
    "run_started": "(run: 'Run') -> 'None'",
    "node_created": "(run: 'Run', node: 'Node') -> 'None'",
    "node_finished": "(run: 'Run', node: 'Node') -> 'None'",
    "model_called": "(run: 'Run', call: 'Mapping[str, Any]') -> 'None'",
    "run_finished": "(run: 'Run', status: 'str') -> 'None'",
}
"""Every hook with its signature; docs/reference/stability.md says what may change, and how."""

METHODS = {
    "Scaffold.propose": "(self, tree: 'Tree', rng: 'random.Random') -> 'Sequence[Proposal]'",
    "Scaffold.is_superseded": "(self, tree: 'Tree', node: 'Node') -> 'bool'",
    "Coder.write": "(self, request: 'CodeRequest') -> 'Draft'",
    "Executor.execute": "(self, job: 'Job', watch: 'Watch') -> 'Execution'",
    "Executor.reap": "(self, handle: 'Mapping[str, Any]') -> 'None'",
    "Executor.adopt": (
        "(self, job: 'Job', handle: 'Mapping[str, Any]', watch: 'Watch') -> 'Execution | None'"
    ),
    "Executor.fingerprint": "(self) -> 'Mapping[str, Any]'",
    "Summarizer.summarize": "(self, request: 'SummaryRequest') -> 'str'",
    "Judge.judge": "(self, request: 'JudgeRequest') -> 'Judgement'",
    "KnowledgeSource.entries": "(self, task: 'Task') -> 'Sequence[KnowledgeEntry]'",
    "Guard.check_code": "(self, code: 'Code') -> 'Iterable[Finding]'",
    "Guard.check_result": "(self, result: 'Result') -> 'Iterable[Finding]'",
}
"""The methods that a component defines."""


@pytest.mark.parametrize("module", NAMES)
def test_the_public_names_are_these(module):
    public = importlib.import_module(module).__all__
    assert sorted(public) == sorted(NAMES[module].split())
    assert len(set(public)) == len(public)


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_is_there_and_described(module):
    found = importlib.import_module(module)
    assert set(found.__all__) <= set(dir(found))
    for name in found.__all__:
        value = getattr(found, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'Scafold'"):
        _ = speedkit.Scafold


def specified():
    """Return every hook of the module that specifies them."""
    mark = hookspecs.hookspec.project_name + "_spec"
    return {n: f for n, f in vars(hookspecs).items() if hasattr(f, mark)}


def test_the_hooks_and_their_signatures_are_these():
    assert {name: str(inspect.signature(f)) for name, f in specified().items()} == HOOKS


def test_the_methods_of_components_are_these():
    found = {}
    for name in METHODS:
        cls, method = name.split(".")
        found[name] = str(inspect.signature(getattr(getattr(speedkit, cls), method)))
    assert found == METHODS


def test_every_hook_is_in_the_document():
    text = (TESTS.parent / "docs" / "reference" / "hooks.md").read_text()
    assert [name for name in HOOKS if f"`{name}(" not in text] == []


EXAMPLES = sorted((TESTS.parent / "examples" / "plugins").glob("*/**/*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: "/".join(p.parts[-2:]))
def test_the_examples_use_public_names_only(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.split(".")[0] == "speedkit"]
            assert set(names) <= set(NAMES), f"line {node.lineno}: {names}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "speedkit":
            assert node.module in NAMES, f"line {node.lineno}: {node.module}"
            public = NAMES[node.module].split()
            assert {a.name for a in node.names} <= set(public), f"line {node.lineno}"
