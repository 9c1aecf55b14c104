"""Where speedkit keeps what outlives a run."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Return the user's cache folder: ``SPEEDKIT_CACHE_DIR``, or the platform's usual one."""
    override = os.environ.get("SPEEDKIT_CACHE_DIR")
    return Path(override).resolve() if override else Path(platformdirs.user_cache_dir("speedkit"))
