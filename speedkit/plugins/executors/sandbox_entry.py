"""What the sandbox starts: it gives up the rights it still has, then becomes the job.

Usage: ``sandbox_entry.py FACTS PROGRAM [ARGUMENT]…``. The facts are a JSON object: ``pipe``,
a named pipe on which it is said that the sandbox stands; ``home``, a folder to make; ``folder``,
that to run in; ``uid``, ``gid`` and ``groups`` to run under, or null to stay who one is;
``limits``, numbers by the name of a limit of the ``resource`` module. Standard library only, and
any Python 3.
"""

import json
import os
import resource
import sys


def main() -> None:
    """Give up rights, say that the sandbox stands, become the job."""
    facts = json.loads(sys.argv[1])
    if facts["uid"] is not None:
        os.setgroups(facts["groups"])
        os.setgid(facts["gid"])
        os.setuid(facts["uid"])
    if os.getuid() == 0 or os.geteuid() == 0:
        sys.exit("the sandbox would run the job as root")
    # Not before, as root has no right any more to enter what belongs to that user.
    os.chdir(facts["folder"])
    os.environ["PWD"] = facts["folder"]
    os.umask(0o022)
    os.makedirs(facts["home"], 0o700, exist_ok=True)
    # After the change of user, whose processes the limit of processes counts.
    for name, value in facts["limits"].items():
        _limit(getattr(resource, name), value)
    _announce(facts["pipe"])
    os.execv(sys.argv[2], sys.argv[2:])


def _limit(name: int, value: int) -> None:
    """Lower a limit; what is lower already stays."""
    hard = resource.getrlimit(name)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(name, (value, value))


def _announce(pipe: str) -> None:
    descriptor = os.open(pipe, os.O_WRONLY)
    os.write(descriptor, json.dumps({"pid": os.getpid()}).encode() + b"\n")
    os.close(descriptor)


if __name__ == "__main__":
    main()
