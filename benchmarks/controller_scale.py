"""Memory and CPU of one process that is the controller of many runs at once.

    python benchmarks/controller_scale.py [--runs 64] [--nodes 20] [--scaffold tree] [--sleep 0]

Every run is a search of its own, in a thread, with a run directory of its own. The job is a
fake one that ends at once, so that all that is measured is the controller. Goals: at most
1 GiB of memory and 0.2 s of CPU a node, whatever the number of runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from instant_family import FAMILY

import speedkit
from speedkit.core.components import Ending, Execution, Executor
from speedkit.core.plugins import Plugins

SCRIPT = "# A script that nobody runs.\n" + "x = 1\n" * 500
LINES = [f"step:{n}/10 val_loss:{4 - 0.11 * n:.4f} train_time:{90 * n}ms" for n in range(11)]
MAX_BYTES = 1 << 30
MAX_CPU_S = 0.2


class FakeExecutor(Executor):
    """Says at once what a training run would have said after a while."""

    sleep_s = 0.0

    def execute(self, job, watch):
        watch.started({"job": job.name})
        for n, line in enumerate(LINES):
            time.sleep(self.sleep_s / len(LINES))
            watch.line(0, line, 0.1 * n)
        return Execution(Ending.FINISHED, 0, wall_s=1.0)

    def fingerprint(self):
        return {"executor": "fake"}


@speedkit.hookimpl
def register_executors(register):
    """Offer the fake executor."""
    register("fake", FakeExecutor)


class Peak(threading.Thread):
    """The most threads and descriptors that were seen."""

    def __init__(self):
        super().__init__(daemon=True)
        self.threads = self.descriptors = 0
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.2):
            self.threads = max(self.threads, threading.active_count())
            self.descriptors = max(self.descriptors, len(os.listdir("/proc/self/fd")))


def search(folder, number, args, plugins):
    """Do one run; return how many nodes it has."""
    tree = speedkit.run(
        f"{folder}/1",
        out=folder / "runs" / f"{number:04d}",
        plugins=plugins,
        executor="fake",
        scaffold=args.scaffold,
        coder="noop",
        nodes=args.nodes,
        seed=number,
        calibration="reference",
    )
    if tree.status != "finished":
        raise SystemExit(f"run {number} is {tree.status}")
    return len(tree) - 1


def measure(folder, args):
    """Do all runs at once; return what they cost."""
    (folder / "family.toml").write_text(FAMILY)
    (folder / "train.py").write_text(SCRIPT)
    FakeExecutor.sleep_s = args.sleep
    plugins = Plugins((__file__,))
    search(folder, 0, args, plugins)  # Imports are not counted to the nodes.
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = Peak()
    peak.start()
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(args.runs) as pool:
        todo = range(1, args.runs + 1)
        nodes = sum(pool.map(lambda number: search(folder, number, args, plugins), todo))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = {
        "runs": args.runs,
        "nodes": nodes,
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s_per_node": round((time.process_time() - cpu) / nodes, 4),
        "children_cpu_s": round(children.ru_utime + children.ru_stime, 2),
        "base_mb": round(base / 1e6),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "threads": peak.threads,
        "descriptors": peak.descriptors,
    }
    peak.over.set()
    peak.join()
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--scaffold", default="tree")
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds that a job takes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder), args)
    print(json.dumps(facts, indent=1))
    good = facts["cpu_s_per_node"] <= MAX_CPU_S and facts["peak_mb"] * 1e6 <= MAX_BYTES
    print("within the goals" if good else "NOT within the goals")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
