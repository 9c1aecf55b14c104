"""FSR of the controls `oracle` and `noop` on every task of a family: it must be 1 and 0.

    python benchmarks/controls.py [--family mini] [--repeats 5] [--json FILE]

`noop` hands the start record's script to the executor once more, `oracle` the target record's.
So each record is run twice in every repeat, by turns with all others: once as calibration, once
as the node of a control. Prints the median FSR of both controls over the repeats, with the
range. Goals: oracle within 0.8 to 1.2, noop within -0.2 to 0.2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import uuid
from pathlib import Path

from speedkit.core.metrics import fsr
from speedkit.core.task import Family, find_family
from speedkit.core.trial import Trials
from speedkit.plugins.executors.torchrun import TorchrunExecutor


def measure(family: Family, repeats: int, folder: Path) -> dict[int, dict[str, list[float]]]:
    """Return milliseconds of each record, by role, in the order of the repeats."""
    times: dict[int, dict[str, list[float]]] = {
        r.index: {"calibration": [], "control": []} for r in family.records
    }
    task = next(iter(family.tasks.values()))
    trials = Trials(
        task=task,
        executor=TorchrunExecutor(),
        run_id=uuid.uuid4().hex,
        work_dir=folder / "work",
        data=task.data_folder(),
        cancel=threading.Event(),
    )
    for repeat in range(repeats):
        for role in ("calibration", "control"):
            for record in family.records:
                name = f"{role}-{record.index}-{repeat}"
                seed = 2 * repeat + (role == "control")
                trial = trials.run(name, {task.script: record.read()}, folder / name, seed)
                assert trial.metrics is not None, trial.reason
                assert trial.metrics.train_time_ms is not None
                times[record.index][role].append(float(trial.metrics.train_time_ms))
                print(f"{name}: {trial.metrics} {trial.execution.wall_s:.1f} s", flush=True)
    return times


def scores(family: Family, times: dict[int, dict[str, list[float]]]) -> list[dict]:
    """Return for each task the FSR of both controls in every repeat."""
    rows = []
    for task in family.tasks.values():
        start = statistics.median(times[task.start.index]["calibration"])
        target = statistics.median(times[task.target.index]["calibration"])
        row: dict = {"task": task.name, "start_ms": start, "target_ms": target}
        for coder, record in (("noop", task.start), ("oracle", task.target)):
            row[coder] = [fsr(start, target, t) for t in times[record.index]["control"]]
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="mini")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    family = find_family(args.family)
    with tempfile.TemporaryDirectory() as name:
        times = measure(family, args.repeats, Path(name))
    rows = scores(family, times)
    if args.json:
        args.json.write_text(json.dumps({"times": times, "scores": rows}, indent=1))
    good = True
    print(
        "\n| task | start | target | noop | range | oracle | range |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        cells = [row["task"], f"{row['start_ms']:.0f} ms", f"{row['target_ms']:.0f} ms"]
        for coder, goal in (("noop", 0.0), ("oracle", 1.0)):
            middle = statistics.median(row[coder])
            good = good and abs(middle - goal) <= 0.2
            cells += [f"{middle:+.2f}", f"{min(row[coder]):+.2f} to {max(row[coder]):+.2f}"]
        print("| " + " | ".join(cells) + " |")
    print("goals met" if good else "goals missed")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
