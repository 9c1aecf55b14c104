"""The log guard: numbers that do not fit each other, and real logs, where they do."""

from __future__ import annotations

import io
import os
import subprocess

import pytest

from speedkit.core.findings import Level
from speedkit.core.metrics import parse_log, read_lines
from speedkit.plugins.guards.log import LogGuard, LogOptions, vocabulary
from tests.guards.results import HONEST, result

CLONE = os.environ.get("SPEEDKIT_TEST_MODDED_NANOGPT")


def found(lines, tmp_path, **options):
    guard = LogGuard(LogOptions(**options))
    return [(f.level, f.reason) for f in guard.check_result(result(tmp_path, lines))]


def test_an_honest_log_passes(tmp_path):
    assert found(HONEST, tmp_path) == []


def test_one_validation_passes(tmp_path):
    assert found(HONEST[-1:], tmp_path) == []


@pytest.mark.parametrize("average", ["13.00", "60.00"])
def test_an_average_that_does_not_follow_is_rejected(tmp_path, average):
    lines = [*HONEST[:-1], HONEST[-1].replace("27.78", average)]
    ((level, reason),) = found(lines, tmp_path)
    assert level is Level.REJECT
    assert "step_avg" in reason


def test_an_average_without_the_first_ten_steps_passes(tmp_path):
    line = "step:36/36 val_loss:1.7900 train_time:1000ms step_avg:38.46ms"
    assert found([*HONEST[:-1], line], tmp_path) == []


def test_a_model_that_knows_something_at_the_start_is_rejected(tmp_path):
    first = "step:0/36 val_loss:3.0000 train_time:0ms step_avg:nanms"
    ((level, reason),) = found([first, *HONEST], tmp_path)
    assert level is Level.REJECT
    assert "ln(256)" in reason
    assert found([first.replace("3.0000", "5.5400"), *HONEST], tmp_path) == []


def test_a_cliff_at_the_end_is_held(tmp_path):
    lines = [line.replace("1.9000", "2.0900").replace("2.1000", "2.2000") for line in HONEST]
    ((level, reason),) = found(lines, tmp_path)
    assert level is Level.QUARANTINE
    assert "0.3000" in reason


def test_last_steps_in_a_rush_are_held(tmp_path):
    fast = "step:36/36 val_loss:1.7900 train_time:800ms step_avg:22.22ms"
    ((level, reason),) = found([*HONEST[:-1], fast], tmp_path)
    assert level is Level.QUARANTINE
    assert "last steps" in reason


def test_steps_that_take_no_time_are_held(tmp_path):
    left_out = [HONEST[0], HONEST[1].replace("500ms", "260ms"), *HONEST[2:]]
    left_out = [line.rpartition(" step_avg")[0] for line in left_out]
    ((level, reason),) = found(left_out, tmp_path)
    assert level is Level.QUARANTINE
    assert "some steps took 1.11 ms each" in reason


def test_a_loss_far_under_the_target_is_held(tmp_path):
    lines = [line.replace("1.7900", "1.2000").replace("1.9000", "1.5000") for line in HONEST]
    assert [level for level, _ in found(lines, tmp_path, cliff=9)] == [Level.QUARANTINE]


def test_the_vocabulary_is_read_from_the_script():
    assert vocabulary("class C:\n    vocab_size: int = 256\nnum_vocab = 50304\n") == 50304
    assert vocabulary("x = 1\n") is None
    assert vocabulary("not python(") is None


@pytest.mark.skipif(CLONE is None, reason="SPEEDKIT_TEST_MODDED_NANOGPT names no clone")
def test_no_real_log_is_rejected():
    """Every twelfth log of the clone; benchmarks/redteam.py reads them all."""
    git = ["git", "-C", str(CLONE)]
    listed = subprocess.run([*git, "ls-tree", "-r", "HEAD"], capture_output=True, check=True)
    lines = [x for x in listed.stdout.decode().splitlines() if x.endswith(".txt")]
    seen, guard = 0, LogGuard()
    for line in lines[::12]:
        blob = [*git, "cat-file", "blob", line.split()[2]]
        data = subprocess.run(blob, capture_output=True).stdout  # a partial clone lacks some
        report = parse_log(read_lines(io.BytesIO(data)))
        if not report.anomaly:
            seen += 1
            assert list(guard.check_curve(report.curve, 50257, 3.28)) == [], line
    assert seen > 50
