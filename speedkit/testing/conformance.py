"""Checks that a component keeps what its kind promises to the search."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedkit.core.components import BASES, Component
from speedkit.core.errors import ExecutorError
from speedkit.core.guards import Guard
from speedkit.testing.bench import Bench, WrongAnswerError, one_line
from speedkit.testing.checks import coder, common, executor, guard, scaffold, texts
from speedkit.testing.footprint import footprint, surroundings
from speedkit.testing.tiny import tiny_task

if TYPE_CHECKING:
    from speedkit.core.llm import LLM
    from speedkit.core.task import Task
    from speedkit.testing.fake_openai import Script

Check = Callable[[Bench], Iterator[str]]
"""Yields a sentence for each fault."""

CHECKS: Mapping[str, Sequence[Check]] = {
    "scaffold": scaffold.CHECKS,
    "coder": coder.CHECKS,
    "executor": executor.CHECKS,
    "summarizer": texts.SUMMARIZER_CHECKS,
    "judge": texts.JUDGE_CHECKS,
    "knowledge": texts.KNOWLEDGE_CHECKS,
    "guard": guard.CHECKS,
}
"""What is asked of each kind, besides what is asked of all."""
KEY = "KIT_MODEL_KEY"
"""Environment variable with the key of the scripted model."""
MOST = 5
"""Faults of one check that are told."""


@dataclass(frozen=True)
class Fault:
    """A promise that a component does not keep.

    Attributes:
        check: name of the check, which ``skip`` takes.
        message: what it did, in a sentence.
    """

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


class NonconformingError(AssertionError):
    """A component does not keep the promises of its kind; the message lists each fault."""

    def __init__(self, cls: type[Component], faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in faults)
        super().__init__(f"{cls.__name__} does not keep what a {cls.kind} promises:\n{lines}")


def check_component(
    cls: type[Component],
    *,
    options: Mapping[str, Any] | None = None,
    task: Task | None = None,
    replies: Script | None = None,
    skip: Sequence[str] = (),
) -> None:
    """Raise if a component does not keep the promises of its kind.

    Args:
        cls: a subclass of one of the base classes, for example ``speedkit.Coder``.
        options: its options; by default it is made without any.
        task: the task that it is asked about; by default the tiny one.
        replies: what the language model answers, for a component that asks one: texts in
            turn, or a function of the request. By default a model that echoes the longest
            code block of the prompt with a comment more.
        skip: names of checks to leave out.

    Raises:
        NonconformingError: with all faults that were found.
        ExecutorError: an executor cannot run jobs on this machine, so nothing is known of it.
    """
    faults = find_faults(cls, options=options, task=task, replies=replies, skip=skip)
    if faults:
        raise NonconformingError(cls, faults)


def find_faults(
    cls: type[Component],
    *,
    options: Mapping[str, Any] | None = None,
    task: Task | None = None,
    replies: Script | None = None,
    skip: Sequence[str] = (),
) -> list[Fault]:
    """Return the faults of a component; see :func:`check_component`.

    Raises:
        ValueError: the class is of no kind, or ``skip`` names no check of its kind.
        ExecutorError: an executor cannot run jobs on this machine.
    """
    kind = _kind(cls)
    checks = {check.__name__: check for check in (*common.CHECKS, *CHECKS[kind])}
    if unknown := sorted(set(skip) - set(checks)):
        raise ValueError(f"a {kind} has no check {unknown[0]!r}; there are: {', '.join(checks)}")
    with (
        tempfile.TemporaryDirectory(prefix="kit-") as name,
        _model(cls, replies) as llm,
    ):
        bench = Bench(cls, options or {}, task or tiny_task(), Path(name).resolve(), llm)
        if faults := _ask(common.CHECKS[0], bench):
            return faults
        checks.pop(common.CHECKS[0].__name__)
        chosen = [check for check in checks.values() if check.__name__ not in skip]
        return [fault for check in chosen for fault in _ask(check, bench)]


def _kind(cls: type[Component]) -> str:
    bases: Mapping[str, type[Component]] = {**BASES, "guard": Guard}
    for kind, base in bases.items():
        if isinstance(cls, type) and issubclass(cls, base):
            return kind
    known = ", ".join(base.__name__ for base in bases.values())
    raise ValueError(f"{cls!r} is no subclass of any of: {known}")


def _ask(check: Check, bench: Bench) -> list[Fault]:
    """Ask for the faults of one check; what the component leaves behind is taken away."""
    enclosed = surroundings if bench.cls.kind == "executor" else footprint
    messages: list[str] = []
    try:
        with enclosed(bench.new_folder("here")):
            messages.extend(islice(check(bench), MOST))
    except ExecutorError:
        raise
    except WrongAnswerError as error:
        messages.append(str(error))
    except (Exception, SystemExit) as error:  # whatever the component raises is its fault
        messages.append(f"raised {type(error).__name__}: {one_line(str(error))}")
    return [Fault(check.__name__, message) for message in dict.fromkeys(messages)]


@contextmanager
def _model(cls: type[Component], replies: Script | None) -> Iterator[Callable[[], LLM]]:
    """Return what gives a component its language model: a real client, and a scripted server."""
    if not cls.needs_model and replies is None:
        yield _no_model
        return
    from speedkit.core.llm import LLM
    from speedkit.core.llm_types import LLMSettings
    from speedkit.testing.fake_openai import FakeOpenAI, edit_script

    with FakeOpenAI(edit_script if replies is None else replies) as server, _environment(KEY):
        client = LLM(LLMSettings.model_validate({**server.settings, "api_key_env": KEY}))
        client.check()  # imports what changes the environment of this process
        try:
            yield lambda: client
        finally:
            client.close()


@contextmanager
def _environment(name: str) -> Iterator[None]:
    os.environ[name] = "a-key-for-no-provider"
    try:
        yield
    finally:
        del os.environ[name]


def _no_model() -> LLM:
    raise AssertionError("it asks a language model, but its class does not say needs_model = True")
