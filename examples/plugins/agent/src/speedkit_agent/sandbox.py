"""Shows an agent its own folder and the programs of the machine, by bubblewrap."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

KEPT_APART = (
    *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    *("--unshare-user-try", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
    *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
)
"""All but the network, which an agent needs, is its own; the machine cannot be written to."""
PLACES = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/run", "/mnt", "/media", "/srv")
"""Where things stand that are no business of an agent, besides the user's home."""


@functools.cache
def why_not() -> str:
    """Return why no sandbox can be made here; empty if one can."""
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap is not installed"
    done = subprocess.run([program, *KEPT_APART, "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or "bubblewrap fails"


def enclosed(
    command: Sequence[str], folder: Path, hidden: Iterable[Path], readable: Iterable[Path]
) -> list[str]:
    """Return a command that runs another one in a sandbox.

    Args:
        folder: which alone can be written to.
        hidden: folders that are empty inside, besides :data:`PLACES` and the home.
        readable: what can be read although it stands in a hidden folder.
    """
    shown = [str(path.resolve()) for path in readable]
    options = [word for path in _empty(hidden) for word in ("--tmpfs", path)]
    options += [word for path in shown for word in ("--ro-bind", path, path)]
    options += ["--bind", str(folder), str(folder), "--chdir", str(folder / "work")]
    return [shutil.which("bwrap") or "bwrap", *KEPT_APART, *options, "--", *command]


def is_hidden(path: Path, hidden: Iterable[Path], readable: Iterable[Path]) -> bool:
    """Whether a path cannot be seen inside."""
    path = path.resolve()
    if any(path.is_relative_to(shown.resolve()) for shown in readable):
        return False
    return any(path.is_relative_to(place) for place in _empty(hidden))


def _empty(hidden: Iterable[Path]) -> list[str]:
    """The folders that are empty inside, outer ones first; never the whole machine."""
    paths = {Path(place).resolve() for place in (*PLACES, Path.home(), *hidden)}
    return sorted(str(p) for p in paths if p.is_dir() and p != Path("/"))
