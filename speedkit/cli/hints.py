"""``speedkit hints``: let a model write the hints of a task, and show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from speedkit.cli.common import TaskName, resolve_config
from speedkit.cli.prompts import print_text


@click.group("hints")
def command() -> None:
    """Let a model write the hints of a task, and show hints."""


@command.command("generate")
@click.argument("task", type=TaskName())
@click.option("--levels", "hints", default="1,2,3", show_default=True, help="Hint levels.")
@click.option("--model", help="Language model, as litellm names it.")
@click.option("--api-base", metavar="URL", help="URL of an OpenAI-compatible server.")
@click.option("--max-cost", type=float, metavar="DOLLARS", help="Limit on model calls.")
@click.option("--force", is_flag=True, help="Write the levels anew, even if they are there.")
@click.option("--prompts", metavar="DIR", help="Folder of prompt templates of your own.")
@click.option(
    "-o", "--option", multiple=True, metavar="llm.OPTION=VALUE", help="Set how the model is called."
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file with settings; flags and environment override it.",
)
def generate(task: str, config_file: Path | None, force: bool, **flags: Any) -> None:
    """Let a model write hints for TASK from its two scripts, their diff and the notes on it.

    Level 3 is written from levels 1 and 2; those that are missing are made first. The files
    go to the cache folder; a run takes them with --hints-from generated.
    """
    from speedkit import hinting
    from speedkit.core.errors import UsageError
    from speedkit.core.llm import LLM
    from speedkit.core.prompting import Templates
    from speedkit.core.task import find_task

    config = resolve_config(task, config_file, flags)
    if config.model is None:
        raise UsageError("hints are written by a language model; give --model")
    found = find_task(config.task)
    templates = Templates(Path(config.prompts) if config.prompts else None)
    llm = LLM(config.llm_settings())
    try:
        hinting.generate(
            found, config.hints, llm, templates=templates, force=force, on_hint=_print_hint
        )
    finally:
        llm.close()
        click.echo(str(llm.ledger.totals), err=True)


def _print_hint(level: int, path: Path, made: bool) -> None:
    state = "written" if made else "there already; --force writes it anew"
    click.echo(f"level {level}: {state}", err=True)
    click.echo(str(path))


@command.command("show")
@click.argument("task", type=TaskName())
@click.argument("level", type=click.IntRange(1, 3))
@click.option(
    "--from",
    "source",
    default="shipped",
    show_default=True,
    metavar="shipped|generated|DIR",
    help="Whose hints.",
)
def show(task: str, level: int, source: str) -> None:
    """Print the hint of LEVEL (1 pseudocode, 2 text, 3 mini-paper) of TASK."""
    from speedkit.core.task import find_task
    from speedkit.plugins.knowledge.hints import read_hint

    print_text(read_hint(find_task(task), level, source))
