"""``speedkit plugins new``, ``install`` and ``uninstall``: packages that hold plugins."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from speedkit.cli.common import plugins_of
from speedkit.cli.text import clean, echo
from speedkit.core.errors import UsageError
from speedkit.core.plugins import REGISTER_HOOKS
from speedkit.packaging import PREFIX


@click.command("new")
@click.argument("name")
@click.option(
    "--kind", required=True, type=click.Choice([*REGISTER_HOOKS]), help="What it is to offer."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder in which it is made; default: the current one.",
)
@click.pass_context
def new(ctx: click.Context, name: str, kind: str, out: Path) -> None:
    """Make a package that offers a component NAME, with tests that pass.

    The package is called speedkit-NAME. It works as it is; change what it does, not what
    it promises.
    """
    from speedkit.packaging import new_plugin

    short = name.removeprefix(PREFIX)
    plugins = plugins_of(ctx)
    if short in plugins.names(kind):
        raise UsageError(f"there is already a {kind} named {short!r}; choose another name")
    if short in (origin.plugin for origin in plugins.origins):
        raise UsageError(f"there is already a plugin named {short!r}; choose another name")
    folder = new_plugin(name, kind, out)
    echo(f"made {folder}")
    echo("next:")
    echo(f"  speedkit plugins install --editable {shlex.quote(f'{folder}[test]')}")
    echo(f"  python -m pytest {shlex.quote(str(folder))}")


@click.command("install")
@click.argument("packages", nargs=-1, required=True, metavar="PACKAGE...")
@click.option("-e", "--editable", is_flag=True, help="Changes of the code take effect at once.")
def install(packages: tuple[str, ...], editable: bool) -> None:
    """Install packages with plugins by pip, into the environment of this program.

    A PACKAGE is a name, a folder or an address, as pip takes it. A plugin is code that runs
    with your rights: install only what you trust.
    """
    from speedkit.packaging import install

    for plugin in install(packages, editable=editable):
        version = f" {plugin['version']}" if plugin["version"] else ""
        echo(clean(f"plugin {plugin['plugin']} is there, from {plugin['distribution']}{version}"))


@click.command("uninstall")
@click.argument("package")
def uninstall(package: str) -> None:
    """Remove a PACKAGE with plugins by pip."""
    from speedkit.packaging import uninstall

    echo(clean(f"{uninstall(package)} is removed"))
