"""What pairs say of a claim: figures, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from speedkit.core.calibration import Calibration
from speedkit.core.paired import (
    Interval,
    LossTest,
    Times,
    difference_low,
    drift,
    fsr_interval,
    log_ratio,
    loss_test,
    noise_floor,
    ratio_interval,
    target_log_ratio,
)
from speedkit.verifying.account import CANDIDATE, START, TARGET, Account
from speedkit.verifying.sequential import Look

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
MAX_DRIFT = 0.1
"""A start record that becomes slower or faster by a larger fraction is worth a note."""


GROWTH = 0.5
"""Uncounted time may be longer by so large a fraction of the start record's."""
SHARE = 0.5
"""It may be longer by so large a share of the time that the candidate saves."""
LOW = 0.01
"""Probability that a part is not longer by what is said to be the least."""
UNTIMED = {
    "before": "before its second validation",
    "between": "in and around its later validations",
    "after": "after its last validation",
}


class Next(Enum):
    """What is to be measured before a verdict can be given."""

    PAIR = "pair"
    ABLATION = "ablation"
    RECOUNT = "recount"


@dataclass(frozen=True)
class Decision:
    """A verdict with its reasons, a sentence each."""

    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What figures and verdict depend on besides the pairs.

    Attributes:
        gate: validation loss that counts as reached.
        calibration: times of the run, which stand in for a target record that is not run.
        nodes: nodes of the search, for the noise floor.
        ablation: whether a run on shuffled tokens is asked for.
        recount: whether what a node validates is to be counted from outside.
    """

    gate: float
    calibration: Calibration
    nodes: int
    ablation: bool = False
    recount: bool = False


@dataclass(frozen=True)
class Longer:
    """A part of a run that takes the candidate longer than the start record, and no clock counts.

    Attributes:
        part: a key of :data:`UNTIMED`.
        mean: seconds by which it is longer.
        low: seconds by which it is longer at least.
    """

    part: str
    mean: float
    low: float

    def __str__(self) -> str:
        """Say so in a sentence."""
        return (
            f"the candidate takes {self.mean:.2f} s longer than the start record (at least "
            f"{self.low:.2f} s) {UNTIMED[self.part]}, which its clock does not count"
        )


@dataclass(frozen=True)
class Figures:
    """What two or more whole pairs say.

    Attributes:
        look: with the levels that were used.
        ratio: time of the candidate to that of the start record.
        target_ratio: the same of the target record.
        fsr: None where the target record is not faster than the start record.
        loss: tests of the candidate's mean loss.
        drift: fraction by which the start record's times grew over the pairs.
        noise_floor: FSR of the best of as many unchanged scripts as the search had nodes.
        longer: what takes the candidate longer without being counted, and much so.
    """

    look: Look
    ratio: Interval
    target_ratio: float
    fsr: Interval | None
    loss: LossTest
    drift: float | None
    noise_floor: float | None
    longer: tuple[Longer, ...] = ()


def figures(account: Account, rules: Rules) -> Figures | None:
    """Return what the pairs say; None for fewer than two."""
    starts, candidates = account.times(START), account.times(CANDIDATE)
    if len(starts) < 2:
        return None
    look = _levels(account)
    times = Times(starts, candidates, account.times(TARGET), *_earlier(rules.calibration))
    target = target_log_ratio(times)
    target_ratio = ratio_interval(target, look.time).value
    return Figures(
        look=look,
        ratio=ratio_interval(log_ratio(candidates, starts), look.time),
        target_ratio=target_ratio,
        fsr=fsr_interval(times, look.time, seed=account.entropy),
        loss=loss_test(account.losses(CANDIDATE), rules.gate),
        drift=drift(starts),
        noise_floor=noise_floor(starts, target_ratio * statistics.median(starts), rules.nodes),
        longer=tuple(_longer(account)),
    )


def _longer(account: Account) -> Iterator[Longer]:
    """Yield the parts of a run that grew by more than a candidate may need for itself.

    A script that trains while its clock stands still is seen so, however it hides that.
    """
    starts, candidates = account.untimed(START), account.untimed(CANDIDATE)
    if len(starts) < 2:
        return
    saved = statistics.fmean(account.times(START)) - statistics.fmean(account.times(CANDIDATE))
    for part in UNTIMED:
        usual = [getattr(run, part) for run in starts]
        ours = [getattr(run, part) for run in candidates]
        mean, low = difference_low(ours, usual, LOW)
        if low > max(0.0, SHARE * saved / 1000, GROWTH * statistics.fmean(usual)):
            yield Longer(part, mean, low)


def _levels(account: Account) -> Look:
    """Return the look that the pairs have come to, or the first one before that."""
    looks = account.plan.looks
    return next((k for k in reversed(looks) if k.pairs <= len(account.whole)), looks[0])


def _earlier(calibration: Calibration) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return times of start and target record; one each where their ratio is the manifest's."""
    if calibration.source == "measured":
        return calibration.start_runs, calibration.target_runs
    return (calibration.start_ms,), (calibration.target_ms,)


# --- the verdict ------------------------------------------------------------------------


def decide(account: Account, rules: Rules) -> Decision | Next:
    """Return the verdict, or what is to be measured first.

    A fault of the candidate or a guard's rejection refutes at once. The tests are made at the
    looks of the plan only.
    """
    if account.pairs and (fault := _fault(account)):
        return Decision(REFUTED, (fault,))
    objection = account.objection
    if account.is_rejected and objection is not None:
        return Decision(REFUTED, (f"guard {objection.guard}: {objection.reason}",))
    look = account.plan.look(len(account.pairs))
    if look is None:
        return Next.PAIR
    seen = figures(account, rules)
    assert seen is not None  # the first look is at two pairs or more
    against = _refutations(seen)
    if against:
        return Decision(REFUTED, against)
    blocked = _blocks(account, seen)
    lacking = _lacking(seen)
    if not blocked and not lacking:
        return _confirm(account, rules, seen)
    if blocked or look.pairs == account.plan.max_pairs:
        return Decision(UNDECIDED, (*blocked, *lacking))
    return Next.PAIR


def _confirm(account: Account, rules: Rules, seen: Figures) -> Decision | Next:
    if rules.ablation and account.ablation is None:
        return Next.ABLATION
    if rules.recount and account.recount is None:
        return Next.RECOUNT
    loss, ratio = seen.loss, seen.ratio
    reasons = [
        f"the mean loss {loss.mean:.4f} is under the target {loss.target:g} "
        f"({_level(loss.p, seen.look.loss)})",
        f"the time is {ratio.value:.3f} ({_ends(ratio)}) of the start record's",
        f"all {len(account.pairs)} runs are clean",
    ]
    if account.ablation is not None:
        reasons.append(account.ablation.reason)
    if account.recount is not None:
        reasons.append("what was counted from outside agrees with what the script printed")
    return Decision(CONFIRMED, tuple(reasons))


def _fault(account: Account) -> str:
    """Return why a run of the candidate did not come to its end; empty if all did."""
    faults = (
        f"the candidate's run in pair {pair.number} failed: {pair[CANDIDATE].fault}"
        for pair in account.pairs
        if pair.has(CANDIDATE) and pair[CANDIDATE].fault
    )
    return next(faults, "")


def _refutations(seen: Figures) -> tuple[str, ...]:
    loss, ratio = seen.loss, seen.ratio
    reasons = []
    if loss.p_over <= seen.look.loss:
        reasons.append(
            f"the mean loss {loss.mean:.4f} is over the target {loss.target:g} "
            f"({_level(loss.p_over, seen.look.loss)})"
        )
    if ratio.low is not None and ratio.low >= 1:
        reasons.append(
            f"the time is {ratio.value:.3f} ({_ends(ratio)}) of the start record's, not less"
        )
    return tuple(reasons)


def _blocks(account: Account, seen: Figures) -> tuple[str, ...]:
    """Return what keeps a node from being confirmed whatever the tests say."""
    reasons = []
    if (objection := account.objection) is not None:
        reasons.append(f"guard {objection.guard}: {objection.reason}")
    losses, usual = account.losses(CANDIDATE), account.losses(START)
    if len(set(losses)) == 1 and len(set(usual)) > 1:
        reasons.append(
            "the candidate's loss is the same for every seed and the start record's is not, so "
            "that nothing is known of other seeds; the script must take its seed from the "
            "environment, as the start record does"
        )
    reasons += [str(longer) for longer in seen.longer if longer.part != "before"]
    return tuple(reasons)


def _lacking(seen: Figures) -> tuple[str, ...]:
    """Return what the tests have not shown."""
    loss, ratio = seen.loss, seen.ratio
    reasons = []
    if loss.p > seen.look.loss:
        reasons.append(
            f"the mean loss {loss.mean:.4f} is not shown to be under the target {loss.target:g} "
            f"({_level(loss.p, seen.look.loss)})"
        )
    if ratio.high is None or ratio.high >= 1:
        reasons.append(
            f"the time is {ratio.value:.3f} ({_ends(ratio)}) of the start record's, which is not "
            "shown to be less"
        )
    return tuple(reasons)


def _level(p: float, level: float) -> str:
    return f"p = {p:.2g}, at most {level:.2g} is asked for"


def _ends(interval: Interval) -> str:
    low, high = interval.low, interval.high
    return f"{'0' if low is None else f'{low:.3f}'} to {'∞' if high is None else f'{high:.3f}'}"
