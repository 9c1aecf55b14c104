"""Ranks that are forked from a process which has imported torch: what is as under torchrun.

More of it is in ``test_torchrun_ranks.py``, whose tests run under both.
"""

from __future__ import annotations

import json
import os
import sys

import pytest
from executor_bench import Recorder

from speedkit.core.components import Ending
from speedkit.plugins.executors import torchrun
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked on Linux alone")

ABOUT = """
    import json, os, signal, sys
    import __main__
    same = {n: v for n, v in os.environ.items() if n not in {"MASTER_PORT", "SPEEDKIT_JOB", "PWD"}}
    folders = {"HOME", "TMPDIR", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RUN_ID"}
    facts = {
        "environment": {n: v for n, v in same.items() if n not in folders},
        "folders": sorted(folders & set(same)),
        "error file": os.path.isdir(os.path.dirname(os.environ["TORCHELASTIC_ERROR_FILE"])),
        "arguments": sys.argv,
        "whole command": sys.orig_argv,
        "path": sys.path,
        "flags": list(sys.flags),
        "names": sorted(globals()),
        "main": [__main__.ABOUT, __file__, __name__, __spec__, type(__loader__).__name__]
        if (ABOUT := "this script") else None,
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)],
        "leads a session": os.getsid(0) == os.getpid(),
        "open": sorted(os.listdir("/proc/self/fd"))[:-1],
        "folder": os.getcwd(),
        "write through": sys.stdout.write_through,
        "affinity": sorted(os.sched_getaffinity(0)),
    }
    print(json.dumps(facts))
"""


def run(bench, script, options=None, **facts):
    options = {"warm": True, **(options or {})}
    return bench.run(script, options, launcher="torchrun", **{"nproc": 2, **facts})


def facts_of(bench, rank):
    (line,) = bench.log(f"rank{rank}.stdout.log").splitlines()
    return json.loads(line)


@pytest.mark.parametrize("sandbox", ["bwrap"])
def test_a_rank_is_told_what_torchrun_tells_it(bench):
    found = {}
    for warm in (False, True):
        done = run(bench, ABOUT, {"warm": warm}, args=["--x"])
        assert done.ending is Ending.FINISHED, bench.log("rank1.stderr.log")
        found[warm] = [facts_of(bench, rank) for rank in (0, 1)]
    assert found[True] == found[False]
    assert found[True][1]["environment"]["RANK"] == "1"
    assert found[True][1]["environment"]["OMP_NUM_THREADS"] == "1"


def test_the_same_script_comes_to_the_same_metrics(bench):
    script = """
        import os, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        torch.manual_seed(int(os.environ["SPEEDKIT_SEED"]))
        weight = torch.randn(32, 32, requires_grad=True)
        for step in range(1, 31):
            x = torch.randn(16, 32)
            loss = (torch.tanh(x @ weight) - x.roll(1, 1)).square().mean()
            (grad,) = torch.autograd.grad(loss, weight)
            dist.all_reduce(grad)
            with torch.no_grad():
                weight -= 0.1 * grad
            if step % 10 == 0 and dist.get_rank() == 0:
                print(f"step:{step}/30 val_loss:{loss.item():.8f} train_time:{step}ms")
        dist.destroy_process_group()
    """
    found = []
    for warm in (False, True):
        bench.watch = Recorder()
        done = run(bench, script, {"warm": warm}, env={"SPEEDKIT_SEED": "7"})
        found.append((done.ending, done.exit_code, done.errors, bench.watch.texts()))
    assert found[0] == found[1]
    assert [text.partition(" ")[0] for text in found[0][3]] == [
        "step:10/30",
        "step:20/30",
        "step:30/30",
    ]


def test_torch_is_imported_once_and_no_state_is_shared_between_ranks(bench):
    script = """
        import os, random, sys
        assert "torch" in sys.modules
        import torch
        assert not torch.cuda.is_initialized()
        print(os.getppid(), random.random(), torch.initial_seed())
    """
    assert run(bench, script).ending is Ending.FINISHED
    (a_parent, a_random, a_seed), (b_parent, b_random, b_seed) = (
        bench.log(f"rank{rank}.stdout.log").split() for rank in (0, 1)
    )
    assert a_parent == b_parent
    assert a_random != b_random
    assert a_seed == b_seed


def test_a_syntax_error_is_told_as_python_tells_it(bench):
    done = run(bench, "print('hi')\ndef broken(:\n", nproc=1)
    assert (done.ending, done.exit_code) == (Ending.CRASHED, 1)
    assert done.reason == "rank 0: SyntaxError: invalid syntax"
    assert b"warm_entry" not in bench.log("rank0.stderr.log")


def test_what_a_script_leaves_to_python_is_done_at_its_end(bench):
    for name in ("socket.py", "torch.py", "rank_entry.py"):  # take no module's place
        (bench.workspace / name).write_text("raise SystemExit('planted')")
    script = """
        import atexit, threading, time
        atexit.register(print, "at exit")
        threading.Thread(target=lambda: (time.sleep(0.2), print("from a thread"))).start()
        left_open = open("left_open.txt", "w")
        left_open.write("flushed")
        raise SystemExit(3)
    """
    done = run(bench, script, nproc=1)
    assert (done.ending, done.exit_code) == (Ending.CRASHED, 1)
    assert done.reason == "rank 0: exit code 3"
    assert bench.watch.texts() == ["from a thread", "at exit"]
    assert (bench.workspace / "left_open.txt").read_text() == "flushed"


def test_a_rank_that_fails_ends_one_that_ignores_it(bench):
    script = """
        import os, signal, time
        if os.environ["RANK"] == "1":
            while not os.path.exists("ready"):
                time.sleep(0.01)
            raise KeyError("lr")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("ready", "w").close()
        time.sleep(120)
    """
    done = run(bench, script)
    assert (done.ending, done.reason) == (Ending.CRASHED, "rank 1: KeyError: 'lr'")


def test_a_launcher_that_is_killed_takes_its_ranks_along(bench):
    script = """
        import os, signal, time
        if os.environ["RANK"] == "0":
            time.sleep(0.2)
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(120)
    """
    done = run(bench, script)
    assert done.ending is Ending.CRASHED


@pytest.mark.long
def test_a_time_limit_says_where_the_ranks_were(bench):
    script = """
        import time
        def train():
            time.sleep(60)
        train()
    """
    done = run(bench, script, timeout_s=9)
    assert done.ending is Ending.TIMED_OUT
    assert [error.message for error in done.errors] == ["was in train, script.py line 4"] * 2


def test_an_interpreter_without_torch_is_a_lost_job(bench, monkeypatch):
    (bench.folder / "broken").mkdir()
    (bench.folder / "broken" / "torch.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(bench.folder / "broken"))
    done = run(
        bench, "print('hi')", {"env": "PYTHONPATH", "readable": str(bench.folder / "broken")}
    )
    assert done.ending is Ending.LOST
    assert done.reason == "torchrun could not start the script: ImportError: no such library"


def test_timings_of_warm_jobs_are_not_taken_for_those_of_cold_ones():
    facts = TorchrunExecutor(TorchrunOptions(warm=True)).fingerprint()
    assert dict(facts) == {**TorchrunExecutor().fingerprint(), "warm": True}


def test_only_linux_forks_ranks(bench, monkeypatch):
    executor = bench.executor({"warm": True})
    arguments = ("python", bench.folder, torchrun._RANK_ENTRY, torchrun._WARM_ENTRY)
    job = bench.job("", launcher="torchrun")
    assert "torch.distributed.run" not in executor._command(job, *arguments)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "torch.distributed.run" in executor._command(job, *arguments)


def test_names_come_as_a_list_with_commas():
    options = TorchrunOptions.model_validate({"env": "A,B", "readable": f"/data,{os.sep}more"})
    assert options.env == ("A", "B")
    assert options.readable == ("/data", "/more")
