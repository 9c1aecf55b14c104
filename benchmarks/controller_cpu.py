"""CPU time that the controller spends on a node, with a script that does nothing.

    python benchmarks/controller_cpu.py [--nodes 2000] [--coder noop] [--scaffold tree]

Prints milliseconds of CPU of this process for a node, early and late in the search, and the
ratio. The script is real and run by the real executor, as a plain Python process; what its
own processes cost is not counted. Goals: at most 150 ms a node; late at most 1.5 times early.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

from instant_family import FAMILY

import speedkit

SCRIPT = 'print("step:10/10 val_loss:2.9000 train_time:900ms step_avg:90.00ms")\n'


def measure(folder: Path, nodes: int, coder: str, scaffold: str) -> list[float]:
    """Return the CPU time of this process, in milliseconds, at the end of each node."""
    (folder / "family.toml").write_text(FAMILY)
    (folder / "train.py").write_text(SCRIPT)
    marks: list[float] = []

    def on_event(event):
        if event["type"] == "node_finished":
            marks.append(1000 * time.process_time())

    speedkit.run(
        task=f"{folder}/1",
        scaffold=scaffold,
        coder=coder,
        nodes=nodes,
        calibration="reference",
        out=folder / "run",
        on_event=on_event,
    )
    return marks


def per_node(marks: list[float], at: int, width: int) -> float:
    """Return the mean milliseconds a node over ``width`` nodes around node ``at``."""
    first, last = max(0, at - width // 2), min(len(marks) - 1, at + width // 2)
    return (marks[last] - marks[first]) / (last - first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--coder", default="noop")
    parser.add_argument("--scaffold", default="tree")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPEEDKIT_CACHE_DIR"] = folder
        began = time.monotonic()
        marks = measure(Path(folder), args.nodes, args.coder, args.scaffold)
        wall = time.monotonic() - began
    steps = [b - a for a, b in itertools.pairwise(marks)]
    early, late = per_node(marks, 12, 20), per_node(marks, len(marks) - 51, 100)
    print(f"nodes            {args.nodes}, coder {args.coder}, scaffold {args.scaffold}")
    print(f"median           {statistics.median(steps):.1f} ms of CPU a node (goal 150)")
    print(f"early, late      {early:.1f} ms, {late:.1f} ms: ratio {late / early:.2f} (goal 1.5)")
    print(f"wall             {1000 * wall / args.nodes:.0f} ms a node")
    return 0 if early <= 150 and late <= 150 and late / early <= 1.5 else 1


if __name__ == "__main__":
    raise SystemExit(main())
