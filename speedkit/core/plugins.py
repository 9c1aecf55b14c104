"""Find plugins, keep broken ones apart, and look components up by name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from speedkit.core import hookspecs
from speedkit.core.errors import PluginError, StopRun, UnknownNameError, UsageError, did_you_mean

if TYPE_CHECKING:
    from speedkit.core.components import Component

GROUP = "speedkit"
REGISTER_HOOKS = {
    "scaffold": "register_scaffolds",
    "coder": "register_coders",
    "executor": "register_executors",
    "summarizer": "register_summarizers",
    "judge": "register_judges",
    "knowledge": "register_knowledge",
    "guard": "register_guards",
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Origin:
    """Where a plugin came from.

    Attributes:
        plugin: the name it is known by.
        distribution: the installed distribution, or the file or module it was loaded from.
        version: of the distribution, empty if it has none.
    """

    plugin: str
    distribution: str
    version: str = ""


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and why, in one line."""

    origin: Origin
    reason: str


@dataclass(frozen=True)
class Registration:
    """A component that a plugin offers."""

    kind: str
    name: str
    target: type | str
    origin: Origin
    override: bool = False

    @property
    def qualified(self) -> str:
        """``plugin:name``, which is never ambiguous."""
        return f"{self.origin.plugin}:{self.name}"

    def load(self) -> type[Component]:
        """Import the class and check that it is a component of its kind.

        Raises:
            PluginError: it cannot be imported or is of another kind.
        """
        from speedkit.core.components import BASES, Options
        from speedkit.core.guards import Guard

        base: type[Component] = Guard if self.kind == "guard" else BASES[self.kind]
        cls = _import_target(self.target, f"{self.kind} {self.qualified}")
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise PluginError(
                f"{self.kind} {self.qualified} is not a subclass of {base.__name__}: {cls!r}"
            )
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            call = "()" if callable(getattr(cls, missing[0])) else ""
            raise PluginError(f"{self.kind} {self.qualified} does not define {missing[0]}{call}")
        if not (isinstance(cls.Options, type) and issubclass(cls.Options, Options)):
            raise PluginError(f"Options of {self.kind} {self.qualified} are no speedkit.Options")
        return cls


@dataclass(frozen=True)
class CommandRegistration:
    """A command that a plugin offers."""

    name: str
    target: str
    help: str
    origin: Origin

    def load(self) -> Any:
        """Import the click command."""
        return _import_target(self.target, f"command {self.name} of {self.origin.plugin}")


class Plugins:
    """The plugins of this process and what they offer.

    Args:
        load: extra plugins, each a path of a ``.py`` file or the name of a module.
        block: plugins, by name, that are not to be loaded.
        entry_points: whether installed plugins are loaded.

    Attributes:
        origins: the plugins that were loaded.
        broken: the plugins that were not, with the reason.
    """

    def __init__(
        self, load: Sequence[str] = (), block: Sequence[str] = (), *, entry_points: bool = True
    ) -> None:
        self.manager = pluggy.PluginManager("speedkit")
        self.manager.add_hookspecs(hookspecs)
        self.origins: list[Origin] = []
        self.broken: list[Broken] = []
        self.blocked = tuple(block)
        self._kept_out: set[str] = set()
        self._registered: list[Registration] = []
        self._commands: dict[str, CommandRegistration] = {}
        if entry_points:
            self._add_installed()
        for target in (*_loaded_by_environment(), *load):
            self._add(Origin(_plugin_name(target), target), partial(_load_target, target))

    @property
    def blocked_in_vain(self) -> tuple[str, ...]:
        """The names among ``blocked`` that no plugin has."""
        return tuple(name for name in self.blocked if name not in self._kept_out)

    def _add_installed(self) -> None:
        # Our own first, so that nobody else's can take the place of the built-in plugin.
        for point in sorted(importlib.metadata.entry_points(group=GROUP), key=_rank):
            dist = point.dist
            origin = Origin(point.name, dist.name, dist.version) if dist else Origin(point.name, "")
            self._add(origin, point.load)

    def _add(self, origin: Origin, load: Callable[[], object]) -> None:
        """Load and register one plugin; whatever it does wrong stays its own affair."""
        if origin.plugin in self.blocked:
            self._kept_out.add(origin.plugin)
            return
        try:
            plugin = load()
            self._register(origin, plugin)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            self.broken.append(Broken(origin, _one_line(error)))
            return
        self.origins.append(origin)

    def _register(self, origin: Origin, plugin: object) -> None:
        if self.manager.has_plugin(origin.plugin):
            raise PluginError(f"a plugin named {origin.plugin} is loaded already")
        self.manager.register(plugin, name=origin.plugin)
        try:
            self._check_hooks(plugin)
            found, commands = self._collect(origin)
        except BaseException:
            self.manager.unregister(plugin)
            raise
        self._registered.extend(found)
        self._commands.update(commands)

    def _check_hooks(self, plugin: object) -> None:
        callers = self.manager.get_hookcallers(plugin) or []
        unknown = [c.name for c in callers if not c.has_spec()]
        if unknown:
            hooks = [name for name, hook in vars(self.manager.hook).items() if hook.has_spec()]
            near = did_you_mean(unknown[0], hooks)
            raise PluginError(f"speedkit has no hook named {unknown[0]}; {near}")
        if not callers:
            raise PluginError("it implements no hook; mark functions with @speedkit.hookimpl")

    def _collect(self, origin: Origin) -> tuple[list[Registration], dict[str, CommandRegistration]]:
        found: list[Registration] = []
        commands: dict[str, CommandRegistration] = {}

        def register_command(name: str, target: str, *, help: str) -> None:
            _check_name(name)
            if name in self._commands or name in commands:
                other = self._commands.get(name) or commands[name]
                raise PluginError(f"command {name} is offered by {other.origin.plugin} already")
            commands[name] = CommandRegistration(name, target, help, origin)

        for kind, hook in REGISTER_HOOKS.items():
            self._call_one(origin, hook, register=_registrar(kind, origin, found))
        self._call_one(origin, "register_commands", register=register_command)
        return found, commands

    def _call_one(self, origin: Origin, hook: str, **arguments: object) -> None:
        others = [p for n, p in self.manager.list_name_plugin() if n != origin.plugin]
        self.manager.subset_hook_caller(hook, others)(**arguments)

    # --- look-up ------------------------------------------------------------------------

    def registrations(self, kind: str | None = None) -> list[Registration]:
        """Return what is offered, overridden components left out, sorted by kind and name."""
        shown = [r for r in self._registered if kind in (None, r.kind) and not self._replaced(r)]
        order = list(REGISTER_HOOKS)
        return sorted(shown, key=lambda r: (order.index(r.kind), r.name, r.qualified))

    def overridden(self) -> list[tuple[Registration, Registration]]:
        """Return pairs of a replaced component and the one that replaces it."""
        return [(r, by) for r in self._registered if (by := self._replaced(r))]

    def _replaced(self, one: Registration) -> Registration | None:
        if one.override:
            return None
        rivals = (r for r in self._registered if (r.kind, r.name) == (one.kind, one.name))
        return next((r for r in rivals if r.override), None)

    def names(self, kind: str) -> list[str]:
        """Return the names that :meth:`find` accepts for a kind, without the qualified ones."""
        return sorted({r.name for r in self.registrations(kind)})

    def find(self, kind: str, name: str) -> Registration:
        """Look a component up by ``name`` or ``plugin:name``.

        Raises:
            UnknownNameError: nothing is offered under that name.
            UsageError: several plugins offer it and none overrides.
        """
        if ":" in name:
            found = [r for r in self._registered if r.kind == kind and r.qualified == name]
        else:
            found = [r for r in self.registrations(kind) if r.name == name]
        if len(found) > 1:
            forms = " or ".join(sorted(r.qualified for r in found))
            raise UsageError(f"{kind} {name!r} is offered by several plugins; write {forms}")
        if not found:
            raise UnknownNameError(kind, name, self.names(kind), self._broken_hint())
        return found[0]

    def _broken_hint(self) -> str:
        if not self.broken:
            return ""
        listed = "; ".join(f"{b.origin.plugin}: {b.reason}" for b in self.broken)
        return f"these plugins could not be loaded: {listed}"

    def commands(self) -> dict[str, CommandRegistration]:
        """Return the commands that plugins offer, by name."""
        return dict(self._commands)

    # --- observers ----------------------------------------------------------------------

    def notify(self, hook: str, on_error: Callable[[str], None], **facts: object) -> None:
        """Call an observer hook of each plugin; one that raises is reported, not fatal.

        Raises:
            StopRun: an observer asked for the end of the run; the others were called too.
        """
        stop: StopRun | None = None
        for origin in self.origins:
            try:
                self._call_one(origin, hook, **facts)
            except StopRun as request:
                stop = request
            except Exception as error:  # an observer may raise anything
                on_error(f"plugin {origin.plugin} failed in {hook}: {_one_line(error)}")
        if stop is not None:
            raise stop


def _registrar(kind: str, origin: Origin, found: list[Registration]) -> hookspecs.Register:
    def register(name: str, target: type | str, *, override: bool = False) -> None:
        _check_name(name)
        if any((r.kind, r.name) == (kind, name) for r in found):
            raise PluginError(f"it registers {kind} {name} twice")
        if isinstance(target, str) and ":" not in target:
            raise PluginError(f"target of {kind} {name} must be 'module:Class', not {target!r}")
        found.append(Registration(kind, name, target, origin, override))

    return register


def _check_name(name: str) -> None:
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise PluginError(f"{name!r} is no name; use lower case letters, digits, _ and -")


def _import_target(target: type | str, what: str) -> Any:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise PluginError(f"{what} cannot be loaded: {_one_line(error)}") from error


def _rank(point: importlib.metadata.EntryPoint) -> tuple[bool, str]:
    return point.dist is None or point.dist.name != GROUP, point.name


def _loaded_by_environment() -> Iterable[str]:
    value = os.environ.get("SPEEDKIT_LOAD_PLUGINS", "")
    return [part.strip() for part in value.split(",") if part.strip()]


def _plugin_name(target: str) -> str:
    return Path(target).stem if target.endswith(".py") else target


def _load_target(target: str) -> ModuleType:
    if not target.endswith(".py"):
        return importlib.import_module(target)
    path = Path(target).resolve()
    if not path.is_file():
        raise PluginError(f"no such file: {target}")
    name = f"speedkit_loaded_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"not a Python file: {target}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def broken_line(broken: Broken) -> str:
    """Return the line that tells a user of a broken plugin."""
    from speedkit.core.files import printable

    return printable(f"plugin {broken.origin.plugin} is broken: {broken.reason}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
