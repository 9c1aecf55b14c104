"""What timings depend on, and whether an interpreter can run jobs at all."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from speedkit.core.errors import ExecutorError

PROBE_S = 30
"""Seconds that another program may take to answer."""
_VERSIONS = """
import importlib.metadata as m, json, platform
try: torch = m.version("torch")
except m.PackageNotFoundError: torch = None
print(json.dumps({"python": platform.python_version(), "torch": torch}))
"""


def find_interpreter(name: str | None) -> str:
    """Return the absolute path of the Python that runs the scripts.

    Args:
        name: a path, or a name to be found on PATH; None for the running interpreter.

    Raises:
        ExecutorError: there is no such program.
    """
    if name is None:
        return sys.executable
    found = shutil.which(os.path.expanduser(name))
    if found is None:
        raise ExecutorError(
            f"no interpreter at {name!r}: set executor.python to the path of a Python "
            "that has torch, or leave it out"
        )
    # Not resolved: the path of a virtual environment's interpreter is what makes it one.
    return os.path.abspath(found)


@functools.lru_cache(maxsize=8)
def versions(python: str) -> dict[str, str | None]:
    """Return the versions of Python and torch of an interpreter; None where torch lacks.

    Raises:
        ExecutorError: the interpreter does not run.
    """
    if python == sys.executable:
        return {"python": platform.python_version(), "torch": _own_torch()}
    try:
        command = [python, "-I", "-c", _VERSIONS]
        found = subprocess.run(command, capture_output=True, timeout=PROBE_S, check=True)
        return dict(json.loads(found.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ExecutorError(f"the interpreter {python} does not run: {error}") from error


def _own_torch() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.lru_cache(maxsize=1)
def hardware() -> dict[str, Any]:
    """Return processors and accelerators, as JSON values."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": _cores(),
        "gpus": _gpus(),
    }


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, platform.machine())


def _gpus() -> dict[str, int]:
    """How many there are of each model, as NVIDIA's tool lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(Counter(line.strip() for line in found.stdout.splitlines() if line.strip()))
