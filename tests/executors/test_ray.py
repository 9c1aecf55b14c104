"""Jobs on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import dataclasses
import json
import secrets
import subprocess
import sys
import threading

import pytest
from executor_bench import EngineBench, controller, wait_for

from speedkit.core.components import Ending
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors.ray import RayExecutor, RayOptions
from tests.kit import ray_cluster as fixtures

ray_cluster = fixtures.ray_cluster
pytestmark = pytest.mark.engines

SLEEPER = "import time\nprint('up')\ntime.sleep(60)"
CONTROLLER = controller("ray", "Ray")


def next_line(process, start):
    """Return the next line that begins so: Ray may tell of nodes lost earlier in between."""
    return next(line for line in process.stdout if line.startswith(start))


class RayBench(EngineBench):
    """A bench whose scripts run on the cluster."""

    cluster = None

    @property
    def options(self):
        return {"poll_s": 0.1, "cpus": 1, "address": self.cluster.address}

    def make(self, **options):
        return RayExecutor(RayOptions(**{**self.options, **options}))


@pytest.fixture
def bench(ray_cluster, tmp_path):
    made = RayBench(tmp_path, f"bench-{secrets.token_hex(8)}")
    made.cluster = ray_cluster
    made.workspace.mkdir()
    made.log_dir.mkdir()
    yield made
    wait_for(lambda: not made.survivors(), 10)


def test_a_node_lost_during_a_job_loses_the_job_and_the_next_attempt_runs(bench):
    node = fixtures.add_node(bench.cluster, third=1)

    def lose(rank, text):
        bench.watch.on_line = lambda rank, text: None
        bench.cluster.remove_node(node, allow_graceful=False)

    bench.watch.on_line = lose
    done = bench.run(SLEEPER, {"resources": ["third=1"]})
    assert (done.ending, done.errors) == (Ending.LOST, ())
    assert done.reason.startswith("Ray lost the job: ")
    wait_for(lambda: not bench.survivors(), 10)
    assert bench.run("print('again')").ending is Ending.FINISHED


def test_waiting_for_room_does_not_count_and_can_be_cancelled(bench):
    cancel = threading.Event()
    threading.Timer(2, cancel.set).start()
    done = bench.run("print('never')", {"resources": ["nowhere=1"]}, timeout_s=1, cancel=cancel)
    assert (done.ending, done.reason, bench.watch.lines) == (Ending.CANCELLED, "cancelled", [])


def test_a_job_is_on_one_node_and_holds_what_it_asked_for(bench):
    import ray

    seen = []
    bench.watch.on_line = lambda rank, text: seen.append(ray.available_resources())
    done = bench.run("import time\nprint('up')\ntime.sleep(1.5)", {"resources": ["second=3"]})
    assert done.ending is Ending.FINISHED
    assert seen[0].get("second", 0) == 1
    wait_for(lambda: ray.available_resources().get("second") == 4)


def test_the_job_of_a_killed_controller_is_found_again(bench):
    script = """
        import time
        for n in range(1, 9):
            print(f"step:{n}/8 val_loss:3.{n}000 train_time:{n}ms")
            time.sleep(0.5)
    """
    job = bench.job(script)
    arguments = [str(bench.folder), bench.run_id, json.dumps(bench.options)]
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *arguments], stdout=subprocess.PIPE, text=True
    )
    handle = json.loads(next_line(process, "{"))
    assert next_line(process, "step:").startswith("step:1/8")
    process.kill()
    process.wait()
    process.stdout.close()
    done = bench.make().adopt(dataclasses.replace(job), handle, bench.watch)
    assert done.ending is Ending.FINISHED
    steps = [text.split("/")[0] for text in bench.watch.texts()]
    assert steps == [f"step:{n}" for n in range(1, 9)]
    events = list(bench.log_dir.glob("ray-*/events.jsonl"))
    assert len(events) == 1, "it was started once"


def test_a_job_that_no_journal_names_is_ended_before_it_is_run_again(bench):
    bench.job(SLEEPER)
    arguments = [str(bench.folder), bench.run_id, json.dumps(bench.options)]
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert json.loads(next_line(process, "{"))["engine"] == "ray"
    assert next_line(process, "up") == "up\n"
    process.kill()
    process.communicate()
    assert bench.survivors()
    done = bench.run("print('second')")
    assert (done.ending, bench.watch.texts()) == (Ending.FINISHED, ["second"])
    wait_for(lambda: not bench.survivors())


def test_a_job_that_ray_does_not_know_is_run_again(bench):
    done = bench.run("print('hi')")
    assert done.ending is Ending.FINISHED
    handle = {**bench.watch.handles[0], "name": "nobody", "folder": str(bench.folder / "none")}
    assert bench.make().adopt(bench.job("print('hi')"), handle, bench.watch) is None


def test_ray_is_missed_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'speedkit\[ray\]'"):
        RayExecutor().look({"folder": "x", "name": "y"})


def test_ray_is_imported_only_when_a_job_is_run():
    code = (
        "import sys, speedkit.plugins.executors.ray as module; module.RayExecutor(); "
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_number_of_gpus_is_asked_for(monkeypatch, tmp_path):
    from speedkit.core.components import Job

    class FakeRay:
        @staticmethod
        def cluster_resources():
            return {"GPU": 8.0}

    job = Job("node-1", "run", tmp_path, tmp_path, "s.py", nproc=8)
    demand = RayExecutor()._demand(FakeRay, job)
    assert (demand["num_cpus"], demand["num_gpus"]) == (8, 8)
    executor = RayExecutor(RayOptions(gpus=0.5, cpus=2, memory_gb=1, resources=["a=2", "b"]))
    demand = executor._demand(FakeRay, job)
    assert (demand["num_cpus"], demand["num_gpus"], demand["memory"]) == (2, 0.5, 1e9)
    assert demand["resources"] == {"a": 2.0, "b": 1.0}
