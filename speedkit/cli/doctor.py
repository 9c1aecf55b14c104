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
@click.option("--sandbox", is_flag=True, help="Try to get out of the sandbox instead.")
@json_option
def command(
    task: str | None, python: str | None, nproc: int | None, sandbox: bool, as_json: bool
) -> None:
    """Say what this machine can run; with TASK, whether it can run that task.

    Keys are named and never shown. Exit status 1 if something that TASK needs is missing.

    With --sandbox, run a job that tries to get out of the sandbox in each known way, and say
    of each what came of it. Exit status 1 if one succeeds, or if there is no sandbox.
    """
    from speedkit import doctor
    from speedkit.core.task import find_task

    if sandbox:
        if task is not None or nproc is not None:
            raise click.UsageError("--sandbox takes neither a TASK nor --nproc")
        _check_sandbox(python, as_json)
        return
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


def _check_sandbox(python: str | None, as_json: bool) -> None:
    from speedkit import doctor

    found = doctor.examine_sandbox(python)
    holds = doctor.can_run(found)
    if as_json:
        rows = [{**_values(f), "state": "pass" if f.ok else "fail"} for f in found]
        print_json({"holds": holds, "findings": rows})
    else:
        _print(found, ("pass", "fail"))
        echo("the sandbox holds" if holds else "the sandbox does not hold, or there is none")
    if not holds:
        raise click.exceptions.Exit(1)


def _values(finding: Finding) -> dict[str, str | bool]:
    return {
        "name": finding.name,
        "state": "ok" if finding.ok else "missing",
        "found": finding.found,
        "remedy": finding.remedy,
        "needed": finding.needed,
    }


def _print(findings: Sequence[Finding], states: tuple[str, str] = ("ok", "missing")) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        color = "green" if finding.ok else "red" if finding.needed else "yellow"
        state = paint(f"{states[0] if finding.ok else states[1]:7}", color)
        found = " ".join(clean(finding.found).split())
        remedy = f"; {clean(finding.remedy)}" if finding.remedy else ""
        echo(f"{state}  {finding.name:{width}}  {found}{remedy}")


def _conclude(task: str, findings: Sequence[Finding]) -> None:
    missing = [finding.name for finding in findings if finding.needed and not finding.ok]
    if missing:
        echo(f"{task} cannot run here: {', '.join(missing)}")
    else:
        echo(f"{task} can run here")
