"""Each check of executors finds one that was broken on purpose."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

import speedkit
from speedkit import Ending, Execution
from speedkit.testing.checks import executor

pytestmark = pytest.mark.long


class Plain(speedkit.Executor):
    """Runs a job as one process; what it starts is found by its session and its parent."""

    ALLOWED = ("PATH", "HOME", "LANG")
    errors = subprocess.PIPE

    def execute(self, job, watch):
        out = open(job.log_dir / "rank0.stderr.log", "wb")  # noqa: SIM115 (closed below)
        process = subprocess.Popen(
            [sys.executable, "-u", job.script, *job.args],
            cwd=job.workspace,
            env=self.environment(job),
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
        )
        out.close()
        watch.started(self.handle(process))
        began = self.heard = time.monotonic()
        reader = threading.Thread(target=self.read, args=(process, watch, began))
        reader.start()
        ending, reason = self.wait(process, job, began)
        self.end(process)
        reader.join(0.5)
        wall_s = time.monotonic() - began
        return Execution(ending, process.returncode, (), wall_s, reason, self.collect(job))

    def environment(self, job):
        return {**{n: os.environ[n] for n in self.ALLOWED if n in os.environ}, **job.env}

    def handle(self, process):
        return {"pid": process.pid}

    def read(self, process, watch, began):
        for raw in process.stdout:
            self.heard = time.monotonic()
            watch.line(0, raw.decode("utf-8", "replace").rstrip("\n"), self.heard - began)

    def wait(self, process, job, began):
        while process.poll() is None:
            now = time.monotonic()
            if now - began > job.timeout_s:
                return Ending.TIMED_OUT, "too long"
            if now - self.heard > job.stall_s:
                return Ending.STALLED, "silent too long"
            if job.cancel.is_set():
                return Ending.CANCELLED, "cancelled"
            time.sleep(0.02)
        return (Ending.CRASHED, "it failed") if process.returncode else (Ending.FINISHED, "")

    def end(self, process):
        for child in psutil.process_iter(["cmdline", "cwd"]):
            words = child.info["cmdline"] or [""]
            if child.info["cwd"] and words[-1].startswith("kit-") and words[0] == sys.executable:
                child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def collect(self, job):
        found = [p for glob in job.collect for p in job.workspace.glob(glob) if not p.is_symlink()]
        return tuple(self.copy(path, job.log_dir) for path in found)

    def copy(self, path, folder):
        return type(path)(shutil.copy(path, folder))


class Optimist(Plain):
    """Takes every end for a good one."""

    def wait(self, process, job, began):
        super().wait(process, job, began)
        return Ending.FINISHED, ""


class Wordless(Plain):
    """Gives no reason."""

    def wait(self, process, job, began):
        return super().wait(process, job, began)[0], ""


class Unlogged(Plain):
    """Throws standard error away."""

    def execute(self, job, watch):
        done = super().execute(job, watch)
        (job.log_dir / "rank0.stderr.log").unlink()
        return done


class Deaf(Plain):
    """Reads no line."""

    def read(self, process, watch, began):
        process.stdout.read()


class Strict(Plain):
    """Reads only what is UTF-8."""

    def read(self, process, watch, began):
        with contextlib.suppress(UnicodeDecodeError):
            for raw in process.stdout:
                watch.line(0, raw.decode().rstrip("\n"), 0.1)


class Patient(Plain):
    """Knows no limit but a far one."""

    def wait(self, process, job, began):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        return (Ending.FINISHED, "") if process.returncode == 0 else (Ending.CRASHED, "it failed")


class Leaving(Plain):
    """Ends only the process that it started."""

    def end(self, process):
        process.kill()
        process.wait()


class Open(Plain):
    """Hands the whole environment on."""

    def environment(self, job):
        return {**os.environ, **job.env}


class Following(Plain):
    """Follows links."""

    def collect(self, job):
        found = [p for glob in job.collect for p in job.workspace.glob(glob)]
        return tuple(self.copy(path, job.log_dir) for path in found)


class Keeping(Plain):
    """Leaves what it collects in the workspace."""

    def copy(self, path, folder):
        return path


class Forgetful(Plain):
    """Collects nothing."""

    def collect(self, job):
        return ()


class Objects(Plain):
    """Gives a handle that cannot be written."""

    def handle(self, process):
        return {"process": process}


class Killing(Plain):
    """Cannot reap what is over."""

    def reap(self, handle):
        os.kill(2**22 + 1, 9)


class Changing(Plain):
    """Is another machine each time."""

    numbers = itertools.count()
    lanes = 0

    def fingerprint(self):
        return {"number": next(self.numbers)}


BROKEN = [
    (Optimist, "endings", "a script that raises came back as finished, not crashed"),
    (Wordless, "endings", "no line for the user"),
    (Unlogged, "endings", "rank0.stderr.log"),
    (Deaf, "endings", "the watch got []"),
    (Patient, "limits", "runs into timeout_s came back as crashed, not timed_out"),
    (Patient, "limits", "runs into stall_s came back as crashed, not stalled"),
    (Patient, "cancelling", "came back as crashed, not cancelled"),
    (Leaving, "processes", "processes are left of a job that ends by itself"),
    (Leaving, "processes", "processes are left of a job that is ended at its limit"),
    (Strict, "output", "does not come to the watch"),
    (Open, "surroundings", "secrets of the controller's environment: OPENAI_API_KEY"),
    (Following, "collecting", "leads files of the controller out"),
    (Keeping, "collecting", "not below the log folder"),
    (Forgetful, "collecting", "not among the collected"),
    (Objects, "handles", "not JSON serializable"),
    (Killing, "handles", "ProcessLookupError"),
    (Changing, "facts", "lanes is 0"),
    (Changing, "facts", "another at each call"),
]
found = {}


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    """Let jobs under test run into their limits soon."""
    monkeypatch.setattr(executor, "SHORT_S", 0.6)


@pytest.mark.parametrize(("cls", "check", "words"), BROKEN)
def test_executors(faults, cls, check, words):
    if (cls, check) not in found:
        found[cls, check] = faults(cls, only=check)
    assert words in " ".join(found[cls, check][check])


def test_a_plain_executor_has_no_fault(faults):
    assert not faults(Plain)


def test_no_process_of_the_broken_executors_is_left():
    tokens = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert not [words for words in tokens if words and words[-1].startswith("kit-")]
