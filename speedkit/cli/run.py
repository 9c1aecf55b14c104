"""``speedkit run``: search a task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from speedkit.cli.common import TaskName, config_options, plugins_of, resolve_config


@click.command("run")
@click.argument("task", required=False, type=TaskName())
@config_options
@click.option("--out", type=click.Path(path_type=Path), help="Run directory; must be new.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with a run directory.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--verify", is_flag=True, help="Measure the best node again afterwards.")
@click.option("--json", "as_json", is_flag=True, help="Print events as they happen, as NDJSON.")
@click.option(
    "--display",
    type=click.Choice(["live", "plain", "none"]),
    help="How progress is shown on standard error; default: live in a terminal, else plain.",
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    task: str | None,
    config_file: Path | None,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    verify: bool,
    as_json: bool,
    display: str | None,
    **flags: Any,
) -> None:
    """Search TASK (FAMILY/ID or PATH/OF/FOLDER/ID; default mini/1) and score the result.

    Without a model the coder is `tuner`, an optimiser of the script's numbers. The run
    directory keeps every candidate as a git commit.
    """
    from speedkit import api
    from speedkit.cli import display as displays
    from speedkit.core.errors import UsageError

    raised = {k: v for k, v in flags.items() if v not in (None, ())} if resume else {}
    if resume is not None and (task or out or config_file):
        raise UsageError("--resume goes on with the run's own task and settings; give no others")
    config = None if resume else resolve_config(task, config_file, flags)
    plugins = plugins_of(ctx, config.load, config.block) if config else None
    if dry_run:
        _print_plan(config, plugins, as_json)
        return
    view = displays.make(display or ("none" if as_json else None))
    show = _print_event if as_json else view.event
    where, done = None, set()

    def tell(event: Any) -> None:
        done.add(event["type"])
        show(event)

    def begin(path: Path) -> None:
        nonlocal where
        where = path
        view.announce(config, path)

    try:
        with view:
            tree = api.run(
                out=out,
                resume=resume,
                config=config,
                plugins=plugins,
                on_begin=begin,
                on_event=tell,
                on_progress=view.progress,
                on_warning=view.warn,
                **raised,
            )
    except KeyboardInterrupt:
        go_on = f"; to go on: speedkit run --resume {where}" if where else " before the run began"
        click.echo(f"interrupted{go_on}", err=True)
        sys.exit(130)
    if resume and done <= {"run_started", "run_finished"}:
        view.note("nothing was left to do; --nodes gives a run more, counted from its beginning")
    if not as_json:
        displays.print_result(tree)
    if verify:
        _verify(tree, plugins, view.warn, as_json)


def _verify(tree: Any, plugins: Any, on_warning: Any, as_json: bool) -> None:
    """Measure the best node of a run again, and say what came of it."""
    from speedkit.cli.verify import print_verification
    from speedkit.verify import verify_best

    found = verify_best(tree.path, plugins=plugins, on_warning=on_warning)
    if found is not None and not as_json:
        click.echo()
        print_verification(found)


def _print_event(event: Any) -> None:
    from speedkit.cli.text import print_json

    print_json(event, indent=None)


def _print_plan(config: Any, plugins: Any, as_json: bool) -> None:
    from speedkit.cli.text import print_json
    from speedkit.core.assemble import assemble, task_of

    if config is None:
        raise click.UsageError("--dry-run and --resume do not go together")
    components = assemble(config, plugins)
    task = task_of(config)
    plan = {
        "task": task.name,
        "start": task.start.title,
        "target": task.target.title,
        "nodes": config.budget(task.family),
        "seed": config.seed,
        "components": components.manifest,
        "prompt": _plan_prompt(config, plugins, components.coder),
    }
    if as_json:
        print_json(plan)
    else:
        _print_plan_text(plan)


def _plan_prompt(config: Any, plugins: Any, coder: Any) -> dict[str, Any] | None:
    """Return what the coder would ask for node 1 and its size; None if it asks no model."""
    from speedkit.core.preview import Prompting, first_prompt, prompt_tokens

    if not isinstance(coder, Prompting):
        return None
    system, messages = first_prompt(config, plugins)
    tokens = prompt_tokens(system, messages, config.model)
    return {"system": system, "messages": messages, "estimated_tokens": tokens}


def _print_plan_text(plan: dict[str, Any]) -> None:
    from speedkit.cli.prompts import print_prompt
    from speedkit.cli.text import echo

    echo(f"task    {plan['task']}: {plan['start']} → {plan['target']}")
    echo(f"nodes   {plan['nodes']}, seed {plan['seed']}")
    for kind, entry in plan["components"].items():
        for one in entry if isinstance(entry, list) else [entry]:
            options = ", ".join(f"{k}={v}" for k, v in one["options"].items())
            echo(f"{kind:<11} {one['name']}  {options}")
    if prompt := plan["prompt"]:
        echo(f"prompt      of node 1, about {prompt['estimated_tokens']:,} tokens\n")
        print_prompt(prompt["system"], prompt["messages"])
