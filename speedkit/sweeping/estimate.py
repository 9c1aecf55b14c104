"""What the runs of a sweep that are left will take, as far as that can be known beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from speedkit.core import calibration as calibrations
from speedkit.core.assemble import Components, assemble, task_of
from speedkit.core.calibration import Calibration
from speedkit.core.config import RunConfig
from speedkit.core.errors import ConfigError, SpeedkitError
from speedkit.core.llm_provider import Prices
from speedkit.core.plugins import Plugins
from speedkit.core.preview import Prompting, first_prompt, prompt_tokens
from speedkit.core.search import calibration_runs, takes_reference
from speedkit.core.task import Task
from speedkit.sweeping.cells import Cell, check_cells, make_cells
from speedkit.sweeping.runner import check_folder, plugins_of
from speedkit.sweeping.state import OVER, Begun, Status, read_all
from speedkit.sweeping.sweep import Sweep

MS_PER_HOUR = 3_600_000


@dataclass(frozen=True)
class Amount:
    """A sum over runs.

    Attributes:
        value: of the runs for which it is known.
        unknown: number of runs for which it is not.
    """

    value: float = 0.0
    unknown: int = 0

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Amount:
        """Add up values, None being unknown."""
        given = list(values)
        return cls(sum(v for v in given if v is not None), sum(v is None for v in given))


@dataclass(frozen=True)
class CellPlan:
    """What one run will take.

    Attributes:
        nodes: that are still to be made.
        prompt_tokens: of all its prompts if each were as long as the first; 0 where no model
            is asked for code; None where that is unknown.
        prompt_dollars: the price of these; None where it is unknown.
        reply_dollars: the price of 1,000 tokens of reply to each of them.
        job_hours: that the nodes train if each took as long as the start record, and that the
            calibration takes; None where no time is known.
        times: where the time of the start record comes from: ``measured``, ``scaled``,
            ``reference``, or ``unknown``.
    """

    cell: Cell
    status: Status
    nodes: int
    prompt_tokens: float | None = 0.0
    prompt_dollars: float | None = 0.0
    reply_dollars: float | None = 0.0
    job_hours: float | None = 0.0
    times: str = "unknown"


@dataclass(frozen=True)
class SweepPlan:
    """What is to be done, and what it will take."""

    sweep: Sweep
    path: Path | None
    runs: tuple[CellPlan, ...]

    @cached_property
    def left(self) -> tuple[CellPlan, ...]:
        """The runs that are not over."""
        return tuple(run for run in self.runs if run.status not in OVER)

    @property
    def states(self) -> dict[Status, int]:
        """Number of runs by status."""
        names: tuple[Status, ...] = ("missing", "open", "finished", "stopped")
        return {name: sum(run.status == name for run in self.runs) for name in names}

    @property
    def nodes(self) -> int:
        """Nodes still to be made."""
        return sum(run.nodes for run in self.left)

    def amount(self, name: str) -> Amount:
        """Return the sum of a figure of the runs that are left."""
        return Amount.of(getattr(run, name) for run in self.left)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; ``unknown`` is the number of runs that a sum leaves out."""
        names = ("prompt_tokens", "prompt_dollars", "reply_dollars", "job_hours")
        return {
            "path": None if self.path is None else str(self.path),
            "tasks": list(self.sweep.tasks),
            "seeds": list(self.sweep.seeds),
            "jobs": self.sweep.jobs,
            "limits": self.sweep.limits.given(),
            "states": self.states,
            "nodes": self.nodes,
            "estimate": {name: vars(self.amount(name)) for name in names},
            "runs": [_json(run) for run in self.runs],
        }


def _json(run: CellPlan) -> dict[str, Any]:
    figures = {k: v for k, v in vars(run).items() if k != "cell"}
    cell = run.cell
    arm = dict(cell.arm)
    return {"name": cell.name, "task": cell.task_name, "seed": cell.seed, "arm": arm, **figures}


def plan_sweep(
    sweep: Sweep, *, out: Path | None = None, plugins: Plugins | None = None
) -> SweepPlan:
    """Return what a sweep would do; nothing is run, and no model is asked.

    Args:
        out: the sweep directory, whether it is there or not.

    Raises:
        ConfigError: with one line for every mistake.
    """
    plugins = plugins or plugins_of(sweep)
    cells, problems = make_cells(sweep, plugins)
    begun: dict[str, Begun] = {}
    problems += check_cells(cells, plugins, to_run=False)
    if out is not None and not problems:
        check_folder(out, cells)
        begun, problems = read_all(out, cells)
    if problems:
        raise ConfigError(problems)
    estimator = _Estimator(plugins)
    return SweepPlan(sweep, out, tuple(estimator.plan(c, begun.get(c.name)) for c in cells))


@dataclass
class _Estimator:
    plugins: Plugins
    _prompts: dict[str, tuple[float | None, Prices]] = field(default_factory=dict)
    _priced: dict[str, Prices] = field(default_factory=dict)
    _measured: set[str] = field(default_factory=set)

    def plan(self, cell: Cell, begun: Begun | None) -> CellPlan:
        """Return what a run will take, given what of it is done."""
        status: Status = begun.status if begun else "missing"
        task = task_of(cell.config)
        nodes = max(0, cell.config.budget(task.family) - (begun.nodes if begun else 0))
        if status in OVER:
            return CellPlan(cell, status, 0)
        tokens, prices = self._prompt(cell)
        total = None if tokens is None else tokens * nodes
        hours, times = self._hours(cell, task, begun, nodes)
        return CellPlan(
            cell,
            status,
            nodes,
            total,
            None if total is None else _dollars(prices, input=total),
            _dollars(prices, output=1000 * nodes),
            hours,
            times,
        )

    # --- model calls ------------------------------------------------------------------------

    def _prompt(self, cell: Cell) -> tuple[float | None, Prices]:
        """Return tokens of the first prompt, the same for all seeds, and the prices."""
        if cell.plan_key not in self._prompts:
            self._prompts[cell.plan_key] = self._look_up(cell)
        return self._prompts[cell.plan_key]

    def _look_up(self, cell: Cell) -> tuple[float | None, Prices]:
        coder = assemble(cell.config, self.plugins).coder
        if not coder.needs_model:
            return 0.0, Prices(0.0, 0.0)
        key = repr((cell.config.model, cell.config.llm))
        if key not in self._priced:
            self._priced[key] = _prices(cell.config)
        if not isinstance(coder, Prompting):
            return None, self._priced[key]
        system, messages = first_prompt(cell.config, self.plugins)
        return float(prompt_tokens(system, messages, cell.config.model)), self._priced[key]

    # --- jobs -------------------------------------------------------------------------------

    def _hours(
        self, cell: Cell, task: Task, begun: Begun | None, nodes: int
    ) -> tuple[float | None, str]:
        parts = assemble(cell.config, self.plugins)
        if parts.executor.smoke_steps:
            return None, "unknown"
        known = begun.run.calibration if begun else None
        stored = known or _stored(task, parts, cell.config)
        start_ms, target_ms, times = _times(task, stored)
        if start_ms is None:
            return None, times
        calibration_ms: float | None = 0.0
        if known is None and self._is_to_be_measured(cell, parts, stored):
            runs = calibration_runs(cell.config, task)
            calibration_ms = None if target_ms is None else runs * (start_ms + target_ms)
        if calibration_ms is None:
            return None, times
        return (nodes * start_ms + calibration_ms) / MS_PER_HOUR, times

    def _is_to_be_measured(self, cell: Cell, parts: Components, stored: Calibration | None) -> bool:
        """Whether a run measures the two records; what is kept is measured only once."""
        if takes_reference(cell.config, parts.executor):
            return False
        if cell.config.calibration == "fresh":
            return True
        key = repr(
            (cell.task, cell.config.target_loss, cell.config.start, parts.manifest["executor"])
        )
        if stored is not None or key in self._measured:
            return False
        self._measured.add(key)
        return True


def _dollars(prices: Prices, *, input: float = 0, output: float = 0) -> float | None:
    """Return what tokens cost, None where a price that matters is unknown."""
    if (input and prices.input is None) or (output and prices.output is None):
        return None
    return input * (prices.input or 0.0) + output * (prices.output or 0.0)


def _prices(config: RunConfig) -> Prices:
    if config.llm_replay:
        return Prices(0.0, 0.0)
    from speedkit.core.llm import LLM

    settings = config.llm_settings().model_copy(update={"cache": None, "cache_mode": "off"})
    return LLM(settings).provider.prices


def _stored(task: Task, parts: Components, config: RunConfig) -> Calibration | None:
    """Return the calibration that runs on this machine would take, None where there is none."""
    if config.calibration != "auto":
        return None
    try:
        nproc = task.run_with(parts.executor.nproc).nproc
        return calibrations.load(task, {**parts.executor.fingerprint(), "nproc": nproc})
    except (SpeedkitError, OSError):
        return None


def _times(task: Task, stored: Calibration | None) -> tuple[float | None, float | None, str]:
    """Return times of the start and target record in milliseconds, and where they come from."""
    if stored is not None:
        return stored.start_ms, stored.target_ms, stored.source
    if task.start_text is not None or task.start.time_ms is None:
        return None, None, "unknown"
    target_ms = task.target.time_ms if task.target.path is not None else 0.0
    return task.start.time_ms, target_ms, "reference"


def times_told(plan: SweepPlan) -> Mapping[str, int]:
    """Return how many runs that are left have times from where."""
    sources: Sequence[str] = [run.times for run in plan.left]
    return {source: sources.count(source) for source in dict.fromkeys(sources)}
