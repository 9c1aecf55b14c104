"""Folders that a job writes: its private one with pipes, home and temporary files, and others.

Modules are imported where they are used: a supervisor seldom needs them, and they would
take a quarter of its start.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

PREFIX = "speedkit-job-"
"""How the folder's name begins."""
LOCKED = "locked"
"""What is in a folder that its maker keeps locked while it lives."""
MAX_DEPTH = 64
"""Folders below one another that are left where they are."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextlib.contextmanager
def hold() -> Iterator[str]:
    """Have a folder for the time of the block; gives its path, a short one, as sockets need.

    It is locked meanwhile, and the kernel unlocks it when this process dies: see :func:`sweep`.

    Raises:
        OSError: there is no room, or no right to.
    """
    import tempfile

    path = tempfile.mkdtemp(prefix=PREFIX)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where there are no locks, it is not swept either
            stack.enter_context(_locked(path))
            os.mkdir(os.path.join(path, LOCKED))
        stack.callback(remove, path)
        for name in ("pipes", "home", "tmp"):
            os.mkdir(os.path.join(path, name), 0o700)
        yield path


def sweep() -> None:
    """Remove the folders whose makers were killed, and had nobody yet to remove them."""
    import tempfile

    paths = []
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        paths = [entry.path for entry in entries if entry.name.startswith(PREFIX)]
    for path in paths:
        with contextlib.suppress(OSError):
            is_own = os.lstat(path).st_uid == os.geteuid()
            if is_own and os.path.lexists(os.path.join(path, LOCKED)):
                with _locked(path):
                    remove(path)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Lock a folder for the time of the block.

    Raises:
        OSError: it is locked, or cannot be.
    """
    import fcntl

    descriptor = os.open(path, _FOLDER)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_scratch(path: str) -> bool:
    """Whether a path is, or was, that of such a folder."""
    return os.path.basename(path).startswith(PREFIX) and not os.path.islink(path)


def remove(path: str) -> None:
    """Remove such a folder, whatever a job has put there or closed; nothing else is removed."""
    if not is_scratch(path):
        return
    import shutil

    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if os.path.exists(path):
        make_removable(path)
        shutil.rmtree(path, ignore_errors=True)


def make_removable(path: str) -> None:
    """Let a folder that a job has written be removed by plain means.

    Folders in it that were closed are opened. Those that lie so deep that a recursion would not
    reach their end are moved up into the folder itself. No link is followed.
    """
    with contextlib.suppress(OSError), _opened(path, None) as root:
        deep = _settle(root, root, 0)
        while deep:
            with contextlib.suppress(OSError), _opened(deep.pop(), root) as folder:
                deep += _settle(folder, root, 1)


def _settle(folder: int, root: int, depth: int) -> list[str]:
    """Open what is below a folder; return new names in ``root`` of what lay too deep."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    deep: list[str] = []
    for name in names:
        with contextlib.suppress(OSError), _opened(name, folder) as inner:
            if depth < MAX_DEPTH:
                deep += _settle(inner, root, depth + 1)
            else:
                deep.append(f"deep-{os.urandom(8).hex()}")
                os.rename(name, deep[-1], src_dir_fd=folder, dst_dir_fd=root)
    return deep


@contextlib.contextmanager
def _opened(name: str, folder: int | None) -> Iterator[int]:
    """Open a folder, after its permissions have been changed so that its owner may."""
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    except PermissionError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise
        os.chmod(name, 0o700, dir_fd=folder)
        descriptor = os.open(name, _FOLDER, dir_fd=folder)
    try:
        if os.fstat(descriptor).st_mode & 0o700 != 0o700:
            os.fchmod(descriptor, 0o700)
        yield descriptor
    finally:
        os.close(descriptor)
