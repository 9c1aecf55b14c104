"""``speedkit calibrate``: time both records of a task on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import (
    ComponentName,
    TaskName,
    json_option,
    plugins_of,
    print_table,
    resolve_config,
)
from speedkit.cli.text import clean, echo, print_json, seconds
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    from speedkit.core.calibration import Calibration
    from speedkit.core.task import Task
    from speedkit.core.trial import Trial

HEADERS = ("record", "median", "sd", "runs", "val_loss")


@click.command("calibrate")
@click.argument("task", type=TaskName())
@click.option("--runs", type=click.IntRange(min=1), show_default="3", help="Runs of each record.")
@click.option("--executor", type=ComponentName("executor"), help="Name of the executor.")
@click.option(
    "-o",
    "--option",
    "option",
    multiple=True,
    metavar="executor.OPTION=VALUE",
    help="Set an option of the executor.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file with settings; flags and environment override it.",
)
@click.option("--load", multiple=True, metavar="FILE.py|MODULE", help="Load a plugin.")
@click.option("--block", multiple=True, metavar="NAME", help="Do not load a plugin.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    task: str,
    runs: int | None,
    executor: str | None,
    option: tuple[str, ...],
    config_file: Path | None,
    load: tuple[str, ...],
    block: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure the start and the target record of TASK on this machine, and keep the times.

    The records are run in turn, --runs times each. Later runs of the task on this machine
    use the medians. The noise of FSR is what the spread of the times alone does to it.
    """
    from speedkit.calibrate import calibrate
    from speedkit.core.assemble import task_of

    flags = {"executor": executor, "option": option, "calibration_runs": runs}
    flags.update(load=load, block=block)
    config = resolve_config(task, config_file, flags)
    _check_kinds(option)
    found = task_of(config)
    count = config.calibration_runs or 3
    try:
        made = calibrate(
            config.task,
            runs=count,
            executor=config.executor,
            options=config.options.get("executor"),
            start=config.start,
            target_loss=config.target_loss,
            plugins=plugins_of(ctx, config.load, config.block),
            on_run=lambda which, k, trial: _say(which, k, count, trial),
        )
    except KeyboardInterrupt:
        click.echo("interrupted; nothing was kept", err=True)
        sys.exit(130)
    if as_json:
        print_json(describe(made))
    else:
        _print(found, made)


def _check_kinds(settings: tuple[str, ...]) -> None:
    other = [s for s in settings if not s.strip().startswith("executor.")]
    if other:
        raise UsageError(f"-o {other[0]}: a calibration uses the executor only")


def _say(which: str, k: int, of: int, trial: Trial) -> None:
    if trial.outcome is None:
        return
    metrics = trial.metrics
    result = trial.reason if metrics is None else seconds(metrics.train_time_ms) or "no time"
    click.echo(clean(f"{which} record, run {k}/{of}: {result}"), err=True)


def describe(made: Calibration) -> dict[str, Any]:
    """Return a calibration, its spread and what that means in FSR as JSON values."""
    from speedkit.calibrate import fsr_noise, spread

    start_sd, target_sd = spread(made.start_runs), spread(made.target_runs)
    return {
        **made.to_dict(),
        "start_sd_ms": start_sd,
        "target_sd_ms": target_sd,
        "start_fsr_sd": fsr_noise(made, start_sd),
        "target_fsr_sd": fsr_noise(made, target_sd),
    }


def _print(task: Task, made: Calibration) -> None:
    from speedkit.core.calibration import store_path

    facts = describe(made)
    print_table([_row(task, facts, which) for which in ("start", "target")], HEADERS)
    echo()
    echo(f"source   {made.source}")
    echo(f"speedup  {made.start_ms / made.target_ms:.2f}x")
    echo(f"noise    {_noise(facts)}")
    echo(f"kept in  {clean(str(store_path(task, made.fingerprint or {})))}")
    if not made.recovers:
        click.echo(
            f"warning: record {task.target.index} is not faster than record "
            f"{task.start.index} on this machine, so FSR is not defined",
            err=True,
        )


def _row(task: Task, facts: dict[str, Any], which: str) -> list[Any]:
    record = task.start if which == "start" else task.target
    losses = facts[f"{which}_losses"]
    return [
        clean(f"{record.index} {record.title}"),
        seconds(facts[f"{which}_ms"]),
        seconds(facts[f"{which}_sd_ms"]),
        ", ".join(f"{ms / 1000:.2f}" for ms in facts[f"{which}_runs"]),
        ", ".join(f"{loss:.4f}" for loss in losses) or None,
    ]


def _noise(facts: dict[str, Any]) -> str:
    ends = {which: facts[f"{which}_fsr_sd"] for which in ("start", "target")}
    known = [f"±{sd:.3f} at the {which} record" for which, sd in ends.items() if sd is not None]
    shown = ", ".join(known) or "–"
    return f"{shown} (FSR, one standard deviation of a single run)" if known else shown
