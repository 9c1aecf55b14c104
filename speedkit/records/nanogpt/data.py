"""FineWeb shards for the NanoGPT records: fetched, synthesised, and checked before a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from speedkit.core.errors import FamilyError, SpeedkitError, UsageError
from speedkit.core.files import write_atomic
from speedkit.core.task import Record, Task
from speedkit.records.shards import (
    MAX_TOKENS,
    Shard,
    ShardError,
    SyntheticText,
    read_shard,
    write_shard,
)

DATASET = "kjj0/fineweb10B-gpt2"
"""The public dataset of tokenised FineWeb shards."""
FOLDER = "fineweb10B"
"""Folder of the shards below the data folder, as the scripts name it."""
VAL_FILE = "fineweb_val_000000.bin"
MAX_SHARDS = 103
"""Training shards in the dataset."""
SHARD_TOKENS = 100_000_000
"""Tokens of a full training shard; the last one is shorter."""
SYNTHETIC_FILE = "SYNTHETIC.txt"
"""Marks a folder whose shards are not text."""
ALLOW_SHORT = "SPEEDKIT_ALLOW_SHORT_DATA"
"""Environment variable: ``1`` lets a run start with too few or synthetic data."""

OnShard = Callable[[Shard, int, int], None]


def train_file(number: int) -> str:
    """Return the name of a training shard, numbered from 1."""
    return f"fineweb_train_{number:06d}.bin"


@dataclass(frozen=True)
class DataReport:
    """What a data folder holds.

    Attributes:
        train: whole training shards, by name.
        val: the validation shard, None if there is none.
        damaged: what is wrong with each shard that is not whole.
        synthetic: the shards are not text.
    """

    folder: Path
    train: tuple[Shard, ...]
    val: Shard | None
    damaged: tuple[str, ...] = ()
    synthetic: bool = False

    def steps(self, tokens_per_step: int) -> int:
        """Steps of training before data repeat on any of eight ranks.

        The end of each shard is left out. In records 1 to 17 a rank leaves a shard by its own
        position, which is up to 7/8 of a step ahead of the first one's.
        """
        ahead = tokens_per_step * 7 // 8 + 2
        return sum(max(0, s.tokens - ahead) // tokens_per_step for s in self.train)

    def shortage(self, record: Record) -> str:
        """Return what is missing for a full run of a record; empty if nothing is."""
        if self.val is None:
            return f"no validation shard {VAL_FILE}"
        if record.val_tokens and self.val.tokens <= record.val_tokens:
            return f"{self.val.tokens:,} of {record.val_tokens:,} validation tokens"
        if record.steps and record.tokens_per_step:
            steps = self.steps(record.tokens_per_step)
            if steps < record.steps:
                needed = f"{record.shards} full ones" if record.shards else "more"
                return (
                    f"{len(self.train)} training shards suffice for {steps:,} of "
                    f"{record.steps:,} steps; {needed} are needed"
                )
        return ""


def check(folder: Path) -> DataReport:
    """Read the headers of all shards in a data folder and compare them with the files."""
    shards, damaged = [], []
    for path in sorted((folder / FOLDER).glob("fineweb_*_*.bin")):
        try:
            shards.append(read_shard(path))
        except ShardError as error:
            damaged.append(str(error))
    train = tuple(s for s in shards if s.path.name.startswith("fineweb_train_"))
    val = next((s for s in shards if s.path.name == VAL_FILE), None)
    synthetic = (folder / FOLDER / SYNTHETIC_FILE).is_file()
    return DataReport(folder, train, val, tuple(damaged), synthetic)


def check_task(task: Task, folder: Path, allow_short: bool = False) -> DataReport:
    """Refuse a folder whose data do not suffice for both records of a task.

    With too few shards, records 1 to 18 silently repeat data and later ones stop.

    Args:
        task: the task to be run.
        folder: the data folder.
        allow_short: let too few and synthetic data pass, as ``SPEEDKIT_ALLOW_SHORT_DATA=1``
            does. Damaged shards, and none at all, never pass.

    Raises:
        FamilyError: with what is missing and how to get it.
    """
    report = check(folder)
    if report.damaged:
        raise FamilyError(report.damaged[0])
    how = f"speedkit data fetch nanogpt --shards {_needed(task)}"
    if not report.train or report.val is None:
        raise FamilyError(f"no shards for {task.name} in {folder / FOLDER}; run: {how}")
    if allow_short or os.environ.get(ALLOW_SHORT) == "1":
        return report
    if report.synthetic:
        raise FamilyError(
            f"the shards in {folder / FOLDER} are synthetic, for smoke runs alone; "
            f"run: {how} --to another folder, or set {ALLOW_SHORT}=1"
        )
    for record in (task.start, task.target):
        if shortage := report.shortage(record):
            raise FamilyError(
                f"too few data for record {record.index}: {shortage}; "
                f"run: {how}, or set {ALLOW_SHORT}=1"
            )
    return report


def _needed(task: Task) -> int:
    return max(task.start.shards or 1, task.target.shards or 1)


# --- synthetic shards -------------------------------------------------------------------


def synth(
    folder: Path,
    shards: int = 2,
    tokens_per_shard: int = 10_000_000,
    seed: int = 0,
    val_tokens: int | None = None,
    on_shard: OnShard = lambda shard, k, count: None,
) -> DataReport:
    """Write synthetic shards of the same format, for smoke runs.

    The conditional entropy of these tokens is about 6 nats, so no run on them comes near
    the family's target.

    Args:
        folder: the data folder.
        shards: number of training shards.
        tokens_per_shard: tokens of each; a step of training must fit in.
        seed: the same seed gives the same shards.
        val_tokens: tokens of the validation shard, by default as many as of another.
        on_shard: told of each shard, with its number and their count.

    Raises:
        UsageError: the folder holds shards that are not synthetic, or a number is out of range.
    """
    sizes = {VAL_FILE: val_tokens or tokens_per_shard}
    sizes.update((train_file(k), tokens_per_shard) for k in range(1, shards + 1))
    if shards < 1 or seed < 0 or not all(1 <= tokens <= MAX_TOKENS for tokens in sizes.values()):
        raise UsageError(
            f"give at least 1 shard, of 1 to {MAX_TOKENS:,} tokens, and a seed of 0 or more"
        )
    target = folder / FOLDER
    marked = (target / SYNTHETIC_FILE).is_file()
    if not marked and next(target.glob("fineweb_*.bin"), None) is not None:
        raise UsageError(f"{target} holds real shards; name another folder")
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / SYNTHETIC_FILE, f"synthetic tokens, seed {seed}; not text\n")
    for stale in target.glob("fineweb_*.bin"):
        stale.unlink()
    text = SyntheticText(seed)
    for stream, (name, tokens) in enumerate(sizes.items()):
        shard = write_shard(target / name, text.parts(stream, tokens), tokens)
        on_shard(shard, stream + 1, len(sizes))
    return check(folder)


# --- the public dataset -----------------------------------------------------------------


def fetch(
    shards: int,
    folder: Path,
    on_shard: OnShard = lambda shard, k, count: None,
) -> DataReport:
    """Fetch the validation shard and the first training shards of the public dataset.

    What is there already and whole is kept, and a transfer that was cut short goes on where
    it stopped. ``HF_ENDPOINT`` names another address of the hub. No credentials are sent.

    Args:
        shards: number of training shards.
        folder: the data folder.
        on_shard: told of each shard when it is there, with its number and their count.

    Raises:
        UsageError: there are not so many shards, or the folder holds synthetic ones.
        SpeedkitError: a shard could not be fetched, or is damaged.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise UsageError(f"{DATASET} has 1 to {MAX_SHARDS} training shards, not {shards}")
    target = folder / FOLDER
    if (target / SYNTHETIC_FILE).is_file():
        raise UsageError(f"{target} holds synthetic shards; name another folder")
    names = [VAL_FILE, *(train_file(k) for k in range(1, shards + 1))]
    for k, name in enumerate(names, start=1):
        on_shard(_fetch_one(name, target), k, len(names))
    return check(folder)


def _fetch_one(name: str, target: Path) -> Shard:
    path = target / name
    if path.exists():
        try:
            return read_shard(path)
        except ShardError:
            path.unlink()
    _download(name, target)
    try:
        return read_shard(path)
    except ShardError as error:
        path.unlink(missing_ok=True)
        raise SpeedkitError(f"the hub sent a damaged file: {error}") from None


def _download(name: str, target: Path) -> None:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        hf_hub_download(
            DATASET, name, repo_type="dataset", local_dir=target, endpoint=endpoint, token=False
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise SpeedkitError(
            f"cannot fetch {name} of {DATASET} from {endpoint or 'the Hugging Face hub'}: "
            f"{_first_line(error)}; run the command again to go on"
        ) from None


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
