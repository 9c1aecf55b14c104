"""What a cumulative speedrun came to: links, seeds, intervals, and how they are read."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speedkit.core.errors import UsageError

SCHEMA = 1
ASKED = "chain.json"
"""What was asked for; never rewritten."""
RESULT = "result.json"
"""What came out so far; replaced after every task."""

# Two-sided 95 % quantiles of Student's t for 1, 2, 3, … degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Link:
    """What one task of a chain came to.

    Attributes:
        task: ``family/id``.
        target_record: index of the record that was aimed at.
        run: the run directory, relative to that of the chain.
        start_ms: measured time of the script that the task started from, in milliseconds.
        target_ms: time of the target record, in milliseconds.
        calibration: where these times come from.
        node: the node that the next task starts from; None if there is none.
        commit: its git commit.
        time_ms: its time, or the one that its verified FSR means; without a node, the time
            that the chain had reached before.
        gained: whether the node is faster than what the task started from.
        fsr: FSR of the best valid node; None where there is none, or where the start script
            is as fast as the target record already.
        verified_fsr: the same as verified anew, None where that was not asked.
        agent_speedup: time of the first record over ``time_ms``.
        human_speedup: time of the first record over ``target_ms``.
    """

    task: str
    target_record: int
    run: str
    start_ms: float
    target_ms: float
    calibration: str
    node: int | None
    commit: str | None
    time_ms: float
    gained: bool
    fsr: float | None
    verified_fsr: float | None
    agent_speedup: float
    human_speedup: float


@dataclass(frozen=True)
class Seed:
    """One chain of a seed.

    Attributes:
        status: ``running``; ``finished`` when every task was done; ``no gain`` when a task
            gave nothing and the chain ended there; ``stopped`` when a run was.
    """

    seed: int
    status: str = "running"
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval by Student's t; the ends None for one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Return the interval of at least one value."""
        mean, n = statistics.fmean(values), len(values)
        if n < 2:
            return cls(mean, None, None, n)
        t = _T95[n - 2] if n - 2 < len(_T95) else 1.96
        half = t * statistics.stdev(values) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Chain:
    """A cumulative speedrun: what was asked for, and what came out.

    Attributes:
        path: the directory.
        family: name or folder of the family.
        tasks: ids of the tasks, in order.
        verified: whether only verified nodes carry on.
        go_on: whether a task that gave nothing is passed over.
        settings: configuration of the runs.
    """

    path: Path
    family: str
    tasks: tuple[int, ...]
    verified: bool
    go_on: bool
    settings: Mapping[str, Any]
    seeds: tuple[Seed, ...] = ()

    @property
    def status(self) -> str:
        """``running``, ``stopped``, or ``finished`` when there is nothing left to do."""
        states = {seed.status for seed in self.seeds}
        open_ones = [s for s in ("stopped", "running") if s in states]
        return open_ones[0] if open_ones else "finished"

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a seed and task, for tables and figures; none for what is to come.

        A chain that ended keeps its speedup: the tasks that it did not reach have
        ``reached`` False, the last ``agent_speedup``, and no times.
        """
        return [
            row
            for seed in self.seeds
            for position in range(len(self.tasks))
            if (row := self._row(seed, position)) is not None
        ]

    def _row(self, seed: Seed, position: int) -> dict[str, Any] | None:
        task_id = self.tasks[position]
        head = {"chain": str(self.path), "family": self.family, "seed": seed.seed, "id": task_id}
        if position < len(seed.links):
            return {**head, "reached": True, **asdict(seed.links[position])}
        if seed.status != "no gain":
            return None
        kept = seed.links[-1].agent_speedup
        return {**head, "reached": False, "agent_speedup": kept, "human_speedup": None}

    def summary(self) -> list[dict[str, Any]]:
        """Return one row a task: mean and interval over seeds, agent beside human."""
        rows = self.rows()
        return [
            {
                "id": task_id,
                "reached": sum(r["reached"] for r in rows if r["id"] == task_id),
                "agent_speedup": self._interval(rows, task_id, "agent_speedup"),
                "human_speedup": self._interval(rows, task_id, "human_speedup"),
            }
            for task_id in self.tasks
        ]

    @staticmethod
    def _interval(
        rows: Sequence[Mapping[str, Any]], task_id: int, key: str
    ) -> dict[str, Any] | None:
        values = [r[key] for r in rows if r["id"] == task_id and r[key] is not None]
        return asdict(Interval.of(values)) if values else None

    def as_json(self) -> dict[str, Any]:
        """Return what ``result.json`` holds."""
        return {
            "schema": SCHEMA,
            "status": self.status,
            "family": self.family,
            "tasks": list(self.tasks),
            "verified": self.verified,
            "go_on": self.go_on,
            "settings": dict(self.settings),
            "seeds": [asdict(seed) for seed in self.seeds],
            "summary": self.summary(),
        }


def load(path: str | Path) -> Chain:
    """Read a chain from its directory, whether it is finished or not.

    Raises:
        UsageError: there is none.
    """
    path = Path(path)
    asked = read_json(path / ASKED)
    if asked.get("schema") != SCHEMA:
        raise UsageError(f"{path} was written by another version of speedkit")
    result = read_json(path / RESULT) if (path / RESULT).exists() else {"seeds": []}
    done = {s["seed"]: s for s in result["seeds"]}
    seeds = tuple(
        Seed(k, done[k]["status"], tuple(Link(**link) for link in done[k]["links"]))
        if k in done
        else Seed(k)
        for k in asked["seeds"]
    )
    settings = asked["settings"]
    return Chain(
        path,
        asked["family"],
        tuple(asked["tasks"]),
        asked["verified"],
        asked["go_on"],
        settings,
        seeds,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file of a chain or of its runs.

    Raises:
        UsageError: it is missing, or holds no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent} is no cumulative speedrun: it has no {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} cannot be read: it holds no object")
    return values
