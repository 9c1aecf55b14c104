"""What every executor has to keep, asked of each that can run here: torchrun, slurm and ray."""

from __future__ import annotations

import dataclasses
import json
import secrets
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from executor_bench import EngineBench, Recorder, proc, wait_for

from speedkit.core.components import Ending
from speedkit.core.metrics import parse_log
from tests.kit import ray_cluster as ray_fixtures
from tests.kit.slurm import fixtures as slurm_fixtures

ray_cluster = ray_fixtures.ray_cluster
session_slurm, slurm = slurm_fixtures.session_slurm, slurm_fixtures.slurm
QUICK = {"poll_s": 0.1}
METRICS = [f"step:{n}/2 val_loss:3.{n}000 train_time:{5 * n}ms" for n in (1, 2)]
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
    time.sleep(0.5)
    print("daemons are up")
    time.sleep($WAIT)
"""


class AnyBench(EngineBench):
    """A bench for each executor in turn."""

    def survivors(self):
        """Those of the job itself: the engine's own program may take a moment to exit."""
        found = super().survivors()
        return [pid for pid in found if b"executors.remote_job" not in proc(pid, "cmdline")]


def make_torchrun(request):
    from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

    return lambda **options: TorchrunExecutor(TorchrunOptions(**options))


def make_slurm(request):
    request.getfixturevalue("slurm")
    from speedkit.plugins.executors.slurm import SlurmExecutor, SlurmOptions

    quick = {**QUICK, "states_s": 0.5, "cpus": 1}
    return lambda **options: SlurmExecutor(SlurmOptions(**{**quick, **options}))


def make_ray(request):
    cluster = request.getfixturevalue("ray_cluster")
    from speedkit.plugins.executors.ray import RayExecutor, RayOptions

    quick = {**QUICK, "cpus": 1, "address": cluster.address}
    return lambda **options: RayExecutor(RayOptions(**{**quick, **options}))


ENGINES = [
    pytest.param(make_torchrun, id="torchrun", marks=pytest.mark.long),
    pytest.param(make_slurm, id="slurm", marks=pytest.mark.engines),
    pytest.param(make_ray, id="ray", marks=pytest.mark.engines),
]


@pytest.fixture(params=ENGINES)
def bench(request, tmp_path):
    """A bench for each executor; its scripts must leave no process behind."""
    made = AnyBench(tmp_path, f"bench-{secrets.token_hex(8)}")
    made.make = request.param(request)
    made.workspace.mkdir()
    made.log_dir.mkdir()
    yield made
    wait_for(lambda: not made.survivors(), 5)


# --- events and metrics -----------------------------------------------------------------------


def test_a_job_that_finishes(bench):
    done = bench.run(f"print({METRICS[0]!r})\nprint('between')\nprint({METRICS[1]!r})")
    assert (done.ending, done.exit_code, done.errors) == (Ending.FINISHED, 0, ())
    assert (done.reason, done.collected) == ("", ())
    assert bench.watch.texts() == [METRICS[0], "between", METRICS[1]]
    assert [m.train_time_ms for m in parse_log(bench.watch.texts()).curve] == [5, 10]
    (handle,) = bench.watch.handles
    assert json.loads(json.dumps(handle)) == handle


def test_lines_come_while_the_job_runs(bench):
    seen = []
    bench.watch.on_line = lambda rank, text: seen.append(time.monotonic())
    done = bench.run("import time\nprint('first')\ntime.sleep(1.5)\nprint('second')")
    first, second = (at for _, _, at in bench.watch.lines)
    assert second - first == pytest.approx(1.5, abs=0.7)
    assert seen[1] - seen[0] > 0.7
    assert done.wall_s == pytest.approx(1.5, abs=1)


def test_logs_are_kept_apart_and_within_limits(bench):
    script = """
        import sys
        print("to err", file=sys.stderr)
        for n in range(2000):
            print(f"line {n:05d}")
    """
    bench.run(script, {"log_head_mb": 0.001, "log_tail_mb": 0.001})
    assert bench.log("rank0.stderr.log") == b"to err\n"
    log = bench.log("rank0.stdout.log")
    assert log.startswith(b"line 00000\n")
    assert log.endswith(b"line 01999\n")
    assert b"bytes left out here]" in log
    assert len(log) < 4000


def test_the_environment_is_an_allow_list(bench, monkeypatch):
    canary = "canary-4711"
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "OTHER", "SBATCH_COMMENT"):
        monkeypatch.setenv(name, canary)
    script = """
        import json, os, sys
        print(json.dumps([dict(os.environ), sys.argv, os.getcwd()]))
    """
    bench.run(script, env={"SPEEDKIT_SEED": "3"}, args=["--steps", "$(id)"])
    environment, argv, folder = json.loads(bench.watch.texts()[0])
    assert canary not in json.dumps(environment)
    assert environment["SPEEDKIT_SEED"] == "3"
    assert not [name for name in environment if name.startswith(("SLURM_", "SBATCH_", "RAY_"))]
    assert argv == ["script.py", "--steps", "$(id)"]
    assert folder == str(bench.workspace)
    files = [path for path in bench.log_dir.rglob("*") if path.is_file()]
    assert canary not in "".join(path.read_text() for path in files)


def test_files_are_collected_and_links_are_not(bench):
    script = """
        import os
        os.mkdir("logs")
        with open("logs/run.txt", "w") as file:
            file.write("step:1/1 val_loss:3.2000 train_time:5ms")
        os.symlink("/etc/passwd", "logs/link.txt")
    """
    done = bench.run(script, collect=["logs/*.txt"])
    assert [path.read_text() for path in done.collected] == [
        "step:1/1 val_loss:3.2000 train_time:5ms"
    ]
    assert done.collected[0].is_relative_to(bench.log_dir)


def test_several_at_once(bench):
    executor = bench.make(lanes=4)
    script = "import sys, time\ntime.sleep(1)\nprint('number', sys.argv[1])"

    def one(number):
        log_dir = bench.folder / f"logs-{number}"
        log_dir.mkdir()
        job = bench.job(script, args=[str(number)])
        job = dataclasses.replace(job, log_dir=log_dir, name=f"job-{number}")
        watch = Recorder()
        done = executor.execute(job, watch)
        return done.ending, watch.texts()

    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(4)))
    assert results == [(Ending.FINISHED, [f"number {n}"]) for n in range(4)]
    assert time.monotonic() - began < 12


# --- causes of failure ------------------------------------------------------------------------


def test_an_exception(bench):
    done = bench.run("def step():\n    raise ValueError('bad shape')\nprint('hi')\nstep()")
    assert (done.ending, done.exit_code) == (Ending.CRASHED, 1)
    assert done.reason == "ValueError: bad shape"
    (error,) = done.errors
    assert (error.rank, error.message, error.signal) == (0, "ValueError: bad shape", None)
    assert "in step\n" in error.traceback


def test_killed_by_a_signal(bench):
    done = bench.run("import os\nos.kill(os.getpid(), 9)")
    assert (done.ending, done.exit_code) == (Ending.CRASHED, None)
    assert done.reason == "killed by SIGKILL (out of memory?)"


def test_the_rank_that_failed_is_named(bench):
    script = """
        import os, time
        print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
        time.sleep(1)
        if os.environ["RANK"] == "1":
            raise ValueError("bad shape")
        time.sleep(60)
    """
    done = bench.run(script, launcher="torchrun", nproc=2)
    assert (done.ending, done.reason) == (Ending.CRASHED, "rank 1: ValueError: bad shape")
    assert (done.errors[0].rank, done.errors[0].message) == (1, "ValueError: bad shape")
    assert 'raise ValueError("bad shape")' in done.errors[0].traceback
    assert sorted(text for _, text, _ in bench.watch.lines) == ["rank 0 of 2", "rank 1 of 2"]
    assert bench.log("rank1.stdout.log") == b"rank 1 of 2\n"


# --- limits -----------------------------------------------------------------------------------


def test_time_limit_holds_against_a_script_that_ignores_signals(bench):
    script = """
        import signal, time
        for number in set(signal.valid_signals()) - {9, 19}:
            signal.signal(number, signal.SIG_IGN)
        while True:
            print("still here")
            time.sleep(0.05)
    """
    done = bench.run(script, timeout_s=1.5)
    assert (done.ending, done.reason) == (Ending.TIMED_OUT, "not finished after 1.5 s")
    assert bench.ended_s < 10


def test_silence_is_a_stall_and_says_where(bench):
    script = "import time\nprint('hi')\ndef wait():\n    time.sleep(60)\nwait()"
    done = bench.run(script, stall_s=1)
    assert done.ending is Ending.STALLED
    assert done.reason == "no output for 1 s; was in wait, script.py line 4"


def test_endless_output_is_ended(bench):
    script = f"print({METRICS[0]!r}, flush=True)\nimport os\nwhile True: os.write(2, b'x' * 65536)"
    done = bench.run(script, {"max_output_mb": 50})
    assert (done.ending, done.reason) == (Ending.FLOODED, "more than 50 MB of output")
    assert bench.watch.texts() == METRICS[:1]
    assert sum(p.stat().st_size for p in bench.log_dir.rglob("*") if p.is_file()) < 17_000_000


def test_options_win_over_the_job(bench):
    done = bench.run("import time; time.sleep(60)", {"timeout_s": 0.5}, timeout_s=50)
    assert done.ending is Ending.TIMED_OUT


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wait_s", [0, 60], ids=["ends", "is cancelled"])
def test_daemons_end_with_the_job(bench, wait_s):
    cancel = threading.Event()
    bench.watch.on_line = lambda rank, text: wait_s and text == "daemons are up" and cancel.set()
    script = textwrap.dedent(DAEMONS).replace("$TOKEN", repr(bench.run_id))
    done = bench.run(script.replace("$WAIT", str(wait_s)), cancel=cancel)
    assert done.ending is (Ending.CANCELLED if wait_s else Ending.FINISHED)
    assert not bench.survivors()
    assert bench.ended_s < 15


def test_cancelled_before_it_began(bench):
    cancel = threading.Event()
    cancel.set()
    assert bench.run("import time; time.sleep(60)", cancel=cancel).ending is Ending.CANCELLED
    assert bench.ended_s < 10


def test_a_watch_that_raises_ends_the_job(bench):
    def fail(rank, text):
        raise ValueError("disk full")

    bench.watch.on_line = fail
    with pytest.raises(ValueError, match="disk full"):
        bench.run("import time\nprint('hi')\ntime.sleep(60)")
    assert not bench.survivors()


def test_a_job_whose_controller_is_gone_can_be_ended_by_its_handle(bench):
    """The handle alone suffices, for another instance of the executor."""
    cancel, ended = threading.Event(), []

    def reap(rank, text):
        threading.Thread(target=lambda: ended.append(bench.make().reap(handle()))).start()

    def handle():
        return json.loads(json.dumps(bench.watch.handles[0]))

    bench.watch.on_line = reap
    done = bench.run("import time\nprint('hi')\ntime.sleep(60)", cancel=cancel)
    assert done.ending in (Ending.LOST, Ending.CANCELLED)
    wait_for(lambda: bool(ended), 30)
    assert not bench.survivors()
