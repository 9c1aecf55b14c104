"""``speedkit data``: shards from the command line."""

from __future__ import annotations

import pytest


def test_shards_are_made_up_and_checked(program, tmp_path):
    made = program("data", "synth", "--shards", 2, "--tokens", 1000, "--to", tmp_path / "new")
    assert made.code == 0
    assert made.out.splitlines() == [
        f"{tmp_path / 'new'}: 2 synthetic training shards, 2,000 tokens",
        "validation: 1,000 tokens",
    ]
    assert program("data", "check", "--to", tmp_path / "new").out == made.out


def test_damaged_shards_are_listed(program, tmp_path):
    program("data", "synth", "--shards", 2, "--tokens", 100, "--to", tmp_path)
    for path in (tmp_path / "fineweb10B").glob("fineweb_train_*.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    result = program("data", "check", "--to", tmp_path)
    assert result.code == 1
    assert len([line for line in result.out.splitlines() if line.startswith("damaged: ")]) == 2


def test_a_task_is_refused_with_what_it_lacks(program, own_cache):
    result = program("data", "check", "nanogpt/19")
    assert result.code == 2
    assert "speedkit data fetch nanogpt --shards 8" in result.err
    program("data", "synth", "--shards", 1, "--tokens", 100)
    assert "synthetic" in program("data", "check", "nanogpt/19").err


def test_other_tasks_have_no_shards(program, tmp_path):
    result = program("data", "check", "mini/1", "--to", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert "mini/1 has no shards to check" in result.err


@pytest.mark.parametrize(
    "wrong", [("--shards", 0), ("--seed", -1), ("--tokens", 0), ("--tokens", 3_000_000_000)]
)
def test_numbers_out_of_range_are_one_line(program, tmp_path, wrong):
    result = program("data", "synth", *wrong, "--to", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert "at least 1 shard" in result.err
    assert len(result.err.splitlines()) == 1
