"""The loop of a search: scaffold → coder → git → executor → summarizer → journal.

Everything a run knows is folded from its journal, so that a run that was killed goes on
where it stood: planned steps, created nodes and finished nodes are never made again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from speedkit.core import calibration as calibrations
from speedkit.core.assemble import Components
from speedkit.core.calibration import Calibration
from speedkit.core.components import (
    CodeRequest,
    Draft,
    Executor,
    KnowledgeEntry,
    Proposal,
    SummaryRequest,
)
from speedkit.core.config import RunConfig
from speedkit.core.errors import BudgetReached, ExecutorError, SpeedkitError, StopRun
from speedkit.core.files import printable, read_tail, write_atomic
from speedkit.core.history import GitHistory, RunDirectory
from speedkit.core.journal import Journal
from speedkit.core.ledger import Intent, Ledger, ModelCall
from speedkit.core.metrics import (
    Metrics,
    Report,
    metrics_from_dict,
    metrics_to_dict,
)
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.core.plugins import Plugins
from speedkit.core.redact import Redactor
from speedkit.core.task import Task
from speedkit.core.trial import Listener, Trial, Trials

if TYPE_CHECKING:
    from speedkit.core.llm import LLM

MAX_HYPOTHESIS = 4000
MAX_SUMMARY = 16000
MAX_CODERS = 8
"""How many nodes are coded at once."""

OnEvent = Callable[[Mapping[str, Any]], None]
OnProgress = Callable[[str, Metrics | None, str, float], None]


@dataclass
class Plan:
    """The children that a scaffold asked for in one step, ids already given."""

    step: int
    first_id: int
    children: tuple[Proposal, ...]

    def items(self) -> list[tuple[int, Proposal]]:
        """Return pairs of node id and proposal."""
        return list(enumerate(self.children, start=self.first_id))


@dataclass
class Run:
    """What is known of a run; observers and callers receive it and must not change it.

    Attributes:
        plan: the latest step.
        status: ``running`` while a controller is at work, else how it ended.
        handles: of jobs that have started and not ended, by job name.
        calls: calls of language models that are over.
        intents: calls that were about to be sent, over or not.
    """

    directory: RunDirectory
    task: Task
    tree: Tree = field(default_factory=Tree)
    plan: Plan | None = None
    calibration: Calibration | None = None
    status: str = "new"
    handles: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    calls: list[ModelCall] = field(default_factory=list)
    intents: list[Intent] = field(default_factory=list)

    @classmethod
    def open(cls, directory: RunDirectory, task: Task) -> Run:
        """Fold the journal of a run directory."""
        run = cls(directory, task)
        for event in directory.events():
            run.apply(event)
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
        children = tuple(Proposal(c["parent"], Stage(c["stage"])) for c in event["children"])
        self.plan = Plan(event["step"], event["first_id"], children)

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


class Search:
    """One controller at work on a run.

    Args:
        run: the state, folded from the journal; empty for a new run.
        journal: open for writing.
        on_event: receives every event after it is on disk.
        on_progress: receives lines of running jobs: job, metrics, text, seconds.
        on_warning: receives a line for the user.
    """

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        components: Components,
        plugins: Plugins,
        journal: Journal,
        *,
        on_event: OnEvent = lambda event: None,
        on_progress: OnProgress = lambda job, metrics, text, at_s: None,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run, self.config, self.parts, self.plugins = run, config, components, plugins
        self.task = run.task
        self.cancel = threading.Event()
        self._journal = journal
        self._on_event, self._on_progress, self._on_warning = on_event, on_progress, on_warning
        self._lock = threading.RLock()
        self._stop: StopRun | None = None
        self._over_budget: BudgetReached | None = None
        self._client: LLM | None = None
        self._redactor = Redactor.from_environment()
        self._git = GitHistory(run.directory.path / "repo")
        self._budget = config.budget(self.task.family)
        self._calibration_runs = (
            config.calibration_runs or self.task.family.defaults.calibration_runs or 3
        )
        self._knowledge: tuple[KnowledgeEntry, ...] = ()

    def go(self) -> str:
        """Search until the budget is spent; return the status.

        Returns:
            ``finished``, or ``stopped`` when an observer asked for it.

        Raises:
            KeyboardInterrupt: after running jobs were ended and the journal closed the run
                as ``interrupted``.
            BudgetReached: a limit on model calls; jobs under way were finished.
            SpeedkitError: the run cannot go on; the journal says ``failed``.
        """
        try:
            self._prepare()
            while (plan := self._next_plan()) is not None:
                self._do_step(plan)
                if self._over_budget is not None:
                    raise self._over_budget
                if self._stop is not None:
                    return self._finish("stopped")
            return self._finish("finished")
        except KeyboardInterrupt:
            self._finish("interrupted")
            raise
        except BudgetReached:
            self._finish("stopped")
            raise
        except SpeedkitError:
            self._finish("failed")
            raise
        except OSError as error:
            raise SpeedkitError(
                f"the run cannot go on: {error}; when that is mended: "
                f"speedkit run --resume {self.run.directory.path}"
            ) from error
        finally:
            self._git.close()
            if self._client is not None:
                self._client.close()

    def llm(self) -> LLM:
        """Return the client for language models, made on first use.

        What an earlier controller of the run spent counts towards its limits.
        """
        with self._lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def _make_client(self) -> LLM:
        from speedkit.core.llm import LLM

        settings = self.config.llm_settings()
        ledger = Ledger(
            max_cost=settings.max_cost,
            max_tokens=settings.max_tokens,
            on_intent=lambda intent: self._record("model_intent", intent=intent.as_json()),
            on_call=self._on_model_call,
        )
        ledger.restore(self.run.calls, self.run.intents)
        return LLM(settings, ledger=ledger)

    def _on_model_call(self, call: ModelCall) -> None:
        self._record("model_called", call=call.as_json())
        self._notify("model_called", run=self.run, call=call.as_json())

    # --- before the first step ------------------------------------------------------------

    def _prepare(self) -> None:
        self._reap()
        if self.config.model is not None:
            self.llm().check()
        self._record("run_started", run_id=self.run.directory.run_id, task=self.task.name)
        self._notify("run_started", run=self.run)
        self.trials = Trials(
            task=self.task,
            executor=self.parts.executor,
            run_id=self.run.directory.run_id,
            work_dir=self.run.directory.work_dir,
            data=self.task.data_folder(allow_short=bool(self.parts.executor.smoke_steps)),
            cache=self.run.directory.path / "cache",
            cancel=self.cancel,
        )
        self._knowledge = tuple(e for k in self.parts.knowledge for e in k.entries(self.task))
        if self.run.calibration is None:
            self._record("calibrated", calibration=self._calibrate().to_dict())
        for node in self.run.tree:
            if node.commit:
                self._git.set_ref(node.id, node.commit)
        if 0 not in self.run.tree:
            self._create_root()
        if not self.run.tree.root.is_valid:
            self._finish_root()

    def _reap(self) -> None:
        """End what a dead controller left running."""
        for job, handle in list(self.run.handles.items()):
            self.parts.executor.reap(handle)
            self._record("job_ended", job=job, ending="lost")

    def _calibrate(self) -> Calibration:
        if takes_reference(self.config, self.parts.executor):
            return calibrations.from_reference(self.task)
        fingerprint = self.trials.fingerprint
        if self.config.calibration == "auto":
            stored = calibrations.load(self.task, fingerprint)
            if stored is not None:
                return stored
        folder = self.run.directory.path / "calibration"
        runs = self._calibration_runs
        made = calibrations.measure(
            self.task, self.trials, folder, runs, self._on_calibration_run, self._listener
        )
        calibrations.save(self.task, made)
        return made

    def _on_calibration_run(self, which: str, k: int, trial: Trial) -> None:
        self._record(
            "calibration_run",
            record=which,
            run=k,
            of=self._calibration_runs,
            metrics=metrics_to_dict(trial.metrics),
            reason=trial.reason,
            wall_s=round(trial.execution.wall_s, 3),
        )

    def _create_root(self) -> None:
        root = root_node(self.task)
        commit = self._git.commit(root, self.task.start_files(), None)
        self._record("node_created", **_created(root, commit, Draft({}, root.hypothesis), coder=""))

    def _finish_root(self) -> None:
        """Node 0 is the start record; its outcome is the calibration's."""
        calibration = self.run.calibration
        assert calibration is not None
        metrics = root_metrics(self.task, calibration)
        source = calibration.source
        self._record(
            "node_finished",
            id=0,
            outcome="valid",
            reason="",
            metrics=metrics_to_dict(metrics),
            summary=f"The start record: {metrics.train_time_ms} ms to the target ({source}).",
            wall_s=None,
        )
        self._annotate(self.run.tree.root)

    # --- steps ----------------------------------------------------------------------------

    def _next_plan(self) -> Plan | None:
        """Return the step to do: an unfinished one from the journal, or a new one."""
        tree = self.run.tree
        plan = self.run.plan
        if plan is not None and any(not _done(tree, i) for i, _ in plan.items()):
            return plan
        room = self._budget - (len(tree) - 1)
        if room <= 0:
            return None
        step = plan.step + 1 if plan else 1
        rng = step_rng(self.config.seed, step)
        children = tuple(self.parts.scaffold.propose(tree.snapshot(), rng))[:room]
        if not children:
            return None
        self._record(
            "step_planned",
            step=step,
            first_id=len(tree),
            children=[{"parent": c.parent, "stage": str(c.stage)} for c in children],
        )
        return self.run.plan

    def _do_step(self, plan: Plan) -> None:
        """Code the children at once, run them as lanes come free, wait for all.

        What a coder sees is the tree as it was before the step, so that the result does
        not depend on the order in which siblings are coded and run.
        """
        before = Tree(n for n in self.run.tree if n.step < plan.step)
        todo = [(i, p) for i, p in plan.items() if not _done(self.run.tree, i)]
        coders = ThreadPoolExecutor(min(MAX_CODERS, len(todo)), thread_name_prefix="coder")
        lanes = ThreadPoolExecutor(self.parts.executor.lanes, thread_name_prefix="lane")
        futures: list[Future[None]] = []
        try:
            coded = [
                coders.submit(self._code, before, plan, node_id, proposal)
                for node_id, proposal in todo
            ]
            futures = [
                lanes.submit(self._run_coded, code, node_id)
                for code, (node_id, _) in zip(coded, todo, strict=True)
            ]
            _wait(futures)
        except BaseException:
            self.cancel.set()
            if self._client is not None:
                self._client.stop()
            raise
        finally:
            coders.shutdown(wait=True, cancel_futures=True)
            lanes.shutdown(wait=True, cancel_futures=True)

    def _code(self, before: Tree, plan: Plan, node_id: int, proposal: Proposal) -> None:
        """Let the coder write a node and commit what it wrote, unless that is done."""
        if node_id in self.run.tree or self.cancel.is_set():
            return
        request = self._request(before, plan, node_id, proposal)
        try:
            draft = self._clean(self.parts.coder.write(request))
        except BudgetReached as limit:
            self._over_budget = limit
            return
        parent = before[proposal.parent]
        node = Node(
            node_id,
            parent.id,
            proposal.stage,
            plan.step,
            hypothesis=draft.hypothesis,
            coder=self.config.coder_name,
            model=draft.model,
        )
        with self._lock:
            files = dict(request.files) if draft.failure else dict(draft.files)
            commit = self._git.commit(node, files, parent.commit)
            self._record("node_created", **_created(node, commit, draft, node.coder))
            self._notify("node_created", run=self.run, node=self.run.tree[node_id])
        if draft.failure:
            self._finish_node(node_id, Outcome.EDIT_FAILED, draft.failure, None)

    def _clean(self, draft: Draft) -> Draft:
        """Take out what must not be stored: secrets from a model, and text that is no text."""
        clean = self._redactor.clean
        draft = replace(
            draft,
            files={name: clean(text) for name, text in draft.files.items()},
            hypothesis=printable(clean(draft.hypothesis))[:MAX_HYPOTHESIS],
        )
        try:
            for text in draft.files.values():
                text.encode("utf-8")
        except UnicodeEncodeError as error:
            return replace(draft, failure=draft.failure or f"edit: the code is not UTF-8: {error}")
        return draft

    def _request(self, before: Tree, plan: Plan, node_id: int, proposal: Proposal) -> CodeRequest:
        parent = before[proposal.parent]
        log_dir = self.run.directory.node_dir(node_id)
        log_dir.mkdir(parents=True, exist_ok=True)
        return CodeRequest(
            task=self.task,
            tree=before,
            parent=parent,
            node_id=node_id,
            stage=proposal.stage,
            sibling=node_id - plan.first_id,
            siblings=len(plan.children),
            files=self._git.files(parent.commit),
            knowledge=self._knowledge,
            seed=node_seed(self.config.seed, node_id),
            log_dir=log_dir,
            read_files=lambda i: self._git.files(before[i].commit),
        )

    def _run_coded(self, coded: Future[None], node_id: int) -> None:
        coded.result()
        tree = self.run.tree
        if self.cancel.is_set() or node_id not in tree or _done(tree, node_id):
            return
        node = self.run.tree[node_id]
        files = self._git.files(node.commit)
        seed = self.config.seed * 1000 + node_id
        log_dir = self.run.directory.node_dir(node_id)
        trial = self.trials.run(
            f"node-{node_id}", files, log_dir, seed, self._listener(f"node-{node_id}")
        )
        if trial.outcome is not None:
            self._finish_node(node_id, trial.outcome, trial.reason, trial)
        elif not self.cancel.is_set():
            raise ExecutorError(f"node {node_id} could not be run: {trial.reason}")

    def _listener(self, job: str) -> Listener:
        return Listener(
            on_started=lambda handle: self._record("job_started", job=job, handle=dict(handle)),
            on_line=lambda metrics, text, at_s: self._on_progress(job, metrics, text, at_s),
        )

    # --- the end of a node ------------------------------------------------------------------

    def _finish_node(
        self, node_id: int, outcome: Outcome, reason: str, trial: Trial | None
    ) -> None:
        node = self.run.tree[node_id]
        report = trial.report if trial else Report(())
        summary = self._summarize(node, outcome, reason, report, trial)
        with self._lock:
            self._record(
                "node_finished",
                id=node_id,
                outcome=str(outcome),
                reason=reason,
                metrics=metrics_to_dict(report.last),
                summary=summary[:MAX_SUMMARY],
                wall_s=round(trial.execution.wall_s, 3) if trial else None,
            )
            node = self.run.tree[node_id]
            self._annotate(node)
            self._notify("node_finished", run=self.run, node=node)

    def _summarize(
        self, node: Node, outcome: Outcome, reason: str, report: Report, trial: Trial | None
    ) -> str:
        log_dir = self.run.directory.node_dir(node.id)
        log_dir.mkdir(parents=True, exist_ok=True)
        calibration = self.run.calibration
        request = SummaryRequest(
            task=self.task,
            node=replace(node, outcome=outcome, reason=reason, metrics=report.last),
            parent=self.run.tree[node.parent or 0],
            report=report,
            execution=trial.execution if trial else None,
            stdout=read_tail(log_dir / "rank0.stdout.log"),
            stderr=read_tail(log_dir / "rank0.stderr.log"),
            start_ms=calibration.start_ms if calibration else None,
            log_dir=log_dir,
        )
        text = self._redactor.clean(self.parts.summarizer.summarize(request))
        write_atomic(log_dir / "summary.md", text, sync=False)
        return text

    def _annotate(self, node: Node) -> None:
        lines = [f"Outcome: {node.outcome}"]
        if node.reason:
            lines.append(f"Reason: {node.reason}")
        if node.metrics:
            lines.append(f"Val-loss: {node.metrics.val_loss:.4f}")
            lines.append(f"Train-time-ms: {node.metrics.train_time_ms}")
        if (value := self.run.node_fsr(node)) is not None:
            lines.append(f"FSR: {value:.4f}")
        self._git.annotate(node.commit, "\n".join(lines) + "\n", at=node.id)

    # --- journal and observers --------------------------------------------------------------

    def _record(self, kind: str, **facts: Any) -> None:
        event = self._redactor.tree({"type": kind, "at": round(time.time(), 3), **facts})
        with self._lock:
            self._journal.append(event)
            self.run.apply(event)
            self._on_event(event)

    def _notify(self, hook: str, **facts: Any) -> None:
        try:
            self.plugins.notify(hook, self._on_warning, **facts)
        except StopRun as stop:
            self._stop = stop

    def _finish(self, status: str) -> str:
        self._record("run_finished", status=status)
        self._notify("run_finished", run=self.run, status=status)
        return status


def step_rng(seed: int, step: int) -> random.Random:
    """Return the only source of chance of a step, given the seed of the run."""
    return random.Random(f"{seed}/{step}")


def node_seed(seed: int, node_id: int) -> int:
    """Return the seed of a node's own, given that of the run."""
    return random.Random(f"{seed}/node/{node_id}").getrandbits(63)


def takes_reference(config: RunConfig, executor: Executor) -> bool:
    """Whether the times of both records are the manifest's, so that nothing is measured."""
    return config.calibration == "reference" or bool(executor.smoke_steps)


def root_node(task: Task) -> Node:
    """Return node 0 of a task before its outcome is known."""
    title = f"Record {task.start.index}: {task.start.title}"
    return Node(0, None, Stage.ROOT, 0, hypothesis=title)


def root_metrics(task: Task, calibration: Calibration) -> Metrics:
    """Return what a calibration says of node 0: the median time, and a middle loss."""
    losses = calibration.start_losses
    loss = sorted(losses)[len(losses) // 2] if losses else task.rules.target
    return Metrics(0, None, loss, round(calibration.start_ms))


def _done(tree: Tree, node_id: int) -> bool:
    return node_id in tree and tree[node_id].outcome is not Outcome.PENDING


def _created(node: Node, commit: str, draft: Draft, coder: str) -> dict[str, Any]:
    return {
        "id": node.id,
        "parent": node.parent,
        "stage": str(node.stage),
        "step": node.step,
        "commit": commit,
        "hypothesis": draft.hypothesis,
        "coder": coder,
        "model": draft.model,
        "notes": dict(draft.notes),
    }


def _wait(futures: Sequence[Future[None]]) -> None:
    """Wait for all; raise the first error as soon as it is there."""
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future.done():
            future.result()
    wait(futures)
