"""What a sandbox shows of the file system: a list of what is there, and nothing else."""

from __future__ import annotations

import functools
import glob
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from speedkit.core.errors import ExecutorError
from speedkit.core.paths import cache_dir
from speedkit.plugins.executors import machine
from speedkit.plugins.executors.environment import passed

SYSTEM = ("/usr", "/nix/store", "/gnu/store", "/run/opengl-driver", "/opt/rocm", "/opt/cuda")
"""Folders of the system that are shown, where they exist."""
LINKED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Folders of the system that are often links into ``/usr``."""
ETC = (
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    *("/etc/localtime", "/etc/timezone"),
)
"""What is shown of ``/etc``; the rest that jobs need is written for them."""
FOLDER_VARIABLES = ("CUDA_HOME", "CUDA_PATH", "ROCM_PATH", "ROCM_HOME")
"""Variables that name a folder which a job reads."""
COMPILER_VARIABLES = ("CC", "CXX")
"""Variables that name a compiler."""
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "nvcc", "ld")
"""Programs by which kernels are built. They are shown with the installation they belong to."""
CACHE_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Variables that name a folder which a job writes to."""
MAX_FOLDERS = 100
"""Folders of data that are looked through for links, on each level."""
_PACKAGE = Path(__file__).resolve().parents[2]
_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
_PARTS = ("bin", "include", "lib", "lib64", "pyvenv.cfg", "share")
_QUESTION = """
import json, sys
roots = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
print(json.dumps({"executable": sys.executable, "roots": roots, "path": sys.path}))
"""


@dataclass(frozen=True)
class View:
    """What a job needs to see and what it must not.

    Attributes:
        workspace: the folder that the job runs in.
        readable: further paths that it reads.
        writable: further folders that it writes to.
        hidden: what is not shown even if it lies in a folder that is.
    """

    workspace: Path
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()


@dataclass
class Shown:
    """Paths of the sandbox, and what stands there; a later kind lies over an earlier one.

    Attributes:
        read_only: source by path.
        masked: folders shown as empty.
        links: target by path.
        given: source by path, of what the job itself asked for; an outer path comes before one
            in it, and one without a source is a folder shown as empty.
        writable: source by path.
    """

    read_only: dict[str, str] = field(default_factory=dict)
    masked: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    writable: dict[str, str] = field(default_factory=dict)


def shown(view: View, python: str, env: Mapping[str, str]) -> Shown:
    """Return what a job sees of the machine's files.

    Args:
        python: the interpreter that runs the job.
        env: the job's environment, some of whose variables name folders.
    """
    made = Shown()
    for path in [*_system(), *ETC, *_tools(env), *_interpreter(python, view)]:
        _show(made.read_only, path)
    for path in LINKED:
        if os.path.islink(path):
            made.links[path] = os.readlink(path)
    made.links.update(_links(interpreter(python)["executable"], made))
    hidden = [*view.hidden, *_hidden(python, view)]
    made.masked = sorted(set(_masked(made.read_only, hidden)))
    _give(made, [*map(str, view.readable), *_linked_from(view.workspace)], hidden)
    for folder in [view.workspace, *view.writable]:
        made.writable[os.path.abspath(folder)] = os.path.realpath(folder)
    return made


def devices() -> list[str]:
    """Return the device files of accelerators."""
    return sorted(path for pattern in _DEVICES for path in glob.glob(pattern))


def caches(env: Mapping[str, str]) -> list[Path]:
    """Return the folders that a job writes what it compiles to."""
    return [Path(env[name]) for name in CACHE_VARIABLES if os.path.isabs(env.get(name, ""))]


def folders_above(paths: Iterable[str]) -> list[str]:
    """Return all parents of some paths but the root, the outer ones first."""
    return sorted({str(parent) for path in paths for parent in list(Path(path).parents)[:-1]})


@functools.lru_cache(maxsize=8)
def interpreter(python: str) -> Mapping[str, Any]:
    """Return what an interpreter says of its ``executable``, ``roots`` and module ``path``.

    Raises:
        ExecutorError: it does not run.
    """
    try:
        done = subprocess.run(
            [python, "-I", "-c", _QUESTION],
            env=passed(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=machine.PROBE_S,
            check=True,
        )
        return dict(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ExecutorError(f"the interpreter {python} does not run: {error}") from error


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


# --- what is shown --------------------------------------------------------------------------


def _show(
    paths: dict[str, str], path: str | Path, under: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Add a path if it exists, under its own name and, as links may lead there, its real one.

    Args:
        under: paths that are shown already. A name in one of them that is a link there is
            seen through that link, and nothing can be laid over it.
    """
    real, name = os.path.realpath(path), os.path.abspath(path)
    if not os.path.exists(real):
        return
    is_linked = os.path.islink("/" + name.split("/")[1]) or _is_seen(name, under)
    for place in (real,) if is_linked else (name, real):
        if not _is_seen(place, paths):
            paths[place] = real


def _is_seen(path: str, shown: Mapping[str, str]) -> bool:
    """Whether a path lies in one that is shown, with none in between that is shown as empty."""
    nearest = max((place for place in shown if is_below(path, place)), key=len, default="")
    return bool(shown.get(nearest))


def _give(made: Shown, paths: Sequence[str], hidden: Iterable[Path]) -> None:
    """Show what the job asked for; of what is hidden in it, only what it asked for as well."""
    asked = [place for path in paths for place in (path, *_links_out_of(path))]
    for path in asked:
        _show(made.given, path, made.read_only)
    made.given.update(dict.fromkeys(_masked(made.given, hidden), ""))
    for path in asked:
        _show(made.given, path, made.read_only)
    made.given = dict(sorted(made.given.items()))


def _system() -> list[str]:
    return [*SYSTEM, *(path for path in LINKED if not os.path.islink(path))]


def _tools(env: Mapping[str, str]) -> Iterator[str]:
    """Libraries and compilers, as variables name them."""
    named = [env.get(name, "") for name in FOLDER_VARIABLES]
    for path in [*named, *env.get("LD_LIBRARY_PATH", "").split(":"), *_compilers(env)]:
        if os.path.isabs(path) and not _is_too_wide(path):
            yield path


def _compilers(env: Mapping[str, str]) -> Iterator[str]:
    """The folders above ``bin`` of compilers: of those in the user's home the named ones alone."""
    named = [
        name for name in (env.get(v, "").partition(" ")[0] for v in COMPILER_VARIABLES) if name
    ]
    home = os.path.realpath(os.path.expanduser("~"))
    for name in [*named, *COMPILERS]:
        found = shutil.which(name, path=env.get("PATH", os.defpath))
        for path in (found, os.path.realpath(found)) if found else ():
            root = os.path.dirname(os.path.dirname(path))
            if name in named or not is_below(os.path.realpath(root), home):
                yield root


def _interpreter(python: str, view: View) -> Iterator[str]:
    """What the interpreter is made of: its roots, and the folders of modules elsewhere."""
    facts = interpreter(python)
    for root in sorted(set(facts["roots"])):
        if _is_too_wide(root) or is_below(os.path.realpath(view.workspace), root):
            yield from (os.path.join(root, part) for part in _PARTS)
        else:
            yield root
    for path in filter(os.path.isabs, facts["path"]):
        if not _is_too_wide(path) and not _is_checkout(path):
            yield path


def _is_too_wide(path: str) -> bool:
    """Whether a folder is the root or the user's own, or lies above that."""
    return is_below(os.path.expanduser("~"), os.path.realpath(path))


def _is_checkout(path: str) -> bool:
    """Whether a folder of modules is one of sources that hold speedkit itself."""
    is_installed = os.path.basename(path) in ("site-packages", "dist-packages")
    return not is_installed and os.path.exists(os.path.join(path, "speedkit", "__init__.py"))


def _links(executable: str, made: Shown) -> Iterator[tuple[str, str]]:
    """The links that lead from an interpreter's path to its file, if they are not shown yet."""
    path = executable
    for _ in range(40):
        if not os.path.islink(path):
            return
        target = os.readlink(path)
        folder, name = os.path.split(path)
        names = (path, os.path.join(os.path.realpath(folder), name))
        if not any(_is_seen(name, made.read_only) for name in names):
            yield path, target
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))


def _linked_from(workspace: Path) -> Iterator[str]:
    """What the links in a fresh workspace lead to; it has no links but the controller's."""
    for path, target in _links_in(str(workspace)):
        yield os.path.join(os.path.dirname(path), target)


def _links_out_of(folder: str, depth: int = 2) -> Iterator[str]:
    """What links in a folder of data lead to, if that lies elsewhere, as in a store of blobs."""
    # What the user may not read, as `lost+found` of a disk, no job can read either.
    if depth < 0 or not os.path.isdir(folder) or not os.access(folder, os.R_OK | os.X_OK):
        return
    for path, _ in _links_in(folder):
        real = os.path.realpath(path)
        if not is_below(real, os.path.realpath(folder)):
            yield real
    with os.scandir(folder) as entries:
        below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for path in below[:MAX_FOLDERS]:
        yield from _links_out_of(path, depth - 1)


def _links_in(folder: str) -> list[tuple[str, str]]:
    with os.scandir(folder) as entries:
        return [(entry.path, os.readlink(entry.path)) for entry in entries if entry.is_symlink()]


# --- what is hidden -------------------------------------------------------------------------


def _hidden(python: str, view: View) -> Iterator[Path]:
    """The records, other nodes, the history of the run, and what the user has imported."""
    yield _PACKAGE
    yield from (Path(path, "speedkit") for path in interpreter(python)["path"] if path)
    yield cache_dir()
    yield view.workspace.parent
    yield from (path for path in view.workspace.parents if (path / "run.toml").exists())


def _masked(shown: Mapping[str, str], hidden: Iterable[Path]) -> list[str]:
    """Where hidden folders would be seen in what is shown."""
    return [
        os.path.join(place, os.path.relpath(path, source))
        for path in map(os.path.realpath, hidden)
        for place, source in shown.items()
        if is_below(path, source) and path != source and os.path.isdir(path)
    ]
