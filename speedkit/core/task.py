"""Records, families and tasks: what there is to reproduce, read from ``family.toml``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from speedkit.core.errors import FamilyError, UnknownNameError, UsageError
from speedkit.core.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speedkit.core.evaluation import ModelTest, Recount

FAMILY_FILE = "family.toml"
BUILTIN_ROOT = Path(__file__).resolve().parent.parent / "records"
HINT_FILES = {1: "1-pseudocode.md", 2: "2-text.md", 3: "3-paper.md"}
"""File of each hint level below ``hints/<task id>/``."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Hook = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""``module:function``."""


def _inside(value: str) -> str:
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("must be 'stdout' or a glob below the node's folder")
    return value


MetricsSource = Annotated[str, AfterValidator(_inside)]
"""``stdout`` (of rank 0), or a glob of the script's own log below the node's folder."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MetricRules(_Strict):
    """Where the metrics of a run stand and when it counts.

    Attributes:
        target: validation loss, in nats per token, at or under which a run is valid.
        source: ``stdout`` (of rank 0), or a glob of the script's own log below the
            node's folder.
    """

    target: float = Field(gt=0)
    source: MetricsSource = "stdout"


class MetricsOverride(_Strict):
    """What a record or a task says about metrics where it differs from its family."""

    source: MetricsSource | None = None


class RunRules(_Strict):
    """How a script of the family is run.

    Attributes:
        launcher: ``torchrun``, or ``python`` for a single process.
        nproc: number of processes on the node.
        args: arguments of the script.
        env: environment variables that the script needs.
        timeout_s: wall-clock limit of one run, in seconds.
        stall_s: limit without any output, in seconds.
    """

    launcher: Literal["torchrun", "python"] = "torchrun"
    nproc: int = Field(default=1, ge=1)
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(default=3600, gt=0)
    stall_s: float = Field(default=900, gt=0)

    def merged(self, *overrides: RunOverride) -> RunRules:
        """Return the rules with what the overrides say in place, the last one first.

        Environment variables are added to those of the family; anything else is replaced.
        """
        rules = self
        for override in overrides:
            update = override.model_dump(exclude_none=True)
            update["env"] = {**rules.env, **update.get("env", {})}
            rules = rules.model_copy(update=update)
        return rules


class RunOverride(_Strict):
    """How a script of one record or task is run where it differs from its family."""

    args: tuple[str, ...] | None = None
    env: dict[str, str] | None = None
    timeout_s: float | None = Field(default=None, gt=0)
    stall_s: float | None = Field(default=None, gt=0)


class DataRules(_Strict):
    """Where the data stand that a node sees as ``data/``.

    Attributes:
        path: a folder, relative to the family's.
        prepare: ``module:function`` that fills a cache folder, given its path; must be
            quick when the folder is full already.
        env: environment variable that names a folder to use instead of the cache folder.
        check: ``module:function`` that refuses data which do not suffice, given the task,
            the folder and whether too few data are allowed.
    """

    path: str | None = None
    prepare: Hook | None = None
    env: str | None = None
    check: Hook | None = None

    @property
    def exist(self) -> bool:
        """Whether the family has data at all."""
        return any(v is not None for v in (self.path, self.prepare, self.env, self.check))


class Hooks(_Strict):
    """Functions that know the scripts of a family, ``module:function`` each.

    Attributes:
        adapt: given a source and a torch version, returns the source as that torch can
            run it, and one note for each change.
        smoke: given a source, a number of steps and of processes, returns the source as a
            short run that can never count, and one note for each change.
        reference: given a task, returns why the manifest's times may not be compared with
            those that its scripts print here; empty if they may.
        notes: given a task, returns what a reader of its times must know, a line each.
    """

    adapt: Hook | None = None
    smoke: Hook | None = None
    reference: Hook | None = None
    notes: Hook | None = None


class EvaluationRules(_Strict):
    """What guards may use to check what a script says of itself.

    Attributes:
        artifact: name of the file with the trained model that a run leaves in its folder.
        model: ``module:function`` that, given a task, the data folder and a secret seed,
            returns the :class:`speedkit.core.evaluation.ModelTest` of the family.
        recount: ``module:function`` that, given a task, a node's files, the torch version, the
            number of processes and the data folder, returns the
            :class:`speedkit.core.evaluation.Recount` of the family.
        startup_s: seconds that a run may take before its clock starts, and after it stops.
        validation_s: seconds that one validation, which the clock does not count, may take.
        simulated: whether scripts make their times and losses up, so that neither can be
            checked.
    """

    artifact: FileName | None = None
    model: Hook | None = None
    recount: Hook | None = None
    startup_s: float | None = Field(default=None, gt=0)
    validation_s: float | None = Field(default=None, gt=0)
    simulated: bool = False


class Defaults(_Strict):
    """Settings of a run that suit the family."""

    nodes: int | None = Field(default=None, ge=1)
    calibration_runs: int | None = Field(default=None, ge=1)
    stop_margin: float | None = Field(default=None, ge=0)


class Source(_Strict):
    """Where a script stands in a public git history.

    Attributes:
        commit: full id of the commit.
        path: file in that commit.
        first: first line of the script in the file, from 1.
        last: last line of the script.
        sha256: of these lines, each ended by a newline.
    """

    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    path: str
    first: int = Field(default=1, ge=1)
    last: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _in_order(self) -> Source:
        if self.last < self.first:
            raise ValueError("last must not come before first")
        return self


class Record(_Strict):
    """One entry of a speedrun history.

    Attributes:
        index: ``R_i``, 1-based.
        changes: what was changed against the record before, a phrase each.
        script: file relative to the family's script folder, None if there is none.
        known_time_s: the time that the history itself gives, in seconds.
        time_ms: reference time to target in milliseconds, on ``hardware``.
        time_note: what else must be known of ``time_ms``.
        source: where the script is imported from.
        transform: name of the change made to the imported script so that it runs by
            itself and prints its metrics; None when it runs as imported.
        steps: optimisation steps.
        tokens_per_step: tokens of one step over all processes.
        val_tokens: tokens of one validation over all processes.
        shards: training shards of 10^8 tokens that a full run needs.
        world_sizes: numbers of processes with which a step has ``tokens_per_step`` tokens;
            empty: only the family's own.
        world_note: why no other number will do.
        torch: the version that the record's own log names.
        torch_min: the least release that has what the script was written for.
        needs: what the script needs of the machine, a phrase each.
        run: how the script is run where it differs from the family.
        metrics: where its metrics stand where that differs from the family.
    """

    index: int = Field(ge=1)
    title: str
    category: str = ""
    description: str = ""
    changes: tuple[str, ...] = ()
    script: str | None = None
    known_time_s: float | None = Field(default=None, gt=0)
    time_ms: float | None = Field(default=None, gt=0)
    hardware: str = ""
    time_note: str = ""
    source: Source | None = None
    transform: str | None = None
    steps: int | None = Field(default=None, ge=1)
    tokens_per_step: int | None = Field(default=None, ge=1)
    val_tokens: int | None = Field(default=None, ge=1)
    shards: int | None = Field(default=None, ge=1)
    world_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    world_note: str = ""
    torch: str = ""
    torch_min: str = ""
    needs: tuple[str, ...] = ()
    run: RunOverride = RunOverride()
    metrics: MetricsOverride = MetricsOverride()
    _family: Any = PrivateAttr(default=None)

    @property
    def run_rules(self) -> RunRules:
        """How the script of this record is run."""
        rules: RunRules = self._family.run
        return rules.merged(self.run)

    @property
    def rules(self) -> MetricRules:
        """Where the metrics of this record stand and when a run counts."""
        rules: MetricRules = self._family.rules
        return _with_source(rules, self.metrics.source)

    @property
    def allowed_nproc(self) -> tuple[int, ...]:
        """Numbers of processes with which the script does the same training."""
        return self.world_sizes or (self._family.run.nproc,)

    @property
    def path(self) -> Path | None:
        """Where the script stands, None where the record has no script."""
        return None if self.script is None else self._family.script_root / self.script

    def has_script(self) -> bool:
        """Whether the script is at hand."""
        return self.path is not None and self.path.is_file()

    def read(self) -> str:
        """Return the source of the script.

        Raises:
            FamilyError: the record has no script, or it is not at hand, or no text.
        """
        if self.path is None:
            raise FamilyError(f"record {self.index} of {self._family.name} has no script")
        try:
            return self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise FamilyError(
                f"script of record {self.index} of {self._family.name} is missing: {self.path}"
                f"{self._family.scripts_hint}"
            ) from error
        except UnicodeDecodeError:
            raise FamilyError(
                f"script of record {self.index} of {self._family.name} is not UTF-8: {self.path}"
            ) from None


class Transition(_Strict):
    """Ids of a task and of the two records it leads between.

    Attributes:
        run: how nodes are run where that differs from the start record.
        metrics: where their metrics stand where that differs from the start record.
    """

    id: int = Field(ge=1)
    start: int = Field(ge=1)
    target: int = Field(ge=1)
    run: RunOverride = RunOverride()
    metrics: MetricsOverride = MetricsOverride()


class Family(_Strict):
    """A list of records with one target, read from a folder with a ``family.toml``.

    Attributes:
        script: name of the one editable file in a node's folder.
        scripts: ``folder`` when scripts stand beside ``family.toml``, ``cache`` when
            they are imported into the user's cache folder.
        upstream: address of the git repository that scripts are imported from.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    title: str = ""
    description: str = ""
    script: FileName
    scripts: Literal["folder", "cache"] = "folder"
    upstream: str | None = None
    target: dict[Literal["val_loss"], Annotated[float, Field(gt=0)]]
    run: RunRules = RunRules()
    metrics_source: MetricsSource = "stdout"
    data: DataRules = DataRules()
    hooks: Hooks = Hooks()
    evaluation: EvaluationRules = EvaluationRules()
    defaults: Defaults = Defaults()
    records: tuple[Record, ...] = Field(alias="record")
    transitions: tuple[Transition, ...] = Field(alias="task", default=())
    _root: Path = PrivateAttr(default=Path())

    @classmethod
    def load(cls, folder: Path) -> Family:
        """Read and check the family in ``folder``.

        Raises:
            FamilyError: the file is missing or wrong; the message lists every mistake.
        """
        path = folder / FAMILY_FILE
        values = _read_toml(path)
        metrics = values.pop("metrics", {})
        if not isinstance(metrics, dict) or set(metrics) - {"source"}:
            raise FamilyError(f"{path}: [metrics] has one key, source")
        values["metrics_source"] = metrics.get("source", "stdout")
        try:
            family = cls.model_validate(values)
        except ValidationError as error:
            raise FamilyError(f"{path}: {_problems(error)}") from None
        family._adopt(folder.resolve(), path)
        return family

    def _adopt(self, root: Path, path: Path) -> None:
        self._root = root
        indexes = [r.index for r in self.records]
        if not indexes or indexes != list(range(1, len(indexes) + 1)):
            raise FamilyError(f"{path}: records must be numbered 1, 2, 3, … in order")
        for record in self.records:
            record._family = self
        ids = [t.id for t in self.transitions]
        if double := next((i for i in ids if ids.count(i) > 1), None):
            raise FamilyError(f"{path}: there are two tasks {double}")
        for t in self.transitions:
            if t.start not in indexes or t.target not in indexes:
                raise FamilyError(f"{path}: task {t.id} names a record that does not exist")

    @property
    def root(self) -> Path:
        """The folder of ``family.toml``."""
        return self._root

    @property
    def script_root(self) -> Path:
        """The folder that record scripts are relative to."""
        return self._root if self.scripts == "folder" else cache_dir() / "records" / self.name

    @property
    def scripts_hint(self) -> str:
        """What to do when a script is missing."""
        return "" if self.scripts == "folder" else "; run: speedkit records import"

    @property
    def rules(self) -> MetricRules:
        """Where the metrics stand and when a run counts."""
        return MetricRules(target=self.target["val_loss"], source=self.metrics_source)

    def record(self, index: int) -> Record:
        """Return ``R_index``."""
        if not 1 <= index <= len(self.records):
            known = f"1 to {len(self.records)}"
            raise UsageError(f"{self.name} has no record {index}; records are {known}")
        return self.records[index - 1]

    @cached_property
    def tasks(self) -> dict[int, Task]:
        """The tasks by id: those listed, or every pair of neighbouring records."""
        listed = self.transitions or tuple(
            Transition(id=i, start=i, target=i + 1) for i in range(1, len(self.records))
        )
        return {t.id: Task(family=self, transition=t) for t in listed}

    def task(self, task_id: int) -> Task:
        """Return a task by id."""
        if task_id not in self.tasks:
            known = (f"{self.name}/{i}" for i in self.tasks)
            raise UnknownNameError("task", f"{self.name}/{task_id}", known)
        return self.tasks[task_id]

    def data_folder(self) -> Path | None:
        """Return the folder of the data, prepared; None where a family has none."""
        if self.data.path is not None:
            folder = self._root / self.data.path
            if not folder.is_dir():
                raise FamilyError(f"data folder of {self.name} is missing: {folder}")
            return folder
        if not self.data.exist:
            return None
        folder = self._own_data_folder()
        if self.data.prepare is not None:
            _resolve("data.prepare", self.data.prepare)(folder)
        return folder

    def _own_data_folder(self) -> Path:
        named = os.environ.get(self.data.env) if self.data.env else None
        if not named:
            folder = cache_dir() / "data" / self.name
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        if not Path(named).is_dir():
            raise FamilyError(f"{self.data.env} names no folder: {named}")
        return Path(named).resolve()

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Names of files that a run leaves for the guards, a checkpoint for example."""
        artifact = self.evaluation.artifact
        return () if artifact is None else (artifact,)

    def model_test(self, task: Task, data: Path, seed: int) -> ModelTest | None:
        """Return how the loss of a saved model is computed again, None if it cannot be.

        Args:
            data: folder of the data.
            seed: of the tokens that no script has seen.
        """
        if self.evaluation.model is None:
            return None
        test: ModelTest = _resolve("evaluation.model", self.evaluation.model)(task, data, seed)
        return test

    def recount(
        self, task: Task, files: Mapping[str, str], torch_version: str, nproc: int, data: Path
    ) -> Recount | None:
        """Return how what a node validates is counted from outside, None if it cannot be."""
        if self.evaluation.recount is None:
            return None
        hook = _resolve("evaluation.recount", self.evaluation.recount)
        made: Recount = hook(task, files, torch_version, nproc, data)
        return made

    def adapt(self, source: str, torch_version: str) -> tuple[str, tuple[str, ...]]:
        """Return a script as the given torch can run it, and a note for each change."""
        if self.hooks.adapt is None:
            return source, ()
        text, notes = _resolve("hooks.adapt", self.hooks.adapt)(source, torch_version)
        return text, tuple(notes)

    def smoke(self, source: str, steps: int, nproc: int) -> tuple[str, tuple[str, ...]]:
        """Return a script as a short run that never counts, and a note for each change.

        Raises:
            UsageError: the family has no smoke mode, or the script is not of its form.
        """
        if self.hooks.smoke is None:
            raise UsageError(f"{self.name} has no smoke mode")
        text, notes = _resolve("hooks.smoke", self.hooks.smoke)(source, steps, nproc)
        return text, tuple(notes)


class Task(_Strict):
    """A transition ``R_i → R_{i+1}`` to reproduce.

    Attributes:
        gate: validation loss at or under which a node is valid, where it is not the family's.
        start_text: the script of node 0, where it is not the start record's.
    """

    family: Family
    transition: Transition
    gate: float | None = None
    start_text: str | None = None

    def gated(self, target_loss: float | None) -> Task:
        """Return the task with another gate; None leaves the family's."""
        return self.model_copy(update={"gate": target_loss})

    def starting_from(self, script: str | None) -> Task:
        """Return the task with another script for node 0; None leaves the start record's.

        The manifest has no time for such a script, so it is always measured.
        """
        return self.model_copy(update={"start_text": script})

    @property
    def id(self) -> int:
        """The id within the family."""
        return self.transition.id

    @property
    def name(self) -> str:
        """``family/id``."""
        return f"{self.family.name}/{self.id}"

    @property
    def start(self) -> Record:
        """The record whose script the search starts from."""
        return self.family.record(self.transition.start)

    @property
    def target(self) -> Record:
        """The record to reproduce."""
        return self.family.record(self.transition.target)

    @property
    def rules(self) -> MetricRules:
        """Where the metrics of a node stand and when it counts."""
        rules = _with_source(self.start.rules, self.transition.metrics.source)
        return rules if self.gate is None else rules.model_copy(update={"target": self.gate})

    @property
    def run(self) -> RunRules:
        """How a node is run: as the start record is, but for what the task says."""
        return self.start.run_rules.merged(self.transition.run)

    @property
    def world_sizes(self) -> tuple[int, ...]:
        """Numbers of processes with which both records do the training they are known for."""
        return tuple(n for n in self.start.allowed_nproc if n in self.target.allowed_nproc)

    def run_with(self, nproc: int | None) -> RunRules:
        """Return how a node is run on ``nproc`` processes, None for the family's number.

        With fewer processes the same training takes longer, so the limits grow.

        Raises:
            UsageError: with so many processes a record would do another training.
        """
        rules = self.run
        if nproc is None or nproc == rules.nproc:
            return rules
        for record in (self.start, self.target):
            if nproc not in record.allowed_nproc:
                raise UsageError(self._refusal(record, nproc))
        factor = max(1.0, rules.nproc / nproc)
        limits = {"timeout_s": rules.timeout_s * factor, "stall_s": rules.stall_s * factor}
        return rules.model_copy(update={"nproc": nproc, **limits})

    def _refusal(self, record: Record, nproc: int) -> str:
        allowed = " or ".join(str(n) for n in record.allowed_nproc)
        why = f": {record.world_note}" if record.world_note else ""
        return f"{self.name} on {nproc}: record {record.index} needs {allowed} processes{why}"

    def reference_problem(self) -> str:
        """Return why the manifest's times may not be compared with what the scripts print.

        Empty if they may.
        """
        if self.start_text is not None:
            return "it starts from a script of its own, whose time must be measured"
        hook = self.family.hooks.reference
        return "" if hook is None else str(_resolve("hooks.reference", hook)(self))

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the task's times must know, a line each."""
        hook = self.family.hooks.notes
        return () if hook is None else tuple(_resolve("hooks.notes", hook)(self))

    def data_folder(self, allow_short: bool = False) -> Path | None:
        """Return the folder of the data, prepared and found to suffice for the task.

        Args:
            allow_short: let too few data pass, for runs that are not to count.

        Raises:
            FamilyError: the data are missing, damaged or too few.
        """
        folder = self.family.data_folder()
        if folder is not None and self.family.data.check is not None:
            _resolve("data.check", self.family.data.check)(self, folder, allow_short)
        return folder

    @property
    def script(self) -> str:
        """Name of the editable file."""
        return self.family.script

    def start_files(self) -> dict[str, str]:
        """Return the files of node 0."""
        text = self.start.read() if self.start_text is None else self.start_text
        return {self.script: text}

    def hint(self, level: int) -> str:
        """Return the text of a hint level.

        Raises:
            FamilyError: there is no such hint for the task.
        """
        path = self.family.root / "hints" / str(self.id) / HINT_FILES[level]
        try:
            return path.read_text(encoding="utf-8")
        except OSError:
            raise FamilyError(f"{self.name} has no hint of level {level}: {path}") from None

    def hint_levels(self) -> tuple[int, ...]:
        """The hint levels that exist."""
        folder = self.family.root / "hints" / str(self.id)
        return tuple(k for k, name in HINT_FILES.items() if (folder / name).is_file())


def builtin_families() -> dict[str, Path]:
    """Return the folders of the families that come with speedkit, by name."""
    folders = sorted(p.parent for p in BUILTIN_ROOT.glob(f"*/{FAMILY_FILE}"))
    return {folder.name: folder for folder in folders}


def find_family(name: str) -> Family:
    """Return a family by built-in name, or by the path of its folder."""
    builtin = builtin_families()
    if name in builtin:
        return Family.load(builtin[name])
    if (Path(name) / FAMILY_FILE).is_file():
        return Family.load(Path(name))
    if "/" in name or "\\" in name or name.startswith("."):
        raise UsageError(f"no family at {name}: a folder with a {FAMILY_FILE} is needed")
    raise UnknownNameError("family", name, builtin)


def find_task(name: str) -> Task:
    """Return a task by ``family/id``, or by ``path/of/folder/id``."""
    family, _, task_id = name.rpartition("/")
    if not family or not (task_id.isascii() and task_id.isdigit()):
        one = name.rstrip("/") if (Path(name) / FAMILY_FILE).is_file() else "mini"
        raise UsageError(f"{name!r} is no task; write FAMILY/ID, for example {one}/1")
    return find_family(family).task(int(task_id))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FamilyError(f"no {FAMILY_FILE} in {path.parent}") from None
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise FamilyError(f"{path}: {error}") from None


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(p) for p in e['loc'])}: {e['msg'].lower()}" for e in error.errors()
    )


def _with_source(rules: MetricRules, source: str | None) -> MetricRules:
    return rules if source is None else rules.model_copy(update={"source": source})


def _resolve(key: str, target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FamilyError(f"{key} = {target!r} cannot be loaded: {error}") from error
    return function
