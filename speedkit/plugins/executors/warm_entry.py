"""A launcher that imports torch once and forks the ranks, each of which runs the script.

Usage: ``warm_entry.py FOLDER NPROC SCRIPT [ARGUMENT]…``. It takes the place of torchrun for
one job on one node: the same environment, the same end when a rank fails, and a summary that
reads as torchrun's. FOLDER is the private one of the job, with the named pipes of the ranks in
``pipes``; see ``rank_entry.py``. Needs Linux and torch, and nothing else beyond Python.
"""

from __future__ import annotations

import builtins
import gc
import os
import signal
import socket
import sys
import time
import types
import warnings
from collections.abc import Callable
from importlib.machinery import SourceFileLoader

HOST = "127.0.0.1"
"""Where the ranks meet."""
GATHER_S = 0.1
"""Seconds in which others may fail of the same cause before they are ended, as in torchrun."""
END_S = 3.0
"""Seconds after which ranks that ignore SIGTERM are killed."""
LOOK_S = 0.01
"""Seconds between two looks at ranks that are to end."""


def main() -> None:
    """Fork the ranks and wait for them; in a rank, run the script."""
    from rank_entry import become_rank  # type: ignore[import-not-found]

    # From here on nothing comes from the folder of this file, as nothing does in a plain rank.
    sys.path.pop(0)
    folder, nproc, *script = sys.argv[1:]
    if int(nproc) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    _preload()
    listener = socket.create_server((HOST, 0))
    pids = []
    for rank in range(int(nproc)):
        pid = _fork()
        if pid == 0:
            port = listener.getsockname()[1]
            listener.close()
            _enter(folder, environment(rank, int(nproc), port, folder), become_rank)
            _run(script)
            return
        pids.append(pid)
    status = Ranks(pids).see_through(listener)
    sys.stderr.flush()
    os._exit(status)  # Without the half second in which Python would take torch apart.


def _preload() -> None:
    import torch
    import torch.distributed

    if torch.cuda.is_initialized():
        sys.exit("importing torch has opened a GPU, which cannot be shared with forked ranks")


def _fork() -> int:
    with warnings.catch_warnings():
        # Libraries may have threads of their own by now, which they make anew after a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# --- the launcher ---------------------------------------------------------------------------


class Ranks:
    """The forked ranks: all are to succeed, and one that fails ends the others.

    Args:
        pids: process of each rank.
    """

    def __init__(self, pids: list[int]) -> None:
        self._running = {pid: rank for rank, pid in enumerate(pids)}
        self._failed: list[tuple[int, int, int]] = []

    def see_through(self, listener: socket.socket) -> int:
        """Serve the store by which the ranks meet until all have ended; return the status."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        store = _serve(listener)
        while self._running and not self._failed:
            self._note(*os.waitpid(-1, 0))
        self._wait(GATHER_S)
        failed = list(self._failed)
        self._end()
        del store
        for rank, pid, status in failed:
            print(f"  rank      : {rank} (local_rank: {rank})", file=sys.stderr)
            print(f"  exitcode  : {status} (pid: {pid})", file=sys.stderr)
        return 1 if failed else 0

    def _note(self, pid: int, status: int) -> None:
        """Take note of a rank that has ended; other processes are not asked after."""
        if pid in self._running:
            rank = self._running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code != 0:
                self._failed.append((rank, pid, code))

    def _wait(self, limit_s: float) -> None:
        """Wait until all ranks have ended, or for so many seconds."""
        deadline = time.monotonic() + limit_s
        while self._running and time.monotonic() < deadline:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                self._note(pid, status)
            else:
                time.sleep(LOOK_S)

    def _end(self) -> None:
        """End the ranks that are left."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._running:
                os.kill(pid, signum)
            self._wait(END_S)

    def _on_sigterm(self, signum: int, frame: object) -> None:
        self._end()
        sys.exit(128 + signum)


def _serve(listener: socket.socket) -> object:
    """Serve a store on a socket that listens; it begins after the forks, as it has threads."""
    from torch.distributed import TCPStore

    port = listener.getsockname()[1]
    return TCPStore(
        HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


# --- a rank ---------------------------------------------------------------------------------


def _enter(folder: str, env: dict[str, str], become_rank: Callable[[str], None]) -> None:
    """Become a rank in all that it shares with one that torchrun starts."""
    os.setsid()
    os.environ.update(env)
    os.makedirs(os.path.dirname(env["TORCHELASTIC_ERROR_FILE"]), exist_ok=True)
    become_rank(os.path.join(folder, "pipes"))
    # Touches what it shares with the launcher, and copies it now and not in the measured time.
    gc.collect()
    random = sys.modules.get("numpy.random")
    if random is not None:
        # Python's own generator is seeded anew after a fork; this one would be every rank's.
        random.seed()


def environment(rank: int, nproc: int, port: int, folder: str) -> dict[str, str]:
    """Return the variables by which torchrun tells a rank of a job on one node who it is."""
    asynchronous = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    return {
        **{name: str(rank) for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")},
        **{f"{kind}WORLD_SIZE": str(nproc) for kind in ("", "LOCAL_", "ROLE_")},
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "default",
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": os.path.basename(folder),
        "TORCHELASTIC_ERROR_FILE": os.path.join(folder, "torch", str(rank), "error.json"),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": asynchronous,
    }


def _run(script: list[str]) -> None:
    """Run a script as ``python -u SCRIPT [ARGUMENT]…`` does."""
    sys.argv, sys.orig_argv = script, [sys.executable, "-u", *script]
    sys.path.insert(0, os.path.dirname(os.path.realpath(script[0])))
    del sys.modules["rank_entry"]
    path = os.path.abspath(script[0])
    loader = SourceFileLoader("__main__", path)
    names = vars(_new_main())
    names.update(__file__=path, __cached__=None, __loader__=loader, __builtins__=builtins)
    if "__annotations__" in globals():  # as Python before 3.14 makes it
        names["__annotations__"] = {}
    try:
        exec(compile(loader.get_data(path), path, "exec", dont_inherit=True), names)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Without the frame of this function. Python itself then ends as after any script.
        below = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error.with_traceback(below), below)
        sys.exit(1)


def _new_main() -> types.ModuleType:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    return module


if __name__ == "__main__":
    main()
