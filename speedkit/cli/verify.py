"""``speedkit verify``: measure again what a search claims."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.common import json_option
from speedkit.cli.text import clean, echo, find_node, paint, print_json, seconds
from speedkit.core.findings import worst

if TYPE_CHECKING:
    from speedkit.core.paired import Interval
    from speedkit.verify import NodeVerification, Verification
    from speedkit.verifying.account import Measured

COLORS = {"confirmed": "green", "refuted": "red", "undecided": "yellow"}


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option("--pairs", type=int, help="Pairs before the first look.  [default: 4]")
@click.option("--max-pairs", type=int, help="Pairs at most.  [default: 12]")
@click.option(
    "--target/--no-target", default=None, help="Run the target record in each pair as well."
)
@click.option(
    "--spending",
    type=click.Choice(["pocock", "obrien-fleming"]),
    help="How the error is spent over the looks.  [default: pocock]",
)
@click.option("--ablation", is_flag=True, help="Also train on shuffled tokens before confirming.")
@click.option("--fresh", is_flag=True, help="Begin anew, whatever was measured before.")
@json_option
def command(run: Path, nodes: tuple[str, ...], ablation: bool, fresh: bool, **flags: Any) -> None:
    """Measure again what the search in the run directory RUN claims, with fresh seeds.

    NODE is a number, or `best`, which is the default. Start record and node are run in pairs,
    until the node is confirmed or refuted or --max-pairs are made. It is confirmed if its mean
    loss is under the target (p < 0.01), its time under the start record's (95 %), and every run
    clean. A verification that was ended goes on where it stood. Results: RUN/verify.json.
    """
    from speedkit.api import open_state
    from speedkit.verify import verify

    as_json = flags.pop("as_json")
    ids = [find_node(open_state(run), name).id for name in nodes] or None
    try:
        found = verify(
            run,
            ids,
            ablation=ablation,
            fresh=fresh,
            on_run=_say,
            on_warning=lambda text: click.echo(clean(f"warning: {text}"), err=True),
            **flags,
        )
    except KeyboardInterrupt:
        click.echo("interrupted; whole pairs are kept, and the same command goes on", err=True)
        sys.exit(130)
    if as_json:
        print_json(describe(found))
    else:
        print_verification(found)


def _say(node: int, pair: int, run: Measured) -> None:
    loss = "" if run.loss is None else f", val_loss {run.loss:.4f}"
    result = run.fault or f"{seconds(run.time_ms)}{loss}"
    finding = worst(run.findings)
    objection = f"; guard {finding.guard}: {finding.reason}" if finding else ""
    click.echo(clean(f"node {node}, pair {pair}, {run.which}: {result}{objection}"), err=True)


def describe(found: Verification) -> dict[str, Any]:
    """Return a verification as JSON values."""
    nodes = {str(node): dict(one.details) for node, one in found.nodes.items()}
    return {"run": str(found.path), "task": found.task, "nodes": nodes}


def print_verification(found: Verification) -> None:
    """Print what came of each node."""
    for k, one in enumerate(found.nodes.values()):
        if k:
            echo()
        _print_node(found, one)


def _print_node(found: Verification, one: NodeVerification) -> None:
    pairs = len(one.details["pairs"])
    title = f"node {one.node} of {found.path}, {found.task}: {_count(pairs, 'pair')}"
    attempt = one.details["attempt"]
    echo(clean(title if attempt == 1 else f"{title}, attempt {attempt}"))
    for name, text in _lines(one):
        echo(f"{name:<12} {clean(text)}")
    echo(f"{'verdict':<12} {paint(one.verdict, COLORS[one.verdict])}")
    for reason in (*one.reasons, *(f"note: {note}" for note in one.notes)):
        echo(f"{'':<12} {clean(reason)}")


def _lines(one: NodeVerification) -> list[tuple[str, str]]:
    verified = f"FSR {_with_ends(one.fsr, '+.3f')} ({one.fsr.method})" if one.fsr else "–"
    lines = [("claimed", _fsr(one.claimed_fsr)), ("verified", verified)]
    if one.noise_floor is not None:
        nodes = _count(one.details["search_nodes"], "unchanged script")
        lines.append(("noise floor", f"{_fsr(one.noise_floor)}, the best of {nodes}"))
    if one.ratio:
        lines.append(("time", f"{_with_ends(one.ratio, '.3f')} of the start record's"))
    if one.loss:
        loss = one.loss
        text = f"{loss.mean:.4f} ± {loss.sd:.4f} (one run), target {loss.target:g}"
        lines.append(("loss", f"{text}, p = {loss.p:.2g}"))
    return lines


def _fsr(value: float | None) -> str:
    return "–" if value is None else f"FSR {value:+.3f}"


def _with_ends(interval: Interval, form: str) -> str:
    low = "-∞" if interval.low is None else f"{interval.low:{form}}"
    high = "∞" if interval.high is None else f"{interval.high:{form}}"
    return f"{interval.value:{form}} [{low}, {high}]"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
