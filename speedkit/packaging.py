"""Making, installing and removing packages with plugins."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from speedkit.core.errors import PluginError, UsageError
from speedkit.core.plugins import GROUP, REGISTER_HOOKS

TEMPLATES = Path(__file__).resolve().parent / "plugin_template"
"""The folder of templates."""
PREFIX = "speedkit-"
"""What the name of a distribution begins with."""
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*")
_LAST_LINES = 12
"""Lines of pip's standard error that are shown when it fails."""


# --- new packages ---------------------------------------------------------------------------


@dataclass(frozen=True)
class NewPlugin:
    """The names of a package that is to be made.

    Attributes:
        name: of the component, and of the plugin.
        kind: of the component.
    """

    name: str
    kind: str

    @property
    def distribution(self) -> str:
        """Name of the distribution, and of its folder."""
        return PREFIX + self.name.replace("_", "-")

    @property
    def package(self) -> str:
        """Name of the import package."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """Name of the class."""
        words = re.split(r"[_-]", self.name)
        return "".join(word.capitalize() for word in (*words, self.kind))

    def values(self) -> dict[str, str]:
        """Return what stands for the placeholders of the templates."""
        from speedkit import __version__

        return {
            "name": self.name,
            "kind": self.kind,
            "article": "an" if self.kind[0] in "aeiou" else "a",
            "hook": REGISTER_HOOKS[self.kind],
            "distribution": self.distribution,
            "package": self.package,
            "cls": self.class_name,
            "version": __version__,
        }


def new_plugin(name: str, kind: str, parent: Path = Path()) -> Path:
    """Make a folder with a package that offers a component, and return the folder.

    Args:
        name: of the component; ``speedkit-`` before it is taken for the distribution's.
        kind: one of the kinds of component.
        parent: the folder in which it is made.

    Raises:
        UsageError: there is no such kind, the name is none, or the folder exists.
    """
    if kind not in REGISTER_HOOKS:
        raise UsageError(f"no kind {kind!r}; there are: {', '.join(REGISTER_HOOKS)}")
    plugin = NewPlugin(name.removeprefix(PREFIX), kind)
    if not _NAME.fullmatch(plugin.name):
        raise UsageError(
            f"{name!r} is no name; begin with a lower case letter and use lower case letters, "
            "digits, and single _ or - between them"
        )
    folder = parent / plugin.distribution
    if folder.exists():
        raise UsageError(f"{folder} exists already; choose another name or --out")
    for path, text in _rendered(plugin).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


def _rendered(plugin: NewPlugin) -> dict[str, str]:
    """Return the files of a package, text by path."""
    source = f"src/{plugin.package}"
    templates = {
        "pyproject.toml": "pyproject.toml.tmpl",
        "README.md": "README.md.tmpl",
        f"{source}/__init__.py": "init.py.tmpl",
        f"{source}/{plugin.kind}.py": f"{plugin.kind}.py.tmpl",
        f"tests/test_{plugin.package}.py": f"test_{plugin.kind}.py.tmpl",
    }
    values = plugin.values()
    return {path: _render(TEMPLATES / name, values) for path, name in templates.items()}


def _render(path: Path, values: dict[str, str]) -> str:
    return Template(path.read_text(encoding="utf-8")).substitute(values)


# --- installing -----------------------------------------------------------------------------


def install(packages: Sequence[str], *, editable: bool = False) -> list[dict[str, Any]]:
    """Install packages with pip into the environment of this interpreter.

    Args:
        packages: names with or without a version, paths, or addresses, as pip takes them.
        editable: install the folders so that changes of their code take effect at once.

    Returns:
        The plugins that came or changed, as ``speedkit plugins list --json`` describes them.

    Raises:
        UsageError: what is given is an option, or nothing.
        PluginError: pip is not there, failed, or brought no plugin, or a broken one.
    """
    _check_arguments(packages)
    before = _plugins()
    found = [_located(name) for name in packages]
    flags = [flag for name in found for flag in (("--editable", name) if editable else (name,))]
    _pip(["install", *flags], f"install {' '.join(packages)}")
    after = _plugins()
    new = [plugin for plugin in after if plugin not in before]
    if broken := [p for p in new if p["state"] == "broken"]:
        one = broken[0]
        raise PluginError(f"plugin {one['plugin']} was installed and is broken: {one['reason']}")
    if not new:
        raise PluginError(
            f"pip brought nothing new: {' '.join(packages)} was there already, or has no entry "
            f"point in the group {GROUP!r}"
        )
    return new


def _located(package: str) -> str:
    """Return a package as pip takes it: of a folder's bare name, pip would ask an index."""
    folder = Path(package.partition("[")[0])
    is_project = any((folder / name).is_file() for name in ("pyproject.toml", "setup.py"))
    return os.path.join(os.curdir, package) if is_project and len(folder.parts) == 1 else package


def uninstall(package: str) -> str:
    """Remove a distribution that offers plugins, with pip, and return its name.

    Raises:
        UsageError: it is not installed, offers no plugin, or is speedkit itself.
        PluginError: pip is not there, or failed.
    """
    _check_arguments([package])
    offered = installed_plugins()
    found = next((dist for dist in offered if _same(dist, package)), None)
    if found is None:
        raise UsageError(_not_offered(package, offered))
    if _same(found, "speedkit"):
        raise UsageError("speedkit itself is removed with pip")
    _pip(["uninstall", "--yes", found], f"uninstall {found}")
    return found


def installed_plugins() -> dict[str, list[str]]:
    """Return the names of plugins by the distribution that offers them."""
    found: dict[str, list[str]] = {}
    importlib.invalidate_caches()
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.dist is not None:
            found.setdefault(point.dist.name, []).append(point.name)
    return found


def _not_offered(package: str, offered: dict[str, list[str]]) -> str:
    owner = next((dist for dist, names in offered.items() if package in names), None)
    if owner is not None:
        return f"plugin {package} comes from {owner}; write: speedkit plugins uninstall {owner}"
    try:
        importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        others = ", ".join(sorted(set(offered) - {"speedkit"})) or "none"
        return f"{package} is not installed; packages with plugins: {others}"
    return f"{package} offers no plugin of speedkit; to remove it use pip"


def _same(one: str, other: str) -> bool:
    """Whether two names are those of one distribution."""
    first, second = (re.sub(r"[-_.]+", "-", name).lower() for name in (one, other))
    return first == second


def _check_arguments(packages: Sequence[str]) -> None:
    if not packages:
        raise UsageError("name a package, a folder or an address")
    for name in packages:
        if name.startswith("-") or not name.strip():
            raise UsageError(f"{name!r} is no package; options for pip go into PIP_... variables")


def _pip(arguments: Sequence[str], what: str) -> None:
    """Run pip of this interpreter; it reports on standard error.

    Raises:
        PluginError: there is no pip, or it failed.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    if importlib.util.find_spec("pip") is None:
        raise PluginError(
            f"{sys.executable} has no pip: run {sys.executable} -m ensurepip, "
            f"or with your own installer: {what}"
        )
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise PluginError(f"pip could not {what} (exit status {done.returncode}):\n{words}")


def _plugins() -> list[dict[str, Any]]:
    """Return the plugins as a new process sees them."""
    command = [sys.executable, "-m", "speedkit", "plugins", "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"speedkit does not start any more: {done.stderr.strip()[-300:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)["plugins"]
    return found
