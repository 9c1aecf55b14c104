"""What this machine can run: each part found or missing, and how to get what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speedkit.core.errors import ExecutorError, SpeedkitError, UsageError
from speedkit.core.history import default_run_path
from speedkit.core.paths import cache_dir
from speedkit.core.redact import secret_variables
from speedkit.core.task import Family, Record, Task, builtin_families
from speedkit.plugins.executors import gpu as nvidia
from speedkit.plugins.executors import machine, sandbox

ANSWER_S = 20
"""Seconds that another program may take to answer."""
MIN_FREE_GB = 2.0
"""Less free space than this counts as missing."""
_KEY = re.compile(r".*_API_KEY|ANTHROPIC_AUTH_TOKEN|HF_TOKEN")
_GPU_HARDWARE = re.compile(r"\d+ ?[x×] ")
_CAPABILITY = re.compile(r"compute capability (\d+\.\d+)")
# Torch is not imported: that takes seconds, and its version file says it as well.
_BUILD = r"""
import importlib.util, json, pathlib, re
spec = importlib.util.find_spec("torch")
text = pathlib.Path(spec.origin).with_name("version.py").read_text() if spec else ""
found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)", text, re.M)
print(json.dumps(found and found[1]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        found: what is there, or what is wrong with it; one line.
        remedy: how to get it; empty when it is there.
        needed: no task, or not the named one, can be run without it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU that jobs may see, or a part of one; memory in MiB, 0 if not known."""

    name: str
    memory_mib: int
    driver: str


def examine(
    task: Task | None = None, *, python: str | None = None, nproc: int | None = None
) -> tuple[Finding, ...]:
    """Return what this machine has, and whether it suffices for a task.

    No key is read but for whether it is set, and nothing is fetched. The data of a family
    that makes its own are made, as a run would do.

    Args:
        task: the task to be run; None looks at the machine alone.
        python: interpreter of the scripts; None for the running one.
        nproc: processes of a node; None for what the task says.
    """
    findings = [*_programs(python), *_places(), *_families()]
    if task is not None:
        findings += _task(task, python, nproc)
    return tuple(findings)


def examine_task(
    task: Task, *, python: str | None = None, nproc: int | None = None
) -> tuple[Finding, ...]:
    """Return whether this machine suffices for a task, without looking at anything else."""
    return tuple(_task(task, python, nproc))


def can_run(findings: Sequence[Finding]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(finding.ok for finding in findings if finding.needed)


# --- programs ---------------------------------------------------------------------------


def _programs(python: str | None) -> Iterator[Finding]:
    yield _python(python)
    yield _torch(python)
    yield _gpus()
    yield _program("git", ["--version"], "install git with the package manager", needed=True)
    yield _sandbox(python)
    yield _aider()
    yield _keys()


def _python(python: str | None) -> Finding:
    try:
        path = machine.find_interpreter(python)
        version = machine.versions(path)["python"] or ""
    except ExecutorError as error:
        remedy = "name one with --python, and set executor.python to it"
        return Finding("python", False, str(error), remedy, needed=True)
    return Finding("python", True, f"{version} ({path})", needed=True)


def _torch(python: str | None) -> Finding:
    version = torch_version(python)
    if version is None:
        remedy = "install torch there: python -m pip install torch"
        return Finding("torch", False, "not installed for this interpreter", remedy)
    cuda = cuda_build(python)
    if cuda is None and _gpu_count():
        remedy = "install a build of torch with CUDA; see pytorch.org/get-started"
        return Finding("torch", False, f"{version} is built without CUDA", remedy)
    return Finding("torch", True, f"{version}, {f'CUDA {cuda}' if cuda else 'without CUDA'}")


def torch_version(python: str | None) -> str | None:
    """Return the version of torch of an interpreter, None if it has none or does not run."""
    try:
        return machine.versions(machine.find_interpreter(python))["torch"]
    except ExecutorError:
        return None


def cuda_build(python: str | None) -> str | None:
    """Return the version of CUDA that an interpreter's torch was built for."""
    try:
        answer = _answer([machine.find_interpreter(python), "-I", "-c", _BUILD])
        found = json.loads(answer)
    except (ExecutorError, OSError, ValueError, subprocess.SubprocessError):
        return None
    return found if isinstance(found, str) else None


def _program(name: str, arguments: list[str], remedy: str, *, needed: bool = False) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, False, "not on PATH", remedy, needed)
    try:
        said = _answer([path, *arguments]).strip().splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, False, f"{path} fails: {_why(error)}", remedy, needed)
    return Finding(name, True, said[0] if said else path, needed=needed)


def _sandbox(python: str | None) -> Finding:
    """Whether jobs can be put in a sandbox, found out by putting one there."""
    try:
        found = sandbox.find(machine.find_interpreter(python))
    except ExecutorError as error:
        return Finding("bwrap", False, str(error))
    if found.bwrap is not None:
        return Finding("bwrap", True, f"bubblewrap {found.version} ({found.bwrap})")
    remedy = "install the package bubblewrap"
    if shutil.which("bwrap"):
        remedy = (
            "let this user make namespaces (in a container: start it with the right to; else "
            "sysctl kernel.unprivileged_userns_clone=1, or an AppArmor profile for bwrap)"
        )
    return Finding("bwrap", False, f"{found.reason}; without, {sandbox.UNPROTECTED}", remedy)


def examine_sandbox(python: str | None = None) -> tuple[Finding, ...]:
    """Try to get out of the sandbox in every way that is known; see what came of it.

    Args:
        python: interpreter of the scripts; None for the running one.
    """
    from speedkit.plugins.executors import selfcheck

    first = _sandbox(python)
    if not first.ok:
        return (replace(first, needed=True),)
    rows = selfcheck.check(python)
    return tuple(Finding(row.name, row.ok, row.found, needed=True) for row in rows)


def _aider() -> Finding:
    from speedkit.plugins.coders import aider_environment as environment

    try:
        found = environment.find()
    except UsageError:
        remedy = "run: speedkit aider install (for the coder aider alone)"
        return Finding("aider", False, "not installed", remedy)
    return Finding("aider", True, f"{found.executable} ({found.source})")


def _keys() -> Finding:
    names = sorted(name for name in secret_variables(os.environ) if _KEY.fullmatch(name))
    if names:
        return Finding("keys", True, "set: " + ", ".join(names))
    remedy = "set your provider's, as OPENAI_API_KEY, or use a server of your own with --api-base"
    return Finding("keys", False, "no API key is set", remedy)


def _answer(command: list[str]) -> str:
    secret = secret_variables(os.environ)
    done = subprocess.run(
        command,
        env={name: value for name, value in os.environ.items() if name not in secret},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=ANSWER_S,
        check=True,
    )
    return done.stdout


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or error.stdout or "").strip().splitlines()
        return said[-1] if said else f"exit status {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {ANSWER_S} s"
    return str(error)


# --- GPUs -------------------------------------------------------------------------------


def _gpus() -> Finding:
    try:
        gpus = visible_gpus()
    except SpeedkitError as error:
        return Finding("GPUs", False, str(error), "repair the NVIDIA driver")
    if not gpus:
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ and shutil.which("nvidia-smi")
        remedy = "correct or unset CUDA_VISIBLE_DEVICES" if hidden else "use a machine with some"
        return Finding("GPUs", False, "no NVIDIA GPU is visible", f"{remedy}; mini needs none")
    kinds = ", ".join(f"{gpus.count(gpu)}x {_gpu_text(gpu)}" for gpu in dict.fromkeys(gpus))
    return Finding("GPUs", True, kinds)


def _gpu_text(gpu: Gpu) -> str:
    if not gpu.memory_mib:
        return gpu.name
    return f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB, driver {gpu.driver})"


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that NVIDIA's tool lists and ``CUDA_VISIBLE_DEVICES`` does not hide.

    Raises:
        SpeedkitError: the tool is there and fails.
    """
    rows = nvidia.query("index", "uuid", "name", "memory.total", "driver_version")
    known = {row[1]: Gpu(row[2], _number(row[3]), row[4]) for row in rows}
    names = nvidia.chosen(rows, os.environ)
    return tuple(known.get(name, Gpu(f"part of a GPU, {name}", 0, "")) for name in names)


def _gpu_count() -> int:
    try:
        return len(visible_gpus())
    except SpeedkitError:
        return 0


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


# --- places -----------------------------------------------------------------------------


def _places() -> Iterator[Finding]:
    runs = default_run_path("mini/1").parent.absolute()
    yield _place("cache folder", cache_dir(), "set SPEEDKIT_CACHE_DIR to another folder")
    yield _place("run folder", runs, "work in another folder, or name one with --out")
    yield _place("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another folder")
    yield _port()


def _place(name: str, folder: Path, remedy: str) -> Finding:
    try:
        there = next(p for p in (folder, *folder.parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free / 1e9
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror or error}"
        return Finding(name, False, found, remedy, needed=True)
    if free < MIN_FREE_GB:
        return Finding(name, False, f"{folder}, {free:.1f} GB free", f"free some, or {remedy}")
    return Finding(name, True, f"{folder}, {free:.0f} GB free", needed=True)


def _port() -> Finding:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
    except OSError as error:
        remedy = "bring the loopback interface up; processes of a job meet there"
        return Finding("loopback port", False, f"none is free: {error}", remedy, needed=True)
    return Finding("loopback port", True, "free ports on 127.0.0.1", needed=True)


# --- families ---------------------------------------------------------------------------


def _families() -> Iterator[Finding]:
    for name, folder in builtin_families().items():
        family = Family.load(folder)
        if family.scripts == "cache":
            yield _records(name, family)
        if name == "nanogpt":
            yield _data(name, family)


def _records(name: str, family: Family) -> Finding:
    states = [_state(record) for record in family.records]
    there = states.count("imported")
    found = f"{there} of {len(states)} imported"
    if "damaged" in states:
        found += f", {states.count('damaged')} damaged"
    remedy = "" if there == len(states) else "run: speedkit records import"
    return Finding(f"{name} records", not remedy, found, remedy)


def _state(record: Record) -> str:
    from speedkit.records.nanogpt.importer import record_status

    return record_status(record).state


def _data(name: str, family: Family) -> Finding:
    from speedkit.records.nanogpt import data

    remedy = f"run: speedkit data fetch {name}; for smoke runs: speedkit data synth"
    try:
        folder = family.data_folder()
        report = data.check(folder) if folder is not None else None
    except (SpeedkitError, OSError) as error:
        return Finding(f"{name} data", False, str(error), remedy)
    if report is None or not report.train or report.val is None:
        return Finding(f"{name} data", False, f"no shards in {folder}", remedy)
    kind = "synthetic shards" if report.synthetic else "shards"
    found = f"{len(report.train)} training {kind} in {folder}"
    if report.damaged:
        return Finding(f"{name} data", False, f"{found}; {report.damaged[0]}", remedy)
    return Finding(f"{name} data", True, found)


# --- a task -----------------------------------------------------------------------------


def _task(task: Task, python: str | None, nproc: int | None) -> Iterator[Finding]:
    count = task.run.nproc if nproc is None else nproc
    if task.run.launcher == "python":
        count = 1
    yield _processes(task, count)
    if _on_gpus(task):
        yield _enough_gpus(task, count)
        yield from _capable(task)
    if task.run.launcher == "torchrun":
        yield _new_enough(task, python)
    yield _scripts(task)
    yield _enough_data(task)
    yield from _changes(task, python)


def _needed(name: str, problem: str, remedy: str, found: str) -> Finding:
    return Finding(f"task {name}", not problem, problem or found, remedy if problem else "", True)


def _processes(task: Task, count: int) -> Finding:
    try:
        task.run_with(count)
        problem = ""
    except UsageError as error:
        problem = str(error)
    allowed = " or ".join(str(n) for n in task.world_sizes)
    return _needed("processes", problem, f"use executor.nproc={allowed}", f"{count}")


def _on_gpus(task: Task) -> bool:
    """Whether the records were timed on a number of GPUs, as in ``8x H100``."""
    return any(_GPU_HARDWARE.match(record.hardware) for record in (task.start, task.target))


def _enough_gpus(task: Task, count: int) -> Finding:
    there = _gpu_count()
    problem = f"{there} visible, {count} needed" if there < count else ""
    fewer = [n for n in task.world_sizes if n <= there]
    remedy = (
        f"with executor.nproc={max(fewer)} the same training takes longer"
        if fewer
        else "use a machine with so many"
    )
    return _needed("GPUs", problem, remedy, f"{there} visible, {count} needed")


def _capable(task: Task) -> Iterator[Finding]:
    matches = (_CAPABILITY.search(n) for r in (task.start, task.target) for n in r.needs)
    needed = max((_release(m[1]) for m in matches if m), default=None)
    try:
        rows = nvidia.query("index", "uuid", "compute_cap")
    except SpeedkitError:
        return
    visible = set(nvidia.chosen(rows, os.environ))
    found = [_release(row[2]) for row in rows if row[1] in visible]
    if needed is None or not found:
        return
    text = f"compute capability {_dotted(min(found))}, {_dotted(needed)} needed"
    problem = text if min(found) < needed else ""
    yield _needed("GPU model", problem, "use newer GPUs (Ada, Hopper or later)", text)


def _new_enough(task: Task, python: str | None) -> Finding:
    version = torch_version(python)
    least = max((r.torch_min for r in (task.start, task.target)), key=_release)
    wanted = f", {least} or newer needed" if least else ""
    problem = ""
    if version is None:
        problem = f"not installed{wanted}"
    elif _release(version) < _release(least) and version[:1].isdigit():
        problem = f"{version}{wanted}"
    elif _on_gpus(task) and cuda_build(python) is None:
        problem = f"{version} is built without CUDA"
    remedy = "install such a torch, or name another interpreter with --python"
    return _needed("torch", problem, remedy, f"{version}{wanted}")


def _scripts(task: Task) -> Finding:
    states = {r.index: _state(r) for r in (task.start, task.target)}
    bad = [f"record {index} is {state}" for index, state in states.items() if state != "imported"]
    imported = task.family.scripts == "cache"
    remedy = "run: speedkit records import" if imported else f"restore {task.family.script_root}"
    found = " and ".join(f"record {index}" for index in states)
    return _needed("scripts", ", ".join(bad), remedy, found)


def _enough_data(task: Task) -> Finding:
    try:
        folder = task.data_folder()
    except (SpeedkitError, OSError) as error:
        found, _, remedy = str(error).partition("; run: ")
        remedy = f"run: {remedy}" if remedy else "repair the data folder"
        return _needed("data", found, remedy, "")
    return _needed("data", "", "", f"{folder}" if folder else "none needed")


def _changes(task: Task, python: str | None) -> Iterator[Finding]:
    """What is changed in the start script, so that this torch runs it; no reason to worry."""
    version = torch_version(python)
    if not version or _release(version) == (0, 0) or _state(task.start) != "imported":
        return
    _, notes = task.family.adapt(task.start.read(), version)
    for note in notes:
        yield Finding("task adaptation", True, note)


def _release(version: str) -> tuple[int, int]:
    """Return major and minor of a version; zeros if it has none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _dotted(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
