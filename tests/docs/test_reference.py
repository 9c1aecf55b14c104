"""The reference says what the code does."""

from __future__ import annotations

import importlib.util
import re

import click
import pytest

import speedkit.testing
from speedkit.core import task
from speedkit.core.config import RESERVED_ENV
from speedkit.core.errors import SpeedkitError
from speedkit.core.findings import Level
from speedkit.core.node import Outcome, Stage
from speedkit.core.plugins import REGISTER_HOOKS, Plugins
from tests.conftest import TESTS

ROOT = TESTS.parent
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name):
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def test_generated_parts_are_up_to_date(generate):
    stale = [path.name for path in generate.stale()]
    assert stale == [], "run: python docs/generate.py"


def test_a_stale_page_is_found_and_written(generate, tmp_path, monkeypatch, capsys):
    path = tmp_path / "errors.md"
    path.write_text("before\n<!-- generated: errors -->\nstale text\n<!-- end -->\nafter\n")
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "errors.md is stale" in capsys.readouterr().out
    assert "stale text" in path.read_text()
    assert generate.main([]) == 0
    text = path.read_text()
    assert "stale text" not in text
    assert "BudgetReached" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert generate.main(["--check"]) == 0


def test_every_command_and_option_is_there():
    text = page("cli")
    for name, registered in (
        Plugins(load=["speedkit.plugins"], entry_points=False).commands().items()
    ):
        assert f"\n## speedkit {name}\n" in text
        for command in _with_those_below(registered.load()):
            for option in (
                p for p in command.params if isinstance(p, click.Option) and not p.hidden
            ):
                assert all(f"`{flag}`" in text for flag in option.opts), option


def _with_those_below(command):
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(found for one in below for found in _with_those_below(one))]


def test_every_component_and_option_is_there():
    text = page("components")
    plugins = Plugins(load=["speedkit.plugins"], entry_points=False)
    for kind in REGISTER_HOOKS:
        for registered in plugins.registrations(kind):
            section = text.partition(f"\n### {registered.name} ({kind})\n")[2].partition("\n###")[0]
            assert section, registered
            assert all(
                f"| `{name}` |" in section for name in registered.load().Options.model_fields
            )


def test_every_check_of_the_kit_is_there():
    from speedkit.testing.checks import common
    from speedkit.testing.conformance import CHECKS

    lines = (ROOT / "docs" / "howto" / "write-a-plugin.md").read_text().splitlines()
    for kind, checks in {"all": common.CHECKS, **CHECKS}.items():
        row = next(line for line in lines if line.startswith(f"| {kind} | `"))
        assert [c.__name__ for c in checks if f"`{c.__name__}`" not in row] == [], kind


def test_public_names_are_shown_with_what_they_have():
    text = page("python")
    section = text.partition("\n### Draft\n")[2].partition("\n### ")[0]
    assert "failure: str = ''," in section
    assert "- `repeat`: train it even if" in section
    for module in (speedkit, speedkit.testing):
        assert [name for name in module.__all__ if f"\n### {name}\n" not in text] == []


def test_every_event_is_there():
    sources = [*(ROOT / "speedkit" / "core").glob("*.py")]
    written = {
        name
        for source in sources
        for name in re.findall(r"\brecord\(\s*\"(\w+)\"", source.read_text(encoding="utf-8"))
    }
    assert {"run_started", "node_finished", "model_called"} <= written
    assert [name for name in sorted(written) if f"| `{name}` |" not in page("run-directory")] == []


def test_keys_of_events_are_those_of_a_run(toy_run):
    from speedkit.core.history import RunDirectory

    text = page("run-directory")
    for event in RunDirectory(toy_run().path).events():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{event['type']}` |"))
        assert [k for k in event if k not in ("type", "at") and f"`{k}`" not in row] == []


def test_outcomes_stages_and_levels_are_there():
    text = page("run-directory")
    assert all(f"| `{outcome}` |" in text for outcome in Outcome)
    assert all(f"`{stage}`" in text for stage in Stage)
    guards = (ROOT / "docs" / "explanation" / "guards.md").read_text(encoding="utf-8")
    assert all(f"`{level}`" in guards for level in Level)


def test_every_key_of_a_family_is_there():
    models = (
        *(task.Family, task.RunRules, task.DataRules, task.EvaluationRules, task.Hooks),
        *(task.Defaults, task.Record, task.Source, task.Transition),
    )
    text = page("family")
    keys = {f.alias or name for m in models for name, f in m.model_fields.items()}
    tables = {"metrics_source": "[metrics]", "record": "[[record]]", "task": "[[task]]"}
    tables |= {name: f"[{name}]" for name in ("target", "run", "data", "hooks", "evaluation")}
    tables |= {"defaults": "[defaults]"}
    shown = {key: tables.get(key, key) for key in keys}
    assert [key for key, name in sorted(shown.items()) if f"`{name}`" not in text] == []


def test_variables_of_the_environment_are_there():
    internal = {"JOB"}
    text = page("configuration")
    assert [n for n in RESERVED_ENV if n not in internal and f"`SPEEDKIT_{n}`" not in text] == []


def test_every_exit_status_is_there():
    text = page("exit-status")
    statuses = {error.exit_code for error in _all_below(SpeedkitError)} | {0, 130}
    assert [s for s in sorted(statuses) if f"\n| {s} |" not in text] == []


def _all_below(error):
    return [error, *(found for below in error.__subclasses__() for found in _all_below(below))]


def test_the_documented_grammar_is_the_one_that_is_read():
    from speedkit.core.metrics import parse_line

    line = "step:3/4 val_loss:1.5 train_time:20ms"
    assert parse_line(line) is not None
    assert parse_line(line + " step_avg:6.7ms") is not None
    for wrong in (line + " ", line.replace("1.5", "1"), line.replace("20ms", "20.5ms")):
        assert parse_line(wrong) is None
    assert "step:N/M val_loss:X train_time:Yms" in page("family")


def test_plugins_of_others_are_left_out(generate, tmp_path, monkeypatch):
    plugin = tmp_path / "foreign.py"
    plugin.write_text(
        "import speedkit\nfrom speedkit.plugins.coders.noop import NoopCoder\n"
        "@speedkit.hookimpl\ndef register_coders(register):\n    register('foreign', NoopCoder)\n"
        "@speedkit.hookimpl\ndef register_commands(register):\n"
        "    register('foreign', 'speedkit.cli.show:command', help='a foreign one')\n"
    )
    monkeypatch.setenv("SPEEDKIT_LOAD_PLUGINS", str(plugin))
    assert "foreign" in Plugins(entry_points=False).commands()
    assert "foreign" not in generate.commands() + generate.components()
