"""The oracle coder: what the human change recovers on this machine."""

from __future__ import annotations

from speedkit.core.components import Coder, CodeRequest, Draft, Services
from speedkit.core.errors import UsageError
from speedkit.core.task import Task


class OracleCoder(Coder):
    """Answers with the script of the target record, so that FSR is 1 apart from noise."""

    def bind(self, services: Services) -> None:
        """Receive the services; refuse a task that has nothing to copy, before the run starts."""
        super().bind(services)
        _target_source(services.task)

    def write(self, request: CodeRequest) -> Draft:
        """Return the target record's script in place of the parent's."""
        task = request.task
        files = {**request.files, task.script: _target_source(task)}
        target = task.target
        hypothesis = f"record {target.index} itself: {target.title}"
        return Draft(files=files, hypothesis=hypothesis, repeat=True)


def _target_source(task: Task) -> str:
    if task.target.script is None:
        raise UsageError(
            f"coder oracle copies the target record's script, and record {task.target.index} of "
            f"{task.family.name} has none; choose another coder for {task.name}"
        )
    return task.target.read()
