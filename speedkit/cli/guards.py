"""``speedkit guards``: what a node must pass before it may count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import json_option, plugins_of, print_table
from speedkit.cli.text import clean, one_line, print_json

if TYPE_CHECKING:
    from speedkit.core.plugins import Registration

HEADERS = ("guard", "asked", "cost", "looks at", "options")
COSTS = {0: "reads text", 1: "reads data", 2: "runs programs"}
KINDS = {"check_code": "before the run", "check_result": "after the run"}


@click.command("guards")
@json_option
@click.option("--load", multiple=True, metavar="FILE.py|MODULE", help="Load a plugin.")
@click.option("--block", multiple=True, metavar="NAME", help="Do not load a plugin.")
@click.pass_context
def command(
    ctx: click.Context, as_json: bool, load: tuple[str, ...], block: tuple[str, ...]
) -> None:
    """List the guards: what they look at, when, and their options.

    A run asks all of them, in the order of their cost, unless `--guards` or the setting
    `guards` names some, or none. Options are set with `-o guard.NAME.OPTION=VALUE`.
    `speedkit plugins guard --options` describes each option.
    """
    plugins = plugins_of(ctx, load, block)
    found = [describe(registration) for registration in plugins.registrations("guard")]
    found.sort(key=lambda guard: (guard["cost"] is None, guard["cost"], guard["name"]))
    if as_json:
        print_json({"guards": found})
    else:
        print_table([_row(guard) for guard in found], HEADERS)


def describe(registration: Registration) -> dict[str, Any]:
    """Import a guard and return what there is to know of it, as JSON values."""
    from speedkit.core.errors import PluginError
    from speedkit.core.guards import Guard

    facts: dict[str, Any] = {
        "name": registration.name,
        "plugin": registration.origin.plugin,
        "asked": [],
        "cost": None,
        "title": None,
        "options": {},
        "reason": None,
    }
    try:
        guard = registration.load()
    except PluginError as error:
        return {**facts, "reason": str(error)}
    asked = [
        when for name, when in KINDS.items() if getattr(guard, name) is not getattr(Guard, name)
    ]
    return {
        **facts,
        "asked": asked,
        "cost": getattr(guard, "cost", None),
        "title": getattr(guard, "title", ""),
        "options": _options(guard),
    }


def _options(guard: Any) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    fields = guard.Options.model_fields.items()
    return {
        name: to_jsonable_python(one.get_default(call_default_factory=True), fallback=str)
        for name, one in fields
        if not one.is_required()
    }


def _row(guard: dict[str, Any]) -> list[Any]:
    if guard["reason"] is not None:
        reason = f"cannot be imported: {one_line(guard['reason'], 200)}"
        return [clean(guard["name"]), None, None, reason, None]
    return [
        clean(guard["name"]),
        ", ".join(guard["asked"]) or None,
        COSTS.get(guard["cost"], str(guard["cost"])),
        one_line(guard["title"], 120) or None,
        ", ".join(guard["options"]) or None,
    ]
