"""Let signals, and other threads, end a run as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does; only the main thread may ask this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGHUP)
    before: Mapping[signal.Signals, Any] = {s: signal.signal(s, interrupt) for s in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupt:
    """Lets any thread end a run that works in another one, as Ctrl-C would."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._asked

    def ask(self) -> None:
        """Ask the run to end its jobs and close its journal; does not wait for that."""
        with self._lock:
            self._asked = True
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def check(self) -> None:
        """Raise KeyboardInterrupt if the run is to end."""
        if self._asked:
            raise KeyboardInterrupt

    @contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have a function called by :meth:`ask`; at once, if that has been called before."""
        with self._lock:
            self._listeners.append(listener)
            asked = self._asked
        try:
            if asked:
                listener()
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)
