"""Folders in which the jobs of a run share what torch compiles for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

_OPERATORS = ("torch.library", "custom_op", "triton_op", "register_fake", "register_autograd")


def cache_scope(source: str) -> str:
    """Return which scripts may share compiled code with this one.

    Torch's caches know a custom operator by its name: a script that changes its backward or
    its fake would silently get what was compiled for another. So a script that defines such
    operators shares with its equals alone.

    Returns:
        ``shared`` for all scripts without custom operators, else a hash of the source.
    """
    if not any(name in source for name in _OPERATORS):
        return "shared"
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def cache_variables(folder: Path, source: str) -> dict[str, str]:
    """Return the environment variables that let a script use the cache below a folder."""
    root = folder.absolute() / cache_scope(source)
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TRITON_CACHE_DIR": str(root / "triton"),
    }
