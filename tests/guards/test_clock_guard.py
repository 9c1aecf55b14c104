"""The clock guard: claims against the harness's own clock, and floors."""

from __future__ import annotations

import pytest

from speedkit.core.findings import Level
from speedkit.core.task import find_task
from speedkit.plugins.guards.clock import ClockGuard, ClockOptions
from tests.guards.results import ARRIVALS, HONEST, result


def found(one, **options):
    return [(f.level, f.reason) for f in ClockGuard(ClockOptions(**options)).check_result(one)]


def test_an_honest_run_passes(tmp_path):
    assert found(result(tmp_path)) == []


def test_without_arrivals_only_the_whole_is_compared(tmp_path):
    assert found(result(tmp_path, at=[])) == []


def test_more_time_than_the_job_took_is_rejected(tmp_path):
    ((level, reason),) = found(result(tmp_path, at=[], wall_s=0.5))
    assert level is Level.REJECT
    assert "1.00 s are claimed" in reason


def test_a_line_that_came_too_soon_is_rejected(tmp_path):
    lines = [*HONEST[:-1], HONEST[-1].replace("1000ms", "3000ms")]
    assert Level.REJECT in {level for level, _ in found(result(tmp_path, lines))}


def test_lines_written_at_once_are_rejected(tmp_path):
    ((level, reason),) = found(result(tmp_path, at=[6.0, 6.0, 6.01, 6.01]))
    assert level is Level.REJECT
    assert "all lines came within" in reason


def test_a_long_pause_between_lines_is_held(tmp_path):
    ((level, reason),) = found(result(tmp_path, at=[*ARRIVALS[:-1], 12.0], wall_s=14.0))
    assert level is Level.QUARANTINE
    assert "uncounted between steps 27 and 36" in reason
    assert found(result(tmp_path, at=[*ARRIVALS[:-1], 12.0], wall_s=14.0), validation_s=6.0) == []


def test_a_long_start_is_held(tmp_path):
    one = result(tmp_path, at=[t + 60 for t in ARRIVALS], wall_s=70.0)
    ((level, reason),) = found(one)
    assert level is Level.QUARANTINE
    assert "uncounted until step 9" in reason
    assert found(one, startup_s=100) == []


def test_a_job_that_goes_on_after_its_last_line_is_held(tmp_path):
    ((level, reason),) = found(result(tmp_path, wall_s=ARRIVALS[-1] + 45))
    assert level is Level.QUARANTINE
    assert "went on for 45.0 s after its last line" in reason
    assert found(result(tmp_path, wall_s=ARRIVALS[-1] + 45), startup_s=50) == []


@pytest.mark.parametrize(("target_ms", "held"), [(714, False), (1990, False), (2010, True)])
def test_a_time_far_under_the_target_record_is_held(tmp_path, target_ms, held):
    levels = [level for level, _ in found(result(tmp_path, target_ms=target_ms))]
    assert levels == ([Level.QUARANTINE] if held else [])


@pytest.mark.parametrize(("ms", "rejected"), [(9_000, True), (60_000, False)])
def test_gpus_have_a_peak_rate(tmp_path, ms, rejected):
    task = find_task("nanogpt/12")
    lines = [f"step:1875/1875 val_loss:3.2700 train_time:{ms}ms"]
    hardware = {"gpus": {"NVIDIA H100 80GB HBM3": 8}, "nproc": 8}
    code = result(tmp_path).code
    one = result(tmp_path, lines, [], 5000.0, code=type(code)(task, {}, {}, {}), hardware=hardware)
    levels = [level for level, _ in found(one)]
    assert levels == ([Level.REJECT] if rejected else [])
