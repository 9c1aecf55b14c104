"""A job that tries to get out of its sandbox, and says of each attempt what came of it.

Usage: ``sandbox_probe.py FACTS``, a JSON object (see :mod:`.selfcheck`). It prints a JSON
object a line: ``name``, ``ok`` (the attempt failed, as it should) and ``found``. Nothing is
changed outside even if an attempt succeeds. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import os
import platform
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

Answer = tuple[bool, str]
"""Whether the sandbox does what it should, and what came of the attempt."""
LIBC = ctypes.CDLL(None, use_errno=True)
FACTS: dict[str, Any] = {}
"""What whoever starts the probe tells it."""
NAMESPACES = {
    "user": 0x10000000,
    "mount": 0x20000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "cgroup": 0x2000000,
}
NUMBERS = {
    "x86_64": {"keyctl": 250, "bpf": 321, "process_vm_readv": 310},
    "aarch64": {"keyctl": 219, "bpf": 280, "process_vm_readv": 270},
}
CLONE3, IO_URING_SETUP = 435, 425
AF_VSOCK, AF_ALG = 40, 38
UNROUTED = ("192.0.2.1", 9)
"""An address for documentation. It is never sent to: a datagram socket only looks for a way."""


def user() -> Answer:
    """Whose rights the job has."""
    status = _status("self")
    rights = int(status["CapEff"], 16) | int(status["CapPrm"], 16)
    ok = 0 not in os.getresuid() and not rights and status["NoNewPrivs"] == "1"
    return ok, f"user {os.getuid()}, capabilities {rights:x}"


def passwords() -> Answer:
    """Whether the passwords of the machine can be read."""
    return _unreadable(["/etc/shadow", "/root/.ssh", os.path.expanduser("~/.ssh")])


def keys() -> Answer:
    """Whether a key of the controller's environment is seen anywhere."""
    places = [name for name, value in os.environ.items() if FACTS["key"] in value]
    for path in glob.glob("/proc/[0-9]*/environ"):
        if FACTS["key"] in _read(path):
            places.append(path)
    return not places, _list(places, "in no environment")


def processes() -> Answer:
    """Whether processes of the machine are seen."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return len(pids) <= 4 and os.getpid() < 10, f"{len(pids)} processes visible"


def kernel_settings() -> Answer:
    """Whether settings of the kernel can be written."""
    paths = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/modprobe"]
    found = [path for path in paths if _opens(path, os.O_WRONLY)]
    return not found, _list(found, "not writable")


def devices() -> Answer:
    """Whether there are devices besides the harmless ones and the accelerators."""
    usual = {"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"}
    usual |= {"stderr", "stdin", "stdout", "console", "dri", "kfd"}
    found = [name for name in os.listdir("/dev") if name not in usual]
    found = [name for name in found if not name.startswith("nvidia")]
    return not found, _list(found, "no others")


def writing() -> Answer:
    """Whether anything can be written outside the workspace and the temporary folder."""
    folders = ["/", "/dev", "/etc", "/run", "/usr", "/usr/lib", sys.prefix, sys.base_prefix]
    folders += [os.path.dirname(os.__file__), os.path.realpath("data")]
    folders += [os.path.dirname(path) for path in FACTS["nodes"]]
    found = []
    for folder in folders:
        path = os.path.join(folder, "speedkit-probe")
        is_made = _opens(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        # What lies in a temporary folder may be the sandbox's own: who started the probe
        # looks whether it is there outside.
        if is_made and not folder.startswith("/tmp/"):
            os.unlink(path)
            found.append(folder)
    return not found, _list(found, f"refused in {len(set(folders))} folders")


def network() -> Answer:
    """Whether there is a way to other machines, or to servers on this one."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way, contextlib.suppress(OSError):
        way.connect(UNROUTED)
        found.append("a route to the world")
    if _connects(socket.AF_INET, ("127.0.0.1", FACTS["port"])):
        found.append("the machine's loopback")
    return not found, _list(found, "loopback of its own")


def unix_sockets() -> Answer:
    """Whether servers behind the machine's sockets can be reached."""
    names = [FACTS["socket"], "\0" + FACTS["abstract"]]
    found = [repr(name) for name in names if _connects(socket.AF_UNIX, name)]
    return not found, _list(found, "none reached")


def namespaces() -> Answer:
    """Whether namespaces can be made, in which one has all rights again."""
    found = [name for name, flag in NAMESPACES.items() if _works(LIBC.unshare, flag)]
    if _error(CLONE3, 0, 0) != errno.ENOSYS:
        found.append("clone3 is open")
    return not found, _list(found, "refused")


def tracing() -> Answer:
    """Whether processes can be traced, or their memory be read."""
    found = ["ptrace"] if _works(LIBC.ptrace, 0, 0, 0, 0) else []
    if _error(_number("process_vm_readv"), os.getpid(), 0, 0, 0, 0, 0) != errno.EPERM:
        found.append("process_vm_readv")
    # The first process may be of the same user; then it must be as closed in as the job is.
    if _opens("/proc/1/mem", os.O_RDONLY) and not _is_confined(_status("1")):
        found.append("/proc/1/mem")
    return not found, _list(found, "refused")


def kernel_doors() -> Answer:
    """Whether rarely used parts of the kernel are open."""
    found = [n for n in ("keyctl", "bpf") if _error(_number(n), 0, 0, 0) != errno.EPERM]
    if _error(IO_URING_SETUP, 0, 0) != errno.ENOSYS:
        found.append("io_uring")
    for name, family in (("vsock", AF_VSOCK), ("alg", AF_ALG)):
        with contextlib.suppress(OSError):
            socket.socket(family, socket.SOCK_STREAM).close()
            found.append(name)
    return not found, _list(found, "closed")


def other_nodes() -> Answer:
    """Whether the folders of other nodes are seen."""
    return _unreadable(FACTS["nodes"])


def history() -> Answer:
    """Whether the history of the run is seen."""
    return _unreadable(FACTS["history"])


def records() -> Answer:
    """Whether records, hints and what the user has imported are seen."""
    installed = [os.path.join(path, "speedkit") for path in sys.path]
    return _unreadable([*FACTS["records"], *installed])


def process_limit() -> Answer:
    """Whether the number of processes is limited."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    wait, go = os.pipe()
    children = []
    try:
        for _ in range(FACTS["processes"] + 1):
            pid = os.fork()
            if pid == 0:
                os.close(go)
                os.read(wait, 1)
                os._exit(0)
            children.append(pid)
        reached = False
    except OSError:
        reached = True
    os.close(go)
    for pid in children:
        os.waitpid(pid, 0)
    return reached, f"{len(children)}, of {limit} allowed"


def file_limit() -> Answer:
    """Whether the size of a file is limited."""
    try:
        with open("large", "wb") as file:
            os.ftruncate(file.fileno(), FACTS["file"] + 1)
        return False, "no limit"
    except OSError as error:
        return error.errno == errno.EFBIG, f"{FACTS['file'] // 1_000_000} MB"


def temporary_files() -> Answer:
    """Whether temporary files and shared memory are private and limited."""
    sizes = {}
    for path in ("/tmp", "/dev/shm"):
        facts = os.statvfs(path)
        sizes[path] = facts.f_blocks * facts.f_frsize
    left = [name for name in os.listdir("/tmp") if name == os.path.basename(FACTS["socket"])]
    ok = not left and sizes["/tmp"] <= FACTS["tmp"] * 1.01 and sizes["/dev/shm"] > 0
    return ok, ", ".join(f"{path} {size // 1_000_000} MB" for path, size in sizes.items())


def own_files() -> Answer:
    """Whether the job can work: read its data, write its folder."""
    ok = _read("data/shard") == FACTS["data"]
    with open("written", "w") as file:
        file.write("x")
    with open(os.path.join(os.environ["HOME"], "x"), "w") as file:
        file.write("x")
    return ok, "data readable, workspace and home writable"


def daemon() -> Answer:
    """Leave a process behind, which must be gone when the job is."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(
                sys.executable,
                [sys.executable, "-S", "-c", "import time; time.sleep(60)", FACTS["marker"]],
                {},
            )
        os._exit(0)
    os.wait()
    return True, "left behind"


def _status(pid: str) -> dict[str, str]:
    lines = _read(f"/proc/{pid}/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _is_confined(status: dict[str, str]) -> bool:
    return int(status["CapEff"], 16) == 0 and status["Seccomp"] == "2"


def _unreadable(paths: list[str]) -> Answer:
    found = [path for path in paths if os.path.isdir(path) and _lists(path)]
    found += [path for path in paths if not os.path.isdir(path) and _opens(path, os.O_RDONLY)]
    return not found, _list(found, "not to be seen")


def _lists(path: str) -> bool:
    try:
        return bool(os.listdir(path))
    except OSError:
        return False


def _opens(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK, 0o600))
    except OSError:
        return False
    return True


def _connects(family: int, address: Any) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as way:
            way.settimeout(2)
            way.connect(address)
    except OSError:
        return False
    return True


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _works(call: Callable[..., int], *arguments: int) -> bool:
    """Whether a call succeeds, made in a process of its own."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if call(*arguments) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


def _number(name: str) -> int:
    return NUMBERS.get(platform.machine(), {}).get(name, 1 << 20)


def _error(number: int, *arguments: int) -> int:
    """The error of a system call, 0 if it succeeds."""
    ctypes.set_errno(0)
    return ctypes.get_errno() if LIBC.syscall(number, *arguments) == -1 else 0


def _list(found: list[str], otherwise: str) -> str:
    return ", ".join(found[:3]) or otherwise


ATTEMPTS = {
    "job can work": own_files,
    "user and rights": user,
    "passwords": passwords,
    "keys": keys,
    "processes": processes,
    "kernel settings": kernel_settings,
    "devices": devices,
    "writing outside": writing,
    "network": network,
    "unix sockets": unix_sockets,
    "namespaces": namespaces,
    "tracing": tracing,
    "kernel doors": kernel_doors,
    "other nodes": other_nodes,
    "history": history,
    "records": records,
    "temporary files": temporary_files,
    "file size": file_limit,
    "number of processes": process_limit,
    "survivors": daemon,
}


def main() -> None:
    """Make every attempt."""
    FACTS.update(json.loads(sys.argv[1]))
    for name, attempt in ATTEMPTS.items():
        try:
            ok, found = attempt()
        except Exception as error:  # The rest has to be tried whatever this one meets.
            ok, found = False, f"{type(error).__name__}: {error}"
        print(json.dumps({"name": name, "ok": bool(ok), "found": found}), flush=True)


if __name__ == "__main__":
    main()
