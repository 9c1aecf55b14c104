"""A bench that runs small scripts with the torchrun executor and looks for survivors."""

from __future__ import annotations

import os
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from speedkit.core.components import Execution, Job
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

BOTH = pytest.mark.parametrize("sandbox", ["bwrap", "none"])
"""Runs a test with and without a sandbox."""
NOBODY = 65526
WARM = pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
"""Runs a test under torchrun, and with ranks forked from a process that has imported torch."""


@dataclass
class Recorder:
    """A watch that keeps what it is told, and may act on the first line of each rank."""

    on_line: Callable[[int, str], None] = lambda rank, text: None
    handles: list[Mapping[str, Any]] = field(default_factory=list)
    lines: list[tuple[int, str, float]] = field(default_factory=list)

    def started(self, handle: Mapping[str, Any]) -> None:
        self.handles.append(handle)

    def line(self, rank: int, text: str, at_s: float) -> None:
        self.lines.append((rank, text, at_s))
        self.on_line(rank, text)

    def texts(self, rank: int = 0) -> list[str]:
        return [text for of, text, _ in self.lines if of == rank]


@dataclass
class Bench:
    """One place to run scripts in; ``run_id`` marks all their processes.

    Attributes:
        sandbox: the executor's option, if a test gives no other.
        ended_s: how long the last ``execute`` took, in seconds.
    """

    folder: Path
    run_id: str
    sandbox: str = "auto"
    watch: Recorder = field(default_factory=Recorder)
    ended_s: float = 0.0

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def log_dir(self) -> Path:
        return self.folder / "logs"

    def job(self, script: str, **facts: Any) -> Job:
        (self.workspace / "script.py").write_text(textwrap.dedent(script), encoding="utf-8")
        facts = {"launcher": "python", "timeout_s": 60.0, "stall_s": 60.0, **facts}
        return Job(
            name="job",
            run_id=self.run_id,
            workspace=self.workspace,
            log_dir=self.log_dir,
            script="script.py",
            **facts,
        )

    def run(self, script: str, options: Mapping[str, Any] | None = None, **facts: Any) -> Execution:
        executor = self.executor(options)
        job = self.job(script, **facts)
        began = time.monotonic()
        try:
            return executor.execute(job, self.watch)
        finally:
            self.ended_s = time.monotonic() - began

    def executor(self, options: Mapping[str, Any] | None = None) -> TorchrunExecutor:
        return TorchrunExecutor(TorchrunOptions(**{"sandbox": self.sandbox, **(options or {})}))

    def log(self, name: str) -> bytes:
        return (self.log_dir / name).read_bytes()

    def survivors(self) -> list[int]:
        """Pids of processes that show the run's id in their environment or arguments."""
        token = self.run_id.encode()
        return [pid for pid in all_pids() if token in proc(pid, "environ") + proc(pid, "cmdline")]

    def scratch_folders(self) -> list[str]:
        """Private folders of this bench's jobs that are still there."""
        return [h["scratch"] for h in self.watch.handles if Path(h["scratch"]).exists()]


class EngineBench(Bench):
    """A bench whose scripts run under the executor that ``make`` makes of options."""

    make: Any = None

    def executor(self, options: Mapping[str, Any] | None = None) -> Any:
        return self.make(**(options or {}))


def controller(module: str, name: str) -> str:
    """A program that runs ``script.py`` of a bench under an engine, and tells what it hears."""
    return f"""
import json, sys
from pathlib import Path
from speedkit.core.components import Job
from speedkit.plugins.executors.{module} import {name}Executor, {name}Options

class Watch:
    def started(self, handle):
        print(json.dumps(handle), flush=True)
    def line(self, rank, text, at_s):
        print(text, flush=True)

folder, run_id, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
job = Job("job", run_id, folder / "workspace", folder / "logs", "script.py", launcher="python")
{name}Executor({name}Options(**options)).execute(job, Watch())
"""


def as_another_user(folder: Path, act: Callable[[], object]) -> None:
    """Do something in a folder as a user without rights, to whom the folder is given."""
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            if os.getuid() == 0:
                for path in (folder, *folder.rglob("*")):
                    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def wait_for(wanted: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not wanted():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
