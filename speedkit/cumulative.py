"""A chain of tasks, each of which starts from the agent's own best script of the one before.

::

    CHAIN/
      chain.json      what was asked for; never rewritten
      result.json     what came out so far; replaced after every task
      lock            held by the one controller
      seed-0/
        task-01/      the run directory of the first task
        start-02.py   the script that the second task starts from
        task-02/      …
        repo/         bare git repository of the whole chain; branch ``chain`` carries it

Everything else is read from the run directories, so that a chain that was killed goes on where
it stood.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedkit import __version__, api
from speedkit.chain import ASKED, RESULT, SCHEMA, Chain, Link, Seed, load, read_json
from speedkit.core.config import RunConfig, check_config, load_config
from speedkit.core.errors import BudgetReached, RunDirectoryError, UsageError
from speedkit.core.files import write_atomic, write_json
from speedkit.core.history import EPOCH, GitHistory, default_run_path, holding
from speedkit.core.plugins import Plugins
from speedkit.core.task import Family, Task, find_family

if TYPE_CHECKING:
    from speedkit.core.node import Node
    from speedkit.core.run import Run

__all__ = ["Chain", "Link", "Seed", "Watch", "load", "resume_chain", "run_chain", "write_history"]

BRANCH = "chain"
"""The branch of ``seed-N/repo`` that leads from the first record to the last best script."""
RAISABLE = ("max_cost", "max_tokens")
"""Settings that may be given anew when a chain is resumed."""


# --- running ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch:
    """Who is told while a chain runs.

    Attributes:
        on_run: a run begins or goes on: seed, task, run directory.
        on_link: a task is done.
        on_event: an event of a run's journal.
        on_progress: a line of a running job, as :func:`speedkit.run` tells it.
        on_warning: a line for the user.
    """

    on_run: Callable[[int, str, Path], None] = lambda seed, task, path: None
    on_link: Callable[[int, Link], None] = lambda seed, link: None
    on_event: Callable[[Mapping[str, Any]], None] = lambda event: None
    on_progress: Callable[[str, Any, str, float], None] = lambda job, metrics, text, at_s: None
    on_warning: Callable[[str], None] = lambda text: None


def run_chain(
    family: str,
    first: int,
    last: int,
    *,
    out: str | Path | None = None,
    seeds: int = 1,
    verified: bool = False,
    go_on: bool = False,
    config: RunConfig | None = None,
    plugins: Plugins | None = None,
    watch: Watch | None = None,
    **settings: Any,
) -> Chain:
    """Run a chain of tasks; each starts from the agent's best script of the one before.

    Args:
        family: built-in name or folder of a family.
        first: id of the first task, which starts from its record.
        last: id of the last task.
        out: the directory of the chain, new; by default one below ``runs/``.
        seeds: number of chains, with seeds from that of the configuration on.
        verified: carry only nodes on that ``RUN/verify.json`` confirms.
        go_on: where a task gives nothing, try the next one from the same script.
        config: a checked configuration of the runs; otherwise it is made from ``settings``.
            Without ``hints``, all that a task has are given. Limits on model calls are
            those of the whole chain.
        plugins: the plugins to use; by default those the configuration names.
        watch: who is told.

    Raises:
        SpeedkitError: with one line that says what to do; the chain can be resumed.
        KeyboardInterrupt: after the running job was ended; the chain can be resumed.
    """
    config = config or load_config({"task": f"{family}/{first}", **settings})
    found = find_family(family)
    asked = _asked(found, family, _task_ids(found, first, last), config)
    if seeds < 1:
        raise UsageError("a chain needs at least one seed")
    path = Path(out) if out is not None else default_run_path(f"{found.name}-cumulative")
    numbers = range(config.seed, config.seed + seeds)
    _check_free(path)
    path.mkdir(parents=True, exist_ok=True)
    with holding(path):
        _check_free(path)  # another process may have been quicker
        write_json(
            path / ASKED,
            {**asked, "seeds": [*numbers], "verified": verified, "go_on": go_on},
        )
        return _Runner(load(path), found, plugins, watch or Watch()).go()


def resume_chain(
    path: str | Path,
    *,
    plugins: Plugins | None = None,
    watch: Watch | None = None,
    **raised: Any,
) -> Chain:
    """Go on with a chain; what is done is not done again.

    Args:
        raised: limits given anew, any of :data:`RAISABLE`.

    Raises:
        SpeedkitError: as :func:`run_chain`.
    """
    chain = load(path)
    given = {k: v for k, v in raised.items() if v is not None}
    if fixed := sorted(set(given) - set(RAISABLE)):
        raise UsageError(f"a resumed chain keeps its settings; {', '.join(fixed)} cannot change")
    with holding(chain.path):
        chain = load(path)  # another controller may just have ended
        chain = replace(chain, settings={**chain.settings, **given})
        return _Runner(chain, find_family(chain.family), plugins, watch or Watch()).go()


def _task_ids(family: Family, first: int, last: int) -> list[int]:
    for task_id in (first, last):
        family.task(task_id)
    ids = [i for i in sorted(family.tasks) if first <= i <= last]
    if not ids:
        raise UsageError(f"--from {first} --to {last} has no task in it")
    if missing := [i for i in ids if not family.tasks[i].target.has_script()]:
        index = family.tasks[missing[0]].target.index
        raise UsageError(
            f"record {index} of {family.name} has no script at hand, so its time cannot be "
            f"measured{family.scripts_hint}"
        )
    return ids


def _asked(family: Family, name: str, ids: Sequence[int], config: RunConfig) -> dict[str, Any]:
    """Return what goes into ``chain.json``."""
    if config.start is not None:
        raise UsageError("a chain chooses the script that each task starts from; unset start")
    if config.calibration == "reference":
        raise UsageError(
            "the manifest has no times of the agent's scripts; use --calibration auto or fresh"
        )
    settings = config.model_dump(mode="json", exclude={"task", "seed", "start"})
    if "hints" not in config.model_fields_set:
        settings["hints"] = None
    settings["load"] = [str(Path(p).resolve()) if p.endswith(".py") else p for p in config.load]
    return {
        "schema": SCHEMA,
        "speedkit": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "family": str(family.root) if "/" in name else family.name,
        "tasks": list(ids),
        "settings": settings,
    }


def _check_free(path: Path) -> None:
    if (path / ASKED).exists():
        raise RunDirectoryError(f"{path} is a cumulative speedrun already; --resume {path}")
    if path.exists() and any(p.name != "lock" for p in path.iterdir()):
        raise RunDirectoryError(f"{path} is not empty; choose another --out")


@dataclass
class _Runner:
    """One controller at work on a chain."""

    chain: Chain
    family: Family
    plugins: Plugins | None
    watch: Watch
    done: dict[int, Seed] = field(default_factory=dict)

    def go(self) -> Chain:
        """Do what is left of every seed."""
        for seed in self.chain.seeds:
            self._keep(Seed(seed.seed))
            if self._one_seed(seed.seed).status == "stopped":
                break
        return self.chain

    def _keep(self, seed: Seed) -> None:
        known = next(s for s in self.chain.seeds if s.seed == seed.seed)
        if seed.status == "running" and len(seed.links) < len(known.links):
            return  # a resumed chain passes again by what is done
        self.done[seed.seed] = seed
        seeds = tuple(self.done.get(s.seed, s) for s in self.chain.seeds)
        self.chain = replace(self.chain, seeds=seeds)
        write_json(self.chain.path / RESULT, self.chain.as_json())

    def _one_seed(self, number: int) -> Seed:
        seed, script = Seed(number), None
        runs: list[Run] = []
        for task_id in self.chain.tasks:
            task = self.family.task(task_id)
            run = self._run(number, task, script)
            if run.status != "finished":
                seed = replace(seed, status="stopped")
                break
            link = self._link(run, seed.links)
            seed = replace(seed, links=(*seed.links, link))
            runs.append(run)
            self._keep(seed)
            write_history(self._folder(number) / "repo", runs, seed.links)
            self.watch.on_link(number, link)
            if link.gained:
                script = _files(run, link.commit)[task.script]
            elif not self.chain.go_on:
                seed = replace(seed, status="no gain")
                break
        else:
            seed = replace(seed, status="finished")
        self._keep(seed)
        return seed

    def _folder(self, seed: int) -> Path:
        return self.chain.path / f"seed-{seed}"

    # --- one run ------------------------------------------------------------------------

    def _run(self, seed: int, task: Task, script: str | None) -> Run:
        """Search a task, or go on with it; return what is known of it in the end."""
        path = self._folder(seed) / f"task-{task.id:02d}"
        if (path / "run.toml").exists():
            state = api.open_state(path)
            _check_start(state, script)
            if state.status == "finished":
                return state
            self.watch.on_run(seed, task.name, path)
            own = _spent([state])
            left = {k: v + own[k] for k, v in self._limits().items()}
            api.run(resume=path, plugins=self.plugins, **self._told(), **left)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            config = self._config(seed, task, script)
            self.watch.on_run(seed, task.name, path)
            api.run(out=path, config=config, plugins=self.plugins, **self._told())
        return api.open_state(path)

    def _told(self) -> dict[str, Any]:
        watch = self.watch
        return {
            "on_event": watch.on_event,
            "on_progress": watch.on_progress,
            "on_warning": watch.on_warning,
        }

    def _config(self, seed: int, task: Task, script: str | None) -> RunConfig:
        values = dict(self.chain.settings)
        if values.get("hints") is None:
            values["hints"] = task.hint_levels()
        if script is not None:
            start = self._folder(seed) / f"start-{task.id:02d}.py"
            write_atomic(start, script)
            values["start"] = str(start)
        name = f"{self.chain.family}/{task.id}"
        return check_config({**values, **self._limits(), "task": name, "seed": seed})

    def _limits(self) -> dict[str, Any]:
        """Return what is left of the limits on model calls.

        Raises:
            BudgetReached: nothing is left.
        """
        given = {k: self.chain.settings.get(k) for k in RAISABLE}
        limits = {k: v for k, v in given.items() if v is not None}
        if not limits:
            return {}
        paths = self.chain.path.glob("seed-*/task-*/run.toml")
        spent = _spent([api.open_state(p.parent) for p in paths])
        left = {k: limit - spent[k] for k, limit in limits.items()}
        for key, value in left.items():
            if limits[key] and value <= 0:
                raise BudgetReached(
                    f"the chain has reached its {key} of {limits[key]}; to go on: speedkit "
                    f"cumulative --resume {self.chain.path} --{key.replace('_', '-')} MORE"
                )
        return left

    # --- what it came to ----------------------------------------------------------------

    def _link(self, run: Run, before: Sequence[Link]) -> Link:
        calibration = run.calibration
        assert calibration is not None  # a finished run has one
        start_ms, target_ms = calibration.start_ms, calibration.target_ms
        node, time_ms, verified_fsr = _carrier(run, self.chain)
        first_ms = before[0].start_ms if before else start_ms
        if node is None:
            time_ms = before[-1].time_ms if before else start_ms
        return Link(
            task=run.task.name,
            target_record=run.task.target.index,
            run=str(run.directory.path.relative_to(self.chain.path)),
            start_ms=start_ms,
            target_ms=target_ms,
            calibration=calibration.source,
            node=node.id if node else None,
            commit=node.commit if node else None,
            time_ms=time_ms,
            gained=node is not None,
            fsr=run.fsr,
            verified_fsr=verified_fsr,
            agent_speedup=first_ms / time_ms,
            human_speedup=first_ms / target_ms,
        )


def _spent(runs: Sequence[Run]) -> dict[str, Any]:
    from speedkit.analysis.reading import totals_of  # here, as the package brings numpy along

    spent = totals_of(call for run in runs for call in run.calls)
    return {"max_cost": spent.known_cost, "max_tokens": spent.usage.total}


def _check_start(run: Run, script: str | None) -> None:
    """See that a run began from the script that the chain has come to."""
    if script is not None and run.task.start_files()[run.task.script] != script:
        path = run.directory.path
        raise UsageError(
            f"{path} began from another script than the best of the task before it is now; "
            f"move {path} away to do it again"
        )


def _files(run: Run, commit: str | None) -> dict[str, str]:
    history = GitHistory(run.directory.path / "repo")
    try:
        return history.files(commit or "")
    finally:
        history.close()


# --- the node that carries on -----------------------------------------------------------


def _carrier(run: Run, chain: Chain) -> tuple[Node | None, float, float | None]:
    """Return the node that the next task starts from, its time, and its FSR as verified.

    It is the fastest valid one that is faster than node 0; where verified ones are asked for,
    the one with the highest FSR among those confirmed, and its time follows from that FSR.
    """
    calibration = run.calibration
    assert calibration is not None  # a finished run has one
    best, start_ms = run.best, calibration.start_ms
    if best is None or best.train_time_ms is None or best.train_time_ms >= start_ms:
        return None, start_ms, None
    if not chain.verified:
        return best, float(best.train_time_ms), None
    confirmed = [(fsr, node) for fsr, node in _confirmed(run, chain) if fsr > 0]
    if not confirmed:
        return None, start_ms, None
    fsr, node = max(confirmed, key=lambda pair: (pair[0], -pair[1].id))
    return node, start_ms - fsr * (start_ms - calibration.target_ms), fsr


def _confirmed(run: Run, chain: Chain) -> list[tuple[float, Node]]:
    """Return the valid nodes that a verification confirms, and their FSR by it."""
    path = run.directory.path / "verify.json"
    if not path.exists():
        raise UsageError(
            f"{run.directory.path} is not verified yet; run: speedkit verify "
            f"{run.directory.path}, then: speedkit cumulative --resume {chain.path}"
        )
    found = read_json(path).get("nodes")
    if not isinstance(found, dict):
        raise UsageError(f"{path} cannot be read: it has no nodes")
    verdicts = {key: facts for key, facts in found.items() if isinstance(facts, dict)}
    return [
        (float(facts["fsr"]), run.tree[int(key)])
        for key, facts in verdicts.items()
        if facts.get("verdict") == "confirmed"
        and isinstance(facts.get("fsr"), (int, float))
        and key.isdigit()
        and int(key) in run.tree
        and run.tree[int(key)].is_valid
    ]


# --- one git history --------------------------------------------------------------------


def write_history(path: Path, runs: Sequence[Run], links: Sequence[Link]) -> str:
    """Bring the searches of a chain into one repository.

    Every node of task k is ``refs/heads/task-0k/node/N``. The branch ``chain`` begins at the
    first record; each task that gained adds a merge commit whose tree is the new best script,
    whose first parent is the chain so far and whose second is the node itself. Made anew, it
    has the same hashes. A repository that a kill left unfit for use is made anew.

    Returns:
        The head of the chain, a hex id.
    """
    import git

    try:
        return _bring(path, runs, links)
    except git.GitCommandError:
        shutil.rmtree(path)
        return _bring(path, runs, links)


def _bring(path: Path, runs: Sequence[Run], links: Sequence[Link]) -> str:
    import git

    repo = git.Repo.init(path, bare=True, initial_branch=BRANCH)
    try:
        head = runs[0].tree.root.commit
        for run, link in zip(runs, links, strict=True):
            name = f"task-{run.task.id:02d}"
            source = str((run.directory.path / "repo").resolve())
            refs = (
                f"+refs/heads/node/*:refs/heads/{name}/node/*",
                f"+refs/notes/commits:refs/notes/{name}",
            )
            repo.git.execute(["git", "-c", "gc.auto=0", "fetch", "--quiet", source, *refs])
            if link.commit is not None:
                head = _merge(repo, head, link)
        repo.git.update_ref(f"refs/heads/{BRANCH}", head)
        return head
    finally:
        repo.close()


def _merge(repo: Any, head: str, link: Link) -> str:
    """Commit a best script on top of the chain."""
    message = (
        f"{link.task}: {link.time_ms:.0f} ms, {link.agent_speedup:.2f}x the first record's speed"
        "\n\n"
        f"Task: {link.task}\nRun: {link.run}\nNode: {link.node}\n"
    )
    date = f"{EPOCH + link.target_record} +0000"
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "speedkit"), ("EMAIL", "speedkit@localhost"), ("DATE", date))
    }
    commit: str = repo.git.commit_tree(
        f"{link.commit}^{{tree}}", "-p", head, "-p", link.commit, "-m", message, env=identity
    )
    return commit.strip()
