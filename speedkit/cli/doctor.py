"""``speedkit doctor``: what this machine can run, and how to get what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from speedkit.cli.common import TaskName, json_option
from speedkit.cli.text import clean, echo, paint, print_json

if TYPE_CHECKING:
    from speedkit.doctor import Finding


@click.command("doctor")
@click.argument("task", required=False, type=TaskName())
@click.option("--python", metavar="PY", help="Interpreter that is to run the scripts.")
@click.option("--nproc", type=click.IntRange(min=1), help="Processes, if not the task's number.")
@json_option
def command(task: str | None, python: str | None, nproc: int | None, as_json: bool) -> None:
    """Say what this machine can run; with TASK, whether it can run that task.

    Keys are named and never shown. Exit status 1 if something that TASK needs is missing.
    """
    from speedkit import doctor
    from speedkit.core.task import find_task

    if nproc is not None and task is None:
        raise click.UsageError("--nproc needs a TASK")
    found = doctor.examine(None if task is None else find_task(task), python=python, nproc=nproc)
    able = None if task is None else doctor.can_run(found)
    if as_json:
        print_json({"task": task, "can_run": able, "findings": [_values(f) for f in found]})
    else:
        _print(found)
        if task is not None:
            _conclude(clean(task), found)
    if able is False:
        raise click.exceptions.Exit(1)


def _values(finding: Finding) -> dict[str, str | bool]:
    return {
        "name": finding.name,
        "state": "ok" if finding.ok else "missing",
        "found": finding.found,
        "remedy": finding.remedy,
        "needed": finding.needed,
    }


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        color = "green" if finding.ok else "red" if finding.needed else "yellow"
        state = paint(f"{'ok' if finding.ok else 'missing':7}", color)
        found = " ".join(clean(finding.found).split())
        remedy = f"; {clean(finding.remedy)}" if finding.remedy else ""
        echo(f"{state}  {finding.name:{width}}  {found}{remedy}")


def _conclude(task: str, findings: Sequence[Finding]) -> None:
    missing = [finding.name for finding in findings if finding.needed and not finding.ok]
    if missing:
        echo(f"{task} cannot run here: {', '.join(missing)}")
    else:
        echo(f"{task} can run here")
