"""What a report says of runs and nodes, read from run directories that may be hostile."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedkit.analysis.reading import calls_of, knowledge_of, span
from speedkit.analysis.report.differences import Differences
from speedkit.analysis.report.evidence import Folder, Judgement, Log, Verdict
from speedkit.analysis.report.outcomes import ordered
from speedkit.analysis.report.text import Excerpt, head, subject
from speedkit.api import open_state
from speedkit.core.config import redactor_of
from speedkit.core.ledger import ModelCall, Totals
from speedkit.core.metrics import Metrics
from speedkit.core.node import Node, Tree

if TYPE_CHECKING:
    from speedkit.core.calibration import Calibration
    from speedkit.core.run import Run

FULL = 150
"""Nodes of a report that are shown at full length; of more, each is shown shorter."""
MAX_TEXT_LINES = 400
"""Lines of a hypothesis or a summary that are shown."""
MAX_TEXT_WIDTH = 16_000
"""Characters of one of their lines."""


@dataclass(frozen=True)
class Limits:
    """How much of each node is shown.

    Attributes:
        diff_lines: lines of the difference to the parent.
        log_lines: last lines of each log.
        points: validations of a curve.
    """

    diff_lines: int = 800
    log_lines: int = 120
    points: int = 300

    @classmethod
    def sharing(cls, nodes: int) -> Limits:
        """Return limits with which a report on so many nodes keeps a bearable size."""
        part = min(1.0, FULL / max(1, nodes))
        return cls(
            max(40, round(cls.diff_lines * part)),
            max(12, round(cls.log_lines * part)),
            max(40, round(cls.points * part)),
        )


@dataclass(frozen=True)
class NodeFacts:
    """A node and what is shown of it.

    Attributes:
        key: its name within the page.
        fsr: of a valid node, None for others.
        speedup: time of the start record divided by the node's, of valid nodes.
        curve: validations, thinned out.
        diff: what it changed in its parent's code.
        ending: how its job ended, in a word.
        changes: what the harness changed in the script to run it here.
    """

    node: Node
    key: str
    is_best: bool
    fsr: float | None
    speedup: float | None
    children: tuple[int, ...]
    hypothesis: Excerpt
    summary: Excerpt
    curve: tuple[Metrics, ...]
    diff: Excerpt
    logs: tuple[Log, ...]
    ending: str
    changes: tuple[str, ...]
    judgements: tuple[Judgement, ...]
    verdict: Verdict | None

    @property
    def outcome(self) -> str:
        """The outcome as a word."""
        return str(self.node.outcome)

    @property
    def title(self) -> str:
        """What is read out for the node in the tree."""
        parent = "" if self.node.parent is None else f" of node {self.node.parent}"
        facts = [
            f"Node {self.node.id}, {self.node.stage}{parent}: {self.outcome.replace('_', ' ')}",
            "the best" if self.is_best else "",
            "" if self.fsr is None or not self.node.id else f"FSR {self.fsr:+.3f}",
            subject(self.node.hypothesis, 120),
        ]
        return ", ".join(f for f in facts if f)


@dataclass(frozen=True)
class RunFacts:
    """A run and what is shown of it.

    Attributes:
        key: its name within the page.
        manifest: what ``run.toml`` says, secrets taken out.
        references: curves of the two records, ``start`` and ``target``, as calibrated.
        calls: of language models, those included whose end nobody saw.
        wall_s: seconds in which a controller was at work; None if that is not known.
        job_s: seconds of the nodes' jobs.
        calibration_s: seconds of the jobs of its own calibration.
    """

    key: str
    path: Path
    state: Run
    manifest: Mapping[str, Any]
    nodes: tuple[NodeFacts, ...]
    references: Mapping[str, tuple[Metrics, ...]]
    calls: Sequence[ModelCall]
    wall_s: float | None
    job_s: float
    calibration_s: float

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.path.resolve().name

    @property
    def status(self) -> str:
        """``finished``, ``stopped``, ``interrupted``, ``failed``, ``running`` or ``new``."""
        return self.state.status

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run."""
        return f"speedkit run --resume {shlex.quote(str(self.path))}"

    @property
    def is_over(self) -> bool:
        """Whether the search came to its end."""
        return self.status in ("finished", "stopped")

    @property
    def calibration(self) -> Calibration | None:
        """Times of the two records."""
        return self.state.calibration

    @property
    def best(self) -> NodeFacts | None:
        """The fastest valid node, node 0 left out."""
        return next((n for n in self.nodes if n.is_best), None)

    @property
    def result(self) -> str:
        """``valid``, ``invalid`` when no node of a whole search may count, else ``missing``."""
        if self.calibration is None or not self.calibration.recovers:
            return "missing"
        if self.best is not None:
            return "valid"
        return "invalid" if self.is_over else "missing"

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run."""
        config = self.manifest.get("config", {})
        return config if isinstance(config, Mapping) else {}

    @property
    def hints(self) -> str:
        """Hint levels that the coder was given."""
        return self._knowledge[0]

    @property
    def knowledge(self) -> str:
        """Further knowledge sources of the coder."""
        return self._knowledge[1]

    @cached_property
    def _knowledge(self) -> tuple[str, str]:
        parts = self.manifest.get("components")
        return knowledge_of(self.config, parts if isinstance(parts, Mapping) else {})

    @property
    def own_start(self) -> str | None:
        """File of the script that the search started from, None for the start record's."""
        start = self.manifest.get("start")
        return str(start.get("file")) if isinstance(start, Mapping) else None

    @property
    def seed(self) -> str:
        """Seed of the search."""
        return str(self.config.get("seed", "unknown"))

    @property
    def components(self) -> list[tuple[str, Mapping[str, Any]]]:
        """What ``run.toml`` says of each component, with its kind."""
        entries = self.manifest.get("components")
        if not isinstance(entries, Mapping):
            return []
        pairs = [(kind, e) for kind, es in entries.items() for e in _as_list(es)]
        return [(str(kind), entry) for kind, entry in pairs if isinstance(entry, Mapping)]

    def component(self, kind: str) -> str:
        """Return the name of a component."""
        return next((str(e.get("name")) for k, e in self.components if k == kind), "unknown")

    @property
    def model(self) -> str | None:
        """The models that answered; the one that was asked when none has yet."""
        served = sorted({c.model_served for c in self.calls if c.model_served})
        return ", ".join(served) or self.config.get("model")

    @property
    def outcomes(self) -> list[str]:
        """Outcomes that nodes have, that of node 0 among them."""
        return ordered(n.outcome for n in self.nodes)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of nodes by outcome, node 0 left out."""
        found = Counter(n.outcome for n in self.nodes if n.node.id)
        return {outcome: found[outcome] for outcome in ordered(found)}

    @cached_property
    def spent(self) -> Totals:
        """What went to language models."""
        return _total(self.calls)

    @cached_property
    def spent_by_purpose(self) -> dict[tuple[str, str], Totals]:
        """The same by purpose and model."""
        keyed = [((c.purpose, c.model_served or c.model), c) for c in self.calls]
        keys = sorted({key for key, _ in keyed})
        return {key: _total(c for own, c in keyed if own == key) for key in keys}

    @property
    def tree(self) -> Tree:
        """The search tree."""
        return self.state.tree

    @property
    def has_second_parents(self) -> bool:
        """Whether a node has two parents."""
        return any(n.node.other is not None for n in self.nodes)

    def fact(self, node_id: int) -> NodeFacts:
        """Return the facts of a node."""
        return self.by_id[node_id]

    @cached_property
    def by_id(self) -> dict[int, NodeFacts]:
        """The facts of all nodes."""
        return {n.node.id: n for n in self.nodes}


@dataclass(frozen=True)
class Unreadable:
    """A run directory that could not be read, and why."""

    path: Path
    reason: str


def read_run(path: Path, key: str, limits: Limits) -> RunFacts:
    """Read everything that is shown of a run.

    Raises:
        SpeedkitError: the path is no run directory, or its task is not to be found.
    """
    state = open_state(path)
    redactor = redactor_of(state.directory.manifest.get("config", {}).get("llm"))
    events = state.directory.events()
    folder = Folder(path, limits.points, limits.log_lines, redactor.clean)
    verdicts = folder.verdicts()
    with Differences(state, limits.diff_lines, redactor.clean) as differences:
        nodes = tuple(
            _node(state, node, key, folder, differences, verdicts.get(node.id))
            for node in state.tree
        )
    return RunFacts(
        key=key,
        path=path,
        state=state,
        manifest=redactor.tree(state.directory.manifest),
        nodes=nodes,
        references={which: _record_curve(state, which, folder) for which in ("start", "target")},
        calls=calls_of(state, state.status),
        wall_s=span(events) if events else None,
        job_s=sum(node.wall_s for node in state.tree if node.wall_s),
        calibration_s=sum(e.get("wall_s") or 0.0 for e in events if e["type"] == "calibration_run"),
    )


def _node(
    state: Run,
    node: Node,
    key: str,
    folder: Folder,
    differences: Differences,
    verdict: Verdict | None,
) -> NodeFacts:
    place = f"nodes/{node.id:04d}" if node.id else "calibration/calibrate-start-1"
    job = folder.job(place)
    return NodeFacts(
        node=node,
        key=f"{key}-n{node.id}",
        is_best=state.best is not None and state.best.id == node.id,
        fsr=state.node_fsr(node),
        speedup=_speedup(state, node),
        children=tuple(child.id for child in state.tree.children(node.id)),
        hypothesis=head(node.hypothesis, MAX_TEXT_LINES, MAX_TEXT_WIDTH),
        summary=head(node.summary, MAX_TEXT_LINES, MAX_TEXT_WIDTH),
        curve=folder.curve(place) if node.id else _record_curve(state, "start", folder),
        diff=differences.of(node),
        logs=folder.logs(place),
        ending=job.ending,
        changes=job.changes,
        judgements=folder.judgements(place),
        verdict=verdict,
    )


def _record_curve(state: Run, which: str, folder: Folder) -> tuple[Metrics, ...]:
    """Return the curve of a record, ``start`` or ``target``, as the calibration has it.

    A calibration that was measured by an earlier run left no files in this one.
    """
    return folder.thinned(getattr(state.calibration, f"{which}_curve", ()))


def _speedup(state: Run, node: Node) -> float | None:
    time = node.train_time_ms
    if state.calibration is None or not node.is_valid or not time:
        return None
    return state.calibration.start_ms / time


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _total(calls: Iterable[ModelCall]) -> Totals:
    totals = Totals()
    for call in calls:
        totals = totals.plus(call)
    return totals
