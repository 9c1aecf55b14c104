"""What the sandbox adds to a job, and to a training step: jobs with and without it in turn.

    python benchmarks/sandbox_overhead.py [--repeats 10] [--launcher python torchrun]

Prints medians of the jobs' wall-clock time, the difference, and the ratio of the times that
the job itself measured for its work (matrix products; under torchrun with all-reduces). The
first job of each kind is not counted. Goal: at most 0.5 s a job.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from speedkit.core.components import Ending, Job
from speedkit.plugins.executors import sandbox
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

KINDS = ("none", "bwrap")
GOAL_S = 0.5
PYTHON = """
import time
began = time.perf_counter()
sum(number * number for number in range(2_000_000))
print("worked", time.perf_counter() - began)
"""
TORCHRUN = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.set_num_threads(1)
weight = torch.randn(256, 256)
for step in range(210):
    if step == 10:
        began = time.perf_counter()
    total = weight @ weight
    dist.all_reduce(total)
if dist.get_rank() == 0:
    print("worked", time.perf_counter() - began)
dist.destroy_process_group()
"""
SCRIPTS = {"python": PYTHON, "torchrun": TORCHRUN}


class Listener:
    """Keeps the time that the script says it worked, in seconds."""

    worked_s = 0.0

    def started(self, handle):
        pass

    def line(self, rank, text, at_s):
        if text.startswith("worked "):
            self.worked_s = float(text.split()[1])


def run(folder: Path, launcher: str, kind: str) -> tuple[float, float]:
    """Return the seconds that one job took, and those that it says it worked."""
    for part in ("workspace", "logs"):
        (folder / part).mkdir(parents=True)
    (folder / "workspace" / "script.py").write_text(SCRIPTS[launcher])
    job = Job(
        name="job",
        run_id="overhead",
        workspace=folder / "workspace",
        log_dir=folder / "logs",
        script="script.py",
        launcher=launcher,
        nproc=2 if launcher == "torchrun" else 1,
        timeout_s=120,
    )
    listener = Listener()
    executor = TorchrunExecutor(TorchrunOptions(sandbox=kind))
    began = time.monotonic()
    done = executor.execute(job, listener)
    if done.ending is not Ending.FINISHED:
        raise RuntimeError(f"{kind}: {done.reason}")
    return time.monotonic() - began, listener.worked_s


def measure(launcher: str, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall-clock and working times by kind; the order within a pair alternates."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        for number in range(repeats + 1):
            for kind in KINDS if number % 2 else reversed(KINDS):
                times = run(Path(name).resolve() / f"{number}-{kind}", launcher, kind)
                if number:
                    found[kind].append(times)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--launcher", nargs="+", default=list(SCRIPTS), choices=list(SCRIPTS))
    args = parser.parse_args()
    began = time.monotonic()
    found = sandbox.find(sys.executable)
    if found.bwrap is None:
        print(f"no sandbox can be made here: {found.reason}")
        return 1
    print(f"probe     {time.monotonic() - began:.2f} s, once in a process")
    is_met = True
    for launcher in args.launcher:
        times = measure(launcher, args.repeats)
        wall = {kind: statistics.median(t[0] for t in times[kind]) for kind in KINDS}
        worked = [b[1] / a[1] for a, b in zip(times["none"], times["bwrap"], strict=True)]
        more = statistics.median(
            b[0] - a[0] for a, b in zip(times["none"], times["bwrap"], strict=True)
        )
        is_met = is_met and more <= GOAL_S
        print(
            f"{launcher:9} none {wall['none']:.2f} s, bwrap {wall['bwrap']:.2f} s; a pair differs "
            f"by {more:+.3f} s (goal {GOAL_S}); work {statistics.median(worked):.3f} times as long"
        )
    return 0 if is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
