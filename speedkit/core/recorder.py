"""The one way in which something happens to a run: journal first, then state, then observers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from speedkit.core.errors import StopRun
from speedkit.core.journal import Journal
from speedkit.core.plugins import Plugins
from speedkit.core.redact import Redactor
from speedkit.core.run import Run

OnEvent = Callable[[Mapping[str, Any]], None]


class Recorder:
    """Writes events, folds them into the state of the run, and tells whoever listens.

    Args:
        on_event: receives every event after it is on disk.
        on_warning: receives a line for the user.
        redactor: takes secrets out of what is stored; by default those of the environment.

    Attributes:
        lock: held while an event is written; hold it to make several events one.
        stop: set when an observer asked for the end of the run.
    """

    def __init__(
        self,
        run: Run,
        journal: Journal,
        plugins: Plugins,
        on_event: OnEvent,
        on_warning: Callable[[str], None],
        redactor: Redactor | None = None,
    ) -> None:
        self.run = run
        self.lock = threading.RLock()
        self.redactor = redactor or Redactor.from_environment()
        self.stop: StopRun | None = None
        self._journal, self._plugins = journal, plugins
        self._on_event, self.warn = on_event, on_warning

    def record(self, kind: str, **facts: Any) -> None:
        """Write an event, without secrets, and fold it into the state."""
        event = self.redactor.tree({"type": kind, "at": round(time.time(), 3), **facts})
        with self.lock:
            self._journal.append(event)
            self.run.apply(event)
            self._on_event(event)

    def notify(self, hook: str, **facts: Any) -> None:
        """Call an observer hook."""
        try:
            self._plugins.notify(hook, self.warn, run=self.run, **facts)
        except StopRun as stop:
            self.stop = stop
