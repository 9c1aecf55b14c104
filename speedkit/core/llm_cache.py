"""Keeps the replies of language models, so that a search can be replayed without any."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from speedkit.core.errors import UsageError
from speedkit.core.ledger import Usage
from speedkit.core.llm_types import LLMSettings, Message

SCHEMA = 1
PATIENCE_S = 30.0  # how long one process waits for another that is writing
_CREATE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, sample INTEGER NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Stored:
    """A reply as it is kept."""

    text: str
    reasoning: str
    model_served: str | None
    usage: Usage
    finish_reason: str


def request_key(settings: LLMSettings, messages: Sequence[Message], sample: int) -> str:
    """Return the SHA-256 of all that decides a reply, and of which sample of it is meant.

    The address of the server and the key do not belong to it: a search must replay without
    them. Do not let servers that mean different models by one name share a cache.
    """
    request = {
        "model": settings.model,
        "messages": [dict(message) for message in messages],
        "temperature": settings.temperature,
        "reasoning_effort": settings.reasoning_effort,
        "max_output_tokens": settings.max_output_tokens,
        "sample": sample,
    }
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """A file of replies by request. Safe to share between threads and processes.

    Args:
        path: the SQLite file; made on first use, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._busy: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Keep other threads of this process from asking the same at the same time."""
        with self._lock:
            lock, users = self._busy.get(key, (threading.Lock(), 0))
            self._busy[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._busy.pop(key)
                if users > 1:
                    self._busy[key] = (lock, users - 1)

    def get(self, key: str) -> Stored | None:
        """Return the reply to a request, None if there is none."""
        with self._database() as database:
            row = database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else _stored(row[0])

    def put(self, key: str, reply: Stored, *, model: str, sample: int) -> Stored:
        """Keep a reply and return it; if there is one already, that one stays."""
        row = (key, model, sample, json.dumps(asdict(reply)))
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", row)
            kept = database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            database.execute("COMMIT")
        return _stored(kept[0])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection = self._connection or self._open()
                yield self._connection
            except (sqlite3.Error, OSError) as error:
                if self._connection is not None and self._connection.in_transaction:
                    self._connection.rollback()
                raise UsageError(f"the reply cache {self.path} cannot be used: {error}") from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(
            self.path, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(database)
            database.execute("PRAGMA synchronous = FULL")
            _prepare(database, self.path)
        except BaseException:
            database.close()
            raise
        return database


def _use_wal(database: sqlite3.Connection) -> None:
    """Turn on the write-ahead log. SQLite does not wait here for others that do the same."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise UsageError(f"the reply cache {path} was written by a newer speedkit")
    if version < SCHEMA:
        database.execute("BEGIN IMMEDIATE")
        database.execute(_CREATE)
        database.execute(f"PRAGMA user_version = {SCHEMA}")
        database.execute("COMMIT")


def _stored(text: str) -> Stored:
    value = json.loads(text)
    return Stored(**{**value, "usage": Usage(**value["usage"])})
