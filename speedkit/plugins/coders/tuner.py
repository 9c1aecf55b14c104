"""The tuner coder: a black-box optimiser over the numbers of the script, without a model."""

from __future__ import annotations

import fnmatch
import heapq
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from speedkit.core.components import Coder, CodeRequest, Draft, Options
from speedkit.core.node import Node, Outcome
from speedkit.plugins.coders import hyperparameters

PROTECTED = (
    *("*data*", "*_bin", "*file*", "*_path", "*_dir", "*token*", "*vocab*"),
    *("val_*", "*_val", "*eval*", "*_every", "*_interval", "log_*", "*_log", "print_*"),
    *("save_*", "*checkpoint*", "*seed*", "world_size", "run_id"),
)
"""Names of what decides the data, the validation, the logging, the saving or the chance."""
STRUCTURAL = (
    *("*batch*", "*seq*", "*head*", "*dim*", "*layer*", "*width*", "*hidden*", "*embd*"),
    *("block_size", "*context*", "*window*", "*group*", "*expert*", "*rows*", "*bucket*"),
    *("ws_*", "*_bs_*"),
)
"""Names of integers that decide shapes."""
COUNTS = ("num_iterations", "num_*_iterations", "*_steps", "*_iters")
"""Names of what counts steps."""
FRACTIONS = ("*momentum*", "*beta*", "*frac*", "*ratio*", "*dropout*")
"""Names of what makes sense between 0 and 1 only."""
FROM_ONE = 0.5
"""A fraction of at least this much is measured by its distance from 1."""
LARGEST_FRACTION = 0.99
"""How near to 1 a small fraction may come, or to 0 a large one."""

NOTHING_TO_TUNE = (
    f"the start record and the parent need a class {hyperparameters.CLASS_NAME} with numeric "
    "defaults that are neither protected nor 0"
)

BUGGY_VALUE = 10.0
"""What the sampler is told of a node that crashed, and the most it is told of any node."""
STEEPNESS = 10.0
"""By how much the logarithm of the time to the target grows with val_loss relative to the target.

Late in a training a loss that is 1 % lower takes about a tenth more steps.
"""
CAUTION = 3.0
"""The same, where a margin under the target is to be turned into fewer steps: as early in a
training, where the loss falls fast, so that a node that trusts it does not fall short."""
LARGEST_MARGIN = 0.1
"""The loss under the target, relative to it, that is counted at most."""
REACH = 0.9
"""Least factor on the steps that seem to suffice where other values change, too, so that these
show."""
RAN = (Outcome.VALID, Outcome.QUARANTINED, Outcome.INVALID)
"""Outcomes of nodes whose val_loss tells something of their numbers."""
HISTORY = 100
"""Nodes that the sampler learns from at most, so that the cost of a node stays flat."""
DIGITS = 4
"""Significant digits of a float that is written."""
ATTEMPTS = 16
"""Draws until something differs from the parent."""


class TunerOptions(Options):
    """Options of the tuner."""

    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="how values are drawn: tpe learns from earlier nodes, random does not"
    )
    startup: int = Field(
        4, ge=1, description="finished nodes, node 0 included, under which tpe draws at random"
    )
    max_changes: int = Field(3, ge=1, description="parameters changed at a node, at most")
    spread: float = Field(
        2.0, gt=1, le=100, description="a value stays within start/spread and start*spread"
    )
    shrink: float = Field(
        0.5, gt=0, lt=1, description="a count of steps stays within start*shrink and start"
    )
    counts: tuple[str, ...] = Field(
        COUNTS,
        description="patterns of names that count steps and may only shrink, the main one first",
    )
    fractions: tuple[str, ...] = Field(
        FRACTIONS,
        description="patterns of names whose values stay under 1 where they start there; from "
        "0.5 up it is their distance from 1 that is scaled by spread",
    )
    protected: tuple[str, ...] = Field(
        PROTECTED, description="patterns of names that are never changed"
    )
    structural: tuple[str, ...] = Field(
        STRUCTURAL, description="patterns of names that are never changed where they are integers"
    )


@dataclass(frozen=True)
class Range:
    """What a parameter may become, as a factor on its size in the start record.

    Attributes:
        start: value in the start record, not 0.
        low: least factor.
        high: greatest factor.
        from_one: whether the size is the distance from 1, not that from 0: what matters
            of a momentum of 0.95 is the 0.05, and 1.05 would make no sense.
    """

    name: str
    start: int | float
    low: float
    high: float
    from_one: bool = False

    @property
    def bounds(self) -> tuple[int | float, int | float]:
        """Least and greatest size."""
        size = self._size(self.start)
        if isinstance(size, int):
            return max(1, math.ceil(size * self.low)), math.floor(size * self.high)
        return size * self.low, size * self.high

    def value(self, factor: float) -> int | float:
        """Return the value for a factor: an int stays one, a float gets few digits."""
        low, high = self.bounds
        size = self._size(self.start) * factor
        near = round(size) if isinstance(self.start, int) else float(f"{size:.{DIGITS}g}")
        clamped = min(max(near, low), high)
        if self.from_one:
            return round(1 - clamped, 12)  # without the noise of the subtraction
        return -clamped if self.start < 0 else clamped

    def factor(self, value: int | float) -> float:
        """Return the factor of a value, moved into the range if it is outside."""
        size = 1 - value if self.from_one else value * math.copysign(1, self.start)
        return min(max(size / self._size(self.start), self.low), self.high)

    def _size(self, value: int | float) -> int | float:
        return 1 - value if self.from_one else abs(value)


@dataclass(frozen=True)
class Trial:
    """An earlier node as the sampler sees it: factors by name, and the value to minimise."""

    node_id: int
    factors: Mapping[str, float]
    value: float


class TunerCoder(Coder):
    """Changes a few numeric hyperparameters of the parent's script.

    It is the floor for coders that understand the script. The space is set by the start
    record: a value stays within a factor ``spread`` of its value there, a count of steps
    may only shrink, a fraction stays one.

    Each node changes at most ``max_changes`` parameters of its parent: the first that
    ``counts`` names, as little else saves time, and others drawn at random. Where
    ``max_changes`` is 1, it is any one. The new values come from the sampler, which is
    rebuilt from the tree each time, so that ``write`` is a pure function of the request.

    With ``tpe`` the count of steps is not the sampler's: it is drawn between what sufficed and
    what did not, and the sampler looks for values with which fewer steps would suffice.
    """

    Options = TunerOptions
    options: TunerOptions

    def write(self, request: CodeRequest) -> Draft:
        """Return the parent's script with other numbers, and all numbers in the notes."""
        script = request.task.script
        try:
            start = _numbers(request.read_files(0), script)
            current = _numbers(request.files, script)
        except ValueError as error:
            return _failure(request, f"{script} cannot be read as Python: {error}")
        ranges = [r for r in self.ranges(start) if r.name in current]
        if not ranges:
            return _failure(request, f"{script} has nothing to tune: {NOTHING_TO_TUNE}")
        changes = self._changes(request, ranges, current)
        if not changes:
            return _failure(request, "no new value was found for any parameter")
        return _draft(request, ranges, current, changes)

    def ranges(self, start: Mapping[str, int | float]) -> list[Range]:
        """Return what may be tuned, given the numbers of the start record by name."""
        every = (self._range(name, value) for name, value in start.items())
        return [r for r in every if r is not None and r.bounds[0] < r.bounds[1]]

    def _range(self, name: str, value: int | float) -> Range | None:
        options = self.options
        patterns = options.protected
        if isinstance(value, int):
            patterns += options.structural
        if value == 0 or _matches(name, patterns):
            return None
        if _matches(name, options.counts):
            return Range(name, value, options.shrink, 1.0)
        low, high = 1 / options.spread, options.spread
        if 0 < value < 1 and _matches(name, options.fractions):
            from_one = value >= FROM_ONE
            size = 1 - value if from_one else value
            return Range(name, value, low, min(high, LARGEST_FRACTION / size), from_one)
        return Range(name, value, low, high)

    def _changes(
        self,
        request: CodeRequest,
        ranges: Sequence[Range],
        current: Mapping[str, int | float],
    ) -> dict[str, int | float]:
        """Draw until something differs from the parent; only the first draw is the sampler's."""
        rng = request.rng
        for attempt in range(ATTEMPTS):
            chosen = self._chosen(ranges, rng)
            seed = rng.getrandbits(32)
            factors = draw_random(chosen, seed)
            if self.options.sampler == "tpe":
                factors |= self._count(request, ranges, chosen, current, seed)
                rest = [r for r in chosen if r is not self._leading_count(ranges)]
                if attempt == 0 and rest:
                    trials = history(request, rest)
                    factors |= draw_tpe(rest, trials, seed, self.options.startup)
            values = {r.name: r.value(factors[r.name]) for r in chosen}
            changes = {name: value for name, value in values.items() if value != current[name]}
            if changes:
                return changes
        return {}

    def _count(
        self,
        request: CodeRequest,
        ranges: Sequence[Range],
        chosen: Sequence[Range],
        current: Mapping[str, int | float],
        seed: int,
    ) -> dict[str, float]:
        """Return a factor for the count of steps, if that is among what was chosen."""
        count = self._leading_count(ranges)
        if count is None or count not in chosen:
            return {}
        low, high = bracket(request.tree, count, {r.name: current[r.name] for r in ranges})
        if len(chosen) > 1:
            margin = to_target(request.parent, request.task.rules.target, CAUTION) or 1.0
            enough = min(high, min(1.0, margin) * count.factor(current[count.name]))
            low = max(count.low, REACH * enough)
        return draw_random([replace(count, low=low, high=high)], seed)

    def _chosen(self, ranges: Sequence[Range], rng: random.Random) -> list[Range]:
        """Choose what to change; the count of steps comes first, as only fewer steps save time."""
        count = rng.randint(1, min(self.options.max_changes, len(ranges)))
        first = self._leading_count(ranges) if self.options.max_changes > 1 else None
        if first is None:
            return rng.sample(ranges, count)
        return [first, *rng.sample([r for r in ranges if r is not first], count - 1)]

    def _leading_count(self, ranges: Sequence[Range]) -> Range | None:
        named = (
            r for pattern in self.options.counts for r in ranges if _matches(r.name, [pattern])
        )
        return next(named, None)


def draw_random(space: Sequence[Range], seed: int) -> dict[str, float]:
    """Return a factor for each range, log-uniform."""
    rng = random.Random(seed)
    return {r.name: math.exp(rng.uniform(math.log(r.low), math.log(r.high))) for r in space}


def draw_tpe(
    space: Sequence[Range], trials: Sequence[Trial], seed: int, startup: int
) -> dict[str, float]:
    """Return a factor for each range, by a tree-structured Parzen estimator over the trials."""
    if len(trials) < startup:
        return draw_random(space, seed)
    import optuna  # here, as it takes a third of a second and only this sampler needs it

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    study = optuna.create_study(sampler=sampler)
    kinds = {r.name: optuna.distributions.FloatDistribution(r.low, r.high, log=True) for r in space}
    for trial in trials:
        known = {name: trial.factors[name] for name in kinds if name in trial.factors}
        study.add_trial(
            optuna.trial.create_trial(
                params=known, distributions={n: kinds[n] for n in known}, value=trial.value
            )
        )
    ask = study.ask()
    return {r.name: ask.suggest_float(r.name, r.low, r.high, log=True) for r in space}


def bracket(
    tree: Iterable[Node], count: Range, current: Mapping[str, int | float]
) -> tuple[float, float]:
    """Return between which factors the least count of steps lies that suffices, as far as is known.

    Only nodes tell that differ from ``current`` in the count alone.

    Args:
        current: the values of the parent, whose count is taken to suffice.
    """
    others = {**current, count.name: None}
    tried = [
        (node, count.factor(params[count.name]))
        for node in tree
        if (params := _params(node)).get(count.name) is not None
        and {**params, count.name: None} == others
    ]
    enough = [factor for node, factor in tried if node.is_valid]
    high = min([count.factor(current[count.name]), *enough])
    short = [f for node, f in tried if node.outcome is Outcome.INVALID and f < high]
    return max([count.low, *short]), high


def history(request: CodeRequest, ranges: Sequence[Range]) -> list[Trial]:
    """Return the finished nodes that the tuner wrote, and node 0, oldest first.

    Of more than ``HISTORY``, the better half of that number and the latest ones are kept.
    """
    target, scale = request.task.rules.target, _scale(request.tree)
    scored = []
    for node in request.tree:
        value = score(node, target, scale) if node.id == 0 or _params(node) else None
        if value is not None:
            scored.append((value, node.id))
    return [Trial(id_, _factors(request.tree[id_], ranges), value) for value, id_ in _thin(scored)]


def score(node: Node, target: float, scale: float) -> float | None:
    """Return what the tuner minimises; None where a node says nothing about its numbers.

    It is the time, relative to the start record's, that a node would need to the target, by a
    rule of thumb: so a node that stopped short tells of its values, too. A node that is
    invalid at a loss under the target gets 1 at least, one that has no metrics a large value.

    Args:
        target: validation loss in nats per token.
        scale: training time of the start record in milliseconds.
    """
    if node.id == 0 and node.metrics is None:
        return 1.0
    if node.outcome in (Outcome.PENDING, Outcome.EDIT_FAILED, Outcome.DROPPED):
        return None
    rest = to_target(node, target)
    if node.outcome not in RAN or rest is None:
        return BUGGY_VALUE
    least = 0.0 if node.is_valid or rest > 1 else 1.0
    return min(max(rest * (node.train_time_ms or scale) / scale, least), BUGGY_VALUE)


def to_target(node: Node, target: float, steepness: float = STEEPNESS) -> float | None:
    """Return by which factor a node's time would change if it ended at the target, roughly.

    None where it has no loss.

    Args:
        steepness: as in ``STEEPNESS``.
    """
    excess = math.nan if node.metrics is None else (node.metrics.val_loss - target) / target
    if not math.isfinite(excess):
        return None
    return math.exp(steepness * min(max(excess, -LARGEST_MARGIN), 1.0))


def _scale(tree: Iterable[Node]) -> float:
    """Return the time of node 0, or of the oldest valid node that has one, in milliseconds."""
    times = (n.train_time_ms for n in tree if (n.is_valid or n.id == 0) and n.train_time_ms)
    return float(next(times, 1))


def _factors(node: Node, ranges: Sequence[Range]) -> dict[str, float]:
    if node.id == 0:
        return {r.name: 1.0 for r in ranges}
    known = ((r, _params(node).get(r.name)) for r in ranges)
    return {r.name: r.factor(value) for r, value in known if isinstance(value, int | float)}


def _params(node: Node) -> Mapping[str, Any]:
    """Return the numbers that the tuner kept at a node; none if another coder wrote it."""
    params = node.notes.get("params")
    return params if isinstance(params, Mapping) else {}


def _thin(scored: list[tuple[float, int]]) -> list[tuple[float, int]]:
    if len(scored) <= HISTORY:
        return scored
    best = set(heapq.nsmallest(HISTORY // 2, scored))
    latest = [s for s in reversed(scored) if s not in best][: HISTORY - len(best)]
    return sorted([*best, *latest], key=lambda s: s[1])


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def _numbers(files: Mapping[str, str], script: str) -> dict[str, int | float]:
    found = hyperparameters.find(files.get(script, ""))
    return {name: number.value for name, number in found.items()}


def _draft(
    request: CodeRequest,
    ranges: Sequence[Range],
    current: Mapping[str, int | float],
    changes: Mapping[str, int | float],
) -> Draft:
    script = request.task.script
    files = {**request.files, script: hyperparameters.rewrite(request.files[script], changes)}
    words = (f"{name} {current[name]:.6g} → {value:.6g}" for name, value in changes.items())
    params = {r.name: changes.get(r.name, current[r.name]) for r in ranges}
    return Draft(files=files, hypothesis=", ".join(words), notes={"params": params})


def _failure(request: CodeRequest, why: str) -> Draft:
    return Draft(files=dict(request.files), hypothesis="no change", failure=why)
