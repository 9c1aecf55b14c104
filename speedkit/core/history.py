"""The run directory: configuration, journal, git history and logs of one search.

::

    RUN/
      run.toml        the resolved configuration and manifest; never rewritten
      events.jsonl    the journal, the truth about what has happened
      repo/           bare git repository; node k is refs/heads/node/k
      nodes/000k/     logs, prompts, replies and metrics of node k
      work/           workspaces of running jobs
      cache/          what torch compiled, shared by the jobs of the run
      lock            held by the one controller
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from speedkit.core.errors import RunDirectoryError, SpeedkitError, UsageError
from speedkit.core.files import one_line, printable, write_atomic
from speedkit.core.journal import Journal, read_events
from speedkit.core.node import Node

SCHEMA = 1
EPOCH = 946684800
"""Seconds; commits carry this date plus the node's id, so that equal searches give equal
hashes. When things happened stands in the journal."""
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# The configuration of a repository may name a server to get missing objects from, and a
# program that talks to it. A run directory may come from a stranger.
_ALONE = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}


class RunDirectory:
    """A run directory, read by many and written by one.

    Args:
        path: the directory.

    Raises:
        RunDirectoryError: it is none, or was written by a newer speedkit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path / "run.toml")
        self.run_id: str = self.manifest["run_id"]

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any]) -> RunDirectory:
        """Make a new run directory; ``run.toml`` comes last, so that a kill leaves none.

        Args:
            manifest: what goes into ``run.toml``; must hold ``run_id``.

        Raises:
            RunDirectoryError: the path exists and is not empty.
        """
        _check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            _check_free(path)  # another process may have been quicker
            (path / "nodes").mkdir(exist_ok=True)
            _init_repo(path / "repo")
            text = tomli_w.dumps({"schema": SCHEMA, **_without_none(manifest)})
            write_atomic(path / "run.toml", text)
        return cls(path)

    @property
    def journal_path(self) -> Path:
        """The file of events."""
        return self.path / "events.jsonl"

    @property
    def work_dir(self) -> Path:
        """The folder of workspaces."""
        return self.path / "work"

    def node_dir(self, node_id: int) -> Path:
        """Return the folder of a node's logs."""
        return self.path / "nodes" / f"{node_id:04d}"

    def events(self) -> list[dict[str, Any]]:
        """Return what has happened so far."""
        return read_events(self.journal_path) if self.journal_path.exists() else []

    def is_held(self) -> bool:
        """Whether a controller is at work on the run."""
        return is_held(self.path)

    @contextmanager
    def writing(self) -> Iterator[Journal]:
        """Hold the run directory as its one controller, and its journal open.

        Raises:
            RunDirectoryError: another controller holds it; the message says which.
        """
        with _lock(self.path) as fd:
            _write_holder(fd)
            _sweep_locks(self.path / "repo")
            journal = Journal(self.journal_path)
            try:
                yield journal
            finally:
                journal.close()


class GitHistory:
    """The bare repository of a run: one commit a node, its outcome in a note.

    Objects are written by GitPython in this process, without an index, a work tree or a
    git process; every object is on disk before a ref names it. One thread at a time: the
    reader is a pipe to a single ``git cat-file``.

    Raises:
        RunDirectoryError: there is no repository.
    """

    NOTES = "refs/notes/commits"

    def __init__(self, path: Path) -> None:
        import git
        from gitdb import LooseObjectDB

        try:
            self.repo = git.Repo(path)
        except (git.exc.NoSuchPathError, git.exc.InvalidGitRepositoryError):
            raise RunDirectoryError(f"{path} is no git repository; the code is lost") from None
        self.repo.git.update_environment(**_ALONE)
        self.git_dir = Path(self.repo.git_dir)
        # The repository's own database starts a git process for every object that it stores.
        self._objects = LooseObjectDB(str(self.git_dir / "objects"))
        self._lock = threading.Lock()
        self._unsynced: list[str] = []
        self._fanout: dict[bytes, dict[str, bytes]] = {}
        self._folders: dict[bytes, bytes] = {}
        self._notes_loaded = False

    def commit(
        self, node: Node, files: Mapping[str, str], parent: str | None, other: str | None = None
    ) -> str:
        """Commit the files of a node and set its ref; return the hex id.

        Args:
            parent: commit of the parent node, None for node 0.
            other: commit of a second parent, for a merge.

        Raises:
            RunDirectoryError: a name is none of a file in the top folder.
        """
        _check_names(files)
        with self._lock:
            entries = [(self._blob(t.encode("utf-8")), 0o100644, n) for n, t in files.items()]
            tree = self._tree(entries)
            parents = [one for one in (parent, other) if one]
            commit = self._commit(tree, commit_message(node), parents, EPOCH + node.id)
            self._sync()
        self.set_ref(node.id, commit)
        return commit

    def set_ref(self, node_id: int, commit: str) -> None:
        """Let ``refs/heads/node/<id>`` name a commit."""
        name = f"refs/heads/node/{node_id}"
        if self._loose(name) != commit:
            self._write_ref(name, commit)

    def files(self, commit: str) -> dict[str, str]:
        """Return the text of the files of a commit, by name.

        Raises:
            RunDirectoryError: the history has no such commit, or is damaged.
        """
        from git.exc import GitError
        from gitdb.exc import ODBError

        _check_commit(commit)
        try:
            with self._lock:
                blobs = self.repo.commit(commit).tree.blobs
                return {str(b.path): b.data_stream.read().decode("utf-8") for b in blobs}
        except (GitError, ODBError, ValueError) as error:
            why = one_line(error)[:200]
            raise RunDirectoryError(f"{self.git_dir} cannot be read: {why}") from None

    def has_note(self, commit: str) -> bool:
        """Whether a text is attached to a commit."""
        _check_commit(commit)
        with self._lock:
            self._load_notes()
            return commit[2:] in self._fanout.get(bytes.fromhex(commit[:2]), {})

    def annotate(self, commit: str, text: str, at: int) -> None:
        """Attach a text to a commit, where ``git log`` shows it.

        Args:
            at: a small number that grows, used as the date of the note's commit, which
                has no parent, so that ``git log --all`` shows one line of it.
        """
        with self._lock:
            self._load_notes()
            prefix = bytes.fromhex(commit[:2])
            self._fanout.setdefault(prefix, {})[commit[2:]] = self._blob(text.encode("utf-8"))
            root = self._notes_root(prefix)
            note = self._commit(root, "Outcomes of nodes\n", [], EPOCH + at)
            self._unsynced.clear()  # notes can be made again from the journal
        self._write_ref(self.NOTES, note)

    def diff(self, old: str, new: str, *, stat: bool = False) -> str:
        """Return the unified diff between two commits, or its statistics.

        Raises:
            RunDirectoryError: the history has no such commits, or is damaged.
        """
        from git.exc import GitCommandError

        for commit in (old, new):
            _check_commit(commit)
        flags = [
            "--text",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            *(["--stat"] if stat else []),
        ]
        try:
            diff: str = self.repo.git.diff(*flags, old, new)
        except GitCommandError as error:
            why = _last_words(error)
            raise RunDirectoryError(f"{self.git_dir} cannot be read: {why}") from None
        return diff

    def close(self) -> None:
        """Free what GitPython holds."""
        self.repo.close()

    # --- objects and refs ---------------------------------------------------------------

    def _store(self, kind: str, data: bytes) -> bytes:
        from gitdb import IStream

        sha: bytes = self._objects.store(IStream(kind, len(data), io.BytesIO(data))).binsha
        self._unsynced.append(sha.hex())
        return sha

    def _sync(self) -> None:
        """Wait until new objects are on disk; git itself would not."""
        for sha in self._unsynced:
            fd = os.open(self.git_dir / "objects" / sha[:2] / sha[2:], os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        self._unsynced.clear()

    def _blob(self, data: bytes) -> bytes:
        return self._store("blob", data)

    def _tree(self, entries: list[tuple[bytes, int, str]]) -> bytes:
        from git.objects.fun import tree_to_stream

        stream = io.BytesIO()
        tree_to_stream(sorted(entries, key=lambda e: e[2]), stream.write)
        return self._store("tree", stream.getvalue())

    def _commit(self, tree: bytes, message: str, parents: list[str], at: int) -> str:
        author = f"speedkit <speedkit@localhost> {at} +0000"
        lines = [f"tree {tree.hex()}", *(f"parent {p}" for p in parents)]
        lines += [f"author {author}", f"committer {author}", "", message]
        return self._store("commit", "\n".join(lines).encode("utf-8")).hex()

    def _ref(self, name: str) -> str | None:
        return self._loose(name) or self._packed(name)

    def _loose(self, name: str) -> str | None:
        path = self.git_dir / name
        return path.read_text(encoding="ascii", errors="replace").strip() if path.exists() else None

    def _packed(self, name: str) -> str | None:
        reference = next((r for r in self.repo.refs if r.path == name), None)
        return reference.commit.hexsha if reference else None

    def _write_ref(self, name: str, commit: str) -> None:
        path = self.git_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, commit + "\n")

    # --- notes: a tree of 256 folders, named by the first byte of the commit ---------------

    def _load_notes(self) -> None:
        if self._notes_loaded:
            return
        self._notes_loaded = True
        from git.exc import GitError
        from gitdb.exc import ODBError

        try:
            self._read_notes()
        except (GitError, ODBError, ValueError):  # damaged; they can be made again
            self._fanout.clear()
            self._folders.clear()

    def _read_notes(self) -> None:
        head = self._ref(self.NOTES)
        for folder in self.repo.commit(head).tree.trees if head else ():
            prefix = bytes.fromhex(folder.name)
            self._fanout[prefix] = {b.name: b.binsha for b in folder.blobs}
            self._folders[prefix] = folder.binsha

    def _notes_root(self, changed: bytes) -> bytes:
        blobs = [(sha, 0o100644, name) for name, sha in self._fanout[changed].items()]
        self._folders[changed] = self._tree(blobs)
        return self._tree([(sha, 0o40000, p.hex()) for p, sha in self._folders.items()])


def commit_message(node: Node) -> str:
    """Return the hypothesis with trailers, as plain git shows it."""
    subject, _, body = printable(node.hypothesis).strip().partition("\n")
    subject = subject if len(subject) <= 100 else subject[:99] + "…"
    trailers = {
        "Node": node.id,
        "Parent": "none" if node.parent is None else node.parent,
        "Other": node.other,
        "Stage": node.stage,
        "Coder": node.coder or "none",
        "Model": node.model,
    }
    last = "\n".join(f"{k}: {one_line(v)}" for k, v in trailers.items() if v is not None)
    parts = (subject or f"Node {node.id}", body.strip(), last)
    return "\n\n".join(part for part in parts if part) + "\n"


def _check_free(path: Path) -> None:
    """Refuse a folder that holds a run, or anything but what making one may have left."""
    if (path / "run.toml").exists():
        raise RunDirectoryError(f"{path} is a run already; to go on: --resume {path}")
    if path.exists() and not all(_may_be_left(p.name) for p in path.iterdir()):
        raise RunDirectoryError(f"{path} is not empty; choose another --out")


def _may_be_left(name: str) -> bool:
    return name in ("repo", "nodes", "work", "lock") or name.startswith(".run.toml.")


def _init_repo(path: Path) -> None:
    import git

    try:
        git.Repo.init(path, bare=True, initial_branch="node/0").close()
    except git.exc.GitCommandError as error:
        raise SpeedkitError(f"{path} cannot be made: {_last_words(error)}") from None


def _last_words(error: Exception) -> str:
    """Return what git said that was fatal, on one line, or how it ended."""
    said = printable(str(getattr(error, "stderr", ""))).rpartition("fatal: ")[2]
    ended = f"git failed with status {getattr(error, 'status', 'unknown')}"
    return one_line(said).rstrip("' ")[:200] or ended


def _check_commit(commit: str) -> None:
    if not _COMMIT.fullmatch(commit):  # git would take an option for one
        raise RunDirectoryError(f"the journal names no commit: {commit[:60]!r}")


def _check_names(names: Iterable[str]) -> None:
    """Refuse what is no file of the top folder: jobs and git get files by these names."""
    for name in names:
        wrong = name.lower() in ("", ".", "..", ".git") or "/" in name or "\\" in name
        if wrong or printable(name) != name or "\n" in name:
            raise RunDirectoryError(
                f"a node cannot have a file named {name[:60]!r}; a coder gives names of files "
                "in the top folder"
            )


# --- run.toml, lock -----------------------------------------------------------------------


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        values = tomli.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(f"{path.parent} is no run directory: {_lack(path)}") from None
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from None
    schema = values.get("schema")
    if not isinstance(schema, int) or not isinstance(values.get("run_id"), str):
        raise RunDirectoryError(f"{path} is not the run.toml of a run")
    if schema > SCHEMA:
        raise RunDirectoryError(
            f"{path.parent} was written by a newer speedkit (format {schema}, this one knows "
            f"{SCHEMA}); upgrade speedkit"
        )
    for table in ("config", "components", "scripts"):
        if not isinstance(values.get(table), dict):
            raise RunDirectoryError(f"{path} is damaged: it has no table [{table}]")
    if not isinstance(values["config"].get("task"), str):
        raise RunDirectoryError(f"{path} is damaged: [config] names no task")
    return values


def _lack(path: Path) -> str:
    """Return why there is no such ``run.toml``, and where one is."""
    folder = path.parent
    if not folder.is_dir():
        return "it is a file" if folder.exists() else "there is no such folder"
    inside = min((*folder.glob("*/run.toml"), *folder.glob("*/*/run.toml")), default=None)
    return "it has no run.toml" + (f"; a run in it is {inside.parent}" if inside else "")


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop None values, which TOML does not have, in tables and in lists of tables."""
    return {key: _kept(value) for key, value in values.items() if value is not None}


def _kept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_none(value)
    return [_kept(item) for item in value] if isinstance(value, list) else value


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder of runs as its one controller.

    Raises:
        RunDirectoryError: another controller holds it; the message says which.
    """
    with _lock(folder) as fd:
        _write_holder(fd)
        yield


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Hold the lock of a run directory; the kernel frees it when this process dies."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _try_lock(fd):
            raise RunDirectoryError(f"{folder} is in use: {_holder(fd)}")
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """Take a lock that nobody holds; who only looks holds it for a moment, see :func:`is_held`."""
    for _ in range(5):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def is_held(folder: Path) -> bool:
    """Whether a controller is at work on a run directory; looking at it disturbs nobody."""
    try:
        fd = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _write_holder(fd: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(holder).encode(), 0)


def _holder(fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} has held it since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process holds it"


def _sweep_locks(repo: Path) -> None:
    """Remove lock and temporary files that a killed writer left; the run lock is held."""
    for pattern in ("*.lock", "refs/**/*.lock", "refs/**/.*.*", "objects/obj*", "objects/*/tmp*"):
        for path in repo.glob(pattern):
            if path.is_file():
                path.unlink()


def default_run_path(task: str) -> Path:
    """Return a new path below ``runs/`` for a run of a task."""
    stem = re.sub(r"[^\w-]+", "", task.replace("/", "-")).strip("-") or "run"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / f"{stem}-{stamp}"
    paths = (base if k == 0 else base.with_name(f"{base.name}-{k}") for k in range(100))
    free = next((p for p in paths if not p.exists()), None)
    if free is None:
        raise UsageError("no free run directory below runs/; give one with --out")
    return free


def new_run_path(task: str) -> Path:
    """Make a folder for a run of a task, where :func:`default_run_path` says, and return it.

    Processes that start in the same second get a folder each.
    """
    while True:
        path = default_run_path(task)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
