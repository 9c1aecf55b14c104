"""``speedkit results``: runs as a table, and results of others as a file beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import json_option, print_table
from speedkit.cli.text import clean, echo, print_json

if TYPE_CHECKING:
    import pandas as pd

HEADERS = (
    *("name", "task", "scaffold", "coder", "model", "hints", "knowledge", "seed", "status"),
    *("result", "nodes", "valid/invalid/buggy/other", "best", "time", "calibration", "FSR"),
    *("noise floor", "verified FSR", "tokens in/out", "dollars", "job s"),
)


class _TableByDefault(click.Group):
    """Takes anything but the name of a subcommand for the arguments of ``table``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, ["table", *args] if args and args[0] not in known else args)


@click.group("results", cls=_TableByDefault)
def command() -> None:
    """Show runs as a table, or import results of others.

    `speedkit results PATH...` is short for `speedkit results table PATH...`; write ./import
    for a run directory of that name.
    """


@command.command("table")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--csv", "form", flag_value="csv", help="Print every column as CSV.")
@click.option("--json", "form", flag_value="json", help="Print every column as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Print the table as Markdown.")
@click.option("--gate", type=float, help="Judge nodes by this validation loss, not the run's own.")
def table(paths: tuple[Path, ...], form: str | None, gate: float | None) -> None:
    """Print one row a run.

    PATHS are run directories, folders that contain some, and imported files. Nothing that is
    read is changed. In CSV and JSON what is missing is empty or null, never 0.
    """
    from speedkit.analysis import export, load

    checked_gate(gate)
    frame = load(paths, gate=gate, on_warning=warn)
    if form == "csv":
        click.echo(export.to_csv(frame), nl=False)
    elif form == "json":
        print_json(list(export.rows_of(frame)))
    elif form == "markdown":
        click.echo(export.to_markdown(HEADERS, shown_rows(frame)))
        click.echo("\n" + "  \n".join(closing(frame)))
    else:
        print_table(shown_rows(frame), HEADERS)
        echo()
        for text in closing(frame):
            echo(text)


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.csv")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Results file; default: FILE.results.json."
)
@json_option
def import_(file: Path, out: Path | None, as_json: bool) -> None:
    """Check a CSV file of results and keep it as a results file.

    The first line names the columns, which are those of `speedkit results --csv`. Needed are
    `task` (FAMILY/ID) and either `fsr`, or `start_ms`, `target_ms` and `train_time_ms`, or
    `result`, which says invalid or missing. Every mistake is reported with its line, and
    nothing is written then.
    """
    from speedkit.analysis import import_results

    made = import_results(file, out)
    tally = Counter(row["result"] for row in made.rows)
    if as_json:
        print_json({"file": str(made.path), "rows": len(made.rows), "results": dict(tally)})
    else:
        echo(clean(f"{made.path}: {len(made.rows)} runs imported: {_counts(tally)}"))


def warn(text: str) -> None:
    """Print a line for the user on standard error."""
    click.echo(f"warning: {clean(text)}", err=True)


def checked_gate(gate: float | None) -> None:
    """Refuse what is no validation loss.

    Raises:
        UsageError: it is none.
    """
    from speedkit.core.errors import UsageError

    if gate is not None and not 0 < gate < math.inf:
        raise UsageError(f"--gate {gate:g} is no loss to reach; it must be over 0 and finite")


# --- how rows are shown ----------------------------------------------------------------------


def shown_rows(frame: pd.DataFrame) -> list[list[str | None]]:
    """Return the cells of the table that people read; None where something is missing."""
    from speedkit.analysis.export import rows_of

    return [_shown(row) for row in rows_of(frame)]


def _shown(row: Mapping[str, Any]) -> list[str | None]:
    texts = ("name", "task", "scaffold", "coder", "model", "hints", "knowledge")
    return [
        *(_text(row[name]) for name in texts),
        _format(row["seed"], "d"),
        row["status"],
        row["result"],
        _format(row["nodes"], "d"),
        _outcomes(row),
        _format(row["best_node"], "d"),
        _format(_in_seconds(row["train_time_ms"]), ".2f", " s"),
        _text(row["calibration"]),
        _format(row["fsr"], "+.3f"),
        _format(row["noise_floor"], "+.3f"),
        _verified(row),
        _tokens(row),
        _format(row["dollars"], ".4f"),
        _format(row["job_s"], ".0f"),
    ]


def _text(value: str | None) -> str | None:
    from speedkit.core.files import one_line

    return None if value is None else one_line(value)[:60]


def _format(value: float | None, form: str, unit: str = "") -> str | None:
    return None if value is None else f"{value:{form}}{unit}"


def _in_seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _outcomes(row: Mapping[str, Any]) -> str | None:
    named = [row[f"nodes_{name}"] for name in ("valid", "invalid", "buggy")]
    if row["nodes"] is None or None in named:
        return None
    return "/".join(str(n) for n in (*named, row["nodes"] - sum(named)))


def _verified(row: Mapping[str, Any]) -> str | None:
    if row["verified_fsr"] is None:
        return _text(row["verdict"])
    verdict = f" {row['verdict']}" if row["verdict"] else ""
    return f"{row['verified_fsr']:+.3f}{verdict}"


def _tokens(row: Mapping[str, Any]) -> str | None:
    if row["tokens_in"] is None or row["tokens_out"] is None:
        return None
    return f"{row['tokens_in']:,}/{row['tokens_out']:,}"


def closing(frame: pd.DataFrame) -> list[str]:
    """Return what must be said of the table."""
    from speedkit.analysis.cellscores import counted
    from speedkit.analysis.columns import OWN

    own = int((frame["start"] == OWN).sum())
    said = f"{counted(own)} from a script of its own, with FSR counted from that"
    return [
        f"{counted(len(frame))}: {_counts(Counter(frame['result']))}",
        *([said] if own else []),
        "invalid: the search is over and no node may count; missing: not over, not readable, or "
        "without a calibration; –: not known. FSR is of the best valid node and never clipped. "
        "Noise floor: what the best of as many unchanged scripts would be expected to score.",
    ]


def _counts(tally: Mapping[str, int]) -> str:
    from speedkit.analysis.columns import RESULTS

    names: Sequence[str] = RESULTS
    return ", ".join(f"{tally.get(name, 0)} {name}" for name in names)
