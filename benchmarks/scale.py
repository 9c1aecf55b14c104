"""Git, journal and memory of the controller as a search grows to many nodes.

    python benchmarks/scale.py [--nodes 10000] [--output-mb 5000]

Commits scripts of 30 kB the way a search does (commit, ref, note), appends the events of each
node to a real journal, and prints: milliseconds of git a node, early and late, and what its
parts cost; seconds to load the journal; resident memory, early and late. Then runs one real
job that prints so many megabytes and prints the controller's memory, the size of the logs
and whether the metrics came through.

Goals: 20 ms of git a node at node 10,000; journal of 10,000 nodes loaded in 1 s; flat memory.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
from instant_family import FAMILY

from speedkit.core.history import GitHistory, RunDirectory
from speedkit.core.journal import Journal
from speedkit.core.metrics import Metrics, metrics_to_dict
from speedkit.core.node import Node, Stage
from speedkit.core.nodework import created
from speedkit.core.run import Run
from speedkit.core.task import Family, find_task
from speedkit.core.trial import Trials
from speedkit.plugins.executors.torchrun import TorchrunExecutor

SCRIPT = """\
import sys
line = "x" * 999 + "\\n"
for _ in range({megabytes}):
    sys.stdout.write(line * 1000)
print("step:10/10 val_loss:2.9000 train_time:900ms", flush=True)
sys.stdout.write(line * 1000)
"""
MANIFEST = {"run_id": "scale", "config": {"task": "mini/1"}, "components": {}, "scripts": {}}


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def grow(folder: Path, nodes: int) -> None:
    """Write a run of so many nodes, and print what it cost."""
    directory = RunDirectory.create(folder, MANIFEST)
    git = GitHistory(folder / "repo")
    run = Run(directory, find_task("mini/1"))
    rng = random.Random(0)
    lines = [f"value_{i} = {rng.random()}" for i in range(1000)]
    costs: dict[str, list[float]] = {"commit": [], "note": [], "files": []}
    memory = []
    journal = Journal(directory.journal_path)
    parent: str | None = None
    for k in range(nodes):
        lines[k % len(lines)] = f"value_{k} = {rng.random()}"
        text = "\n".join(lines)
        node = Node(k, k - 1 if k else None, Stage.IMPROVE, k, hypothesis=f"value {k}", code=str(k))
        began = time.perf_counter()
        commit = git.commit(node, {"train.py": text}, parent)
        costs["commit"].append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        git.annotate(commit, "Outcome: valid\nVal-loss: 3.2800\nTrain-time-ms: 1000\n", at=k)
        costs["note"].append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        assert git.files(commit)["train.py"] == text
        costs["files"].append(1000 * (time.perf_counter() - began))
        for event in events_of(node, commit):
            journal.append(event)
            run.apply(event)
        parent = commit
        if k in (nodes // 10, nodes - 1):
            memory.append(resident_mb())
    journal.close()
    git.close()
    tenth = max(1, nodes // 10)
    for name, values in costs.items():
        early, late = statistics.median(values[:tenth]), statistics.median(values[-tenth:])
        print(f"git {name}: {early:.1f} ms a node early, {late:.1f} ms late")
    late = sum(statistics.median(values[-tenth:]) for values in costs.values())
    print(f"git in all: {late:.1f} ms a node at node {nodes} (goal 20)")
    print(f"memory: {memory[0]:.0f} MB after a tenth, {memory[-1]:.0f} MB at the end")
    began = time.perf_counter()
    loaded = Run.open(directory, run.task)
    print(f"journal of {len(loaded.tree)} nodes: {time.perf_counter() - began:.2f} s (goal 1)")


def events_of(node: Node, commit: str) -> list[dict]:
    metrics = metrics_to_dict(Metrics(10, 10, 3.27, 1000 + node.id))
    planned = {
        "type": "step_planned",
        "step": node.step,
        "first_id": node.id,
        "children": [{"parent": node.parent, "stage": "improve"}],
        "pending": [],
    }
    return [
        *([planned] if node.id else []),
        {"type": "node_created", **created(node, commit)},
        {"type": "job_started", "job": f"node-{node.id}", "handle": {"pid": 1, "marker": "m" * 60}},
        {
            "type": "node_finished",
            "id": node.id,
            "outcome": "valid",
            "reason": "",
            "metrics": metrics,
            "summary": "A summary of some length. " * 20,
            "wall_s": 1.0,
            "findings": [],
            "same_as": None,
        },
    ]


def flood(folder: Path, megabytes: int) -> None:
    """Run one job that prints a lot, and print what it left."""
    folder.mkdir()
    (folder / "family.toml").write_text(FAMILY)
    (folder / "train.py").write_text(SCRIPT.format(megabytes=megabytes))
    task = Family.load(folder).task(1)
    trials = Trials(task, TorchrunExecutor(), "flood", folder / "work", None, threading.Event())
    before = resident_mb()
    trial = trials.run("node-1", task.start_files(), folder / "logs", 0)
    kept = sum(p.stat().st_size for p in (folder / "logs").rglob("*") if p.is_file()) / 1e6
    print(
        f"{megabytes} MB of output: {trial.execution.wall_s:.0f} s, memory {before:.0f} -> "
        f"{resident_mb():.0f} MB, logs {kept:.0f} MB, metrics {trial.metrics}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--output-mb", type=int, default=5000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        grow(Path(name) / "run", args.nodes)
        flood(Path(name) / "flood", args.output_mb)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
