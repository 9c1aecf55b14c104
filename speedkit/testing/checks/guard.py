"""What is asked of guards: findings with a reason, no surprise, and no objection to the start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedkit.core.components import Ending, Execution
from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Code, GuardOptions, Result
from speedkit.core.metrics import parse_log
from speedkit.testing.bench import Bench, WrongAnswerError, shown

COSTS = (0, 1, 2)


def identity(bench: Bench) -> Iterator[str]:
    """It has a name, a line on what it looks at, and a cost."""
    guard = bench.make()
    if not isinstance(guard.name, str) or not guard.name.strip():
        yield f"the name is {guard.name!r}"
    if not isinstance(guard.title, str) or not guard.title.strip() or "\n" in guard.title:
        yield "title is no line on what it looks at"
    if not issubclass(bench.cls.Options, GuardOptions):
        yield "its Options are no subclass of speedkit.GuardOptions, so it has no strictness"
    if guard.cost not in COSTS:
        yield f"cost is {guard.cost!r}; there are {COSTS}"


def code_findings(bench: Bench) -> Iterator[str]:
    """It looks at any code without raising, the same way each time."""
    for what, code in _codes(bench):
        guard = bench.make()
        found = _all(guard.check_code(code))
        yield from (f"{what}: {fault}" for fault in _faults(guard, found))
        if _all(bench.make().check_code(code)) != found:
            yield f"{what}: asked again, it answers differently"


def start_passes(bench: Bench) -> Iterator[str]:
    """It has nothing against the start record, and does not reject the human change."""
    (start, code), (human, change) = list(_codes(bench))[:2]
    yield from _objections(start, bench.make().check_code(code), Level.QUARANTINE, Level.REJECT)
    yield from _objections(human, bench.make().check_code(change), Level.REJECT)


def result_findings(bench: Bench) -> Iterator[str]:
    """It looks at the result of a run without raising, and does not reject the human change."""
    _, code = list(_codes(bench))[1]
    folder = bench.new_folder("result")
    done = _start_script(folder, code)
    report = parse_log(done.stdout.splitlines())
    guard = bench.make()
    result = Result(
        code=code,
        report=report,
        execution=Execution(Ending.FINISHED, 0, (), 1.0),
        log_dir=folder,
        run=_Program(bench, code),
        arrivals=tuple((0.5 + k / 100, m) for k, m in enumerate(report.curve)),
        start_ms=bench.task.start.time_ms,
        target_ms=bench.task.target.time_ms,
    )
    found = _all(guard.check_result(result))
    yield from _faults(guard, found)
    yield from _objections("a run of the human change", found, Level.REJECT)


def _codes(bench: Bench) -> Iterator[tuple[str, Code]]:
    script = bench.task.script
    start = bench.task.start_files()
    sources = {
        "the start record": start[script],
        "the human change": bench.task.target.read(),
        "a script that is no Python": "def broken(:\n",
        "an empty script": "",
        "a script with other characters": "# é ∑ \u202e\nprint('x')\r\n",
    }
    for what, text in sources.items():
        yield what, Code(bench.task, start, start, {**start, script: text})


def _all(found: Any) -> list[Any]:
    if not isinstance(found, Iterable):
        raise WrongAnswerError(f"a check returned {shown(found)}, no sequence of Findings")
    return list(found)


def _objections(what: str, found: Any, *levels: Level) -> Iterator[str]:
    for one in _all(found):
        if isinstance(one, Finding) and one.level in levels:
            yield f"{one.level}s {what}: {one.reason}"


def _faults(guard: Any, found: Sequence[Any]) -> Iterator[str]:
    for finding in found:
        if not isinstance(finding, Finding) or not isinstance(finding.level, Level):
            yield f"{shown(finding)} is no Finding with a Level"
        elif finding.guard != guard.name:
            yield f"a finding is signed {finding.guard!r}, and the guard is {guard.name!r}"
        elif not finding.reason.strip() or "\n" in finding.reason:
            yield f"a reason is no line for the user: {finding.reason!r}"


@dataclass
class _Program:
    """Runs a guard's program beside a node's files, with this interpreter."""

    bench: Bench
    code: Code

    def __call__(
        self,
        program: str,
        *,
        inputs: Mapping[str, bytes] | None = None,
        collect: Sequence[str] = (),
        timeout_s: float = 60,
    ) -> tuple[Execution, Mapping[str, Path]]:
        folder = self.bench.new_folder("program")
        for name, data in (inputs or {}).items():
            (folder / name).write_bytes(data)
        files = {**self.code.files, "guard_program.py": program}
        done = _start(folder, files, "guard_program.py", timeout_s)
        ending = Ending.CRASHED if done.returncode else Ending.FINISHED
        found = {name: folder / name for name in collect if (folder / name).is_file()}
        return Execution(ending, done.returncode, reason=done.stderr[-200:]), found


def _start_script(folder: Path, code: Code) -> subprocess.CompletedProcess[str]:
    return _start(folder, code.files, code.task.script, 60)


def _start(
    folder: Path, files: Mapping[str, str], script: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [sys.executable, script]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
    )


CHECKS = (identity, code_findings, start_passes, result_findings)
