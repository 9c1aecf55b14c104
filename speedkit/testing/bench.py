"""What the checks put before a component: a task, trees of every shape, requests, folders."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedkit.core.components import CodeRequest, Component, Proposal, Services
from speedkit.core.metrics import Metrics
from speedkit.core.node import Node, Outcome, Stage, Tree

if TYPE_CHECKING:
    from speedkit.core.llm import LLM
    from speedkit.core.task import Task

SEED = 7
TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 12, in <module>
    args = undefined()
NameError: name 'undefined' is not defined"""
OUTCOMES = (
    Outcome.VALID,
    Outcome.BUGGY,
    Outcome.VALID,
    Outcome.INVALID,
    Outcome.QUARANTINED,
    Outcome.EDIT_FAILED,
    Outcome.STOPPED,
)


class WrongAnswerError(Exception):
    """A component's answer is of a kind that a check cannot go on with; the message says so."""


@dataclass
class Bench:
    """One component under test, and what it needs.

    Attributes:
        options: values that it is made with.
        folder: below which every check gets new folders.
        llm: gives the client for language models.
    """

    cls: type[Component]
    options: Mapping[str, Any]
    task: Task
    folder: Path
    llm: Callable[[], LLM]
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def make(self) -> Any:
        """Return a new component, with its options checked and bound to the services of a run."""
        component = self.cls(self.cls.Options.model_validate(dict(self.options)))
        component.bind(Services(task=self.task, seed=SEED, llm=self.llm))
        return component

    def new_folder(self, name: str) -> Path:
        """Return a new empty folder."""
        path = self.folder / f"{next(self._numbers):03d}-{name}"
        path.mkdir()
        return path

    # --- trees ----------------------------------------------------------------------------

    def root(self) -> Node:
        """Return node 0, finished."""
        time_ms = round(self.task.start.time_ms or 10_000)
        metrics = Metrics(100, 100, self.task.rules.target, time_ms)
        return Node(0, None, Stage.ROOT, 0, "0" * 40, "The start.", Outcome.VALID, metrics=metrics)

    def node(self, node_id: int, proposal: Proposal, step: int, outcome: Outcome) -> Node:
        """Return a finished node as the search would have it."""
        rng = random.Random(node_id)
        root_ms = self.root().train_time_ms or 1
        target = self.task.rules.target
        loss = {Outcome.INVALID: target * 1.5, Outcome.STOPPED: target * 3}.get(outcome, target)
        ran = outcome not in (Outcome.BUGGY, Outcome.EDIT_FAILED, Outcome.DROPPED)
        time_ms = round(root_ms * rng.uniform(0.4, 1.2))
        is_valid = outcome is Outcome.VALID
        return Node(
            node_id,
            proposal.parent,
            proposal.stage,
            step,
            commit=f"{node_id:040x}",
            hypothesis=f"Idea {node_id}: change one number.",
            outcome=outcome,
            reason="" if is_valid else f"made to be {outcome}",
            metrics=Metrics(100, 100, loss, time_ms) if ran else None,
            summary=TRACEBACK if outcome is Outcome.BUGGY else f"It was {outcome}.",
            coder="kit",
            wall_s=1.5 if ran else None,
        )

    def tree(self, outcomes: Iterable[Outcome] = OUTCOMES, *, width: int = 2) -> Tree:
        """Return a tree in which each node but the last ones has ``width`` children."""
        tree = Tree([self.root()])
        for node_id, outcome in enumerate(outcomes, start=1):
            parent = (node_id - 1) // width
            stage = Stage.DEBUG if tree[parent].is_buggy else Stage.IMPROVE
            proposal = Proposal(parent, stage if parent else Stage.DRAFT)
            tree.put(self.node(node_id, proposal, node_id, outcome))
        return tree

    # --- code -----------------------------------------------------------------------------

    def files(self, node_id: int) -> dict[str, str]:
        """Return the editable files of a node: the start record's with a comment."""
        files = self.task.start_files()
        if node_id:
            files[self.task.script] += f"# node {node_id}\n"
        return files

    def request(self, tree: Tree, parent: int, stage: Stage, **changes: Any) -> CodeRequest:
        """Return what a coder is asked for a child of a node."""
        node_id = changes.pop("node_id", max(n.id for n in tree) + 1)
        request = CodeRequest(
            task=self.task,
            tree=tree,
            parent=tree[parent],
            node_id=node_id,
            stage=stage,
            sibling=0,
            siblings=1,
            files=self.files(parent),
            knowledge=(),
            seed=random.Random(node_id).getrandbits(63),
            log_dir=self.new_folder(f"node-{node_id}"),
            read_files=self.files,
        )
        return replace(request, **changes)

    def requests(self) -> list[CodeRequest]:
        """Return a draft, an improvement, a repair, and one of several siblings."""
        tree = self.tree()
        return [
            self.request(Tree([self.root()]), 0, Stage.DRAFT),
            self.request(tree, 1, Stage.IMPROVE),
            self.request(tree, 2, Stage.DEBUG),
            self.request(tree, 3, Stage.IMPROVE, sibling=2, siblings=3),
        ]


def one_line(text: str, limit: int = 300) -> str:
    """Return a text on one line, cut to ``limit`` characters."""
    line = " ".join(text.split()) or "no message"
    return line if len(line) <= limit else line[: limit - 1] + "…"


def shown(value: object) -> str:
    """Return a value as it would be written, on one line and not long."""
    return one_line(repr(value), 80)


def listed(names: Iterable[object], most: int = 4) -> str:
    """Return names with commas, and how many more there are."""
    found: Sequence[str] = [str(name) for name in names]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
