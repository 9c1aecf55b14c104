"""What is known of a run, folded from its journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from speedkit.core.calibration import Calibration
from speedkit.core.components import Proposal
from speedkit.core.errors import RunDirectoryError
from speedkit.core.findings import Finding
from speedkit.core.history import RunDirectory
from speedkit.core.ledger import Intent, ModelCall
from speedkit.core.metrics import metrics_from_dict
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.core.task import Task


@dataclass
class Plan:
    """The children that a scaffold asked for in one step, ids already given.

    Attributes:
        pending: ids of the nodes that were unfinished when the step was planned, and whose
            outcome its coders therefore do not know; none in strict order.
    """

    step: int
    first_id: int
    children: tuple[Proposal, ...]
    pending: frozenset[int] = frozenset()

    def items(self) -> list[tuple[int, Proposal]]:
        """Return pairs of node id and proposal."""
        return list(enumerate(self.children, start=self.first_id))


@dataclass
class Run:
    """What is known of a run; observers and callers receive it and must not change it.

    Attributes:
        plans: the steps with unfinished nodes, and always the latest one.
        status: ``running`` while a controller is at work, else how it ended.
        handles: of jobs that have started and not ended, by job name.
        calls: calls of language models that are over.
        intents: calls that were about to be sent, over or not.
        lanes: how busy the executor was, in the part of the run that ended last.
    """

    directory: RunDirectory
    task: Task
    tree: Tree = field(default_factory=Tree)
    plans: list[Plan] = field(default_factory=list)
    calibration: Calibration | None = None
    status: str = "new"
    handles: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    calls: list[ModelCall] = field(default_factory=list)
    intents: list[Intent] = field(default_factory=list)
    lanes: Mapping[str, Any] | None = None

    @classmethod
    def open(cls, directory: RunDirectory, task: Task) -> Run:
        """Fold the journal of a run directory.

        Raises:
            RunDirectoryError: the journal is damaged, or holds what no run has written.
        """
        run = cls(directory, task)
        for number, event in enumerate(directory.events(), start=1):
            try:
                run.apply(event)
            except (LookupError, TypeError, ValueError) as error:
                where = f"{directory.journal_path}: event {number}"
                raise RunDirectoryError(f"{where} cannot be read: {error!r}") from None
        return run

    @property
    def best(self) -> Node | None:
        """The fastest valid node, node 0 left out; None if there is none."""
        return self.tree.best()

    @property
    def fsr(self) -> float | None:
        """FSR of the best node; None where there is no valid node or no calibration."""
        return self.node_fsr(self.best)

    def node_fsr(self, node: Node | None) -> float | None:
        """FSR of a node if it is valid, else None."""
        if node is None or not node.is_valid or self.calibration is None:
            return None
        return self.calibration.fsr(node.train_time_ms)

    @property
    def plan(self) -> Plan | None:
        """The latest step."""
        return self.plans[-1] if self.plans else None

    def is_finished(self, node_id: int) -> bool:
        """Whether the outcome of a node is decided."""
        return node_id in self.tree and self.tree[node_id].outcome is not Outcome.PENDING

    def is_done(self, plan: Plan) -> bool:
        """Whether every node of a step is finished."""
        return all(self.is_finished(node_id) for node_id, _ in plan.items())

    def apply(self, event: Mapping[str, Any]) -> None:
        """Fold one event of the journal into the state."""
        handler = getattr(self, f"_on_{event['type']}", None)
        if handler is not None:
            handler(event)

    def _on_run_started(self, event: Mapping[str, Any]) -> None:
        self.status = "running"

    def _on_calibrated(self, event: Mapping[str, Any]) -> None:
        self.calibration = Calibration.from_dict(event["calibration"])

    def _on_step_planned(self, event: Mapping[str, Any]) -> None:
        children = tuple(
            Proposal(c["parent"], Stage(c["stage"]), c.get("other")) for c in event["children"]
        )
        pending = frozenset(event.get("pending", ()))
        self.plans = [p for p in self.plans if not self.is_done(p)]
        self.plans.append(Plan(event["step"], event["first_id"], children, pending))

    def _on_node_created(self, event: Mapping[str, Any]) -> None:
        self.tree.put(
            Node(
                id=event["id"],
                parent=event["parent"],
                stage=Stage(event["stage"]),
                step=event["step"],
                commit=event["commit"],
                hypothesis=event["hypothesis"],
                coder=event["coder"],
                model=event["model"],
                notes=event["notes"],
                reason=event.get("failure", ""),
                staleness=event.get("staleness", 0),
                code=event.get("code", ""),
                other=event.get("other"),
            )
        )

    def _on_node_finished(self, event: Mapping[str, Any]) -> None:
        self.tree.update(
            event["id"],
            outcome=Outcome(event["outcome"]),
            reason=event["reason"],
            metrics=metrics_from_dict(event["metrics"]),
            summary=event["summary"],
            wall_s=event["wall_s"],
            findings=tuple(map(Finding.from_dict, event.get("findings", ()))),
            same_as=event.get("same_as"),
        )
        self.handles.pop(f"node-{event['id']}", None)

    def _on_job_started(self, event: Mapping[str, Any]) -> None:
        self.handles[event["job"]] = event["handle"]

    def _on_calibration_run(self, event: Mapping[str, Any]) -> None:
        self.handles.pop(f"calibrate-{event['record']}-{event['run']}", None)

    def _on_job_ended(self, event: Mapping[str, Any]) -> None:
        self.handles.pop(event["job"], None)

    def _on_model_intent(self, event: Mapping[str, Any]) -> None:
        self.intents.append(Intent.from_json(event["intent"]))

    def _on_model_called(self, event: Mapping[str, Any]) -> None:
        self.calls.append(ModelCall.from_json(event["call"]))

    def _on_run_finished(self, event: Mapping[str, Any]) -> None:
        self.status = event["status"]
        self.lanes = event.get("lanes")
