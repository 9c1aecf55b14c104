"""``speedkit prompts``: the prompt templates, and the first prompt of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from speedkit.cli.common import (
    TaskName,
    config_options,
    json_option,
    plugins_of,
    print_table,
    resolve_config,
)
from speedkit.cli.text import clean, print_json

if TYPE_CHECKING:
    from speedkit.core.config import RunConfig
    from speedkit.core.llm_types import Message
    from speedkit.core.node import Stage
    from speedkit.core.plugins import Plugins

STAGES = {"draft": "draft", "draft_unguided": "draft", "improve": "improve"}
"""Templates that can be filled without a run, and the stage of the node they ask for."""


class TemplateName(click.ParamType):
    """The name of a prompt template; shells complete it."""

    name = "template"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the templates."""
        from speedkit.core.prompting import SLOTS

        return [CompletionItem(n) for n in SLOTS if n.startswith(incomplete)]


@click.command("prompts")
@click.argument("name", required=False, type=TemplateName())
@click.option("--task", type=TaskName(), help="Fill the prompt of node 1 of this task.")
@config_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    name: str | None,
    task: str | None,
    config_file: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """List the prompt templates, or show the template NAME.

    With --task, show the prompt that a run with the same options would begin with; NAME is
    then draft, draft_unguided or improve. No model is needed, and none is asked.
    """
    config = resolve_config(task, config_file, flags)
    if task is not None:
        _print_filled(
            name, _with_model(config), plugins_of(ctx, config.load, config.block), as_json
        )
    elif name is not None:
        _print_template(name, config, as_json)
    else:
        _print_list(config, as_json)


# --- templates --------------------------------------------------------------------------


def _print_list(config: RunConfig, as_json: bool) -> None:
    from speedkit.core.prompting import SLOTS

    templates = _templates(config)
    rows = [
        {"name": name, "slots": list(slots), "path": str(templates.path(name))}
        for name, slots in SLOTS.items()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table([[r["name"], ", ".join(r["slots"]) or None] for r in rows], ("name", "slots"))


def _print_template(name: str, config: RunConfig, as_json: bool) -> None:
    from speedkit.core.prompting import SLOTS

    templates = _templates(config)
    path, source = templates.path(name), templates.source(name)
    if as_json:
        slots = list(SLOTS[name])
        print_json({"name": name, "slots": slots, "path": str(path), "source": source})
    else:
        print_text(source)


def _templates(config: RunConfig) -> Any:
    from speedkit.core.prompting import Templates

    return Templates(Path(config.prompts) if config.prompts else None)


# --- filled prompts ---------------------------------------------------------------------


def _with_model(config: RunConfig) -> RunConfig:
    """Choose the coder ``llm`` unless another one is chosen; its model may be left out."""
    chosen = {"coder": config.coder or "llm", "model": config.model or "any"}
    return config.model_copy(update=chosen)


def _print_filled(name: str | None, config: RunConfig, plugins: Plugins, as_json: bool) -> None:
    from speedkit.core.preview import first_prompt, prompt_tokens

    system, messages = first_prompt(config, plugins, _stage(name, config))
    tokens = prompt_tokens(system, messages, config.model)
    if as_json:
        print_json({"system": system, "messages": messages, "estimated_tokens": tokens})
    else:
        click.echo(f"about {tokens:,} tokens", err=True)
        print_prompt(system, messages)


def _stage(name: str | None, config: RunConfig) -> Stage | None:
    from speedkit.core.errors import UnknownNameError, UsageError
    from speedkit.core.node import Stage
    from speedkit.core.prompting import SLOTS

    if name is None:
        return None
    if name not in SLOTS:
        raise UnknownNameError("prompt", name, SLOTS)
    if name not in STAGES:
        raise UsageError(f"{name} does not ask for node 1; with --task name {', '.join(STAGES)}")
    if name == "draft_unguided" and config.knowledge_names:
        raise UsageError("draft_unguided is for a coder without knowledge; name draft")
    if name == "draft" and not config.knowledge_names:
        click.echo("without knowledge, draft_unguided takes the place of draft", err=True)
    return Stage(STAGES[name])


def print_prompt(system: str, messages: Sequence[Message]) -> None:
    """Print a prompt, each part under a line with its role."""
    parts = [{"role": "system", "content": system}] if system else []
    for message in (*parts, *messages):
        print_text(f"--- {message['role']} ---\n\n{message['content'].rstrip()}\n\n")


def print_text(text: str) -> None:
    """Print a text from outside: as it is, but to a terminal without control characters."""
    shown = clean(text) if sys.stdout.isatty() else text
    click.echo(shown.encode("utf-8", "backslashreplace"), nl=False)
