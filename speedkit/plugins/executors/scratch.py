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


def is_scratch(path: str) -> bool:
    """Whether a path is, or was, that of such a folder."""
    return os.path.basename(path).startswith(PREFIX) and not os.path.islink(path)


def remove(path: str) -> None:
    """Remove such a folder, whatever a job has put there or closed; nothing else is removed."""
    if not is_scratch(path):
        return
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    if os.path.exists(path):
        _open_up(path)
        shutil.rmtree(path, ignore_errors=True)


def _open_up(path: str) -> None:
    """Let folders be read and emptied that a job has closed; none is entered by a link."""
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
    for folder, names, _ in os.walk(path):
        for below in (os.path.join(folder, name) for name in names):
            if not os.path.islink(below):
                with contextlib.suppress(OSError):
                    os.chmod(below, 0o700)
