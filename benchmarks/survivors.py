"""Processes that outlive their job: none may, five seconds after it was ended.

    python benchmarks/survivors.py [--trials 100] [--sandbox bwrap none] [--launcher python]

Each trial runs one script that leaves processes behind in one way (it forks, or forks twice,
leaves its session, ignores signals, drops its environment, holds the pipes open, or forks on
and on), and ends the job in one way (the script ends or crashes, the job is cancelled or is
over its time limit, the controller or the supervisor is killed). Then all processes of the
machine are looked through, by their arguments and environment, until none is left. Prints the
trials that passed and the longest time that a process was there. Goal: 100 of 100 within 5 s.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from speedkit.core.components import Job
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

GONE_S = 5.0
UP = "up"
"""What a script prints when its processes are there."""
PRELUDE = """
import os, signal, sys, time
TOKEN = sys.argv[1]
RANK = os.environ.get("RANK", "0")

def stay(environment=None, code="import time; time.sleep(100)"):
    command = [sys.executable, "-S", "-c", code, TOKEN]
    os.execve(sys.executable, command, dict(os.environ) if environment is None else environment)

def fork(child):
    if os.fork() == 0:
        try:
            child()
        finally:
            os._exit(1)
"""
WAYS = {
    "fork": "fork(lambda: time.sleep(100))",
    "setsid": "fork(lambda: (os.setsid(), stay()))",
    "double fork": "fork(lambda: (os.setsid(), fork(stay), os._exit(0)))",
    "without environment": "fork(lambda: (os.setsid(), fork(lambda: stay({})), os._exit(0)))",
    "ignores signals": (
        "[signal.signal(n, signal.SIG_IGN) for n in signal.valid_signals() - {9, 17, 19}]\n"
        "fork(lambda: stay(code='import signal, time; signal.signal(15, 1); time.sleep(100)'))"
    ),
    "holds the pipes": (
        "fork(lambda: (os.setsid(), fork(lambda: [print('still', flush=True) or time.sleep(0.05)"
        " for _ in range(2000)]), os._exit(0)))"
    ),
    "forks away": (
        "def away():\n"
        "    os.setsid()\n"
        "    end = time.monotonic() + 20\n"
        "    while time.monotonic() < end:\n"
        "        if os.fork():\n"
        "            os._exit(0)\n"
        "        time.sleep(0.001)\n"
        "fork(away)"
    ),
}
ENDINGS = ("ends", "crashes", "cancelled", "timed out", "controller killed", "supervisor killed")
LAST_LINES = {"ends": "", "crashes": "raise ValueError('done')"}
CONTROLLER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import survivors
survivors.control(*sys.argv[2:])
"""


class Watch:
    """Acts when all ranks are up."""

    def __init__(self, nproc: int, then: Callable[[int], object] = lambda pid: None) -> None:
        self.then = then
        self._missing, self._pid = set(range(nproc)), 0

    def started(self, handle):
        self._pid = int(handle["pid"])

    def line(self, rank, text, at_s):
        if text == UP and rank in self._missing:
            self._missing.discard(rank)
            if not self._missing:
                self.then(self._pid)


def script(way: str, ending: str) -> str:
    """Return a script that leaves processes behind and ends, or waits to be ended."""
    last = LAST_LINES.get(ending, "time.sleep(100)")
    return f"{PRELUDE}\n{WAYS[way]}\ntime.sleep(0.1)\nprint({UP!r}, flush=True)\n{last}\n"


def job(folder: Path, token: str, launcher: str, **facts) -> Job:
    return Job(
        name="job",
        run_id=token,
        workspace=folder / "workspace",
        log_dir=folder / "logs",
        script="script.py",
        args=(token,),
        launcher=launcher,
        nproc=2 if launcher == "torchrun" else 1,
        **facts,
    )


def control(folder: str, token: str, launcher: str, sandbox: str) -> None:
    """Run the job in this process, which says when it is up and is then killed."""
    made = job(Path(folder), token, launcher)
    watch = Watch(made.nproc, lambda pid: print(UP, flush=True))
    TorchrunExecutor(TorchrunOptions(sandbox=sandbox)).execute(made, watch)


def end(folder: Path, token: str, launcher: str, sandbox: str, ending: str) -> None:
    """Run the script of a folder and have its job end in one way."""
    if ending == "controller killed":
        _kill_controller(folder, token, launcher, sandbox)
        return
    cancel = threading.Event()
    acts = {
        "cancelled": lambda pid: cancel.set(),
        "supervisor killed": lambda pid: os.kill(pid, signal.SIGKILL),
    }
    limit_s = 100.0
    if ending == "timed out":
        limit_s = 12.0 if launcher == "torchrun" else 1.0
    made = job(folder, token, launcher, timeout_s=limit_s, cancel=cancel)
    watch = Watch(made.nproc, acts.get(ending, lambda pid: None))
    TorchrunExecutor(TorchrunOptions(sandbox=sandbox)).execute(made, watch)


def _kill_controller(folder: Path, token: str, launcher: str, sandbox: str) -> None:
    here = str(Path(__file__).resolve().parent)
    command = [sys.executable, "-c", CONTROLLER, here, str(folder), token, launcher, sandbox]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        if controller.stdout.readline().strip() != UP:
            raise RuntimeError("the job did not come up")
        controller.kill()


def survivors(token: str) -> list[int]:
    """Return the processes that show the token in their arguments or environment."""
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit()
        and token.encode() in _read(path / "cmdline") + _read(path / "environ")
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def trial(way: str, ending: str, launcher: str, sandbox: str) -> float | None:
    """Return the seconds until nothing was left of a job, None if something stayed."""
    token = f"survivor-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for part in ("workspace", "logs"):
            (folder / part).mkdir()
        (folder / "workspace" / "script.py").write_text(script(way, ending))
        end(folder, token, launcher, sandbox, ending)
        began = time.monotonic()
        # A process shows nothing while it becomes another program, so one look is not enough.
        while left := survivors(token) or survivors(token):
            if time.monotonic() - began > GONE_S:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return None
            time.sleep(0.01)
        return time.monotonic() - began


def combinations() -> Iterator[tuple[str, str]]:
    """Yield ways and endings for ever, all pairs in turn."""
    return itertools.cycle(itertools.product(WAYS, ENDINGS))


def measure(trials: int, launcher: str, sandbox: str) -> tuple[int, float]:
    """Return how many trials passed, and the longest time in seconds."""
    passed, longest = 0, 0.0
    for way, ending in itertools.islice(combinations(), trials):
        took_s = trial(way, ending, launcher, sandbox)
        if took_s is None:
            print(f"survived: {way}, {ending}, {launcher}, sandbox {sandbox}")
        else:
            passed, longest = passed + 1, max(longest, took_s)
    return passed, longest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--sandbox", nargs="+", default=["bwrap", "none"])
    parser.add_argument("--launcher", default="python", choices=["python", "torchrun"])
    args = parser.parse_args()
    failed = 0
    for sandbox in args.sandbox:
        passed, longest = measure(args.trials, args.launcher, sandbox)
        failed += args.trials - passed
        print(
            f"sandbox {sandbox:6} {args.launcher:9} {passed} of {args.trials} without survivors, "
            f"the slowest after {longest:.2f} s (goal {GONE_S:g} s)"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
