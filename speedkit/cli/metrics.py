"""``speedkit metrics``: what training logs say, read strictly."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import IO, TYPE_CHECKING, Any

import click

from speedkit.cli.common import json_option, print_table
from speedkit.cli.text import clean, print_json, seconds

if TYPE_CHECKING:
    from speedkit.core.metrics import Report

HEADERS = ("file", "lines", "step", "val_loss", "time", "at target", "reason")


@click.command("metrics")
@click.argument("logs", nargs=-1, required=True, type=click.Path(), metavar="LOG...")
@click.option(
    "--target",
    type=float,
    callback=lambda ctx, option, value: _checked(value),
    default=3.28,
    show_default=True,
    help="Validation loss, in nats per token, that a run must reach.",
)
@json_option
def command(logs: tuple[str, ...], target: float, as_json: bool) -> None:
    """Read training logs and print what each one proves; `-` is standard input.

    The last validation line decides. `reason` says why a log may not count towards the
    target; it is empty when the log may. With --json each log is one object on one line,
    where val_loss is null if it is not a finite number. A log that cannot be read is
    reported on standard error, and the exit status is then 2.
    """
    found, failed = [], False
    for name in logs:
        try:
            facts = describe(name, read(name), target)
        except OSError as error:
            failed = True
            message = error.strerror or type(error).__name__
            click.echo(f"error: {clean(click.format_filename(name))}: {message}", err=True)
            continue
        if as_json:
            print_json(facts, indent=None)
        found.append(facts)
    if found and not as_json:
        print_table([_row(facts) for facts in found], HEADERS)
    if failed:
        sys.exit(2)


def _checked(target: float) -> float:
    if not 0 < target < math.inf:
        raise click.BadParameter(f"{target:g} is no loss to reach; it must be over 0 and finite.")
    return target


def read(name: str) -> Report:
    """Read a log in constant memory; ``-`` is standard input.

    Raises:
        OSError: it cannot be read.
    """
    from speedkit.core.metrics import parse_log, read_lines

    with _open(name) as file:
        return parse_log(read_lines(file))


def _open(name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if name == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    return open(name, "rb")


def describe(name: str, report: Report, target: float) -> dict[str, Any]:
    """Return what a log says as JSON values."""
    last, first = report.last, report.first_at_target(target)
    return {
        "file": click.format_filename(name),
        "valid_lines": report.valid_lines,
        "step": last.step if last else None,
        "steps": last.steps if last else None,
        "val_loss": last.val_loss if last and math.isfinite(last.val_loss) else None,
        "train_time_ms": last.train_time_ms if last else None,
        "first_at_target": first and {"step": first.step, "train_time_ms": first.train_time_ms},
        "reason": report.reason(target),
    }


def _row(facts: dict[str, Any]) -> list[Any]:
    step = facts["step"]
    if facts["steps"] is not None:
        step = f"{step}/{facts['steps']}"
    loss, first = facts["val_loss"], facts["first_at_target"]
    return [
        clean(facts["file"]),
        facts["valid_lines"],
        step,
        None if loss is None else f"{loss:.4f}",
        seconds(facts["train_time_ms"]),
        first and _moment(first),
        clean(facts["reason"])[:120] or None,
    ]


def _moment(first: dict[str, Any]) -> str:
    time = seconds(first["train_time_ms"])
    return f"step {first['step']}" + (f", {time}" if time else "")
