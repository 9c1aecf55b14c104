"""What the launcher starts for each rank: it takes the rank's own pipes, then becomes the script.

Usage: ``rank_entry.py FOLDER PYTHON SCRIPT [ARGUMENT]…``. The folder holds, for each rank,
the named pipes ``RANK.stdout`` and ``RANK.stderr``, and one named ``ranks`` on which a rank
says who it is. Ranks are numbered within the node. Standard library only, and any Python 3.
"""

import json
import os
import signal
import sys


def main() -> None:
    """Take the pipes and become the script."""
    folder, python = sys.argv[1:3]
    become_rank(folder)
    os.execv(python, [python, "-u", *sys.argv[3:]])


def become_rank(folder: str) -> None:
    """Die with the launcher, take the pipes of the rank that the environment names, announce it."""
    rank = os.environ["LOCAL_RANK"]
    _die_with_parent()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        pipe = os.open(os.path.join(folder, rank + "." + name), os.O_WRONLY)
        os.dup2(pipe, descriptor)
        os.close(pipe)
    _announce(os.path.join(folder, "ranks"), rank)


def _announce(pipe: str, rank: str) -> None:
    """Say who this rank is, to whoever watches over it."""
    words = {
        "rank": int(rank),
        "pid": os.getpid(),
        "error_file": os.environ.get("TORCHELASTIC_ERROR_FILE", ""),
    }
    descriptor = os.open(pipe, os.O_WRONLY)
    # One write of less than PIPE_BUF bytes is never torn or mixed with another rank's.
    os.write(descriptor, json.dumps(words).encode() + b"\n")
    os.close(descriptor)


def _die_with_parent() -> None:
    """Be killed when the launcher is; Linux only."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    main()
