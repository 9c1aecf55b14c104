"""``speedkit compare``: aggregates of cells of runs, with intervals and what they depend on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import (
    bootstrap_options,
    invalid_option,
    json_option,
    print_table,
    score_option,
)
from speedkit.cli.results import checked_gate, warn
from speedkit.cli.text import clean, echo, print_json

if TYPE_CHECKING:
    from speedkit.analysis.compared import Comparison, Pair
    from speedkit.analysis.statistics import Estimate

TITLES = {
    "median": "median",
    "iqm": "IQM",
    "mean": "mean",
    "optimality_gap": "optimality gap",
}


@click.command("compare")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--by",
    multiple=True,
    default=["scaffold"],
    show_default="scaffold",
    metavar="COLUMN[,COLUMN]",
    help="What makes a cell: scaffold, hints, model, coder, knowledge, task, family and others.",
)
@score_option("What is compared.")
@invalid_option
@click.option("--baseline", metavar="CELL", help="Compare every cell with this one alone.")
@click.option("--common-tasks", is_flag=True, help="Keep only the tasks that every cell has.")
@click.option(
    "--gate",
    "gates",
    type=float,
    multiple=True,
    help="Add a row for nodes judged by this validation loss; default: 3.28 and 3.29 for runs "
    "that had either.",
)
@bootstrap_options
@json_option
def command(
    paths: tuple[Path, ...],
    by: tuple[str, ...],
    score: str,
    invalid: Any,
    baseline: str | None,
    common_tasks: bool,
    gates: tuple[float, ...],
    draws: int,
    seed: int,
    as_json: bool,
) -> None:
    """Compare cells of runs: median, IQM, mean, optimality gap, differences.

    PATHS are run directories, folders that contain some, and imported files. Intervals hold
    95 % of stratified bootstrap draws. A run that is not over, or whose result is missing,
    never enters.
    """
    from speedkit.analysis.comparison import compare
    from speedkit.analysis.statistics import Bootstrap

    for gate in gates:
        checked_gate(gate)
    found = compare(
        paths,
        by,
        score=score,
        invalid=invalid,
        baseline=baseline,
        common_tasks=common_tasks,
        gates=gates or None,
        bootstrap=Bootstrap(draws, seed),
        on_warning=warn,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        for text in sections(found):
            echo(text)
        _print_tables(found)


def sections(found: Comparison) -> list[str]:
    """Return what is said before the tables."""
    from speedkit.analysis.cellscores import counted

    made = found.bootstrap
    return [
        f"{_score(found)} of {counted(found.runs)} by {', '.join(found.by)}, never clipped",
        _invalid_line(found),
        f"left out: {_tally(found.left_out)}",
        f"intervals: {made.level:.0%}, percentiles of {made.draws:,} stratified bootstrap draws, "
        f"bootstrap seed {made.seed}",
        *(clean(f"note: {note}") for note in found.notes),
    ]


def _score(found: Comparison) -> str:
    return {"fsr": "FSR", "verified_fsr": "verified FSR"}[found.score]


def _invalid_line(found: Comparison) -> str:
    from speedkit.analysis.cellscores import counted

    count = sum(cell.invalid for cell in found.cells)
    if found.invalid == "drop":
        return f"invalid: {counted(count)} without a node that may count, left out"
    return (
        f"invalid: {counted(count)} without a node that may count, as {_score(found)} 0, because "
        "the start script stands"
    )


def _tally(counts: Any) -> str:
    shown = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return shown or "none"


def _print_tables(found: Comparison) -> None:
    by = list(found.by)
    heads = [*by, "runs", "tasks", "runs a task", "invalid", *TITLES.values()]
    _table("Aggregates, intervals over seeds (tasks fixed)", heads, _cells(found, "over_seeds"))
    _table(
        "The same, intervals over tasks (tasks and seeds resampled)",
        heads,
        _cells(found, "over_tasks"),
    )
    if found.pairs:
        heads = ["x", "y", "tasks", "runs of x", "runs of y", "P(x > y)", "mean of x - y"]
        _table(
            "Pairs on the tasks both have: probability of improvement, a tie counting half; "
            "intervals over seeds",
            heads,
            map(_pair, found.pairs),
        )
        heads = ["x", "y", "task", "runs of x", "runs of y", "x - y"]
        rows = (row for pair in found.pairs for row in _by_task(pair))
        _table("Difference of means for each task, intervals over seeds", heads, rows)
    heads = ["rule", *by, "runs", "tasks", *TITLES.values()]
    _table("Sensitivity, intervals over seeds", heads, _sensitivity(found))


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    echo(f"\n{title}")
    print_table([[clean(str(v)) for v in row] for row in rows], heads)


def _cells(found: Comparison, which: str) -> Iterable[list[Any]]:
    for cell in found.cells:
        low, high = cell.runs_a_task
        span = str(low) if low == high else f"{low}-{high}"
        yield [*cell.key, cell.runs, len(cell.tasks), span, cell.invalid, *_four(cell, which)]


def _four(cell: Any, which: str) -> list[str]:
    estimates = getattr(cell, which)
    return [_shown(estimates[name]) if name in estimates else "–" for name in TITLES]


def _shown(estimate: Estimate) -> str:
    if estimate.low != estimate.low:
        return f"{estimate.value:.3f} [no interval]"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _pair(pair: Pair) -> list[Any]:
    names = (", ".join(pair.x), ", ".join(pair.y))
    numbers = (_shown(pair.improvement), _shown(pair.difference))
    return [*names, len(pair.by_task), *pair.runs, *numbers]


def _by_task(pair: Pair) -> Iterable[list[Any]]:
    for one in pair.by_task:
        names = (", ".join(pair.x), ", ".join(pair.y), one.task)
        yield [*names, one.runs_x, one.runs_y, _shown(one.difference)]


def _sensitivity(found: Comparison) -> Iterable[list[Any]]:
    for one in found.sensitivity:
        yield [one.rule, *one.key, one.runs, one.tasks, *_four(one, "over_seeds")]
