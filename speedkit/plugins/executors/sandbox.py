"""The sandbox of a job: what bubblewrap is told, and whether it works on this machine."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors import machine, mounts, seccomp
from speedkit.plugins.executors.environment import passed
from speedkit.plugins.executors.mounts import Shown, View

UID = 65527
"""User and group that jobs run under when the controller is root."""
HOME = "/tmp/home"
"""Home of a job in its sandbox."""
ENTRIES = "/run/speedkit"
"""Where the programs that a job is started with stand in its sandbox."""
PIPE_MODE = 0o622
"""Permissions of named pipes that jobs of another user only write to."""
UNPROTECTED = (
    "scripts can read this user's files, reach the network, and read or end this user's processes"
)
"""What there is to say when there is no sandbox."""
_PACKAGE = Path(__file__).resolve().parent
_FILES = {
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_CHECK = """
import ctypes, json, os
print(json.dumps([os.getuid(), os.getpid() < 100, ctypes.CDLL(None).unshare(0x10000000)]))
"""


class HandOverError(ExecutorError):
    """A folder cannot be given to the user that jobs run under."""


class Found(NamedTuple):
    """Whether a sandbox can be made here.

    Attributes:
        bwrap: path of bubblewrap, None if no sandbox can be made.
        version: of bubblewrap.
        options: what bubblewrap can be told, as ``--size``.
        reason: why none can be made, else empty.
    """

    bwrap: str | None
    version: str = ""
    options: frozenset[str] = frozenset()
    reason: str = ""

    @property
    def kind(self) -> str:
        """``bwrap`` or ``none``."""
        return "none" if self.bwrap is None else "bwrap"


@dataclass(frozen=True)
class Limits:
    """What a job may use at most; bytes but for the first.

    Attributes:
        processes: processes and threads.
        file: size of a file.
        tmp: all temporary files together, which are kept in memory.
        shm: all shared memory together.
    """

    processes: int = 16_384
    file: int = 64 << 30
    tmp: int = 4 << 30
    shm: int = field(default_factory=lambda: _memory() // 2)


class Enclosed(NamedTuple):
    """A command in its sandbox.

    Attributes:
        command: what to start.
        filter: file that has to be handed over as ``--seccomp``, its path.
        pipe_mode: permissions that the job's named pipes need.
    """

    command: list[str]
    filter: str
    pipe_mode: int


# --- whether it works -----------------------------------------------------------------------


def find(python: str) -> Found:
    """Find out whether jobs of an interpreter can be put in a sandbox, by doing it once.

    Raises:
        ExecutorError: the interpreter does not run.
    """
    if sys.platform != "linux":
        return Found(None, reason="only Linux has what it is made of")
    path = shutil.which("bwrap")
    if path is None:
        return Found(None, reason="bubblewrap is not installed (the program bwrap)")
    return _find(python, path)


@functools.lru_cache(maxsize=8)
def _find(python: str, path: str) -> Found:
    if seccomp.program(platform.machine()) is None:
        return Found(None, reason=f"there is no filter of system calls for {platform.machine()}")
    try:
        found = Found(path, _ask(path, "--version").split()[-1], _options(path))
        problem = _try(found, python)
    except HandOverError as error:
        problem = f"files cannot be given to another user: {error.__cause__}"
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        problem = f"{path} does not run: {error}"
    return Found(None, reason=problem) if problem else found


def _ask(bwrap: str, option: str) -> str:
    done = subprocess.run(
        [bwrap, option],
        env=passed(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=machine.PROBE_S,
    )
    return done.stdout


def _options(bwrap: str) -> frozenset[str]:
    """The options that bubblewrap takes: one that runs with root's rights takes no sizes."""
    known = re.findall(r"^\s+(--perms|--size)\b", _ask(bwrap, "--help"), re.MULTILINE)
    is_setuid = os.stat(bwrap).st_mode & stat.S_ISUID and os.getuid() != 0
    return frozenset(known) - {"--size"} if is_setuid else frozenset(known)


def _try(found: Found, python: str) -> str:
    """Run a program in the sandbox; return what went wrong."""
    with tempfile.TemporaryDirectory(prefix="speedkit-try-") as name:
        folder = Path(name)
        for part in ("workspace", "pipes"):
            (folder / part).mkdir()
        os.mkfifo(folder / "pipes" / "entry")
        os.chmod(folder / "pipes" / "entry", PIPE_MODE)
        view = View(folder / "workspace")
        command = [mounts.interpreter(python)["executable"], "-I", "-c", _CHECK]
        made = enclose(found, command, view, folder, passed(os.environ), Limits())
        problem = _judge(*_run(made, folder / "pipes" / "entry"))
    if problem and os.getuid() == 0 and "--perms" not in found.options:
        problem += f" (under root version 0.5 or newer is needed, this is {found.version})"
    return problem


def _run(made: Enclosed, pipe: Path) -> tuple[str, str]:
    """Return what the tried program wrote to standard output and error."""
    listener = os.open(pipe, os.O_RDWR)
    descriptor = os.open(made.filter, os.O_RDONLY)
    try:
        done = subprocess.run(
            with_filter(made.command, descriptor),
            env=passed(os.environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=machine.PROBE_S,
            pass_fds=[descriptor],
        )
    finally:
        os.close(descriptor)
        os.close(listener)
    return done.stdout, done.stderr


def _judge(output: str, errors: str) -> str:
    try:
        uid, is_apart, made_namespace = json.loads(output)
    except ValueError:
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        said = lines[-1] if lines else "the program in it said nothing"
        return f"bubblewrap makes no sandbox here: {said}"
    if uid == 0 or not is_apart or made_namespace == 0:
        return "the sandbox that bubblewrap makes here does not hold"
    return ""


# --- what bubblewrap is told ----------------------------------------------------------------


def enclose(
    found: Found,
    command: Sequence[str],
    view: View,
    scratch: Path,
    env: Mapping[str, str],
    limits: Limits,
) -> Enclosed:
    """Return a command in a sandbox, and prepare its files.

    Args:
        command: program and arguments; the program is an interpreter by its own path.
        scratch: private folder of the job, with the folder ``pipes``; the sandbox shows of it
            this folder and ``torch``.
        env: environment of the job.

    Raises:
        HandOverError: the workspace cannot be given to the user that jobs run under.
        ExecutorError: that user cannot read the data.
    """
    python = command[0]
    uid = UID if os.getuid() == 0 else None
    files = _write_files(scratch)
    torch = scratch / "torch"
    torch.mkdir(exist_ok=True)
    for folder in view.writable:
        folder.mkdir(parents=True, exist_ok=True)
    seen = mounts.shown(view, python, env)
    if uid is not None:
        _see_that_all_may_read(filter(None, seen.given.values()))
    seen.writable[str(torch)] = str(torch)
    seen.given[str(scratch / "pipes")] = str(scratch / "pipes")
    if uid is not None:
        os.chmod(scratch / "pipes", 0o711)
        for path in seen.writable.values():
            _hand_over(path, uid)
    arguments = [*_separation(found), *_file_system(found, seen, files, limits)]
    entry = _entry(uid, view.workspace, scratch, limits)
    start = [python, "-I", "-S", f"{ENTRIES}/sandbox_entry.py", entry, *command]
    bwrap = str(found.bwrap)
    return Enclosed([bwrap, *arguments, "--", *start], str(files["filter"]), _pipe_mode(uid))


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a job as it has to be in a sandbox."""
    # There is no other interface than loopback, whatever the machine has.
    network = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    user = {"USER": "job", "LOGNAME": "job", "HOME": HOME, "TMPDIR": "/tmp"}
    return {**env, **network, **user}


def with_filter(command: Sequence[str], descriptor: int) -> list[str]:
    """Return the command with the open file of its filter."""
    return [command[0], "--seccomp", str(descriptor), *command[1:]]


def _separation(found: Found) -> Iterator[str]:
    yield from ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts")
    yield from ("--unshare-cgroup-try", "--hostname", "localhost")
    yield from ("--die-with-parent", "--new-session")
    if os.getuid() == 0:
        # What the entry needs to become another user, by which it loses both.
        yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    else:
        yield from ("--unshare-user", "--cap-drop", "ALL")


def _file_system(
    found: Found, seen: Shown, files: Mapping[str, Path], limits: Limits
) -> Iterator[str]:
    yield from ("--proc", "/proc")
    if os.getuid() == 0:
        yield from ("--ro-bind", "/proc/sys", "/proc/sys")
    yield from ("--ro-bind", "/sys", "/sys", "--dev", "/dev")
    yield from _memory_folder(found, "/dev/shm", limits.shm)
    yield from _memory_folder(found, "/tmp", limits.tmp)
    for path in mounts.devices():
        yield from ("--dev-bind", path, path)
    yield from _folders(found, seen)
    yield from _bind("--ro-bind", seen.read_only)
    for path, target in seen.links.items():
        yield from ("--symlink", target, path)
    for name in ("hosts", "nsswitch.conf", "passwd", "group"):
        yield from ("--ro-bind", str(files[name]), f"/etc/{name}")
    for name in ("sandbox_entry.py", "rank_entry.py", "warm_entry.py"):
        yield from ("--ro-bind", str(_PACKAGE / name), f"{ENTRIES}/{name}")
    above = mounts.folders_above([*seen.given, *seen.writable])
    for path in seen.masked:
        yield from _mask(found, path, above)
    for path, source in sorted(seen.given.items()):
        yield from ("--ro-bind", source, path) if source else _mask(found, path, above)
    yield from _bind("--bind", seen.writable)
    masks = [*seen.masked, *(path for path, source in seen.given.items() if not source)]
    for path in [*masks, "/dev", "/"]:
        yield from ("--remount-ro", path)


def _bind(option: str, paths: Mapping[str, str]) -> Iterator[str]:
    for path, source in sorted(paths.items()):
        yield from (option, source, path)


def _memory_folder(found: Found, path: str, size: int) -> Iterator[str]:
    yield from _perms(found, "1777")
    if "--size" in found.options:
        yield from ("--size", str(size))
    yield from ("--tmpfs", path)


def _folders(found: Found, seen: Shown) -> Iterator[str]:
    """Make the folders in which something is shown, open to the user that jobs run under."""
    places = [*seen.read_only, *seen.given, *seen.writable, *seen.links]
    for path in mounts.folders_above([*places, f"{ENTRIES}/x", "/etc/x"]):
        if path not in ("/dev", "/dev/shm", "/tmp"):
            yield from (*_perms(found, "0755"), "--dir", path)


def _mask(found: Found, mask: str, above: Iterable[str]) -> Iterator[str]:
    """Lay an empty folder over what is hidden, with those below it that lead to what is seen."""
    yield from (*_perms(found, "0755"), "--tmpfs", mask)
    for path in above:
        if path != mask and mounts.is_below(path, mask):
            yield from (*_perms(found, "0755"), "--dir", path)


def _perms(found: Found, mode: str) -> list[str]:
    return ["--perms", mode] if "--perms" in found.options else []


def _entry(uid: int | None, workspace: Path, scratch: Path, limits: Limits) -> str:
    facts = {
        "folder": str(workspace),
        "pipe": str(scratch / "pipes" / "entry"),
        "home": HOME,
        "uid": uid,
        "gid": uid,
        "groups": _device_groups(mounts.devices()),
        "limits": {"RLIMIT_NPROC": limits.processes, "RLIMIT_FSIZE": limits.file},
    }
    return json.dumps(facts)


def _device_groups(paths: Iterable[str]) -> list[int]:
    """Groups that may use the accelerators, which root needs not and others do."""
    return sorted({os.stat(path).st_gid for path in paths} - {0})


def _pipe_mode(uid: int | None) -> int:
    return 0o600 if uid is None else PIPE_MODE


# --- files ----------------------------------------------------------------------------------


def _write_files(scratch: Path) -> dict[str, Path]:
    """Write what bubblewrap puts in place: the filter, and a small ``/etc``."""
    uid, gid = (UID, UID) if os.getuid() == 0 else (os.getuid(), os.getgid())
    files = {
        **_FILES,
        "passwd": f"job:x:{uid}:{gid}::{HOME}:/bin/sh\n",
        "group": f"job:x:{gid}:\n",
    }
    folder = scratch / "etc"
    folder.mkdir(exist_ok=True)
    made = {name: folder / name for name in (*files, "filter")}
    for name, text in files.items():
        made[name].write_text(text, encoding="ascii")
        made[name].chmod(0o644)
    made["filter"].write_bytes(seccomp.program(platform.machine()) or b"")
    return made


def _see_that_all_may_read(paths: Iterable[str]) -> None:
    for path in paths:
        mode = os.stat(path).st_mode
        wanted = 0o005 if stat.S_ISDIR(mode) else 0o004
        if mode & wanted != wanted:
            raise ExecutorError(
                f"{path} is closed to the user that jobs run under: "
                f"run chmod -R a+rX {shlex.quote(path)}, or set executor.sandbox=none"
            )


def _hand_over(path: str, uid: int) -> None:
    """Make a user the owner of a folder and what is in it, if it is not yet.

    What is the user's may hold anything a job has put there, and is left as it is.
    """
    if os.lstat(path).st_uid == uid:
        return
    try:
        for folder, folders, files in os.walk(path):
            for name in [*folders, *files]:
                os.chown(os.path.join(folder, name), uid, uid, follow_symlinks=False)
        os.chown(path, uid, uid)
    except OSError as error:
        raise HandOverError(
            f"{path} cannot be given to the user that jobs run under ({error.strerror}): use "
            "another disk, or set executor.sandbox=none"
        ) from error


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
