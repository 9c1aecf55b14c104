"""speedkit: can an agent reproduce a known speedup of language-model training?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speedkit.api import RunTree, open_run, run
    from speedkit.core.components import (
        Coder,
        CodeRequest,
        Draft,
        Ending,
        Execution,
        Executor,
        Job,
        Judge,
        Judgement,
        JudgeRequest,
        KnowledgeEntry,
        KnowledgeSource,
        Options,
        Proposal,
        RankError,
        Scaffold,
        Services,
        Summarizer,
        SummaryRequest,
        Watch,
    )
    from speedkit.core.errors import ExecutorError, PluginError, SpeedkitError, StopRun, UsageError
    from speedkit.core.findings import Finding, Level
    from speedkit.core.guards import Code, Guard, GuardOptions, Result
    from speedkit.core.hookspecs import Register, RegisterCommand, hookimpl
    from speedkit.core.llm_types import LLMError, Message, Reply
    from speedkit.core.metrics import Metrics, Report, fsr
    from speedkit.core.node import Node, Outcome, Stage, Tree
    from speedkit.core.run import Run
    from speedkit.core.task import Task

__version__ = "0.1.0"

_PUBLIC = {
    "Code": "core.guards",
    "CodeRequest": "core.components",
    "Coder": "core.components",
    "Draft": "core.components",
    "Ending": "core.components",
    "Execution": "core.components",
    "Executor": "core.components",
    "ExecutorError": "core.errors",
    "Finding": "core.findings",
    "Guard": "core.guards",
    "GuardOptions": "core.guards",
    "Job": "core.components",
    "Judge": "core.components",
    "JudgeRequest": "core.components",
    "Judgement": "core.components",
    "KnowledgeEntry": "core.components",
    "KnowledgeSource": "core.components",
    "LLMError": "core.llm_types",
    "Level": "core.findings",
    "Message": "core.llm_types",
    "Metrics": "core.metrics",
    "Node": "core.node",
    "Options": "core.components",
    "Outcome": "core.node",
    "PluginError": "core.errors",
    "Proposal": "core.components",
    "RankError": "core.components",
    "Register": "core.hookspecs",
    "RegisterCommand": "core.hookspecs",
    "Reply": "core.llm_types",
    "Report": "core.metrics",
    "Result": "core.guards",
    "Run": "core.run",
    "RunTree": "api",
    "Scaffold": "core.components",
    "Services": "core.components",
    "SpeedkitError": "core.errors",
    "Stage": "core.node",
    "StopRun": "core.errors",
    "Summarizer": "core.components",
    "SummaryRequest": "core.components",
    "Task": "core.task",
    "Tree": "core.node",
    "UsageError": "core.errors",
    "Watch": "core.components",
    "fsr": "core.metrics",
    "hookimpl": "core.hookspecs",
    "open_run": "api",
    "run": "api",
}

__all__ = [
    "Code",
    "CodeRequest",
    "Coder",
    "Draft",
    "Ending",
    "Execution",
    "Executor",
    "ExecutorError",
    "Finding",
    "Guard",
    "GuardOptions",
    "Job",
    "Judge",
    "JudgeRequest",
    "Judgement",
    "KnowledgeEntry",
    "KnowledgeSource",
    "LLMError",
    "Level",
    "Message",
    "Metrics",
    "Node",
    "Options",
    "Outcome",
    "PluginError",
    "Proposal",
    "RankError",
    "Register",
    "RegisterCommand",
    "Reply",
    "Report",
    "Result",
    "Run",
    "RunTree",
    "Scaffold",
    "Services",
    "SpeedkitError",
    "Stage",
    "StopRun",
    "Summarizer",
    "SummaryRequest",
    "Task",
    "Tree",
    "UsageError",
    "Watch",
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
