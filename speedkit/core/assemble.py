"""From a configuration to the components of a run, every mistake reported at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from speedkit.core.components import (
    Coder,
    Component,
    Executor,
    KnowledgeSource,
    Scaffold,
    Services,
    Summarizer,
)
from speedkit.core.config import RunConfig, explain
from speedkit.core.errors import ConfigError, SpeedkitError, UsageError, blamed, did_you_mean
from speedkit.core.guards import Guard
from speedkit.core.plugins import Plugins, Registration
from speedkit.core.task import Task, find_task


@dataclass(frozen=True)
class Components:
    """The components of a run, bound or not yet bound to its services.

    Attributes:
        manifest: for each kind name, plugin, distribution, version and resolved options.
    """

    scaffold: Scaffold
    coder: Coder
    executor: Executor
    summarizer: Summarizer
    knowledge: tuple[KnowledgeSource, ...]
    guards: tuple[Guard, ...]
    manifest: Mapping[str, Any]

    def bind(self, services: Services) -> None:
        """Tell every component of the run's services."""
        parts: Sequence[Component] = (
            self.scaffold,
            self.coder,
            self.executor,
            self.summarizer,
            *self.knowledge,
            *self.guards,
        )
        for part in parts:
            part.bind(services)


def assemble(config: RunConfig, plugins: Plugins) -> Components:
    """Look the chosen components up, check their options and make them.

    Raises:
        ConfigError: with one line for every unknown name and wrong option.
        PluginError: a chosen component cannot be imported.
    """
    builder = _Builder(config, plugins)
    builder.manifest = {"scaffold": {}, "coder": {}}  # in the order in which kinds are shown
    scaffold = builder.one("scaffold", config.scaffold)
    executor = builder.one("executor", config.executor)
    builder.describe(executor)
    coder = builder.one("coder", config.coder_name)
    summarizer = builder.one("summarizer", config.summarizer)
    knowledge = builder.many("knowledge", config.knowledge_names)
    guard_names = plugins.names("guard") if config.guards is None else config.guards
    guards = builder.many("guard", guard_names)
    if config.judge is not None:
        builder.one("judge", config.judge)
    builder.check_unused_kinds()
    if builder.problems:
        raise ConfigError(builder.problems)
    return Components(
        scaffold,
        coder,
        executor,
        summarizer,
        tuple(knowledge),
        tuple(guards),
        builder.manifest,
    )


def task_of(config: RunConfig) -> Task:
    """Return the task of a configuration, with its gate and the script it starts from.

    Raises:
        UsageError: the script cannot be read.
    """
    task = find_task(config.task).gated(config.target_loss)
    if config.start is None:
        return task
    try:
        text = Path(config.start).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the script to start from cannot be read: {error}") from None
    if config.redactor().clean(text) != text:
        raise UsageError(
            f"the script to start from, {config.start}, holds a secret, and scripts are stored "
            "with the run; take it out"
        )
    return task.starting_from(text)


def make_component(config: RunConfig, plugins: Plugins, kind: str, name: str) -> Any:
    """Make one component outside a run, for example a judge.

    Raises:
        ConfigError: unknown name or wrong options.
    """
    builder = _Builder(config, plugins)
    component = builder.one(kind, name)
    if builder.problems:
        raise ConfigError(builder.problems)
    return component


class _Builder:
    def __init__(self, config: RunConfig, plugins: Plugins) -> None:
        self.config, self.plugins = config, plugins
        self.problems: list[str] = []
        self.manifest: dict[str, Any] = {}
        self.python: str | None = None
        self.chosen: set[str] = set()

    def one(self, kind: str, name: str) -> Any:
        made = self.many(kind, (name,))
        entries = self.manifest[kind]
        self.manifest[kind] = entries[0] if entries else {}
        return made[0] if made else None

    def many(self, kind: str, names: Sequence[str]) -> list[Any]:
        if names:
            self.chosen.add(kind)
        given = dict(self.config.options.get(kind, {}))
        if kind == "knowledge" and self.config.hints:
            given.setdefault("levels", list(self.config.hints))
        found = [(r, cls) for name in names if (r := self._find(kind, name)) and (cls := r.load())]
        own = {r.name: given.pop(r.name) for r, _ in found if isinstance(given.get(r.name), dict)}
        self._check_names(kind, given, [cls for _, cls in found], own)
        made, entries = [], []
        for registration, cls in found:
            fields = cls.Options.model_fields
            shared = {k: v for k, v in given.items() if k in fields}
            if self.config.prompts and "prompts" in fields:
                shared.setdefault("prompts", self.config.prompts)
            if kind in ("coder", "knowledge") and self.python and "python" in fields:
                shared.setdefault("python", self.python)
            values = shared | own.get(registration.name, {})
            options = self._options(registration, cls, values)
            if cls.needs_model and self.config.model is None:
                self.problems.append(f"{kind} {registration.name} needs a model; give --model")
            if options is not None:
                with blamed(kind, registration.qualified):
                    made.append(cls(options))
                entries.append(_entry(registration, options))
        self.manifest[kind] = entries
        return made

    def describe(self, executor: Executor | None) -> None:
        """Let what coders are told of the interpreter be true of the one that runs scripts."""
        try:
            python = executor.interpreter if executor else None
        except SpeedkitError as error:
            self.problems.append(str(error))
        else:
            self.python = None if python == sys.executable else python

    def _find(self, kind: str, name: str) -> Registration | None:
        try:
            return self.plugins.find(kind, name)
        except SpeedkitError as error:
            self.problems.append(str(error))
            return None

    def _check_names(
        self,
        kind: str,
        given: Mapping[str, Any],
        classes: Sequence[type[Component]],
        own: Mapping[str, Any],
    ) -> None:
        if not classes:
            return
        known = {field for cls in classes for field in cls.Options.model_fields}
        for option in given:
            if option not in known:
                near = did_you_mean(option, known | set(own))
                self.problems.append(f"{kind}.{option}: there is no such option; {near}")

    def _options(
        self, registration: Registration, cls: type[Component], values: Mapping[str, Any]
    ) -> Any:
        try:
            return cls.Options.model_validate(dict(values))
        except ValidationError as error:
            self.problems += explain(error, cls.Options, prefix=f"{registration.kind}.")
            return None

    def check_unused_kinds(self) -> None:
        """Report options that nothing takes; those of guards may stay where guards are off."""
        for kind in self.config.options:
            if kind not in self.chosen and kind != "guard":
                self.problems.append(f"options for {kind} are given, but no {kind} is chosen")


def _entry(registration: Registration, options: Any) -> dict[str, Any]:
    return {
        "name": registration.name,
        "plugin": registration.origin.plugin,
        "distribution": registration.origin.distribution,
        "version": registration.origin.version,
        "options": options.model_dump(mode="json"),
    }
