"""What it costs to start a job, cold under torchrun and with ranks forked from a warm process.

    python benchmarks/warm_start.py [--repeats 10] [--record 6] [--sandbox auto]

Runs a `mini` record cold and warm in turn, the order within a pair alternating; the first pair
is not counted. Prints, as medians, the wall-clock seconds of a job, those beyond its train_time
(start, rendezvous, first pass, validation, end), how the two kinds compare pair by pair, and
the same of train_time, which should be 1. Goal: a warm job costs at most 0.8 times the seconds
beyond train_time of a cold one, and its train_time is within 5 %.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from speedkit.core.node import Outcome
from speedkit.core.task import Task, find_task
from speedkit.core.trial import Trials
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

KINDS = ("cold", "warm")
GOAL, GOAL_TRAIN = 0.8, 0.05
QUIET, QUIET_WAIT_S = 3.0, 300.0


class Times(NamedTuple):
    """Seconds of one job: wall-clock in all, and what the script says it trained."""

    wall_s: float
    train_s: float

    @property
    def beyond_s(self) -> float:
        return self.wall_s - self.train_s


def run(task: Task, folder: Path, kind: str, sandbox: str) -> Times:
    """Run the start record of a task to its end."""
    executor = TorchrunExecutor(TorchrunOptions(warm=kind == "warm", sandbox=sandbox))
    trials = Trials(task, executor, "warm", folder, task.data_folder(), threading.Event())
    trial = trials.run("job", task.start_files(), folder / "logs", seed=1)
    if trial.outcome not in (Outcome.VALID, Outcome.INVALID) or trial.metrics is None:
        raise RuntimeError(f"{kind}: {trial.reason}")
    return Times(trial.execution.wall_s, (trial.metrics.train_time_ms or 0) / 1000)


def measure(task: Task, repeats: int, sandbox: str) -> dict[str, list[Times]]:
    """Return the times of each kind, pair by pair."""
    found: dict[str, list[Times]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        for number in range(repeats + 1):
            for kind in KINDS if number % 2 else reversed(KINDS):
                times = run(task, Path(name).resolve() / f"{number}-{kind}", kind, sandbox)
                if number:
                    found[kind].append(times)
    return found


def wait_for_quiet() -> float:
    """Wait a while for other programs to end; return the load average that is left."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while os.getloadavg()[0] > QUIET and time.monotonic() < deadline:
        time.sleep(5)
    return os.getloadavg()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--record", type=int, default=6)
    parser.add_argument("--sandbox", default="auto", choices=("auto", "bwrap", "none"))
    args = parser.parse_args()
    task = find_task(f"mini/{args.record}")
    before = wait_for_quiet()
    times = measure(task, args.repeats, args.sandbox)
    for kind in KINDS:
        wall = statistics.median(one.wall_s for one in times[kind])
        beyond = statistics.median(one.beyond_s for one in times[kind])
        print(f"{kind}  {wall:.2f} s a job, {beyond:.2f} s beyond train_time")
    pairs = list(zip(times["cold"], times["warm"], strict=True))
    ratio = statistics.median(warm.beyond_s / cold.beyond_s for cold, warm in pairs)
    train = statistics.median(warm.train_s / cold.train_s for cold, warm in pairs)
    saved = statistics.median(cold.beyond_s - warm.beyond_s for cold, warm in pairs)
    print(f"warm / cold: {ratio:.2f} of the seconds beyond train_time (goal {GOAL})")
    print(f"             {saved:.2f} s less in a pair")
    print(f"             {train:.3f} of train_time (goal within {GOAL_TRAIN:.0%})")
    print(f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after")
    return 0 if ratio <= GOAL and abs(train - 1) <= GOAL_TRAIN else 1


if __name__ == "__main__":
    raise SystemExit(main())
