"""Lanes: how a machine is shared out, which GPUs are given to jobs, and when."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace

import pytest
from executor_bench import Recorder

import speedkit
from speedkit.core.components import Ending, Services
from speedkit.core.errors import ExecutorError
from speedkit.core.task import find_task
from speedkit.plugins.executors import gpu, torchrun
from speedkit.plugins.executors.gpu import Gpu
from speedkit.plugins.executors.lanes import (
    Lane,
    Lanes,
    NoLane,
    in_order,
    make_lanes,
    share,
    uses_gpus,
)
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions
from tests.kit.code_requests import TOY, toy_task

TOOL = """#!/bin/sh
[ ! -e {folder}/slow ] || touch {folder}/asked
while [ -e {folder}/slow ]; do sleep 0.02; done
case "$1" in
--query-gpu=index,uuid,pci.bus_id,name) cat {folder}/gpus ;;
--query-gpu=uuid,memory.used) cat {folder}/used ;;
*) exit 2 ;;
esac
[ ! -e {folder}/fault ] || {{ cat {folder}/fault; exit 9; }}
"""


class FakeGpus:
    """A machine with GPUs, as far as its ``nvidia-smi`` goes.

    Attributes:
        used: MiB in use of each.
    """

    def __init__(self, folder):
        self.folder, self.used = folder, {}

    def plug_in(self, count, models=("H100",)):
        lines = [
            f"{n}, GPU-{n}{n}, 00000000:{n}A:00.0, {models[n % len(models)]}" for n in range(count)
        ]
        (self.folder / "gpus").write_text("".join(f"{line}\n" for line in lines))
        self.use(dict.fromkeys(range(count), 4))

    def use(self, used):
        self.used = {**self.used, **used}
        text = "".join(f"GPU-{n}{n}, {mb}\n" for n, mb in self.used.items() if mb is not None)
        (self.folder / "used").write_text(text)


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """A machine with two GPUs, of which nothing is in use."""
    folder = tmp_path / "nvidia"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text(TOOL.format(folder=folder))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv(gpu.VARIABLE, raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setattr(torchrun, "_said", set())
    made = FakeGpus(folder)
    made.plug_in(2)
    return made


def bound(task=None, **options):
    executor = TorchrunExecutor(TorchrunOptions(**{"sandbox": "none", **options}))
    executor.bind(Services(task=task or toy_task(), seed=0, llm=lambda: None))
    return executor


def names(found):
    return [one.name for one in found]


# --- which GPUs there are -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, ["GPU-00", "GPU-11", "GPU-22"]),
        ("2,0", ["GPU-22", "GPU-00"]),
        ("GPU-1,GPU-22", ["GPU-11", "GPU-22"]),
        ("0,7,1", ["GPU-00"]),
        ("", []),
        ("-1", []),
        ("GPU-", []),
        ("MIG-a,MIG-b", ["MIG-a", "MIG-b"]),
    ],
)
def test_gpus_are_those_that_cuda_would_show(gpus, wanted, found):
    gpus.plug_in(3)
    assert names(gpu.visible({} if wanted is None else {gpu.VARIABLE: wanted})) == found


def test_numbers_that_cuda_may_count_otherwise_are_refused(gpus):
    gpus.plug_in(2, models=("H100", "T4"))
    with pytest.raises(ExecutorError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        gpu.visible({gpu.VARIABLE: "1"})
    in_bus_order = {gpu.VARIABLE: "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert names(gpu.visible(in_bus_order)) == ["GPU-11"]
    assert names(gpu.visible({})) == ["GPU-00", "GPU-11"]


def test_memory_that_is_not_told_and_a_gpu_that_is_lost(gpus):
    (gpus.folder / "used").write_text("GPU-00, [N/A]\n")
    (gpus.folder / "fault").write_text("Unable to determine the device handle for GPU 1\n")
    assert gpu.used_mb() == {"GPU-00": None}
    (gpus.folder / "used").write_text("")
    with pytest.raises(ExecutorError, match="nvidia-smi fails: Unable to determine"):
        gpu.used_mb()


def test_where_a_gpu_is_plugged_in(gpus, tmp_path):
    place = tmp_path / "sys/bus/pci/devices/0000:1a:00.0"
    place.mkdir(parents=True)
    (place / "local_cpulist").write_text("0-2,8\n")
    first, second = gpu.visible({})
    assert gpu.near_cpus(second.bus, tmp_path / "sys") == {0, 1, 2, 8}
    assert gpu.near_cpus(first.bus, tmp_path / "sys") == frozenset()


# --- sharing out ----------------------------------------------------------------------------

FOUR = tuple(Gpu(f"GPU-{n}", f"bus-{n}") for n in range(4))
NOWHERE = {"near": lambda bus: frozenset()}


@pytest.mark.parametrize(
    ("wanted", "nproc", "gpus", "count"),
    [
        (None, 1, 4, 4),
        (None, 2, 4, 2),
        (None, 3, 4, 1),
        (None, 8, 4, 1),
        (0, 1, 4, 4),
        (1, 1, 4, 1),
        (2, 1, 4, 2),
        (None, 2, 0, 1),
        (0, 2, 0, 4),
        (0, 64, 0, 1),
        (3, 2, 0, 3),
    ],
)
def test_how_many_lanes_there_are(wanted, nproc, gpus, count):
    assert len(make_lanes(wanted, nproc, FOUR[:gpus], range(8), **NOWHERE)) == count


def test_each_lane_has_gpus_and_cpus_of_its_own():
    assert make_lanes(None, 2, FOUR, range(8), **NOWHERE) == (
        Lane(0, ("GPU-0", "GPU-1"), ("GPU-0", "GPU-1"), (0, 1, 2, 3)),
        Lane(1, ("GPU-2", "GPU-3"), ("GPU-2", "GPU-3"), (4, 5, 6, 7)),
    )


def test_one_lane_that_has_all_is_left_alone():
    (lane,) = make_lanes(None, 4, FOUR, range(8), **NOWHERE)
    assert (lane.env, lane.cpus, lane.gpus) == ({}, (), tuple(one.name for one in FOUR))
    (lane,) = make_lanes(1, 1, FOUR, range(8), **NOWHERE)
    assert (lane.env, lane.cpus) == ({gpu.VARIABLE: "GPU-0"}, ())


def test_too_many_lanes_for_the_gpus():
    with pytest.raises(ExecutorError, match=r"need 6 GPUs, of which 4.*executor\.lanes=2"):
        make_lanes(3, 2, FOUR, range(8), **NOWHERE)


@pytest.mark.parametrize(
    ("cpus", "near", "parts"),
    [
        (4, [(), ()], [(0, 1), (2, 3)]),
        (5, [(), ()], [(0, 1), (2, 3)]),
        (4, [(2, 3), (0, 1)], [(2, 3), (0, 1)]),
        (4, [(9,), (9,)], [(0, 1), (2, 3)]),  # near ones that this process may not use
        (8, [(0, 1, 2, 3)] * 2, [(0, 1), (2, 3)]),  # both on one side: none is better off
        (8, [(0, 1)] * 4, [(0, 1), (2, 3), (4, 5), (6, 7)]),  # so few that far ones must do
        (2, [(), (), ()], [(), (), ()]),
    ],
)
def test_cpus_in_equal_shares_near_the_gpus(cpus, near, parts):
    assert share(range(cpus), [frozenset(some) for some in near]) == parts


def test_threads_of_a_core_stay_together(tmp_path):
    for cpu in range(4):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert in_order([0, 1, 2, 3], tmp_path) == [0, 2, 1, 3]
    node = tmp_path / "devices/system/node/node0"
    node.mkdir(parents=True)
    (node / "cpulist").write_text("1,3\n")
    (tmp_path / "devices/system/node/node1").mkdir()
    (tmp_path / "devices/system/node/node1/cpulist").write_text("0,2\n")
    assert in_order([0, 1, 2, 3], tmp_path) == [1, 3, 0, 2]
    assert in_order([3, 1], tmp_path / "nowhere") == [1, 3]


@pytest.mark.parametrize(
    ("name", "uses"), [(f"{TOY}/1", True), ("nanogpt/1", True), ("mini/1", False)]
)
def test_records_that_were_timed_on_cpus_use_no_gpu(name, uses):
    assert uses_gpus(find_task(name)) is uses


# --- giving out -----------------------------------------------------------------------------


class Clock:
    """Seconds that pass when it is looked at."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def two_lanes(used, **settings):
    lanes = [Lane(n, (f"GPU-{n}",), (f"GPU-{n}",)) for n in range(2)]
    return Lanes(lanes, used_mb=lambda: used, **settings)


@pytest.fixture
def quick(monkeypatch):
    """Lanes that look often."""
    monkeypatch.setattr("speedkit.plugins.executors.lanes.LOOK_S", 0.01)


def test_no_two_jobs_have_a_lane_at_once(quick):
    pool, cancel = two_lanes({"GPU-0": 0, "GPU-1": 0}), threading.Event()
    others = two_lanes({"GPU-0": 0, "GPU-1": 0})  # those of another run in this process
    with pool.hold(cancel) as first, others.hold(cancel) as second:
        assert {first.number, second.number} == {0, 1}
        threading.Timer(0.1, cancel.set).start()
        with pool.hold(cancel) as third:
            assert third is None
    with pool.hold(threading.Event()) as lane:
        assert lane.number == 0


def test_lanes_are_given_in_the_order_in_which_they_were_asked_for(quick, eventually):
    pool = Lanes([Lane(0, ("GPU-0",))], used_mb=lambda: {"GPU-0": 0})
    order, never = [], threading.Event()

    def job(name):
        with pool.hold(never):
            order.append(name)

    with pool.hold(never):
        threads = [threading.Thread(target=job, args=(n,)) for n in range(4)]
        for number, thread in enumerate(threads, start=2):
            thread.start()
            eventually(lambda number=number: len(pool._queue) == number - 1)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]


def test_a_gpu_is_waited_for_and_another_taken_meanwhile(quick):
    used = {"GPU-0": 40_000.0, "GPU-1": 0.0}
    pool, never = two_lanes(used, wait_s=1000), threading.Event()
    with pool.hold(never) as lane:
        assert lane.number == 1
        threading.Timer(0.1, used.update, [{"GPU-0": 500.0}]).start()
        with pool.hold(never) as other:
            assert (other.number, used["GPU-0"]) == (0, 500.0)


def test_a_gpu_that_stays_in_use_is_given_up_and_said_so_once(quick):
    used, said, never = {"GPU-0": 40_000.0, "GPU-1": 0.0}, [], threading.Event()
    pool = two_lanes(used, wait_s=3, warn=said.append, now=Clock(1))
    for _ in range(5):
        with pool.hold(never) as lane:
            assert lane.number == 1
    assert said == ["lane 0 is not used any more: GPU-0 has 40000 MB in use"]
    used["GPU-0"] = 0.0
    with pool.hold(never):
        threading.Timer(0.1, never.set).start()
        with pool.hold(never) as lane:
            assert lane is None  # the only other one stays given up


def test_when_no_gpu_is_left_it_is_said_what_to_do(quick):
    pool = two_lanes({"GPU-0": 40_000.0}, wait_s=0)
    with pytest.raises(NoLane) as caught, pool.hold(threading.Event()):
        pass
    assert str(caught.value).startswith(
        "no GPU is free for a job: GPU-0 has 40000 MB in use; GPU-1 is not known to nvidia-smi."
    )
    assert "executor.gpu_wait_s" in str(caught.value)


def test_memory_that_nobody_tells_is_taken_for_free(quick):
    pool = Lanes([Lane(0, ("GPU-0",)), Lane(1, ("MIG-1",))], used_mb=lambda: {"GPU-0": None})
    never = threading.Event()
    with pool.hold(never) as first, pool.hold(never) as second:
        assert (first.number, second.number) == (0, 1)


def test_a_slow_driver_keeps_no_job_from_ending(gpus, quick, eventually):
    pool = Lanes([Lane(n, (f"GPU-{n}{n}",)) for n in range(2)])
    others = Lanes([Lane(0, ("GPU-11",))])
    never, ended, got = threading.Event(), threading.Event(), []

    def job(lanes):
        with lanes.hold(never) as lane:
            got.append(lane.gpus)
            ended.wait(10)

    with pool.hold(never) as lane:
        assert lane.number == 0
        (gpus.folder / "slow").touch()
        threads = [threading.Thread(target=job, args=(lanes,)) for lanes in (pool, others)]
        threads[0].start()
        eventually((gpus.folder / "asked").exists)
        threads[1].start()
        back = threading.Thread(target=pool._give_back, args=(lane,))
        back.start()
        back.join(5)
        was_given_back = not back.is_alive()
        (gpus.folder / "slow").unlink()
        eventually(lambda: got)
        time.sleep(0.1)
    given = list(got)
    ended.set()
    for thread in threads:
        thread.join(10)
    assert was_given_back
    assert given == [("GPU-11",)], "nobody else got the lane that was asked about"
    assert got == [("GPU-11",)] * 2


# --- the executor ---------------------------------------------------------------------------

SEES = """
    import os
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(os.sched_getaffinity(0)))
"""


def test_jobs_see_the_gpu_of_their_lane(bench, gpus):
    executor = bound()
    assert executor.lanes == 2
    gpus.use({0: 30_000})
    assert executor.execute(bench.job(SEES), bench.watch).ending is Ending.FINISHED
    assert bench.watch.texts()[0].startswith("GPU-11 ")
    own = len(os.sched_getaffinity(0))
    facts = executor.fingerprint()
    assert (facts["lanes"], facts["lane_cpus"]) == (2, own // 2)


@pytest.fixture
def no_gpus(monkeypatch):
    """A machine without GPUs."""
    monkeypatch.setattr(gpu, "query", lambda *fields: [])
    monkeypatch.delenv(gpu.VARIABLE, raising=False)


def test_one_job_at_a_time_has_the_machine_to_itself(bench, no_gpus):
    executor = bound()
    assert executor.lanes == 1
    executor.execute(bench.job(SEES), bench.watch)
    assert bench.watch.texts() == [f"None {sorted(os.sched_getaffinity(0))}"]
    assert "lanes" not in executor.fingerprint()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("sandbox", ["bwrap", "none"])
def test_jobs_on_cpus_share_them_out(bench, sandbox, no_gpus):
    executor = bound(lanes=2, sandbox=sandbox)

    def cpus_of_a_job(name):
        (bench.folder / name).mkdir()
        watch = Recorder()
        executor.execute(replace(bench.job(SEES), name=name, log_dir=bench.folder / name), watch)
        return set(json.loads(watch.texts()[0].removeprefix("None ")))

    first = cpus_of_a_job("first")
    with executor._open_lanes().hold(threading.Event()) as lane:
        second = cpus_of_a_job("second")
    assert set(lane.cpus) == first
    assert len(first) == len(second) == len(os.sched_getaffinity(0)) // 2
    assert not first & second


def test_a_job_that_is_cancelled_while_it_waits_for_a_gpu(bench, gpus):
    gpus.use({0: 30_000, 1: 30_000})
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    done = bound().execute(bench.job(SEES, cancel=cancel), bench.watch)
    assert (done.ending, bench.watch.lines) == (Ending.CANCELLED, [])


def test_an_outer_choice_of_gpus_is_kept(gpus, monkeypatch):
    gpus.plug_in(4)
    monkeypatch.setenv(gpu.VARIABLE, "3,GPU-11")
    executor = bound()
    assert [lane.sees for lane in executor._make_lanes()] == [("GPU-33",), ("GPU-11",)]


def test_a_broken_driver_leaves_one_lane_and_says_so(gpus, caplog):
    (gpus.folder / "gpus").write_text("")
    (gpus.folder / "fault").write_text("Failed to initialize NVML\n")
    assert bound().lanes == 1
    assert "GPUs are not shared out among jobs: nvidia-smi fails: Failed to" in caplog.text


def test_a_task_may_say_which_gpus_it_uses(gpus):
    task = toy_task()
    run = task.transition.run.model_copy(update={"env": {gpu.VARIABLE: "1"}})
    transition = task.transition.model_copy(update={"run": run})
    executor = bound(task.model_copy(update={"transition": transition}))
    assert [lane.gpus for lane in executor._make_lanes()] == [("GPU-11",)]


def test_a_whole_run_is_on_lanes_its_calibration_as_well(toy_run, gpus, monkeypatch):
    seen = []
    run = TorchrunExecutor._run

    def spy(self, job, watch, python, found, folder, lane):
        seen.append((job.name, job.env[gpu.VARIABLE]))
        return run(self, job, watch, python, found, folder, lane)

    monkeypatch.setattr(TorchrunExecutor, "_run", spy)
    options = {"executor": {"sandbox": "none"}}
    settings = {"executor": "torchrun", "scaffold": "flat", "guards": (), "options": options}
    tree = toy_run(nodes=4, calibration_runs=1, **settings)
    assert tree.lanes["lanes"] == 2
    calibrations = [device for name, device in seen if not name.startswith("node-")]
    assert calibrations == ["GPU-00", "GPU-00"]
    assert {device for _, device in seen} <= {"GPU-00", "GPU-11"}


def test_a_run_without_a_free_gpu_ends_and_can_be_resumed(toy_run, gpus, tmp_path):
    gpus.use({0: 30_000, 1: 30_000})
    options = {"executor": {"sandbox": "none", "gpu_wait_s": 0}}
    settings = {"executor": "torchrun", "guards": (), "options": options, "calibration_runs": 1}
    with pytest.raises(ExecutorError, match="no GPU is free for a job"):
        toy_run(nodes=1, **settings)
    gpus.use({0: 0, 1: 0})
    assert len(speedkit.run(resume=tmp_path / "run")) == 2
