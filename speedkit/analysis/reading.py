"""One run directory as one row of a results table, read without touching it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from speedkit.analysis.columns import INVALID, MISSING, OUTCOMES, OVER, OWN, RECORD, VALID
from speedkit.core.errors import RunDirectoryError, SpeedkitError
from speedkit.core.history import RunDirectory, is_held
from speedkit.core.ledger import Ledger, ModelCall, Totals
from speedkit.core.node import Node, Outcome, Tree, speed_key
from speedkit.core.paired import noise_floor
from speedkit.core.run import Run
from speedkit.core.task import Task, find_task

Warn = Callable[[str], None]
Row = dict[str, Any]

DEPTH = 4
"""How many folders deep run directories are looked for."""
VERDICTS = ("confirmed", "refuted", "undecided")
MAX_JSON = 16 << 20
"""Bytes; a larger file beside a run is not read."""
_OVER_TARGET = re.compile(r"val_loss \S+ is over the target \S+")


def folders_with(path: Path, names: Iterable[str], depth: int = DEPTH) -> Iterator[Path]:
    """Yield the folders at or below a path that hold a file of one of the names, sorted.

    What lies in such a folder is not looked at, nor are hidden folders.
    """
    if any((path / name).is_file() for name in names):
        yield path
    elif depth > 0 and path.is_dir():
        for child in sorted(path.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from folders_with(child, names, depth - 1)


@dataclass
class Reading:
    """What is known of a run directory.

    Attributes:
        directory: None when its ``run.toml`` cannot be read.
        run: the folded journal; None when it cannot be read. Its task may be None.
        task: None when the family of the run is not at hand.
        span_s: seconds that controllers were at work.
    """

    path: Path
    directory: RunDirectory | None = None
    run: Run | None = None
    task: Task | None = None
    status: str | None = None
    span_s: float = math.nan

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What ``run.toml`` says."""
        return {} if self.directory is None else self.directory.manifest

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the run, as it was resolved."""
        return _mapping(self.manifest.get("config"))

    @property
    def gate(self) -> float | None:
        """The validation loss at or under which nodes of the run are valid."""
        own = _number(self.config.get("target_loss"))
        if own is not None:
            return own
        return None if self.task is None else self.task.rules.target


def read_run(path: Path, on_warning: Warn) -> Reading:
    """Read a run directory; what cannot be read is left out, with a line of warning.

    The family of the run is asked for what only it knows, and may be gone.
    """
    try:
        directory = RunDirectory(path)
    except RunDirectoryError as error:
        on_warning(f"{_line(error)}; its result is missing")
        return Reading(path)
    reading = Reading(path, directory)
    reading.task = _find_task(reading, on_warning)
    try:
        events = directory.events()
        # The fold itself asks the task for nothing, so that it can do without one.
        run = Run(directory, cast(Task, reading.task))
        for event in events:
            run.apply(event)
    except (SpeedkitError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        on_warning(f"{path}: the journal cannot be read, so its result is missing: {_line(error)}")
        return reading
    reading.run, reading.span_s = run, span(events)
    reading.status = status_of(run)
    return reading


def _find_task(reading: Reading, on_warning: Warn) -> Task | None:
    try:
        return find_task(str(reading.config.get("task")))
    except (SpeedkitError, OSError) as error:
        on_warning(f"{reading.path}: its records are not known: {_line(error)}")
        return None


def status_of(run: Run) -> str:
    """Return the status of a run; ``interrupted`` when it is not over and nobody is at work."""
    if run.status not in ("new", "running"):
        return run.status
    return "running" if is_held(run.directory.path) else "interrupted"


def span(events: Iterable[Mapping[str, Any]]) -> float:
    """Return the seconds of a journal from each start of a controller to its last word, summed."""
    total, start, last = 0.0, None, 0.0
    for event in events:
        at = _number(event.get("at"))
        if at is None:
            continue
        if event["type"] == "run_started" or start is None:
            total += 0.0 if start is None else max(0.0, last - start)
            start = at
        last = at
    return total if start is None else total + max(0.0, last - start)


# --- the row ------------------------------------------------------------------------------


def row_of(reading: Reading, gate: float | None = None, on_warning: Warn = lambda _: None) -> Row:
    """Return the row of a run; what is unknown is left out.

    Args:
        gate: judge its nodes by this validation loss instead of the run's own: a node that
            was valid, or was invalid only because its loss was over the target, counts when
            its loss is at or under ``gate``. Guards looked at valid nodes only, so they have
            not seen what a higher gate lets in.
    """
    row = _setting(reading)
    row["gate"] = gate if gate is not None else reading.gate
    if reading.run is None:
        return {**row, "result": MISSING}
    best = best_under(reading.run.tree, gate, reading.gate)
    row |= _outcome(reading, reading.run, best, on_warning)
    row |= _nodes(reading.run.tree) | _spending(reading, reading.run)
    if best is not None and row["result"] == VALID:
        row |= _verification(reading.path, best, on_warning)
        row |= _judgement(reading, best, on_warning)
    return row


def best_under(tree: Tree, gate: float | None, own: float | None) -> Node | None:
    """Return the best node of a tree under a gate; None for ``gate`` is the run's own."""
    if gate is None or gate == own:
        return tree.best()
    passing = [n for n in tree if n.id != 0 and _passes(n, gate)]
    return min(passing, key=speed_key, default=None)


def _passes(node: Node, gate: float) -> bool:
    if node.metrics is None or node.train_time_ms is None or not node.metrics.val_loss <= gate:
        return False
    only_over = node.outcome is Outcome.INVALID and _OVER_TARGET.fullmatch(node.reason)
    return node.is_valid or bool(only_over)


def _setting(reading: Reading) -> Row:
    config, manifest = reading.config, reading.manifest
    parts = _mapping(manifest.get("components"))
    levels, sources = knowledge_of(config, parts)
    return {
        "run": str(reading.path),
        "name": reading.path.resolve().name,
        **_task(reading),
        "start": OWN if manifest.get("start") else RECORD,
        "scaffold": _name(parts.get("scaffold")) or _text(config.get("scaffold")),
        "coder": _name(parts.get("coder")) or _text(config.get("coder")),
        "model_asked": _text(config.get("model")),
        "hints": levels,
        "knowledge": sources,
        "seed": _number(config.get("seed")),
        "status": reading.status,
        "created": _text(manifest.get("created")),
        "speedkit": _text(manifest.get("speedkit")),
        "source": "run",
    }


def _task(reading: Reading) -> Row:
    task = reading.task
    if task is not None:
        return {
            "family": task.family.name,
            "task": task.name,
            "task_id": task.id,
            "record": task.start.index,
            "target_record": task.target.index,
        }
    calibration = reading.run.calibration if reading.run else None
    asked = _text(reading.config.get("task"))
    if asked is None:
        return {}
    name = calibration.task if calibration else "/".join(asked.split("/")[-2:])
    family, _, number = name.rpartition("/")
    task_id = int(number) if number.isascii() and number.isdigit() else None
    return {"family": family or None, "task": name, "task_id": task_id}


def knowledge_of(config: Mapping[str, Any], parts: Mapping[str, Any]) -> tuple[str, str]:
    """Return hint levels and the other sources, each as a text.

    Args:
        config: the settings of ``run.toml``.
        parts: its components.
    """
    chosen = parts.get("knowledge")
    entries = [e for e in chosen if isinstance(e, Mapping)] if isinstance(chosen, list) else []
    levels: Any = config.get("hints") or []
    for entry in entries:
        if entry.get("name") == "hints":
            levels = _mapping(entry.get("options")).get("levels", levels)
    names = [str(e.get("name")) for e in entries if e.get("name") != "hints"]
    hints = "+".join(sorted(map(str, levels))) if isinstance(levels, list) else ""
    return hints or "none", "+".join(names) or "none"


def _outcome(reading: Reading, run: Run, best: Node | None, on_warning: Warn) -> Row:
    calibration = run.calibration
    models = sorted({n.model for n in run.tree if n.id and n.model})
    row: Row = {"model": "+".join(models) or None}
    if calibration is None:
        return {**row, "result": MISSING}
    row |= {
        "start_ms": calibration.start_ms,
        "target_ms": calibration.target_ms,
        "calibration": calibration.source,
        "noise_floor": noise_floor(
            calibration.start_runs, calibration.target_ms, sum(n.counts for n in run.tree)
        ),
    }
    if not calibration.recovers:
        on_warning(f"{reading.path}: FSR is not defined, since the target record is not faster")
        return {**row, "result": MISSING}
    if best is None:
        return {**row, "result": INVALID if reading.status in OVER else MISSING}
    time = best.train_time_ms
    fsr = calibration.fsr(time)
    return {**row, "result": VALID, "best_node": best.id, "train_time_ms": time, "fsr": fsr}


def _nodes(tree: Tree) -> Row:
    counted = [n for n in tree if n.counts]
    tally = Counter(str(n.outcome) for n in counted)
    return {"nodes": len(counted), **{f"nodes_{name}": tally[name] for name in OUTCOMES}}


def _spending(reading: Reading, run: Run) -> Row:
    totals = totals_of(calls_of(run, reading.status))
    return {
        "tokens_in": totals.usage.input,
        "tokens_cached": totals.usage.cached,
        "tokens_out": totals.usage.output,
        "calls": totals.calls,
        "dollars": totals.cost,
        "job_s": sum(n.wall_s for n in run.tree if n.id and n.wall_s is not None),
        "wall_s": reading.span_s,
    }


def calls_of(run: Run, status: str | None) -> list[ModelCall]:
    """Return the calls of a run, those included whose end a killed controller never saw."""
    lost: list[ModelCall] = []
    if status != "running":
        Ledger(on_call=lost.append).restore(run.calls, run.intents)
    return [*run.calls, *lost]


def totals_of(calls: Iterable[ModelCall]) -> Totals:
    """Return what calls cost together."""
    totals = Totals()
    for call in calls:
        totals = totals.plus(call)
    return totals


# --- what stands beside the journal ----------------------------------------------------------


def _verification(path: Path, best: Node, on_warning: Warn) -> Row:
    values = _json(path / "verify.json", on_warning)
    found = _mapping(_mapping(values.get("nodes")).get(str(best.id)))
    verdict = found.get("verdict")
    return {
        "verified_fsr": _number(found.get("fsr")),
        "verified_low": _number(found.get("low")),
        "verified_high": _number(found.get("high")),
        "verdict": verdict if verdict in VERDICTS else None,
    }


def _judgement(reading: Reading, best: Node, on_warning: Warn) -> Row:
    """Return the score of the configured judge, or of the first by name."""
    if reading.directory is None:
        return {}
    folder = reading.directory.node_dir(best.id)
    names = sorted(p.name[len("judge-") : -len(".json")] for p in folder.glob("judge-*.json"))
    wanted = reading.config.get("judge")
    for name in sorted(names, key=lambda n: n != wanted):
        score = _number(_json(folder / f"judge-{name}.json", on_warning).get("score"))
        if score is not None and 0 <= score <= 1:
            return {"judge": name, "judge_score": score}
    return {}


def _json(path: Path, on_warning: Warn) -> Mapping[str, Any]:
    """Read a small file of JSON; empty when there is none, and with a warning when it is bad."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_bytes()) if _is_small_file(path) else None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping):
        on_warning(f"{path}: it is not the JSON that was expected, and is left out")
        return {}
    return value


def _is_small_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= MAX_JSON


# --- values that may be of any type -----------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _name(component: Any) -> str | None:
    return _text(_mapping(component).get("name"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
