"""Stands in for the client of an engine: runs the command of a "container" on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

STATE = Path(__file__).resolve().parent / "state"


def run(arguments: list[str]) -> int:
    """Run what stands behind the image, as a group that ``rm`` can end."""
    flags = [word for word in arguments if word.startswith("--")]
    image, *command = arguments[len(flags) :]
    values: dict[str, list[str]] = {}
    for flag in flags:
        key, _, value = flag.partition("=")
        values.setdefault(key, []).append(value)
    if image == "absent":
        print("Unable to find image 'absent:latest' locally", file=sys.stderr)
        return 125
    env = dict(one.split("=", 1) for one in values["--env"])
    STATE.mkdir(exist_ok=True)
    pid = STATE / values["--name"][0]
    process = subprocess.Popen(
        [sys.executable, *command[1:]],
        env={**env, "PATH": os.environ["PATH"]},
        cwd=values["--workdir"][0],
        start_new_session=True,
    )
    pid.write_text(str(process.pid))
    status = process.wait()
    return status if status >= 0 else 128 - status


def remove(arguments: list[str]) -> int:
    """End the group of a "container"."""
    path = STATE / arguments[-1]
    if not path.exists():
        return 1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(path.read_text()), signal.SIGKILL)
    path.unlink()
    return 0


if __name__ == "__main__":
    actions = {"run": run, "rm": remove, "image": lambda _: 1}
    sys.exit(actions[sys.argv[1]](sys.argv[2:]))
