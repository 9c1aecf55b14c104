"""Plans of verification: looks, levels, seeds, order; how often they err."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import NormalDist

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import verify_noise

from speedkit.core.calibration import Calibration
from speedkit.core.components import Ending, Execution
from speedkit.core.errors import UsageError
from speedkit.core.metrics import parse_log
from speedkit.core.trial import Trial
from speedkit.verifying.account import CANDIDATE, START, Account, Measured, Pair, Untimed
from speedkit.verifying.bench import fresh_seed, order, untimed
from speedkit.verifying.decision import (
    CONFIRMED,
    REFUTED,
    UNDECIDED,
    Next,
    Rules,
    decide,
    figures,
)
from speedkit.verifying.sequential import SPENDING, Plan, nominal_levels

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
PUBLISHED = {
    "pocock": (2.4380, 2.4268, 2.4102, 2.3966, 2.3860),
    "obrien-fleming": (4.8769, 3.3570, 2.6803, 2.2898, 2.0310),
}
"""Bounds of Lan and DeMets for five looks at each side of a two-sided test with 5 %."""


@pytest.mark.parametrize("spending", SPENDING)
def test_the_bounds_are_those_of_published_tables(spending):
    levels = nominal_levels(0.025, FIFTHS, spending)
    bounds = [NormalDist().inv_cdf(1 - level) for level in levels]
    assert bounds == pytest.approx(PUBLISHED[spending], abs=2e-4)


@pytest.mark.parametrize("spending", SPENDING)
def test_all_of_the_error_is_spent_in_the_end(spending):
    spend = SPENDING[spending]
    assert spend(0.01, 1.0) == pytest.approx(0.01)
    assert 0 < spend(0.01, 0.1) < spend(0.01, 0.5) < 0.01


def test_one_look_has_the_whole_level():
    (look,) = Plan.make(6, 6).looks
    assert (look.pairs, look.loss, look.time) == (6, pytest.approx(0.01), pytest.approx(0.025))


def test_looks_come_at_even_numbers_and_at_the_end():
    assert [k.pairs for k in Plan().looks] == [4, 6, 8, 10, 12]
    assert [k.pairs for k in Plan.make(4, 9).looks] == [4, 6, 8, 9]
    assert Plan().look(6).pairs == 6
    assert Plan().look(5) is None


@pytest.mark.parametrize(
    ("pairs", "most", "plan"),
    [
        (None, None, Plan(4, 12)),
        (20, None, Plan(20, 20)),
        (None, 3, Plan(3, 3)),
        (2, 8, Plan(2, 8)),
    ],
)
def test_what_is_not_said_suits_what_is(pairs, most, plan):
    assert Plan.make(pairs, most) == plan


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pairs": 1}, "at least 2 pairs"),
        ({"pairs": 0}, "at least 2 pairs"),
        ({"max_pairs": 0}, "at least 2 pairs"),
        ({"pairs": 8, "max_pairs": 6}, "less than the 8 pairs"),
        ({"max_pairs": 101}, "too many"),
        ({"spending": "all"}, "there are: pocock, obrien-fleming"),
    ],
)
def test_there_are_no_such_plans(values, message):
    with pytest.raises(UsageError, match=message):
        Plan.make(**values)


def test_every_other_pair_is_reversed():
    assert order(1, target=False) == ("start", "candidate")
    assert order(2, target=False) == ("candidate", "start")
    assert order(3, target=True) == ("start", "candidate", "target")
    assert order(4, target=True) == ("target", "candidate", "start")


def test_seeds_are_fresh_and_can_be_found_again():
    seed = fresh_seed(5, 1, ())
    assert seed == fresh_seed(5, 1, ())
    assert fresh_seed(5, 1, {seed}) != seed
    assert len({fresh_seed(5, k, ()) for k in range(50)}) == 50


# --- what no clock counts ---------------------------------------------------------------------


def run_of(lines, at, wall_s=10.0):
    report = parse_log(lines)
    arrivals = tuple(zip(at, report.curve, strict=True))
    return Trial(Execution(Ending.FINISHED, 0, wall_s=wall_s), report, None, "", arrivals)


def line(step, ms):
    return f"step:{step}/30 val_loss:1.7000 train_time:{ms}ms"


def test_what_a_clock_does_not_count_is_told_apart():
    trial = run_of([line(10, 400), line(20, 800), line(30, 1200)], [6.0, 6.5, 7.0])
    assert untimed(trial) == Untimed(before=5.7, between=0.1, after=3.0)
    assert untimed(run_of([line(15, 500), line(30, 1000)], [6.0, 7.0])) == Untimed(5.5, 0.5, 3.0)
    assert untimed(run_of([line(30, 1000)], [6.0])) == Untimed(5.0, 0.0, 4.0)


def test_nothing_is_said_of_lines_that_were_not_seen_or_claim_too_much():
    assert untimed(run_of([], [])) is None
    assert untimed(run_of([line(30, 9000)], [6.0])) is None


def measured(which, number, ms, **more):
    """Return a run of the start record's length outside of the clock, but for what is given."""
    wobble = 0.01 * (number % 3)
    parts = {"before": 6.0, "between": 0.3, "after": 0.5}
    parts = {part: s + wobble + more.get(part, 0.0) for part, s in parts.items()}
    return Measured(which, ms + number, 1.7 + wobble, untimed=Untimed(**parts))


def judged(pairs=4, **more):
    """Return the decision on a candidate that takes 0.6 s in place of 1 s, and its figures."""
    account = Account(Plan(), 1, {})
    for number in range(1, pairs + 1):
        runs = measured(START, number, 1000.0), measured(CANDIDATE, 3 - number, 600.0, **more)
        account.pairs.append(Pair(number, number, runs))
    rules = Rules(1.8, Calibration("toy/1", "measured", (1000.0, 1001.0), (500.0, 501.0)), 4)
    return decide(account, rules), figures(account, rules)


@pytest.mark.parametrize("part", ["between", "after"])
def test_training_that_no_clock_counts_is_not_confirmed(part):
    decision, seen = judged(**{part: 0.4})
    assert decision.verdict == UNDECIDED
    assert "0.40 s longer than the start record" in decision.reasons[0]
    assert [longer.part for longer in seen.longer] == [part]


def test_a_longer_start_is_worth_a_note_alone():
    decision, seen = judged(before=20.0)
    assert decision.verdict == CONFIRMED
    assert [longer.part for longer in seen.longer] == ["before"]


def test_a_validation_that_is_a_little_slower_is_nothing():
    decision, seen = judged(between=0.1, before=1.0)
    assert decision.verdict == CONFIRMED
    assert seen.longer == ()
    assert judged(pairs=3)[0] is Next.PAIR


def test_runs_keep_what_was_not_counted():
    run = measured(START, 1, 1000.0)
    assert Measured.from_dict(run.to_dict()) == run
    old = {key: value for key, value in run.to_dict().items() if key != "untimed"}
    assert Measured.from_dict(old).untimed is None


# --- how often it errs ------------------------------------------------------------------


@pytest.mark.parametrize("plan", [Plan(), Plan(2, 12), Plan(spending="obrien-fleming"), Plan(8, 8)])
def test_the_tests_err_no_more_often_than_they_may(plan):
    loss, time = verify_noise.crossings(plan, 60_000)
    assert 0.006 < loss < 0.01 + 4 * 0.0004
    assert 0.018 < time < 0.025 + 4 * 0.0006


def test_few_unchanged_scripts_are_confirmed():
    tally = verify_noise.simulate(
        verify_noise.Truth(1.0, 3.0), verify_noise.Machine(), Plan(), trials=150
    )
    assert tally.share(CONFIRMED) < 0.025 + 3 * 0.013
    assert tally.covered["ratio"] > 0.9 * 150


def test_a_real_speedup_is_confirmed_soon():
    tally = verify_noise.simulate(
        verify_noise.Truth(0.85, 3.0), verify_noise.Machine(), Plan(), trials=40
    )
    assert tally.share(CONFIRMED) > 0.9
    assert tally.pairs / 40 < 8


def test_a_loss_far_over_the_target_is_refuted():
    tally = verify_noise.simulate(
        verify_noise.Truth(0.85, -3.0), verify_noise.Machine(), Plan(), trials=40
    )
    assert tally.share(REFUTED) > 0.9
    assert tally.share(CONFIRMED) == 0


def test_the_best_of_unchanged_scripts_claims_what_the_noise_floor_says():
    from speedkit.core.paired import noise_floor

    claimed = verify_noise.claimed(verify_noise.Machine(noise=0.02), 1500, runs=15)
    times = [1000 * (1 + 0.02 * z) for z in (-1.2, -0.6, -0.2, 0.2, 0.6, 1.2)]
    floor = noise_floor(times, 800, verify_noise.NODES)
    assert claimed == pytest.approx(floor, rel=0.2)
