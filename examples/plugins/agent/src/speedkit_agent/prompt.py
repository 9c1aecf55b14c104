"""What the agent is told."""

from __future__ import annotations

from collections.abc import Iterator

from speedkit import CodeRequest, Node, Stage

WANTED = {
    Stage.DRAFT: "Make it reach the target in less training time.",
    Stage.IMPROVE: "It works. Make it reach the target in still less training time.",
    Stage.DEBUG: "It fails. Find out why and repair it; keep what it was meant to try.",
}
HYPOTHESIS = "HYPOTHESIS:"
"""What the line begins with in which the agent says what it changed."""


def write_prompt(request: CodeRequest, history: int) -> str:
    """Return the prompt for a node.

    Args:
        history: earlier attempts that are told, the latest ones.
    """
    return "\n\n".join(part for part in _parts(request, history) if part) + "\n"


def _parts(request: CodeRequest, history: int) -> Iterator[str]:
    task, names = request.task, ", ".join(request.files)
    yield f"The file {names} in this folder is a training script. {WANTED[request.stage]}"
    yield (
        f"Rules: a run counts if its last validation loss is at or under {task.rules.target:g}. "
        "Do not change the data, how the loss is measured, how time is measured, or the lines "
        "that print the metrics. Change only the files that are there; do not run the script, "
        "there is no accelerator here."
    )
    yield _attempts(request, history)
    yield from (f"# {entry.title}\n{entry.text}" for entry in request.knowledge)
    yield (
        f"When you are done, print one line that begins with {HYPOTHESIS} and says in a sentence "
        "what you changed and why it should help."
    )


def _attempts(request: CodeRequest, history: int) -> str:
    parent = request.parent
    others = [n for n in request.tree if n.id not in (0, parent.id)][-history:]
    lines = [_attempt(node) for node in others]
    if parent.id:
        lines.append(f"This script is {_attempt(parent)}")
    return "Earlier attempts:\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _attempt(node: Node) -> str:
    time = "" if node.train_time_ms is None else f", {node.train_time_ms} ms"
    return f"node {node.id} ({node.outcome}{time}): {node.hypothesis} {node.summary}".strip()
