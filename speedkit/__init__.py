"""speedkit: can an agent reproduce a known speedup of language-model training?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speedkit.api import RunTree, open_run, run
    from speedkit.core.components import (
        Coder,
        Executor,
        Judge,
        KnowledgeSource,
        Options,
        Scaffold,
        Summarizer,
    )
    from speedkit.core.errors import SpeedkitError, StopRun
    from speedkit.core.hookspecs import hookimpl
    from speedkit.core.metrics import fsr
    from speedkit.core.node import Node, Outcome, Stage, Tree

__version__ = "0.1.0"

_PUBLIC = {
    "Coder": "core.components",
    "Executor": "core.components",
    "Judge": "core.components",
    "KnowledgeSource": "core.components",
    "Node": "core.node",
    "Options": "core.components",
    "Outcome": "core.node",
    "RunTree": "api",
    "Scaffold": "core.components",
    "SpeedkitError": "core.errors",
    "Stage": "core.node",
    "StopRun": "core.errors",
    "Summarizer": "core.components",
    "Tree": "core.node",
    "fsr": "core.metrics",
    "hookimpl": "core.hookspecs",
    "open_run": "api",
    "run": "api",
}

__all__ = [
    "Coder",
    "Executor",
    "Judge",
    "KnowledgeSource",
    "Node",
    "Options",
    "Outcome",
    "RunTree",
    "Scaffold",
    "SpeedkitError",
    "Stage",
    "StopRun",
    "Summarizer",
    "Tree",
    "fsr",
    "hookimpl",
    "open_run",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import speedkit`` stays light."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'speedkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"speedkit.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
