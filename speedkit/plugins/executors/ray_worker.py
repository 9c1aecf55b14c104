"""The actor that Ray places on a node: it starts the job there as a process, and waits for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

END_S = 30.0
"""Seconds that a job has to end by itself when it is told to."""


class JobActor:
    """Holds the resources of a job while it runs.

    Ray ends an actor's process with its node; the job sees that its parent is gone and ends.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = threading.Event()

    def run(self, command: Sequence[str], output: str) -> int:
        """Run the job's program to its end; return its exit status.

        Args:
            output: file for what the program itself prints.
        """
        try:
            with open(output, "ab") as file:
                self._process = subprocess.Popen(
                    list(command),
                    cwd=Path(output).parent,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            return self._process.wait()
        finally:
            self._is_over.set()

    def wait(self) -> None:
        """Return when the job is over."""
        self._is_over.wait()

    def stop(self) -> None:
        """End the job and wait until it is over."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        self._is_over.wait(END_S)
