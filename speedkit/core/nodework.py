"""What happens to one node: it is coded, admitted, run, inspected, summarized and recorded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from speedkit.core.assemble import Components
from speedkit.core.components import CodeRequest, Draft, KnowledgeEntry, Proposal, SummaryRequest
from speedkit.core.config import RunConfig
from speedkit.core.curve_stop import CurveRule
from speedkit.core.errors import ExecutorError, blamed
from speedkit.core.files import printable, read_ends, write_atomic
from speedkit.core.findings import Finding, Level, worst
from speedkit.core.history import GitHistory
from speedkit.core.inspection import Inspector, decide
from speedkit.core.metrics import Metrics, Report, metrics_to_dict
from speedkit.core.node import Node, Outcome, Tree
from speedkit.core.preflight import check as preflight
from speedkit.core.recorder import Recorder
from speedkit.core.run import Plan, Run
from speedkit.core.same_code import fingerprint
from speedkit.core.task import Task
from speedkit.core.trial import Listener, Stop, Trial, Trials, read_curve

MAX_HYPOTHESIS = 4000
MAX_REASON = 4000
MAX_SUMMARY = 16000
SMOKE_STEPS = 3
"""Steps of the run that comes first where that is asked for."""


@dataclass(frozen=True)
class Refusal:
    """The outcome of a node that is not run, and why."""

    outcome: Outcome
    reason: str
    findings: tuple[Finding, ...] = ()


OnProgress = Callable[[str, Metrics | None, str, float], None]


@dataclass
class NodeWork:
    """The stations of a node on its way from proposal to outcome; any thread may call them."""

    config: RunConfig
    parts: Components
    recorder: Recorder
    git: GitHistory
    trials: Trials
    inspector: Inspector
    knowledge: tuple[KnowledgeEntry, ...]
    on_progress: OnProgress
    cancel: threading.Event
    _early: dict[int, tuple[Finding, ...]] = field(default_factory=dict)
    _codes: dict[str, int] = field(default_factory=dict)
    """The node that is run for all that have its code, by the code's fingerprint."""
    _waiting: dict[int, list[int]] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The state of the run."""
        return self.recorder.run

    @property
    def task(self) -> Task:
        """The task of the run."""
        return self.run.task

    # --- coding -----------------------------------------------------------------------------

    def code(self, known: Tree, plan: Plan, node_id: int, proposal: Proposal) -> None:
        """Let the coder write a node, and commit what it wrote.

        Args:
            known: the nodes whose outcome was known when the step was planned.

        Raises:
            BudgetReached: a limit on model calls; the node is left to a later controller.
        """
        request = self._request(known, plan, node_id, proposal)
        with blamed("coder", self.config.coder_name):
            draft = self._clean(self.parts.coder.write(request))
        files = dict(request.files) if draft.failure else dict(draft.files)
        repeated = draft.repeat or self.config.train_duplicates or bool(draft.failure)
        node = Node(
            node_id,
            proposal.parent,
            proposal.stage,
            plan.step,
            hypothesis=draft.hypothesis,
            reason=draft.failure,
            coder=self.config.coder_name,
            model=draft.model,
            notes=draft.notes,
            staleness=len(plan.pending),
            code="" if repeated else fingerprint(files),
            other=proposal.other,
        )
        parents = [known[i].commit for i in (proposal.parent, proposal.other) if i is not None]
        with self.recorder.lock:
            commit = self.git.commit(node, files, *parents)
            self.recorder.record("node_created", **created(node, commit))
            self.recorder.notify("node_created", node=self.run.tree[node_id])

    def _request(self, known: Tree, plan: Plan, node_id: int, proposal: Proposal) -> CodeRequest:
        parent = known[proposal.parent]
        log_dir = self.run.directory.node_dir(node_id)
        log_dir.mkdir(parents=True, exist_ok=True)
        return CodeRequest(
            task=self.task,
            tree=known,
            parent=parent,
            node_id=node_id,
            stage=proposal.stage,
            sibling=node_id - plan.first_id,
            siblings=len(plan.children),
            files=self.git.files(parent.commit),
            knowledge=self.knowledge,
            seed=node_seed(self.config.seed, node_id),
            log_dir=log_dir,
            read_files=lambda i: self.git.files(known[i].commit),
            other=None if proposal.other is None else known[proposal.other],
            nproc=self.parts.executor.nproc,
        )

    def _clean(self, draft: Draft) -> Draft:
        """Take out what must not be stored: secrets from a model, and text that is no text."""
        clean = self.recorder.redactor.clean
        json.dumps(draft.notes, allow_nan=False)  # raises what a coder's author must know
        files = {name: clean(text) for name, text in draft.files.items()}
        return replace(
            draft,
            files=files,
            # A key with a control character in it is none before that is gone.
            hypothesis=clean(printable(draft.hypothesis))[:MAX_HYPOTHESIS],
            model=draft.model and clean(draft.model),
            failure=(draft.failure or self._fault(files))[:MAX_REASON],
        )

    def _fault(self, files: Mapping[str, str]) -> str:
        """Return why the files of a draft cannot be run or stored; empty if they can."""
        if self.task.script not in files:
            return f"edit: the coder returned no {self.task.script}"
        try:
            for text in files.values():
                text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"edit: the code is not UTF-8: {error}"
        return ""

    # --- admission: all that can be known without running it --------------------------------

    def recall_codes(self) -> None:
        """Find out which codes nodes were run for, or are being run for, before this controller."""
        for node in self.run.tree:
            is_run = self.run.is_finished(node.id) or f"node-{node.id}" in self.run.handles
            if is_run and node.same_as is None and node.outcome is not Outcome.DROPPED:
                self.claim_code(node.id)

    def claim_code(self, node_id: int) -> int:
        """Let a node be run for all that have its code, if none is yet; return which one is.

        Which of several that are coded at once it is must not depend on timing: whoever calls
        this sees to the order.
        """
        code = self.run.tree[node_id].code
        if not code:  # it is trained whatever it is
            return node_id
        with self.recorder.lock:
            return self._codes.setdefault(code, node_id)

    def shares(self, node_id: int) -> bool:
        """Whether another node is run for this one's code; then this one gets its outcome.

        It waits for the outcome if there is none yet.
        """
        with self.recorder.lock:
            first = self.claim_code(node_id)
            if first == node_id:
                return False
            if not self.run.is_finished(first):
                self._waiting.setdefault(first, []).append(node_id)
                return True
        self._share(self.run.tree[first], node_id)
        return True

    def refusal(self, node_id: int) -> Refusal | None:
        """Return why a coded node is not to be run; None if it is."""
        node = self.run.tree[node_id]
        if node.reason:  # the coder's, kept since the node was created
            return Refusal(Outcome.EDIT_FAILED, node.reason)
        files, parent = self._files(node)
        findings = self.inspector.code(parent, files)
        found = worst(findings)
        if found is not None and found.level is Level.REJECT:
            return Refusal(Outcome.INVALID, f"guard {found.guard}: {found.reason}", findings)
        look = preflight(files, self.task.script, self.parts.executor.interpreter)
        if not look.ok:
            log = self.run.directory.node_dir(node_id) / "rank0.stderr.log"
            write_atomic(log, look.traceback + "\n", sync=False)
            return Refusal(Outcome.BUGGY, look.reason, findings)
        self._early[node_id] = findings
        return None

    def _share(self, first: Node, node_id: int) -> None:
        self._record_outcome(
            node_id,
            first.outcome,
            first.reason,
            metrics=first.metrics,
            summary=f"The same code as node {first.id}, not run again. {first.summary}",
            findings=first.findings,
            same_as=first.id,
        )

    def _files(self, node: Node) -> tuple[dict[str, str], dict[str, str]]:
        parent = self.run.tree[node.parent or 0]
        return self.git.files(node.commit), self.git.files(parent.commit)

    # --- running: holds a lane of the executor ----------------------------------------------

    def execute(self, node_id: int) -> tuple[Trial, tuple[Finding, ...]] | None:
        """Run a node and ask the guards; None when it was cancelled, or dropped unrun.

        Raises:
            ExecutorError: it could not be run.
        """
        node = self.run.tree[node_id]
        name, log_dir = f"node-{node_id}", self.run.directory.node_dir(node_id)
        handle = self.run.handles.get(name)  # of a job that may be gone on with
        if handle is None and self._is_superseded(node) and self._drop(node):
            return None
        files, parent = self._files(node)
        best = self.run.tree.best(before=node.step)  # what siblings came to must not matter
        trial = None if handle else self._try_out(name, files, node)
        trial = trial or self.trials.run(
            name,
            files,
            log_dir,
            training_seed(self.config.seed, node),
            self.listener(name),
            self._stop(node, best),
            handle=handle,
        )
        if trial.outcome is None:
            if self.cancel.is_set():
                return None
            raise ExecutorError(f"node {node_id} could not be run: {trial.reason}")
        findings = self._early.pop(node_id, ())
        if trial.outcome is Outcome.VALID:
            best_ms = best.train_time_ms if best else None
            findings += self.inspector.result(
                name, parent, files, trial, log_dir, self.run.calibration, best_ms
            )
        _forget_artifacts(trial, findings)
        return None if self.cancel.is_set() else (trial, findings)

    def _try_out(self, name: str, files: Mapping[str, str], node: Node) -> Trial | None:
        """Let a node make a few steps first; return that trial only if it went wrong."""
        if not self.config.smoke_first or self.task.family.hooks.smoke is None:
            return None
        log_dir = self.run.directory.node_dir(node.id) / "smoke"
        seed = training_seed(self.config.seed, node)
        trial = self.trials.run(f"{name}-smoke", files, log_dir, seed, smoke_steps=SMOKE_STEPS)
        if trial.outcome is Outcome.BUGGY:
            return replace(trial, reason=f"in the first {SMOKE_STEPS} steps: {trial.reason}")
        return trial if trial.outcome is None else None

    def _stop(self, node: Node, best: Node | None) -> Callable[[], Stop] | None:
        """Return what ends a hopeless job; a control that measures noise runs to its end."""
        calibration = self.run.calibration
        if calibration is None or not node.code or self.parts.executor.smoke_steps:
            return None
        curve: Sequence[Metrics] = ()
        if best is not None:
            was_run = best.id if best.same_as is None else best.same_as
            curve = read_curve(self.run.directory.node_dir(was_run))
        make = partial(
            CurveRule,
            self.config.stop_for(self.task.family),
            target=self.task.rules.target,
            start_ms=calibration.start_ms,
            start_curves=[calibration.start_curve] if calibration.start_curve else (),
            best_curve=curve,
        )
        return lambda: make().feed

    def _is_superseded(self, node: Node) -> bool:
        if node.staleness == 0:
            return False
        with blamed("scaffold", self.config.scaffold):
            return self.parts.scaffold.is_superseded(self.run.tree.snapshot(), node)

    def _drop(self, node: Node) -> bool:
        """Leave a node unrun, unless others wait for what comes of it; whether that was done."""
        reason = "a better parent was found before it was run"
        with self.recorder.lock:
            if node.id in self._waiting:
                return False
            self._codes.pop(node.code, None)
            self._record_outcome(
                node.id, Outcome.DROPPED, reason, metrics=None, summary=f"Not run: {reason}."
            )
        return True

    def listener(self, job: str) -> Listener:
        """Return what hears a job of the run."""
        return Listener(
            on_started=lambda handle: self.recorder.record(
                "job_started", job=job, handle=dict(handle)
            ),
            on_line=lambda metrics, text, at_s: self.on_progress(
                job, metrics, self.recorder.redactor.clean(text), at_s
            ),
        )

    # --- the end of a node ------------------------------------------------------------------

    def refuse(self, node_id: int, refusal: Refusal) -> None:
        """Record a node that is not run."""
        self.finish(node_id, refusal.outcome, refusal.reason, findings=refusal.findings)

    def close(self, node_id: int, trial: Trial, findings: tuple[Finding, ...]) -> None:
        """Summarize and record a node that has run."""
        assert trial.outcome is not None
        outcome, reason = decide(trial.outcome, trial.reason, findings)
        self.finish(node_id, outcome, reason, trial, findings)

    def finish(
        self,
        node_id: int,
        outcome: Outcome,
        reason: str,
        trial: Trial | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        """Record the outcome of a node, and of those that wait for it."""
        report = trial.report if trial else Report(())
        summary = self._summarize(node_id, outcome, reason, report, trial)
        self._record_outcome(
            node_id,
            outcome,
            reason,
            metrics=report.last,
            summary=summary,
            findings=findings,
            wall_s=round(trial.execution.wall_s, 3) if trial else None,
        )
        with self.recorder.lock:
            waiting = self._waiting.pop(node_id, [])
        for other in waiting:
            self._share(self.run.tree[node_id], other)

    def _record_outcome(
        self,
        node_id: int,
        outcome: Outcome,
        reason: str,
        *,
        metrics: Metrics | None,
        summary: str,
        findings: tuple[Finding, ...] = (),
        same_as: int | None = None,
        wall_s: float | None = None,
    ) -> None:
        with self.recorder.lock:
            self.recorder.record(
                "node_finished",
                id=node_id,
                outcome=str(outcome),
                reason=reason[:MAX_REASON],
                metrics=metrics_to_dict(metrics),
                summary=summary[:MAX_SUMMARY],
                wall_s=wall_s,
                findings=[finding.to_dict() for finding in findings],
                same_as=same_as,
            )
            node = self.run.tree[node_id]
            self.annotate(node)
            self.recorder.notify("node_finished", node=node)

    def _summarize(
        self, node_id: int, outcome: Outcome, reason: str, report: Report, trial: Trial | None
    ) -> str:
        node = self.run.tree[node_id]
        log_dir = self.run.directory.node_dir(node.id)
        log_dir.mkdir(parents=True, exist_ok=True)
        calibration = self.run.calibration
        request = SummaryRequest(
            task=self.task,
            node=replace(node, outcome=outcome, reason=reason, metrics=report.last),
            parent=self.run.tree[node.parent or 0],
            report=report,
            execution=trial.execution if trial else None,
            stdout=read_ends(log_dir / "rank0.stdout.log"),
            stderr=read_ends(log_dir / "rank0.stderr.log"),
            start_ms=calibration.start_ms if calibration else None,
            log_dir=log_dir,
        )
        with blamed("summarizer", self.config.summarizer):
            text = self.recorder.redactor.clean(self.parts.summarizer.summarize(request))
        write_atomic(log_dir / "summary.md", text, sync=False)
        return text

    def annotate(self, node: Node) -> None:
        """Attach the outcome of a node to its commit."""
        lines = [f"Outcome: {node.outcome}"]
        if node.reason:
            lines.append(f"Reason: {' '.join(printable(node.reason).split())}")
        if node.same_as is not None:
            lines.append(f"Same-as: {node.same_as}")
        if node.metrics:
            lines.append(f"Val-loss: {node.metrics.val_loss:.4f}")
            lines.append(f"Train-time-ms: {node.metrics.train_time_ms}")
        if (value := self.run.node_fsr(node)) is not None:
            lines.append(f"FSR: {value:.4f}")
        self.git.annotate(node.commit, "\n".join(lines) + "\n", at=node.id)


def node_seed(seed: int, node_id: int) -> int:
    """Return the seed of a node's own, given that of the run."""
    import random

    return random.Random(f"{seed}/node/{node_id}").getrandbits(63)


def training_seed(seed: int, node: Node) -> int:
    """Return the seed of a node's training: of its code, so that the same code has the same.

    Args:
        seed: of the run.
    """
    if not node.code:
        return seed * 1000 + node.id
    digest = hashlib.sha256(f"{seed}/{node.code}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def created(node: Node, commit: str) -> dict[str, Any]:
    """Return the facts of the event that makes a node."""
    return {
        "id": node.id,
        "parent": node.parent,
        "stage": str(node.stage),
        "step": node.step,
        "commit": commit,
        "hypothesis": node.hypothesis,
        "failure": node.reason,
        "coder": node.coder,
        "model": node.model,
        "notes": dict(node.notes),
        "staleness": node.staleness,
        "code": node.code,
        **({} if node.other is None else {"other": node.other}),
    }


def _forget_artifacts(trial: Trial, findings: tuple[Finding, ...]) -> None:
    """Free the disk of a checkpoint that nobody has to look at."""
    if worst(findings) is None:
        for path in trial.artifacts.values():
            path.unlink(missing_ok=True)
