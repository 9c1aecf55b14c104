"""``speedkit ablate``: vary components, options, hints and others from the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from speedkit.cli.common import TaskName, config_options, resolve_config
from speedkit.cli.sweep import go, stored, sweep_options
from speedkit.core.errors import ConfigError, UsageError

SHARED = ("max_cost", "max_tokens")
"""Flags of a run that hold for the whole sweep here."""


def _run_options(command: Any) -> Any:
    """Add the options of a run, but for those that hold for the whole sweep."""
    command = config_options(command)
    command.__click_params__ = [p for p in command.__click_params__ if p.name not in SHARED]
    return command


@click.command("ablate")
@click.argument("tasks", nargs=-1, type=TaskName(), metavar="[TASK]...")
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=A,B",
    help="Values of a setting; lists are joined by +, as hints=none,1,1+2+3.",
)
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds; default: 1.")
@click.option(
    "--one-at-a-time",
    is_flag=True,
    help="Change one key at a time from the base, the first value of each, instead of all.",
)
@sweep_options
@_run_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    tasks: tuple[str, ...],
    vary: tuple[str, ...],
    seeds: int | None,
    one_at_a_time: bool,
    out: Path | None,
    resume: Path | None,
    config_file: Path | None,
    jobs: int | None,
    max_cost: float | None,
    max_tokens: int | None,
    max_hours: float | None,
    dry_run: bool,
    display: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run TASKs with every combination of the values that --vary names.

    \b
    speedkit ablate mini/1 mini/2 --vary coder=noop,tuner --vary scaffold=flat,aide --seeds 3
    speedkit ablate mini/1 --vary scaffold=flat,aide --vary scaffold.aide.debug_prob=0.1,0.5

    A key is a setting of a run (scaffold, coder, hints, knowledge, model, guards, nodes, ...) or
    an option as -o takes it. An option of one component, KIND.NAME.OPTION, multiplies only the
    runs that use it. The other options are those of `speedkit run` and hold for every run.
    """  # noqa: D301 (click's mark for lines that are kept)
    from speedkit.sweeping import make_sweep
    from speedkit.sweeping.values import parse_vary

    if resume is not None:
        if any((tasks, vary, seeds, one_at_a_time, out, config_file)) or _given(flags):
            raise UsageError("--resume goes on with the sweep's own plan; give no other settings")
        sweep = stored(resume)
    else:
        if not tasks and not any(v.startswith("task=") for v in vary):
            raise UsageError("name at least one task, for example mini/1")
        config = _base(config_file, flags)
        values, problems = parse_vary(vary)
        sweep = make_sweep(
            tasks,
            values,
            seeds=1 if seeds is None else seeds,
            one_at_a_time=one_at_a_time,
            config=config,
        )
        sweep = replace(sweep, problems=(*problems, *sweep.problems))
    go(
        ctx,
        sweep,
        resume or out,
        jobs=jobs,
        max_cost=max_cost,
        max_tokens=max_tokens,
        max_hours=max_hours,
        dry_run=dry_run,
        display=display,
        as_json=as_json,
    )


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value not in (None, ())}


def _base(config_file: Path | None, flags: dict[str, Any]) -> Any:
    """Return the settings of every run; whether the hints of a source are used, arms decide."""
    source = flags.pop("hints_from", None)
    if source is not None:
        named = source in ("shipped", "generated")
        folder = source if named else str(Path(source).expanduser().resolve())
        flags["option"] = (*flags.get("option", ()), f"knowledge.hints.source={folder}")
    try:
        return resolve_config(None, config_file, flags)
    except ConfigError as error:
        raise ConfigError([f"settings of every run: {line}" for line in error.problems]) from None
