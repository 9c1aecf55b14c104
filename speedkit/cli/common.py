"""Options and output that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from speedkit.core.errors import did_you_mean
from speedkit.core.files import printable
from speedkit.core.plugins import REGISTER_HOOKS, Plugins, broken_line

F = TypeVar("F", bound=Callable[..., Any])


def plugins_of(ctx: click.Context, load: Sequence[str] = (), block: Sequence[str] = ()) -> Plugins:
    """Return the plugins of this process, with further ones if the command names some."""
    root = ctx.find_root()
    if load or block or not isinstance(root.obj, Plugins):
        root.obj = Plugins(_with_root(ctx, "load", load), _with_root(ctx, "block", block))
        for broken in root.obj.broken:
            click.echo(broken_line(broken), err=True)
        for name in root.obj.blocked_in_vain:
            near = did_you_mean(name, [origin.plugin for origin in root.obj.origins])
            click.echo(printable(f"warning: no plugin named {name!r} to block; {near}"), err=True)
    plugins: Plugins = root.obj
    return plugins


def _with_root(ctx: click.Context, key: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names after those that were given before the command, each once."""
    return tuple(dict.fromkeys((*(ctx.find_root().params.get(key) or ()), *names)))


class ComponentName(click.ParamType):
    """The name of a component; shells complete it."""

    name = "name"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the registered names."""
        names = plugins_of(ctx).names(self.kind)
        return [CompletionItem(n) for n in names if n.startswith(incomplete)]


class TaskName(click.ParamType):
    """The name of a task; shells complete it."""

    name = "task"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the tasks of the built-in families."""
        from speedkit.core.task import Family, builtin_families

        names = [t.name for f in builtin_families().values() for t in Family.load(f).tasks.values()]
        return [CompletionItem(n) for n in names if n.startswith(incomplete)]


plugin_option = click.option(
    "--plugin", "plugin", multiple=True, metavar="KIND=NAME", help="Choose a component."
)
option_option = click.option(
    "-o",
    "--option",
    "option",
    multiple=True,
    metavar="KIND.OPTION=VALUE",
    help="Set an option of a component.",
)


def config_options(command: F) -> F:
    """Add the options that set keys of the configuration."""
    for option in reversed(_config_options()):
        command = option(command)
    return command


def _config_options() -> list[Callable[[F], F]]:
    named = [
        click.option(f"--{kind}", type=ComponentName(kind), help=f"Name of the {kind}.")
        for kind in ("scaffold", "coder", "executor", "summarizer")
    ]
    return [
        plugin_option,
        *named,
        click.option(
            "--knowledge",
            multiple=True,
            type=ComponentName("knowledge"),
            help="Knowledge source; may be given several times.",
        ),
        option_option,
        click.option("--hints", metavar="1,2,3|none", help="Hint levels given to the coder."),
        click.option(
            "--hints-from", metavar="shipped|generated|DIR", help="Whose hints; default: shipped."
        ),
        click.option(
            "--start", metavar="FILE", help="Script to start from, in place of the start record's."
        ),
        click.option("--nodes", type=int, help="Number of nodes besides the start record."),
        click.option("--seed", type=int, help="Seed of the search."),
        click.option("--model", help="Language model, as litellm names it."),
        click.option("--api-base", metavar="URL", help="URL of an OpenAI-compatible server."),
        click.option("--max-cost", type=float, metavar="DOLLARS", help="Limit on model calls."),
        click.option("--max-tokens", type=int, help="Limit on tokens of model calls."),
        click.option("--llm-cache", metavar="FILE", help="Keep the model's replies in a file."),
        click.option(
            "--llm-replay/--no-llm-replay",
            default=None,
            help="Take every reply from --llm-cache, ask nobody.",
        ),
        click.option("--prompts", metavar="DIR", help="Folder of prompt templates of your own."),
        click.option(
            "--guards", metavar="A,B|none", help="Guards that a node must pass; default: all."
        ),
        click.option(
            "--target-loss", type=float, help="Validation loss that counts as reached (a gate)."
        ),
        click.option(
            "--train-duplicates/--no-train-duplicates",
            default=None,
            help="Train a node even if an earlier one has the same code.",
        ),
        click.option(
            "--smoke-first/--no-smoke-first",
            default=None,
            help="Let a node make 3 uncompiled steps before it is run.",
        ),
        click.option(
            "--calibration",
            type=click.Choice(["auto", "fresh", "reference"]),
            help="Where the times of the two records come from.",
        ),
        click.option("--calibration-runs", type=int, help="Runs of each record in a calibration."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="TOML file with settings; flags and environment override it.",
        ),
        click.option("--load", multiple=True, metavar="FILE.py|MODULE", help="Load a plugin."),
        click.option("--block", multiple=True, metavar="NAME", help="Do not load a plugin."),
    ]


SEVERAL = {"knowledge": "knowledge", "guard": "guards"}
"""Kinds of which a run may have several, and the settings that hold their names."""


def resolve_config(task: str | None, config_file: Path | None, flags: dict[str, Any]) -> Any:
    """Return the checked configuration from the flags of a command.

    ``--hints-from``, which is short for an option, is moved among the options of ``flags``;
    ``--load`` and ``--block`` that stand before the command are added to those after it, since
    a run that is resumed needs the same plugins.

    Raises:
        ConfigError: with one line for each mistake.
    """
    from speedkit.core.config import load_config
    from speedkit.core.errors import ConfigError

    if ctx := click.get_current_context(silent=True):
        flags |= {key: _with_root(ctx, key, flags.get(key) or ()) for key in ("load", "block")}
    source = flags.pop("hints_from", None)
    if source:
        flags["option"] = (*flags.get("option", ()), _hints_source(source))
    config = load_config({"task": task, **settings_of(flags)}, config_file)
    if source and "hints" not in config.knowledge_names:
        raise ConfigError(["--hints-from: no hints are given to the coder; add --hints 1,2,3"])
    return config


def settings_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the flags of a command stand for, those that were given.

    Raises:
        ConfigError: with one line for each mistake.
    """
    from speedkit.core.config import SETTINGS, parse_options
    from speedkit.core.errors import ConfigError

    values: dict[str, Any] = {k: v for k, v in flags.items() if v not in (None, ())}
    problems: list[str] = []
    for choice in values.pop("plugin", ()):
        kind, equals, name = choice.partition("=")
        if not equals or not name:
            problems.append(f"--plugin {choice}: write KIND=NAME")
        elif kind not in REGISTER_HOOKS:
            near = did_you_mean(kind, REGISTER_HOOKS)
            problems.append(f"--plugin {choice}: no component kind {kind!r}; {near}")
        elif kind in SEVERAL:
            values[SEVERAL[kind]] = (*values.get(SEVERAL[kind], ()), name)
        else:
            values[kind] = name
    try:
        options = parse_options(values.pop("option", ()))
        values |= {group: options.pop(group) for group in SETTINGS if group in options}
        values["options"] = options
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return values


def _hints_source(value: str) -> str:
    """Return the setting that says whose hints are used; a folder is made absolute."""
    named = value in ("shipped", "generated")
    return f"knowledge.hints.source={value if named else Path(value).expanduser().resolve()}"


invalid_option = click.option(
    "--invalid",
    type=click.Choice(["zero", "drop"]),
    default="zero",
    show_default=True,
    help="What a run without a node that may count is: FSR 0, or left out.",
)


def score_option(help: str) -> Callable[[F], F]:
    """Return the option that says which FSR is meant."""
    scores = click.Choice(["fsr", "verified_fsr"])
    return click.option("--score", type=scores, default="fsr", show_default=True, help=help)


def bootstrap_options(command: F) -> F:
    """Add the options of the bootstrap: draws and seed."""
    seed = click.IntRange(0)
    command = click.option(
        "--seed", type=seed, default=0, show_default=True, help="Seed of the bootstrap."
    )(command)
    draws = click.IntRange(100, 1_000_000)
    return click.option("--draws", type=draws, default=50_000, show_default=True)(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> None:
    """Print a table on standard output; None becomes a dash."""
    from tabulate import tabulate

    shown = [["–" if v is None else v for v in row] for row in rows]
    click.echo(tabulate(shown, headers, tablefmt="simple", disable_numparse=True))
