"""``speedkit cancel``: end a run, a sweep or a chain, and the jobs of it, from outside."""

from __future__ import annotations

from pathlib import Path

import click

from speedkit.cli.common import json_option
from speedkit.cli.text import clean, echo, print_json


@click.command("cancel")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--wait",
    type=click.FloatRange(min=1),
    default=90.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the controller may take.",
)
@json_option
def command(run: Path, wait: float, as_json: bool) -> None:
    """End the search in the run directory RUN, and its jobs wherever they are.

    A controller on this machine is asked to end, as by Ctrl-C. Without one, the jobs that the
    journal names are ended. RUN may be the directory of a sweep or of a cumulative speedrun
    as well. All can be resumed.
    """
    from dataclasses import asdict

    from speedkit.cancel import cancel, command_of

    done = cancel(run, wait)
    if as_json:
        print_json(asdict(done))
        return
    if done.controller is not None:
        echo(f"process {done.controller} has ended its jobs and itself")
    elif done.jobs:
        echo(f"ended: {clean(', '.join(done.jobs))}")
    else:
        echo("nothing was running")
    if done.remote:
        echo(f"the controller on {clean(done.remote)} will stop when it sees that")
    echo(f"to go on: speedkit {command_of(run)} --resume {clean(str(run))}")
