"""Data ablation: a training on shuffled tokens must not reach the target."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from speedkit.core.findings import Finding, Level
from speedkit.core.metrics import Report
from speedkit.records.shards import read_tokens, write_shard

NAME = "ablation"
"""The name in findings."""
TRAINING = "train"
"""What the names of training shards have in them."""


def shuffle_data(data: Path, folder: Path, seed: int) -> int:
    """Make a copy of the data in which the tokens of each training shard are shuffled.

    What can be learnt from it is how frequent each token is. Other files are linked, or
    copied where the two folders are on different disks.

    Args:
        data: folder of the shards.
        folder: folder to fill.
        seed: of the shuffling.

    Returns:
        How many shards were shuffled.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    count = 0
    for path in sorted(p for p in data.rglob("*") if p.is_file()):
        target = folder / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        if TRAINING in path.name and path.suffix == ".bin":
            tokens = np.array(read_tokens(path))
            rng.shuffle(tokens)
            write_shard(target, [tokens], len(tokens))
            count += 1
        else:
            _link(path.resolve(), target)
    return count


def judge(report: Report, target: float) -> Finding:
    """Say what a run on shuffled tokens tells of a script.

    Args:
        report: of the run on shuffled tokens, with the script that is to be judged.
        target: validation loss in nats per token, at or under which a run is valid.
    """
    best = min((m.val_loss for m in report.curve if m.val_loss == m.val_loss), default=None)
    if best is None:
        return Finding(NAME, Level.QUARANTINE, "the run on shuffled tokens printed no loss")
    if best <= target:
        return Finding(
            NAME,
            Level.REJECT,
            f"val_loss {best:.4f} was reached on shuffled tokens, from which no model can learn "
            "it: what the model knows was brought in with the script",
        )
    return Finding(
        NAME, Level.PASS, f"val_loss {best:.4f} at best on shuffled tokens, as it must be"
    )


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
