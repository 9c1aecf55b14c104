"""Judge the nodes of a run, and see what a judge's scores are worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedkit.core.assemble import make_component
from speedkit.core.components import Judge, Judgement, JudgeRequest, Services
from speedkit.core.config import RunConfig, load_config
from speedkit.core.errors import BudgetReached, PluginError, SpeedkitError, UsageError
from speedkit.core.files import write_json
from speedkit.core.llm_types import LLMRefused, LLMStopped
from speedkit.core.node import Node, Outcome
from speedkit.core.paths import cache_dir
from speedkit.core.plugins import Plugins
from speedkit.core.task import Task, find_task
from speedkit.plugins.judges._hunks import half, transplant

if TYPE_CHECKING:
    from speedkit.core.ledger import Totals
    from speedkit.core.llm import LLM
    from speedkit.core.run import Run

DEFAULT_JUDGE = "diff"
"""The judge that is used if none is named; it needs no model."""
UNCODED = (Outcome.PENDING, Outcome.EDIT_FAILED)
"""Outcomes of nodes whose code is not there, or is their parent's."""

OnJudged = Callable[[int, Judgement, Path], None]
OnFailed = Callable[[int, SpeedkitError], None]

# After these the next node would fare no better.
_FATAL = (BudgetReached, LLMRefused, LLMStopped, UsageError)


# --- the nodes of a run -----------------------------------------------------------------


def judge_run(
    path: str | Path,
    nodes: Iterable[int] | None = None,
    *,
    config: RunConfig | None = None,
    plugins: Plugins | None = None,
    on_judged: OnJudged = lambda node, judgement, path: None,
    on_failed: OnFailed | None = None,
    on_spent: Callable[[Totals], None] = lambda totals: None,
    **settings: Any,
) -> dict[int, Judgement]:
    """Score how much of the human change nodes of a run reproduced.

    Each score is on disk, as ``nodes/NNNN/judge-NAME.json`` in the run directory, before the
    next node is judged. A score that was there is replaced.

    Args:
        path: the run directory; it may belong to a run that is under way.
        nodes: ids of nodes; by default the best valid one.
        config: a checked configuration; otherwise it is made from ``settings``.
        plugins: the plugins to use; by default those the configuration names.
        on_judged: told of each node, its judgement and the file.
        on_failed: told of each node that could not be judged; by default that is the end.
        on_spent: told at the end what models have cost, if any was asked.
        settings: configuration keys, for example ``judge="llm"``, ``model="openai/gpt-4.1"``,
            ``options={"judge": {"tries": 5}}``.

    Returns:
        The judgements by node.

    Raises:
        SpeedkitError: a node cannot be judged.
    """
    from speedkit.api import open_state

    run = open_state(Path(path))
    chosen = _nodes(run, nodes)
    config = config or load_config({"task": run.directory.manifest["config"]["task"], **settings})
    found: dict[int, Judgement] = {}
    with judging(run.task, config, plugins, on_spent) as bench:
        for node in chosen:
            try:
                judgement, file = bench.judge_node(run, node)
            except _FATAL:
                raise
            except SpeedkitError as error:
                if on_failed is None:
                    raise
                on_failed(node.id, error)
            else:
                found[node.id] = judgement
                on_judged(node.id, judgement, file)
    return found


def judgeable(run: Run) -> list[Node]:
    """Return the nodes of a run that have code of their own."""
    return [n for n in run.tree if n.id and n.commit and n.outcome not in UNCODED]


def _nodes(run: Run, ids: Iterable[int] | None) -> list[Node]:
    if ids is None:
        if run.best is None:
            raise UsageError(f"{run.directory.path} has no valid node yet, so none is the best")
        return [run.best]
    nodes = []
    for node_id in ids:
        if node_id not in run.tree:
            raise UsageError(f"{run.directory.path} has no node {node_id}")
        nodes.append(run.tree[node_id])
    return nodes


@dataclass(frozen=True)
class Bench:
    """A judge at work."""

    name: str
    judge: Judge
    origin: Mapping[str, Any]

    def judge_node(self, run: Run, node: Node) -> tuple[Judgement, Path]:
        """Score a node of a run; return the judgement and the file it is kept in."""
        from speedkit.core.history import GitHistory

        history = GitHistory(run.directory.path / "repo")
        try:
            start, agent = (history.files(n.commit) for n in (run.tree.root, node))
        finally:
            history.close()
        folder = run.directory.node_dir(node.id)
        folder.mkdir(parents=True, exist_ok=True)
        judgement = self.score(run.task, start, agent, folder / f"judge-{self.name}")
        facts = {"task": run.task.name, "node": node.id, "commit": node.commit}
        path = folder / f"judge-{self.name}.json"
        write_json(path, {**self._as_json(judgement), **facts})
        return judgement, path

    def score(
        self, task: Task, start: Mapping[str, str], agent: Mapping[str, str], log_dir: Path
    ) -> Judgement:
        """Score code against the target record of a task.

        Raises:
            PluginError: the judge returned no score.
            SpeedkitError: the code cannot be judged.
        """
        human = {**start, task.script: task.target.read()}
        judgement = self.judge.judge(JudgeRequest(task, start, human, agent, log_dir))
        if not (math.isfinite(judgement.score) and 0 <= judgement.score <= 1):
            raise PluginError(f"judge {self.name} returned {judgement.score} for a score in [0, 1]")
        return judgement

    def _as_json(self, judgement: Judgement) -> dict[str, Any]:
        return {
            "score": judgement.score,
            "table": [dict(row) for row in judgement.table],
            "details": dict(judgement.details),
            "judge": dict(self.origin),
            "judged": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


@contextmanager
def judging(
    task: Task,
    config: RunConfig,
    plugins: Plugins | None = None,
    on_spent: Callable[[Totals], None] = lambda totals: None,
) -> Iterator[Bench]:
    """Make the judge that a configuration names, and close its model in the end.

    Raises:
        ConfigError: there is no such judge, or its options are wrong.
    """
    plugins = plugins or Plugins(config.load, config.block)
    name = config.judge or DEFAULT_JUDGE
    judge: Judge = make_component(config, plugins, "judge", name)
    clients: list[LLM] = []

    def llm() -> LLM:
        from speedkit.core.llm import LLM

        if not clients:
            clients.append(LLM(config.llm_settings()))
        return clients[0]

    registration = plugins.find("judge", name)
    origin = {
        "name": registration.name,
        "plugin": registration.origin.plugin,
        "distribution": registration.origin.distribution,
        "version": registration.origin.version,
        "options": judge.options.model_dump(mode="json"),
        "model": config.model if judge.needs_model else None,
    }
    judge.bind(Services(task=task, seed=config.seed, llm=llm))
    try:
        yield Bench(registration.name, judge, origin)
    finally:
        for client in clients:
            client.close()
            on_spent(client.ledger.totals)


# --- what a judge's scores are worth ----------------------------------------------------

CASES = ("oracle", "half", "other", "unchanged")
"""What a judge is tried on: the whole change, half of it, another one, none."""


@dataclass(frozen=True)
class Case:
    """A script whose score is known in advance.

    Attributes:
        name: one of :data:`CASES`.
        source: the script; None where the task has no such case.
        note: what it is made of, or why there is none.
    """

    name: str
    source: str | None
    note: str


@dataclass(frozen=True)
class Scored:
    """What a judge made of a case; ``score`` is None where there was nothing to judge."""

    task: str
    case: str
    score: float | None
    note: str


@dataclass(frozen=True)
class Separation:
    """How well a judge tells the human change from none and from another.

    Attributes:
        scores: every case of every task.
        auc: probability that a whole change scores over one that is not there (``unchanged``,
            ``other``), ties counting half; None where one side is empty.
        auc_half: the same for half of the change.
    """

    judge: str
    scores: tuple[Scored, ...]
    auc: float | None
    auc_half: float | None

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def calibrate_judge(
    tasks: Sequence[str],
    *,
    config: RunConfig | None = None,
    plugins: Plugins | None = None,
    on_scored: Callable[[Scored], None] = lambda scored: None,
    on_spent: Callable[[Totals], None] = lambda totals: None,
    **settings: Any,
) -> Separation:
    """Let a judge score changes whose score is known: the human's, half of it, another, none.

    Args:
        tasks: names of tasks both of whose records have a script.
        config: a checked configuration; otherwise it is made from ``settings``.
        plugins: the plugins to use; by default those the configuration names.
        on_scored: told of each score as it comes.
        on_spent: told at the end what models have cost, if any was asked.
        settings: configuration keys, as for :func:`judge_run`.

    Raises:
        UsageError: no task was given.
        SpeedkitError: a script is missing, or the judge failed.
    """
    if not tasks:
        raise UsageError("name at least one task to try the judge on, for example mini/1")
    found = [find_task(name) for name in tasks]
    config = config or load_config({"task": tasks[0], **settings})
    scores: list[Scored] = []
    with judging(found[0], config, plugins, on_spent) as bench:
        for task in found:
            for case in cases(task):
                scores.append(_scored(bench, task, case))
                on_scored(scores[-1])
    return _separation(bench.name, scores)


def cases(task: Task) -> list[Case]:
    """Return what a judge of a task is tried on.

    Raises:
        FamilyError: a script is missing.
    """
    start, target = task.start.read(), task.target.read()
    made = {
        "oracle": Case("oracle", target, f"record {task.target.index} itself"),
        "half": _half(task, start, target),
        "other": _other(task, start),
        "unchanged": Case("unchanged", start, f"record {task.start.index} itself"),
    }
    return [made[name] for name in CASES]


def _half(task: Task, start: str, target: str) -> Case:
    found = half(start, target, task.name)
    if found is None:
        return Case("half", None, "the change cannot be halved")
    text, some, all_of_them = found
    return Case("half", text, f"{some} of {all_of_them} hunks")


def _other(task: Task, start: str) -> Case:
    """Make the change of the next task that fits somewhere, counting in a circle."""
    ids = sorted(task.family.tasks)
    place = ids.index(task.id)
    for other_id in (*ids[place + 1 :], *ids[:place]):
        other = task.family.tasks[other_id]
        if other.start.has_script() and other.target.has_script():
            text, some, all_of_them = transplant(other.start.read(), other.target.read(), start)
            if some:
                return Case("other", text, f"{some} of {all_of_them} hunks of {other.name}")
    return Case("other", None, "no other task has a hunk that fits")


def _scored(bench: Bench, task: Task, case: Case) -> Scored:
    if case.source is None:
        return Scored(task.name, case.name, None, case.note)
    folder = cache_dir() / "judge" / bench.name / f"{task.family.name}-{task.id}" / case.name
    judgement = bench.score(task, task.start_files(), {task.script: case.source}, folder)
    return Scored(task.name, case.name, judgement.score, case.note)


def _separation(judge: str, scores: Sequence[Scored]) -> Separation:
    by_case = {
        name: [s.score for s in scores if s.case == name and s.score is not None] for name in CASES
    }
    absent = by_case["other"] + by_case["unchanged"]
    return Separation(
        judge, tuple(scores), auc(by_case["oracle"], absent), auc(by_case["half"], absent)
    )


def auc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Return the probability that a positive is over a negative, ties counting half.

    None where one side is empty.
    """
    if not positive or not negative:
        return None
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / (len(positive) * len(negative))
