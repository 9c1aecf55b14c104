"""Recall of the guards on cheating scripts, and their false alarms on honest ones.

    python benchmarks/redteam.py [--static] [--only WORD] [--dynamic N] [--records FOLDER]
                                 [--clone DIR] [--json FILE]

Every cheat of ``tests/redteam`` that may be run is run for real, and every guard is asked by
itself. Honest scripts: all records of mini, each against the one before and the first; 60
nodes of the tuner coder, of which ``--dynamic N`` are run; with ``--records`` the imported
human scripts, each against its predecessor; with ``--clone`` all logs in a clone of
modded-nanogpt. Goals: every cheat is caught by the defence that it names; no honest script
and no honest log is rejected; quarantines are listed with their reasons.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from speedkit.core.components import CodeRequest
from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Code
from speedkit.core.metrics import parse_log, read_lines
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.core.task import Task, find_family, find_task
from speedkit.plugins.coders.tuner import TunerCoder, TunerOptions
from speedkit.plugins.guards.constraints import ConstraintsGuard
from speedkit.plugins.guards.log import LogGuard
from speedkit.records.nanogpt.transforms import SETTINGS, transform
from tests.redteam.cheats import CHEATS, SANDBOX, VERIFICATION, Cheat
from tests.redteam.field import Field

NOT_GUARDS = (SANDBOX, VERIFICATION)
TUNER_NODES = 60
BOLD = TunerOptions(sampler="random")
TIMID = TunerOptions(sampler="random", spread=1.2, shrink=0.9)
"""Changes so small that most nodes still reach the target; guards see no others."""
VOCABULARY = 50257


def recall(field: Field, static: bool, only: str) -> list[dict[str, Any]]:
    """Return for each cheat by which defences it was caught."""
    rows = []
    for cheat in CHEATS:
        if only in cheat.name:
            rows.append(try_cheat(field, cheat, cheat.run and not static))
            caught = ", ".join(rows[-1]["caught_by"]) or "none"
            print(f"{cheat.name}: {cheat.defence}; caught by {caught}", flush=True)
    return rows


def try_cheat(field: Field, cheat: Cheat, run: bool) -> dict[str, Any]:
    """Return by which defences a cheat was caught, and what they said."""
    verdict = field.run(cheat.name, cheat.source()) if run else field.look(cheat.source())
    reasons = [f"{f.guard}: {f.reason}" for found in verdict.findings.values() for f in found]
    return {
        "cheat": cheat.name,
        "defence": cheat.defence,
        "ran": run,
        "caught_by": verdict.caught_by(),
        "reasons": [*reasons, *([f"parser: {verdict.by_parser}"] if verdict.by_parser else [])],
    }


def print_recall(rows: list[dict[str, Any]]) -> bool:
    """Print the recall of every defence; return whether all cheats were caught by theirs."""
    print("\n| defence | cheats that name it | caught by it | caught in all |\n|---|---|---|---|")
    missed = []
    for defence in dict.fromkeys(row["defence"] for row in rows):
        own = [row for row in rows if row["defence"] == defence]
        judged = [
            r for r in own if defence == "constraints" or (r["ran"] and defence not in NOT_GUARDS)
        ]
        good = [r for r in judged if defence in r["caught_by"]]
        missed += [r["cheat"] for r in judged if r not in good]
        every = sum(defence in row["caught_by"] for row in rows)
        print(f"| {defence} | {len(own)} | {len(good)} of {len(judged)} | {every} |")
    print("missed: " + (", ".join(missed) or "none"))
    return not missed


# --- honest scripts -----------------------------------------------------------------------


def mini_pairs() -> Iterator[tuple[str, Task, str, str]]:
    """Yield name, task, start and node for each record of mini."""
    family = find_family("mini")
    first = family.record(1).read()
    for task in family.tasks.values():
        yield f"mini {task.id} to its target", task, task.start.read(), task.target.read()
        yield f"mini 1 to {task.target.index}", task, first, task.target.read()


def tuner_nodes(options: TunerOptions = BOLD) -> Iterator[tuple[str, Task, str, str]]:
    """Yield nodes of the tuner, spread over the tasks of mini."""
    tasks = list(find_family("mini").tasks.values())
    coder = TunerCoder(options)
    for number in range(TUNER_NODES):
        task = tasks[number % len(tasks)]
        files = task.start_files()
        root = Node(0, None, Stage.ROOT, 0, outcome=Outcome.VALID)
        request = CodeRequest(
            task=task,
            tree=Tree([root]),
            parent=root,
            node_id=1,
            stage=Stage.DRAFT,
            sibling=0,
            siblings=1,
            files=files,
            knowledge=(),
            seed=number,
            log_dir=Path(tempfile.gettempdir()),
            read_files=lambda _, files=files: files,
        )
        draft = coder.write(request)
        yield (
            f"tuner node {number} on {task.name}",
            task,
            files[task.script],
            draft.files[task.script],
        )


def human_pairs(folder: Path) -> Iterator[tuple[str, Task, str, str]]:
    """Yield each imported human script against its predecessor."""
    scripts = []
    for number in range(1, 22):
        source = (folder / f"record_{number:02}.py").read_text(encoding="utf-8")
        name = f"record_{number:02}"
        fresh = name in SETTINGS and "training_time_ms" not in source
        scripts.append(transform(name, source)[0] if fresh else source)
    for number, (before, after) in enumerate(pairwise(scripts), 1):
        yield f"nanogpt {number} to {number + 1}", find_task("nanogpt/1"), before, after


def static_alarms(
    pairs: Iterator[tuple[str, Task, str, str]],
) -> tuple[int, list[tuple[str, Finding]]]:
    """Return how many honest scripts were looked at, and what was found."""
    guard, count, found = ConstraintsGuard(), 0, []
    for name, task, start, node in pairs:
        files = {task.script: start}
        code = Code(task, files, files, {task.script: node})
        found += [(name, f) for f in guard.check_code(code)]
        count += 1
    return count, found


def log_alarms(clone: Path) -> tuple[int, list[tuple[str, Finding]]]:
    """Return how many whole logs are in a clone, and what the log guard finds in them."""
    guard, count, found = LogGuard(), 0, []
    for path, data in blobs(clone):
        report = parse_log(read_lines(io.BytesIO(data)))
        if not report.anomaly:
            count += 1
            found += [(path, f) for f in guard.check_curve(report.curve, VOCABULARY, 3.28)]
    return count, found


def blobs(clone: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every text file in the last commit that the clone has."""
    git = ["git", "-C", str(clone)]
    tree = subprocess.run([*git, "ls-tree", "-r", "HEAD"], capture_output=True, check=True)
    lines = [line.partition("\t") for line in tree.stdout.decode().splitlines()]
    logs = [(path, meta.split()[2]) for meta, _, path in lines if path.endswith((".txt", ".log"))]
    wanted = "".join(f"{blob}\n" for _, blob in logs).encode()
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([*git, "cat-file", "--batch"], **pipe) as reader:
        threading.Thread(target=_feed, args=(reader.stdin, wanted), daemon=True).start()
        for path, _ in logs:
            header = reader.stdout.readline().split()
            if header[-1] != b"missing":  # a partial clone lacks some
                yield path, reader.stdout.read(int(header[-1]))
                reader.stdout.read(1)


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with pipe:
        pipe.write(data)


def print_alarms(title: str, count: int, found: list[tuple[str, Finding]]) -> bool:
    """Print the false alarms; return whether nothing was rejected."""
    levels = Counter(f.level for _, f in found)
    held = {name for name, f in found if f.level is Level.QUARANTINE}
    print(f"\n{title}: {count}; rejected {levels[Level.REJECT]}, quarantined {len(held)}")
    for name, f in found:
        print(f"  {name}: {f.level} by {f.guard}: {f.reason}")
    return not levels[Level.REJECT]


def dynamic_alarms(field: Field, number: int) -> tuple[int, list[tuple[str, Finding]]]:
    """Run all records of mini and some tuner nodes of the field's task, and ask all guards."""
    sources = [(f"record {r.index}", r.read()) for r in field.task.family.records]
    nodes = [node for node in tuner_nodes(TIMID) if node[1].name == field.task.name]
    sources += [(name, node) for name, _, _, node in nodes[:number]]
    found, count = [], 0
    for name, source in sources:
        verdict = field.run(name.replace(" ", "-").replace("/", "-"), source)
        print(f"{name}: {verdict.trial and verdict.trial.outcome}", flush=True)
        count += not verdict.by_parser
        found += [(name, f) for of_guard in verdict.findings.values() for f in of_guard]
    return count, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--static", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", help="cheats whose names have this in them")
    parser.add_argument("--dynamic", type=int, default=0, help="honest tuner nodes to run")
    parser.add_argument("--records", type=Path, help="folder of imported human scripts")
    parser.add_argument("--clone", type=Path, help="clone of modded-nanogpt, for its logs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as name:
        field = Field(find_task("mini/6"), Path(name))
        rows = recall(field, args.static, args.only)
        if not args.static:
            good &= print_alarms("honest scripts run", *dynamic_alarms(field, args.dynamic))
    good &= print_recall(rows)
    good &= print_alarms("records of mini", *static_alarms(mini_pairs()))
    good &= print_alarms("tuner nodes", *static_alarms(tuner_nodes()))
    if args.records:
        good &= print_alarms("human scripts", *static_alarms(human_pairs(args.records)))
    if args.clone:
        good &= print_alarms("human logs", *log_alarms(args.clone))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    print("goals met" if good else "goals missed")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
