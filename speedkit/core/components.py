"""The six kinds of component: what each is asked, and what it answers."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from speedkit.core.metrics import Report
from speedkit.core.node import Node, Stage, Tree
from speedkit.core.task import Task

if TYPE_CHECKING:
    from speedkit.core.llm import LLM


class Options(BaseModel):
    """Base of the typed options of a component; every field has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Services:
    """What a run offers to its components.

    Attributes:
        task: the task of the run.
        seed: the seed of the run.
        llm: returns the one client for language models, made on first use.
    """

    task: Task
    seed: int
    llm: Callable[[], LLM]


class Component(ABC):
    """Base of all components.

    A component is made with its checked options and is told of the run's services
    before the run starts. ``options`` is an instance of the class's own ``Options``.
    """

    kind: ClassVar[str]
    needs_model: ClassVar[bool] = False
    """Whether it asks a language model, so that a run without one can be refused early."""
    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    def bind(self, services: Services) -> None:
        """Receive the services of the run; called once, before anything else."""
        self.services = services


# --- scaffold ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposal:
    """A child that a scaffold asks for.

    Attributes:
        other: a second parent, whose code the coder is to join in; its commit becomes the
            second parent of the node's, as that of a merge.
    """

    parent: int
    stage: Stage
    other: int | None = None


class Scaffold(Component):
    """The search policy: a pure function of the tree, the options and the generator."""

    kind = "scaffold"

    @property
    def lookahead(self) -> int:
        """How many steps may be planned while nodes of earlier ones are unfinished; 0: none."""
        return 0

    def is_superseded(self, tree: Tree, node: Node) -> bool:
        """Whether a node that was drafted ahead is not worth running any more."""
        return False

    @abstractmethod
    def propose(self, tree: Tree, rng: random.Random) -> Sequence[Proposal]:
        """Return the children of the next step; none means that the search is over.

        Args:
            tree: every node so far; all of them are finished, unless a step is planned
                ahead. Only finished nodes may become parents.
            rng: seeded from the run's seed and the number of the step; the only source
                of chance that may be used.
        """


# --- coder ------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnowledgeEntry:
    """A text given to the coder; ``source`` names where it came from."""

    source: str
    title: str
    text: str


@dataclass(frozen=True)
class CodeRequest:
    """What a coder is asked.

    Attributes:
        tree: the nodes as they were when the step began; siblings of the same step
            therefore do not see each other, in whatever order they are coded.
        node_id: id of the node to write.
        sibling: position among the children of the step, from 0.
        siblings: number of children of the step.
        files: the editable files of the parent, text by name.
        knowledge: entries of the chosen knowledge sources.
        seed: a seed of this node's own, derived from the run's.
        log_dir: folder for prompts, replies and whatever else is worth keeping.
        read_files: returns the editable files of any node in the tree.
        other: the second parent, None where there is one only.
        nproc: number of processes that will run the script, None for what the task says.
    """

    task: Task
    tree: Tree
    parent: Node
    node_id: int
    stage: Stage
    sibling: int
    siblings: int
    files: Mapping[str, str]
    knowledge: Sequence[KnowledgeEntry]
    seed: int
    log_dir: Path
    read_files: Callable[[int], Mapping[str, str]]
    other: Node | None = None
    nproc: int | None = None

    @property
    def rng(self) -> random.Random:
        """A new generator, seeded for this node."""
        return random.Random(self.seed)


@dataclass(frozen=True)
class Draft:
    """What a coder answers.

    Attributes:
        files: all editable files of the node, text by name.
        hypothesis: what was changed and why, for the commit message.
        failure: why no usable edit came out; such a node is not run. Empty on success.
        model: the model that answered, as served.
        notes: JSON values to be found again at ``Node.notes``.
        repeat: train it even if the same code has been trained before, as a control that
            measures noise does.
    """

    files: Mapping[str, str]
    hypothesis: str
    failure: str = ""
    model: str | None = None
    repeat: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


class Coder(Component):
    """Writes the code of a new node."""

    kind = "coder"

    @abstractmethod
    def write(self, request: CodeRequest) -> Draft:
        """Return the code of the node. May be called from several threads at once."""


# --- executor ---------------------------------------------------------------------------


class Ending(str, Enum):
    """How a job ended."""

    FINISHED = "finished"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"
    FLOODED = "flooded"
    """More output than the hard limit."""
    CANCELLED = "cancelled"
    LOST = "lost"
    """The machinery failed, not the script; the job may be tried again."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class RankError:
    """Why a rank failed.

    Attributes:
        rank: the rank, -1 when no rank could be named.
        message: one line, for example ``ValueError: bad shape``.
        traceback: the text of the traceback, at most a few kilobytes.
        signal: name of the signal that ended it, None if none did.
    """

    rank: int
    message: str
    traceback: str = ""
    signal: str | None = None


@dataclass(frozen=True)
class Job:
    """One script to be run.

    Attributes:
        name: unique within the run, for example ``node-0003``; also in log file names.
        run_id: id of the run, marks the job's processes.
        workspace: the folder that the script is run in; holds its files.
        log_dir: folder for captured output.
        script: file name in the workspace.
        args: arguments of the script.
        launcher: ``torchrun`` or ``python``.
        nproc: number of processes.
        env: extra environment variables, on top of the executor's allow-list.
        timeout_s: wall-clock limit in seconds.
        stall_s: limit without any output, in seconds.
        collect: globs below the workspace of files to copy to ``log_dir`` afterwards.
        readable: paths that the job reads besides its workspace and what links in it lead to.
        writable: folders of speedkit's own that the job writes to besides its workspace.
        hidden: folders that no job must see, wherever they lie.
        cancel: when set, the job is ended.
    """

    name: str
    run_id: str
    workspace: Path
    log_dir: Path
    script: str
    args: Sequence[str] = ()
    launcher: str = "torchrun"
    nproc: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 3600
    stall_s: float = 900
    collect: Sequence[str] = ()
    readable: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    hidden: Sequence[Path] = ()
    cancel: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Execution:
    """What became of a job.

    Attributes:
        exit_code: of the launcher, None if it never started or was killed.
        errors: causes by rank, the first to fail first.
        wall_s: seconds from spawn to end, monotonic clock.
        reason: one line for the user when the job did not finish by itself.
        collected: copies of the files that matched ``Job.collect``.
    """

    ending: Ending
    exit_code: int | None = None
    errors: tuple[RankError, ...] = ()
    wall_s: float = 0.0
    reason: str = ""
    collected: tuple[Path, ...] = ()


class Watch(Protocol):
    """What an executor tells while a job runs. Calls come from one thread at a time."""

    def started(self, handle: Mapping[str, Any]) -> None:
        """The job runs; ``handle`` is JSON and suffices for :meth:`Executor.reap`."""

    def line(self, rank: int, text: str, at_s: float) -> None:
        """A line of standard output, without its newline, ``at_s`` seconds after spawn.

        Every line of rank 0 that may hold metrics comes (it starts with ``step:`` or
        ``s:``); others may be left out when there are too many.
        """


class Executor(Component):
    """Runs the script of a node and returns how it ended."""

    kind = "executor"

    @property
    def lanes(self) -> int:
        """How many jobs may run at once."""
        return 1

    @property
    def nproc(self) -> int | None:
        """Number of processes of a job; None for what the task says."""
        return None

    @property
    def smoke_steps(self) -> int | None:
        """Steps after which scripts stop, in a run that only tries whether they work."""
        return None

    @property
    def interpreter(self) -> str | None:
        """The Python that runs the scripts, None if it is not on this machine."""
        return None

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this machine; else their files lie where other machines see them."""
        return False

    @abstractmethod
    def execute(self, job: Job, watch: Watch) -> Execution:
        """Run a job to its end; afterwards none of its processes is left.

        Whatever the script does, this returns; it raises only when no job at all can
        be run.

        Raises:
            ExecutorError: jobs cannot be run on this machine.
        """

    def reap(self, handle: Mapping[str, Any]) -> None:
        """End what a dead controller left of a job, given its handle."""

    def adopt(self, job: Job, handle: Mapping[str, Any], watch: Watch) -> Execution | None:
        """Go on with a job that a dead controller started, given its handle.

        Every line of the job comes to ``watch``, the earlier ones as well; its files and its
        workspace are as they were. ``watch.started`` is not called again.

        Returns:
            What became of the job; None when it is to be run again, and then nothing of it is
            left and no line of it has been passed on. This one ends it.
        """
        self.reap(handle)
        return None

    def fingerprint(self) -> Mapping[str, Any]:
        """Return what timings depend on: hardware and versions, as JSON values."""
        return {}


# --- summarizer, judge, knowledge -------------------------------------------------------


@dataclass(frozen=True)
class SummaryRequest:
    """What a summarizer is asked.

    Attributes:
        node: the node, its outcome and reason decided.
        report: what the log said.
        execution: how the job ended; None when the node was not run.
        stdout: start and end of rank 0's standard output, at most 16 and 64 KiB.
        stderr: start and end of its standard error, likewise.
        start_ms: time of the start record in milliseconds, if known.
    """

    task: Task
    node: Node
    parent: Node
    report: Report
    execution: Execution | None
    stdout: str
    stderr: str
    start_ms: float | None
    log_dir: Path


class Summarizer(Component):
    """Turns an outcome into the text that later prompts see."""

    kind = "summarizer"

    @abstractmethod
    def summarize(self, request: SummaryRequest) -> str:
        """Return the summary, plain text."""


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is asked: two changes of the same start files."""

    task: Task
    start: Mapping[str, str]
    human: Mapping[str, str]
    agent: Mapping[str, str]
    log_dir: Path


@dataclass(frozen=True)
class Judgement:
    """How much of the human change was reproduced.

    Attributes:
        score: in [0, 1].
        table: one mapping per human change, JSON values.
        details: what else is worth keeping, JSON values by name.
    """

    score: float
    table: Sequence[Mapping[str, Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Judge(Component):
    """Scores how much of the human change a node reproduced."""

    kind = "judge"

    @abstractmethod
    def judge(self, request: JudgeRequest) -> Judgement:
        """Return the score."""


class KnowledgeSource(Component):
    """Offers texts to the coder."""

    kind = "knowledge"

    @abstractmethod
    def entries(self, task: Task) -> Sequence[KnowledgeEntry]:
        """Return the texts for a task, the most useful first."""


BASES: dict[str, type[Component]] = {
    "scaffold": Scaffold,
    "coder": Coder,
    "executor": Executor,
    "summarizer": Summarizer,
    "judge": Judge,
    "knowledge": KnowledgeSource,
}
"""The base class of each kind."""
