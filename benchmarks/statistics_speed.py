"""Seconds that intervals of many cells take: 35 cells, 4 aggregates, 50,000 draws.

    python benchmarks/statistics_speed.py [--cells 35] [--tasks 19] [--runs 3] [--draws 50000]
        [--rliable 500] [--compare 9]

Five scaffolds times seven hint levels make 35 cells, each with 19 tasks and 3 seeds. Prints wall
and CPU seconds of the intervals over seeds, and of those over tasks, and with --rliable N how
long rliable takes for N draws of one cell, scaled up to the same work. Goal: at most 60 s over
seeds on 2 cores. With --compare N also what the whole of ``speedkit compare`` takes on as many
cells with N seeds, one run in twenty invalid: aggregates under all rules, and all pairs.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from speedkit.analysis.statistics import Bootstrap, Strata, aggregate

SCAFFOLDS = ("flat", "tree", "forest", "aide", "multi_aide")
HINTS = ("none", "1", "2", "3", "1+2", "1+3", "1+2+3")
TASKS = (*range(1, 6), *range(7, 21))


def timed(work) -> tuple[float, float]:
    """Return wall and CPU seconds of a function."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def rliable_seconds(scores: np.ndarray, draws: int) -> float:
    """Return the seconds of rliable for so many draws of the four aggregates of a cell."""
    from rliable import library, metrics

    def four(x):
        found = (metrics.aggregate_median, metrics.aggregate_iqm, metrics.aggregate_mean)
        return np.array([*(f(x) for f in found), metrics.aggregate_optimality_gap(x)])

    return timed(lambda: library.get_interval_estimates({"cell": scores}, four, reps=draws))[0]


def write_results(path: Path, seeds: int) -> None:
    """Write made-up results of every scaffold, hint level, task and seed."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["task", "scaffold", "hints", "seed", "result", "fsr"])
        for scaffold in SCAFFOLDS:
            for hints in HINTS:
                for task in TASKS:
                    for seed in range(seeds):
                        fsr = rng.normal(0.4, 0.3)
                        told = ["invalid", ""] if fsr < -0.1 else ["valid", f"{fsr:.6f}"]
                        rows.writerow([f"nanogpt/{task}", scaffold, hints, seed, *told])


def compare_seconds(seeds: int) -> float:
    """Return the wall seconds of a comparison of made-up results, as a user asks for it."""
    with tempfile.TemporaryDirectory() as folder:
        table, results = Path(folder) / "made-up.csv", Path(folder) / "made-up.results.json"
        write_results(table, seeds)
        program = [sys.executable, "-m", "speedkit"]
        taken = [*program, "results", "import", str(table), "--out", str(results)]
        subprocess.run(taken, check=True, stdout=subprocess.DEVNULL)
        compare = [*program, "compare", str(results), "--by", "scaffold,hints", "--json"]
        return timed(lambda: subprocess.run(compare, check=True, stdout=subprocess.DEVNULL))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=35)
    parser.add_argument("--tasks", type=int, default=19)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--draws", type=int, default=50_000)
    parser.add_argument("--rliable", type=int, default=0, metavar="DRAWS")
    parser.add_argument("--compare", type=int, default=0, metavar="SEEDS")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    cells = rng.normal(0.4, 0.3, size=(given.cells, given.tasks, given.runs))
    bootstrap = Bootstrap(given.draws)
    print(f"{given.cells} cells of {given.tasks} tasks x {given.runs} runs, {given.draws} draws")
    for over_tasks in (False, True):
        wall, cpu = timed(
            lambda over=over_tasks: [
                aggregate(Strata(list(c)), bootstrap, over_tasks=over) for c in cells
            ]
        )
        print(f"over {'tasks' if over_tasks else 'seeds'}: {wall:.1f} s wall, {cpu:.1f} s CPU")
    if given.rliable:
        seconds = rliable_seconds(cells[0].T, given.rliable) / given.rliable
        whole = seconds * given.draws * given.cells
        print(f"rliable: {1000 * seconds:.2f} ms a draw, so {whole:.0f} s for the same")
    if given.compare:
        seconds = compare_seconds(given.compare)
        cells = len(SCAFFOLDS) * len(HINTS)
        print(f"compare of {cells} cells x {given.compare} seeds: {seconds:.1f} s wall")


if __name__ == "__main__":
    main()
