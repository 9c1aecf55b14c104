"""The flags that the examples share, and how they run a sweep."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speedkit.cli.sweep import make_watch, print_plan, print_result, tell_failures
from speedkit.core.config import parse_options
from speedkit.core.errors import SpeedkitError
from speedkit.core.plugins import Plugins
from speedkit.sweeping import Sweep, plan_sweep, run_sweep

Parser = argparse.ArgumentParser


def make_parser(text: str, *, nodes: int = 20, seeds: int = 3) -> Parser:
    """Return a parser with the flags of every run: model, budget, executor, plugins."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=text, formatter_class=form)
    group = parser.add_argument_group("runs")
    group.add_argument("--model", help="language model, as litellm names it")
    group.add_argument("--api-base", metavar="URL", help="an OpenAI-compatible server")
    group.add_argument("--coder", help="writer of new nodes; default: llm with a model, else tuner")
    group.add_argument("--nodes", type=int, default=nodes, help=f"of a run; default: {nodes}")
    group.add_argument("--seeds", type=int, default=seeds, help=f"how many; default: {seeds}")
    group.add_argument("--executor", default="torchrun", help="torchrun (default), slurm, ray, ...")
    group.add_argument("--load", action="append", default=[], metavar="FILE.py|MODULE")
    group.add_argument("-o", "--option", action="append", default=[], metavar="KIND.OPTION=VALUE")
    return parser


def add_sweep_flags(parser: Parser, out: str) -> None:
    """Add the flags of a sweep."""
    group = parser.add_argument_group("sweep")
    group.add_argument("--out", type=Path, default=Path(out), help=f"default: {out}")
    group.add_argument("--jobs", type=int, default=1, help="runs at once; default: 1")
    group.add_argument("--max-cost", type=float, metavar="DOLLARS", help="of all runs together")
    group.add_argument("--max-hours", type=float, metavar="HOURS", help="of all jobs together")
    group.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of every run that the flags give."""
    given = {
        "model": args.model,
        "api_base": args.api_base,
        "coder": args.coder,
        "nodes": args.nodes,
        "executor": args.executor,
        "load": args.load,
        "options": parse_options(args.option),
    }
    return {key: value for key, value in given.items() if value not in (None, [], {})}


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say of the sweep as a whole."""
    names = ("seeds", "jobs", "max_cost", "max_hours")
    return {name: getattr(args, name) for name in names}


def go(sweep: Sweep, args: argparse.Namespace, plugins: Plugins | None = None) -> int:
    """Plan or run a sweep; given again, it goes on. Return the exit status."""
    if args.dry_run:
        print_plan(plan_sweep(sweep, out=args.out, plugins=plugins))
        return 0
    result = run_sweep(sweep, out=args.out, plugins=plugins, watch=make_watch("runs"))
    print_result(result)
    tell_failures(result)
    return result.exit_code


def run_main(main: Callable[[], int]) -> None:
    """Run a program; an error meant for the user is a line or a few."""
    try:
        sys.exit(main())
    except SpeedkitError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on", file=sys.stderr)
        sys.exit(130)
