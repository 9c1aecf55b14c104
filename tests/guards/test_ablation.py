"""Data ablation: shuffled tokens, and what a run on them tells."""

from __future__ import annotations

import numpy as np
import pytest

from speedkit.core.findings import Level
from speedkit.core.metrics import parse_log
from speedkit.plugins.guards.ablation import judge, shuffle_data
from speedkit.records.shards import read_tokens, write_shard

TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    write_shard(folder / "deep" / "x_train_1.bin", [TOKENS], 1000)
    write_shard(folder / "deep" / "x_train_2.bin", [TOKENS], 1000)
    write_shard(folder / "deep" / "x_val_1.bin", [TOKENS], 1000)
    return folder


def test_training_tokens_are_shuffled_and_the_rest_is_as_it_was(data, tmp_path):
    assert shuffle_data(data, tmp_path / "out", seed=3) == 2
    first, second = (read_tokens(tmp_path / f"out/deep/x_train_{i}.bin") for i in (1, 2))
    for shuffled in (first, second):
        assert not np.array_equal(shuffled, TOKENS)
        assert np.array_equal(np.sort(shuffled), TOKENS)
    assert not np.array_equal(first, second)
    assert np.array_equal(read_tokens(tmp_path / "out/deep/x_val_1.bin"), TOKENS)
    assert np.array_equal(read_tokens(data / "deep/x_train_1.bin"), TOKENS)


def test_the_seed_decides(data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shuffle_data(data, tmp_path / name, seed)
    a, b, c = (read_tokens(tmp_path / name / "deep/x_train_1.bin") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("losses", "level"),
    [
        ([3.2, 3.1], Level.PASS),
        ([3.2, 1.8], Level.REJECT),
        ([1.7, 3.0], Level.REJECT),
        (["nan", "nan"], Level.QUARANTINE),
        ([], Level.QUARANTINE),
    ],
)
def test_the_target_must_be_out_of_reach(losses, level):
    lines = [f"step:{i}/2 val_loss:{x} train_time:{i}ms" for i, x in enumerate(losses, 1)]
    assert judge(parse_log(lines), 1.8).level is level
