"""The trusted evaluation of nanogpt: run a node again and count what it validates.

The scripts of the records have no common form of model that could be loaded, so the node is
run once more below a shim. It stands between the script and the loss functions of
``torch.nn.functional``, and counts tokens, losses and targets of every call made without
gradients. It shares a process with the script, so it shows mistakes and simple cheats, and
proves nothing against a script that looks for it. A loss that is computed by a kernel of the
script's own is out of its reach, and is reported as nothing counted.

Records 1 and 2 print the loss of rank 0's share of the tokens, later ones the mean over all ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from speedkit.core.evaluation import Recount
from speedkit.core.findings import Finding, Level
from speedkit.core.metrics import Report
from speedkit.core.task import Task
from speedkit.records.shards import read_tokens

NAME = "evaluation"
"""The name in findings."""
SHIM = Path(__file__).resolve().with_name("evaluation_shim.py")
SCRIPT = "speedkit_candidate.py"
"""Name of the node's script while the shim is run in its place."""
ACCOUNT = "speedkit-evaluation-{}.json"
"""What the shim writes, by rank; to be named as artifacts of the trial."""
VALIDATION = "*fineweb_val_*.bin"
MAX_BYTES = 10_000_000
TOLERANCE = 0.005
"""Nats by which a printed loss may differ from what was counted."""


@dataclass(frozen=True)
class Validation:
    """What was counted in one validation, over all ranks.

    Attributes:
        tokens: targets that were not ignored.
        loss_sum: sum of their losses, in nats.
        target_sum: sum of their token ids.
    """

    tokens: int
    loss_sum: float
    target_sum: int

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return self.loss_sum / self.tokens if self.tokens else math.nan


def recount(
    task: Task, files: Mapping[str, str], torch_version: str, nproc: int, data: Path
) -> Recount:
    """Return the run of a node below the shim, and what is to be said of it afterwards."""

    def say(paths: Sequence[Path], report: Report) -> list[Finding]:
        counted, alone = read_accounts(paths), read_accounts(paths[:1])
        expected = lru_cache(maxsize=None)(partial(target_sum, data))
        return list(judge(counted, report, task.start.val_tokens or 0, alone, expected))

    return Recount(instrument(task, files, torch_version), accounts(nproc), say)


def instrument(task: Task, files: Mapping[str, str], torch_version: str) -> dict[str, str]:
    """Return the files of a node with the shim in the place of its script.

    Args:
        torch_version: of the torch that will run it, to which the script is adapted.
    """
    source, _ = task.family.adapt(files[task.script], torch_version)
    return {**files, task.script: SHIM.read_text(encoding="utf-8"), SCRIPT: source}


def accounts(nproc: int) -> tuple[str, ...]:
    """Return the names of the files that the shim writes."""
    return tuple(ACCOUNT.format(rank) for rank in range(nproc))


def read_accounts(paths: Sequence[Path]) -> tuple[Validation, ...]:
    """Return what all ranks counted together.

    Raises:
        ValueError: a file is none that the shim writes, or ranks do not agree.
    """
    ranks = [_read(path) for path in paths]
    if not ranks or len({len(rows) for rows in ranks}) != 1:
        raise ValueError("the ranks did not count the same number of validations")
    return tuple(_sum(rows) for rows in zip(*ranks, strict=True))


def target_sum(data: Path, tokens: int) -> int:
    """Return the sum of the targets of the first ``tokens`` validation tokens."""
    shards = sorted(data.rglob(VALIDATION))
    if not shards:
        raise ValueError(f"no validation shard in {data}")
    return int(np.asarray(read_tokens(shards[0])[1 : tokens + 1], dtype=np.int64).sum())


def judge(
    counted: Sequence[Validation],
    report: Report,
    val_tokens: int,
    alone: Sequence[Validation] = (),
    expected_sum: Callable[[int], int] | None = None,
) -> Iterator[Finding]:
    """Yield where a log does not fit what was counted while it was written.

    Args:
        counted: the validations, over all ranks.
        val_tokens: tokens of one validation of the start record.
        alone: what rank 0 counted; where these are tokens enough, it may print their loss.
        expected_sum: sum of the targets of so many tokens, see :func:`target_sum`; None
            where it is not known.
    """
    printed = [m.val_loss for m in report.curve]
    if not counted:
        text = "no loss was seen: the script computes it in a way that the shim does not know"
        yield Finding(NAME, Level.QUARANTINE, text)
        return
    if len(counted) != len(printed):
        text = f"{len(printed)} validations were printed, and {len(counted)} were made"
        yield Finding(NAME, Level.REJECT, text)
        return
    for number, (validation, loss) in enumerate(zip(counted, printed, strict=True), 1):
        losses = [validation.loss]
        losses += [v.loss for v in alone[number - 1 : number] if v.tokens >= val_tokens]
        if validation.tokens < val_tokens:
            text = f"validation {number} read {validation.tokens} tokens, not {val_tokens}"
            yield Finding(NAME, Level.REJECT, text)
        elif not any(abs(known - loss) <= TOLERANCE for known in losses):
            text = f"validation {number} printed {loss:.4f}, and had {validation.loss:.4f}"
            yield Finding(NAME, Level.REJECT, text)
        elif expected_sum and expected_sum(validation.tokens) != validation.target_sum:
            text = f"validation {number} read other tokens than the first {validation.tokens}"
            yield Finding(NAME, Level.QUARANTINE, text)
        else:
            continue
        return


def _read(path: Path) -> list[Validation]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} is too large")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["validations"]
        return [
            Validation(int(row["tokens"]), float(row["loss_sum"]), int(row["target_sum"]))
            for row in rows
        ]
    except (KeyError, TypeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no account of the shim") from error


def _sum(rows: Sequence[Validation]) -> Validation:
    return Validation(
        sum(row.tokens for row in rows),
        math.fsum(row.loss_sum for row in rows),
        sum(row.target_sum for row in rows),
    )
