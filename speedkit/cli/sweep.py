"""``speedkit sweep``: run a grid of runs that a TOML file describes; and what ablate shares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from speedkit.cli.common import (
    json_option,
    option_option,
    plugin_option,
    plugins_of,
    print_table,
    settings_of,
)
from speedkit.cli.text import clean, echo, print_json
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    from speedkit.analysis.compared import Comparison
    from speedkit.sweeping import Cell, Ended, Sweep, SweepPlan, SweepResult, Watch
    from speedkit.sweeping.estimate import Amount

F = TypeVar("F", bound=Callable[..., Any])

ARM_HEADERS = ("task", "arm", "runs", "over", "begun", "nodes left", "job hours")


def sweep_options(command: F) -> F:
    """Add the options that ``sweep`` and ``ablate`` share."""
    options = [
        click.option("--out", type=click.Path(path_type=Path), help="Directory of the sweep."),
        click.option("--resume", type=click.Path(path_type=Path), help="Go on with a sweep."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and stop."),
        click.option("--jobs", type=click.IntRange(min=1), help="Runs at once; default: 1."),
        click.option(
            "--max-cost",
            type=click.FloatRange(min=0),
            metavar="DOLLARS",
            help="Limit on model calls of all runs together.",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(min=0),
            help="Limit on tokens of model calls of all runs together.",
        ),
        click.option(
            "--max-hours",
            type=click.FloatRange(min=0),
            metavar="HOURS",
            help="Limit on the time that jobs of all runs take together.",
        ),
        click.option(
            "--display",
            type=click.Choice(["nodes", "runs", "none"]),
            help="What is told on standard error while it runs; default: nodes.",
        ),
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("sweep")
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE.toml]")
@plugin_option
@option_option
@sweep_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    file: Path | None,
    plugin: tuple[str, ...],
    option: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    jobs: int | None,
    **options: Any,
) -> None:
    """Run the grid of runs that FILE describes; go on with what is there already.

    \b
    tasks = ["mini/1", "mini/2"]
    seeds = 3
    [base]                  # settings of every run, as in the file of `run --config`
    nodes = 8
    [vary]
    scaffold = ["flat", "aide"]
    hints = ["none", "1", "1+2+3"]
    "scaffold.aide.debug_prob" = [0.1, 0.5]

    Every run has a directory of its own below --out. Given again, with more tasks, seeds or
    values in FILE, it runs only what is missing. --plugin and -o lie over [base]. Exit status:
    1 when a run failed, 4 when a limit left something undone.
    """  # noqa: D301 (click's mark for lines that are kept)
    from speedkit.sweeping import read_sweep

    sweep = stored(resume) if resume else None
    if sweep is None:
        if file is None:
            raise UsageError("name a file that describes the sweep, or --resume a sweep directory")
        given = settings_of({"plugin": plugin, "option": option})
        sweep = read_sweep(file, settings={k: v for k, v in given.items() if v})
        sweep = _with_plugins(sweep, ctx.find_root().params)
    elif file or out or plugin or option:
        raise UsageError("--resume goes on with the sweep's own plan; give no FILE, --out or -o")
    go(ctx, sweep, resume or out, jobs=jobs, **options)


def _with_plugins(sweep: Sweep, root: Mapping[str, Any]) -> Sweep:
    """Return a sweep with what was loaded or blocked before the command's name, kept to resume."""
    more = {
        key: list(dict.fromkeys((*sweep.base.get(key, ()), *map(_absolute, names))))
        for key in ("load", "block")
        if (names := root.get(key))
    }
    return replace(sweep, base={**sweep.base, **more})


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if name.endswith(".py") else name


def stored(folder: Path) -> Sweep:
    """Return the sweep of a sweep directory."""
    from speedkit.sweeping import stored_sweep

    return stored_sweep(folder)


def go(
    ctx: click.Context,
    sweep: Sweep,
    out: Path | None,
    *,
    jobs: int | None,
    max_cost: float | None,
    max_tokens: int | None,
    max_hours: float | None,
    dry_run: bool,
    display: str | None,
    as_json: bool,
) -> None:
    """Plan or run a sweep, and print what came out."""
    from speedkit.core.history import default_run_path
    from speedkit.sweeping import plan_sweep, run_sweep
    from speedkit.sweeping.runner import raised

    limits = {"max_cost": max_cost, "max_tokens": max_tokens, "max_hours": max_hours}
    sweep = raised(sweep, jobs, **limits)
    plugins = plugins_of(ctx, sweep.base.get("load", ()), sweep.base.get("block", ()))
    if dry_run:
        plan = plan_sweep(sweep, out=out, plugins=plugins)
        if as_json:
            print_json(plan.to_dict())
        else:
            print_plan(plan)
        return
    path = out or default_run_path("sweep")
    shown = display or ("none" if as_json else "nodes")
    try:
        result = run_sweep(sweep, out=path, plugins=plugins, watch=make_watch(shown))
    except KeyboardInterrupt:
        click.echo(f"interrupted; to go on: speedkit sweep --resume {path}", err=True)
        sys.exit(130)
    if as_json:
        print_json(_result_json(result, _compared(result)[0]))
    else:
        print_result(result)
    tell_failures(result)
    if result.exit_code:
        sys.exit(result.exit_code)


def tell_failures(result: SweepResult) -> None:
    """Write a line on standard error for each run that failed, and for a limit."""
    for name, reason in result.failed.items():
        click.echo(clean(f"failed: {name}: {reason}"), err=True)
    if result.limit:
        click.echo(clean(result.limit), err=True)


# --- while it runs ------------------------------------------------------------------------


def make_watch(shown: str) -> Watch:
    """Return who tells of a sweep on standard error: of ``nodes``, of ``runs``, or ``none``."""
    from speedkit.cli.display import describe
    from speedkit.sweeping import Watch

    def say(line: str) -> None:
        click.echo(clean(line), err=True)

    def begin(cell: Cell, path: Path, resumed: bool) -> None:
        say(f"{cell.name}: {'goes on' if resumed else 'begins'}")

    def event(cell: Cell, event: Mapping[str, Any]) -> None:
        if event["type"] in ("node_finished", "calibrated"):
            for line in describe(event).splitlines():
                say(f"{cell.name}: {line}")

    def end(cell: Cell, ended: Ended) -> None:
        reason = f": {ended.reason}" if ended.reason else ""
        status = "interrupted" if ended.status == "open" else ended.status
        say(f"{cell.name}: {status}{reason}")

    def warn(text: str) -> None:
        say(f"warning: {text}")

    if shown == "none":
        return Watch(on_warning=warn)
    if shown == "runs":
        return Watch(on_start=begin, on_end=end, on_warning=warn)
    return Watch(on_start=begin, on_event=event, on_end=end, on_warning=warn)


# --- the plan -----------------------------------------------------------------------------


def print_plan(plan: SweepPlan) -> None:
    """Print what a sweep would do, arm by arm, and what it comes to."""
    print_table(_arm_rows(plan), ARM_HEADERS)
    echo()
    for line in plan_lines(plan):
        echo(clean(line))


def _arm_rows(plan: SweepPlan) -> list[list[Any]]:
    """Return a row for each task and arm."""
    rows: dict[tuple[str, str], list[Any]] = {}
    for run in plan.runs:
        rows.setdefault((run.cell.task_name, run.cell.label), []).append(run)
    return [
        [
            clean(task),
            clean(label),
            len(runs),
            sum(r.status in ("finished", "stopped") for r in runs),
            sum(r.status == "open" for r in runs),
            sum(r.nodes for r in runs),
            _hours([r.job_hours for r in runs]),
        ]
        for (task, label), runs in rows.items()
    ]


def _hours(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return "unknown" if len(known) < len(values) else f"{sum(known):.2f}"


def plan_lines(plan: SweepPlan) -> list[str]:
    """Return what a plan comes to, a line each; what is unknown is said to be."""
    states = plan.states
    over = states["finished"] + states["stopped"]
    lines = [
        f"runs     {len(plan.runs)}: {over} over, {states['open']} to go on with, "
        f"{states['missing']} to begin; {plan.sweep.jobs} at once",
        f"nodes    {plan.nodes} to be made",
        f"prompts  {_prompts(plan)}",
        f"dollars  {_dollars(plan)}",
        f"jobs     {_jobs(plan)}",
    ]
    given = plan.sweep.limits.given()
    told = [f"--{key.replace('_', '-')} {value:g}" for key, value in given.items()]
    return [*lines, f"limits   {', '.join(told) or 'none'}"]


def _prompts(plan: SweepPlan) -> str:
    amount = plan.amount("prompt_tokens")
    if not amount.value and not amount.unknown:
        return "no model is asked for code"
    text = f"about {amount.value:,.0f} tokens, if each were as long as the first; later ones grow"
    return _with_unknown(text, amount)


def _dollars(plan: SweepPlan) -> str:
    prompts, replies = plan.amount("prompt_dollars"), plan.amount("reply_dollars")
    if not plan.amount("prompt_tokens").value and not prompts.unknown:
        return "none for code"
    text = (
        f"${prompts.value:.2f} for these prompts, and ${replies.value:.2f} for every 1,000 tokens "
        "of reply to each; how long replies are, repairs and summaries are unknown"
    )
    return _with_unknown(text, prompts if prompts.unknown >= replies.unknown else replies)


def _jobs(plan: SweepPlan) -> str:
    from speedkit.sweeping.estimate import times_told

    told = {
        "measured": "times measured here",
        "scaled": "times measured here",
        "reference": "reference times of the family's hardware",
    }
    amount = plan.amount("job_hours")
    known = [f"{n} by {told[s]}" for s, n in times_told(plan).items() if s in told]
    if not known:
        return "unknown: no time of a start record is known" if plan.left else "none"
    text = (
        f"about {amount.value:.2f} hours of training, start-up and compilation not counted "
        f"(runs: {', '.join(known)})"
    )
    return _with_unknown(text, amount)


def _with_unknown(text: str, amount: Amount) -> str:
    if not amount.unknown:
        return text
    count = "1 run" if amount.unknown == 1 else f"{amount.unknown} runs"
    return f"unknown for {count}" + (f"; for the others {text}" if amount.value else "")


# --- the result ---------------------------------------------------------------------------


def _compared(result: SweepResult) -> tuple[Comparison | None, str]:
    """Return the comparison of the arms, or why there is none."""
    from speedkit.sweeping import compare_arms

    def warn(text: str) -> None:
        click.echo(clean(f"warning: {text}"), err=True)

    try:
        return compare_arms(result.path, result.cells, result.over, warn), ""
    except UsageError as error:
        return None, str(error)


def print_result(result: SweepResult) -> None:
    """Print the comparison of the arms, and where to look further."""
    from speedkit.sweeping.compared import columns_of

    found, why = _compared(result)
    if found is None:
        echo(clean(f"no comparison: {why}"))
    else:
        _print_comparison(found)
    over, path = len(result.over), clean(str(result.path))
    left = len(result.ended) - over - len(result.failed)
    columns = columns_of(result.cells) or ["scaffold"]
    echo(f"\nruns     {over} of {len(result.ended)} over, {len(result.failed)} failed, {left} left")
    echo(f"spent    {result.spent}; {result.hours:.2f} hours of jobs")
    echo(f"compare  speedkit compare {path} --by {','.join(columns)}")
    echo(f"report   speedkit report {path}")


def _print_comparison(found: Comparison) -> None:
    from speedkit.cli.compare import TITLES, sections

    for line in sections(found):
        echo(line)
    echo()
    rows = [
        [
            *map(clean, cell.key),
            cell.runs,
            len(cell.tasks),
            cell.invalid,
            *(_estimate(cell.over_seeds.get(name)) for name in TITLES),
        ]
        for cell in found.cells
    ]
    heads = [*("arm" if by == "name" else by for by in found.by), "runs", "tasks", "invalid"]
    print_table(rows, [*heads, *TITLES.values()])


def _estimate(value: Any) -> str | None:
    if value is None:
        return None
    if value.low != value.low:
        return f"{value.value:.3f}"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _result_json(result: SweepResult, found: Comparison | None) -> dict[str, Any]:
    spent = result.spent
    return {
        "path": str(result.path),
        "runs": [
            {
                "name": cell.name,
                "task": cell.task_name,
                "seed": cell.seed,
                "arm": dict(cell.arm),
                **vars(result.ended[cell.name]),
            }
            for cell in result.cells
        ],
        "limit": result.limit or None,
        "spent": {"calls": spent.calls, "tokens": spent.usage.total, "dollars": spent.cost},
        "job_hours": result.hours,
        "comparison": _finite(found.to_dict()) if found else None,
    }


def _finite(value: Any) -> Any:
    """Return JSON values with null for what is no number."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and value != value else value
