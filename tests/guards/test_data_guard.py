"""The data guard: what a node did to the data is seen, and stays seen."""

from __future__ import annotations

import os

import pytest

from speedkit.core.findings import Level
from speedkit.plugins.guards.data import SAMPLE, DataGuard, digest
from tests.guards.results import result


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "deeper").mkdir(parents=True)
    (folder / "train.bin").write_bytes(bytes(5000))
    (folder / "deeper" / "val.bin").write_bytes(bytes(5000))
    return folder


def found(guard, folder, tmp_path):
    return [(f.level, f.reason) for f in guard.check_result(result(tmp_path, data=folder))]


def test_untouched_data_pass_again_and_again(data, tmp_path):
    guard = DataGuard()
    guard.remember(data)
    assert found(guard, data, tmp_path) == []
    assert found(guard, data, tmp_path) == []


def test_no_data_is_nothing_to_look_at(tmp_path):
    assert found(DataGuard(), None, tmp_path) == []


CHANGES = {
    "one byte": lambda d: (d / "deeper" / "val.bin").write_bytes(bytes(4999) + b"\x01"),
    "shorter": lambda d: (d / "train.bin").write_bytes(bytes(10)),
    "gone": lambda d: (d / "train.bin").unlink(),
    "one more": lambda d: (d / "more.bin").write_bytes(b"1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_rejects_this_node_and_later_ones_until_it_is_undone(data, tmp_path, change):
    guard = DataGuard()
    guard.remember(data)
    before = {p: p.read_bytes() for p in data.rglob("*.bin")}
    CHANGES[change](data)
    for _ in range(2):
        ((level, reason),) = found(guard, data, tmp_path)
        assert level is Level.REJECT
        assert ".bin" in reason
    for path in data.rglob("*.bin"):
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
    assert found(guard, data, tmp_path) == []


def test_a_large_file_is_sampled(tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(20 * SAMPLE))
    first = digest(path, whole=SAMPLE)
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] = 1  # the end is one of the samples
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert digest(path, whole=SAMPLE) != first
    path.write_bytes(bytes(20 * SAMPLE))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert digest(path, whole=SAMPLE) == first
