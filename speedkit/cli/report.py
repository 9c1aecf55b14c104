"""``speedkit report``: one HTML file about one run or several."""

from __future__ import annotations

from pathlib import Path

import click

from speedkit.cli.common import json_option
from speedkit.cli.text import echo, print_json


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file; default: RUN/report.html, for several runs ./speedkit-report.html.",
)
@json_option
def command(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write a self-contained HTML report on each RUN, a run directory or a folder of them.

    It shows the search tree, what is known of each node, figures, tables, configuration,
    versions and cost. It loads nothing from the network. A run that is not over can be
    reported, too. The path of the file is printed.
    """
    from speedkit.analysis.report import write_report

    path = write_report(runs, out)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        echo(str(path))
