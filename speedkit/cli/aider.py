"""``speedkit aider``: the environment of the coder ``aider``."""

from __future__ import annotations

import click

from speedkit.cli.common import json_option
from speedkit.cli.text import print_json


@click.group("aider")
def command() -> None:
    """Install aider in an environment of its own, and say which one is used."""


@command.command("install")
@click.option("--python", metavar="PY", help="Interpreter for the environment.")
def install(python: str | None) -> None:
    """Make the environment of the coder `aider`, at the pinned version.

    It is kept in the cache folder, apart from this one. A broken installation is made anew.
    """
    from speedkit.plugins.coders import aider_environment as environment

    if (present := environment.installed()) is not None:
        click.echo(f"aider {environment.VERSION} is there: {present}")
        return
    click.echo(f"installing aider {environment.VERSION} (about 100 packages) ...", err=True)
    click.echo(f"aider {environment.VERSION} is ready: {environment.install(python)}")


@command.command("status")
@json_option
def status(as_json: bool) -> None:
    """Say which aider would be used."""
    from speedkit.core.errors import UsageError
    from speedkit.plugins.coders import aider_environment as environment

    try:
        found = environment.find()
        executable, source, problem = str(found.executable), found.source, ""
    except UsageError as error:
        executable, source, problem = None, None, str(error)
    if as_json:
        pinned = environment.VERSION
        print_json({"pinned": pinned, "executable": executable, "source": source})
    else:
        click.echo(problem or f"aider ({source}): {executable}")
