"""Simulates verification under noise: how often it errs, and how many pairs it takes.

    python benchmarks/verify_noise.py [--trials 1000] [--noise 0.03] [--loss-sd 0.0013] [--brief]

Nothing is trained: times are log-normal with a standard deviation of `--noise`, a slow drift and
a common factor for each pair; losses are normal. Start and target record take 1 and 0.8. The
rules are those of `speedkit verify`, every look included. A search of 20 nodes claims the best of
its times, as a search does.

Goals: a candidate that is not faster is confirmed in at most 2.5 % of cases, and one whose mean
loss is at the target in at most 1 %; the intervals of ratio and FSR hold the truth in 95 %.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from dataclasses import dataclass, field

from speedkit.core.calibration import Calibration
from speedkit.core.paired import student_quantile
from speedkit.verifying.account import CANDIDATE, START, TARGET, Account, Measured, Pair
from speedkit.verifying.bench import order
from speedkit.verifying.decision import CONFIRMED, REFUTED, UNDECIDED, Next, Rules, decide, figures
from speedkit.verifying.sequential import Plan

GATE = 3.28
TARGET_RATIO = 0.8
NODES = 20
DRIFT = 0.002
"""Growth of all times from one run to the next."""
COMMON = 0.02
"""Standard deviation of the logarithm of what the runs of a pair have in common."""
MS = 100_000


@dataclass(frozen=True)
class Machine:
    """How much times and losses vary."""

    noise: float = 0.03
    loss_sd: float = 0.0013


@dataclass(frozen=True)
class Truth:
    """What is true of a candidate.

    Attributes:
        ratio: its time to that of the start record.
        margin: how far its mean loss is under the target, in standard deviations of a run.
    """

    ratio: float
    margin: float

    @property
    def fsr(self) -> float:
        """Fraction of the speedup recovered."""
        return (1 - self.ratio) / (1 - TARGET_RATIO)


@dataclass
class Tally:
    """What came of many verifications."""

    verdicts: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    covered: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    width: float = 0.0

    @property
    def trials(self) -> int:
        """How many verifications there were."""
        return self.verdicts.total()

    def share(self, verdict: str) -> float:
        """Return the share of a verdict."""
        return self.verdicts[verdict] / self.trials


def calibrate(machine: Machine, runs: int, rng: random.Random) -> Calibration:
    """Return a calibration of so many runs of each record."""
    times = [
        tuple(MS * ratio * math.exp(rng.gauss(0, machine.noise)) for _ in range(runs))
        for ratio in (1.0, TARGET_RATIO)
    ]
    return Calibration("simulated/1", "measured", *times)


def measure(account: Account, truth: Truth, machine: Machine, rng: random.Random) -> None:
    """Enter one more pair."""
    number = len(account.pairs) + 1
    ratios = {START: 1.0, CANDIDATE: truth.ratio, TARGET: TARGET_RATIO}
    common, runs = rng.gauss(0, COMMON), []
    for k, which in enumerate(order(number, target=account.plan.target)):
        moment = k + len(ratios) * number
        log = common + DRIFT * moment + rng.gauss(0, machine.noise)
        loss = GATE + machine.loss_sd * (rng.gauss(0, 1) - truth.margin)
        runs.append(Measured(which, MS * ratios[which] * math.exp(log), loss))
    account.pairs.append(Pair(number, number, tuple(runs)))


def verify(
    plan: Plan, truth: Truth, machine: Machine, rng: random.Random, runs: int = 3
) -> tuple[str, Account, Rules]:
    """Verify one candidate; return verdict and evidence."""
    rules = Rules(GATE, calibrate(machine, runs, rng), NODES)
    account = Account(plan, rng.getrandbits(64), {})
    while isinstance(step := decide(account, rules), Next):
        measure(account, truth, machine, rng)
    return step.verdict, account, rules


def simulate(
    truth: Truth, machine: Machine, plan: Plan, trials: int, seed: int = 0, runs: int = 3
) -> Tally:
    """Verify a candidate many times."""
    tally, rng = Tally(), random.Random(f"{seed}/{truth}/{plan}")
    for _ in range(trials):
        verdict, account, rules = verify(plan, truth, machine, rng, runs)
        tally.verdicts[verdict] += 1
        tally.pairs += len(account.pairs)
        seen = figures(account, rules)
        assert seen is not None
        pairs = {"ratio": (seen.ratio, truth.ratio), "fsr": (seen.fsr, truth.fsr)}
        for name, (interval, true) in pairs.items():
            if interval is not None:
                low = -math.inf if interval.low is None else interval.low
                high = math.inf if interval.high is None else interval.high
                tally.covered[name] += low <= true <= high
        tally.methods[seen.fsr.method if seen.fsr else "none"] += 1
    return tally


def claimed(machine: Machine, trials: int, runs: int = 3, seed: int = 0) -> float:
    """Return the mean FSR that a search of unchanged scripts claims."""
    rng = random.Random(seed)
    total = 0.0
    for _ in range(trials):
        best = min(MS * math.exp(rng.gauss(0, machine.noise)) for _ in range(NODES))
        total += calibrate(machine, runs, rng).fsr(best) or 0.0
    return total / trials


def crossings(plan: Plan, trials: int, seed: int = 0) -> tuple[float, float]:
    """Return how often the tests of loss and of time err at any look, where nothing is there."""
    import numpy as np

    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((trials, plan.max_pairs))
    erred = np.zeros((2, trials), bool)
    for look in plan.looks:
        seen = draws[:, : look.pairs]
        t = seen.mean(axis=1) / seen.std(axis=1, ddof=1) * math.sqrt(look.pairs)
        for k, level in enumerate((look.loss, look.time)):
            erred[k] |= t > student_quantile(level, look.pairs - 1)
    loss, time = erred.mean(axis=1)
    return float(loss), float(time)


SCENES = {
    "unchanged script": Truth(1.0, 2.0),
    "loss at the target": Truth(0.85, 0.0),
    "neither": Truth(1.0, 0.0),
    "loss over by one sd": Truth(0.85, -1.0),
    "FSR 0.25, loss 1 sd under": Truth(0.95, 1.0),
    "FSR 0.5, loss 1 sd under": Truth(0.9, 1.0),
    "FSR 0.5, loss 2 sd under": Truth(0.9, 2.0),
    "FSR 1, loss 2 sd under": Truth(0.8, 2.0),
}


def report(machine: Machine, plan: Plan, trials: int) -> None:
    """Print a table of all scenes under one plan."""
    target = "with" if plan.target else "without"
    print(
        f"\n{plan.spending}, looks at {', '.join(str(k.pairs) for k in plan.looks)} pairs, "
        f"{target} target record"
    )
    loss, time = crossings(plan, 200_000)
    print(
        f"a test errs at any look: loss {loss:.2%} (1 % allowed), time {time:.2%} (2.5 % allowed)"
    )
    names = (CONFIRMED, REFUTED, UNDECIDED, "pairs", "ratio in", "FSR in", "Fieller")
    print(f"{'':28}" + "".join(f"{name:>11}" for name in names))
    for name, truth in SCENES.items():
        tally = simulate(truth, machine, plan, trials)
        shares = [tally.share(v) for v in (CONFIRMED, REFUTED, UNDECIDED)]
        rest = [tally.covered["ratio"], tally.covered["fsr"], tally.methods["fieller"]]
        cells = [f"{x:.2%}" for x in shares] + [f"{tally.pairs / trials:.1f}"]
        cells += [f"{x / trials:.1%}" for x in rest]
        print(f"{name:28}" + "".join(f"{cell:>11}" for cell in cells))


def main() -> None:
    """Run all scenes under several plans."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=Machine.noise)
    parser.add_argument("--loss-sd", type=float, default=Machine.loss_sd)
    parser.add_argument("--brief", action="store_true", help="the default plan only")
    args = parser.parse_args()
    machine = Machine(args.noise, args.loss_sd)
    print(f"noise {machine.noise:g} of times, {machine.loss_sd:g} of losses; {args.trials} trials")
    print(f"claimed by a search of {NODES} unchanged scripts: FSR {claimed(machine, 2000):+.3f}")
    plans = [Plan(), Plan(target=True), Plan(spending="obrien-fleming"), Plan(4, 20)]
    for plan in plans[:1] if args.brief else plans:
        report(machine, plan, args.trials)


if __name__ == "__main__":
    main()
