"""The vectorised bootstrap, against rliable, against enumeration, and where rliable cannot go."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rliable import library, metrics

from speedkit.analysis.statistics import (
    AGGREGATES,
    Bootstrap,
    Estimate,
    Strata,
    aggregate,
    paired,
)

KNOWN = [[0.0, 0.3, 0.8], [0.1, 0.3, 0.8], [0.5, 0.6, 1.4]]
"""Tasks x runs."""
EXACT = {
    "median": (0.4, 0.2, 0.8),
    "iqm": (0.5, 0.26, 0.76),
    "mean": (4.8 / 9, 2.9 / 9, 6.9 / 9),
    "optimality_gap": (4.6 / 9, 2.9 / 9, 6.2 / 9),
}
"""Values and 95 % intervals, from all 27**3 resamples; see the test that enumerates them."""
RAGGED = [[0.1, 0.3], [-0.2, 0.0, 0.5], [0.7], [0.9, 0.2, 0.4, 0.4, 1.6]]


def four(scores):
    """Rliable's aggregates of a matrix of runs x tasks."""
    return np.array(
        [
            metrics.aggregate_median(scores),
            metrics.aggregate_iqm(scores),
            metrics.aggregate_mean(scores),
            metrics.aggregate_optimality_gap(scores),
        ]
    )


def strata(scores):
    """The scores of a matrix of runs x tasks."""
    return Strata(list(np.asarray(scores).T))


# --- point estimates ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 7), (3, 1), (3, 5), (5, 19), (10, 26)])
def test_point_estimates_are_rliables(shape):
    scores = np.random.default_rng(sum(shape)).normal(0.5, 0.6, shape)
    np.testing.assert_allclose(strata(scores).aggregates(), four(scores), rtol=0, atol=1e-12)


@given(
    st.integers(1, 6).flatmap(
        lambda runs: st.lists(
            st.lists(
                st.sampled_from([-2.5, 0.0, 0.1, 0.5, 1.0, 1.3]), min_size=runs, max_size=runs
            ),
            min_size=1,
            max_size=8,
        )
    )
)
def test_point_estimates_are_rliables_with_ties(by_task):
    scores = np.array(by_task).T
    np.testing.assert_allclose(Strata(by_task).aggregates(), four(scores), rtol=0, atol=1e-12)


def test_every_draw_is_aggregated_as_rliable_would():
    cell = Strata(KNOWN)
    places = np.array(list(itertools.product(range(3), repeat=9))[:: 3**9 // 500])
    drawn = np.take_along_axis(cell.places[None], places.reshape(-1, 3, 3), axis=2)
    found = cell._evaluate(np.arange(3)[None, :], drawn)
    wanted = [four(cell.values[one].T) for one in drawn]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


# --- intervals ------------------------------------------------------------------------------


def test_the_known_set_has_the_exact_intervals():
    for name, estimate in aggregate(Strata(KNOWN), Bootstrap()).items():
        value, low, high = EXACT[name]
        assert estimate.value == pytest.approx(value, abs=1e-12), name
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12), name


def test_the_exact_intervals_are_those_of_all_resamples():
    per_task = [list(itertools.product(scores, repeat=3)) for scores in KNOWN]
    every = np.array(list(itertools.product(*per_task)))
    means = every.mean(axis=2)
    values = {
        "median": np.median(means, axis=1),
        "iqm": scipy.stats.trim_mean(every.reshape(len(every), -1), 0.25, axis=1),
        "mean": means.mean(axis=1),
        "optimality_gap": 1 - np.minimum(every, 1).mean(axis=(1, 2)),
    }
    for name, found in values.items():
        ends = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
        assert tuple(ends) == pytest.approx(EXACT[name][1:], abs=1e-12), name


@pytest.mark.parametrize("over_tasks", [False, True])
def test_intervals_are_rliables_but_for_chance(over_tasks):
    scores = np.random.default_rng(3).normal(0.5, 0.6, (4, 6))
    reps = 3000
    np.random.seed(11)  # rliable draws from the global generator
    _, theirs = library.get_interval_estimates(
        {"cell": scores}, four, task_bootstrap=over_tasks, reps=reps
    )
    drawn = strata(scores).draw(Bootstrap(40_000), over_tasks=over_tasks)
    slack = 4 * np.sqrt(0.025 * 0.975 / reps)
    for k, name in enumerate(AGGREGATES):
        for end, tail in zip(theirs["cell"][:, k], (0.025, 0.975), strict=True):
            around = np.clip([tail - slack, tail + slack], 0, 1)
            low, high = np.quantile(drawn[:, k], around)
            assert low <= end <= high, (name, tail)


@pytest.mark.parametrize("over_tasks", [False, True])
def test_the_draws_have_rliables_mean_and_spread(over_tasks):
    """Moments see what percentiles may hide, such as tasks or runs that are never drawn."""
    scores = np.random.default_rng(4).normal(0.5, 0.6, (3, 5))
    np.random.seed(12)
    bootstrap = library.StratifiedBootstrap(scores, task_bootstrap=over_tasks)
    theirs = np.array([four(data[0][0]) for data in bootstrap.bootstrap(3000)])
    ours = strata(scores).draw(Bootstrap(40_000), over_tasks=over_tasks)
    error = 5 * theirs.std(axis=0) / np.sqrt(len(theirs))
    np.testing.assert_array_less(abs(ours.mean(axis=0) - theirs.mean(axis=0)), error)
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.07)


def test_an_interval_depends_on_its_own_scores_and_seed_alone():
    one = aggregate(Strata(KNOWN), Bootstrap(1000, seed=7))
    aggregate(Strata(RAGGED), Bootstrap(500, seed=7))
    assert aggregate(Strata(KNOWN), Bootstrap(1000, seed=7)) == one
    assert aggregate(Strata(KNOWN), Bootstrap(1000, seed=8)) != one


def test_without_spread_there_is_no_interval_and_not_one_of_width_zero():
    single, lone = Strata([[0.1], [0.9]]), Strata([[0.1, 0.9]])
    assert all(e.low != e.low for e in aggregate(single, Bootstrap(200)).values())
    assert all(e.low == e.low for e in aggregate(single, Bootstrap(200), over_tasks=True).values())
    assert all(e.low != e.low for e in aggregate(lone, Bootstrap(200), over_tasks=True).values())
    assert Estimate(0.5).to_dict() == {"value": 0.5, "low": None, "high": None}


# --- unequal numbers of runs ----------------------------------------------------------------


def ragged_iqm(cell):
    """The middle half of the runs, each task weighing the same, by sorting and cutting."""
    runs = sum(map(len, cell))
    weighted = sorted((v, runs / len(cell) / len(task)) for task in cell for v in task)
    cut, total, at = runs // 4, 0.0, 0.0
    for value, weight in weighted:
        inside = min(at + weight, runs - cut) - max(at, cut)
        total, at = total + max(0.0, inside) * value, at + weight
    return total / (runs - 2 * cut)


def slow_aggregates(cell):
    """The four aggregates, one task after another."""
    means = [np.mean(task) for task in cell]
    capped = [np.mean(np.minimum(task, 1)) for task in cell]
    return [np.median(means), ragged_iqm(cell), np.mean(means), 1 - np.mean(capped)]


CELLS = st.lists(
    st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)


@given(CELLS)
def test_tasks_weigh_the_same_however_many_runs_they_have(cell):
    np.testing.assert_allclose(Strata(cell).aggregates(), slow_aggregates(cell), atol=1e-9)


@given(CELLS, st.randoms())
def test_neither_the_order_of_tasks_nor_of_runs_matters(cell, random):
    shuffled = [random.sample(task, len(task)) for task in random.sample(cell, len(cell))]
    ours, theirs = Strata(cell).aggregates(), Strata(shuffled).aggregates()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_ragged_intervals_are_those_of_all_resamples():
    cell = [[0.0, 0.6], [0.1, 0.4, 1.3], [0.5]]
    per_task = [list(itertools.product(scores, repeat=len(scores))) for scores in cell]
    every = np.array([slow_aggregates(one) for one in itertools.product(*per_task)])
    drawn = Strata(cell).draw(Bootstrap(40_000))
    for k, name in enumerate(AGGREGATES):
        wanted, counts = np.unique(every[:, k].round(9), return_counts=True)
        found, drawn_counts = np.unique(drawn[:, k].round(9), return_counts=True)
        np.testing.assert_allclose(found, wanted, err_msg=name)
        shares = drawn_counts / drawn_counts.sum()
        np.testing.assert_allclose(shares, counts / counts.sum(), atol=0.012, err_msg=name)


def test_ragged_intervals_over_tasks_are_those_of_a_plain_loop():
    rng = np.random.default_rng(5)

    def one():
        tasks = [RAGGED[t] for t in rng.integers(0, len(RAGGED), len(RAGGED))]
        return slow_aggregates([rng.choice(task, len(task)) for task in tasks])

    theirs = np.array([one() for _ in range(4000)])
    ours = Strata(RAGGED).draw(Bootstrap(40_000), over_tasks=True)
    error = 5 * theirs.std(axis=0) / np.sqrt(len(theirs))
    np.testing.assert_array_less(abs(ours.mean(axis=0) - theirs.mean(axis=0)), error)
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.06)


@settings(max_examples=25)
@given(CELLS)
def test_draws_are_finite_and_inside_the_scores(cell):
    flat = [v for task in cell for v in task]
    for over_tasks in (False, True):
        drawn = Strata(cell).draw(Bootstrap(64), over_tasks=over_tasks)
        assert drawn.shape == (64, 4)
        assert np.isfinite(drawn).all()
        assert drawn[:, :3].min() >= min(flat) - 1e-9
        assert drawn[:, :3].max() <= max(flat) + 1e-9


@pytest.mark.parametrize("cell", [[], [[]], [[0.1], []], [[float("nan")]], [[float("inf"), 1.0]]])
def test_scores_that_are_none(cell):
    with pytest.raises(ValueError, match="score"):
        Strata(cell)


# --- two cells ------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [1, 6])
def test_the_probability_of_improvement_is_rliables(decimals):
    rng = np.random.default_rng(9)
    x = rng.normal(0.6, 0.4, (4, 5)).round(decimals)
    y = rng.normal(0.5, 0.4, (3, 5)).round(decimals)
    ours = paired(strata(x), strata(y), Bootstrap(20_000)).improvement
    assert ours.value == pytest.approx(metrics.probability_of_improvement(x, y), abs=1e-12)
    if decimals == 6:
        np.random.seed(13)
        bootstrap = library.StratifiedIndependentBootstrap(x, y)
        found = bootstrap.conf_int(
            lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=200
        )
        assert (ours.low, ours.high) == pytest.approx(tuple(found[:, 0]), abs=0.06)


def test_the_interval_of_improvement_is_that_of_all_resamples():
    x, y = [0.2, 0.5, 0.9], [0.1, 0.5, 0.7, 1.0]
    every = itertools.product(itertools.product(x, repeat=3), itertools.product(y, repeat=4))
    found = [np.mean([(a > b) + 0.5 * (a == b) for a in xs for b in ys]) for xs, ys in every]
    tails = np.array([0.025, 0.975])
    ours = paired(Strata([x]), Strata([y]), Bootstrap(40_000)).improvement
    for end, tail in zip((ours.low, ours.high), tails, strict=True):
        low, high = np.quantile(found, [tail - 0.003, tail + 0.003], method="inverted_cdf")
        assert low - 1e-9 <= end <= high + 1e-9
        assert high - low < 0.05


def test_improvement_over_itself_is_a_half():
    assert paired(Strata(RAGGED), Strata(RAGGED), Bootstrap(200)).improvement.value == 0.5


def test_differences_by_task_and_their_mean():
    x, y = Strata([[1.0, 3.0], [5.0, 5.0]]), Strata([[0.0], [1.0, 2.0, 3.0]])
    found = paired(x, y, Bootstrap(20_000))
    (first, second), mean = found.by_task, found.difference
    assert (first.value, second.value, mean.value) == (2.0, 3.0, 2.5)
    assert (first.low, first.high) == (1.0, 3.0)
    assert (second.low, second.high) == (2.0, 4.0)  # one resample in 27 is 3, 3, 3
    assert mean.low < mean.value < mean.high


def test_a_difference_of_single_runs_has_no_interval():
    found = paired(Strata([[1.0]]), Strata([[0.25]]), Bootstrap(100))
    (one,), mean = found.by_task, found.difference
    assert (one.value, mean.value) == (0.75, 0.75)
    assert one.low != one.low
    assert mean.high != mean.high


def test_other_tasks_cannot_be_paired():
    with pytest.raises(ValueError, match="same tasks"):
        paired(Strata(KNOWN), Strata(RAGGED), Bootstrap(100))
