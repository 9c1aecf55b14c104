"""When a running job is hopeless, and when it may go on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from speedkit.core.curve_stop import CurveRule, CurveStop, Reference
from speedkit.core.metrics import Metrics

REPLAY = Path(__file__).parents[2] / "benchmarks" / "early_stop_replay.py"
CLONE = os.environ.get("SPEEDKIT_TEST_MODDED_NANOGPT")
TARGET = 3.28
STEPS = 1000
START_MS = 100_000


def shape(progress):
    """A loss that falls fast, then slowly, then steeply as the learning rate decays."""
    decay = max(progress - 0.6, 0) / 0.4
    return 3.27 + 0.4 * (1 - progress) / (progress + 0.1) + 0.25 * (1 - decay)


def curve(*, end_ms=95_000, steps=STEPS, every=100, add=0.0, loss=shape):
    return [
        Metrics(step, steps, loss(step / steps) + add, round(end_ms * step / steps))
        for step in range(0, steps + 1, every)
    ]


START = curve(end_ms=START_MS)


def stopped_at(run, *, start_ms=START_MS, start=(START,), best=(), **options):
    """Return the step at which the run is stopped, and why; None and None if it is not."""
    rule = CurveRule(
        CurveStop(**options),
        target=TARGET,
        start_ms=start_ms,
        start_curves=start,
        best_curve=best,
    )
    for metrics in run:
        if reason := rule.feed(metrics, 1.0):
            return metrics.step, reason
    return None, None


# --- runs that go on ----------------------------------------------------------------------


@pytest.mark.parametrize("start", [(), (START,)], ids=["no curve known", "curve known"])
@pytest.mark.parametrize("end_ms", [10_000, 95_000, 104_000])
def test_a_run_that_can_still_count_goes_on(start, end_ms):
    assert stopped_at(curve(end_ms=end_ms), start=start) == (None, None)


def test_a_run_with_half_as_many_steps_and_a_late_decay_goes_on():
    def late(progress):
        return 3.27 + 0.4 * (1 - progress) / (progress + 0.1) + 0.5 * min(1, (1 - progress) / 0.2)

    assert stopped_at(curve(steps=500, every=50, end_ms=60_000, loss=late)) == (None, None)


def test_a_run_that_compiles_in_its_first_steps_goes_on():
    slow_start = [replace(m, train_time_ms=m.train_time_ms + 60_000 * (m.step > 0)) for m in START]
    assert slow_start[1].train_time_ms == 70_000
    fast = curve(end_ms=30_000)
    late = [replace(m, train_time_ms=m.train_time_ms + 60_000 * (m.step > 0)) for m in fast]
    assert stopped_at(late) == (None, None)
    assert stopped_at(slow_start)[0] == 200  # 60 s of compilation and the start's own pace


def test_a_run_at_its_last_step_is_not_stopped_however_late():
    end = curve(end_ms=10 * START_MS)[-1]
    assert stopped_at([end]) == (None, None)


def test_without_the_time_of_the_start_no_run_is_too_late():
    assert stopped_at(curve(end_ms=10 * START_MS), start_ms=None, start=()) == (None, None)


def test_a_log_without_clock_or_steps_goes_on():
    assert stopped_at([Metrics(s, None, 9.0, None) for s in range(0, 5000, 100)]) == (None, None)


def test_nothing_is_foretold_from_one_interval():
    run = curve(end_ms=2.5 * START_MS, every=400)
    assert stopped_at(run[:2]) == (None, None)
    assert stopped_at(run[:3])[0] == 800


def test_off_stops_nothing():
    run = [replace(m, val_loss=math.nan) for m in curve(end_ms=10 * START_MS)]
    assert stopped_at(run, mode="off") == (None, None)


# --- runs that are stopped ----------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number(loss):
    run = [*curve()[:3], replace(curve()[3], val_loss=loss)]
    step, reason = stopped_at(run, start_ms=None, start=(), mode="clock")
    assert step == 300
    assert reason == f"val_loss is {loss} at step 300"


def test_a_run_past_the_time_of_the_start_record():
    run = [Metrics(9, 1000, 4.0, 105_000), Metrics(10, 1000, 4.0, 105_001)]
    step, reason = stopped_at(run)
    assert step == 10
    assert reason == (
        "train_time is 105.0 s at step 10 of 1000, past the start record's 100.0 s by over 5%"
    )
    assert stopped_at(run[:1]) == (None, None)
    assert stopped_at(run, margin=0.06) == (None, None)


@pytest.mark.parametrize(("factor", "latest"), [(1.2, 500), (1.5, 200), (3, 200)])
def test_a_slower_run_is_stopped_long_before_its_end(factor, latest):
    step, reason = stopped_at(curve(end_ms=factor * START_MS))
    assert step <= latest
    assert "cannot end before" in reason


def test_steps_that_grow_dearer_are_judged_by_the_last_ones():
    times = [s * s / STEPS / STEPS * 2 * START_MS for s in range(0, STEPS + 1, 100)]
    run = [replace(m, train_time_ms=round(t)) for m, t in zip(curve(), times, strict=True)]
    step, _ = stopped_at(run)
    assert step is not None
    assert times[step // 100] < START_MS


@pytest.mark.parametrize("start", [(), (START,)], ids=["no curve known", "curve known"])
def test_a_loss_that_has_diverged(start):
    run = [replace(m, val_loss=7.6 if m.step else 10.8) for m in curve()]
    step, reason = stopped_at(run, start=start)
    assert step <= 400
    assert reason == f"val_loss is 7.6000 at step {step} of 1000 and {reason.split(' and ')[1]}"
    assert "cannot come under" in reason
    assert stopped_at(run, start=start, mode="clock") == (None, None)


def test_the_best_node_counts_as_a_bound_if_asked():
    best, run = curve(end_ms=50_000), curve(end_ms=80_000)
    assert stopped_at(run, best=best) == (None, None)
    step, reason = stopped_at(run, best=best, against="best")
    assert step < STEPS
    assert "past the best node's 50.0 s" in reason
    assert stopped_at(run, best=(), against="best") == (None, None)


def test_a_curve_that_falls_late_lets_others_fall_late():
    flat = [replace(m, val_loss=3.9 if m.step < 900 else 3.27) for m in curve()]
    assert stopped_at(flat, start=())[0] is not None
    assert stopped_at(flat, start=(), best=flat) == (None, None)
    assert stopped_at(flat, start=(START, flat)) == (None, None)


def test_the_first_reason_stays_with_its_time():
    rule = CurveRule(CurveStop(), target=TARGET, start_ms=START_MS)
    assert rule.feed(curve()[0], 1.0) is None
    reason = rule.feed(replace(curve()[1], val_loss=math.nan), 2.5)
    assert rule.feed(curve()[2], 3.5) == reason == rule.reason
    assert rule.wall_s == 2.5


# --- what curves say ----------------------------------------------------------------------


def test_the_drop_left_is_the_larger_of_equal_progress_and_equal_time():
    reference = Reference(
        [Metrics(0, 10, 5.0, 0), Metrics(5, 10, 4.0, 80), Metrics(10, 10, 3.0, 100)]
    )
    assert reference.drop_left(0.5, None) == pytest.approx(1.0)
    assert reference.drop_left(0.5, 40) == pytest.approx(1.5)
    assert reference.drop_left(0.25, 80) == pytest.approx(1.5)
    assert reference.drop_left(1.0, 1000) == 0


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Metrics(0, 10, 5.0, 0)],
        [Metrics(5, 10, math.nan, 1)],
        [Metrics(5, 10, 4.0, 9), Metrics(5, 10, 3.0, 9), Metrics(3, 10, 2.0, 1)],
    ],
)
def test_a_curve_that_says_nothing(points):
    assert Reference(points).drop_left(0.5, 5) == 0


def test_options_are_checked():
    for wrong in ({"faster": 1}, {"margin": -1}, {"optimism": 0}, {"mode": "bold"}, {"x": 1}):
        with pytest.raises(ValidationError):
            CurveStop(**wrong)
    assert all(field.description for field in CurveStop.model_fields.values())


# --- whatever a script prints -------------------------------------------------------------

any_metrics = st.builds(
    Metrics,
    step=st.integers(0, 10**15),
    steps=st.none() | st.integers(0, 10**15),
    val_loss=st.floats(),
    train_time_ms=st.none() | st.integers(-(10**15), 10**15),
)


@given(
    st.lists(any_metrics, max_size=12),
    st.lists(any_metrics, max_size=5),
    st.none() | st.floats(0, 1e12),
    st.sampled_from(["clock", "safe"]),
)
def test_no_log_breaks_the_rule(run, other, start_ms, mode):
    step, reason = stopped_at(run, start_ms=start_ms, start=(other,), best=other, mode=mode)
    assert (reason is None) == (step is None)
    assert reason is None or "\n" not in reason


@given(st.floats(0.2, 1.0), st.integers(5, 40), st.floats(0, 0.05))
def test_no_winner_of_even_pace_is_stopped(part, validations, better):
    """However fast, however often it validates: the shape of the loss is the start's."""
    run = [
        Metrics(
            k,
            validations,
            shape(k / validations) - better,
            round(part * START_MS * k / validations),
        )
        for k in range(validations + 1)
    ]
    assert run[-1].val_loss <= TARGET
    assert stopped_at(run) == (None, None)
    assert stopped_at(run, start=()) == (None, None)


# --- the replay over real logs ------------------------------------------------------------

README = """\
1 | 45 minutes | first | 05/28/24 | [log](records/track_1_short/2024-05-28_A/a.txt) | x
2 | 2 minutes | second | 06/06/24 | [log](records/track_1_short/2024-06-06_B/b.txt) | x
3 | 1.5 minutes | third | 07/06/24 | [log](records/track_1_short/2024-07-06_C) | x
1 | 5.8 hours | medium | 05/28/24 | - | x
"""


def as_log(run):
    rows = (
        f"step:{m.step}/{m.steps} val_loss:{m.val_loss:.4f} train_time:{m.train_time_ms}ms"
        for m in run
    )
    return "print(source)\nstep:7/1000 train_time:1ms\n" + "\n".join(rows) + "\n"


@pytest.fixture
def clone(tmp_path):
    """Return a repository that looks like a clone of the speedrun's, with five logs."""
    short = "records/track_1_short"
    files = {
        "README.md": README,
        "records/track_3_optimization/README.md": "none yet\n",
        f"{short}/2024-05-28_A/a.txt": "".join(
            f"s:{s} tel:{4 - s / 1e4}\n" for s in range(0, 1001, 50)
        ),
        f"{short}/2024-06-06_B/b.txt": as_log(curve(end_ms=120_000)),
        f"{short}/2024-07-06_C/c.txt": as_log(curve(end_ms=90_000)),
        f"{short}/2024-07-06_C/slow.txt": as_log(curve(end_ms=240_000)),
        f"{short}/2024-08-01_Other/torn.txt": as_log(curve()[:-1]),
        f"{short}/2024-08-01_Other/late.log": as_log(curve(end_ms=80_000)),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "logs")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def replay(clone, *arguments):
    command = [sys.executable, str(REPLAY), "--clone", str(clone), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return done.returncode, {c[1].strip(): c[2:-1] for c in (line.split("|") for line in lines)}


def test_the_replay_tells_winners_from_others(clone):
    status, rows = replay(clone)
    counts = {
        name: tuple(int(c) for c in cells[:4]) for name, cells in rows.items() if "track" in name
    }
    assert counts["track_1 2"] == (1, 1, 0, 0)
    assert counts["track_1 3"] == (2, 1, 0, 1)
    assert counts["track_1 4 (by day)"] == (1, 1, 0, 0)
    assert [c.strip() for c in rows["track_1 3"][4:]] == ["240", "192", "80%"]
    assert status == 0


def test_the_replay_reports_false_stops(clone):
    status, rows = replay(clone, "--brief", "--set", "after=0", "--set", "optimism=0.01")
    assert int(rows["folders of records"][2]) == 2
    assert status == 1


def test_the_real_logs():
    if not CLONE:
        pytest.skip("SPEEDKIT_TEST_MODDED_NANOGPT does not name a clone of modded-nanogpt")
    status, rows = replay(CLONE, "--brief")
    assert int(rows["folders of records"][1]) > 500
    assert int(rows["folders of records"][2]) == 0
    assert status == 0
