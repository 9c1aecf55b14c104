"""``speedkit plugins``: what can be chosen, who offers it, and what went wrong; packages."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from speedkit.cli.common import json_option, plugins_of, print_table
from speedkit.cli.plugins_packages import install, new, uninstall
from speedkit.cli.text import clean, echo, json_text, one_line, print_json
from speedkit.core.errors import PluginError
from speedkit.core.plugins import REGISTER_HOOKS

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from speedkit.core.plugins import Origin, Plugins, Registration

HEADERS = ("kind", "name", "plugin", "distribution", "version", "note")
PLUGIN_HEADERS = ("plugin", "distribution", "version", "state", "reason")
OPTION_HEADERS = ("option", "type", "default", "description")
DESCRIPTION_WIDTH = 60
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class _ListByDefault(click.Group):
    """A group that takes arguments which name no command for those of ``list``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` before arguments that are not meant for the group."""
        given = args[:1]
        if not given or given[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("plugins", cls=_ListByDefault)
def command() -> None:
    """List plugins, components and their options; make, install and remove packages.

    `speedkit plugins [KIND]` is short for `speedkit plugins list [KIND]`.
    """


command.add_command(new)
command.add_command(install)
command.add_command(uninstall)


@command.command("list")
@click.argument("kind", required=False, type=click.Choice([*REGISTER_HOOKS]), metavar="[KIND]")
@click.option("--options", is_flag=True, help="Import the components and list their options.")
@json_option
@click.option("--load", multiple=True, metavar="FILE.py|MODULE", help="Load a plugin.")
@click.option("--block", multiple=True, metavar="NAME", help="Do not load a plugin.")
@click.pass_context
def list_command(
    ctx: click.Context,
    kind: str | None,
    options: bool,
    as_json: bool,
    load: tuple[str, ...],
    block: tuple[str, ...],
) -> None:
    """List the components that can be chosen, all or those of one KIND, and their plugins.

    KIND is scaffold, coder, executor, summarizer, judge, knowledge or guard. The plain list
    imports no component. With --options a component that cannot be imported is shown with
    the reason.
    """
    plugins = plugins_of(ctx, load, block)
    components = [_describe(plugins, r) for r in _registrations(plugins, kind)]
    if options:
        for facts, one in zip(components, _registrations(plugins, kind), strict=True):
            facts.update(_options_of(one))
    origins = describe_plugins(plugins)
    if as_json:
        print_json({"components": components, "plugins": origins})
        return
    if options:
        _print_options(components)
    else:
        print_table([_row(c) for c in components], HEADERS)
    if kind is None:
        _print_plugins(origins, used={c["plugin"] for c in components})


# --- components ---------------------------------------------------------------------------


def _registrations(plugins: Plugins, kind: str | None) -> list[Registration]:
    """Return what is offered, overridden components included, by kind and name."""
    kinds = [*REGISTER_HOOKS]
    overridden = [r for r, _ in plugins.overridden() if kind in (None, r.kind)]
    found = [*plugins.registrations(kind), *overridden]
    return sorted(found, key=lambda r: (kinds.index(r.kind), r.name, r in overridden, r.qualified))


def _describe(plugins: Plugins, one: Registration) -> dict[str, Any]:
    rivals = [r.qualified for r in plugins.registrations(one.kind) if r.name == one.name]
    by = next((by.qualified for r, by in plugins.overridden() if r == one), None)
    replaces = [r.qualified for r, by in plugins.overridden() if by == one]
    return {
        "kind": one.kind,
        "name": one.name,
        "plugin": one.origin.plugin,
        "distribution": one.origin.distribution or None,
        "version": one.origin.version or None,
        "overridden_by": by,
        "overrides": replaces,
        "clashes_with": [q for q in rivals if q != one.qualified] if by is None else [],
    }


def _note(component: dict[str, Any]) -> str | None:
    """Say in a few words why a name is not simply what it seems."""
    if component["overridden_by"]:
        return f"overridden by {component['overridden_by']}"
    if component["clashes_with"]:
        return f"clash: write {component['plugin']}:{component['name']}"
    return "overrides " + ", ".join(component["overrides"]) if component["overrides"] else None


def _row(component: dict[str, Any]) -> list[Any]:
    facts = [component[key] for key in ("kind", "name", "plugin", "distribution", "version")]
    return [*(f and one_line(f) for f in facts), _note(component)]


# --- options ------------------------------------------------------------------------------


def _options_of(one: Registration) -> dict[str, Any]:
    """Import a component and return its options, or the reason why it cannot be imported."""
    try:
        fields = one.load().Options.model_fields
    except (PluginError, SystemExit) as error:
        return {"options": None, "reason": str(error)}
    return {"options": [_describe_option(n, f) for n, f in fields.items()], "reason": None}


def _describe_option(name: str, field: FieldInfo) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return {
        "name": name,
        "type": _type_text(field.annotation) + _bounds(field),
        "required": field.is_required(),
        "default": to_jsonable_python(default, fallback=str, inf_nan_mode="strings"),
        "description": field.description or "",
    }


def _type_text(annotation: Any) -> str:
    """Return a type as one would write it."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    return inspect.formatannotation(annotation)


def _bounds(field: FieldInfo) -> str:
    found = (
        f", {sign} {limit}"
        for part in field.metadata
        for name, sign in _BOUNDS.items()
        if (limit := getattr(part, name, None)) is not None
    )
    return "".join(found)


def _print_options(components: Sequence[dict[str, Any]]) -> None:
    for component in components:
        note = _note(component)
        title = f"{component['kind']} {component['name']} ({component['plugin']})"
        echo(one_line(f"{title}, {note}" if note else title, 200))
        if component["reason"] is not None:
            echo(f"  cannot be imported: {one_line(component['reason'], 400)}")
        elif not component["options"]:
            echo("  no options")
        else:
            print_table([_option_row(o) for o in component["options"]], OPTION_HEADERS)
        echo()


def _option_row(option: dict[str, Any]) -> list[Any]:
    default = "required" if option["required"] else _value_text(option["default"])
    description = textwrap.fill(clean(option["description"]), DESCRIPTION_WIDTH)
    return [option["name"], clean(option["type"]), default, description]


def _value_text(value: Any) -> str | None:
    """Return a default as one would write it after ``-o KIND.OPTION=``, cut when long."""
    text = value if isinstance(value, str) else None if value is None else json_text(value, None)
    return text and one_line(text, 40)


# --- plugins ------------------------------------------------------------------------------


def describe_plugins(plugins: Plugins) -> list[dict[str, Any]]:
    """Return every plugin, loaded, broken or blocked, as JSON values."""
    loaded = [_plugin(origin, "loaded") for origin in plugins.origins]
    broken = [_plugin(b.origin, "broken", b.reason) for b in plugins.broken]
    blocked = [
        {"plugin": n, "distribution": None, "version": None, "state": "blocked", "reason": None}
        for n in plugins.blocked
    ]
    return [*loaded, *broken, *blocked]


def _plugin(origin: Origin, state: str, reason: str | None = None) -> dict[str, Any]:
    return {
        "plugin": origin.plugin,
        "distribution": origin.distribution or None,
        "version": origin.version or None,
        "state": state,
        "reason": reason,
    }


def _print_plugins(origins: Sequence[dict[str, Any]], used: set[str]) -> None:
    """Print the plugins that the table of components does not show."""
    rest = [o for o in origins if o["state"] != "loaded" or o["plugin"] not in used]
    if rest:
        echo()
        rows = [[v and one_line(v, 200) for v in o.values()] for o in rest]
        print_table(rows, PLUGIN_HEADERS)
