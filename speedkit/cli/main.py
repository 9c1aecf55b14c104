"""The entry point: a group whose commands come from plugins and are imported when used."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from speedkit import __version__
from speedkit.cli.common import plugins_of
from speedkit.core.errors import SpeedkitError, did_you_mean
from speedkit.core.files import printable
from speedkit.core.plugins import Plugins

EPILOG = """Exit status: 0 done; 1 something went wrong; 2 the request was at fault; 4 a limit
on cost or tokens was reached, the run can be resumed; 130 interrupted.

Completion of names in bash: eval "$(_SPEEDKIT_COMPLETE=bash_source speedkit)"; likewise
zsh_source and fish_source."""


class PluginGroup(click.Group):
    """A group of the commands that plugins register; none is imported before it is used."""

    def plugins(self, ctx: click.Context) -> Plugins:
        """Return the plugins of this process, loading them on first use."""
        return plugins_of(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(self.plugins(ctx).commands())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return a command."""
        found = self.plugins(ctx).commands().get(name)
        command: click.Command | None = found.load() if found else None
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve the first argument, offering near names when it is unknown."""
        name = args[0]
        known = self.plugins(ctx).commands()
        if name not in known and not name.startswith("-"):
            ctx.fail(f"no command {name!r}; {did_you_mean(name, known)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the help text they were registered with."""
        rows = [(name, c.help) for name, c in self.plugins(ctx).commands().items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=PluginGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--load", multiple=True, metavar="FILE.py|MODULE", help="Load a plugin.")
@click.option("--block", multiple=True, metavar="NAME", help="Do not load a plugin.")
@click.version_option(__version__, prog_name="speedkit")
def cli(load: tuple[str, ...], block: tuple[str, ...]) -> None:
    """Can an agent reproduce a known speedup of language-model training?

    Searches a task of a speedrun family with exchangeable parts and scores it by the
    fraction of the human speedup recovered (FSR).
    """


def main(args: list[str] | None = None) -> None:
    """Run the program; errors meant for the user become one line and an exit status."""
    if os.environ.get("SPEEDKIT_DEBUG"):
        sys.exit(_run(args))
    try:
        sys.exit(_run(args))
    except SpeedkitError as error:
        for line in printable(str(error)).splitlines():
            click.echo(f"error: {line}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (nothing is left to say)
        sys.exit(0)
    except OSError as error:
        named = error.filename and error.strerror
        what = f"{error.filename}: {error.strerror}" if named else str(error)
        click.echo(printable(f"error: {what}"), err=True)
        sys.exit(1)


def _run(args: list[str] | None) -> Any:
    try:
        return cli.main(args, prog_name="speedkit", standalone_mode=False)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
