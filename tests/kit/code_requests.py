"""Requests for the tests of coders and prompts: the toy task and a tree of any shape."""

from __future__ import annotations

from pathlib import Path

from speedkit.core.components import CodeRequest, Services
from speedkit.core.metrics import Metrics
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.core.task import Task, find_task

TOY = Path(__file__).resolve().parent.parent / "families" / "toy"


def toy_task() -> Task:
    """Return the task that leads from the slow script to the fast one."""
    return find_task(f"{TOY}/1")


def node(id: int, parent: int | None = 0, **fields) -> Node:
    """Return a node; valid with a time unless told otherwise."""
    defaults = {
        "stage": Stage.IMPROVE,
        "step": id,
        "hypothesis": f"idea {id}",
        "outcome": Outcome.VALID,
        "metrics": Metrics(100, 100, 0.9, 10000 - 100 * id),
        "summary": f"summary {id}",
    }
    return Node(id, parent, **{**defaults, **fields})


ROOT = Node(0, None, Stage.ROOT, 0, outcome=Outcome.VALID, metrics=Metrics(100, 100, 0.9, 10000))


def code_request(log_dir: Path, nodes=(), **fields) -> CodeRequest:
    """Return a request for a draft from node 0, or for what ``fields`` say."""
    tree = Tree([ROOT, *nodes])
    task = fields.pop("task", None) or toy_task()
    files = fields.pop("files", None) or task.start_files()
    defaults = {
        "task": task,
        "tree": tree,
        "parent": tree[fields.pop("parent", 0)],
        "node_id": len(tree),
        "stage": Stage.DRAFT,
        "sibling": 0,
        "siblings": 1,
        "files": files,
        "knowledge": (),
        "seed": 1,
        "log_dir": log_dir,
        "read_files": lambda _: files,
    }
    return CodeRequest(**{**defaults, **fields})


def services(llm, task: Task | None = None) -> Services:
    """Return services whose model is ``llm``."""
    return Services(task=task or toy_task(), seed=0, llm=lambda: llm)
