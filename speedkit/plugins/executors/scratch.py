"""The private folder of a job: its pipes, home and temporary files.

Modules are imported where they are used: a supervisor seldom needs them, and they would
take a quarter of its start.
"""

from __future__ import annotations

import contextlib
import os

PREFIX = "speedkit-job-"
"""How the folder's name begins."""


def make() -> str:
    """Make a folder and return its path, a short one, as sockets below it need.

    Raises:
        OSError: there is no room, or no right to.
    """
    import tempfile

    path = tempfile.mkdtemp(prefix=PREFIX)
    for name in ("pipes", "home", "tmp"):
        os.mkdir(os.path.join(path, name), 0o700)
    return path


def remove(path: str) -> None:
    """Remove such a folder, whatever a job has put there or closed; nothing else is removed."""
    if not os.path.basename(path).startswith(PREFIX) or os.path.islink(path):
        return
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    if os.path.exists(path):
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, 0o700)
        shutil.rmtree(path, ignore_errors=True)
