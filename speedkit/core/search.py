"""The loop of a search: what is planned when, and how coding and running overlap.

Everything a run knows is folded from its journal, so that a run that was killed goes on
where it stood: planned steps, created nodes and finished nodes are never made again.

In strict order a step begins when the one before it is complete; its children are coded at
once and run as lanes of the executor come free, so that every decision is the one of a
sequential run. With lookahead the next step is planned while jobs run.
"""

from __future__ import annotations

import math
import queue
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from speedkit.core import calibration as calibrations
from speedkit.core.assemble import Components
from speedkit.core.calibration import Calibration
from speedkit.core.components import Executor, KnowledgeEntry, Proposal
from speedkit.core.config import RunConfig
from speedkit.core.errors import BudgetReached, SpeedkitError, blamed
from speedkit.core.history import GitHistory
from speedkit.core.inspection import Inspector
from speedkit.core.interrupt import Interrupt
from speedkit.core.journal import Journal
from speedkit.core.lane_clock import LaneClock
from speedkit.core.ledger import Ledger, ModelCall
from speedkit.core.metrics import Metrics, metrics_to_dict
from speedkit.core.node import Node, Stage
from speedkit.core.nodework import NodeWork, OnProgress, Refusal, created
from speedkit.core.plugins import Plugins
from speedkit.core.recorder import OnEvent, Recorder
from speedkit.core.run import Plan, Run
from speedkit.core.same_code import fingerprint
from speedkit.core.task import Task
from speedkit.core.trial import Trial, Trials

if TYPE_CHECKING:
    from speedkit.core.llm import LLM

MAX_CODERS = 8
"""How many nodes are coded at once."""
MAX_CLOSERS = 8
"""How many nodes are summarized at once."""
LOOK_S = 0.1
"""Seconds between two looks at whether it is time to plan ahead."""
AHEAD = 1.5
"""A step is planned ahead when the lanes have work for so many times the time of coding."""


class Search:
    """One controller at work on a run.

    Args:
        run: the state, folded from the journal; empty for a new run.
        journal: open for writing.
        on_event: receives every event after it is on disk.
        on_progress: receives lines of running jobs: job, metrics, text, seconds.
        on_warning: receives a line for the user.
        interrupt: through which another thread may end the run.
        purse: keeps limits on model calls together with other runs.
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
        interrupt: Interrupt | None = None,
        purse: Ledger | None = None,
    ) -> None:
        self.run, self.config, self.parts = run, config, components
        self.task = run.task
        self.cancel = threading.Event()
        redactor = config.redactor()
        self._recorder = Recorder(run, journal, plugins, on_event, on_warning, redactor)
        self._on_progress = on_progress
        self._client: LLM | None = None
        self._git = GitHistory(run.directory.path / "repo")
        self._budget = config.budget(self.task.family)
        self._clock: LaneClock | None = None
        self._interrupt, self._purse = interrupt or Interrupt(), purse
        self._floor: _Floor | None = None

    def go(self) -> str:
        """Search until the budget is spent; return the status.

        Returns:
            ``finished``, or ``stopped`` when an observer asked for it.

        Raises:
            KeyboardInterrupt: after running jobs were ended and the journal closed the run
                as ``interrupted``; also when another thread asked for that.
            BudgetReached: a limit on model calls; jobs under way were finished.
            SpeedkitError: the run cannot go on; the journal says ``failed``.
        """
        try:
            with self._interrupt.heard_by(self._end):
                self._work()
            return self._finish("stopped" if self._recorder.stop else "finished")
        except KeyboardInterrupt:
            self._finish("interrupted")
            raise
        except BudgetReached:
            self._finish("stopped")
            raise
        except SpeedkitError as error:
            if self._interrupt.asked:  # a calibration that was cut short, for example
                self._finish("interrupted")
                raise KeyboardInterrupt from error
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

    def _work(self) -> None:
        work = self._prepare()
        self._clock = LaneClock(self.parts.executor.lanes)
        self._floor = _Floor(self, work, self._clock)
        self._interrupt.check()
        self._floor.run_all()

    def _end(self) -> None:
        """End the run from another thread: its own one raises, before it sees what was cut off."""
        if self._floor is not None:
            self._floor.interrupt()
        self.abort()

    def llm(self) -> LLM:
        """Return the client for language models, made on first use.

        What an earlier controller of the run spent counts towards its limits.
        """
        with self._recorder.lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def _make_client(self) -> LLM:
        from speedkit.core.llm import LLM

        settings = self.config.llm_settings()
        record = self._recorder.record
        ledger = Ledger(
            max_cost=settings.max_cost,
            max_tokens=settings.max_tokens,
            on_intent=lambda intent: record("model_intent", intent=intent.as_json()),
            on_call=self._on_model_call,
            purse=self._purse,
        )
        ledger.restore(self.run.calls, self.run.intents)
        return LLM(settings, ledger=ledger)

    def _on_model_call(self, call: ModelCall) -> None:
        self._recorder.record("model_called", call=call.as_json())
        self._recorder.notify("model_called", call=call.as_json())

    def abort(self) -> None:
        """Have running jobs ended and model calls given up."""
        self.cancel.set()
        if self._client is not None:
            self._client.stop()

    # --- before the first step ------------------------------------------------------------

    def _prepare(self) -> NodeWork:
        self._reap()
        if self.config.model is not None:
            self.llm().check()
        self._recorder.record(
            "run_started",
            run_id=self.run.directory.run_id,
            task=self.task.name,
            notes=list(self.task.notes()),
        )
        self._recorder.notify("run_started")
        work = self._make_work()
        if self.run.calibration is None:
            calibration = self._calibrate(work).to_dict()
            self._recorder.record("calibrated", calibration=calibration)
        self._mend_history(work)
        if 0 not in self.run.tree:
            self._create_root()
        if not self.run.tree.root.is_valid:
            self._finish_root(work)
        work.recall_codes()
        return work

    def _mend_history(self, work: NodeWork) -> None:
        """Let git say what the journal says: a kill may have come between the two."""
        for node in self.run.tree:
            self._git.set_ref(node.id, node.commit)
            if self.run.is_finished(node.id) and not self._git.has_note(node.commit):
                work.annotate(node)

    def _make_work(self) -> NodeWork:
        trials = Trials(
            task=self.task,
            executor=self.parts.executor,
            run_id=self.run.directory.run_id,
            work_dir=self.run.directory.work_dir,
            data=self.task.data_folder(allow_short=bool(self.parts.executor.smoke_steps)),
            cache=self.run.directory.path / "cache",
            cancel=self.cancel,
            artifacts=self.task.family.artifacts if self.parts.guards else (),
            redactor=self._recorder.redactor,
        )
        knowledge: list[KnowledgeEntry] = []
        for source in self.parts.knowledge:
            with blamed("knowledge source", type(source).__name__):
                knowledge += source.entries(self.task)
        return NodeWork(
            config=self.config,
            parts=self.parts,
            recorder=self._recorder,
            git=self._git,
            trials=trials,
            inspector=Inspector(self.parts.guards, trials, self.task.start_files()),
            knowledge=tuple(knowledge),
            on_progress=self._on_progress,
            cancel=self.cancel,
        )

    def _reap(self) -> None:
        """End what a dead controller left running, but for jobs that can be gone on with."""
        adopts = type(self.parts.executor).adopt is not Executor.adopt
        for job, handle in list(self.run.handles.items()):
            if adopts and job.startswith("node-"):
                continue
            self.parts.executor.reap(handle)
            self._recorder.record("job_ended", job=job, ending="lost")

    def _calibrate(self, work: NodeWork) -> Calibration:
        if takes_reference(self.config, self.parts.executor):
            return calibrations.from_reference(self.task)
        if self.config.calibration == "auto":
            stored = calibrations.load(self.task, work.trials.fingerprint)
            if stored and len(stored.start_runs) >= (self.config.calibration_runs or 1):
                return stored
        folder = self.run.directory.path / "calibration"
        runs = calibration_runs(self.config, self.task)
        on_run = partial(self._on_calibration_run, runs)
        made = calibrations.measure(self.task, work.trials, folder, runs, on_run, work.listener)
        try:
            calibrations.save(self.task, made)
        except OSError as error:  # the cache is for later runs; this one has its times
            self._recorder.warn(f"the times of the records are not kept for later runs: {error}")
        return made

    def _on_calibration_run(self, of: int, which: str, k: int, trial: Trial) -> None:
        self._recorder.record(
            "calibration_run",
            record=which,
            run=k,
            of=of,
            metrics=metrics_to_dict(trial.metrics),
            reason=trial.reason,
            wall_s=round(trial.execution.wall_s, 3),
        )

    def _create_root(self) -> None:
        files = self.task.start_files()
        root = root_node(self.task, fingerprint(files))
        commit = self._git.commit(root, files, None)
        self._recorder.record("node_created", **created(root, commit))

    def _finish_root(self, work: NodeWork) -> None:
        """Node 0 is the start record; its outcome is the calibration's."""
        calibration = self.run.calibration
        assert calibration is not None
        metrics = root_metrics(self.task, calibration)
        source = calibration.source
        self._recorder.record(
            "node_finished",
            id=0,
            outcome="valid",
            reason="",
            metrics=metrics_to_dict(metrics),
            summary=f"The start record: {metrics.train_time_ms} ms to the target ({source}).",
            wall_s=None,
        )
        work.annotate(self.run.tree.root)

    # --- planning -------------------------------------------------------------------------

    def next_plan(self, *, ahead: bool) -> Plan | None:
        """Ask the scaffold for the next step; None if there is nothing to plan now.

        Args:
            ahead: whether nodes of earlier steps are unfinished.
        """
        tree = self.run.tree
        before = self.run.plan
        first_id = before.first_id + len(before.children) if before else 1
        room = self._room(first_id)
        if room <= 0:
            return None
        step = before.step + 1 if before else 1
        rng = step_rng(self.config.seed, step)
        pending = [i for p in self.run.plans for i, _ in p.items() if not self.run.is_finished(i)]
        with blamed("scaffold", self.config.scaffold):
            children = tuple(self.parts.scaffold.propose(tree.snapshot(), rng))[:room]
            self._check(children, pending)
        if not children:
            return None
        assert ahead or not pending
        self._recorder.record(
            "step_planned",
            step=step,
            first_id=first_id,
            children=[_planned(child) for child in children],
            pending=pending,
        )
        return self.run.plan

    def _room(self, first_id: int) -> int:
        """Return how many nodes may still be planned.

        Nodes that cost nothing do not count, but there may not be more of them than of those
        that do, so that a coder which repeats itself comes to an end.
        """
        free = sum(1 for node in self.run.tree if node.id != 0 and not node.counts)
        planned = first_id - 1
        return min(self._budget - (planned - free), 2 * self._budget - planned)

    def _check(self, children: Sequence[Proposal], pending: Sequence[int]) -> None:
        """Refuse what no scaffold may ask for."""
        for parent in (p for child in children for p in (child.parent, child.other)):
            if parent is not None and (parent not in self.run.tree or parent in pending):
                raise SpeedkitError(
                    f"scaffold {self.config.scaffold} asks for a child of node {parent}, "
                    "which is not finished"
                )

    def _finish(self, status: str) -> str:
        lanes = self._clock.facts() if self._clock else None
        self._recorder.record("run_finished", status=status, lanes=lanes)
        self._recorder.notify("run_finished", status=status)
        return status

    @property
    def is_ending(self) -> bool:
        """Whether an observer asked for the end of the run."""
        return self._recorder.stop is not None


class _Floor:
    """Where the nodes of a run are worked on: coders, porter, lanes and closers, each a queue.

    The main thread plans and hands on; it alone reads ``_done``, into which the others put
    what came of a piece of work.
    """

    def __init__(self, search: Search, work: NodeWork, clock: LaneClock) -> None:
        self.search, self.work, self.clock = search, work, clock
        self.run = search.run
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._busy = 0
        self._uncoded: set[int] = set()
        self._ready: set[int] = set()
        self._entering: set[int] = set()
        self._queued: set[int] = set()
        self._over_budget: BudgetReached | None = None

    def run_all(self) -> None:
        """Do unfinished steps, then plan and do further ones until there are none.

        Raises:
            BudgetReached: a limit on model calls, after what was under way is finished.
        """
        pools = (
            ThreadPoolExecutor(MAX_CODERS, thread_name_prefix="coder"),
            ThreadPoolExecutor(1, thread_name_prefix="porter"),  # one by one: order matters
            ThreadPoolExecutor(self.clock.lanes, thread_name_prefix="lane"),
            ThreadPoolExecutor(MAX_CLOSERS, thread_name_prefix="closer"),
        )
        self._coders, self._porter, self._lanes, self._closers = pools
        with ExitStack() as stack:
            for pool in pools:
                stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            try:
                for plan in list(self.run.plans):
                    self._take_up(plan)
                self._loop()
            except BaseException:
                self.search.abort()
                raise
        if self._over_budget is not None:
            raise self._over_budget

    def interrupt(self) -> None:
        """Let the main thread of the run raise, whatever it waits for."""
        self._done.put(_interrupted)

    def _loop(self) -> None:
        while True:
            self._plan()
            if not self._busy:
                return
            self._take_one()

    def _take_one(self) -> None:
        timeout = LOOK_S if self._may_look_ahead() else None
        try:
            done = self._done.get(timeout=timeout)
        except queue.Empty:
            return
        done()

    # --- planning -------------------------------------------------------------------------

    def _plan(self) -> None:
        while self._is_time():
            plan = self.search.next_plan(ahead=self._busy > 0)
            if plan is None:
                return
            self._take_up(plan)

    def _is_time(self) -> bool:
        if self._over_budget is not None or self.search.is_ending:
            return False
        return not self._busy or (self._may_look_ahead() and self._lanes_run_dry())

    def _may_look_ahead(self) -> bool:
        """Whether another step may be planned while nodes of earlier ones are unfinished."""
        unfinished = sum(not self.run.is_done(plan) for plan in self.run.plans)
        allowed = self.search.parts.scaffold.lookahead
        return 0 < unfinished <= allowed and not self._uncoded and not self._entering

    def _lanes_run_dry(self) -> bool:
        """Whether the lanes will have nothing to do before new nodes can be coded."""
        job_s, coding_s = self.clock.mean_s("running"), self.clock.mean_s("coding")
        waiting = len(self._queued)
        if job_s is None or coding_s is None:
            return waiting == 0
        return waiting * job_s / self.clock.lanes <= AHEAD * coding_s

    def _take_up(self, plan: Plan) -> None:
        """Have the nodes of a step coded, or go on with those that are."""
        known = self.run.tree.as_known(plan.first_id, plan.pending)
        for node_id, proposal in plan.items():
            if self.run.is_finished(node_id):
                continue
            if node_id not in self.run.tree:
                code: Callable[[], None] = partial(self.work.code, known, plan, node_id, proposal)
            else:
                code = _nothing
            self._uncoded.add(node_id)
            self._submit(self._coders, partial(self._code, node_id, code), self._coded, node_id)

    @property
    def _is_strict(self) -> bool:
        """Whether a step is to be decided as if its nodes had come one after the other."""
        return self.search.parts.scaffold.lookahead == 0 and not self.search.config.train_duplicates

    @property
    def _begins_nothing(self) -> bool:
        """Whether the run is to end: what is under way is finished, or cut off."""
        return self.search.cancel.is_set() or self.search.is_ending

    # --- stations, each in a thread of its pool, and what the main thread does after it ----

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        station: Callable[[], Any],
        then: Callable[[int, Any], None],
        node_id: int,
    ) -> None:
        self._busy += 1
        future = pool.submit(station)
        future.add_done_callback(lambda f: self._done.put(partial(self._end, f, then, node_id)))

    def _end(self, future: Future[Any], then: Callable[[int, Any], None], node_id: int) -> None:
        self._busy -= 1
        then(node_id, future.result())

    def _code(self, node_id: int, code: Callable[[], None]) -> bool:
        """Code a node; whether that was done."""
        if self._begins_nothing or self._over_budget is not None:
            return False
        with self.clock.at("coding"):
            try:
                code()
            except BudgetReached as limit:
                self._over_budget = limit
                return False
        return True

    def _coded(self, node_id: int, is_coded: bool) -> None:
        self._uncoded.discard(node_id)
        if is_coded:
            self._ready.add(node_id)
        self._let_in()

    def _let_in(self) -> None:
        """Have coded nodes admitted; in strict order none before an elder sibling is coded.

        Of nodes with the same code only the first to come in is run, and which one that is must
        not depend on how long their coders took.
        """
        elder = min(self._uncoded, default=math.inf) if self._is_strict else math.inf
        for node_id in sorted(i for i in self._ready if i < elder):
            self._ready.discard(node_id)
            self._entering.add(node_id)
            self._submit(self._porter, partial(self._admit, node_id), self._admitted, node_id)

    def _admit(self, node_id: int) -> Refusal | bool:
        """Look at a coded node; whether it is to be run, or why it must not be."""
        if self._begins_nothing or self.work.shares(node_id):
            return False
        return self.work.refusal(node_id) or True

    def _admitted(self, node_id: int, found: Refusal | bool) -> None:
        self._entering.discard(node_id)
        if isinstance(found, Refusal):
            self._submit(
                self._closers, partial(self._refuse, node_id, found), _after_nothing, node_id
            )
        elif found:
            self._queued.add(node_id)
            self._submit(self._lanes, partial(self._execute, node_id), self._executed, node_id)

    def _execute(self, node_id: int) -> Any:
        self._queued.discard(node_id)
        if self._begins_nothing:
            return None
        with self.clock.at("running"):
            return self.work.execute(node_id)

    def _executed(self, node_id: int, result: Any) -> None:
        if result is not None:
            self._submit(
                self._closers, partial(self._close, node_id, result), _after_nothing, node_id
            )

    def _refuse(self, node_id: int, refusal: Refusal) -> None:
        with self.clock.at("summarizing"):
            self.work.refuse(node_id, refusal)

    def _close(self, node_id: int, result: Any) -> None:
        with self.clock.at("summarizing"):
            self.work.close(node_id, *result)


def _interrupted() -> None:
    raise KeyboardInterrupt


def _planned(child: Proposal) -> dict[str, Any]:
    """Return what the journal says of a child; a second parent only where there is one."""
    other = {} if child.other is None else {"other": child.other}
    return {"parent": child.parent, "stage": str(child.stage), **other}


def _nothing() -> None:
    """What coding a node takes that is coded already."""


def _after_nothing(node_id: int, result: Any) -> None:
    """What follows the last station."""


def step_rng(seed: int, step: int) -> random.Random:
    """Return the only source of chance of a step, given the seed of the run."""
    return random.Random(f"{seed}/{step}")


def takes_reference(config: RunConfig, executor: Executor) -> bool:
    """Whether the times of both records are the manifest's, so that nothing is measured."""
    return config.calibration == "reference" or bool(executor.smoke_steps)


def calibration_runs(config: RunConfig, task: Task) -> int:
    """Return how often each record is run in a calibration."""
    return config.calibration_runs or task.family.defaults.calibration_runs or 3


def root_node(task: Task, code: str = "") -> Node:
    """Return node 0 of a task before its outcome is known."""
    title = f"Record {task.start.index}: {task.start.title}"
    if task.start_text is not None:
        title = "The script that was given to start from"
    return Node(0, None, Stage.ROOT, 0, hypothesis=title, code=code)


def root_metrics(task: Task, calibration: Calibration) -> Metrics:
    """Return what a calibration says of node 0: the median time, and a middle loss."""
    losses = calibration.start_losses
    loss = sorted(losses)[len(losses) // 2] if losses else task.rules.target
    return Metrics(0, None, loss, round(calibration.start_ms))
