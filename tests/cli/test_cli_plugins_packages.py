"""``speedkit plugins new``, ``install``, ``uninstall``: in an environment made for the purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv

import pytest

from speedkit import packaging
from speedkit.core.errors import PluginError, UsageError
from speedkit.core.plugins import REGISTER_HOOKS
from tests.conftest import TESTS

NAMES = {kind: f"kit-{kind}" for kind in REGISTER_HOOKS}
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the word after NO_, so 0 is what switches it on
    "PIP_CONFIG_FILE": os.devnull,
}


class Environment:
    """A virtual environment that sees the packages of this one."""

    def __init__(self, folder):
        venv.create(folder, with_pip=False)
        self.python = str(folder / "bin" / "python")
        site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        here = sysconfig.get_path("purelib")
        with open(os.path.join(site, "_these.pth"), "w") as file:
            file.write(f"import site; site.addsitedir({here!r})\n{TESTS.parent}\n")
        self.cache = folder / "cache"

    def run(self, *arguments, check=True, **more):
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env |= {**OFFLINE, "SPEEDKIT_CACHE_DIR": str(self.cache), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.python, *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, **more)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def speedkit(self, *arguments, **more):
        return self.run("-m", "speedkit", *arguments, **more)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Make a package of each kind and return the folders by kind."""
    parent = tmp_path_factory.mktemp("packages")
    return {kind: packaging.new_plugin(name, kind, parent) for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory, packages):
    """Install all of them with the program into an environment of their own."""
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.said = made.speedkit("plugins", "install", *packages.values()).stdout
    return made


@pytest.mark.long
def test_a_package_of_each_kind_installs_and_appears(environment):
    for name in NAMES.values():
        assert f"plugin {name} is there, from speedkit-{name} 0.1.0" in environment.said
    listed = json.loads(environment.speedkit("plugins", "list", "--options", "--json").stdout)
    components = {c["name"]: c for c in listed["components"] if c["name"] in NAMES.values()}
    assert {c["kind"] for c in components.values()} == set(NAMES)
    for component in components.values():
        assert component["reason"] is None
        assert component["options"]
        assert all(option["description"] for option in component["options"])
    assert not [p for p in listed["plugins"] if p["state"] == "broken"]


@pytest.mark.long
def test_a_package_of_each_kind_passes_its_own_tests(environment, packages):
    options = ("-q", "-p", "speedkit.testing.pytest_plugin", "-p", "no:cacheprovider")
    folders = [folder / "tests" for folder in packages.values()]
    done = environment.run(
        *("-m", "pytest", *options, "--import-mode=importlib", "-c", os.devnull),
        *("--rootdir", packages["coder"].parent, *folders),
    )
    assert f"{2 * len(NAMES)} passed" in done.stdout


def test_a_package_has_no_lint(packages):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache"]
    rules = ["--select=E4,E7,E9,F,UP,B,C4,RUF,SIM", "--target-version=py310"]
    folder = packages["coder"].parent
    done = subprocess.run([*command, *rules, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_what_is_installed_can_be_removed_again(environment):
    again = environment.speedkit("plugins", "uninstall", "kit-guard", check=False)
    assert again.returncode == 2
    words = "plugin kit-guard comes from speedkit-kit-guard; write: speedkit plugins uninstall"
    assert words in again.stderr
    done = environment.speedkit("plugins", "uninstall", "speedkit_kit.guard")
    assert done.stdout == "speedkit-kit-guard is removed\n"
    assert "kit-guard" not in environment.speedkit("plugins", "guard").stdout
    missing = environment.speedkit("plugins", "uninstall", "speedkit-kit-guard", check=False)
    assert "speedkit-kit-guard is not installed; packages with plugins: " in missing.stderr


@pytest.mark.long
def test_what_brings_no_plugin_is_told(environment, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "kit-bare"\nversion = "1"\n[tool.setuptools]\npy-modules = []\n'
    )
    done = environment.speedkit("plugins", "install", tmp_path, check=False)
    assert done.returncode == 1
    assert "has no entry point in the group 'speedkit'" in done.stderr
    done = environment.speedkit("plugins", "uninstall", "kit-bare", check=False)
    assert "kit-bare offers no plugin of speedkit; to remove it use pip" in done.stderr


@pytest.mark.long
def test_what_pip_cannot_find_is_told_in_its_words(environment):
    done = environment.speedkit("plugins", "install", "no-such-package-4711", check=False)
    assert done.returncode == 1
    assert "error: pip could not install no-such-package-4711 (exit status 1):" in done.stderr
    assert "No matching distribution found" in done.stderr
    assert "Traceback" not in done.stderr


# --- without an environment -----------------------------------------------------------------


def test_the_program_says_what_it_made_and_what_is_next(program, tmp_path):
    result = program("plugins", "new", "swift", "--kind", "coder", "--out", tmp_path)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == f"made {tmp_path}/speedkit-swift"
    assert lines[2] == f"  speedkit plugins install --editable '{tmp_path}/speedkit-swift[test]'"
    made = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert made == [
        "speedkit-swift/README.md",
        "speedkit-swift/pyproject.toml",
        "speedkit-swift/src/speedkit_swift/__init__.py",
        "speedkit-swift/src/speedkit_swift/coder.py",
        "speedkit-swift/tests/test_speedkit_swift.py",
    ]
    assert "$" not in (tmp_path / made[0]).read_text().replace("$ ", "")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("Big", "coder", "'Big' is no name"),
        ("../x", "coder", "'../x' is no name"),
        ("a__b", "coder", "single _ or -"),
        ("tuner", "coder", "there is already a coder named 'tuner'"),
        ("speedkit-tuner", "coder", "there is already a coder named 'tuner'"),
        ("builtin", "coder", "there is already a plugin named 'builtin'"),
    ],
)
def test_a_name_that_cannot_be_is_refused(program, tmp_path, name, kind, words):
    result = program("plugins", "new", name, "--kind", kind, "--out", tmp_path)
    assert result.code == 2
    assert words in result.err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(program, tmp_path):
    arguments = ("plugins", "new", "swift", "--kind", "judge", "--out", tmp_path)
    assert program(*arguments).code == 0
    result = program(*arguments)
    assert result.code == 2
    assert "exists already; choose another name or --out" in result.err


def test_a_kind_is_needed(program):
    assert "Missing option '--kind'" in program("plugins", "new", "swift").err
    assert program("plugins", "new", "swift", "--kind", "cooder").code == 2
    with pytest.raises(UsageError, match="no kind 'cooder'; there are: scaffold, coder"):
        packaging.new_plugin("swift", "cooder")


def test_names_follow_from_one_another():
    plugin = packaging.NewPlugin("my_fast-one", "executor")
    assert plugin.distribution == "speedkit-my-fast-one"
    assert plugin.package == "speedkit_my_fast_one"
    assert plugin.class_name == "MyFastOneExecutor"


def test_options_for_pip_are_no_packages():
    with pytest.raises(UsageError, match="'--index-url=x' is no package"):
        packaging.install(["--index-url=x"])
    with pytest.raises(UsageError, match="name a package"):
        packaging.install([])


def test_the_bare_name_of_a_folder_is_that_folder(tmp_path, monkeypatch):
    folder = packaging.new_plugin("swift", "coder", tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(packaging, "_pip", lambda arguments, what: asked.append(arguments))
    monkeypatch.setattr(packaging, "_plugins", lambda: [{"state": "loaded", "n": len(asked)}])
    packaging.install([folder.name, f"{folder.name}[test]", str(folder), "speedkit-other"])
    assert asked == [
        ["install", "./speedkit-swift", "./speedkit-swift[test]", str(folder), "speedkit-other"]
    ]


def test_speedkit_itself_stays():
    with pytest.raises(UsageError, match="speedkit itself is removed with pip"):
        packaging.uninstall("SpeedKit")


def test_an_environment_without_pip_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(packaging, "_plugins", list)
    with pytest.raises(PluginError, match=r"has no pip: run .* -m ensurepip, or .*install thing"):
        packaging.install(["thing"])


def test_help_names_the_commands(program):
    out = program("plugins", "--help").out
    assert all(word in out for word in ("install", "list", "new", "uninstall"))
    assert "--options" in program("plugins", "list", "--help").out
