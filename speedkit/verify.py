"""Measure again what a search claims: interleaved pairs, fresh seeds, a verdict."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from speedkit import __version__
from speedkit.core.assemble import Components, assemble
from speedkit.core.calibration import Calibration
from speedkit.core.components import Services
from speedkit.core.config import RunConfig, check_config
from speedkit.core.errors import FamilyError, RunDirectoryError, UsageError
from speedkit.core.history import GitHistory, RunDirectory, holding
from speedkit.core.inspection import Inspector
from speedkit.core.interrupt import signals_as_interrupt
from speedkit.core.node import Node, Outcome
from speedkit.core.nodework import training_seed
from speedkit.core.paired import noise_floor
from speedkit.core.plugins import Plugins
from speedkit.core.redact import Redactor
from speedkit.core.run import Run
from speedkit.core.trial import Trials
from speedkit.verifying.account import (
    CANDIDATE,
    START,
    TARGET,
    Account,
    Book,
    attempts,
    check_same,
)
from speedkit.verifying.bench import (
    Bench,
    Cancelled,
    OnLine,
    OnRun,
    check_ablation,
    counts_again,
)
from speedkit.verifying.decision import CONFIRMED, REFUTED, UNDECIDED, Next, Rules, decide
from speedkit.verifying.results import NodeVerification, Results, plain, result_of
from speedkit.verifying.sequential import Plan

__all__ = [
    "CONFIRMED",
    "REFUTED",
    "UNDECIDED",
    "NodeVerification",
    "Plan",
    "Verification",
    "noise_floor",
    "verify",
    "verify_best",
]

FILE = "verify.json"
"""Name of the file of results in the run directory."""
FOLDER = "verify"
"""Name of the folder of journals and logs in the run directory."""
CLAIMS = (Outcome.VALID, Outcome.QUARANTINED, Outcome.INVALID)
"""Outcomes of nodes that ran to their end, so that there is a time to measure again."""
BUSY = 20.0
"""Per cent of this machine's processors that others may use without a warning."""

OnWarning = Callable[[str], None]


@dataclass(frozen=True)
class Verification:
    """What came of verifying nodes of a run.

    Attributes:
        path: the run directory.
        task: name of the task.
        nodes: results by id, in the order in which they were asked for.
    """

    path: Path
    task: str
    nodes: Mapping[int, NodeVerification]

    def __getitem__(self, node: int) -> NodeVerification:
        return self.nodes[node]


def verify(
    path: str | os.PathLike[str],
    nodes: Iterable[int] | None = None,
    *,
    pairs: int | None = None,
    max_pairs: int | None = None,
    spending: str | None = None,
    target: bool | None = None,
    ablation: bool = False,
    fresh: bool = False,
    plugins: Plugins | None = None,
    on_run: OnRun = lambda node, pair, measured: None,
    on_line: OnLine = lambda job, metrics, text, at_s: None,
    on_warning: OnWarning = lambda text: None,
) -> Verification:
    """Measure nodes of a run again, in pairs with the start record, until there is a verdict.

    Each pair is on disk before the next one begins. A verification that was ended goes on with
    the pairs that it has; one that has its verdict is not measured again. The results are in
    ``RUN/verify.json``, logs below ``RUN/verify/``; the journal of the run is not touched.

    Args:
        path: the run directory; no controller may be at work on it.
        nodes: ids of nodes; by default the best valid one.
        pairs: pairs before the first look, default 4.
        max_pairs: pairs at most, default 12.
        spending: how the error is spent over the looks: ``pocock`` (default) or
            ``obrien-fleming``.
        target: run the target record in each pair as well, so that FSR does not depend on the
            run's calibration.
        ablation: also train on shuffled tokens, before a node is confirmed.
        fresh: begin anew, and keep earlier pairs only for the record.
        plugins: the plugins to use; by default those of the run.
        on_run: told of each run: node, number of the pair, what was measured.
        on_line: told of each line of rank 0: job, metrics or None, text, seconds.
        on_warning: receives lines for the user.

    Raises:
        SpeedkitError: with one line that says what to do.
        KeyboardInterrupt: after the running job was ended; whole pairs are kept.
    """
    directory = RunDirectory(Path(path))
    Plan.make(pairs, max_pairs, spending, target)  # says what is wrong before anything else
    asked = {"pairs": pairs, "max_pairs": max_pairs, "spending": spending, "target": target}
    with _alone(directory):
        run = _open(directory)
        chosen = _claimants(run, nodes)
        session = _Session(run, asked, ablation, fresh, plugins, on_run, on_line, on_warning)
        return Verification(directory.path, run.task.name, session.verify_all(chosen))


def verify_best(path: str | os.PathLike[str], **settings: Any) -> Verification | None:
    """Verify the best node of a run that has just ended; None if it has no valid node.

    Args:
        settings: as for :func:`verify`.
    """
    if _open(RunDirectory(Path(path))).best is None:
        return None
    return verify(path, **settings)


# --- what is asked for ------------------------------------------------------------------


@contextmanager
def _alone(directory: RunDirectory) -> Iterator[None]:
    """Keep controllers and other verifications away from the run."""
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(directory.path))
        except RunDirectoryError as error:
            raise RunDirectoryError(
                f"{error}; its jobs would disturb the timings, so wait until it is over, or: "
                f"speedkit cancel {directory.path}"
            ) from None
        yield


def _open(directory: RunDirectory) -> Run:
    """Fold the journal of a run, and see that its family is what it was."""
    from speedkit.api import check_scripts, stored_task

    try:
        task = stored_task(directory)
    except (FamilyError, UsageError) as error:
        raise UsageError(
            f"the family of {directory.path} is not where it was when the run began: {error}"
        ) from None
    check_scripts(directory, task)
    return Run.open(directory, task)


def _claimants(run: Run, ids: Iterable[int] | None) -> list[Node]:
    """Return the nodes to verify; each must claim a time."""
    path = run.directory.path
    if ids is None:
        if run.best is None:
            raise UsageError(f"{path} has no valid node, so there is nothing to verify")
        return [run.best]
    nodes = []
    for node_id in dict.fromkeys(ids):
        if node_id not in run.tree:
            raise UsageError(f"{path} has no node {node_id}")
        nodes.append(_claimant(run, run.tree[node_id]))
    return nodes


def _claimant(run: Run, node: Node) -> Node:
    if node.id == 0:
        raise UsageError("node 0 is the start record, which others are compared with")
    if node.outcome not in CLAIMS or node.train_time_ms is None:
        raise UsageError(
            f"node {node.id} of {run.directory.path} never ran to its end ({node.outcome}), so it "
            "claims nothing that could be verified"
        )
    return node


def draw_entropy() -> int:
    """Return what the seeds of a verification follow from; nobody can know it before."""
    return secrets.randbits(64)


def _used_seeds(run: Run, seed: int) -> set[int]:
    """Return the seeds that the search has used, for nodes and for its calibration."""
    calibration = run.calibration
    count = len(calibration.start_runs) if calibration else 0
    return {training_seed(seed, node) for node in run.tree} | set(range(1, count + 1))


# --- the work ---------------------------------------------------------------------------


@dataclass
class _Session:
    """One call of :func:`verify`, with the run directory held."""

    run: Run
    asked: Mapping[str, Any]
    ablation: bool
    fresh: bool
    plugins: Plugins | None
    on_run: OnRun
    on_line: OnLine
    on_warning: OnWarning
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def folder(self) -> Path:
        """Where journals and logs go."""
        return self.run.directory.path / FOLDER

    @cached_property
    def redactor(self) -> Redactor:
        """Takes secrets out of what is stored, as that of the run does."""
        return check_config(self.run.directory.manifest["config"]).redactor()

    @property
    def _results(self) -> Results:
        return Results(self.run.directory.path / FILE, self.run.directory.run_id, self.run.task)

    @property
    def calibration(self) -> Calibration:
        """Times of the run; a node that claims something has been compared with them."""
        calibration = self.run.calibration
        assert calibration is not None
        return calibration

    def verify_all(self, nodes: Sequence[Node]) -> dict[int, NodeVerification]:
        """Verify nodes, one after the other, in a thread that an interrupt can end."""
        config = check_config(self.run.directory.manifest["config"])
        parts = self._parts(config)
        if self.asked["target"] and not self.run.task.target.has_script():
            raise UsageError(f"record {self.run.task.target.index} has no script: no --target")
        trials = self._trials(parts)
        if self.ablation:
            check_ablation(trials.data)
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as pool:
            future = pool.submit(self._verify_all, nodes, config, parts, trials)
            try:
                with signals_as_interrupt():
                    return future.result()
            except (KeyboardInterrupt, Cancelled):
                self.cancel.set()
                raise KeyboardInterrupt from None

    def _parts(self, config: RunConfig) -> Components:
        """Return executor and guards as the run had them."""
        parts = assemble(config, self.plugins or Plugins(config.load, config.block))
        if parts.executor.smoke_steps:
            raise UsageError("this was a smoke run, whose times mean nothing")
        parts.bind(Services(task=self.run.task, seed=config.seed, llm=_no_llm))
        return parts

    def _trials(self, parts: Components) -> Trials:
        return Trials(
            task=self.run.task,
            executor=parts.executor,
            run_id=self.run.directory.run_id,
            work_dir=self.folder / "work",
            data=self.run.task.data_folder(),
            cache=self.folder / "cache",  # nodes of the search cannot have left anything there
            cancel=self.cancel,
            artifacts=self.run.task.family.artifacts if parts.guards else (),
        )

    def _verify_all(
        self, nodes: Sequence[Node], config: RunConfig, parts: Components, trials: Trials
    ) -> dict[int, NodeVerification]:
        inspector = Inspector(parts.guards, trials, self.run.task.start_files())
        used = _used_seeds(self.run, config.seed)
        found: dict[int, NodeVerification] = {}
        git = GitHistory(self.run.directory.path / "repo")
        try:
            for node in nodes:
                shutil.rmtree(self.folder / "cache", ignore_errors=True)
                bench = self._bench(node, git, trials, inspector, used)
                found[node.id] = self._verify(node, bench)
                self._results.keep(node.id, found[node.id].details)
        finally:
            git.close()
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
        return found

    def _bench(
        self, node: Node, git: GitHistory, trials: Trials, inspector: Inspector, used: set[int]
    ) -> Bench:
        task = self.run.task
        files: dict[str, Mapping[str, str]] = {
            START: task.start_files(),
            CANDIDATE: git.files(node.commit),
        }
        if task.target.has_script():
            files[TARGET] = {task.script: task.target.read()}
        return Bench(
            node=node.id,
            trials=trials,
            inspector=inspector,
            files=files,
            parent=git.files(self.run.tree[node.parent or 0].commit),
            calibration=self.calibration,
            used=used,
            on_run=self.on_run,
            on_line=self.on_line,
        )

    def _verify(self, node: Node, bench: Bench) -> NodeVerification:
        rules = Rules(
            gate=self.run.task.rules.target,
            calibration=self.calibration,
            nodes=max(1, sum(n.counts for n in self.run.tree)),
            ablation=self.ablation,
            recount=counts_again(bench.trials),
        )
        book = self._book(node, bench)
        work = {
            Next.PAIR: bench.measure_pair,
            Next.ABLATION: bench.ablate,
            Next.RECOUNT: bench.recount,
        }
        try:
            bench.end_left(book)
            step = decide(book.account, rules)
            if isinstance(step, Next):
                self._warn_if_busy(bench)
            while isinstance(step, Next):
                work[step](book)
                step = decide(book.account, rules)
            return result_of(node, book, rules, step)
        finally:
            book.close()

    def _book(self, node: Node, bench: Bench) -> Book:
        """Go on with the latest attempt, or begin one."""
        folder = self.folder / f"{node.id:04d}"
        known = attempts(folder)
        hardware = plain(bench.trials.fingerprint)
        if known and not self.fresh:
            book = Book.open(known[-1], self.redactor)
            check_same(book.account, self.asked, hardware)
            return book
        number = int(known[-1].name) + 1 if known else 1
        account = Account(
            plan=Plan.make(**self.asked),
            entropy=draw_entropy(),
            hardware=hardware,
            code=bench.check_code(),
        )
        self._results.forget(node.id)
        facts = {"node": node.id, "commit": node.commit, "speedkit": __version__}
        return Book.begin(folder / str(number), account, self.redactor, facts)

    def _warn_if_busy(self, bench: Bench) -> None:
        if bench.trials.executor.interpreter is None:
            return  # the scripts are run elsewhere
        import psutil

        share = psutil.cpu_percent(0.3)
        if share > BUSY:
            self.on_warning(
                f"other programs use {share:.0f} % of this machine's processors, so that times "
                "will vary more than they have to"
            )


def _no_llm() -> Any:
    raise UsageError("a guard that asks a language model cannot be asked in a verification")
