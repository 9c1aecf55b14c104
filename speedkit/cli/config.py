"""``speedkit config``: what a run would be asked to do, and who said so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from speedkit.cli.common import SEVERAL, TaskName, config_options, json_option, resolve_config
from speedkit.cli.text import clean, echo, print_json

Key = tuple[str, ...]
"""The parts of a dotted key."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@click.group("config")
def command() -> None:
    """Look at the configuration: defaults < TOML file < environment < flags."""


@command.command("show")
@click.argument("task", required=False, type=TaskName())
@config_options
@json_option
def show(task: str | None, config_file: Path | None, as_json: bool, **flags: Any) -> None:
    """Print the configuration that `speedkit run` would have with the same flags.

    Each key has its origin: default, file, env or flag. The output is TOML that
    `speedkit run --config` reads.
    """
    config = resolve_config(task, config_file, flags)
    origins = find_origins({"task": task, **flags}, config_file)
    values = config.model_dump(mode="json")
    found = [(key, value, origins.get(key, "default")) for key, value in leaves(values)]
    if as_json:
        print_json({"config": values, "origins": {".".join(k): origin for k, _, origin in found}})
        return
    for key, value, origin in found:
        echo(clean(_toml_line(toml_key(key), value, origin)))


# --- origins --------------------------------------------------------------------------------


def find_origins(flags: Mapping[str, Any], config_file: Path | None) -> dict[Key, str]:
    """Return ``file``, ``env`` or ``flag`` for each key that is set somewhere."""
    from speedkit.core.config import from_environment, from_file

    named = os.environ.get("SPEEDKIT_CONFIG")
    file = config_file or (Path(named) if named else None)
    layers = {
        "file": from_file(file),
        "env": from_environment(os.environ),
        "flag": _flag_layer(flags),
    }
    return {key: name for name, layer in layers.items() for key, _ in leaves(layer)}


def _flag_layer(flags: Mapping[str, Any]) -> dict[str, Any]:
    from speedkit.core.config import SETTINGS, parse_options

    layer = {k: v for k, v in flags.items() if v not in (None, ())}
    for choice in layer.pop("plugin", ()):
        kind, _, name = choice.partition("=")
        layer[SEVERAL.get(kind, kind)] = name
    options = parse_options(layer.pop("option", ()))
    settings = {group: options.pop(group, None) for group in SETTINGS} | {"options": options}
    return {**layer, **{k: v for k, v in settings.items() if v}}


def leaves(values: Mapping[str, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield each dotted key with its value, those of tables one by one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


# --- TOML -----------------------------------------------------------------------------------


def _toml_line(key: str, value: Any, origin: str) -> str:
    if value is None:
        return f"# {key} is not set  # {origin}"
    return f"{key} = {toml_value(value)}  # {origin}"


def toml_key(path: Key) -> str:
    """Return a dotted key."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else toml_value(part) for part in path)


def toml_value(value: Any) -> str:
    """Return a value on one line; the writer of the library would break lists up."""
    import tomli_w

    if isinstance(value, Mapping):
        inner = (f"{toml_key((str(k),))} = {toml_value(v)}" for k, v in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()
