"""What a sweep is asked for: tasks, seeds, settings and what is varied, as ``sweep.toml`` says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from speedkit.core.config import RunConfig, check_config, from_environment, from_file
from speedkit.core.errors import ConfigError, UsageError, did_you_mean
from speedkit.core.files import write_atomic
from speedkit.sweeping.values import Value, merge, read_values

FILE = "sweep.toml"
SCHEMA = 1
_KEYS = ("schema", "tasks", "seeds", "one_at_a_time", "jobs", "base", "vary")

Arm = Mapping[str, Value]
"""A value for each key that is varied."""


@dataclass(frozen=True)
class Limits:
    """What all runs of a sweep together may spend; None is no limit.

    Attributes:
        max_cost: dollars of model calls.
        max_tokens: tokens of model calls, input and output.
        max_hours: hours that jobs run, calibration included.
    """

    max_cost: float | None = None
    max_tokens: int | None = None
    max_hours: float | None = None

    def given(self) -> dict[str, float]:
        """Return the limits that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


LIMITS = tuple(Limits.__dataclass_fields__)


@dataclass(frozen=True)
class Sweep:
    """A grid of runs: every arm on every task with every seed.

    Attributes:
        tasks: each ``FAMILY/ID`` or ``PATH/OF/FOLDER/ID``.
        base: settings of every run.
        vary: values by key; the first of each belongs to the base.
        one_at_a_time: change one key at a time from the base, instead of all of them.
        jobs: how many runs go on at once.
        problems: mistakes in what is varied; told together with those of the runs.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    base: Mapping[str, Any] = field(default_factory=dict)
    vary: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    one_at_a_time: bool = False
    jobs: int = 1
    limits: Limits = Limits()
    problems: tuple[str, ...] = ()

    def arms(self) -> Iterator[dict[str, Value]]:
        """Return the combinations of varied values, the base first."""
        if not self.one_at_a_time:
            for values in product(*self.vary.values()):
                yield dict(zip(self.vary, values, strict=True))
            return
        base = {key: values[0] for key, values in self.vary.items()}
        yield base
        for key, values in self.vary.items():
            yield from ({**base, key: value} for value in values[1:])

    def to_toml(self) -> str:
        """Return the text of ``sweep.toml``."""
        table = {
            "schema": SCHEMA,
            "tasks": list(self.tasks),
            "seeds": list(self.seeds),
            "one_at_a_time": self.one_at_a_time,
            "jobs": self.jobs,
            **self.limits.given(),
            "base": _without_none(self.base),
            "vary": {key: list(values) for key, values in self.vary.items()},
        }
        return tomli_w.dumps(table)

    def save(self, folder: Path) -> None:
        """Write ``sweep.toml``."""
        write_atomic(folder / FILE, self.to_toml())


def make_sweep(
    tasks: Sequence[str],
    vary: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    one_at_a_time: bool = False,
    jobs: int = 1,
    max_cost: float | None = None,
    max_tokens: int | None = None,
    max_hours: float | None = None,
    config: RunConfig | None = None,
    **base: Any,
) -> Sweep:
    """Return a sweep from Python values.

    Args:
        vary: lists of values by key, for example ``{"scaffold": ["flat", "aide"], "hints":
            ["none", "1+2"], "scaffold.aide.debug_prob": [0.1, 0.5]}``.
        seeds: seeds, or how many there are from the seed of the settings on.
        config: the settings of every run; otherwise they are made from ``base`` and the
            environment.

    Returns:
        The sweep; mistakes in what is varied are told when it is planned or run.

    Raises:
        ConfigError: values of another form, or wrong settings of every run.
    """
    if config is not None:
        base = config.model_dump(mode="json", exclude_unset=True)
    return _make(
        {
            "tasks": list(tasks),
            "seeds": seeds if isinstance(seeds, int) else list(seeds),
            "one_at_a_time": one_at_a_time,
            "jobs": jobs,
            "max_cost": max_cost,
            "max_tokens": max_tokens,
            "max_hours": max_hours,
            "base": base,
            "vary": dict(vary or {}),
        },
        environ={} if config is not None else os.environ,
        settings={},
    )


def read_sweep(
    path: Path,
    environ: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Sweep:
    """Return the sweep that a TOML file asks for.

    Args:
        path: of the file.
        environ: lies over ``[base]``; by default the environment of the process.
        settings: of every run; they lie over both.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: values of another form, or wrong settings of every run.
    """
    try:
        values = tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    try:
        return _make(values, os.environ if environ is None else environ, settings or {})
    except ConfigError as error:
        raise ConfigError([f"{path}: {line}" for line in error.problems]) from None


def stored_sweep(folder: Path) -> Sweep:
    """Return the sweep of a sweep directory, as it was resolved when it began.

    Raises:
        UsageError: it is no sweep directory.
    """
    if not (folder / FILE).is_file():
        raise UsageError(f"{folder} is no sweep directory: it has no {FILE}")
    return read_sweep(folder / FILE, environ={})


def _make(
    values: Mapping[str, Any], environ: Mapping[str, str], settings: Mapping[str, Any]
) -> Sweep:
    problems = _shape_problems(values)
    if problems:
        raise ConfigError(problems)
    vary, problems = _vary(values.get("vary", {}))
    base, first = _base(values.get("base", {}), environ, settings)
    tasks = _from_axis("task", list(values.get("tasks", [])), vary, problems)
    given = values.get("seeds", 1)
    listed = _from_axis("seed", given if isinstance(given, list) else [], vary, problems)
    seeds = listed or list(range(first, first + (1 if isinstance(given, list) else given)))
    if not tasks:
        problems.append("tasks: name at least one, for example mini/1")
    for axis, entries in (("tasks", tasks), ("seeds", seeds)):
        twice = sorted({e for e in entries if entries.count(e) > 1})
        problems += [f"{axis}: {entry} is given twice" for entry in twice]
    return Sweep(
        tuple(dict.fromkeys(tasks)),
        tuple(dict.fromkeys(seeds)),
        base,
        vary,
        values.get("one_at_a_time", False),
        values.get("jobs", 1),
        Limits(**{key: values.get(key) for key in LIMITS}),
        tuple(problems),
    )


def _shape_problems(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each key of a sweep that is unknown or of another type."""
    known = (*_KEYS, *LIMITS)
    problems = [
        f"{key}: there is no such setting of a sweep; {did_you_mean(key, known)}"
        for key in values
        if key not in known
    ]
    if values.get("schema", SCHEMA) != SCHEMA:
        problems.append(f"schema: this speedkit knows {SCHEMA}; it was written by another version")
    if not isinstance(values.get("one_at_a_time", False), bool):
        problems.append("one_at_a_time: write true or false")
    if not _is_count(values.get("jobs", 1)):
        problems.append("jobs: must be a whole number from 1 on")
    tasks = values.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(t, str) for t in tasks):
        problems.append('tasks: write a list of names, for example ["mini/1"]')
    seeds = values.get("seeds", 1)
    listed = isinstance(seeds, list) and all(_is_count(s, 0) for s in seeds) and seeds
    if not listed and not _is_count(seeds):
        problems.append("seeds: write how many there are, or a list of numbers from 0 on")
    for key in LIMITS:
        limit = values.get(key)
        if limit is not None and (isinstance(limit, bool) or not _is_amount(limit)):
            problems.append(f"{key}: must be a number from 0 on")
    for key in ("base", "vary"):
        if not isinstance(values.get(key, {}), Mapping):
            problems.append(f"{key}: must be a table")
    return problems


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_amount(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < float("inf")


def _vary(given: Mapping[str, Any]) -> tuple[dict[str, tuple[Value, ...]], list[str]]:
    vary: dict[str, tuple[Value, ...]] = {}
    problems = []
    for key, values in _flat(given).items():
        read, wrong = read_values(key, values)
        vary |= {key: read} if read else {}
        problems += [f"vary.{line}" for line in wrong]
    return vary, problems


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a table with dotted keys: ``scaffold.debug_prob = [...]`` is a table in TOML."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _from_axis(
    key: str, given: list[Any], vary: dict[str, tuple[Value, ...]], problems: list[str]
) -> list[Any]:
    """Take tasks or seeds out of what is varied; they are axes of their own."""
    if key not in vary:
        return given
    varied = list(vary.pop(key))
    if given:
        problems.append(f"vary.{key}: give either {key}s or this")
    if key == "seed" and not all(str(value).isdecimal() for value in varied):
        problems.append("vary.seed: write numbers from 0 on")
        return []
    return [int(str(v)) for v in varied] if key == "seed" else [str(v) for v in varied]


def _base(
    given: Mapping[str, Any], environ: Mapping[str, str], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """Return the settings of every run, checked, and the first seed."""
    name = environ.get("SPEEDKIT_CONFIG")
    file = from_file(Path(name) if name else None)
    merged: dict[str, Any] = {}
    for layer in (file, given, from_environment(environ), settings):
        merge(merged, _without_none(layer))
    config = check_config(merged)
    base = config.model_dump(mode="json", exclude_unset=True, exclude={"task", "seed"})
    for key in ("start", "prompts", "llm_cache"):
        if base.get(key):
            base[key] = str(Path(base[key]).expanduser().resolve())
    if config.load:
        base["load"] = [str(Path(p).resolve()) if p.endswith(".py") else p for p in config.load]
    return _without_none(base), config.seed


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
