"""How much of a search the executor is busy, against the least time that its policy allows.

    python benchmarks/search_throughput.py [--nodes 20] [--case 2,3] [--scaffold flat] [--json F]

A server on loopback that speaks the OpenAI protocol answers every call after L seconds; a job
is a real process that takes J seconds. Each row is ``speedkit run`` as a program: coder and
summarizer ask the model, so two calls a node. Columns: wall seconds from the start of the
program, seconds to the first call, the bound for the policy, their ratio, how busy the lanes
were, calls a node, and the FSR that the search ended with.

The bound is the critical path over coding and lanes, given the first call: for every step of a
strict search one call, its jobs shared among the lanes, and one summary; for a search that
looks ahead, one call, all jobs shared among the lanes, and one summary. Steps and children
are those that the search really asked for.

Goals at (2, 3) with one lane and 20 nodes: flat within 1.15 of its bound, multi_aide strict
within 1.25, at least 85 % busy with lookahead, at most 2 calls a node.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from instant_family import FAMILY

from speedkit import open_run
from speedkit.core.journal import read_events
from tests.kit.fake_openai import FakeOpenAI, say

SCRIPT = """\
import time

value = 1000
time.sleep({job_s})
print(f"step:10/10 val_loss:2.9000 train_time:{{value}}ms")
"""
VALUE = re.compile(r"value = ([0-9]+)")
SCAFFOLDS = ("flat", "tree", "forest", "aide", "multi_aide")


class Model:
    """Answers coding prompts with another value, now better and now worse, and sums up."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s, self._lock, self._asked = latency_s, threading.Lock(), 0
        self.first_at: float | None = None

    def __call__(self, request):
        text = request.body["messages"][-1]["content"]
        with self._lock:
            self.first_at = self.first_at or time.monotonic()
            self._asked += 1
            change = (-17, 9, -5)[self._asked % 3] - self._asked / 1000
        found = VALUE.findall(text)
        if "SEARCH" not in text or not found:
            return say("It ran.", latency_s=self._latency_s)
        old = found[-1]
        new = max(1, round(int(old) + change))
        body = f"<<<<<<< SEARCH\nvalue = {old}\n=======\nvalue = {new}\n>>>>>>> REPLACE"
        reply = f"HYPOTHESIS: another value\n\ntrain.py\n```python\n{body}\n```\n\nEND OF EDITS\n"
        return say(reply, latency_s=self._latency_s)


def search(
    folder: Path, scaffold: str, nodes: int, call_s: float, job_s: float, lanes: int, lookahead: int
) -> dict:
    """Run one search as a program, and return a row of the table."""
    folder.mkdir()
    (folder / "family.toml").write_text(FAMILY)
    (folder / "train.py").write_text(SCRIPT.format(job_s=job_s))
    model, out = Model(call_s), folder / "run"
    with FakeOpenAI(model) as server:
        command = [
            *(sys.executable, "-m", "speedkit", "run", f"{folder}/1", "--out", str(out)),
            *("--scaffold", scaffold, "--nodes", str(nodes), "--calibration", "reference"),
            *("--model", "openai/fake", "--api-base", server.url, "--coder", "llm"),
            *("--summarizer", "llm", "--train-duplicates", "--display", "none"),
            *("-o", f"executor.lanes={lanes}", "-o", f"scaffold.lookahead={lookahead}"),
            *("-o", "stop.mode=off"),
        ]
        began = time.monotonic()
        env = {**os.environ, "OPENAI_API_KEY": "none-is-needed"}
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
        wall_s = time.monotonic() - began
        calls = len(server.requests)
    first_s = model.first_at - began
    tree = open_run(out)
    bound_s = first_s + least_time(out, call_s, job_s, lanes, lookahead)
    return {
        "scaffold": scaffold,
        "lookahead": lookahead,
        "L": call_s,
        "J": job_s,
        "lanes": lanes,
        "wall_s": round(wall_s, 1),
        "first_call_s": round(first_s, 1),
        "bound_s": round(bound_s, 1),
        "ratio": round(wall_s / bound_s, 3),
        "busy": tree.lanes["busy"],
        "idle_s": tree.lanes["idle_s"],
        "calls_a_node": round(calls / nodes, 2),
        "fsr": round(tree.fsr() or 0.0, 3),
    }


def least_time(run: Path, call_s: float, job_s: float, lanes: int, lookahead: int) -> float:
    """Return the seconds from the first call on that no schedule of the policy can beat."""
    steps = [
        len(e["children"]) for e in read_events(run / "events.jsonl") if e["type"] == "step_planned"
    ]
    if lookahead:
        return call_s + math.ceil(sum(steps) / lanes) * job_s + call_s
    return sum(call_s + math.ceil(n / lanes) * job_s + call_s for n in steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--case", action="append", metavar="L,J")
    parser.add_argument("--scaffold", action="append", choices=SCAFFOLDS)
    parser.add_argument("--lanes", action="append", type=int)
    parser.add_argument("--lookahead", action="append", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [tuple(map(float, case.split(","))) for case in args.case or ["2,3"]]
    rows = []
    print(
        "| scaffold | lookahead | L, J | lanes | wall | first call | bound | ratio | busy | "
        "calls/node | FSR |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        for call_s, job_s in cases:
            for lanes in args.lanes or [1]:
                for scaffold in args.scaffold or SCAFFOLDS:
                    for lookahead in args.lookahead or ([0] if scaffold == "flat" else [0, 1]):
                        folder = Path(name) / str(len(rows))
                        row = search(folder, scaffold, args.nodes, call_s, job_s, lanes, lookahead)
                        rows.append(row)
                        print(
                            f"| {scaffold} | {lookahead} | {call_s:g}, {job_s:g} | {lanes} | "
                            f"{row['wall_s']} s | {row['first_call_s']} s | {row['bound_s']} s | "
                            f"{row['ratio']} | {row['busy']:.0%} | {row['calls_a_node']} | "
                            f"{row['fsr']} |",
                            flush=True,
                        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
