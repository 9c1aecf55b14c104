"""Guards: what must hold before a node may count."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from speedkit.core.components import Component, Execution, Options
from speedkit.core.findings import Finding, Level, worst
from speedkit.core.metrics import Metrics, Report
from speedkit.core.task import Task

__all__ = [
    "Code",
    "Finding",
    "Guard",
    "GuardOptions",
    "Level",
    "Result",
    "RunProgram",
    "check_code",
    "check_result",
    "worst",
]


class RunProgram(Protocol):
    """Runs a trusted program beside the node's untrusted files, where nodes are run."""

    def __call__(
        self,
        program: str,
        *,
        inputs: Mapping[str, bytes] = ...,
        collect: Sequence[str] = ...,
        timeout_s: float = ...,
    ) -> tuple[Execution, Mapping[str, Path]]:
        """Run a Python program in a fresh workspace with the node's files and artifacts.

        Args:
            program: source text; it is started as ``python guard_program.py``.
            inputs: further files of the workspace, contents by name.
            collect: names of files to bring back.
            timeout_s: wall-clock limit.

        Returns:
            How it ended, and the paths of the files that came back, by name. Their contents
            are as untrusted as the node.
        """


@dataclass(frozen=True)
class Code:
    """What a guard of the code sees, before the node is run.

    Attributes:
        start: files of the start record, text by name.
        parent: files of the parent node.
        files: files of the node.
    """

    task: Task
    start: Mapping[str, str]
    parent: Mapping[str, str]
    files: Mapping[str, str]

    @property
    def script(self) -> str:
        """Source of the node's script."""
        return self.files[self.task.script]

    @property
    def parent_script(self) -> str:
        """Source of the parent's script."""
        return self.parent[self.task.script]


@dataclass(frozen=True)
class Result:
    """What a guard of the run sees, after a node that would be valid has run.

    Attributes:
        code: the node's code.
        report: what its log said.
        execution: how the job ended, with the wall seconds that the harness saw.
        arrivals: seconds since spawn at which each validation line came, and the line;
            empty where the metrics are in a file of the script's own.
        start_ms: time of the start record in milliseconds, if known.
        target_ms: time of the target record, if known.
        best_ms: time of the best node so far, if there is one.
        data: folder of the data as the node saw it, None where there is none.
        artifacts: files that the family asks to be kept of a run (a checkpoint), by name;
            untrusted, never to be unpickled by the guard itself.
        hardware: the executor's fingerprint.
        log_dir: folder of the node's logs; a guard may keep evidence there.
        run: runs a program of the guard's beside the node's files.
    """

    code: Code
    report: Report
    execution: Execution
    log_dir: Path
    run: RunProgram
    arrivals: Sequence[tuple[float, Metrics]] = ()
    start_ms: float | None = None
    target_ms: float | None = None
    best_ms: float | None = None
    data: Path | None = None
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The task of the node."""
        return self.code.task


class GuardOptions(Options):
    """Options that every guard has."""

    strictness: Literal["lenient", "normal", "strict"] = Field(
        "normal",
        description="lenient: rejections become quarantines, quarantines pass with a note; "
        "strict: quarantines become rejections",
    )


class Guard(Component):
    """Looks at a node's code before it runs, at its result afterwards, or at both.

    Guards are asked in the order of their ``cost``. The run's guards are asked only for nodes
    that would be valid otherwise.
    """

    kind = "guard"
    cost: ClassVar[int] = 0
    """Order: 0 reads text, 1 reads data, 2 runs programs. A rejection spares the dearer ones."""
    title: ClassVar[str] = ""
    """One line on what it looks at."""
    Options = GuardOptions

    def check_code(self, code: Code) -> Iterable[Finding]:
        """Return what is to be said of the code; nothing means that it passes."""
        return ()

    def check_result(self, result: Result) -> Iterable[Finding]:
        """Return what is to be said of the result; nothing means that it passes."""
        return ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in its findings."""

    def found(self, level: Level, reason: str) -> Finding:
        """Return a finding of this guard."""
        return Finding(self.name, level, reason)


_LENIENT = {Level.REJECT: Level.QUARANTINE, Level.QUARANTINE: Level.PASS, Level.PASS: Level.PASS}
_STRICT = {Level.REJECT: Level.REJECT, Level.QUARANTINE: Level.REJECT, Level.PASS: Level.PASS}


def weigh(guard: Guard, finding: Finding) -> Finding:
    """Return the finding at the level that the guard's strictness gives it."""
    strictness = guard.options.strictness
    if strictness == "normal":
        return finding
    return replace(finding, level=(_LENIENT if strictness == "lenient" else _STRICT)[finding.level])


def check_code(guards: Sequence[Guard], code: Code) -> tuple[Finding, ...]:
    """Ask every guard about the code; see :func:`_ask` for one that fails."""
    return _ask(guards, lambda guard: guard.check_code(code))


def check_result(guards: Sequence[Guard], result: Result) -> tuple[Finding, ...]:
    """Ask every guard about the result; see :func:`_ask` for one that fails."""
    return _ask(guards, lambda guard: guard.check_result(result))


def _ask(guards: Sequence[Guard], ask: Any) -> tuple[Finding, ...]:
    """Ask the guards, cheap ones first, until one rejects.

    A guard that raises could not look: the node is quarantined, for it must not count
    unseen, and the guard is named.
    """
    found: list[Finding] = []
    for guard in sorted(guards, key=lambda g: g.cost):
        try:
            found += [weigh(guard, finding) for finding in ask(guard)]
        except Exception as error:  # a guard of a third party may raise anything
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            found.append(Finding(guard.name, Level.QUARANTINE, f"the guard failed: {text}"))
        if any(f.level is Level.REJECT for f in found):
            break
    return tuple(found)
