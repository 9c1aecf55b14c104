"""The environment of a job: what is on a list, what the job asks for, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from speedkit.plugins.executors.processes import MARKER

PASSED = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
        *("CC", "CXX", "CUDA_HOME", "CUDA_PATH", "ROCM_PATH", "ROCM_HOME"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES"),
        *("ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
        *("NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY"),
        *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    }
)
"""Names that are passed to a job."""
PASSED_PREFIXES = ("LC_", "NCCL_", "GLOO_")
"""Beginnings of names that are passed to a job."""
_SECRET = re.compile(
    r"(^|_)(API|ACCESS|SECRET|PRIVATE|AUTH)?_?"
    r"(KEYS?|TOKENS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?|COOKIES?)(_|$)",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether a variable of this name may hold a key, so that no job must see it."""
    return bool(_SECRET.search(name)) or name.upper().endswith(("APIKEY", "TOKEN", "PASSWORD"))


def passed(source: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables of ``source`` that are on the list, or named by ``extra``."""
    wanted = PASSED.union(extra)
    return {
        name: value
        for name, value in source.items()
        if (name in wanted or name.startswith(PASSED_PREFIXES)) and not is_secret(name)
    }


def job_environment(
    source: Mapping[str, str],
    extra: Iterable[str],
    job: Mapping[str, str],
    scratch: Path,
    marker: str,
) -> dict[str, str]:
    """Return the whole environment of a job.

    Args:
        source: the controller's environment.
        extra: names passed from it besides those on the list.
        job: variables of the job's own; they win over those of ``source``.
        scratch: private folder; home and temporary files are below it.
        marker: marks the processes of the job.
    """
    return {
        "PATH": os.defpath,
        **passed(source, extra),
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        **job,
        MARKER: marker,
    }
