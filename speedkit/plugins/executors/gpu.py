"""The NVIDIA GPUs that jobs may use, and how much of their memory is in use.

NVIDIA's own tool is asked, as a program: it is there wherever the driver is, and a driver that
hangs does not take the controller with it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors import machine

VARIABLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that names the GPUs which a program may use."""
PART = "MIG-"
"""How the name of a part of a GPU begins, of which nothing more is known."""
_SYS = Path("/sys")


class Gpu(NamedTuple):
    """One GPU.

    Attributes:
        name: what ``CUDA_VISIBLE_DEVICES`` calls it: its UUID.
        bus: where it is plugged in, as ``/sys`` names it; empty for a part of a GPU.
    """

    name: str
    bus: str = ""


def visible(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return the GPUs that programs with an environment may use, in the order that they see.

    Raises:
        ExecutorError: NVIDIA's tool is there and fails, or ``CUDA_VISIBLE_DEVICES`` counts in
            an order that it does not know.
    """
    rows = query("index", "uuid", "pci.bus_id", "name")
    wanted = environ.get(VARIABLE, "")
    if any(map(str.isdigit, _split(wanted))) and _may_count_otherwise(rows, environ):
        raise ExecutorError(
            f"{VARIABLE}={wanted} counts GPUs of several models, the fastest first: name them by "
            "their UUID (nvidia-smi -L), or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    known = {row[1]: _gpu(row) for row in rows}
    return tuple(known.get(name, Gpu(name)) for name in chosen(rows, environ))


def chosen(rows: Sequence[Sequence[str]], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of GPUs, and of parts, that programs with an environment may use.

    CUDA takes them in the order named, up to the first name that fits none.

    Args:
        rows: what :func:`query` returns for ``index``, ``uuid`` and perhaps more.
    """
    wanted = environ.get(VARIABLE)
    for name in [row[1] for row in rows] if wanted is None else _split(wanted):
        found = [row[1] for row in rows if name and (row[0] == name or row[1].startswith(name))]
        if name.startswith(PART):
            yield name
        elif len(found) == 1:
            yield found[0]
        else:
            return


def used_mb() -> dict[str, float | None]:
    """Return the memory in use of each GPU by its UUID, in MiB; None where it is not told.

    Raises:
        ExecutorError: NVIDIA's tool fails.
    """
    return {uuid: _number(used) for uuid, used in query("uuid", "memory.used")}


def near_cpus(bus: str, sys: Path = _SYS) -> frozenset[int]:
    """Return the CPUs on the side of the machine where a GPU is plugged in; none: not known."""
    try:
        text = (sys / "bus/pci/devices" / bus / "local_cpulist").read_text(encoding="ascii")
        return frozenset(parse_cpus(text))
    except (OSError, ValueError):
        return frozenset()


def parse_cpus(text: str) -> list[int]:
    """Read a list of CPUs as the kernel writes it, for example ``0-3,8``.

    Raises:
        ValueError: it is none.
    """
    ends = [part.partition("-") for part in text.strip().split(",") if part]
    return [cpu for low, _, high in ends for cpu in range(int(low), int(high or low) + 1)]


def query(*fields: str) -> list[list[str]]:
    """Ask NVIDIA's tool for facts on every GPU; none where there is no such tool.

    Raises:
        ExecutorError: it fails.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=machine.PROBE_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise ExecutorError(f"nvidia-smi fails: {error}") from error
    # What it says of the others counts even if it cannot speak to one of them.
    lines = done.stdout.splitlines()
    rows = [[cell.strip() for cell in line.split(",", len(fields) - 1)] for line in lines]
    rows = [row for row in rows if len(row) == len(fields)]
    if done.returncode and not rows:
        raise ExecutorError(f"nvidia-smi fails: {_last_line(done.stdout + done.stderr)}")
    return rows


def _gpu(row: list[str]) -> Gpu:
    # The tool writes the domain with eight digits, /sys with four.
    return Gpu(row[1], row[2][-len("0000:00:00.0") :].lower())


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _may_count_otherwise(rows: list[list[str]], environ: Mapping[str, str]) -> bool:
    """Whether CUDA may number the GPUs in another order than NVIDIA's tool."""
    return len({row[3] for row in rows}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"
