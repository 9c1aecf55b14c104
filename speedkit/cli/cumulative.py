"""``speedkit cumulative``: a chain of tasks, each from the best script of the one before."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import config_options, json_option, plugins_of, print_table, resolve_config
from speedkit.cli.text import clean, echo, print_json, seconds
from speedkit.core.errors import UsageError

if TYPE_CHECKING:
    from speedkit.chain import Chain, Link

HEADERS = ("seed", "task", "start", "reached", "node", "FSR", "speedup", "human")


@click.command("cumulative")
@click.argument("family", required=False)
@click.option("--from", "first", type=click.IntRange(min=1), help="First task; default: 1.")
@click.option("--to", "last", type=click.IntRange(min=1), help="Last task.")
@click.option("--seeds", type=click.IntRange(min=1), help="Number of chains; default: 1.")
@click.option("--verified", is_flag=True, help="Carry only nodes on that RUN/verify.json confirms.")
@click.option("--go-on", is_flag=True, help="Pass over a task that gives nothing.")
@config_options
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the chain; must be new.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with a chain.")
@json_option
@click.option(
    "--display",
    type=click.Choice(["live", "plain", "none"]),
    help="How progress is shown on standard error; default: live in a terminal, else plain.",
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    family: str | None,
    first: int | None,
    last: int | None,
    seeds: int | None,
    verified: bool,
    go_on: bool,
    config_file: Path | None,
    out: Path | None,
    resume: Path | None,
    as_json: bool,
    display: str | None,
    **flags: Any,
) -> None:
    """Run the tasks --from to --to of FAMILY as a chain.

    The first task starts from its record, every other one from the agent's best valid script
    of the task before, and each aims at its own target record. The chain ends where a task
    gives nothing faster. Without --hints, all hints of each task are given. Limits on model
    calls are those of the whole chain; with --resume, --max-cost and --max-tokens may be
    given anew. --seed is the first of the --seeds.
    """
    from speedkit.cli import display as displays
    from speedkit.core.history import default_run_path
    from speedkit.cumulative import resume_chain, run_chain

    raised = {k: v for k, v in flags.items() if v not in (None, ())} if resume else {}
    chosen = (family, first, last, seeds, out, config_file, verified or None, go_on or None)
    if resume is not None and any(v is not None for v in chosen):
        raise UsageError("--resume goes on with the chain's own tasks and settings; give no others")
    view = displays.make(display or ("none" if as_json else None))
    try:
        if resume is not None:
            path = resume
            with view:
                chain = resume_chain(path, watch=_watch(view), **raised)
        else:
            if family is None or last is None:
                raise UsageError("name a family and the last task, for example: mini --to 4")
            start = first or 1
            config = resolve_config(f"{family}/{start}", config_file, flags)
            path = out or default_run_path(f"{Path(family).name}-cumulative")
            with view:
                chain = run_chain(
                    family,
                    start,
                    last,
                    out=path,
                    seeds=seeds or 1,
                    verified=verified,
                    go_on=go_on,
                    config=config,
                    plugins=plugins_of(ctx, config.load, config.block),
                    watch=_watch(view),
                )
    except KeyboardInterrupt:
        click.echo(f"interrupted; to go on: speedkit cumulative --resume {path}", err=True)
        sys.exit(130)
    if as_json:
        print_json(chain.as_json())
    else:
        _print(chain)


def _watch(view: Any) -> Any:
    from speedkit.cumulative import Watch

    def begin(seed: int, task: str, path: Path) -> None:
        _say(view, f"seed {seed}, {task}: {path}")

    def end(seed: int, link: Link) -> None:
        state = f"{link.agent_speedup:.2f}x" if link.gained else "nothing gained"
        _say(view, f"seed {seed}, {link.task}: {state}, human {link.human_speedup:.2f}x")

    return Watch(
        on_run=begin,
        on_link=end,
        on_event=view.event,
        on_progress=view.progress,
        on_warning=view.warn,
    )


def _say(view: Any, line: str) -> None:
    """Write a line where the display writes its own; a silent one writes none."""
    say = getattr(view, "say", None)
    if say is not None:
        say(clean(line))


def _print(chain: Chain) -> None:
    print_table([_row(row) for row in chain.rows()], HEADERS)
    echo()
    for row in chain.summary():
        if row["agent_speedup"] is not None:
            facts = (_interval(row["agent_speedup"]), _interval(row["human_speedup"]))
            echo(f"task {row['id']:<3} agent {facts[0]}, human {facts[1]}")
    echo(f"status   {chain.status}")
    echo(f"history  git -C {clean(str(chain.path))}/seed-N/repo log --graph chain")
    echo(f"result   {clean(str(chain.path / 'result.json'))}")


def _row(row: Mapping[str, Any]) -> list[Any]:
    head = [row["seed"], row["id"]]
    if not row["reached"]:
        return [*head, None, "not reached", None, None, f"{row['agent_speedup']:.2f}x", None]
    fsr = row["fsr"] if row["verified_fsr"] is None else row["verified_fsr"]
    return [
        *head,
        seconds(row["start_ms"]),
        seconds(row["time_ms"]),
        row["node"],
        None if fsr is None else f"{fsr:+.3f}",
        f"{row['agent_speedup']:.2f}x",
        f"{row['human_speedup']:.2f}x",
    ]


def _interval(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    shown = f"{value['mean']:.2f}x"
    return shown if value["low"] is None else f"{shown} [{value['low']:.2f}, {value['high']:.2f}]"
