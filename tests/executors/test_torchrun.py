"""Jobs as they usually are: lines, logs, surroundings, causes of failure."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from executor_bench import BOTH, Recorder, as_another_user
from pydantic import ValidationError

from speedkit.core.components import Ending
from speedkit.core.errors import ExecutorError
from speedkit.plugins import executors
from speedkit.plugins.executors import scratch
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions


def test_a_job_that_finishes(bench):
    done = bench.run("print('step:1/1 val_loss:3.2000 train_time:5ms')\nprint('bye')")
    assert done.ending is Ending.FINISHED
    assert done.exit_code == 0
    assert (done.errors, done.reason, done.collected) == ((), "", ())
    assert bench.watch.texts() == ["step:1/1 val_loss:3.2000 train_time:5ms", "bye"]
    assert len(bench.watch.handles) == 1


def test_lines_come_while_the_job_runs(bench):
    """The script goes on only when its first line has been heard."""
    bench.watch.on_line = lambda rank, text: (bench.workspace / "heard").touch()
    script = """
        import os, time
        print("first")
        while not os.path.exists("heard"):
            time.sleep(0.01)
        time.sleep(0.3)
        print("second")
    """
    assert bench.run(script).ending is Ending.FINISHED
    first, second = (at for _, _, at in bench.watch.lines)
    assert second - first > 0.29


def test_standard_output_and_error_are_apart(bench):
    bench.run("import sys\nprint('to out')\nprint('to err', file=sys.stderr)")
    assert bench.log("rank0.stdout.log") == b"to out\n"
    assert bench.log("rank0.stderr.log") == b"to err\n"


def test_what_a_job_is_given(bench):
    script = """
        import json, os, sys
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
        print(json.dumps([sys.argv, os.getcwd(), sys.stdin.read(), links,
                          len(os.listdir("/proc/self/fd")), os.listdir(os.environ["HOME"])]))
    """
    bench.run(script, args=["--steps", "$(id)"])
    argv, folder, stdin, links, descriptors, home = json.loads(bench.watch.texts()[0])
    assert argv == ["script.py", "--steps", "$(id)"]
    assert folder == str(bench.workspace)
    assert (stdin, links[0]) == ("", "/dev/null")
    assert descriptors == 4, "input, output, error and the folder being listed"
    assert home == []


@BOTH
def test_the_environment_is_an_allow_list(bench, monkeypatch):
    canary = f"canary-{secrets.token_hex(8)}"  # that no other run of the tests has
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "NCCL_SECRET", "PYTHONPATH", "OTHER"):
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    monkeypatch.setenv("SETTING", "7")
    script = """
        import glob, json, os, sys
        others = ""
        for path in glob.glob("/proc/[0-9]*/environ"):
            try:
                others += open(path, "rb").read().decode("utf-8", "replace")
            except OSError:
                pass
        print(json.dumps([dict(os.environ), sys.argv[1][::-1] in others]))
    """
    bench.run(script, {"env": ["SETTING"]}, env={"SPEEDKIT_SEED": "3"}, args=[canary[::-1]])
    environment, is_seen = json.loads(bench.watch.texts()[0])
    assert canary not in json.dumps(environment)
    assert not is_seen
    assert environment["LC_TIME"] == "C.UTF-8"
    assert (environment["SETTING"], environment["SPEEDKIT_SEED"]) == ("7", "3")
    assert environment["HOME"] != os.environ.get("HOME")
    assert environment["SPEEDKIT_JOB"].startswith(f"{bench.run_id}/job/")


@BOTH
def test_temporary_files_go_with_the_job(bench, sandbox):
    script = """
        import os, tempfile
        folder = tempfile.mkdtemp()
        os.mkdir(folder + "/closed")
        open(folder + "/closed/file", "w").close()
        os.chmod(folder + "/closed", 0)
        print(folder)
    """
    bench.run(script)
    folder = Path(bench.watch.texts()[0])
    assert not folder.exists()
    assert sandbox == "bwrap" or not folder.parent.exists()


@BOTH
def test_a_workspace_can_be_removed_however_deep_it_is(bench):
    script = """
        import os
        for _ in range(1500):
            os.mkdir("deeper")
            os.chdir("deeper")
        open("file", "w").close()
    """
    assert bench.run(script).ending is Ending.FINISHED
    shutil.rmtree(bench.workspace)


def test_what_a_job_has_closed_is_opened_and_no_link_followed(tmp_path):
    """Root may enter any folder, so another user tries."""
    outside = tmp_path / "outside"
    outside.mkdir(0o500)
    tree = tmp_path / "tree"
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    (tree / "a" / "link").symlink_to(outside)

    def close_and_remove():
        for folder, mode in (("a/b/c", 0), ("a/b", 0o500), ("a", 0o300), (".", 0)):
            os.chmod(f"tree/{folder}", mode)
        scratch.make_removable("tree")
        shutil.rmtree("tree")

    as_another_user(tmp_path, close_and_remove)
    assert not tree.exists()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "hf_token", "AWS_SECRET_ACCESS_KEY", "apikey"])
def test_secrets_cannot_be_asked_for(name):
    with pytest.raises(ValidationError, match="looks like a secret"):
        TorchrunOptions(env=[name])


@pytest.mark.parametrize(
    "name",
    [*("log_head_mb", "log_tail_mb", "max_output_mb", "collect_mb"), "max_file_gb", "max_tmp_gb"],
)
def test_a_size_without_end_is_refused(name):
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        TorchrunOptions(**{name: "inf"})


# --- causes of failure ------------------------------------------------------------------------


def test_exception(bench):
    done = bench.run("def step():\n    raise ValueError('bad shape')\nprint('hi')\nstep()")
    assert (done.ending, done.exit_code, done.reason) == (
        Ending.CRASHED,
        1,
        "ValueError: bad shape",
    )
    (error,) = done.errors
    assert (error.rank, error.message, error.signal) == (0, "ValueError: bad shape", None)
    assert "in step\n" in error.traceback


@pytest.mark.parametrize(
    ("script", "exit_code", "reason"),
    [
        ("import sys; sys.exit(3)", 3, "exit code 3"),
        ("import sys; sys.exit('no data')", 1, "exit code 1: no data"),
        ("import nothing_like_it", 1, "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def f(:\n", 1, "SyntaxError: invalid syntax"),
        ("raise MemoryError", 1, "out of memory: MemoryError"),
        (
            "class OutOfMemoryError(RuntimeError):\n    __module__ = 'torch'\n"
            "raise OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')",
            1,
            "out of GPU memory: torch.OutOfMemoryError: CUDA out of memory. "
            "Tried to allocate 2 GiB",
        ),
    ],
)
def test_ways_to_crash(bench, script, exit_code, reason):
    done = bench.run(script)
    assert (done.ending, done.exit_code, done.reason) == (Ending.CRASHED, exit_code, reason)


def test_a_script_that_is_not_there(bench):
    job = bench.job("")
    (bench.workspace / "script.py").unlink()
    done = TorchrunExecutor().execute(job, bench.watch)
    assert done.ending is Ending.CRASHED
    assert "No such file" in done.reason


@BOTH
def test_killed_by_a_signal(bench):
    done = bench.run("import os\nos.kill(os.getpid(), 9)")
    assert (done.ending, done.exit_code) == (Ending.CRASHED, None)
    assert done.errors[0].signal == "SIGKILL"
    assert done.reason == "killed by SIGKILL (out of memory?)"


def test_segmentation_fault_says_where(bench):
    done = bench.run("import ctypes\ndef deep():\n    ctypes.string_at(0)\ndeep()")
    assert done.errors[0].signal == "SIGSEGV"
    assert "in deep" in done.errors[0].traceback


# --- limits -----------------------------------------------------------------------------------


@BOTH
def test_silence_is_a_stall(bench):
    script = "import time\nprint('hi')\ndef wait():\n    time.sleep(60)\nwait()"
    for stall_s in (0.7, 3, 15):
        done = bench.run(script, stall_s=stall_s)
        if "was in wait" in done.reason:  # else it did not come so far
            break
    assert done.ending is Ending.STALLED
    assert done.reason == f"no output for {stall_s} s; was in wait, script.py line 4"
    assert bench.ended_s < stall_s + 30


def test_output_on_standard_error_is_life(bench):
    script = """
        import sys, time
        for _ in range(12):
            time.sleep(float(sys.argv[1]))
            print(".", end="", file=sys.stderr)
    """
    for pause_s in (0.1, 0.5, 2):
        done = bench.run(script, args=[str(pause_s)], stall_s=8 * pause_s)
        if done.ending is not Ending.STALLED:  # else it had to wait for the machine
            break
    assert done.ending is Ending.FINISHED


def test_time_limit_holds_against_a_script_that_ignores_signals(bench):
    script = """
        import signal, time
        for number in set(signal.valid_signals()) - {9, 19}:
            signal.signal(number, signal.SIG_IGN)
        while True:
            print("still here")
            time.sleep(0.05)
    """
    done = bench.run(script, timeout_s=1)
    assert done.ending is Ending.TIMED_OUT
    assert done.reason == "not finished after 1 s"
    assert bench.ended_s < 30


def test_a_file_is_limited_without_a_sandbox_as_well(bench):
    script = """
        import errno
        try:
            with open("large", "wb") as file:
                for _ in range(30):
                    file.write(bytes(1_000_000))
        except OSError as error:
            print(errno.errorcode[error.errno])
    """
    bench.run(script, {"max_file_gb": 0.02, "sandbox": "none"})
    assert bench.watch.texts() == ["EFBIG"]


def test_options_win_over_the_job(bench):
    done = bench.run("import time; time.sleep(60)", {"timeout_s": 0.5}, timeout_s=50)
    assert done.ending is Ending.TIMED_OUT


def test_cancelled_while_it_runs(bench):
    cancel = threading.Event()
    bench.watch.on_line = lambda rank, text: cancel.set()
    done = bench.run("import time\nprint('hi')\ntime.sleep(60)", cancel=cancel)
    assert (done.ending, done.reason) == (Ending.CANCELLED, "cancelled")
    assert bench.ended_s < 30


def test_cancelled_before_it_began(bench):
    cancel = threading.Event()
    cancel.set()
    assert bench.run("import time; time.sleep(60)", cancel=cancel).ending is Ending.CANCELLED
    assert bench.ended_s < 30


def test_a_watch_that_raises_ends_the_job(bench):
    def fail(rank, text):
        raise OSError("disk full")

    bench.watch.on_line = fail
    with pytest.raises(OSError, match="disk full"):
        bench.run("import time\nprint('hi')\ntime.sleep(60)")
    assert bench.ended_s < 30


# --- the machine ------------------------------------------------------------------------------


def test_an_interpreter_that_is_not_there(bench):
    with pytest.raises(ExecutorError, match=r"executor\.python"):
        bench.run("", {"python": "/no/such/python"})


def test_an_interpreter_without_torch(bench, tmp_path):
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ExecutorError, match="torch is not installed"):
        bench.run("", {"python": str(bare)}, launcher="torchrun")
    assert bench.run("print('needs none')", {"python": str(bare)}).ending is Ending.FINISHED


def test_a_workspace_that_is_not_there(bench):
    job = bench.job("")
    (bench.workspace / "script.py").unlink()
    bench.workspace.rmdir()
    with pytest.raises(ExecutorError, match="No such file"):
        TorchrunExecutor().execute(job, bench.watch)


def test_an_unknown_launcher(bench):
    with pytest.raises(ExecutorError, match="there are: python, torchrun"):
        bench.run("", launcher="mpirun")


def test_fingerprint_is_cheap_json_and_the_same(bench):
    executor = TorchrunExecutor()
    first = executor.fingerprint()
    began = time.thread_time()
    assert json.loads(json.dumps(executor.fingerprint())) == first
    assert time.thread_time() - began < 0.05
    assert first["cores"] >= 1
    assert {"cpu", "gpus", "sandbox", "system", "python", "torch"} <= set(first)


def test_an_instant_job_costs_the_controller_little(bench):
    costs = []
    for _ in range(7):
        began = time.thread_time()
        bench.run("print('hi')")
        costs.append(time.thread_time() - began)
    assert min(costs) < 0.04


def test_the_supervisor_imports_only_the_standard_library():
    folder = str(Path(executors.__file__).parents[1])
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import executors.supervisor; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-I", "-S", "-c", code, folder]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    names = {name for name in found.stdout.split() if not name.startswith("_")}
    assert names - set(sys.stdlib_module_names) == {"executors"}


def test_several_threads_at_once(bench):
    executor = TorchrunExecutor()

    def one(number):
        log_dir = bench.folder / f"logs-{number}"
        log_dir.mkdir()
        job = bench.job(
            "import sys, time\ntime.sleep(0.2)\nprint('number', sys.argv[1])",
            args=[str(number)],
        )
        watch = Recorder()
        done = executor.execute(type(job)(**{**vars(job), "log_dir": log_dir}), watch)
        return done.ending, watch.texts()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(8)))
    assert results == [(Ending.FINISHED, [f"number {n}"]) for n in range(8)]


def test_the_thread_that_began_a_job_need_not_live(bench, eventually):
    """A job is bound to the controller's life, not to that of one of its threads."""
    results = []
    with ThreadPoolExecutor(1) as pool:
        job = bench.job("import time\nprint('hi')\ntime.sleep(1)\nprint('done')")
        results.append(pool.submit(TorchrunExecutor().execute, job, bench.watch).result())
    assert results[0].ending is Ending.FINISHED
    assert bench.watch.texts() == ["hi", "done"]
