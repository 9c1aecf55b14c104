"""The environment of aider: found, or made at a pinned version."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speedkit.core.errors import SpeedkitError, UsageError
from speedkit.core.files import read_tail, write_json
from speedkit.core.paths import cache_dir
from speedkit.core.redact import secret_variables

VERSION = "0.86.2"
"""The version of aider-chat that is installed."""
OLDEST, NEWEST = (3, 10), (3, 12)
"""The versions of Python that it supports."""
INSTALL_S = 3600
_STAMP = "complete.json"
_ASK_VERSION = "import sys; print(sys.version_info[0], sys.version_info[1])"


@dataclass(frozen=True)
class Found:
    """An aider that can be used.

    Attributes:
        source: ``option``, ``installed`` or ``PATH``.
    """

    executable: Path
    source: str


def environment_dir() -> Path:
    """Return the folder of the environment that :func:`install` makes."""
    return cache_dir() / "aider" / VERSION


def installed() -> Path | None:
    """Return the executable of the environment, None unless it was made to its end."""
    folder = environment_dir()
    executable = folder / "bin" / "aider"
    # A virtual environment works only where it was made.
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made_here = isinstance(stamp, dict) and stamp.get("folder") == str(folder)
    return executable if made_here and os.access(executable, os.X_OK) else None


def find(option: str | None = None) -> Found:
    """Return the aider to use: the one asked for, else the installed one, else that of PATH.

    Raises:
        UsageError: there is none.
    """
    if option is not None:
        chosen = shutil.which(os.path.expanduser(option))
        if chosen is None:
            raise UsageError(f"no program {option} to be run as aider; correct coder.executable")
        return Found(Path(chosen).absolute(), "option")
    if own := installed():
        return Found(own, "installed")
    if common := shutil.which("aider"):
        return Found(Path(common).absolute(), "PATH")
    raise UsageError(
        "there is no aider; make its environment with `speedkit aider install`, or name the"
        " program with -o coder.executable=FILE"
    )


# --- making it --------------------------------------------------------------------------


def install(python: str | None = None) -> Path:
    """Make the environment unless it is there, and return the executable.

    What an interrupted installation left behind is made anew; the downloads are in pip's
    cache. Two installations at once wait for each other.

    Args:
        python: an interpreter that aider supports; by default one is looked for.

    Raises:
        UsageError: there is no such interpreter.
        SpeedkitError: the environment cannot be made.
    """
    with _alone(environment_dir().parent):
        return installed() or _make(choose_python(python))


def _make(python: str) -> Path:
    folder = environment_dir()
    log = folder.parent / "install.log"
    log.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    own = str(folder / "bin" / "python")
    _run([python, "-I", "-m", "venv", str(folder)], log)
    _run([own, "-I", "-m", "pip", "install", "--no-input", f"aider-chat=={VERSION}"], log)
    _run([own, "-I", "-m", "aider", "--version"], log)
    write_json(folder / _STAMP, {"version": VERSION, "python": python, "folder": str(folder)})
    if (executable := installed()) is None:
        raise SpeedkitError(f"the environment in {folder} has no program `aider`; see {log}")
    return executable


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("ab") as sink:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd=log.parent,
                timeout=INSTALL_S,
                check=False,
            )
            reason = f"exit status {done.returncode}" if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
    if reason:
        last = [line for line in read_tail(log).splitlines() if line.strip()][-1:]
        words = last[0].strip() if last else reason
        raise SpeedkitError(f"aider's environment cannot be made: {words} (all of it: {log})")


def _environment() -> dict[str, str]:
    """The environment of the installer: without keys, and without what bends Python."""
    bent = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
    hidden = bent | set(secret_variables(os.environ))
    return {name: value for name, value in os.environ.items() if name not in hidden}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "install.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the interpreter --------------------------------------------------------------------


def choose_python(option: str | None = None) -> str:
    """Return an interpreter that aider supports.

    Raises:
        UsageError: the one asked for does not fit, or none is found.
    """
    needed = f"aider {VERSION} needs Python {_dotted(OLDEST)} to {_dotted(NEWEST)}"
    if option is not None:
        version = python_version(option)
        if version is None:
            raise UsageError(f"{option} is no Python interpreter that can be started")
        if not OLDEST <= version <= NEWEST:
            raise UsageError(f"{needed}, but {option} is {_dotted(version)}")
        return option
    for candidate in _candidates():
        version = python_version(candidate)
        if version is not None and OLDEST <= version <= NEWEST:
            return candidate
    this = _dotted(sys.version_info[:2])
    raise UsageError(f"{needed}, and this is {this}; name another one with --python")


def _candidates() -> Iterator[str]:
    yield sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            yield found


def python_version(python: str) -> tuple[int, int] | None:
    """Return major and minor version of an interpreter, None if it cannot be started."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _ASK_VERSION],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        major, minor = done.stdout.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
