"""Hints that a language model writes from the two records of a task."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speedkit.core.errors import UsageError
from speedkit.core.files import write_atomic
from speedkit.core.llm_types import LLMError, Reply
from speedkit.core.prompting import Templates, changelog
from speedkit.core.task import HINT_FILES, Task
from speedkit.plugins.knowledge.hints import GENERATED, hint_folder

if TYPE_CHECKING:
    from speedkit.core.llm import LLM

MIN_CHARACTERS = 200
"""A shorter reply is no hint."""
TRIES = 2
"""How often a level is asked for until a usable reply comes."""
PARTS = (1, 2)
"""The levels that level 3 is written from."""

_WITHHELD = ("content_filter", "refusal")
_WRAPPED = re.compile(r"```(?:markdown|md)[ \t]*\n(.*)\n```", re.DOTALL | re.IGNORECASE)

OnHint = Callable[[int, Path, bool], None]
"""Receives a level, its file, and whether it was written now."""


def generate(
    task: Task,
    levels: Collection[int],
    llm: LLM,
    *,
    templates: Templates | None = None,
    force: bool = False,
    on_hint: OnHint = lambda level, path, made: None,
) -> dict[int, Path]:
    """Let a model write hints from both scripts, their diff and the notes of the manifest.

    The hints stand where the knowledge source ``hints`` finds them by the name
    ``generated``; prompts and replies stand beside them in ``log/``. Each level is on disk
    before the next one is asked for.

    Args:
        task: a task both of whose records have a script.
        levels: hint levels, any of 1, 2, 3. Level 3 is written from levels 1 and 2; those
            that are not there yet are made first.
        llm: the client that is asked.
        templates: the prompts; by default the built-in ones.
        force: write the given levels anew even if they are there.
        on_hint: told of every level, in order.

    Returns:
        The file of each level given, and of those made for level 3.

    Raises:
        UsageError: a level that does not exist.
        FamilyError: a script is missing.
        LLMError: no usable reply came.
    """
    templates = templates or Templates()
    paths = _paths(task, levels)
    missing = {level for level in HINT_FILES if not paths[level].is_file()}
    todo = set(levels) if force else set(levels) & missing
    if 3 in todo:
        todo |= missing
    chosen = {level: paths[level] for level in sorted(todo | set(levels))}
    for level, path in chosen.items():
        if level in todo:
            _write(task, level, paths, templates, llm)
        on_hint(level, path, level in todo)
    return chosen


def _paths(task: Task, levels: Collection[int]) -> dict[int, Path]:
    if not levels or set(levels) - set(HINT_FILES):
        raise UsageError("hint levels are 1, 2 and 3; give one at least")
    folder = hint_folder(task, GENERATED)
    return {level: folder / name for level, name in HINT_FILES.items()}


def _write(
    task: Task, level: int, paths: Mapping[int, Path], templates: Templates, llm: LLM
) -> None:
    parts = {k: paths[k].read_text(encoding="utf-8") for k in PARTS} if level == 3 else {}
    text = prompt(task, level, templates, parts)
    path = paths[level]
    path.parent.mkdir(parents=True, exist_ok=True)
    hint = _ask(llm, level, text, templates.render("system_reader"), path.parent / "log")
    write_atomic(path, f"{hint}\n")


# --- the prompt -------------------------------------------------------------------------


def prompt(task: Task, level: int, templates: Templates, parts: Mapping[int, str]) -> str:
    """Return the prompt for a hint level.

    Args:
        parts: for level 3, the texts of levels 1 and 2; else empty.

    Raises:
        FamilyError: a script is missing.
    """
    start, target = task.start.read(), task.target.read()
    slots = {
        "task": task.name,
        "changelog": changelog(task),
        "start_code": start,
        "target_code": target,
        "diff": _diff(start, target),
    }
    if parts:
        slots |= {"pseudocode": parts[1], "text": parts[2]}
    return templates.render(f"hint_{level}", **slots)


def _diff(start: str, target: str) -> str:
    before, after = start.split("\n"), target.split("\n")
    return "\n".join(difflib.unified_diff(before, after, "before.py", "after.py", lineterm=""))


# --- the reply --------------------------------------------------------------------------


def _ask(llm: LLM, level: int, text: str, system: str, log_dir: Path) -> str:
    problem = ""
    for sample in range(TRIES):
        reply = llm.complete(
            [{"role": "user", "content": text}],
            system=system,
            purpose=f"hint_{level}",
            sample=sample,
            log_dir=log_dir,
        )
        hint = unwrapped(reply.text)
        problem = _problem(hint, reply)
        if not problem:
            return hint
    raise LLMError(
        f"{llm.settings.model} wrote no usable hint of level {level} in {TRIES} tries: {problem}"
    )


def unwrapped(text: str) -> str:
    """Return a reply without the fence that some models put around all of their Markdown."""
    text = text.strip()
    match = _WRAPPED.fullmatch(text)
    return match[1].strip() if match else text


def _problem(hint: str, reply: Reply) -> str:
    if reply.truncated:
        return "the reply was cut at the output limit; raise it: -o llm.max_output_tokens=N"
    if reply.finish_reason in _WITHHELD:
        return f"the provider withheld the reply ({reply.finish_reason})"
    if not hint:
        return "the reply was empty"
    if len(hint) < MIN_CHARACTERS:
        return f"the reply had only {len(hint)} characters"
    return ""
