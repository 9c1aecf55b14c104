"""Statistics of paired runs: ratios of times, mean losses, FSR, and what noise alone scores."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

ROUNDS = 4000
"""Resamples of a bootstrap."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end, None where there is none.
        high: upper end, None where there is none.
        method: how the interval was made: ``t``, ``fieller`` or ``bootstrap``.
    """

    value: float
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class LossTest:
    """One-sided t-tests of a mean validation loss against a target.

    Attributes:
        mean: mean loss in nats per token.
        sd: standard deviation of a single run.
        runs: number of runs.
        target: what the mean is compared with, in nats per token.
        p: probability of a mean so low if the true mean were at the target; small means that
            the mean is under it.
        p_over: the same of a mean so high; small means that it is over.
    """

    mean: float
    sd: float
    runs: int
    target: float
    p: float
    p_over: float


@dataclass(frozen=True)
class LogRatio:
    """Mean logarithm of a ratio of two times.

    Attributes:
        value: the mean.
        variance: of that mean; 0 for a ratio that is taken as exact.
        df: degrees of freedom of the variance.
    """

    value: float
    variance: float = 0.0
    df: float = math.inf


@dataclass(frozen=True)
class Times:
    """Times of pairs, in one unit.

    Attributes:
        starts: of the start record, one a pair.
        candidates: of the candidate, one a pair.
        targets: of the target record, one a pair; empty if it was not run.
        earlier_starts: times of the start record in an earlier calibration, which stand in for
            ``targets`` together with ``earlier_targets``.
        earlier_targets: times of the target record in it.
    """

    starts: Sequence[float]
    candidates: Sequence[float]
    targets: Sequence[float] = ()
    earlier_starts: Sequence[float] = ()
    earlier_targets: Sequence[float] = ()


# --- Student's t ------------------------------------------------------------------------


def student_tail(t: float, df: float) -> float:
    """Return the probability that Student's t with ``df`` degrees of freedom exceeds ``t``."""
    if math.isinf(df):
        return 0.5 * math.erfc(t / math.sqrt(2))
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return tail if t >= 0 else 1 - tail


@lru_cache(maxsize=1024)
def student_quantile(tail: float, df: float) -> float:
    """Return what Student's t exceeds with probability ``tail``, which is in (0, 1)."""
    if tail > 0.5:
        return -student_quantile(1 - tail, df)
    low, high = 0.0, 1.0
    while student_tail(high, df) > tail:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, df) > tail else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function of x in [0, 1]."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta)
    return front / a * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            value *= c * d
        if abs(value - before) <= 1e-15 * abs(value):
            break
    return value


# --- losses and ratios ------------------------------------------------------------------


def loss_test(losses: Sequence[float], target: float) -> LossTest:
    """Test whether a mean loss is under, or over, a target; at least two losses are needed."""
    mean, sd, n = statistics.fmean(losses), statistics.stdev(losses), len(losses)
    t = _t_value(target - mean, sd / math.sqrt(n))
    return LossTest(mean, sd, n, target, student_tail(t, n - 1), student_tail(-t, n - 1))


def _t_value(difference: float, error: float) -> float:
    if error > 0:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


def difference_low(
    ours: Sequence[float], usual: Sequence[float], tail: float
) -> tuple[float, float]:
    """Return the mean difference of paired values, and the lower end of its t-interval.

    Args:
        tail: probability left out under the lower end.
    """
    differences = [a - b for a, b in zip(ours, usual, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    error = statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - student_quantile(tail, n - 1) * error


def log_ratio(times: Sequence[float], starts: Sequence[float]) -> LogRatio:
    """Return the log ratio of times that were measured in pairs, two or more of them."""
    logs = _logs(times, starts)
    return LogRatio(statistics.fmean(logs), statistics.variance(logs) / len(logs), len(logs) - 1)


def earlier_log_ratio(times: Sequence[float], starts: Sequence[float]) -> LogRatio:
    """Return the log ratio of two groups of times; exact where a group has only one.

    Degrees of freedom are Welch's.
    """
    logs = [[math.log(t) for t in group] for group in (times, starts)]
    value = statistics.fmean(logs[0]) - statistics.fmean(logs[1])
    if min(map(len, logs)) < 2:
        return LogRatio(value)
    parts = [(statistics.variance(g) / len(g), len(g) - 1) for g in logs]
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return LogRatio(value)
    return LogRatio(value, variance, variance**2 / sum(v * v / df for v, df in parts))


def ratio_interval(ratio: LogRatio, tail: float) -> Interval:
    """Return the geometric mean ratio with its t-interval.

    Args:
        tail: probability left out at each side.
    """
    reach = _reach(ratio, tail)
    ends = [_exp(ratio.value + sign * reach) for sign in (-1, 1)]
    return Interval(math.exp(ratio.value), ends[0], _finite(ends[1]), "t")


def _reach(ratio: LogRatio, tail: float) -> float:
    return student_quantile(tail, ratio.df) * math.sqrt(ratio.variance) if ratio.variance else 0.0


def _logs(times: Sequence[float], starts: Sequence[float]) -> list[float]:
    return [math.log(t / s) for t, s in zip(times, starts, strict=True)]


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


# --- FSR --------------------------------------------------------------------------------


def target_log_ratio(times: Times) -> LogRatio:
    """Return the target record's log ratio to the start record: of the pairs, or as known."""
    if times.targets:
        return log_ratio(times.targets, times.starts)
    return earlier_log_ratio(times.earlier_targets, times.earlier_starts)


def fsr_interval(times: Times, tail: float, seed: int = 0) -> Interval | None:
    """Return FSR from paired times; None where the target record is not the faster one.

    With ratios r of the candidate and q of the target record to the start record, FSR is
    (1 - r) / (1 - q), and both are noisy. The interval is Fieller's (1954), with the variances
    of r and q from those of their logarithms; where Fieller's is unbounded, because 1 - q
    cannot be told from 0, it is that of a percentile bootstrap over pairs, which is bounded
    but then promises little.

    Args:
        tail: probability left out at each side.
        seed: of the bootstrap.
    """
    ours, target = log_ratio(times.candidates, times.starts), target_log_ratio(times)
    r, q = math.exp(ours.value), math.exp(target.value)
    if q >= 1:
        return None
    value = (1 - r) / (1 - q)
    covariance = r * q * _covariance(times)
    variances = r * r * ours.variance, q * q * target.variance
    df = ours.df if times.targets else _joint_df(ours, target, variances, value)
    t = student_quantile(tail, df)
    bounds = fieller((1 - r, 1 - q), variances, covariance, t)
    if bounds is not None:
        return Interval(value, *bounds, "fieller")
    low, high = _bootstrap(times, tail, random.Random(seed))
    return Interval(value, _finite(low), _finite(high), "bootstrap")


def fieller(
    means: tuple[float, float],
    variances: tuple[float, float],
    covariance: float,
    t: float,
) -> tuple[float, float] | None:
    """Return Fieller's interval of a quotient of two means; None where it is unbounded.

    Args:
        means: of numerator and denominator.
        variances: of these means.
        covariance: of these means.
        t: quantile of Student's t.
    """
    (n, d), (var_n, var_d) = means, variances
    a = d * d - t * t * var_d
    b = n * d - t * t * covariance
    c = n * n - t * t * var_n
    if a <= 0:
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a


def _covariance(times: Times) -> float:
    """Return the covariance of the two mean log ratios."""
    if not times.targets:
        return 0.0
    ours, target = (_logs(t, times.starts) for t in (times.candidates, times.targets))
    return statistics.covariance(ours, target) / len(ours)


def _joint_df(
    ours: LogRatio, target: LogRatio, variances: tuple[float, float], value: float
) -> float:
    """Return Welch's degrees of freedom of numerator minus FSR times denominator."""
    parts = variances[0], value * value * variances[1]
    spread = parts[0] ** 2 / ours.df + parts[1] ** 2 / target.df
    return sum(parts) ** 2 / spread if spread > 0 else ours.df


def _bootstrap(times: Times, tail: float, rng: random.Random) -> tuple[float, float]:
    values = sorted(_resampled_fsr(times, rng) for _ in range(ROUNDS))
    cut = int(tail * ROUNDS)
    return values[cut], values[-1 - cut]


def _resampled_fsr(times: Times, rng: random.Random) -> float:
    picked = rng.choices(range(len(times.starts)), k=len(times.starts))

    def mean(runs: Sequence[float]) -> float:
        return statistics.fmean(math.log(runs[i] / times.starts[i]) for i in picked)

    if times.targets:
        target = mean(times.targets)
    else:
        groups = (times.earlier_targets, times.earlier_starts)
        again = (rng.choices(group, k=len(group)) for group in groups)
        target = earlier_log_ratio(*again).value
    gain, whole = -math.expm1(mean(times.candidates)), -math.expm1(target)
    return gain / whole if whole else math.copysign(math.inf, gain)


# --- noise ------------------------------------------------------------------------------


def noise_floor(start_times: Sequence[float], target_ms: float, nodes: int) -> float | None:
    """Return the FSR that the best of so many unchanged scripts is expected to score.

    The times of a script are taken as log-normal, with the median and the spread of
    ``start_times``; the best of n lies as many standard deviations under the median as the
    least of n standard normal numbers under 0 on average. All are taken as valid.

    Args:
        start_times: runs of the start record, in milliseconds.
        target_ms: time of the target record.
        nodes: number of nodes of the search.

    Returns:
        FSR; None for fewer than two times, or where there is no speedup to recover.
    """
    if len(start_times) < 2 or nodes < 1:
        return None
    start = statistics.median(start_times)
    if target_ms >= start:
        return None
    logs = [math.log(t) for t in start_times]
    sd = statistics.stdev(logs) / _sd_bias(len(logs))
    return -start * math.expm1(-expected_best(nodes) * sd) / (start - target_ms)


def drift(times: Sequence[float]) -> float | None:
    """Return by what fraction times grew from the first to the last, by a straight line.

    The line is fitted to their logarithms; None for fewer than three.
    """
    if len(times) < 3:
        return None
    slope = statistics.linear_regression(range(len(times)), [math.log(t) for t in times]).slope
    return math.expm1(slope * (len(times) - 1))


@lru_cache(maxsize=64)
def expected_best(n: int) -> float:
    """Return the expected greatest of n standard normal numbers, by numerical integration."""
    cdf = NormalDist().cdf
    step = 1 / 128
    # With F the distribution of the greatest, its mean is the integral of 1 - F over the
    # positive numbers, less that of F over the negative ones; the middles of cells suffice.
    xs = [(k + 0.5) * step for k in range(10 * 128)]
    return step * sum(1 - cdf(x) ** n - cdf(-x) ** n for x in xs)


def _sd_bias(n: int) -> float:
    """Return the expected standard deviation of n normal numbers whose true one is 1."""
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
