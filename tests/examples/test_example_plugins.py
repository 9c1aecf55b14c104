"""The example plugins: each is a whole package, is found by its entry point, passes its tests."""

from __future__ import annotations

import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import tomli

from speedkit.core.plugins import Plugins
from tests.conftest import TESTS

pytestmark = pytest.mark.long

ROOT = TESTS.parent / "examples" / "plugins"
EXAMPLES = sorted(path for path in ROOT.iterdir() if (path / "pyproject.toml").is_file())
EXPECTED = {
    "agent": ["coder agent"],
    "docker": ["executor docker"],
    "evolve": ["coder evolve", "scaffold evolve"],
    "mcts": ["scaffold mcts"],
    "mlflow": [],
    "wandb": [],
}
"""What each example offers."""


def project(path):
    return tomli.loads((path / "pyproject.toml").read_text())["project"]


def test_all_are_known():
    assert [path.name for path in EXAMPLES] == sorted(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_entry_point_offers_what_the_example_is_about(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path / "src"))
    facts = project(path)
    assert facts["name"] == f"speedkit-{path.name}"
    ((name, module),) = facts["entry-points"]["speedkit"].items()
    assert name == path.name
    plugins = Plugins(load=[module], entry_points=False)
    assert not plugins.broken
    offered = [f"{r.kind} {r.name}" for r in plugins.registrations() if r.load()]
    assert sorted(offered) == EXPECTED[path.name]
    assert any(f"`{path.name}`" in line or "observer" in line for line in readme(path))


def readme(path):
    text = (path / "README.md").read_text()
    assert f"speedkit plugins install examples/plugins/{path.name}" in text
    return text.splitlines()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the tests of all examples in one process, without installing; return them by example."""
    report = tmp_path_factory.mktemp("examples") / "report.xml"
    sources = [str(path / "src") for path in EXAMPLES]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sources, str(TESTS.parent)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = ("-p", "speedkit.testing.pytest_plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", *options, "--import-mode=importlib"]
    folders = [str(path / "tests") for path in EXAMPLES]
    settings = ["-c", os.devnull, f"--rootdir={TESTS.parent}", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *settings, *folders], env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        found.setdefault(case.get("classname").split(".")[2], []).append(case)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_its_own_tests_pass(results, path):
    cases = results[path.name]
    failed = {c.get("name"): part.text for c in cases for part in c if part.tag != "skipped"}
    assert not failed, "\n".join(f"{name}\n{text}" for name, text in failed.items())
    assert any(case.find("skipped") is None for case in cases)
