"""``speedkit judge``: how much of the human change a node reproduced."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import (
    ComponentName,
    json_option,
    plugins_of,
    print_table,
    resolve_config,
)
from speedkit.cli.text import clean, echo, find_node, one_line, print_json
from speedkit.core.errors import SpeedkitError, UsageError

if TYPE_CHECKING:
    from speedkit.core.components import Judgement
    from speedkit.judging import Scored, Separation

MAX_CHANGE = 76
"""Characters of a change shown in the table."""


@click.command("judge")
@click.argument("targets", nargs=-1, required=True, metavar="RUN [NODE] | --calibrate TASK...")
@click.option("--all", "every", is_flag=True, help="Judge every node that has code of its own.")
@click.option("--calibrate", is_flag=True, help="Try the judge on changes whose score is known.")
@click.option(
    "--plugin", multiple=True, metavar="judge=NAME", help="Choose the judge; default: diff."
)
@click.option("--judge", type=ComponentName("judge"), help="Name of the judge.")
@click.option("--model", help="Language model, as litellm names it.")
@click.option("--api-base", metavar="URL", help="URL of an OpenAI-compatible server.")
@click.option("--max-cost", type=float, metavar="DOLLARS", help="Limit on model calls.")
@click.option("--llm-cache", metavar="FILE", help="Keep the model's replies in a file.")
@click.option(
    "--llm-replay/--no-llm-replay",
    default=None,
    help="Take every reply from --llm-cache, ask nobody.",
)
@click.option("--prompts", metavar="DIR", help="Folder of prompt templates of your own.")
@click.option(
    "-o",
    "--option",
    multiple=True,
    metavar="judge|llm.OPTION=VALUE",
    help="Set an option of the judge, or how the model is called.",
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
    /,
    targets: tuple[str, ...],
    every: bool,
    calibrate: bool,
    config_file: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Score how much of the human change a NODE of the run directory RUN reproduced.

    NODE is a number, or `best`, which is the default. The score, from 0 to 1, and its table
    are kept beside the node as judge-NAME.json. The judge `diff` compares syntax trees; the
    judge `llm` asks a language model and needs --model.

    With --calibrate, the judge scores what is known for each TASK: the target record (1), half
    of its hunks, another task's change (0) and the unchanged start script (0). AUC says how
    often the first is over the last two.
    """
    _check_kinds(flags["plugin"], flags["option"])
    work = _calibrate if calibrate else _judge
    try:
        work(ctx, targets, every, config_file, flags, as_json)
    except KeyboardInterrupt:
        click.echo("interrupted; scores that were done are kept", err=True)
        sys.exit(130)


def _check_kinds(plugin: Sequence[str], option: Sequence[str]) -> None:
    for choice in plugin:
        if choice.partition("=")[0] != "judge":
            raise UsageError(f"--plugin {choice}: only a judge is used here; write judge=NAME")
    for setting in option:
        if setting.strip().partition(".")[0] not in ("judge", "llm"):
            raise UsageError(f"-o {setting}: only options of judge and llm are used here")


def _say_spent(totals: Any) -> None:
    click.echo(str(totals), err=True)


# --- the nodes of a run -----------------------------------------------------------------


def _judge(
    ctx: click.Context,
    targets: Sequence[str],
    every: bool,
    config_file: Path | None,
    flags: dict[str, Any],
    as_json: bool,
) -> None:
    from speedkit.api import open_state
    from speedkit.judging import judge_run, judgeable

    if len(targets) > 2:
        raise UsageError("give one run directory and at most one node; for every node: --all")
    if every and len(targets) == 2:
        raise UsageError("--all judges every node; give no NODE with it")
    run = open_state(Path(targets[0]))
    config = resolve_config(run.directory.manifest["config"]["task"], config_file, flags)
    if every:
        nodes = [node.id for node in judgeable(run)]
        if not nodes:
            raise UsageError(f"{run.directory.path} has no node to judge yet")
    else:
        nodes = [find_node(run, targets[1] if len(targets) == 2 else "best").id]
    failed: list[int] = []

    def fail(node: int, error: SpeedkitError) -> None:
        failed.append(node)
        click.echo(f"error: node {node}: {clean(str(error))}", err=True)

    def show(node: int, judgement: Judgement, path: Path) -> None:
        if as_json:
            print_json(_facts(node, judgement, path), indent=None)
        elif every:
            click.echo(f"node {node:<4} {judgement.score:.3f}")
        else:
            _print_judgement(node, judgement, path)

    judge_run(
        targets[0],
        nodes,
        config=config,
        plugins=plugins_of(ctx, config.load, config.block),
        on_judged=show,
        on_failed=fail,
        on_spent=_say_spent,
    )
    if failed:
        sys.exit(1)


def _facts(node: int, judgement: Judgement, path: Path) -> dict[str, Any]:
    return {
        "node": node,
        "score": judgement.score,
        "table": [dict(row) for row in judgement.table],
        "details": dict(judgement.details),
        "file": str(path),
    }


def _print_judgement(node: int, judgement: Judgement, path: Path) -> None:
    if judgement.table:
        print_table([_row(row) for row in judgement.table], ("score", "weight", "human change"))
        echo()
    echo(f"node   {node}")
    echo(f"score  {judgement.score:.3f}")
    echo(f"kept   {clean(str(path))}")


def _row(row: Mapping[str, Any]) -> list[Any]:
    score, weight = row.get("score"), row.get("weight")
    shown = f"{score:.2f}" if isinstance(score, (int, float)) else None
    return [shown, weight, one_line(str(row.get("change", "")), MAX_CHANGE)]


# --- what its scores are worth ----------------------------------------------------------


def _calibrate(
    ctx: click.Context,
    targets: Sequence[str],
    every: bool,
    config_file: Path | None,
    flags: dict[str, Any],
    as_json: bool,
) -> None:
    from speedkit.judging import calibrate_judge

    if every:
        raise UsageError("--calibrate tries the judge on tasks; --all belongs to a run")
    config = resolve_config(targets[0], config_file, flags)
    found = calibrate_judge(
        targets,
        config=config,
        plugins=plugins_of(ctx, config.load, config.block),
        on_scored=lambda one: click.echo(clean(f"{one.task} {one.case}: {_score(one)}"), err=True),
        on_spent=_say_spent,
    )
    if as_json:
        print_json(found.as_json())
    else:
        _print_separation(found)


def _score(one: Scored) -> str:
    return "none, " + one.note if one.score is None else f"{one.score:.3f}"


def _print_separation(found: Separation) -> None:
    rows = [
        [one.task, one.case, None if one.score is None else f"{one.score:.3f}", clean(one.note)]
        for one in found.scores
    ]
    print_table(rows, ("task", "case", "score", "made of"))
    echo()
    echo(f"judge     {found.judge}")
    for label, value in (("AUC", found.auc), ("AUC half", found.auc_half)):
        echo(f"{label:<9} {'–' if value is None else f'{value:.3f}'}")
