"""Progress of a run on standard error: live, plain or none; and its result at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from speedkit.cli.text import echo, seconds
from speedkit.core.files import printable
from speedkit.core.metrics import Metrics

if TYPE_CHECKING:
    from rich.live import Live

    from speedkit.api import RunTree


COLORS = {
    "valid": "green",
    "quarantined": "cyan",
    "invalid": "yellow",
    "buggy": "red",
    "stopped": "blue",
    "edit_failed": "magenta",
}


class Silent:
    """Shows nothing but warnings."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def announce(self, config: Any, path: Path) -> None:
        """Say what is about to run; without a configuration it is a resumed run."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event of the journal."""

    def progress(self, job: str, metrics: Metrics | None, text: str, at_s: float) -> None:
        """Show a line of a running job."""

    def note(self, text: str) -> None:
        """Show what is worth knowing of the run as a whole."""

    def warn(self, text: str) -> None:
        """Show a warning."""
        click.echo(f"warning: {printable(text)}", err=True)


class Plain(Silent):
    """A line for each event."""

    def announce(self, config: Any, path: Path) -> None:
        """Say what is about to run."""
        for line in opening_lines(config, path):
            self.say(line)

    def event(self, event: Mapping[str, Any]) -> None:
        """Show the events that a reader would miss."""
        for line in describe(event).splitlines():
            self.say(line)

    def note(self, text: str) -> None:
        """Show what is worth knowing of the run as a whole."""
        self.say(text)

    def say(self, line: str) -> None:
        """Write a line on standard error."""
        click.echo(printable(line), err=True)


class LiveView(Plain):
    """Lines as they come, and below them one that moves with each running job."""

    def __init__(self) -> None:
        self._jobs: dict[str, str] = {}
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), refresh_per_second=8, transient=True)
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def event(self, event: Mapping[str, Any]) -> None:
        """Show the event, and forget the line of a job that ended."""
        kind = event["type"]
        if kind == "job_started":
            self._jobs[event["job"]] = "starting"
        elif kind == "node_finished":
            self._jobs.pop(f"node-{event['id']}", None)
        elif kind == "calibration_run":
            self._jobs.pop(f"calibrate-{event['record']}-{event['run']}", None)
        super().event(event)
        self._refresh()

    def progress(self, job: str, metrics: Metrics | None, text: str, at_s: float) -> None:
        """Show the latest line of a job."""
        self._jobs[job] = f"{at_s:5.1f} s  {printable(text)[:120]}"
        self._refresh()

    def say(self, line: str) -> None:
        """Write a line above the moving ones."""
        if self._live is None:
            super().say(line)
        else:
            shown = printable(line)
            self._live.console.print(shown, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        from rich.text import Text

        if self._live is not None:
            jobs = list(self._jobs.items())  # other threads add to them meanwhile
            rows = [f"  {job:<20} {text}" for job, text in jobs]
            self._live.update(Text("\n".join(rows), style="dim"))


def make(name: str | None) -> Silent:
    """Return a display by name; by default live in a terminal, else plain."""
    if name is None:
        name = "live" if sys.stderr.isatty() else "plain"
    return {"live": LiveView, "plain": Plain, "none": Silent}[name]()


def opening_lines(config: Any, path: Path) -> list[str]:
    """Return what is said before a run begins."""
    if config is None:
        return [f"going on with {path}"]
    lines = [f"run directory: {path}"]
    if config.coder is None and config.model is None:
        lines.append(
            "coder: tuner, an optimiser of the script's numbers, because no model is set (--model)"
        )
    return lines


def describe(event: Mapping[str, Any]) -> str:
    """Return an event as text for people; empty for those that are not worth a line."""
    describer = _DESCRIBERS.get(event["type"])
    return printable(describer(event)) if describer else ""


def _started(event: Mapping[str, Any]) -> str:
    return "\n".join(f"note: {note}" for note in event.get("notes", ()))


def _calibration_run(event: Mapping[str, Any]) -> str:
    result = _metrics(event["metrics"]) or event["reason"]
    return f"calibration: {event['record']} record, run {event['run']}/{event['of']}: {result}"


def _calibrated(event: Mapping[str, Any]) -> str:
    c = event["calibration"]
    return (
        f"calibration ({c['source']}): start {seconds(c['start_ms'])}, "
        f"target {seconds(c['target_ms'])}"
    )


def _created(event: Mapping[str, Any]) -> str:
    if event["id"] == 0:
        return ""
    subject = (event["hypothesis"].strip().splitlines() or [""])[0]
    return f"node {event['id']}: {event['stage']} of node {event['parent']}: {subject[:100]}"


def _finished(event: Mapping[str, Any]) -> str:
    if event["id"] == 0:
        return ""
    facts = (event["outcome"], _metrics(event["metrics"]), event["reason"])
    return f"node {event['id']}: " + ", ".join(f for f in facts if f)


_DESCRIBERS = {
    "run_started": _started,
    "calibration_run": _calibration_run,
    "calibrated": _calibrated,
    "node_created": _created,
    "node_finished": _finished,
}


def _metrics(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return ""
    loss = values["val_loss"]
    shown = f"{loss:.4f}" if isinstance(loss, float) else str(loss)
    time_ms = values["train_time_ms"]
    return f"val_loss {shown}" + (f", {seconds(time_ms)}" if time_ms is not None else "")


# --- the result ---------------------------------------------------------------------------


def print_result(tree: RunTree) -> None:
    """Print the table of nodes, the best node and where everything stands."""
    from speedkit.cli.common import print_table

    print_table([_row(tree, node) for node in tree], HEADERS)
    echo()
    for line in closing_lines(tree):
        echo(line)


HEADERS = ("node", "parent", "stage", "outcome", "val_loss", "time", "FSR", "what")


def _row(tree: RunTree, node: Any) -> list[Any]:
    metrics = node.metrics
    fsr = tree.fsr(node) if node.id else None
    what = node.hypothesis if node.is_valid or not node.reason else node.reason
    return [
        node.id,
        node.parent,
        str(node.stage),
        str(node.outcome),
        f"{metrics.val_loss:.4f}" if metrics else None,
        seconds(metrics.train_time_ms) if metrics else None,
        None if fsr is None else f"{fsr:+.3f}",
        printable(what.strip().split("\n")[0])[:60],
    ]


def _lanes(facts: Mapping[str, Any]) -> str:
    """Return how busy the executor was, and what idle lanes waited for; empty if it had no time."""
    waits = ", ".join(f"{cause} {s:.1f} s" for cause, s in facts["idle_s"].items() if s >= 0.05)
    if not facts["busy"] and not waits:
        return ""
    return f"executor busy {facts['busy']:.0%}" + (f"; idle for {waits}" if waits else "")


def closing_lines(tree: RunTree) -> list[str]:
    """Return the best node, its speedup and FSR, and where to look."""
    path, best = tree.path, tree.best()
    lines = [] if tree.status == "finished" else [f"status   {tree.status}"]
    calibration = tree.calibration
    if best is None or best.train_time_ms is None:
        lines.append("best     no valid node")
    else:
        fsr = tree.fsr(best)
        speedup = calibration.start_ms / best.train_time_ms if calibration else None
        faster = "" if speedup is None else f", {speedup:.2f}x the start record's speed"
        score = "not defined" if fsr is None else f"{fsr:.3f}"
        lines.append(f"best     node {best.id}{faster}, FSR {score}")
    lines.append(f"history  git -C {path / 'repo'} log --graph --all")
    if best is not None:
        lines.append(f"diff     speedkit diff {path} {best.id}")
    if tree.lanes and (busy := _lanes(tree.lanes)):
        lines.append(f"lanes    {busy}")
    lines.append(f"report   speedkit report {path}")
    return lines
