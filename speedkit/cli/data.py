"""``speedkit data``: the token shards that the NanoGPT records train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from speedkit.cli.common import TaskName
from speedkit.cli.text import clean, echo
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    from speedkit.records.nanogpt.data import DataReport

folder_option = click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder; by default SPEEDKIT_NANOGPT_DATA, or one in the cache.",
)


@click.group("data")
def command() -> None:
    """Fetch, make up and check the token shards that NanoGPT records train on."""


@command.command()
@click.argument("family", type=click.Choice(["nanogpt"]))
@click.option("--shards", type=int, default=9, show_default=True, help="Training shards.")
@folder_option
def fetch(family: str, shards: int, folder: Path | None) -> None:
    """Download FineWeb shards of 100 million tokens; what is there and whole is kept."""
    from speedkit.records.nanogpt import data

    folder = folder or _own_folder(family)
    _print(data.fetch(shards, folder))


@command.command()
@click.option("--shards", type=int, default=2, show_default=True, help="Training shards.")
@click.option("--tokens", type=int, default=10_000_000, show_default=True, help="Tokens of each.")
@click.option("--seed", type=int, default=0, show_default=True)
@folder_option
def synth(shards: int, tokens: int, seed: int, folder: Path | None) -> None:
    """Make up shards of the same format, which suffice for smoke runs and nothing else."""
    from speedkit.records.nanogpt import data

    folder = folder or _own_folder("nanogpt")
    folder.mkdir(parents=True, exist_ok=True)
    _print(data.synth(folder, shards, tokens, seed))


@command.command()
@click.argument("task", required=False, type=TaskName())
@folder_option
def check(task: str | None, folder: Path | None) -> None:
    """Read the headers of all shards, and see whether they suffice for TASK."""
    from speedkit.core.task import find_task
    from speedkit.records.nanogpt import data

    if task is None:
        report = data.check(folder or _own_folder("nanogpt"))
    else:
        found = find_task(task)
        if found.family.data.check is None:
            raise UsageError(f"{found.name} has no shards to check; only tasks of nanogpt have")
        report = data.check_task(found, folder or _own_folder("nanogpt"))
    _print(report)
    if report.damaged:
        raise click.exceptions.Exit(1)


def _own_folder(family: str) -> Path:
    from speedkit.core.task import find_family

    folder = find_family(family).data_folder()
    assert folder is not None, "the family has data"
    return folder


def _print(report: DataReport) -> None:
    tokens = sum(shard.tokens for shard in report.train)
    kind = "synthetic " if report.synthetic else ""
    echo(f"{report.folder}: {len(report.train)} {kind}training shards, {tokens:,} tokens")
    echo(f"validation: {report.val.tokens:,} tokens" if report.val else "validation: no shard")
    for line in report.damaged:
        echo(f"damaged: {clean(line)}")
