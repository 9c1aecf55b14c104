"""What a comparison of cells of runs says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from speedkit.analysis.cellscores import Key
from speedkit.analysis.statistics import Bootstrap, Estimate

InvalidAs = Literal["zero", "drop"]


@dataclass(frozen=True)
class Cell:
    """The runs that share a value of each chosen column.

    Attributes:
        key: these values, in the order of ``Comparison.by``.
        runs: how many runs enter the numbers.
        runs_a_task: fewest and most of them on a task.
        invalid: runs that are over without a node that may count.
        left_out: runs that do not enter, by reason.
        over_seeds: aggregates, with intervals from resampling runs within each task.
        over_tasks: the same numbers, with intervals from resampling tasks too.
    """

    key: Key
    runs: int
    tasks: tuple[str, ...]
    runs_a_task: tuple[int, int]
    invalid: int
    left_out: Mapping[str, int]
    over_seeds: Mapping[str, Estimate]
    over_tasks: Mapping[str, Estimate]


@dataclass(frozen=True)
class TaskDifference:
    """The difference of two cells on one task, with the number of runs of each."""

    task: str
    runs_x: int
    runs_y: int
    difference: Estimate


@dataclass(frozen=True)
class Pair:
    """Two cells on the tasks that both have.

    Attributes:
        improvement: probability that a run of ``x`` scores higher than one of ``y``.
        difference: mean over tasks of the difference ``x - y`` of means.
    """

    x: Key
    y: Key
    improvement: Estimate
    difference: Estimate
    by_task: tuple[TaskDifference, ...]

    @property
    def runs(self) -> tuple[int, int]:
        """Number of runs of ``x`` and of ``y``."""
        return sum(t.runs_x for t in self.by_task), sum(t.runs_y for t in self.by_task)


@dataclass(frozen=True)
class Sensitivity:
    """The aggregates of a cell, with intervals over seeds, under another rule."""

    rule: str
    key: Key
    runs: int
    tasks: int
    over_seeds: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Everything that ``speedkit compare`` says.

    Attributes:
        by: the columns that make a cell.
        score: the column that is compared.
        invalid: ``zero`` when an invalid run counts as 0, ``drop`` when it is left out.
        notes: what a reader must know, a sentence each.
    """

    by: tuple[str, ...]
    score: str
    invalid: InvalidAs
    bootstrap: Bootstrap
    cells: tuple[Cell, ...]
    pairs: tuple[Pair, ...]
    sensitivity: tuple[Sensitivity, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> int:
        """Number of runs that enter."""
        return sum(cell.runs for cell in self.cells)

    @property
    def left_out(self) -> Counter[str]:
        """Number of runs that do not enter, by reason."""
        return sum((Counter(cell.left_out) for cell in self.cells), Counter[str]())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "by": list(self.by),
            "score": self.score,
            "invalid": self.invalid,
            "bootstrap": vars(self.bootstrap) | {"method": "percentile"},
            "runs": self.runs,
            "left_out": dict(self.left_out),
            "cells": [_json(c) for c in self.cells],
            "pairs": [_json(p) for p in self.pairs],
            "sensitivity": [_json(s) for s in self.sensitivity],
            "notes": list(self.notes),
        }


def _json(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _json(v) for k, v in value.items()}
    return _json(vars(value)) if hasattr(value, "__dataclass_fields__") else value
