"""``speedkit tasks``: what there is to reproduce."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import json_option, print_table
from speedkit.cli.families import FamilyName, families
from speedkit.cli.text import one_line, print_json, seconds

if TYPE_CHECKING:
    from speedkit.core.task import Record, Task

HEADERS = ("task", "start", "target", "start time", "target time", "hints", "scripts")


@click.command("tasks")
@click.argument("family", required=False, type=FamilyName(), metavar="[FAMILY|PATH]")
@json_option
def command(family: str | None, as_json: bool) -> None:
    """List the tasks of FAMILY, of the folder at PATH, or of all built-in families.

    The first column is what `speedkit run` takes. Times are those of the family's own
    hardware; `speedkit calibrate` measures them on this machine.
    """
    tasks = [
        describe(f"{name}/{task.id}", task)
        for name, found in families(family)
        for task in found.tasks.values()
    ]
    if as_json:
        print_json(tasks)
    else:
        print_table([_row(task) for task in tasks], HEADERS)


def describe(name: str, task: Task) -> dict[str, Any]:
    """Return the facts of a task as JSON values."""
    return {
        "name": name,
        "family": task.family.name,
        "id": task.id,
        "start": _end(task.start),
        "target": _end(task.target),
        "target_loss": task.rules.target,
        "hint_levels": list(task.hint_levels()),
    }


def _end(record: Record) -> dict[str, Any]:
    return {
        "index": record.index,
        "title": record.title,
        "time_ms": record.time_ms,
        "has_script": record.has_script(),
    }


def _row(task: dict[str, Any]) -> list[Any]:
    start, target = task["start"], task["target"]
    return [
        one_line(task["name"]),
        one_line(f"{start['index']} {start['title']}", 40),
        one_line(f"{target['index']} {target['title']}", 40),
        seconds(start["time_ms"]),
        seconds(target["time_ms"]),
        ", ".join(map(str, task["hint_levels"])) or None,
        _scripts(start["has_script"], target["has_script"]),
    ]


def _scripts(start: bool, target: bool) -> str | None:
    if start and target:
        return "both"
    return "start" if start else "target" if target else None
