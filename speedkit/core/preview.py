"""The first prompt of a run, before there is a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from speedkit.core import calibration as calibrations
from speedkit.core.assemble import Components, assemble, task_of
from speedkit.core.components import CodeRequest, Proposal, Services
from speedkit.core.config import RunConfig
from speedkit.core.errors import UsageError
from speedkit.core.llm_types import Message, estimate_tokens
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.core.nodework import node_seed
from speedkit.core.plugins import Plugins
from speedkit.core.search import root_metrics, root_node, step_rng, takes_reference
from speedkit.core.task import Task

if TYPE_CHECKING:
    from speedkit.core.llm import LLM


@runtime_checkable
class Prompting(Protocol):
    """A coder that can say what it would ask a model."""

    def prompt(self, request: CodeRequest) -> tuple[str, list[Message]]:
        """Return the system prompt and the messages that a request leads to."""


def first_prompt(
    config: RunConfig, plugins: Plugins, stage: Stage | None = None
) -> tuple[str, list[Message]]:
    """Return the system prompt and the messages that ask for node 1, without secrets.

    No model is asked and nothing is run. So the measured time of the start record is not in
    the prompt, but it is where the run takes the times from the family's manifest.

    Args:
        config: of the run; its coder must be one that writes prompts.
        plugins: where the components are found.
        stage: what node 1 is to be; by default what the scaffold asks for.

    Raises:
        UsageError: the coder writes no prompt, or the settings do not hold together.
        FamilyError: a script or a hint is missing.
    """
    parts = assemble(config, plugins)
    task = task_of(config)
    coder = parts.coder
    if not isinstance(coder, Prompting):
        raise UsageError(f"coder {config.coder_name} writes no prompt")
    services = Services(task=task, seed=config.seed, llm=_no_model)
    for part in (coder, *parts.knowledge):
        part.bind(services)
    system, messages = coder.prompt(_first_request(config, parts, task, stage))
    clean = config.redactor().clean
    return clean(system), [{**m, "content": clean(m["content"])} for m in messages]


def prompt_tokens(system: str, messages: Iterable[Message], model: str | None = None) -> int:
    """Return about how many tokens a prompt has."""
    texts = [system, *(message["content"] for message in messages)]
    return sum(estimate_tokens(text, model or "") for text in texts if text)


def _first_request(
    config: RunConfig, parts: Components, task: Task, stage: Stage | None
) -> CodeRequest:
    """Return what the coder of a new run is asked first, as the search would."""
    tree = Tree([_root(config, parts, task)])
    children = _first_step(config, parts, tree)
    files = task.start_files()
    return CodeRequest(
        task=task,
        tree=tree,
        parent=tree.root,
        node_id=1,
        stage=stage or children[0].stage,
        sibling=0,
        siblings=len(children),
        files=files,
        knowledge=tuple(entry for k in parts.knowledge for entry in k.entries(task)),
        seed=node_seed(config.seed, 1),
        log_dir=Path("nodes", "0001"),
        read_files=lambda _: files,
        nproc=parts.executor.nproc,
    )


def _first_step(config: RunConfig, parts: Components, tree: Tree) -> Sequence[Proposal]:
    children = parts.scaffold.propose(tree.snapshot(), step_rng(config.seed, 1))
    return tuple(children) or (Proposal(0, Stage.DRAFT),)


def _root(config: RunConfig, parts: Components, task: Task) -> Node:
    metrics = None
    if takes_reference(config, parts.executor):
        metrics = root_metrics(task, calibrations.from_reference(task))
    return replace(root_node(task), outcome=Outcome.VALID, metrics=metrics)


def _no_model() -> LLM:
    raise UsageError("a preview asks no model, but a component wants one")
