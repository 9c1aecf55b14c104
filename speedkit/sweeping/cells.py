"""The runs of a sweep: a name and a checked configuration each, all mistakes reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from speedkit.core.assemble import assemble, task_of
from speedkit.core.calibration import from_reference
from speedkit.core.components import Services
from speedkit.core.config import RunConfig, check_config
from speedkit.core.errors import ConfigError, SpeedkitError, UsageError
from speedkit.core.plugins import Plugins
from speedkit.core.search import takes_reference
from speedkit.core.task import find_task
from speedkit.sweeping.sweep import Arm, Sweep
from speedkit.sweeping.values import Value, in_name, merge, settings_of, shown


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of the run directory; the same whenever it is made from the same values.
        task: as the sweep names it.
        task_name: ``family/id``.
        arm: the varied values that concern this run.
        config: the checked configuration.
    """

    name: str
    task: str
    task_name: str
    seed: int
    arm: Arm
    config: RunConfig

    @cached_property
    def label(self) -> str:
        """The varied values as tables show them."""
        return ", ".join(f"{k}={shown(v)}" for k, v in self.arm.items()) or "base"

    @cached_property
    def plan_key(self) -> str:
        """What is the same for runs that differ only by their seed."""
        return self.name.rpartition("_seed=")[0]


@dataclass
class Problems:
    """Mistakes, each with the runs that it concerns."""

    runs: dict[str, list[str]] = field(default_factory=dict)

    def add(self, lines: Iterable[str], name: str) -> None:
        """Note mistakes of a run."""
        for line in lines:
            self.runs.setdefault(line, []).append(name)

    def lines(self, of: int) -> list[str]:
        """Return one line a mistake; ``of`` is the number of all runs that were looked at."""
        return [f"{line}{self._where(names, of)}" for line, names in self.runs.items()]

    @staticmethod
    def _where(names: Sequence[str], of: int) -> str:
        if len(names) == of or names == [""]:
            return ""
        return f" ({names[0]})" if len(names) == 1 else f" ({len(names)} times, {names[0]} first)"


def make_cells(sweep: Sweep, plugins: Plugins) -> tuple[list[Cell], list[str]]:
    """Return the runs of a sweep: seed by seed, and within a seed task by task, arm by arm.

    An option of one component, ``scaffold.aide.debug_prob`` for example, concerns only the
    runs that use that component; it multiplies no others.

    Returns:
        The runs whose configuration is right, and a line for every mistake in the others.
    """
    sweep = _screened(sweep)
    problems = Problems()
    cells: dict[str, Cell] = {}
    of = 0
    for task, name in _task_names(sweep.tasks, problems).items():
        for arm in sweep.arms():
            of += 1
            try:
                made = _seeds_of(sweep, arm, task, name, plugins)
            except ConfigError as error:
                problems.add(error.problems, _stem(name, arm))
                continue
            for cell in made:
                if cells.setdefault(cell.name, cell).config != cell.config:
                    problems.add([f"two runs have the same name {cell.name}"], cell.name)
    found = sorted(cells.values(), key=lambda cell: sweep.seeds.index(cell.seed))
    return found, [*sweep.problems, *problems.lines(of)]


def _screened(sweep: Sweep) -> Sweep:
    """Return a sweep without the values that no run can have, which are among its problems."""
    vary: dict[str, tuple[Value, ...]] = {}
    problems = list(sweep.problems)
    for key, values in sweep.vary.items():
        wrong = {shown(v): lines for v in values if (lines := _value_problems(sweep, key, v))}
        problems += [
            f"{key}={name}: {line.removeprefix(f'{key}: ')}"
            for name, lines in wrong.items()
            for line in lines
        ]
        if right := tuple(v for v in values if shown(v) not in wrong):
            vary[key] = right
    return replace(sweep, vary=vary, problems=tuple(problems))


def _value_problems(sweep: Sweep, key: str, value: Value) -> list[str]:
    return list(_caught(lambda: check_config(_laid_over(sweep.base, {key: value}, "mini/1"))))


def _seeds_of(sweep: Sweep, arm: Arm, task: str, name: str, plugins: Plugins) -> list[Cell]:
    """Return the runs of an arm on a task.

    Raises:
        ConfigError: the arm makes no configuration.
    """
    kept, settings = _settings(sweep, arm, task, plugins)
    stem = _stem(name, kept)
    return [
        Cell(f"{stem}_seed={k}", task, name, k, kept, check_config({**settings, "seed": k}))
        for k in sweep.seeds
    ]


def _task_names(tasks: Sequence[str], problems: Problems) -> dict[str, str]:
    """Return ``family/id`` of each task that there is."""
    names = {}
    for task in tasks:
        try:
            names[task] = find_task(task).name
        except SpeedkitError as error:
            problems.add(str(error).splitlines(), "")
    return names


def _stem(task: str, arm: Arm) -> str:
    return "_".join([in_name(task), *(f"{key}={in_name(value)}" for key, value in arm.items())])


def _settings(
    sweep: Sweep, arm: Arm, task: str, plugins: Plugins
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of an arm that concern it, and the settings of its runs."""
    chosen = _chosen(check_config(_laid_over(sweep.base, arm, task)), plugins)
    kept = {key: value for key, value in arm.items() if not _is_idle(key, chosen, plugins)}
    settings = _laid_over(sweep.base, kept, task)
    settings["options"] = {
        kind: {k: v for k, v in table.items() if not _is_idle(f"{kind}.{k}.", chosen, plugins)}
        for kind, table in settings.get("options", {}).items()
    }
    settings["options"] = {kind: table for kind, table in settings["options"].items() if table}
    return kept, settings


def _laid_over(base: Mapping[str, Any], arm: Arm, task: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    merge(settings, base)
    for key, value in arm.items():
        merge(settings, settings_of(key, value))
    return {**{key: value for key, value in settings.items() if value is not None}, "task": task}


def _chosen(config: RunConfig, plugins: Plugins) -> dict[str, tuple[str, ...]]:
    """Return the names of the components of a run, by kind."""
    guards = plugins.names("guard") if config.guards is None else config.guards
    return {
        "scaffold": (config.scaffold,),
        "coder": (config.coder_name,),
        "executor": (config.executor,),
        "summarizer": (config.summarizer,),
        "judge": (config.judge,) if config.judge else (),
        "knowledge": config.knowledge_names,
        "guard": tuple(guards),
    }


def _is_idle(key: str, chosen: Mapping[str, Sequence[str]], plugins: Plugins) -> bool:
    """Whether a key names an option of a component that a run does not use."""
    kind, _, rest = key.partition(".")
    name, dot, _ = rest.partition(".")
    if not dot or kind not in chosen or name not in plugins.names(kind):
        return False
    return name not in {one.rpartition(":")[2] for one in chosen[kind]}


# --- before anything runs -----------------------------------------------------------------


def check_cells(cells: Sequence[Cell], plugins: Plugins, *, to_run: bool = True) -> list[str]:
    """Return a line for every mistake that would end a run before its first node.

    Args:
        to_run: look also at what a plan does not need: data and the model's key.
    """
    problems = Problems()
    looked_at = {cell.plan_key: cell for cell in cells}
    data: dict[str, list[str]] = {}
    models: dict[str, list[str]] = {}
    for cell in looked_at.values():
        problems.add(_mistakes(cell, plugins), cell.plan_key)
        if to_run:
            problems.add(_once(data, cell.task, lambda c=cell: _data(c)), cell.plan_key)
            key = repr((cell.config.model, cell.config.api_base, cell.config.llm))
            problems.add(_once(models, key, lambda c=cell: _model(c)), cell.plan_key)
    return problems.lines(len(looked_at))


def _once(known: dict[str, list[str]], key: str, find: Any) -> list[str]:
    if key not in known:
        known[key] = list(_caught(find))
    return known[key]


def _caught(work: Any) -> Iterator[str]:
    """Return what a user must know of the error that some work raises."""
    try:
        work()
    except ConfigError as error:
        yield from error.problems
    except (SpeedkitError, OSError) as error:
        yield from str(error).splitlines()


def _mistakes(cell: Cell, plugins: Plugins) -> list[str]:
    lines = list(_caught(lambda: _check_parts(cell, plugins)))
    return lines or list(_caught(lambda: _check_task(cell, plugins)))


def _check_parts(cell: Cell, plugins: Plugins) -> None:
    assemble(cell.config, plugins)
    if cell.config.model is not None:
        cell.config.llm_settings()


def _check_task(cell: Cell, plugins: Plugins) -> None:
    parts, task = assemble(cell.config, plugins), task_of(cell.config)
    task.start_files()
    task.run_with(parts.executor.nproc)
    if takes_reference(cell.config, parts.executor):
        from_reference(task)
    elif task.target.path is not None:
        task.target.read()
    for source in parts.knowledge:
        source.bind(Services(task=task, seed=cell.seed, llm=_no_model))
        source.entries(task)


def _no_model() -> Any:
    raise UsageError("a knowledge source that asks a model cannot be checked before the run")


def _data(cell: Cell) -> None:
    smoke = cell.config.options.get("executor", {}).get("smoke_steps")
    task_of(cell.config).data_folder(allow_short=bool(smoke))


def _model(cell: Cell) -> None:
    if cell.config.model is None or cell.config.llm_replay:
        return
    from speedkit.core.llm import LLM

    settings = cell.config.llm_settings().model_copy(update={"cache": None, "cache_mode": "off"})
    LLM(settings).check()
