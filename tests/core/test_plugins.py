"""Plugins: the door, the names, the clashes, and what a broken one can do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from speedkit.core import hookspecs
from speedkit.core.errors import PluginError, StopRun, UnknownNameError, UsageError
from speedkit.core.plugins import REGISTER_HOOKS, Plugins
from tests.conftest import INSTANT, TESTS, TOY

CODER = """
import speedkit
from speedkit.core.components import Draft

class Mine(speedkit.Coder):
    "A coder."
    def write(self, request):
        return Draft(dict(request.files), "mine")

@speedkit.hookimpl
def register_coders(register):
    register("noop", Mine{override})
"""


@pytest.fixture
def plugin(tmp_path):
    """Return a function that writes a plugin file."""

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return str(path)

    return write


def test_built_ins_come_through_the_door():
    plugins = Plugins()
    assert [o.plugin for o in plugins.origins if o.distribution == "speedkit"] == ["builtin"]
    assert not plugins.broken
    assert plugins.names("scaffold") == ["aide", "flat", "forest", "multi_aide", "tree"]


def test_every_built_in_can_be_loaded_and_has_a_docstring():
    for registration in Plugins().registrations():
        cls = registration.load()
        assert cls.__doc__
        undescribed = [n for n, f in cls.Options.model_fields.items() if not f.description]
        assert not undescribed, f"{registration.qualified}: {undescribed}"


def test_a_kind_has_a_hook_of_its_own():
    assert all(hasattr(hookspecs, hook) for hook in REGISTER_HOOKS.values())


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean multi_aide"):
        Plugins().find("scaffold", "multi-aide")


def test_a_clash_names_both_forms_and_the_qualified_name_helps(plugin):
    plugins = Plugins(load=[plugin("mine", CODER.format(override=""))])
    with pytest.raises(UsageError, match="builtin:noop or mine:noop"):
        plugins.find("coder", "noop")
    assert plugins.find("coder", "mine:noop").load().__name__ == "Mine"


def test_an_override_replaces_visibly(plugin):
    plugins = Plugins(load=[plugin("mine", CODER.format(override=", override=True"))])
    assert plugins.find("coder", "noop").qualified == "mine:noop"
    [(old, new)] = plugins.overridden()
    assert (old.qualified, new.qualified) == ("builtin:noop", "mine:noop")
    assert plugins.find("coder", "builtin:noop").load().__name__ == "NoopCoder"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "implements no hook"),
        (
            "import speedkit\n@speedkit.hookimpl\ndef register_codes(register): pass",
            "no hook named register_codes; did you mean register_coders",
        ),
        (
            "import speedkit\n@speedkit.hookimpl\ndef register_coders(wrong): pass",
            "wrong",
        ),
        (
            "import speedkit\n@speedkit.hookimpl\n"
            "def register_coders(register): register('Bad Name', 'a:b')",
            "'Bad Name' is no name",
        ),
        (
            "import speedkit\n@speedkit.hookimpl\n"
            "def register_coders(register): register(speedkit.Coder, 'mine')",
            "is no name",
        ),
        (
            "import speedkit\n@speedkit.hookimpl\ndef register_coders(register): 1 / 0",
            "ZeroDivisionError",
        ),
    ],
)
def test_a_broken_plugin_stays_by_itself(plugin, text, reason):
    plugins = Plugins(load=[plugin("bad", text)])
    [broken] = plugins.broken
    assert broken.origin.plugin == "bad"
    assert reason in broken.reason
    assert "\n" not in broken.reason
    assert plugins.find("coder", "noop").load()


def test_nothing_of_a_plugin_that_fails_half_way_remains(plugin):
    text = CODER.format(override="").replace('"noop"', '"half"') + (
        "\n@speedkit.hookimpl\ndef register_judges(register): raise RuntimeError('late')\n"
    )
    plugins = Plugins(load=[plugin("half", text)])
    assert plugins.broken
    with pytest.raises(UnknownNameError, match="half: RuntimeError: late"):
        plugins.find("coder", "half")


def test_a_component_of_the_wrong_kind_is_fatal_only_when_chosen(plugin):
    text = (
        "import speedkit\n@speedkit.hookimpl\n"
        "def register_coders(register):\n"
        "    register('number', 'fractions:Fraction')\n"
        "    register('absent', 'no_such_module:Coder')\n"
        "    register('half', 'speedkit.core.components:Coder')\n"
    )
    plugins = Plugins(load=[plugin("odd", text)])
    assert not plugins.broken
    with pytest.raises(PluginError, match="not a subclass of Coder"):
        plugins.find("coder", "number").load()
    with pytest.raises(PluginError, match="No module named 'no_such_module'"):
        plugins.find("coder", "absent").load()
    with pytest.raises(PluginError, match=r"does not define write\(\)"):
        plugins.find("coder", "half").load()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "    class Options(pydantic.BaseModel): pass",
            "Options of coder odd:noop are no speedkit",
        ),
        ("    def __init__(self): super().__init__()", "coder odd:noop failed: TypeError"),
    ],
)
def test_a_component_that_cannot_take_options_is_told_in_a_line(plugin, toy_run, body, message):
    text = CODER.format(override="").replace('    "A coder."', f'    "A coder."\n{body}')
    load = (plugin("odd", "import pydantic\n" + text), str(INSTANT))
    with pytest.raises(PluginError, match=message):
        toy_run(load=load, coder="odd:noop", nodes=1)


def test_nobody_takes_the_place_of_the_built_in_plugin(monkeypatch):
    """Not even a distribution whose name comes first."""
    from importlib import metadata

    class Other(metadata.Distribution):
        def read_text(self, filename):
            return "Name: aaa\nVersion: 1\n" if filename == "METADATA" else None

        def locate_file(self, path):
            raise NotImplementedError

    theirs = metadata.EntryPoint("builtin", "no_such_module", "speedkit")
    theirs = theirs._for(Other())
    ours = list(metadata.entry_points(group="speedkit", name="builtin"))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [theirs, *ours])
    plugins = Plugins()
    assert "noop" in plugins.names("coder")
    assert [b.origin.distribution for b in plugins.broken] == ["aaa"]


def test_a_blocked_plugin_is_not_loaded(plugin):
    path = plugin("loud", "raise RuntimeError('loaded')")
    assert not Plugins(load=[path], block=["loud"]).broken
    assert Plugins(block=["builtin"]).names("coder") == []


def test_the_environment_names_plugins(plugin, monkeypatch):
    monkeypatch.setenv("SPEEDKIT_LOAD_PLUGINS", plugin("mine", CODER.format(override="")))
    assert "mine" in [o.plugin for o in Plugins().origins]


OBSERVER = """
import speedkit
@speedkit.hookimpl
def node_finished(run, node):
    {body}
"""


def test_an_observer_that_raises_is_reported_and_the_run_goes_on(plugin, toy_run):
    path = plugin("bad", OBSERVER.format(body="raise ValueError('oops')"))
    warnings = []
    tree = toy_run(load=(str(INSTANT), path), on_warning=warnings.append, nodes=2)
    assert tree.status == "finished"
    assert warnings == ["plugin bad failed in node_finished: ValueError: oops"] * 2


def test_an_observer_can_stop_a_run(plugin, toy_run):
    path = plugin("stop", OBSERVER.format(body="raise speedkit.StopRun"))
    tree = toy_run(load=(str(INSTANT), path), scaffold="tree")
    assert tree.status == "stopped"
    assert len(tree) == 2


def test_all_observers_are_called_before_a_run_stops(plugin):
    first = plugin("a_stop", OBSERVER.format(body="raise speedkit.StopRun"))
    second = plugin("b_note", OBSERVER.format(body="run.append(node)"))
    seen = []
    with pytest.raises(StopRun):
        Plugins(load=[first, second]).notify("node_finished", print, run=seen, node=7)
    assert seen == [7]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the third-party package into a folder and return the environment to use it."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "package"
    import shutil

    shutil.copytree(TESTS / "third_party", source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    subprocess.run(command, check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def speedkit_json(environment, *arguments):
    command = [sys.executable, "-m", "speedkit", *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def test_an_installed_package_is_used_by_name_for_two_kinds(installed, tmp_path):
    environment = {**installed, "SPEEDKIT_CACHE_DIR": str(tmp_path / "cache")}
    speedkit_json(
        environment,
        *("run", f"{TOY}/1", "--plugin", "scaffold=chain", "--coder", "comment"),
        *("-o", "scaffold.length=2", "--out", str(tmp_path / "run"), "--display", "none"),
        *("--load", str(INSTANT), "--executor", "instant"),
    )
    import speedkit

    tree = speedkit.open_run(tmp_path / "run")
    assert [(n.id, n.parent) for n in tree] == [(0, None), (1, 0), (2, 1)]
    manifest = (tmp_path / "run" / "run.toml").read_text()
    assert 'distribution = "speedkit-example"\nversion = "1.2.3"' in manifest


def test_an_installed_package_adds_a_command(installed):
    assert speedkit_json(installed, "hello") == "hello from a plugin\n"
    assert "Say hello." in speedkit_json(installed, "--help")


def test_listing_plugins_imports_no_component(installed):
    code = (
        "import sys, json\nfrom speedkit.core.plugins import Plugins\n"
        "Plugins().registrations()\n"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in "
        "('speedkit_example', 'speedkit', 'torch', 'litellm', 'optuna', 'git', 'pydantic')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=installed, check=True, capture_output=True, text=True
    )
    modules = json.loads(done.stdout)
    assert "speedkit_example" in modules
    assert "speedkit_example.parts" not in modules
    assert not {"torch", "litellm", "optuna", "git", "pydantic"} & set(modules)
    assert not [m for m in modules if m.startswith("speedkit.plugins.")]
