"""Jobs of several ranks under the real torchrun, and where marked under the warm launcher."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from executor_bench import WARM, Recorder

from speedkit.core.components import Ending

ALL_REDUCE = """
    import os, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        print(f"step:1/1 val_loss:{total.item():.4f} train_time:1ms", flush=True)
"""


def run(bench, script, warm=False, **facts):
    options = {"warm": warm}
    return bench.run(script, options, launcher="torchrun", **{"nproc": 2, **facts})


@WARM
def test_two_jobs_at_once_do_not_meet(bench, warm):
    job = bench.job(ALL_REDUCE + "    dist.destroy_process_group()\n", launcher="torchrun")
    executor = bench.executor({"warm": warm})

    def one(number):
        log_dir = bench.folder / f"logs-{number}"
        log_dir.mkdir()
        watch = Recorder()
        done = executor.execute(replace(job, nproc=2, log_dir=log_dir), watch)
        return done.ending, watch.texts()

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(one, range(2)))
    assert results == [(Ending.FINISHED, ["step:1/1 val_loss:2.0000 train_time:1ms"])] * 2


@WARM
def test_exception_on_one_rank_is_named_and_comes_first(bench, warm):
    """Rank 0 fails as well, because rank 1 has left it, and is not to blame."""
    done = run(
        bench,
        ALL_REDUCE
        + """
    if dist.get_rank() == 1:
        raise ValueError("bad shape")
    dist.all_reduce(total)
    """,
        warm,
    )
    assert (done.ending, done.exit_code) == (Ending.CRASHED, 1)
    assert done.reason == "rank 1: ValueError: bad shape"
    first, *others = done.errors
    assert (first.rank, first.message) == (1, "ValueError: bad shape")
    assert first.traceback.splitlines()[:4] == [  # Gloo may abort at the end, and say so
        "Traceback (most recent call last):",
        f'  File "{bench.workspace}/script.py", line 10, in <module>',
        '    raise ValueError("bad shape")',
        "ValueError: bad shape",
    ]
    assert [error.rank for error in others] in ([], [0])


@WARM
def test_ranks_are_captured_apart_and_end_at_once_whatever_they_ignore(bench, warm):
    cancel, cancelled = threading.Event(), []

    def on_line(rank, text):
        if not cancel.is_set() and {r for r, _, _ in bench.watch.lines} == {0, 1}:
            cancelled.append(time.monotonic())
            cancel.set()

    bench.watch.on_line = on_line
    script = """
        import json, os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "62"], start_new_session=True)
        print("error of", os.environ["RANK"], file=sys.stderr)
        print(json.dumps([os.environ["RANK"], os.environ["WORLD_SIZE"], sys.argv,
                          os.environ["PYTHONUNBUFFERED"], os.readlink("/proc/self/fd/0")]))
        time.sleep(60)
    """
    done = run(bench, script, warm, args=["--x"], cancel=cancel)
    assert time.monotonic() - cancelled[0] < 30
    assert done.ending is Ending.CANCELLED
    for rank in (0, 1):
        (line,) = bench.log(f"rank{rank}.stdout.log").splitlines()
        assert json.loads(line) == [str(rank), "2", ["script.py", "--x"], "1", "/dev/null"]
        assert bench.log(f"rank{rank}.stderr.log").endswith(b"error of %d\n" % rank)


@WARM
def test_a_rank_that_is_killed(bench, warm):
    script = """
        import os, signal, time
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    """
    done = run(bench, script, warm)
    assert (done.ending, done.exit_code) == (Ending.CRASHED, 1)
    assert done.reason == "rank 1: killed by SIGKILL (out of memory?)"
    assert [(error.rank, error.signal) for error in done.errors] == [(1, "SIGKILL")]


@WARM
def test_the_error_file_of_a_rank_is_read(bench, warm):
    script = """
        import json, os, sys, time
        if os.environ["RANK"] == "1":
            words = {"message": "KeyError: 'lr'", "extraInfo": {"py_callstack": "the stack",
                     "timestamp": "1"}}
            with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
                json.dump({"message": words}, file)
            os._exit(7)
        time.sleep(60)
    """
    done = run(bench, script, warm)
    (error,) = done.errors
    assert (error.rank, error.message, error.traceback) == (1, "KeyError: 'lr'", "the stack")


@pytest.mark.long
def test_time_limit_with_ranks_that_ignore_sigterm(bench):
    script = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        def train():
            while True:
                time.sleep(0.1)
        print("up")
        train()
    """
    done = run(bench, script, timeout_s=14)
    assert done.ending is Ending.TIMED_OUT
    assert done.wall_s == pytest.approx(14, abs=1.5)
    assert bench.ended_s < 17
    assert [error.message for error in done.errors] == ["was in train, script.py line 6"] * 2


@pytest.mark.long
def test_a_rank_that_waits_for_another_is_a_stall(bench):
    script = (
        ALL_REDUCE
        + """
    if dist.get_rank() == 1:
        import time
        time.sleep(300)
    dist.all_reduce(total)
    """
    )
    done = run(bench, script, stall_s=14)
    assert done.ending is Ending.STALLED
    assert {error.rank for error in done.errors} == {0, 1}
    assert "script.py line" in done.reason


@pytest.mark.slow
def test_files_of_the_workspace_do_not_replace_modules_of_the_launcher(bench):
    (bench.workspace / "argparse.py").write_text("raise SystemExit('planted')")
    (bench.workspace / "torch.py").write_text("raise SystemExit('planted')")
    done = run(bench, "print('hi')")
    assert done.ending is Ending.FINISHED
    assert bench.watch.texts() == ["hi"]
    assert b"planted" not in bench.log("launcher.log")


@pytest.mark.slow
def test_torchrun_that_cannot_start_the_script_is_a_lost_job(bench, monkeypatch):
    missing = bench.folder / "nowhere.py"
    monkeypatch.setattr("speedkit.plugins.executors.torchrun._RANK_ENTRY", missing)
    done = run(bench, "print('hi')")
    assert done.ending is Ending.LOST
    assert done.reason.startswith("torchrun could not start the script: ")
