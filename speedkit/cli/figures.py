"""``speedkit figures``: pictures of results, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from speedkit.cli.common import (
    bootstrap_options,
    invalid_option,
    json_option,
    print_table,
    score_option,
)
from speedkit.cli.results import warn
from speedkit.cli.text import clean, echo, print_json


def _list(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the names of the figures and end the command."""
    if not wanted or ctx.resilient_parsing:
        return
    from speedkit.analysis.figures import FIGURES

    print_table([(name, spec.meaning) for name, spec in FIGURES.items()], ("name", "figure"))
    ctx.exit()


@click.command("figures")
@click.argument(
    "paths", nargs=-1, required=True, metavar="RESULTS...", type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the files; those of the same name are replaced.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Draw this figure alone; may be repeated.",
)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="List the figures by name.",
)
@click.option(
    "--format",
    "forms",
    multiple=True,
    type=click.Choice(["png", "svg"]),
    default=["png", "svg"],
    show_default="both",
    help="Form of the files; may be repeated.",
)
@score_option("What is drawn.")
@invalid_option
@bootstrap_options
@json_option
def command(
    paths: tuple[Path, ...],
    out: Path,
    only: tuple[str, ...],
    forms: tuple[str, ...],
    score: str,
    invalid: Any,
    draws: int,
    seed: int,
    as_json: bool,
) -> None:
    """Draw every figure that RESULTS have something for.

    RESULTS are run directories, folders that contain some, imported files, cumulative
    speedruns, and JSON files of record times. What cannot be drawn is named with the reason.
    """
    from speedkit.analysis.figures import Choice, check_written, write_figures
    from speedkit.analysis.statistics import Bootstrap

    choice = Choice(score, invalid, Bootstrap(draws, seed))
    written = write_figures(paths, out, only=only, forms=forms, choice=choice, on_warning=warn)
    check_written(written)
    if as_json:
        print_json({"files": [str(p) for p in written.files], "skipped": written.skipped})
        return
    for path in written.files:
        echo(clean(str(path)))
    for name, why in written.skipped.items():
        echo(clean(f"skipped {name}: {why}"))
