"""Aggregates over runs and tasks, with intervals from a vectorised stratified bootstrap.

The scores of a cell are ragged: each task has as many as it has runs. Runs are resampled task
by task, each with its own number, so none is dropped and none enters twice. Where all tasks
have equally many, every number here is that of Agarwal et al., "Deep Reinforcement Learning at
the Edge of the Statistical Precipice" (2021), whose library evaluates one draw at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AGGREGATES = ("median", "iqm", "mean", "optimality_gap")
"""Median and mean of the tasks' means; mean of the middle half of all runs, each task weighing
the same; mean shortfall of scores from 1, those over 1 counting as 1."""
DRAWS = 50_000
"""Resamples behind an interval."""
LEVEL = 0.95
"""Share of the draws that an interval holds."""
TRIM = 0.25
"""Share of the runs that the interquartile mean leaves out at each end."""
_CHUNK = 16_000
"""Resampled scores held at a time: so few that an array of them has less than 128 KiB, stays in
the processor's cache and is not given back to the system, whose fresh pages cost more than the
arithmetic."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; the ends are NaN where there is none.

    Attributes:
        low: 2.5 % of the draws lie under it (at the default level).
        high: 2.5 % of the draws lie over it.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def to_dict(self) -> dict[str, float | None]:
        """Return JSON values; NaN becomes None."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if v != v else v for name, v in values.items()}


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentiles of ``draws`` resamples.

    Attributes:
        seed: of the generator; each estimate starts from it anew, so that it does not depend on
            what else is estimated.
    """

    draws: int = DRAWS
    seed: int = 0
    level: float = LEVEL

    @property
    def rng(self) -> np.random.Generator:
        """A new generator."""
        return np.random.default_rng(self.seed)

    def interval(self, drawn: Floats) -> Floats:
        """Return the ends of the intervals of draws.

        Args:
            drawn: of shape (draws, ...).

        Returns:
            An array of shape (2, ...).
        """
        tail = (1 - self.level) / 2
        ends: Floats = np.quantile(drawn, [tail, 1 - tail], axis=0)
        return ends


def _parts(drawn: Floats, size: int) -> Iterator[Floats]:
    """Yield the rows of ``drawn`` a few at a time, each made of ``size`` resampled scores."""
    step = max(1, _CHUNK // size)
    return (drawn[begin : begin + step] for begin in range(0, len(drawn), step))


class Strata:
    """The scores of one cell, by task.

    Args:
        scores: for each task, the scores of its runs; at least one each.

    Raises:
        ValueError: no task, a task without scores, or a score that is not finite.
    """

    def __init__(self, scores: Sequence[Sequence[float] | Floats]) -> None:
        arrays = [np.asarray(s, dtype=float).ravel() for s in scores]
        if not arrays or not all(a.size for a in arrays):
            raise ValueError("every task needs at least one score")
        self.sizes: Ints = np.array([a.size for a in arrays], dtype=np.int64)
        flat = np.concatenate(arrays)
        if not np.isfinite(flat).all():
            raise ValueError("scores must be finite")
        order = np.argsort(flat, kind="stable")
        self.values: Floats = flat[order]
        self.task_of: Ints = np.repeat(np.arange(len(arrays)), self.sizes)[order]
        self.places = self._places(order)

    def _places(self, order: NDArray[Any]) -> Ints:
        """Return where run ``s`` of task ``t`` stands among the sorted values.

        Of shape (tasks, most runs of a task); where a task has fewer, one past the end.
        """
        rank = np.empty(order.size, dtype=np.int64)
        rank[order] = np.arange(order.size)
        places = np.full((self.tasks, int(self.sizes.max())), order.size, dtype=np.int64)
        places[np.arange(places.shape[1]) < self.sizes[:, None]] = rank
        return places

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return int(self.sizes.size)

    @property
    def runs(self) -> int:
        """Number of runs."""
        return int(self.values.size)

    def __iter__(self) -> Iterator[Floats]:
        """Yield the scores of each task, sorted."""
        return (self.values[self.task_of == t] for t in range(self.tasks))

    def aggregates(self) -> Floats:
        """Return the four aggregates of the scores themselves, in the order of the names."""
        columns = np.arange(self.tasks)[None, :]
        found: Floats = self._evaluate(columns, self.places[None])[0]
        return found

    def draw(self, bootstrap: Bootstrap, *, over_tasks: bool = False) -> Floats:
        """Return the aggregates of resampled scores, of shape (draws, 4).

        Args:
            over_tasks: resample the tasks too, and then the runs of each drawn task: what
                would be, had other tasks of the kind been taken. Otherwise the tasks are
                fixed, and runs are resampled within each: what would be with other seeds.
        """
        rng = bootstrap.rng
        drawn = np.empty((bootstrap.draws, len(AGGREGATES)))
        for part in _parts(drawn, self.places.size):
            part[:] = self._evaluate(*self._resample(rng, len(part), over_tasks))
        return drawn

    def _resample(
        self, rng: np.random.Generator, count: int, over_tasks: bool
    ) -> tuple[Ints, Ints]:
        """Return drawn tasks, (count, tasks), and places of drawn runs, (count, tasks, runs)."""
        shape = (count, *self.places.shape)
        columns = np.arange(self.tasks)[None, :]
        if over_tasks:
            columns = rng.integers(0, self.tasks, size=(count, self.tasks))
        sizes = self.sizes[columns][..., None]
        drawn = (rng.random(shape) * sizes).astype(np.int64)
        places = self.places[columns[..., None], drawn]
        if self.sizes.min() < shape[2]:
            places[np.broadcast_to(np.arange(shape[2]) >= sizes, shape)] = self.runs
        return columns, places

    def _evaluate(self, columns: Ints, places: Ints) -> Floats:
        """Return the aggregates of each draw, of shape (draws, 4)."""
        sizes, scores = self.sizes[columns], np.append(self.values, 0.0)[places]
        means = scores.sum(axis=2) / sizes
        capped = np.minimum(scores, 1.0).sum(axis=2) / sizes
        iqm = self._iqm(self._weights(places, sizes), sizes.sum(axis=1))
        found = (np.median(means, axis=1), iqm, means.mean(axis=1), 1.0 - capped.mean(axis=1))
        return np.stack(found, axis=1)

    def _weights(self, places: Ints, sizes: Ints) -> Floats:
        """Return how much each of the sorted values weighs in each draw, of shape (draws, runs).

        Nothing is sorted: a draw is how often each of the sorted values occurs in it. Each
        occurrence weighs the runs a task has on average over those that its own task has, so
        that all tasks weigh the same and the weights sum to the number of runs.
        """
        draws, width = len(places), self.runs + 1
        flat = (places + np.arange(draws)[:, None, None] * width).ravel()
        counts = np.bincount(flat, minlength=draws * width).reshape(draws, width)[:, :-1]
        total = sizes.sum(axis=1, keepdims=True)
        weights: Floats = counts * (total / (sizes.shape[1] * self.sizes[self.task_of]))
        return weights

    def _iqm(self, weights: Floats, total: Ints) -> Floats:
        """Return the mean of the middle half of the runs of each draw, of shape (draws,).

        As in a trimmed mean, whole runs are cut, a quarter of the number rounded down at each
        end.
        """
        cut = np.floor(TRIM * total)[:, None]
        reach = np.clip(np.cumsum(weights, axis=1), cut, total[:, None] - cut)
        kept = np.diff(reach, axis=1, prepend=np.broadcast_to(cut, (len(weights), 1)))
        middle: Floats = kept @ self.values / (total - 2 * cut[:, 0])
        return middle


def aggregate(
    strata: Strata, bootstrap: Bootstrap, *, over_tasks: bool = False
) -> dict[str, Estimate]:
    """Return the four aggregates with intervals, by name.

    Where every task has a single run, its seeds say nothing of their spread, and where there is
    a single task, its tasks do not; then there is no interval.
    """
    values = strata.aggregates()
    if strata.tasks == 1 if over_tasks else int(strata.sizes.max()) == 1:
        return {n: Estimate(float(v)) for n, v in zip(AGGREGATES, values, strict=True)}
    ends = bootstrap.interval(strata.draw(bootstrap, over_tasks=over_tasks))
    numbers = zip(AGGREGATES, values, *ends, strict=True)
    return {n: Estimate(float(v), float(a), float(b)) for n, v, a, b in numbers}


# --- two cells on the same tasks --------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """What two cells ``x`` and ``y`` come to on the same tasks.

    Attributes:
        improvement: the probability that a run of ``x`` scores higher than one of ``y``: the
            mean over tasks of the share of pairs of runs in which ``x`` is higher, a tie
            counting half.
        by_task: the difference of means ``x - y`` for each task.
        difference: the mean of these.
    """

    improvement: Estimate
    by_task: tuple[Estimate, ...]
    difference: Estimate


def paired(x: Strata, y: Strata, bootstrap: Bootstrap) -> Paired:
    """Compare two cells that have the same tasks in the same order.

    Runs are resampled within each task, those of ``x`` and of ``y`` independently; all numbers
    come from the same resamples.
    """
    if x.tasks != y.tasks:
        raise ValueError("both cells must have the same tasks")
    rng = bootstrap.rng
    values = np.empty((2, x.tasks))
    drawn = np.empty((2, x.tasks, bootstrap.draws))
    for task, (a, b) in enumerate(zip(x, y, strict=True)):
        both = _wins(a, b), _gains(a, b)
        values[:, task] = [pairs.mean() for pairs in both]
        for part in _parts(drawn[:, task].T, a.size + b.size):
            rows, columns = (_counts(s.size, len(part), rng) for s in (a, b))
            for k, pairs in enumerate(both):
                part[:, k] = np.einsum("ij,ij->i", rows @ pairs, columns) / pairs.size
    spread = np.maximum(x.sizes, y.sizes) > 1
    means = values.mean(axis=1), drawn.mean(axis=1).T
    improvement, difference = _estimates(*means, spread.any(), bootstrap)
    by_task = _estimates(values[1], drawn[1].T, spread, bootstrap)
    return Paired(improvement, tuple(by_task), difference)


def _wins(x: Floats, y: Floats) -> Floats:
    """Return 1 where ``x`` is higher, ½ where both are equal, else 0, for each pair of runs."""
    wins: Floats = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    return wins


def _gains(x: Floats, y: Floats) -> Floats:
    """Return by how much ``x`` is higher, for each pair of runs."""
    return x[:, None] - y


def _estimates(values: Floats, drawn: Floats, spread: Any, bootstrap: Bootstrap) -> list[Estimate]:
    """Return the values with intervals, with none where no resample could differ.

    Args:
        values: of shape (n,).
        drawn: their resamples, of shape (draws, n).
        spread: whether those of a value can differ, of shape (n,).
    """
    ends = np.where(spread, bootstrap.interval(drawn), np.nan)
    return [Estimate(float(v), float(a), float(b)) for v, a, b in zip(values, *ends, strict=True)]


def _counts(size: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return how often each of ``size`` runs occurs in a resample, of shape (draws, size)."""
    drawn = rng.integers(0, size, size=(draws, size)) + np.arange(draws)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size).astype(float)
