"""Whether jobs on lanes disturb each other: one job alone, then as many at once as there are lanes.

    python benchmarks/lanes.py [--lanes 4] [--nproc 1] [--repeats 3] [--seconds 20] [--cpu]

On a machine with GPUs each lane has `nproc` of them, and a job multiplies matrices there; else,
and with `--cpu`, a job does so on the CPUs of its lane. A job does a fixed amount of work, which
is first measured to take about so many seconds. Prints the wall-clock time of the slowest of the
jobs at once over that of one alone. Goal: at most 1.3, with four lanes of one GPU each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speedkit.core.components import Ending, Job
from speedkit.core.errors import SpeedkitError
from speedkit.plugins.executors import gpu
from speedkit.plugins.executors.lanes import Lane, make_lanes, own_cpus
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

GOAL = 1.3
TRIED = 5
"""Rounds of work in the job that measures how long one takes."""
SCRIPT = """
import sys, time, torch
rounds, device = int(sys.argv[1]), sys.argv[2]
size = 8192 if device == "cuda" else 512
if device == "cuda":
    import os
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
else:
    torch.set_num_threads(1)
weight = torch.randn(size, size, device=device) / size**0.5
def work(rounds):
    total = torch.eye(size, device=device)
    for _ in range(rounds * 20):
        total = total @ weight
    return total.sum().item()
work(1)
began = time.perf_counter()
work(rounds)
print("worked", time.perf_counter() - began)
"""


class Listener:
    """Keeps the seconds that a job says it worked."""

    worked_s = 0.0

    def started(self, handle):
        pass

    def line(self, rank, text, at_s):
        if rank == 0 and text.startswith("worked "):
            self.worked_s = float(text.split()[1])


class Bench:
    """Runs jobs of one kind below a folder."""

    def __init__(self, folder: Path, lanes: Sequence[Lane], nproc: int) -> None:
        self.folder, self.lanes, self.nproc, self.count = folder, lanes, nproc, 0
        self.device = "cuda" if lanes[0].gpus else "cpu"
        self.executor = TorchrunExecutor(TorchrunOptions())
        self.executor.use_lanes(lanes)

    def run(self, rounds: int, jobs: int = 1) -> tuple[float, list[float]]:
        """Return the seconds until all of some jobs were done, and those that each worked."""
        made = [self._job(rounds) for _ in range(jobs)]
        began = time.monotonic()
        with ThreadPoolExecutor(jobs) as pool:
            worked = list(pool.map(self._execute, made))
        return time.monotonic() - began, worked

    def _job(self, rounds: int) -> Job:
        self.count += 1
        folder = self.folder / str(self.count)
        for part in ("workspace", "logs"):
            (folder / part).mkdir(parents=True)
        (folder / "workspace" / "script.py").write_text(SCRIPT)
        return Job(
            name=f"job-{self.count}",
            run_id="lanes",
            workspace=folder / "workspace",
            log_dir=folder / "logs",
            script="script.py",
            args=(str(rounds), self.device),
            nproc=self.nproc,
            timeout_s=600,
        )

    def _execute(self, job: Job) -> float:
        listener = Listener()
        done = self.executor.execute(job, listener)
        if done.ending is not Ending.FINISHED:
            raise SpeedkitError(f"{job.name}: {done.reason}")
        return listener.worked_s


def measure(bench: Bench, repeats: int, seconds: float) -> tuple[list[float], list[float]]:
    """Return the ratios of wall-clock and of working time, all jobs at once over one alone."""
    _, (tried_s,) = bench.run(TRIED)
    rounds = max(1, round(TRIED * seconds / tried_s))
    walls, works = [], []
    for number in range(repeats):
        alone = bench.run(rounds)
        together = bench.run(rounds, len(bench.lanes))
        walls.append(together[0] / alone[0])
        works.append(max(together[1]) / alone[1][0])
        print(f"{number}: alone {alone[0]:.1f} s, {len(bench.lanes)} at once {together[0]:.1f} s")
    return walls, works


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    args = parser.parse_args()
    try:
        gpus = () if args.cpu else gpu.visible(os.environ)
        lanes = make_lanes(args.lanes or 0, args.nproc, gpus, own_cpus())
        for lane in lanes:
            print(f"lane {lane.number}: GPUs {lane.gpus or 'none'}, CPUs {lane.cpus or 'all'}")
        with tempfile.TemporaryDirectory() as name:
            bench = Bench(Path(name).resolve(), lanes, args.nproc)
            walls, works = measure(bench, args.repeats, args.seconds)
    except SpeedkitError as error:
        print(error)
        return 1
    wall, work = statistics.median(walls), statistics.median(works)
    print(f"{len(lanes)} at once / one alone: {wall:.2f} of wall-clock time (goal {GOAL})")
    print(f"{'':22} {work:.2f} of the slowest job's own time")
    return 0 if wall <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
