"""A whole study on the built-in speedrun: searches, judge, chain, table, comparison, figures.

Two scaffolds and three control coders, three seeds each, on one task of ``mini``: ``noop``
changes nothing, so its FSR shows the noise; ``oracle`` copies the human record, so its FSR
should be near 1; ``tuner`` searches numbers. It needs no model and no GPU, and what is finished
is not done again::

    python examples/mini_study.py --out runs/mini-study --chain-to 6
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import speedkit
from speedkit.analysis import compare, load
from speedkit.analysis.export import to_csv
from speedkit.analysis.figures import Choice, Written, write_figures
from speedkit.analysis.statistics import Bootstrap, Estimate
from speedkit.api import RunTree, open_run
from speedkit.core.files import write_atomic, write_json
from speedkit.core.task import find_task
from speedkit.cumulative import resume_chain, run_chain
from speedkit.judging import judge_run

SCAFFOLDS = ("flat", "tree")
CODERS = ("noop", "oracle", "tuner")


def study(
    out: Path,
    *,
    task: str = "mini/5",
    seeds: int = 3,
    nodes: int = 2,
    chain_to: int | None = None,
    draws: int = 50_000,
    figures: Sequence[str] = (),
    **settings: Any,
) -> Written:
    """Run what is missing of the study, and make its table, comparison and figures anew.

    Args:
        out: folder of the study: ``runs/``, ``chain/``, ``figures/`` and three files.
        task: what is searched.
        seeds: searches for each scaffold and coder.
        nodes: of each search.
        chain_to: last task of a chain that the oracle runs from ``task`` on; None for none.
        draws: behind each interval.
        figures: names of those to draw; by default all.
        settings: further settings of every search, for example ``executor``.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {"task": task, "nodes": nodes, "train_duplicates": True, **settings}
    trees = list(searches(out / "runs", range(seeds), settings))
    paths = [out / "runs", record_times(out / "records.json", task, trees[0])]
    if chain_to is not None:
        paths.append(chain(out / "chain", chain_to, settings))
    bootstrap = Bootstrap(draws)
    table(out)
    comparison(out, bootstrap)
    return write_figures(paths, out / "figures", only=figures, choice=Choice(bootstrap=bootstrap))


def searches(folder: Path, seeds: Sequence[int], settings: dict[str, Any]) -> Iterator[RunTree]:
    """Run or resume each search, and let the judge that needs no model see its best node."""
    for scaffold in SCAFFOLDS:
        for coder in CODERS:
            for seed in seeds:
                path = folder / f"{scaffold}-{coder}-{seed}"
                tree = search(path, scaffold=scaffold, coder=coder, seed=seed, **settings)
                best = tree.best()
                fsr = tree.fsr()
                print(f"{path.name}: {'no valid node' if fsr is None else f'FSR {fsr:+.3f}'}")
                if best and not (path / f"nodes/{best.id:04d}/judge-diff.json").exists():
                    judge_run(path)
                yield tree


def search(path: Path, **settings: Any) -> RunTree:
    """Run a search, go on with it, or read it if it is finished."""
    if not (path / "run.toml").exists():
        return speedkit.run(out=path, **settings)
    tree = open_run(path)
    return tree if tree.status == "finished" else speedkit.run(resume=path)


def chain(path: Path, last: int, settings: dict[str, Any]) -> Path:
    """Run the oracle from the study's task to the last one, each task from its script before."""
    if (path / "chain.json").exists():
        resume_chain(path)
        return path
    rest = {k: v for k, v in settings.items() if k != "task"}
    rest |= {"scaffold": "flat", "coder": "oracle", "nodes": 1}
    family, _, first = settings["task"].rpartition("/")
    run_chain(family, int(first), last, out=path, **rest)
    return path


def record_times(path: Path, name: str, tree: RunTree) -> Path:
    """Write the times of a task's two records, as measured here and as the manifest has them."""
    task, calibration = find_task(name), tree.calibration
    assert calibration is not None  # a finished search has one
    times = ((task.start, calibration.start_runs), (task.target, calibration.target_runs))
    records = [
        {"index": record.index, "runs_ms": list(runs), "reported_ms": record.time_ms}
        for record, runs in times
    ]
    write_json(path, {"family": task.family.name, "records": records})
    return path


def table(out: Path) -> None:
    """Write every column of the results, and print some."""
    frame = load(out / "runs")
    write_atomic(out / "results.csv", to_csv(frame))
    columns = ["name", "result", "nodes", "nodes_valid", "fsr", "judge_score", "job_s"]
    print("\n" + frame[columns].to_string(index=False, float_format="{:.3f}".format))


def comparison(out: Path, bootstrap: Bootstrap) -> None:
    """Write the comparison of scaffolds and coders, and print the aggregates of each."""
    found = compare(out / "runs", by=("scaffold", "coder"), bootstrap=bootstrap)
    write_json(out / "comparison.json", found.to_dict())
    print(f"\nFSR by scaffold and coder, 95% intervals over seeds, {found.runs} runs")
    for cell in found.cells:
        numbers = ", ".join(f"{name} {shown(e)}" for name, e in cell.over_seeds.items())
        print(f"  {' · '.join(cell.key)} (n = {cell.runs}): {numbers or 'n/a'}")


def shown(estimate: Estimate) -> str:
    """Return a number with its interval, if it has one."""
    if estimate.low != estimate.low:
        return f"{estimate.value:.2f} (no interval)"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def main() -> None:
    """Run the study from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mini-study"))
    parser.add_argument("--task", default="mini/5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--chain-to", type=int, help="last task of a chain run by the oracle")
    parser.add_argument("--draws", type=int, default=50_000)
    options = vars(parser.parse_args())
    begin = time.monotonic()
    written = study(**options)
    print(f"\n{len(written.files)} files in {options['out'] / 'figures'}")
    for name, why in written.skipped.items():
        print(f"skipped {name}: {why}")
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
