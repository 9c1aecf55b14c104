"""Everything the command line does, from Python."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speedkit import __version__
from speedkit.core.assemble import Components, assemble, task_of
from speedkit.core.calibration import Calibration
from speedkit.core.components import Services
from speedkit.core.config import RunConfig, check_config, load_config
from speedkit.core.errors import FamilyError, RunDirectoryError, UsageError
from speedkit.core.history import RunDirectory, new_run_path
from speedkit.core.interrupt import Interrupt, signals_as_interrupt
from speedkit.core.ledger import Ledger
from speedkit.core.node import Node, Tree
from speedkit.core.nodework import OnProgress
from speedkit.core.plugins import Plugins
from speedkit.core.recorder import OnEvent
from speedkit.core.run import Run
from speedkit.core.search import Search
from speedkit.core.task import Task, builtin_families, find_task

RAISABLE = ("nodes", "max_cost", "max_tokens")
"""Settings that may be given anew when a run is resumed."""


class RunTree(Tree):
    """The tree of a run, with what else the run knows.

    Attributes:
        path: the run directory.
        status: ``finished``, ``stopped``, ``interrupted``, ``failed`` or ``running``.
        calibration: times of the start and target record; None before they are known.
        lanes: how busy the executor was when the run last ended, as the journal says it.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.tree)
        self.path = run.directory.path
        self.status = run.status
        self.calibration: Calibration | None = run.calibration
        self.lanes = run.lanes

    def fsr(self, node: Node | None = None) -> float | None:
        """FSR of a node, by default the best; None where it is not defined."""
        node = node or self.best()
        if node is None or not node.is_valid or self.calibration is None:
            return None
        return self.calibration.fsr(node.train_time_ms)


def run(
    task: str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    config: RunConfig | None = None,
    plugins: Plugins | None = None,
    on_begin: Callable[[Path], None] = lambda path: None,
    on_event: OnEvent = lambda event: None,
    on_progress: OnProgress = lambda job, metrics, text, at_s: None,
    on_warning: Callable[[str], None] = lambda text: None,
    interrupt: Interrupt | None = None,
    purse: Ledger | None = None,
    verify: bool = False,
    **settings: Any,
) -> RunTree:
    """Search a task and return its tree.

    Args:
        task: ``FAMILY/ID`` or ``PATH/OF/FOLDER/ID``.
        out: the run directory, new; by default one below ``runs/``.
        resume: a run directory to go on with, instead of a new one.
        config: a checked configuration; otherwise it is made from ``settings``.
        plugins: the plugins to use; by default those the configuration names.
        on_begin: told of the run directory, before anything happens in it.
        on_event: receives every event of the journal, as a mapping.
        on_progress: receives job, metrics or None, text, and seconds for each line of
            rank 0 of a running job.
        on_warning: receives lines for the user, for example of a failing observer.
        interrupt: through which another thread may end the run, as Ctrl-C would.
        purse: keeps limits on model calls together with other runs; what this run spent
            before must be counted in it already.
        verify: measure the best node again afterwards, as ``speedkit verify`` does.
        settings: with ``resume``, the limits that may be raised: ``nodes``, ``max_cost``,
            ``max_tokens``. Otherwise configuration keys, for example ``scaffold="aide"``,
            ``seed=1``, ``options={"scaffold": {"debug_prob": 0.3}}``.

    Raises:
        SpeedkitError: with one line that says what to do.
        KeyboardInterrupt: after the jobs were ended and the journal closed.
    """
    if resume is not None:
        directory = RunDirectory(Path(resume))
        config = check_config({**directory.manifest["config"], **_raised(settings)})
    else:
        config = config or load_config({"task": task, **settings})
    if config.model is not None and not config.llm_replay:
        from speedkit.core.llm import preload

        preload()  # while everything else is made ready
    plugins = plugins or Plugins(config.load, config.block)
    components = assemble(config, plugins)
    found = task_of(config) if resume is None else stored_task(directory)
    ours_alone = False
    if resume is None:
        manifest = make_manifest(config, components, found)
        path = Path(out) if out is not None else new_run_path(found.name)
        ours_alone = not path.exists() or not any(path.iterdir())
        directory = RunDirectory.create(path, manifest)
    check_scripts(directory, found)
    on_begin(directory.path)
    with directory.writing() as journal, signals_as_interrupt():
        state = Run.open(directory, found)
        search = Search(
            state,
            config,
            components,
            plugins,
            journal,
            on_event=on_event,
            on_progress=on_progress,
            on_warning=on_warning,
            interrupt=interrupt,
            purse=purse,
        )
        try:
            components.bind(Services(task=found, seed=config.seed, llm=search.llm))
            search.go()
        except (UsageError, FamilyError):
            if ours_alone:
                _forget(directory)
            raise
    if verify:
        from speedkit.verify import verify_best

        verify_best(directory.path, plugins=plugins, on_warning=on_warning)
    return RunTree(state)


def _forget(directory: RunDirectory) -> None:
    """Remove a run that its request kept from doing anything, so that it can be asked for again."""
    if all(event["type"] in ("run_started", "run_finished") for event in directory.events()):
        shutil.rmtree(directory.path, ignore_errors=True)


def open_run(path: str | os.PathLike[str]) -> RunTree:
    """Read the tree of a run directory without touching it."""
    return RunTree(open_state(Path(path)))


def open_state(path: Path) -> Run:
    """Fold the journal of a run directory, read only."""
    directory = RunDirectory(path)
    state = Run.open(directory, stored_task(directory))
    if state.status == "running" and not directory.is_held():
        state.status = "interrupted"  # by a kill, which leaves no time to say so
    return state


def stored_task(directory: RunDirectory) -> Task:
    """Return the task of a run, as it was when the run began."""
    values = directory.manifest["config"]
    task = find_task(values["task"]).gated(values.get("target_loss"))
    start = directory.manifest.get("start")
    return task if start is None else task.starting_from(start["script"])


def make_manifest(config: RunConfig, components: Components, task: Task) -> dict[str, Any]:
    """Return what ``run.toml`` says of a new run."""
    builtin = task.family.root == builtin_families().get(task.family.name)
    family = task.family.name if builtin else str(task.family.root)
    values = config.model_dump(mode="json")
    values["task"] = f"{family}/{task.id}"
    values["load"] = [str(Path(p).resolve()) if p.endswith(".py") else p for p in config.load]
    for key in ("prompts", "llm_cache"):  # a run may be resumed from another folder
        values[key] = values[key] and str(Path(values[key]).resolve())
    start = None if task.start_text is None else {"file": config.start, "script": task.start_text}
    values["start"] = None  # the script itself stands in the manifest
    return {
        "run_id": uuid.uuid4().hex,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "speedkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "config": values,
        "components": dict(components.manifest),
        "scripts": _script_hashes(task),
        "hardware": dict(components.executor.fingerprint()),
        "start": start,
    }


def check_scripts(directory: RunDirectory, task: Task) -> None:
    """Refuse to go on with a run whose record scripts have changed since it began."""
    if directory.manifest["scripts"] != _script_hashes(task):
        raise RunDirectoryError(
            f"the records of {task.name} have changed since {directory.path} began; start a new run"
        )


def _raised(settings: Mapping[str, Any]) -> dict[str, Any]:
    given = {k: v for k, v in settings.items() if v is not None}
    if fixed := sorted(set(given) - set(RAISABLE)):
        raise UsageError(
            f"a resumed run keeps its settings; only {', '.join(RAISABLE)} can be given anew, "
            f"not {', '.join(fixed)}"
        )
    return given


def _script_hashes(task: Task) -> dict[str, str]:
    hashes = {"start": hashlib.sha256(task.start_files()[task.script].encode()).hexdigest()}
    if task.target.has_script():
        hashes["target"] = hashlib.sha256(task.target.read().encode()).hexdigest()
    return hashes
