"""Statistics of pairs: against scipy, against known answers, and under changes of scale."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from speedkit.core.paired import (
    LogRatio,
    Times,
    drift,
    earlier_log_ratio,
    expected_best,
    fieller,
    fsr_interval,
    log_ratio,
    loss_test,
    noise_floor,
    ratio_interval,
    student_quantile,
    student_tail,
)

times_ms = st.floats(1000, 100_000)
quick = settings(max_examples=60, deadline=None)


def paired(minimum=3, maximum=8, columns=3):
    return st.lists(st.tuples(*[times_ms] * columns), min_size=minimum, max_size=maximum)


# --- Student's t ------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 3, 7, 11.5, 100, 5000])
def test_the_tails_are_those_of_scipy(df):
    for t in (-30, -2.3, -0.1, 0, 0.5, 1, 3, 12, 80):
        assert student_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-9)
    for tail in (1e-5, 0.0023, 0.025, 0.5, 0.8, 0.999):
        assert student_quantile(tail, df) == pytest.approx(stats.t.isf(tail, df), abs=1e-7)


def test_with_endless_data_it_is_the_normal_distribution():
    assert student_tail(1.96, math.inf) == pytest.approx(stats.norm.sf(1.96))
    assert student_quantile(0.025, math.inf) == pytest.approx(1.959964, abs=1e-6)
    assert (student_tail(math.inf, 3), student_tail(-math.inf, 3)) == (0, 1)


# --- losses -----------------------------------------------------------------------------


def test_the_loss_test_is_that_of_scipy():
    losses = [3.2781, 3.2790, 3.2775, 3.2803, 3.2766]
    found = loss_test(losses, 3.28)
    under = stats.ttest_1samp(losses, 3.28, alternative="less")
    assert found.p == pytest.approx(under.pvalue, rel=1e-9)
    assert found.p_over == pytest.approx(1 - under.pvalue, rel=1e-9)
    assert (found.mean, found.runs) == (pytest.approx(3.2783), 5)


@pytest.mark.parametrize(("loss", "p"), [(3.27, 0.0), (3.28, 0.5), (3.29, 1.0)])
def test_losses_that_do_not_vary_leave_no_doubt(loss, p):
    assert loss_test([loss] * 3, 3.28).p == p


# --- ratios -----------------------------------------------------------------------------


def test_the_ratio_is_geometric_with_the_interval_of_a_paired_t_test():
    starts, ours = [100.0, 110.0, 120.0, 105.0], [80.0, 90.0, 93.0, 85.0]
    found = ratio_interval(log_ratio(ours, starts), 0.025)
    logs = np.log(np.divide(ours, starts))
    low, high = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert found.value == pytest.approx(stats.gmean(np.divide(ours, starts)))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))


@quick
@given(paired(columns=2), st.floats(0.01, 100))
def test_a_ratio_does_not_depend_on_units_and_turns_over_with_its_scripts(rows, factor):
    starts, ours = zip(*rows, strict=True)
    found = ratio_interval(log_ratio(ours, starts), 0.01)
    scaled = ratio_interval(
        log_ratio([factor * t for t in ours], [factor * t for t in starts]), 0.01
    )
    assert scaled.value == pytest.approx(found.value, rel=1e-6)
    turned = log_ratio(starts, ours)
    assert turned.value == pytest.approx(-log_ratio(ours, starts).value, abs=1e-9)
    assert turned.variance == pytest.approx(log_ratio(ours, starts).variance, rel=1e-6, abs=1e-12)


@quick
@given(paired(columns=2), st.lists(st.floats(0.5, 2), min_size=8, max_size=8))
def test_what_slows_a_whole_pair_does_not_matter(rows, factors):
    slowed = [(f * a, f * b) for (a, b), f in zip(rows, factors, strict=False)]
    one, other = (log_ratio(*zip(*r, strict=True)) for r in (rows, slowed))
    assert other.value == pytest.approx(one.value, abs=1e-9)


def test_an_endless_interval_has_no_upper_end():
    assert ratio_interval(LogRatio(0.0, 1.0, 1), 1e-6).high is None


def test_two_groups_have_welchs_degrees_of_freedom():
    a, b = [10.0, 11.0, 12.5], [7.0, 7.2, 7.1, 7.3]
    found = earlier_log_ratio(a, b)
    welch = stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    assert found.df == pytest.approx(welch.df)
    assert found.value / math.sqrt(found.variance) == pytest.approx(welch.statistic)


def test_a_group_of_one_is_taken_as_exact():
    found = earlier_log_ratio([6000.0], [10_000.0, 11_000.0])
    assert (found.variance, found.df) == (0, math.inf)


# --- FSR --------------------------------------------------------------------------------


def test_fieller_by_hand():
    # (10 - 2θ)² = 4 (1 + θ²/4) has the roots (20 ± sqrt(112)) / 3.
    low, high = fieller((10, 2), (1, 0.25), 0.0, 2.0)
    assert (low, high) == pytest.approx(((20 - math.sqrt(112)) / 3, (20 + math.sqrt(112)) / 3))


@quick
@given(
    st.floats(-5, 5), st.floats(0.5, 5), st.floats(0.001, 1), st.floats(0.001, 1), st.floats(-1, 1)
)
def test_fiellers_ends_are_where_the_test_of_the_quotient_turns(n, d, var_n, var_d, correlation):
    covariance = correlation * math.sqrt(var_n * var_d)
    found = fieller((n, d), (var_n, var_d), covariance, 2.2)
    if found is None:
        assert d * d <= 2.2**2 * var_d
        return
    assert found[0] <= n / d + 1e-9
    assert found[1] >= n / d - 1e-9
    for end in found:
        variance = var_n - 2 * end * covariance + end * end * var_d
        scale = max(1.0, end * end)
        assert (n - end * d) ** 2 == pytest.approx(2.2**2 * variance, rel=1e-5, abs=1e-5 * scale)


def test_without_noise_in_the_target_it_is_the_interval_of_the_ratio():
    starts, ours = [100.0, 102.0, 98.0, 101.0], [80.0, 83.0, 77.0, 81.0]
    found = fsr_interval(Times(starts, ours, (), (100.0,), (60.0,)), 0.025)
    ours_ratio = log_ratio(ours, starts)
    r = math.exp(ours_ratio.value)
    reach = stats.t.isf(0.025, 3) * r * math.sqrt(ours_ratio.variance)
    assert found.method == "fieller"
    assert found.value == pytest.approx((1 - r) / 0.4)
    assert (found.low, found.high) == pytest.approx(((1 - r - reach) / 0.4, (1 - r + reach) / 0.4))


def test_a_candidate_that_is_the_target_has_fsr_1_without_doubt():
    starts, targets = [100.0, 105.0, 98.0], [60.0, 65.0, 57.0]
    found = fsr_interval(Times(starts, targets, targets), 0.025)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


@quick
@given(paired(), st.floats(0.01, 100), st.booleans())
def test_fsr_does_not_depend_on_units(rows, factor, with_target):
    starts, ours, targets = zip(*rows, strict=True)
    if math.exp(log_ratio(targets, starts).value) > 0.95:
        return
    columns = [starts, ours, targets]
    found, scaled = (
        fsr_interval(
            Times(c[0], c[1], c[2])
            if with_target
            else Times(c[0], c[1], (), (c[0][0],), (0.5 * c[0][0],)),
            0.025,
        )
        for c in (columns, [[factor * t for t in column] for column in columns])
    )
    assert scaled.method == found.method
    assert scaled.value == pytest.approx(found.value, rel=1e-6, abs=1e-9)
    if found.method == "fieller":
        assert scaled.low == pytest.approx(found.low, rel=1e-4, abs=1e-6)


def test_where_fieller_has_no_end_a_bootstrap_takes_its_place():
    starts, ours, targets = [100.0, 90.0, 110.0], [95.0, 99.0, 92.0], [60.0, 99.0, 108.0]
    found = fsr_interval(Times(starts, ours, targets), 0.01, seed=5)
    assert found.method == "bootstrap"
    assert found.low is None or found.low <= found.value
    assert found == fsr_interval(Times(starts, ours, targets), 0.01, seed=5)


def test_the_bootstrap_also_covers_an_earlier_calibration():
    noisy = Times([100.0, 101.0, 99.0], [90.0, 91.0, 89.0], (), (100.0, 80.0), (99.0, 70.0))
    found = fsr_interval(noisy, 0.025)
    assert found.method == "bootstrap"
    assert found.high is None or found.high >= found.value


def test_without_a_speedup_there_is_no_fsr():
    assert fsr_interval(Times([10.0, 10.1], [9.0, 9.1], [10.5, 10.6]), 0.025) is None


def test_fieller_holds_the_truth_as_often_as_it_says():
    rng = random.Random(7)
    inside = 0
    for _ in range(1500):
        common = [rng.gauss(0, 0.1) for _ in range(6)]
        starts, ours, targets = (
            [ratio * math.exp(c + rng.gauss(0, 0.03)) for c in common] for ratio in (1, 0.9, 0.8)
        )
        found = fsr_interval(Times(starts, ours, targets), 0.025)
        inside += found.method == "fieller" and found.low <= 0.5 <= found.high
    assert 0.93 <= inside / 1500 <= 0.97


# --- noise ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "mean"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))]
)
def test_the_greatest_of_normal_numbers_has_a_known_mean(n, mean):
    assert expected_best(n) == pytest.approx(mean, abs=1e-6)


def test_the_greatest_of_twenty():
    assert expected_best(20) == pytest.approx(1.86748, abs=1e-5)


def test_the_noise_floor_is_what_searches_of_unchanged_scripts_score():
    rng = random.Random(3)
    sd, runs, nodes = 0.02, 200, 20
    times = [10_000 * math.exp(rng.gauss(0, sd)) for _ in range(runs)]
    best = statistics.fmean(
        min(10_000 * math.exp(rng.gauss(0, sd)) for _ in range(nodes)) for _ in range(2000)
    )
    expected = (10_000 - best) / (10_000 - 8000)
    assert noise_floor(times, 8000, nodes) == pytest.approx(expected, rel=0.15)


def test_the_noise_floor_grows_with_the_search_and_is_0_for_one_node():
    times = [10_000.0, 10_300.0, 9800.0]
    floors = [noise_floor(times, 8000, n) for n in (1, 2, 5, 20)]
    assert floors[0] == pytest.approx(0, abs=1e-9)
    assert floors == sorted(floors)
    assert noise_floor([10_000.0] * 3, 8000, 20) == 0


@pytest.mark.parametrize(
    ("times", "target"), [([10_000.0], 8000), ([], 8000), ([10_000.0, 10_100.0], 10_060)]
)
def test_without_spread_or_speedup_there_is_no_floor(times, target):
    assert noise_floor(times, target, 20) is None


@quick
@given(st.lists(times_ms, min_size=2, max_size=6), st.floats(0.01, 100))
def test_the_floor_does_not_depend_on_units(times, factor):
    target = 0.8 * statistics.median(times)
    scaled = noise_floor([factor * t for t in times], factor * target, 20)
    assert scaled == pytest.approx(noise_floor(times, target, 20), rel=1e-6, abs=1e-9)


def test_drift_is_the_growth_from_first_to_last():
    assert drift([100 * 1.02**k for k in range(6)]) == pytest.approx(1.02**5 - 1)
    assert drift([100.0, 100.0, 100.0]) == pytest.approx(0)
    assert drift([100.0, 120.0]) is None
