"""Group-sequential tests: when pairs are looked at, and at which level each time.

Looking more than once at growing data would find an effect by chance more often than a single
look does. Lan and DeMets (1983) let a function say how much of the allowed error is spent when a
given share of the data is in. From it follows the level of each look, by the recursive
integration of Armitage, McPherson and Rowe (1969). A t-test at that level takes the place of the
normal test, as Pocock (1977) proposed for unknown variances; since several t-tests on few data err
a little more often than their levels promise, less is spent than is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from speedkit.core.errors import UsageError

ALPHA_LOSS = 0.01
"""One-sided error of the test of the mean loss: the rule of the speedrun itself."""
ALPHA_TIME = 0.025
"""Error at each side of the intervals of ratio and FSR, which are therefore of 95 %."""
EXCESS = 1.2
"""Looks at t-tests err at most so many times as often as the theory of normal tests says: 1.17
times was the most in simulations of plans from 2 to 100 pairs."""
FIRST, MOST, STEP = 4, 12, 2
"""Pairs before the first look, pairs at most, and pairs between looks: an even number, so that
each order of a pair is there as often as the other."""
LIMIT = 100
"""Pairs that a plan may have at most."""
POINTS = 301
"""Points of the integration, an odd number."""
_NORMAL = NormalDist()


def spend_pocock(alpha: float, share: float) -> float:
    """Return the error spent by a share of the data, much like Pocock's constant level."""
    return alpha * math.log1p((math.e - 1) * share)


def spend_obrien_fleming(alpha: float, share: float) -> float:
    """Return the error spent by a share of the data, much like O'Brien and Fleming's bounds."""
    return math.erfc(_NORMAL.inv_cdf(1 - alpha / 2) / math.sqrt(2 * share))


SPENDING: dict[str, Callable[[float, float], float]] = {
    "pocock": spend_pocock,
    "obrien-fleming": spend_obrien_fleming,
}
"""Spending functions by name: of the total error and the share of the data in (0, 1]."""


@dataclass(frozen=True)
class Look:
    """One look at the data.

    Attributes:
        pairs: how many there are by then.
        loss: level of the tests of the mean loss.
        time: probability left out at each side of the intervals of ratio and FSR.
    """

    pairs: int
    loss: float
    time: float


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first pair is measured.

    Attributes:
        pairs: before the first look.
        max_pairs: at most.
        spending: how the error is spent over the looks, a key of :data:`SPENDING`.
        target: whether the target record is run in each pair as well.
    """

    pairs: int = FIRST
    max_pairs: int = MOST
    spending: str = "pocock"
    target: bool = False

    @classmethod
    def make(
        cls,
        pairs: int | None = None,
        max_pairs: int | None = None,
        spending: str | None = None,
        target: bool | None = None,
    ) -> Plan:
        """Return a plan in which None stands for the default.

        Raises:
            UsageError: there is no such plan.
        """
        usual = FIRST if max_pairs is None else min(FIRST, max_pairs)
        first = usual if pairs is None else pairs
        most = max(MOST, first) if max_pairs is None else max_pairs
        if first < 2:
            raise UsageError("at least 2 pairs are needed, to know how much times vary")
        if most < first:
            raise UsageError(f"max_pairs is {most}, less than the {first} pairs of the first look")
        if most > LIMIT:
            raise UsageError(f"{most} pairs are too many; {LIMIT} are the most")
        if spending is not None and spending not in SPENDING:
            raise UsageError(f"no spending {spending!r}; there are: {', '.join(SPENDING)}")
        return cls(first, most, spending or "pocock", bool(target))

    @property
    def looks(self) -> tuple[Look, ...]:
        """Every look, the first one first; the last one is at ``max_pairs``."""
        counts = (*range(self.pairs, self.max_pairs, STEP), self.max_pairs)
        shares = tuple(n / self.max_pairs for n in counts)
        excess = EXCESS if len(counts) > 1 else 1.0
        losses = nominal_levels(ALPHA_LOSS / excess, shares, self.spending)
        times = nominal_levels(ALPHA_TIME / excess, shares, self.spending)
        return tuple(map(Look, counts, losses, times))

    def look(self, pairs: int) -> Look | None:
        """Return the look at so many pairs, None if there is none."""
        return next((look for look in self.looks if look.pairs == pairs), None)


@lru_cache(maxsize=64)
def nominal_levels(alpha: float, shares: tuple[float, ...], spending: str) -> tuple[float, ...]:
    """Return the one-sided level of each look so that all together err with ``alpha``.

    Args:
        alpha: probability of crossing any of the bounds by chance.
        shares: of the data at each look, growing, the last one 1.
        spending: a key of :data:`SPENDING`.
    """
    spend = SPENDING[spending]
    levels: list[float] = []
    walk = _Walk()
    before = 0.0
    for share in shares:
        now = spend(alpha, share)
        levels.append(walk.look(share, now - before))
        before = now
    return tuple(levels)


class _Walk:
    """A Brownian motion that ends when it crosses the bound of a look."""

    def __init__(self) -> None:
        self._time = 0.0
        self._at: Any = None
        self._mass: Any = None

    def look(self, time: float, error: float) -> float:
        """Set a bound that is crossed with probability ``error``; return its nominal level."""
        import numpy as np

        sd = math.sqrt(time - self._time)
        bound = self._bound(sd, error, math.sqrt(time))
        at = np.linspace(min(-6 * math.sqrt(time), bound - 1), bound, POINTS)
        if self._at is None:
            density = _density(at / sd) / sd
        else:
            density = _density((at[:, None] - self._at[None, :]) / sd) @ self._mass / sd
        weights = _simpson(POINTS) * (at[1] - at[0])
        self._time, self._at, self._mass = time, at, density * weights
        return _tail(bound / math.sqrt(time))

    def _bound(self, sd: float, error: float, scale: float) -> float:
        low, high = -8 * scale, 8 * scale
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (middle, high) if self._crosses(middle, sd) > error else (low, middle)
        return (low + high) / 2

    def _crosses(self, bound: float, sd: float) -> float:
        if self._at is None:
            return _tail(bound / sd)
        tails = [_tail((bound - x) / sd) for x in self._at]
        return float(self._mass @ tails)


def _tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def _density(z: Any) -> Any:
    import numpy as np

    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _simpson(points: int) -> Any:
    import numpy as np

    weights = np.ones(points)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return weights / 3
