"""A family of two records whose scripts run in milliseconds and say the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speedkit.core.plugins import Plugins
    from speedkit.core.task import Task

TINY = Path(__file__).resolve().parent
"""The folder of the family."""


def tiny_task() -> Task:
    """Return the task that leads from plain gradient descent to momentum."""
    from speedkit.core.task import find_task

    return find_task(f"{TINY}/1")


def tiny_plugins(*load: str) -> Plugins:
    """Return the built-in plugins, those of the kit, and those named; none that is installed.

    Args:
        load: each the path of a ``.py`` file or the name of a module.
    """
    from speedkit.core.plugins import Plugins

    parts = ("speedkit.plugins", "speedkit.testing.samples", *load)
    return Plugins(parts, entry_points=False)
