"""What is asked of executors: every job comes to an end, says what it did, and leaves nothing."""

from __future__ import annotations

import json
import os
import secrets
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from speedkit.core.components import Ending, Execution, Job
from speedkit.testing.bench import Bench, listed, shown

LIMIT_S = 60
"""Seconds within which a small job must be over."""
SHORT_S = 2.0
"""A limit that a job under test runs into."""
SLACK_S = 25
"""Seconds beyond its limit after which a job must be over."""
METRICS = [f"step:{n}/2 val_loss:3.{n}000 train_time:{5 * n}ms" for n in (1, 2)]
CANARY = "canary-in-the-environment"
SECRETS = ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
SLEEP = "import time; print('begun', flush=True); time.sleep(300)"
RAISING = """
import sys

sys.stderr.write("some words\\n")
raise ValueError("wrong on purpose")
"""
DAEMON = """
import os, signal, subprocess, sys, time

sleeper = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"
command = [sys.executable, "-c", sleeper, {token!r}]
subprocess.Popen(command)
subprocess.Popen(command, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(command[0], command)
    os._exit(0)
time.sleep(0.3)
print("begun", flush=True)
time.sleep({wait})
"""
FLOOD = """
import sys

for _ in range(200):
    sys.stderr.write("e" * 5000 + "\\n")
    print("o" * 5000)
sys.stdout.flush()
sys.stdout.buffer.write(b"\\xff\\xfe not text \\x00\\n")
print({metrics!r}, flush=True)
"""
FACTS = """
import json, os, sys

print(json.dumps([dict(os.environ), sys.argv, os.path.exists("train.py")]))
"""


@dataclass
class Recorder:
    """A watch that keeps what it is told."""

    handles: list[Mapping[str, Any]] = field(default_factory=list)
    lines: list[tuple[int, str, float]] = field(default_factory=list)
    late: bool = False
    on_line: threading.Event = field(default_factory=threading.Event)

    def started(self, handle: Mapping[str, Any]) -> None:
        """Keep the handle; note if lines came before it."""
        self.late = bool(self.lines)
        self.handles.append(handle)

    def line(self, rank: int, text: str, at_s: float) -> None:
        """Keep a line."""
        self.lines.append((rank, text, at_s))
        self.on_line.set()

    def texts(self, start: str = "") -> list[str]:
        """Return the lines of rank 0 that begin with a text."""
        return [t for rank, t, _ in self.lines if rank == 0 and t.startswith(start)]


def endings(bench: Bench) -> Iterator[str]:
    """A script that ends by itself has finished or crashed, and its lines come in order."""
    done, watch, job = _run(
        bench, f"print({METRICS[0]!r})\nprint('between')\nprint({METRICS[1]!r})"
    )
    yield from _wrong("a script that ends well", done, Ending.FINISHED)
    if isinstance(done, Execution) and done.exit_code != 0:
        yield f"a script that ends well has the exit code {done.exit_code}"
    if watch.texts("step:") != METRICS:
        yield f"of the lines {METRICS} the watch got {watch.texts('step:')}"
    if len(watch.handles) != 1 or watch.late:
        yield f"started() was called {len(watch.handles)} times, or after the first line"
    done, _, job = _run(
        bench, "import sys\nsys.stderr.write('some words\\n')\nraise ValueError('x')"
    )
    yield from _wrong("a script that raises", done, Ending.CRASHED)
    if isinstance(done, Execution) and (not done.reason.strip() or "\n" in done.reason):
        yield f"the reason of a crash is no line for the user: {done.reason!r}"
    log = job.log_dir / "rank0.stderr.log"
    if not log.exists() or "some words" not in log.read_text("utf-8", "replace"):
        yield f"standard error of rank 0 is not in {log.name} of the log folder"


def limits(bench: Bench) -> Iterator[str]:
    """A job that runs too long, or is silent too long, is ended."""
    for what, ending in (("timeout_s", Ending.TIMED_OUT), ("stall_s", Ending.STALLED)):
        began = time.monotonic()
        short: dict[str, Any] = {what: SHORT_S}
        done, _, _ = _run(bench, SLEEP, **short)
        if time.monotonic() - began > SHORT_S + SLACK_S:
            yield f"a job with {what}={SHORT_S:g} took {time.monotonic() - began:.0f} s"
        yield from _wrong(f"a job that runs into {what}", done, ending)


def cancelling(bench: Bench) -> Iterator[str]:
    """A job is ended soon after it is cancelled."""
    watch, cancel = Recorder(), threading.Event()
    threading.Thread(target=_cancel, args=(watch, cancel), daemon=True).start()
    began = time.monotonic()
    done, _, _ = _run(bench, SLEEP, watch, cancel=cancel)
    if time.monotonic() - began > LIMIT_S + SLACK_S:
        yield "a job that was cancelled went on"
    yield from _wrong("a job that was cancelled", done, Ending.CANCELLED)


def processes(bench: Bench) -> Iterator[str]:
    """No process of a job is left, in whatever way it ends."""
    short: dict[str, Any] = {"timeout_s": SHORT_S}
    for wait, facts in ((0, {}), (300, short)):
        token = f"kit-{secrets.token_hex(8)}"
        _run(bench, DAEMON.format(token=token, wait=wait), **facts)
        left = _with_argument(token)
        for process in left:
            process.kill()
        if left:
            how = "is ended at its limit" if facts else "ends by itself"
            yield f"{len(left)} processes are left of a job that {how}"


def output(bench: Bench) -> Iterator[str]:
    """Much output, and output that is no text, neither stops a job nor hides its metrics."""
    done, watch, _ = _run(bench, FLOOD.format(metrics=METRICS[1]))
    yield from _wrong("a script that prints 2 MB", done, Ending.FINISHED)
    if watch.texts("step:") != METRICS[1:]:
        yield "a metrics line after 2 MB of output does not come to the watch"


def surroundings(bench: Bench) -> Iterator[str]:
    """The script runs in its workspace with its arguments and environment, and sees no secret."""
    with _secrets():
        done, watch, _ = _run(bench, FACTS, args=("--steps", "$(id) x"), env={"KIT_VALUE": "3"})
    yield from _wrong("a script that prints its environment", done, Ending.FINISHED)
    facts = next((json.loads(text) for text in watch.texts("[")), None)
    if facts is None:
        yield "the line that the script printed did not come to the watch"
        return
    environ, argv, is_there = facts
    if leaked := [name for name in SECRETS if CANARY in environ.get(name, "")]:
        yield f"scripts see secrets of the controller's environment: {listed(leaked)}"
    if environ.get("KIT_VALUE") != "3":
        yield "scripts do not get the variables of Job.env"
    if argv[1:] != ["--steps", "$(id) x"]:
        yield f"arguments do not reach the script as they are: {argv[1:]}"
    if not is_there:
        yield "the script does not run in its workspace"


def collecting(bench: Bench) -> Iterator[str]:
    """Files that are asked for are copied to the log folder, and links are not followed."""
    secret = bench.new_folder("private") / "secret.txt"
    secret.write_text(CANARY)
    script = f"""
        import os
        os.makedirs("logs", exist_ok=True)
        with open("logs/own.txt", "w") as file:
            file.write("the script's own log")
        os.symlink({str(secret)!r}, "logs/link.txt")
    """
    done, _, job = _run(bench, script, collect=("logs/*.txt",))
    yield from _wrong("a script that writes a file", done, Ending.FINISHED)
    if not isinstance(done, Execution):
        return
    texts = {path: path.read_text() for path in done.collected}
    if "the script's own log" not in texts.values():
        yield "a file that matches Job.collect is not among the collected"
    if CANARY in texts.values():
        yield "a link that a script made leads files of the controller out"
    if outside := [p for p in texts if job.log_dir not in p.parents]:
        yield f"collected files are not below the log folder: {listed(outside)}"


def handles(bench: Bench) -> Iterator[str]:
    """A handle is JSON, and what is over can be reaped again without harm."""
    executor = bench.make()
    _, watch, _ = _run(bench, "print('done')")
    for handle in watch.handles:
        if json.loads(json.dumps(handle)) != dict(handle):
            yield f"the handle does not survive being written as JSON: {handle!r}"
        executor.reap(json.loads(json.dumps(handle)))


def facts(bench: Bench) -> Iterator[str]:
    """Its lanes are a number from 1, and its fingerprint is the same each time."""
    executor = bench.make()
    if not isinstance(executor.lanes, int) or executor.lanes < 1:
        yield f"lanes is {executor.lanes!r}, not a number from 1"
    first, second = (json.dumps(dict(bench.make().fingerprint()), sort_keys=True) for _ in "12")
    if first != second:
        yield "the fingerprint is another at each call, so that no calibration is ever found"


def _run(
    bench: Bench, script: str, watch: Recorder | None = None, **facts: Any
) -> tuple[Execution, Recorder, Job]:
    """Run a script as a job of one process."""
    watch = watch or Recorder()
    folder = bench.new_folder("job")
    workspace, log_dir = folder / "workspace", folder / "logs"
    workspace.mkdir()
    log_dir.mkdir()
    (workspace / "train.py").write_text(textwrap.dedent(script), encoding="utf-8")
    defaults = {"timeout_s": LIMIT_S, "stall_s": LIMIT_S, "launcher": "python"}
    job = Job(
        name=f"kit-{folder.name}",
        run_id=f"kit-{secrets.token_hex(4)}",
        workspace=workspace,
        log_dir=log_dir,
        script="train.py",
        **{**defaults, **facts},
    )
    return bench.make().execute(job, watch), watch, job


def _wrong(what: str, done: Any, ending: Ending) -> Iterator[str]:
    if not isinstance(done, Execution):
        yield f"{what} came back as {shown(done)}, no Execution"
    elif done.ending is not ending:
        yield f"{what} came back as {done.ending}, not {ending}: {done.reason}"


def _cancel(watch: Recorder, cancel: threading.Event) -> None:
    watch.on_line.wait(LIMIT_S)
    cancel.set()


def _with_argument(token: str) -> list[psutil.Process]:
    """Return the living processes of this machine that have an argument."""
    end = time.monotonic() + 1
    while True:
        found = [p for p in psutil.process_iter(["cmdline"]) if token in (p.info["cmdline"] or ())]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


@contextmanager
def _secrets() -> Iterator[None]:
    """Put secrets into the environment for a while."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(SECRETS, CANARY))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


CHECKS = (
    endings,
    limits,
    cancelling,
    processes,
    output,
    surroundings,
    collecting,
    handles,
    facts,
)
