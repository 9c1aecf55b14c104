"""Nothing of a job survives it, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest
from executor_bench import BOTH, proc

from speedkit.core.components import Ending
from speedkit.plugins.executors import processes, scratch
from speedkit.plugins.executors.torchrun import TorchrunExecutor

DAEMONS = """
    import os, signal, sys, time

    def daemon(environment):
        if os.fork():
            return
        os.setsid()
        if os.fork():
            os._exit(0)
        code = "import signal, time; signal.signal(15, 1); print('up', flush=True); time.sleep(60)"
        os.execve(sys.executable, [sys.executable, "-c", code, $TOKEN], environment)

    daemon(dict(os.environ))
    daemon({})
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "61")
    time.sleep($WAIT)
"""
"""Starts two daemons that left session and parent, one without environment, and a child."""

CONTROLLER = """
    import sys
    from pathlib import Path
    from speedkit.core.components import Job
    from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

    class Watch:
        def started(self, handle):
            import json
            print(json.dumps({**handle, "fork": self.fork()}), flush=True)
        def fork(self):
            import os, time
            if FORK and (pid := os.fork()) == 0:
                time.sleep(60)
            return pid if FORK else 0
        def line(self, rank, text, at_s):
            print("line", rank, text, flush=True)

    folder, run_id, launcher, sandbox = sys.argv[1:]
    job = Job("job", run_id, Path(folder, "workspace"), Path(folder, "logs"), "script.py",
              launcher=launcher, nproc=2)
    TorchrunExecutor(TorchrunOptions(sandbox=sandbox)).execute(job, Watch())
"""


def daemons(bench, wait_s):
    return (
        textwrap.dedent(DAEMONS).replace("$TOKEN", repr(bench.run_id)).replace("$WAIT", str(wait_s))
    )


class Controller:
    """A controller in a process of its own, to be killed."""

    def __init__(self, bench, script, launcher="python", fork=False):
        bench.job(script)
        code = textwrap.dedent(CONTROLLER).replace("FORK", repr(fork))
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(
            [*command, str(bench.folder), bench.run_id, launcher, bench.sandbox],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.handle = json.loads(self.process.stdout.readline())
        bench.watch.handles.append(self.handle)

    def wait_for_lines(self, count):
        for _ in range(count):
            assert self.process.stdout.readline().startswith("line")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@BOTH
@pytest.mark.parametrize("wait_s", [0.5, 60], ids=["ends", "is ended"])
def test_daemons_end_with_the_job(bench, wait_s):
    cancel = threading.Event()
    bench.watch.on_line = lambda rank, text: wait_s > 1 and cancel.set()
    began = time.monotonic()
    done = bench.run(daemons(bench, wait_s), cancel=cancel)
    assert done.ending is (Ending.CANCELLED if wait_s > 1 else Ending.FINISHED)
    assert not bench.survivors()
    assert time.monotonic() - began < 30


def test_orphans_are_collected_while_the_job_runs(bench):
    script = """
        import os, time
        for _ in range(200):
            if os.fork() == 0:
                if os.fork():
                    os._exit(0)
                os._exit(0)
            os.wait()
        supervisor = str(os.getppid())
        def zombies():
            stats = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    stats.append(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split())
                except OSError:
                    pass
            return sum(s[0] == "Z" and s[1] == supervisor for s in stats)
        end = time.monotonic() + 30
        while zombies() and time.monotonic() < end:
            time.sleep(0.1)
        print(zombies())
    """
    bench.run(script)
    assert bench.watch.texts() == ["0"]


@BOTH
def test_a_process_that_forks_away_is_caught(bench):
    """Each generation lives a moment only, and has left its parent by then."""
    script = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            end = time.monotonic() + 50
            while time.monotonic() < end:
                if os.fork():
                    os._exit(0)
        time.sleep(0.3)
    """
    began = time.monotonic()
    assert bench.run(script).ending is Ending.FINISHED
    assert time.monotonic() - began < 30
    assert not bench.survivors()


@BOTH
def test_the_controller_is_killed(bench, eventually):
    controller = Controller(bench, daemons(bench, 60))
    controller.wait_for_lines(2)
    assert len(bench.survivors()) > 3
    controller.kill()
    eventually(lambda: not bench.survivors())


def test_the_controller_is_killed_before_it_hears_of_the_job(bench, eventually):
    controller = Controller(bench, "import time\ntime.sleep(60)")
    controller.kill()
    eventually(lambda: not bench.survivors())


def test_the_controller_is_killed_and_its_fork_holds_the_pipe(bench, eventually):
    controller = Controller(bench, daemons(bench, 60), fork=True)
    controller.wait_for_lines(2)
    controller.kill()
    eventually(lambda: bench.survivors() == [controller.handle["fork"]])
    os.kill(controller.handle["fork"], signal.SIGKILL)
    eventually(lambda: not bench.survivors())


@pytest.mark.slow
def test_the_controller_of_ranks_is_killed(bench, eventually):
    script = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("up")
        time.sleep(60)
    """
    controller = Controller(bench, script, launcher="torchrun")
    controller.wait_for_lines(2)
    controller.kill()
    eventually(lambda: not bench.survivors())


@pytest.mark.slow
def test_the_supervisor_of_ranks_is_killed(bench):
    """Launcher and ranks die with their parents, even if nobody is left to end them."""
    seen = []

    def kill_supervisor(rank, text):
        seen.append(rank)
        if set(seen) == {0, 1}:
            os.kill(bench.watch.handles[0]["pid"], signal.SIGKILL)

    bench.watch.on_line = kill_supervisor
    script = "import time\nprint('up')\ntime.sleep(60)"
    assert bench.run(script, launcher="torchrun", nproc=2).ending is Ending.LOST
    assert set(seen) == {0, 1}


@BOTH
def test_the_supervisor_is_killed(bench):
    def kill_supervisor(rank, text):
        os.kill(bench.watch.handles[0]["pid"], signal.SIGKILL)

    bench.watch.on_line = kill_supervisor
    done = bench.run("import time\nprint('hi')\ntime.sleep(60)")
    assert done.ending is Ending.LOST
    assert done.reason == "the job's supervisor was killed or hung"
    assert bench.ended_s < 30


@BOTH
def test_the_supervisor_is_killed_and_daemons_stay(bench):
    bench.watch.on_line = lambda rank, text: os.kill(bench.watch.handles[0]["pid"], signal.SIGKILL)
    assert bench.run(daemons(bench, 60)).ending is Ending.LOST


@BOTH
def test_the_supervisor_hangs(bench, monkeypatch):
    for name in ("GRACE_S", "END_S"):
        monkeypatch.setattr(f"speedkit.plugins.executors.torchrun.{name}", 0.5)
    bench.watch.on_line = lambda rank, text: os.kill(bench.watch.handles[-1]["pid"], signal.SIGSTOP)
    for timeout_s in (0.5, 3, 15):
        done = bench.run(daemons(bench, 60), timeout_s=timeout_s)
        if done.ending is not Ending.TIMED_OUT:  # else it did not come to print a line
            break
    assert done.ending is Ending.LOST
    assert bench.ended_s < timeout_s + 30


@pytest.mark.parametrize("sandbox", ["bwrap"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_script_cannot_end_its_supervisor_in_the_sandbox(bench, signum):
    script = f"""
        import os, time
        for pid in [os.getppid(), *range(1, 20)]:
            if pid != os.getpid():
                try:
                    os.kill(pid, {int(signum)})
                except OSError:
                    pass
        time.sleep(0.3)
        print("alive")
    """
    assert bench.run(script).ending is Ending.FINISHED
    assert bench.watch.texts() == ["alive"]


@BOTH
def test_a_script_with_which_its_supervisor_ends_again_is_to_blame(bench):
    bench.watch.on_line = lambda rank, text: os.kill(bench.watch.handles[-1]["pid"], 9)
    executor = bench.executor()
    job = bench.job("import time\nprint('hi')\ntime.sleep(60)")
    endings = [executor.execute(job, bench.watch) for _ in range(2)]
    assert [done.ending for done in endings] == [Ending.LOST, Ending.CRASHED]
    assert "2 times: the script is taken to have done it" in endings[1].reason


def test_the_supervisor_is_told_to_end(bench):
    bench.watch.on_line = lambda rank, text: os.kill(bench.watch.handles[0]["pid"], 15)
    done = bench.run(daemons(bench, 60))
    assert (done.ending, done.reason) == (Ending.LOST, "the supervisor was ended")


@pytest.mark.parametrize("sandbox", ["none"])
def test_controller_and_supervisor_are_killed_and_the_job_is_reaped(bench, eventually, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(bench.folder))  # where nobody else sweeps
    controller = Controller(bench, daemons(bench, 60).replace("daemon({})", ""))
    controller.wait_for_lines(1)
    os.kill(controller.handle["pid"], signal.SIGSTOP)
    controller.kill()
    os.kill(controller.handle["pid"], signal.SIGKILL)
    eventually(lambda: not processes.has_argument(controller.handle["pid"], bench.run_id))
    assert bench.survivors(), "the daemon is left"
    assert bench.scratch_folders()
    TorchrunExecutor().reap(controller.handle)
    assert not bench.survivors()
    assert not bench.scratch_folders()


MAKER = """
import sys, time
from speedkit.plugins.executors.scratch import hold
with hold() as path:
    print(path, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("sandbox", ["none"])
def test_the_folder_of_a_controller_that_was_killed_is_swept_by_a_later_job(bench, monkeypatch):
    temporary = bench.folder / "temporary"
    (temporary / "speedkit-job-of-another").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    command = [sys.executable, "-c", MAKER]
    maker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        left = Path(maker.stdout.readline().strip())
        assert left.parent == temporary
        with scratch.hold() as own:
            bench.run("print('hi')")
            assert left.is_dir(), "its controller lives"
            assert Path(own).is_dir()
    finally:
        maker.kill()
        maker.communicate()
    assert left.is_dir()
    bench.run("print('hi')")
    assert [path.name for path in temporary.iterdir()] == ["speedkit-job-of-another"]


@BOTH
def test_a_supervisor_that_hangs_is_reaped_with_its_job(bench, monkeypatch):
    monkeypatch.setattr("speedkit.plugins.executors.torchrun.END_S", 1.0)
    controller = Controller(bench, daemons(bench, 60))
    controller.wait_for_lines(2)
    os.kill(controller.handle["pid"], signal.SIGSTOP)
    controller.kill()
    TorchrunExecutor().reap(controller.handle)
    assert not bench.survivors()


@pytest.mark.parametrize("change", [{"host": "another"}, {"boot_id": "another"}])
def test_reaping_on_another_machine_or_boot_does_nothing(bench, change):
    marker = f"{bench.run_id}/job/1"
    other = sleeper(marker)
    TorchrunExecutor().reap({**handle(other.pid, marker), **change})
    assert other.poll() is None
    TorchrunExecutor().reap(handle(other.pid, marker))
    assert other.wait(30) == -signal.SIGKILL


def test_reaping_spares_a_process_that_has_the_pid_now(bench):
    other = sleeper("another/job/1")
    try:
        TorchrunExecutor().reap(handle(other.pid, f"{bench.run_id}/job/1"))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def sleeper(marker):
    environment = {processes.MARKER: marker, "PATH": os.defpath}
    process = subprocess.Popen(["sleep", "60"], env=environment)
    while b"sleep" not in proc(process.pid, "cmdline"):
        time.sleep(0.01)
    return process


def handle(pid, marker):
    return {
        "host": processes.host_name(),
        "boot_id": processes.boot_id(),
        "pid": pid,
        "start_time": processes.start_time(pid),
        "marker": marker,
        "scratch": "/nonexistent/speedkit-job-x",
    }


def test_processes_without_procfs(bench, monkeypatch):
    """What other systems use answers as the files of Linux do."""
    pid = os.getpid()
    child = sleeper(f"{bench.run_id}/job/1")
    try:
        expected = processes.parents()[child.pid]
        monkeypatch.setattr(processes, "_LINUX", False)
        assert processes.parents()[child.pid] == expected == pid
        assert processes.is_marked(child.pid, f"{bench.run_id}/job/1")
        assert not processes.is_marked(child.pid, bench.run_id)
        assert processes.has_argument(child.pid, "60")
        assert not processes.has_argument(child.pid, "6")
        assert processes.start_time(child.pid) == pytest.approx(time.time(), abs=30)
        assert processes.boot_id().isdigit()
        processes.end_marked(f"{bench.run_id}/job/1", "/nonexistent")
        assert child.wait(30) == -signal.SIGKILL
        assert processes.start_time(child.pid) is None
    finally:
        child.kill()
        child.wait()
