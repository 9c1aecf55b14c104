"""Whether the sandbox holds: a job that tries to get out of it, run as every job is."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speedkit.core.components import Ending, Job
from speedkit.core.errors import ExecutorError
from speedkit.core.paths import cache_dir
from speedkit.plugins.executors import machine, processes, sandbox
from speedkit.plugins.executors.torchrun import GB, TorchrunExecutor, TorchrunOptions

KEY = "SPEEDKIT_SELFCHECK_API_KEY"
"""The variable that must not be seen; it holds a key made up for the check."""
MAX_PROCESSES = 64
MAX_FILE_GB, MAX_TMP_GB = 0.02, 0.1
LIMIT_S = 120.0
"""Seconds that one of the two jobs may take."""
GONE_S = 5.0
"""Seconds in which all processes of a job must be gone."""
_HERE = Path(__file__).resolve().parent
_RENDEZVOUS = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if dist.get_rank() == 0:
    print("total", int(total.item()), flush=True)
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Row:
    """One thing that was tried.

    Attributes:
        ok: the sandbox does what it should.
        found: what came of it, one line.
    """

    name: str
    ok: bool
    found: str


@dataclass
class _Listener:
    lines: list[str] = field(default_factory=list)

    def started(self, handle: Mapping[str, Any]) -> None:
        """Do nothing: the job is waited for here."""

    def line(self, rank: int, text: str, at_s: float) -> None:
        """Keep what rank 0 says."""
        if rank == 0:
            self.lines.append(text)


def check(python: str | None = None) -> tuple[Row, ...]:
    """Try to get out of the sandbox in each way that is known, and return what came of it.

    Args:
        python: interpreter of the jobs; None for the running one.
    """
    try:
        path = machine.find_interpreter(python)
        found = sandbox.find(path)
    except ExecutorError as error:
        return (Row("sandbox", False, str(error)),)
    if found.bwrap is None:
        return (Row("sandbox", False, f"{found.reason}; so {sandbox.UNPROTECTED}"),)
    first = Row("sandbox", True, f"bubblewrap {found.version} ({found.bwrap})")
    with tempfile.TemporaryDirectory(prefix="speedkit-check-") as name:
        folder = Path(name).resolve()
        return (first, *_probe(folder, python), *_meet(folder, python, path))


def _probe(folder: Path, python: str | None) -> Iterator[Row]:
    """Run the probe; a row that it did not come to has failed."""
    from speedkit.plugins.executors.sandbox_probe import ATTEMPTS

    key, marker = secrets.token_hex(16), secrets.token_hex(16)
    with _servers(folder) as servers, _variable(KEY, key):
        facts = {**_surroundings(folder), **servers, "key": key, "marker": marker}
        job = _job(folder, "probe", (_HERE / "sandbox_probe.py").read_text(encoding="utf-8"))
        said, reason = _run(python, job, json.dumps(facts))
    rows = {row.name: row for row in said}
    if written := sorted(folder.rglob("speedkit-probe")):
        rows["writing outside"] = Row("writing outside", False, f"{written[0].parent}")
    rows["survivors"] = _survivors(marker, "survivors" in rows)
    for name in ATTEMPTS:
        yield rows.get(name, Row(name, False, f"not tried: {reason or 'the probe ended'}"))


def _surroundings(folder: Path) -> dict[str, Any]:
    """Make what must not be seen, and say where it is."""
    other = folder / "work" / "another-node"
    for made in (other, folder / "nodes" / "0001", folder / "data", folder / "logs"):
        made.mkdir(parents=True)
    for secret in (
        other / "train.py",
        folder / "nodes" / "0001" / "reply",
        folder / "events.jsonl",
    ):
        secret.write_text("secret", encoding="ascii")
    (folder / "data" / "shard").write_text("data", encoding="ascii")
    (folder / "data").chmod(0o755)  # whatever this process closes to others
    (folder / "data" / "shard").chmod(0o644)
    package = _HERE.parents[1]
    return {
        "data": "data",
        "nodes": [str(other), str(other / "train.py")],
        "history": [f"{folder}/events.jsonl", f"{folder}/nodes", f"{folder}/logs"],
        "records": [str(package), str(package / "records"), str(cache_dir())],
        "processes": MAX_PROCESSES,
        "file": int(MAX_FILE_GB * GB),
        "tmp": int(MAX_TMP_GB * GB),
    }


def _job(folder: Path, name: str, script: str) -> Job:
    workspace = folder / "work" / name
    workspace.mkdir(parents=True)
    (workspace / "script.py").write_text(script, encoding="utf-8")
    (workspace / "data").symlink_to(folder / "data", target_is_directory=True)
    return Job(
        name=name,
        run_id=f"selfcheck-{secrets.token_hex(8)}",
        workspace=workspace,
        log_dir=folder / "logs",
        script="script.py",
        launcher="python",
        timeout_s=LIMIT_S,
        stall_s=LIMIT_S,
        hidden=(folder,),
    )


def _run(python: str | None, job: Job, facts: str) -> tuple[list[Row], str]:
    options = TorchrunOptions(
        python=python,
        sandbox="bwrap",
        max_processes=MAX_PROCESSES,
        max_file_gb=MAX_FILE_GB,
        max_tmp_gb=MAX_TMP_GB,
    )
    listener = _Listener()
    done = TorchrunExecutor(options).execute(replace(job, args=(facts,)), listener)
    rows = []
    for line in listener.lines:
        with contextlib.suppress(ValueError, TypeError):
            rows.append(Row(**json.loads(line)))
    return rows, done.reason


def _survivors(marker: str, was_left: bool) -> Row:
    if not was_left:
        return Row("survivors", False, "the probe left no process behind")
    began = time.monotonic()
    while pids := [pid for pid in processes.parents() if processes.has_argument(pid, marker)]:
        if time.monotonic() > began + GONE_S:
            return Row("survivors", False, f"still there: {pids}")
        time.sleep(0.05)
    return Row("survivors", True, "a daemon went with its job")


def _meet(folder: Path, python: str | None, path: str) -> Iterator[Row]:
    """Let two ranks find each other under torchrun."""
    if machine.versions(path)["torch"] is None:
        yield Row("rendezvous", False, "torch is not installed for this interpreter")
        return
    job = replace(_job(folder, "ranks", _RENDEZVOUS), launcher="torchrun", nproc=2)
    listener = _Listener()
    options = TorchrunOptions(python=python, sandbox="bwrap")
    done = TorchrunExecutor(options).execute(job, listener)
    ok = done.ending is Ending.FINISHED and "total 2" in listener.lines
    yield Row("rendezvous", ok, f"2 ranks met in {done.wall_s:.1f} s" if ok else done.reason)


@contextlib.contextmanager
def _servers(folder: Path) -> Iterator[dict[str, Any]]:
    """Listen where a job must not get through to."""
    path, name = folder / "s", f"speedkit-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
        ]
        addresses: tuple[Any, ...] = (("127.0.0.1", 0), str(path), f"\0{name}")
        for one, address in zip(sockets, addresses, strict=True):
            one.bind(address)
            one.listen(1)
        yield {"port": sockets[0].getsockname()[1], "socket": str(path), "abstract": name}


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
