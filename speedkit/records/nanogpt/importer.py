"""Brings the scripts of the records from their git history into the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from speedkit.core.errors import FamilyError, UsageError
from speedkit.core.files import printable, write_atomic
from speedkit.core.task import Family, Record, Source, Task
from speedkit.records.nanogpt.transforms import Clock, clock_of, transform

if TYPE_CHECKING:
    from git import Repo

_USERINFO = re.compile(r"(?<=://)[^/\s@'\"]+@")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|[^/\\]+@?[^/\\]*:", re.IGNORECASE)
# Reading must neither ask, nor fetch what is not there, nor touch the index of the clone.
_QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",  # for a git that does not know the one before
}

State = Literal["imported", "missing", "damaged"]


@dataclass(frozen=True)
class RecordStatus:
    """What the cache folder holds of a record.

    Attributes:
        state: ``damaged`` when a stored file is not what was imported; ``imported`` also
            where the script comes with its family.
        clock: the clock of a transformed script, None for one that runs as imported.
    """

    record: Record
    state: State
    clock: Clock | None = None


@dataclass(frozen=True)
class Imported:
    """What an import did with one record.

    Attributes:
        path: the script, ready to run.
        kept: it was there already, whole.
        notes: changes against the script as imported, a phrase each.
    """

    record: Record
    path: Path
    kept: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportReport:
    """What an import did, record by record.

    Attributes:
        source: the clone or address read from, without any password; None when nothing
            had to be read.
    """

    records: tuple[Imported, ...]
    source: str | None

    @property
    def stored(self) -> tuple[Imported, ...]:
        """The records that were not there before."""
        return tuple(r for r in self.records if not r.kept)


Progress = Callable[[Imported], None]


def import_records(
    source: str | Path | None,
    family: Family,
    *,
    clock: Clock = "consistent",
    on_record: Progress = lambda imported: None,
) -> ImportReport:
    """Store the scripts of all records, each checked by its sha256.

    What is there already and whole is kept, so an import that was cut short goes on where
    it stopped, and another clock needs no clone. A clone is only read: neither its work tree
    nor its index is touched.

    Args:
        source: a clone, or an address to clone from; None for the family's own.
        family: the records, with the commit, file, lines and sha256 of each.
        clock: of the transformed scripts, see :mod:`speedkit.records.nanogpt.transforms`.
        on_record: told of each record.

    Raises:
        FamilyError: a script is missing or is not the one of the record, which is named;
            nothing of that record is stored.
        UsageError: the source is no git repository.
    """
    todo = [r for r in family.records if not _is_whole(r, clock)]
    done: list[Imported] = []
    for record in family.records:
        if record not in todo and record.script:
            done.append(Imported(record, _path(record), kept=True))
            on_record(done[-1])
    lacking = any(_original(record) is None for record in todo)
    address = str(source or family.upstream or "")
    with _opened(address) if lacking else nullcontext() as repo:
        for record in todo:
            done.append(_import(repo, record, clock))
            on_record(done[-1])
    done.sort(key=lambda imported: imported.record.index)
    return ImportReport(tuple(done), hide_userinfo(address) if lacking else None)


def status(family: Family) -> tuple[RecordStatus, ...]:
    """Return for each record whether its script is imported and whole."""
    return tuple(record_status(record) for record in family.records)


def record_status(record: Record) -> RecordStatus:
    """Return whether the script of a record is imported and whole."""
    if not record.has_script():
        return RecordStatus(record, "missing")
    if record.source is None:
        return RecordStatus(record, "imported")
    original = _original(record)
    if original is None:
        return RecordStatus(record, "damaged")
    if record.transform is None:
        return RecordStatus(record, "imported")
    stored = _read(_path(record)) or ""
    clock = clock_of(record.transform, original, stored)
    return RecordStatus(record, "imported" if clock else "damaged", clock)


def clock_notes(task: Task) -> list[str]:
    """Return with which clock the records of a task run whose scripts were changed."""
    counted = {
        "official": "all steps, compilation included, as in the official re-timings",
        "consistent": "steps from 10 on, as in all later records",
    }
    found = ((r.index, record_status(r).clock) for r in (task.start, task.target) if r.transform)
    return [f"record {i} has the {c} clock: it counts {counted[c]}" for i, c in found if c]


def reference_problem(task: Task) -> str:
    """Return why the manifest's times of a task do not compare with its scripts' clock.

    The published times of records 1 to 3 count the compilation; empty if all agree.
    """
    for record in (task.start, task.target):
        clock = record_status(record).clock if record.transform else None
        if clock == "consistent":
            return (
                f"the reference time of record {record.index} counts the compilation, and its "
                "script was imported with the consistent clock; "
                "run: speedkit records import --clock official, or measure both records here"
            )
    return ""


def original_path(record: Record) -> Path:
    """Return where the script stands as imported: beside the one that runs, if that differs."""
    path = _path(record)
    return path if record.transform is None else path.with_suffix(".original.py")


def export_records(family: Family, folder: Path) -> tuple[Path, ...]:
    """Copy the imported scripts, originals included, to a folder; return the copies.

    Raises:
        FamilyError: a record is not imported or damaged.
    """
    for entry in status(family):
        if entry.state != "imported":
            raise FamilyError(
                f"record {entry.record.index} of {family.name} is {entry.state}; "
                "run: speedkit records import"
            )
    folder.mkdir(parents=True, exist_ok=True)
    paths = {p for r in family.records for p in (_path(r), original_path(r))}
    return tuple(Path(shutil.copyfile(p, folder / p.name)) for p in sorted(paths))


def hide_userinfo(text: str) -> str:
    """Return the text without user names and passwords in addresses."""
    return _USERINFO.sub("", text)


# --- one record -------------------------------------------------------------------------


def _import(repo: Repo | None, record: Record, clock: Clock) -> Imported:
    path = _path(record)
    notes: tuple[str, ...] = ()
    text = _original(record)
    if text is None:
        assert repo is not None, "opened where an original is lacking"
        text = _fetch(repo, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(original_path(record), text)
    if record.transform is not None:
        text, notes = transform(record.transform, text, clock)
        write_atomic(path, text)
    return Imported(record, path, kept=False, notes=notes)


def _fetch(repo: Repo, record: Record) -> str:
    source = _source(record)
    text = extract(_blob(repo, record, source), source)
    if not _matches(text, record):
        raise FamilyError(
            f"record {record.index}: {source.path} at {source.commit[:12]} is not the script "
            f"of this record (sha256 {_sha256(text)[:12]}… in place of {source.sha256[:12]}…)"
        )
    return text


def _original(record: Record) -> str | None:
    """Return the script as imported, None where it is not there or not the record's."""
    text = _read(original_path(record))
    return text if text is not None and _matches(text, record) else None


def extract(blob: str, source: Source) -> str:
    """Return the lines of the script, each ended by a newline.

    In a training log that begins with its own script, the lines before and after are not
    part of it.
    """
    lines = blob.split("\n")[source.first - 1 : source.last]
    return "\n".join(lines) + "\n"


def _is_whole(record: Record, clock: Clock) -> bool:
    if record.source is None:
        return True
    found = record_status(record)
    return found.state == "imported" and found.clock in (None, clock)


def _source(record: Record) -> Source:
    if record.source is None:
        raise FamilyError(f"the manifest does not say where record {record.index} comes from")
    return record.source


def _path(record: Record) -> Path:
    if record.path is None:
        raise FamilyError(f"record {record.index} has no script in the manifest")
    return record.path


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def _matches(text: str, record: Record) -> bool:
    return _sha256(text) == _source(record).sha256


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# --- git --------------------------------------------------------------------------------


def _blob(repo: Repo, record: Record, source: Source) -> str:
    from git.exc import GitCommandError

    try:
        data = repo.git.cat_file(
            "blob",
            f"{source.commit}:{source.path}",
            stdout_as_string=False,
            strip_newline_in_stdout=False,
        )
    except GitCommandError as error:
        raise FamilyError(f"record {record.index}: {_why_no_blob(repo, source)}") from error
    return bytes(data).decode("utf-8", "surrogateescape")


def _why_no_blob(repo: Repo, source: Source) -> str:
    where = hide_userinfo(str(repo.git_dir))
    if not _has(repo, f"{source.commit}^{{commit}}"):
        if _answer(repo, "rev-parse", "--is-shallow-repository") == "true":
            return (
                f"{where} is a shallow clone and lacks commit {source.commit[:12]}; "
                f"run in it: git fetch --unshallow"
            )
        return (
            f"{where} lacks commit {source.commit[:12]}; "
            f"run in it: git fetch --all, or name another clone"
        )
    if _answer(repo, "config", "--get-regexp", r"remote\..*\.promisor"):
        return (
            f"{where} is a partial clone and lacks {source.path}; "
            f"run in it: git fetch --refetch --no-filter, or import from the address"
        )
    return f"{where} has no {source.path} in commit {source.commit[:12]}"


def _has(repo: Repo, name: str) -> bool:
    from git.exc import GitCommandError

    try:
        repo.git.cat_file("-e", name)
    except GitCommandError:
        return False
    return True


def _answer(repo: Repo, *command: str) -> str:
    from git.exc import GitCommandError

    try:
        return str(repo.git.execute(["git", *command]))
    except GitCommandError:
        return ""


@contextmanager
def _opened(address: str) -> Iterator[Repo]:
    if not address:
        raise UsageError("no address to import from; name a clone: speedkit records import --from")
    if Path(address).exists() or not _REMOTE.match(address):
        with _open_clone(Path(address)) as repo:
            yield repo
        return
    with (
        tempfile.TemporaryDirectory(prefix="speedkit-clone-") as folder,
        _clone(address, Path(folder) / "clone.git") as repo,
    ):
        yield repo


@contextmanager
def _open_clone(path: Path) -> Iterator[Repo]:
    import git

    try:
        repo = git.Repo(path)
    except git.exc.NoSuchPathError:
        raise UsageError(f"no folder {path}; name a clone, or an address to clone from") from None
    except git.exc.InvalidGitRepositoryError:
        raise UsageError(f"{path} is no git repository") from None
    with repo:
        repo.git.update_environment(GIT_DIR=str(repo.git_dir), **_QUIET)
        yield repo


@contextmanager
def _clone(address: str, folder: Path) -> Iterator[Repo]:
    import git

    try:
        # Without blobs the whole history is small; those of the scripts follow one by one.
        repo = git.Repo.clone_from(
            address,
            str(folder),
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            bare=True,
            filter="blob:none",
        )
    except (git.exc.GitCommandError, git.exc.UnsafeProtocolError, git.exc.UnsafeOptionError) as e:
        raise UsageError(f"cannot clone {hide_userinfo(address)}: {_reason(e)}") from None
    with repo:
        repo.git.update_environment(GIT_TERMINAL_PROMPT="0")
        yield repo


def _reason(error: Exception) -> str:
    text = hide_userinfo(printable(str(getattr(error, "stderr", "") or error)))
    lines = [line.strip(" '\"") for line in text.splitlines() if line.strip(" '\"")]
    fatal = [line for line in lines if line.startswith("fatal:")]
    return (fatal or lines or ["git failed"])[0]
