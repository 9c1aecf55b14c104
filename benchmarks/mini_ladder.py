"""The ladder of the mini family: how fast each record reaches the target, and how surely.

    python benchmarks/mini_ladder.py [--repeats 5] [--records 1,2,3] [--json FILE]
    python benchmarks/mini_ladder.py --seeds 10

The first form runs all records by turns, repeats times, and prints a table of medians; the
second counts the seeds with which each record reaches the target. Both exit with 1 if a goal
is missed: each record at least 12 % faster than the one before, the last at least 4 times as
fast as the first, no run longer than 25 s, and the target reached in 9 of 10 seeds.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli

from speedkit.records import mini
from speedkit.records.mini import corpus

FOLDER = Path(mini.__file__).parent
FAMILY = tomli.loads((FOLDER / "family.toml").read_text(encoding="utf-8"))
TARGET: float = FAMILY["target"]["val_loss"]
SCRIPTS = {record["index"]: FOLDER / record["script"] for record in FAMILY["record"]}
LAST_LINE = re.compile(r"^step:(\d+)/\1 val_loss:(\d+\.\d+) train_time:(\d+)ms", re.MULTILINE)

MIN_GAIN, MIN_TOTAL, MAX_WALL, MIN_SURE = 0.12, 4.0, 25.0, 0.9


@dataclass
class Run:
    """One complete run: training and wall time in seconds, and the last validation loss."""

    record: int
    seed: int
    train: float
    wall: float
    loss: float


def main() -> int:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        corpus.prepare(Path(name, "data"))
        passes = options.seeds or options.repeats
        runs = [
            measure(Path(name), record, seed)
            for seed in range(passes)
            for record in options.records
        ]
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))
    report = report_seeds if options.seeds else report_times
    problems = report({record: [r for r in runs if r.record == record] for record in SCRIPTS})
    print("\n" + ("\n".join(f"MISSED: {problem}" for problem in problems) or "All goals are met."))
    return 1 if problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the records of the mini family.")
    parser.add_argument("--repeats", type=positive, default=5, help="runs of each record")
    parser.add_argument("--seeds", type=positive, help="count the seeds that reach the target")
    parser.add_argument("--records", type=record_list, default=list(SCRIPTS), help="as 1,2,3")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def record_list(text: str) -> list[int]:
    records = [int(part) for part in text.split(",")]
    if unknown := set(records) - set(SCRIPTS):
        raise argparse.ArgumentTypeError(f"no record {min(unknown)}")
    return records


def measure(folder: Path, record: int, seed: int) -> Run:
    script = shutil.copy(SCRIPTS[record], folder / FAMILY["script"])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    started = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, *launch, Path(script).name],
        cwd=folder,
        env={**os.environ, "SPEEDKIT_SEED": str(seed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - started
    found = LAST_LINE.search(finished.stdout)
    if finished.returncode or not found:
        sys.exit(f"record {record} failed:\n{finished.stderr[-2000:]}")
    run = Run(record, seed, int(found[3]) / 1000, wall, float(found[2]))
    print(f"record {record} seed {seed}: {run.train:.2f} s, loss {run.loss:.4f}", file=sys.stderr)
    return run


def title(record: int) -> str:
    text = ast.get_docstring(ast.parse(SCRIPTS[record].read_text(encoding="utf-8"))) or ""
    return text.split(": ", 1)[-1].rstrip(".")


def report_times(runs: dict[int, list[Run]]) -> list[str]:
    """Print the table of times; return the goals that were missed."""
    print("| record | title | train time, median | min-max | to the one before | wall | loss |")
    print("|---|---|---|---|---|---|---|")
    problems, first, previous = [], None, None
    for record, group in runs.items():
        if not group:
            continue
        times = [run.train for run in group]
        median, wall = statistics.median(times), max(run.wall for run in group)
        ratio = median / previous if previous else 1.0
        print(
            f"| {record} | {title(record)} | {median:.2f} s | {min(times):.2f}-{max(times):.2f} s "
            f"| {ratio:.2f} | {wall:.1f} s | {statistics.mean(r.loss for r in group):.3f} |"
        )
        if previous and ratio > 1 - MIN_GAIN:
            problems.append(f"record {record} takes {ratio:.2f} times as long as the one before")
        if wall > MAX_WALL:
            problems.append(f"record {record} took {wall:.1f} s of wall time")
        first, previous = first or median, median
    if first and previous and runs[1] and first / previous < MIN_TOTAL:
        problems.append(f"the last record is only {first / previous:.1f} times as fast")
    elif first and previous:
        print(f"\nFirst to last: {first / previous:.1f} times as fast.")
    return problems


def report_seeds(runs: dict[int, list[Run]]) -> list[str]:
    """Print how many seeds reach the target; return the records of which too few do."""
    print(f"| record | at or under {TARGET:.2f} | mean loss | deviation | largest |")
    print("|---|---|---|---|---|")
    problems = []
    for record, group in runs.items():
        losses = [run.loss for run in group]
        if not losses:
            continue
        reached = sum(loss <= TARGET for loss in losses)
        deviation = statistics.stdev(losses) if len(losses) > 1 else 0.0
        print(
            f"| {record} | {reached} of {len(losses)} | {statistics.mean(losses):.4f} "
            f"| {deviation:.4f} | {max(losses):.4f} |"
        )
        if reached < MIN_SURE * len(losses):
            problems.append(f"record {record} reached the target in {reached} of {len(losses)}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
