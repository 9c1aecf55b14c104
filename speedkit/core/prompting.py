"""Prompts: templates with checked slots, and the messages that ask for a node."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import (
    ChoiceLoader,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
    TemplateSyntaxError,
    meta,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

from speedkit.core.components import CodeRequest
from speedkit.core.errors import UnknownNameError, UsageError, did_you_mean
from speedkit.core.files import one_line, printable
from speedkit.core.llm_types import Message, estimate_tokens
from speedkit.core.metrics import Metrics
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.core.task import RunRules, Task

BUILTIN_FOLDER = Path(__file__).resolve().parent / "prompts"
SUFFIX = ".j2"
EDIT_FORMATS = ("whole", "search_replace", "udiff")
"""Formats in which a model may answer; each has a template ``format_NAME``."""
END_MARKER = "END OF EDITS"
"""Last line of a complete answer."""
HYPOTHESIS_LABEL = "HYPOTHESIS:"
MAX_ATTEMPTS = 50
"""Attempts that the history considers, whatever its budget."""
MAX_SUMMARY_TOKENS = 1500
"""Tokens of the summary of one attempt."""
MAX_PACKAGES = 250
BYTES_PER_TOKEN = 3
"""What :func:`~speedkit.core.llm_types.estimate_tokens` counts for a token."""

_CODE = (
    "task family_title description script target_loss start_time reference command timeout "
    "packages knowledge history files stage parent attempt artifacts format_instructions"
)
_HINT = "task changelog start_code target_code diff"
_SLOTS = {
    "system": "",
    "system_reader": "",
    "task": _CODE,
    "constraints": _CODE,
    "packages": _CODE,
    "knowledge": _CODE,
    "code": _CODE,
    "draft": _CODE,
    "draft_unguided": _CODE,
    "improve": _CODE,
    "debug": _CODE,
    "attempt": "attempt",
    "history": "attempts left_out",
    "format_whole": "script editable end_marker",
    "format_search_replace": "script editable end_marker",
    "format_udiff": "script editable end_marker",
    "reflect": "error round rounds format_instructions",
    "continue": "last_line",
    "select": "task target_loss candidates",
    "summary": "task target_loss start_time outcome metrics reason idea stdout stderr max_words",
    "metrics": "stdout stderr",
    "hint_source": _HINT,
    "hint_1": _HINT,
    "hint_2": _HINT,
    "hint_3": f"{_HINT} pseudocode text",
    "judge_system": "",
    "judge_changes": "task changelog human_diff marker most",
    "judge_compare": "task changes human_diff agent_diff marker",
    "judge_again": "error",
}
SLOTS: Mapping[str, tuple[str, ...]] = {k: tuple(v.split()) for k, v in _SLOTS.items()}
"""The slots of each template, by name."""


# --- templates --------------------------------------------------------------------------


class Templates:
    """The prompt templates, some of them replaced by a user's own.

    A file ``NAME.j2`` in the folder replaces the built-in template of that name; a file
    ``_ANY.j2`` is the user's own, to be included by others.

    Args:
        folder: the user's folder; None for the built-in templates alone.

    Raises:
        UsageError: the folder does not exist, or a file in it has an unknown name, a
            syntax error or an unknown slot.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise UsageError(f"no folder of prompt templates at {folder}")
        self.folder = folder
        folders = [BUILTIN_FOLDER] if folder is None else [folder, BUILTIN_FOLDER]
        self._environment = _environment(folders)
        if folder is not None:
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                self._check(path)

    def _check(self, path: Path) -> None:
        name = path.name[: -len(SUFFIX)]
        own = name.startswith("_")
        if not own and name not in SLOTS:
            raise UsageError(f"{path}: no template has this name; {did_you_mean(name, SLOTS)}")
        try:
            parsed = self._environment.parse(path.read_text(encoding="utf-8"))
            used = meta.find_undeclared_variables(parsed)
        except TemplateSyntaxError as error:
            raise UsageError(f"{path}, line {error.lineno}: {error.message}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: {error}") from None
        known = {s for slots in SLOTS.values() for s in slots} if own else set(SLOTS[name])
        for slot in sorted(used - known):
            raise UsageError(f"{path}: unknown slot {slot!r}; {did_you_mean(slot, known)}")

    def path(self, name: str) -> Path:
        """Return the file that a template comes from.

        Raises:
            UnknownNameError: there is no template of that name.
        """
        if name not in SLOTS:
            raise UnknownNameError("prompt", name, SLOTS)
        own = None if self.folder is None else self.folder / f"{name}{SUFFIX}"
        return own if own is not None and own.is_file() else BUILTIN_FOLDER / f"{name}{SUFFIX}"

    def source(self, name: str) -> str:
        """Return the text of a template, unfilled."""
        return self.path(name).read_text(encoding="utf-8")

    def render(self, name: str, **slots: Any) -> str:
        """Fill the slots of a template.

        Raises:
            UsageError: the template uses a slot or an attribute that has no value.
        """
        path = self.path(name)
        try:
            text = self._environment.get_template(f"{name}{SUFFIX}").render(**slots)
        except TemplateError as error:
            raise UsageError(f"{path}: {error.message or type(error).__name__}") from None
        return text.strip() + "\n"


def _environment(folders: Sequence[Path]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(data=quoted, code=fenced, line=one_line)
    return environment


def quoted(text: str, label: str) -> str:
    """Wrap text of doubtful origin in tags that it cannot close itself.

    The tag holds a digest of the text, so that no text contains its own tag.
    """
    text = printable(str(text)).strip("\n")
    digest = hashlib.sha256(f"{label}\0{text}".encode("utf-8", "backslashreplace")).hexdigest()
    tag = f"data-{digest[:12]}"
    return f'<{tag} from="{label}">\n{text}\n</{tag}>'


def fenced(text: str, name: str) -> str:
    """Return a file as its name and a fenced block that the text cannot close."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    language = "python" if name.endswith(".py") else ""
    newline = "" if text.endswith("\n") or not text else "\n"
    return f"{name}\n{fence}{language}\n{text}{newline}{fence}"


# --- budgets ----------------------------------------------------------------------------


def head_and_tail(text: str, tokens: int, *, head: float = 0.25) -> str:
    """Shorten a text to a number of estimated tokens by leaving out its middle.

    Args:
        text: the text, returned as it is where it fits.
        tokens: upper limit of :func:`estimate_tokens` of the result.
        head: share of the kept text that is taken from the beginning.
    """
    if estimate_tokens(text) <= tokens:
        return text
    data = text.encode("utf-8", "replace")
    mark = f"\n[… shortened from {len(data)} bytes …]\n"
    room = BYTES_PER_TOKEN * (tokens - 1) - len(mark.encode())
    if room <= 0:
        return ""
    first = int(room * head)
    tail = data[len(data) - (room - first) :]
    return data[:first].decode("utf-8", "ignore") + mark + tail.decode("utf-8", "ignore")


# --- the environment of the script ------------------------------------------------------

_LIST_PACKAGES = """
import importlib.metadata, json, sys
sys.path = [p for p in sys.path if p]
found = ((d.metadata["Name"], d.version) for d in importlib.metadata.distributions())
print(json.dumps(sorted({(n, v) for n, v in found if n and v})))
"""
_FIRST = re.compile(
    r"(torch|triton|numpy|scipy|einops|flash|xformers|liger|apex|transformer|nvidia|cuda|cudnn|"
    r"huggingface|datasets|tiktoken|tokenizers|numba|jax)",
    re.IGNORECASE,
)


def installed_packages(python: str | None = None, *, limit: int = MAX_PACKAGES) -> tuple[str, ...]:
    """Return ``name version`` of the packages that a script will find.

    Those that bear on training come first and are the last to be cut; within each part
    the order is alphabetical.

    Args:
        python: the interpreter that will run the script; None for the running one.
        limit: the most packages to return.

    Raises:
        UsageError: the interpreter cannot be asked.
    """
    found = _ask_interpreter(python or sys.executable)
    names = {name.lower(): f"{name} {version}" for name, version in reversed(found)}
    order = sorted(names, key=lambda name: (not _FIRST.match(name), name))
    return tuple(names[name] for name in order[:limit])


def _ask_interpreter(python: str) -> list[tuple[str, str]]:
    # It is asked in another folder, where a relative path would lead nowhere.
    program = os.path.abspath(shutil.which(os.path.expanduser(python)) or python)
    try:
        done = subprocess.run(
            [program, "-c", _LIST_PACKAGES],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tempfile.gettempdir(),
            check=True,
        )
        return [(str(name), str(version)) for name, version in json.loads(done.stdout)]
    except subprocess.CalledProcessError as error:
        reason = one_line(error.stderr)[-200:] or f"exit status {error.returncode}"
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as error:
        reason = one_line(str(error))
    raise UsageError(f"{python} cannot list its packages: {reason}")


# --- earlier attempts -------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """What a prompt says of a node.

    Attributes:
        made_from: its parent, in words.
        metrics: the last validation, in words.
        has_bugs: whether it crashed, printed no metrics, or never came out as an edit.
    """

    id: int
    stage: str
    made_from: str
    outcome: str
    has_bugs: bool
    metrics: str
    hypothesis: str
    reason: str
    summary: str

    @classmethod
    def of(cls, node: Node) -> Attempt:
        """Describe a node."""
        return cls(
            id=node.id,
            stage=str(node.stage),
            made_from="the start script" if not node.parent else f"attempt {node.parent}",
            outcome=str(node.outcome).replace("_", " "),
            has_bugs=node.is_buggy,
            metrics=metrics_in_words(node.metrics),
            hypothesis=one_line(node.hypothesis),
            reason=one_line(node.reason),
            summary=head_and_tail(printable(node.summary).strip(), MAX_SUMMARY_TOKENS, head=0.5),
        )


def metrics_in_words(metrics: Metrics | None) -> str:
    """Return a phrase for the last validation of a node."""
    if metrics is None:
        return "none were printed"
    steps = metrics.step if metrics.steps is None else f"{metrics.step}/{metrics.steps}"
    time = metrics.train_time_ms
    clock = "no training time" if time is None else f"training time {time_in_words(time)}"
    return f"val_loss {metrics.val_loss:.4f} at step {steps}, {clock}"


def time_in_words(milliseconds: float | None) -> str:
    """Return seconds with three digits after the point; empty for None."""
    return "" if milliseconds is None else f"{milliseconds / 1000:.3f} s"


def earlier_attempts(tree: Tree, parent: Node) -> list[Node]:
    """Return the attempts that a child of ``parent`` should know of, newest first.

    These are the ancestors of the parent without node 0, and the finished children of the
    parent that did not help: not valid, or not faster. One that was dropped has not been tried.
    The parent itself has its own place in the prompt.
    """
    ancestors = [n for n in tree.ancestors(parent.id) if n.id != 0]
    siblings = [n for n in tree.children(parent.id) if _did_not_help(n, parent)]
    return sorted([*ancestors, *siblings], key=lambda n: n.id, reverse=True)


def _did_not_help(node: Node, parent: Node) -> bool:
    if node.outcome in (Outcome.PENDING, Outcome.DROPPED):
        return False
    before, after = parent.train_time_ms, node.train_time_ms
    return not (node.is_valid and after is not None and (before is None or after < before))


def render_history(templates: Templates, nodes: Sequence[Node], token_budget: int) -> str:
    """Return the history of a prompt: as many of the first nodes as the budget holds.

    Args:
        templates: where the template ``history`` is taken from.
        nodes: newest first.
        token_budget: upper limit of :func:`estimate_tokens` of the result.

    Returns:
        The filled template ``history``; empty when not even one attempt fits.
    """
    attempts = [Attempt.of(node) for node in nodes[:MAX_ATTEMPTS]]
    for count in range(len(attempts), 0, -1):
        left_out = len(nodes) - count
        text = templates.render("history", attempts=attempts[:count], left_out=left_out)
        if estimate_tokens(text) <= token_budget:
            return text
    return ""


# --- messages ---------------------------------------------------------------------------


def build_messages(
    request: CodeRequest,
    *,
    edit_format: str,
    templates: Templates,
    packages: Iterable[str],
    token_budget: int,
) -> tuple[str, list[Message]]:
    """Return the system prompt and the messages that ask for a node.

    The same arguments give the same text; nothing is read but the templates.

    Args:
        request: what the coder was asked.
        edit_format: one of :data:`EDIT_FORMATS`.
        templates: the texts to fill.
        packages: as :func:`installed_packages` returns them.
        token_budget: estimated tokens for the history of earlier attempts.
    """
    nodes = earlier_attempts(request.tree, request.parent)
    text = templates.render(
        _template_of(request),
        **_task_slots(request),
        packages=list(packages),
        knowledge=list(request.knowledge),
        history=render_history(templates, nodes, token_budget),
        files=dict(request.files),
        stage=str(request.stage),
        parent=Attempt.of(request.parent),
        format_instructions=format_instructions(templates, edit_format, tuple(request.files)),
    )
    return templates.render("system"), [{"role": "user", "content": text}]


def format_instructions(templates: Templates, edit_format: str, editable: Sequence[str]) -> str:
    """Return the part of a prompt that says how to answer."""
    slots = {"script": editable[0], "editable": list(editable), "end_marker": END_MARKER}
    return templates.render(f"format_{edit_format}", **slots)


def _template_of(request: CodeRequest) -> str:
    if request.stage is Stage.DEBUG:
        return "debug"
    if request.stage is Stage.IMPROVE:
        return "improve"
    return "draft" if request.knowledge else "draft_unguided"


def _task_slots(request: CodeRequest) -> dict[str, Any]:
    task = request.task
    run = task.run_with(request.nproc)
    return {
        "task": task.name,
        "family_title": task.family.title,
        "description": task.family.description,
        "script": task.script,
        "target_loss": f"{task.rules.target:g}",
        "start_time": time_in_words(request.tree.root.train_time_ms),
        "reference": reference_times(task),
        "command": launch_command(task, run),
        "timeout": f"{run.timeout_s:g} s",
        "artifacts": list(task.family.artifacts),
    }


def reference_times(task: Task) -> str:
    """Return the known times of the two records in words; empty if one is not known."""
    start, target = task.start.time_ms, task.target.time_ms
    if start is None or target is None or task.start_text is not None:
        return ""
    where = f" on {task.target.hardware}" if task.target.hardware else ""
    times = f"{time_in_words(start)} for the start script and {time_in_words(target)}"
    return f"{times} for the record to be matched{where}, a factor of {start / target:.3f}"


def launch_command(task: Task, run: RunRules) -> str:
    """Return the command line that starts the script, as a user would type it."""
    head = (
        ("torchrun", "--standalone", f"--nproc_per_node={run.nproc}")
        if run.launcher == "torchrun"
        else ("python",)
    )
    return shlex.join((*head, task.script, *run.args))


def changelog(task: Task) -> str:
    """Return what the manifest says of the records after the start, up to the target."""
    indexes = range(task.start.index + 1, task.target.index + 1)
    records = [task.family.record(i) for i in indexes]
    return "\n\n".join(
        "\n".join(
            [f"Record {r.index}: {r.title}", *filter(None, [r.description.strip()])]
            + [f"- {change}" for change in r.changes]
        )
        for r in records
    )
