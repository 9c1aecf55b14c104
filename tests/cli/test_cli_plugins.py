"""``speedkit plugins``: what is offered, and what went wrong with it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.cli.conftest import PLUGIN


@pytest.fixture
def plugin(tmp_path):
    """Return a function that writes a plugin file."""

    def write(name, body):
        path = tmp_path / f"{name}.py"
        path.write_text("import speedkit\n" + textwrap.dedent(body))
        return path

    return write


RIVAL = """
    @speedkit.hookimpl
    def register_scaffolds(register):
        register("aide", "nowhere.at_all:Aide", override={override})
"""
UNLOADABLE = """
    import sys

    class Leaving(type):
        pass

    @speedkit.hookimpl
    def register_coders(register):
        register("absent", "no_such_package.module:Coder")
        register("wrong", "pathlib:Path")
        register("leaving", "leaving_module:Coder")
"""


def notes(result):
    return {(c["plugin"], c["name"]): c for c in result.json["components"]}


def test_the_built_in_components(program):
    result = program("plugins")
    assert result.code == 0
    rows = [line.split()[:3] for line in result.out.splitlines()]
    assert ["scaffold", "multi_aide", "builtin"] in rows
    assert ["coder", "noop", "builtin"] in rows
    assert ["executor", "torchrun", "builtin"] in rows


def test_one_kind(program):
    components = program("plugins", "scaffold", "--json").json["components"]
    assert [c["name"] for c in components] == ["aide", "flat", "forest", "multi_aide", "tree"]
    assert program("plugins", "scafold").code == 2


def test_an_override_is_seen_on_both_sides(program, plugin):
    path = plugin("rival", RIVAL.format(override=True))
    found = notes(program("plugins", "scaffold", "--load", path, "--json"))
    assert found["builtin", "aide"]["overridden_by"] == "rival:aide"
    assert found["rival", "aide"]["overrides"] == ["builtin:aide"]
    assert found["rival", "aide"]["distribution"] == str(path)
    out = program("plugins", "--load", path).out
    assert "overridden by rival:aide" in out
    assert "overrides builtin:aide" in out


def test_a_clash_says_what_to_write(program, plugin):
    path = plugin("rival", RIVAL.format(override=False))
    found = notes(program("plugins", "scaffold", "--load", path, "--json"))
    assert found["builtin", "aide"]["clashes_with"] == ["rival:aide"]
    assert found["rival", "aide"]["clashes_with"] == ["builtin:aide"]
    out = program("plugins", "--load", path).out
    assert "clash: write builtin:aide" in out
    assert "clash: write rival:aide" in out


def test_broken_and_blocked_plugins_are_listed(program, plugin):
    path = plugin("broken", "\nraise RuntimeError('not today')\n")
    arguments = ("plugins", "--load", path, "--block", "somebody")
    states = {p["plugin"]: p for p in program(*arguments, "--json").json["plugins"]}
    assert states["builtin"]["state"] == "loaded"
    assert states["somebody"]["state"] == "blocked"
    assert (states["broken"]["state"], states["broken"]["reason"]) == (
        "broken",
        "RuntimeError: not today",
    )
    result = program(*arguments)
    assert result.code == 0
    assert "RuntimeError: not today" in result.out
    assert "blocked" in result.out


def test_a_plugin_without_components_is_listed(program, plugin):
    path = plugin("watcher", "\n@speedkit.hookimpl\ndef run_finished(run, status): ...\n")
    last = program("plugins", "--load", path).out.splitlines()[-1].split()
    assert (last[0], last[3]) == ("watcher", "loaded")


def test_options_with_type_default_and_description(program):
    components = program("plugins", "--options", "--load", PLUGIN, "--json").json["components"]
    (shaky,) = (c for c in components if c["name"] == "shaky")
    jitter, wait = shaky["options"]
    assert jitter == {
        "name": "jitter_ms",
        "type": "int, ≥ 0",
        "required": False,
        "default": 0,
        "description": "added to the time, more with each job",
    }
    assert (wait["type"], wait["default"]) == ("bool", False)
    out = program("plugins", "executor", "--options", "--load", PLUGIN).out
    assert "executor shaky (hostile_plugin)" in out
    assert "added to the time, more with each job" in out


def test_every_built_in_option_is_described(program):
    components = program("plugins", "--options", "--json").json["components"]
    assert all(c["reason"] is None for c in components), components
    missing = [
        (c["kind"], c["name"], o["name"])
        for c in components
        for o in c["options"]
        if not o["description"]
    ]
    assert missing == []


def test_what_cannot_be_imported_is_shown_with_the_reason(program, plugin, tmp_path, monkeypatch):
    (tmp_path / "leaving_module.py").write_text("raise SystemExit('gone')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = plugin("partly", UNLOADABLE)
    result = program("plugins", "coder", "--options", "--load", path)
    assert result.code == 0
    assert "no_such_package" in result.out
    assert "is not a subclass of Coder" in result.out
    assert "gone" in result.out
    assert "coder tuner (builtin)" in result.out


def test_names_of_plugins_reach_no_terminal_unclean(program, plugin):
    path = plugin("broken", "\nraise RuntimeError('\\x1b[31mred\\x9b')\n")
    result = program("plugins", "--load", path)
    assert "[31mred" in result.out
    assert "\x1b" not in result.out
    assert "\x9b" not in result.out


MODULES = ("calibrate", "config", "diff", "log", "metrics", "plugins", "records", "show", "tasks")


def test_commands_import_nothing_heavy():
    """`--help` of any command must stay quick."""
    imports = ", ".join(f"speedkit.cli.{name}" for name in MODULES)
    heavy = "{'git', 'pydantic', 'tabulate', 'rich', 'optuna', 'torch', 'numpy', 'litellm'}"
    code = f"import sys, {imports}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
