"""What counts as the log of one training run, and what does not."""

from __future__ import annotations

import io
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedkit.core import metrics as module
from speedkit.core.metrics import (
    MAX_LINE,
    MAX_TIME_MS,
    Metrics,
    Report,
    fsr,
    is_malformed,
    metrics_from_dict,
    metrics_to_dict,
    parse_line,
    parse_log,
    read_lines,
)

LINE = "step:125/1390 val_loss:4.3210 train_time:5678ms step_avg:45.42ms"
TARGET = 3.28
HONEST = [
    "step:0/300 val_loss:10.8258 train_time:0ms step_avg:nanms",
    "step:100/300 train_time:900ms step_avg:9.00ms",
    "step:125/300 val_loss:4.1000 train_time:1000ms step_avg:8.00ms",
    "step:250/300 val_loss:3.2790 train_time:2000ms step_avg:8.00ms",
    "step:300/300 val_loss:3.2500 train_time:2400ms step_avg:8.00ms",
]


def reason(lines, target=TARGET):
    return parse_log(lines).reason(target)


# --- one line -----------------------------------------------------------------------------


def test_a_line_with_and_without_step_avg():
    expected = Metrics(125, 1390, 4.321, 5678)
    assert parse_line(LINE) == expected
    assert parse_line(LINE.partition(" step_avg")[0]) == expected
    assert parse_line(LINE + "\n") == expected


def test_the_grammar_of_the_first_trainers():
    assert parse_line("s:9536 tel:3.275959") == Metrics(9536, None, 3.275959, None)


counts = st.integers(0, 10**9)
losses = st.floats(0, 1000).map(lambda x: f"{x:.4f}")
averages = st.sampled_from(["", " step_avg:nanms", " step_avg:infms", " step_avg:8.25ms"])


@given(counts, counts, losses, counts, averages)
def test_every_printed_line_is_read_back(step, steps, loss, time, average):
    line = f"step:{step}/{steps} val_loss:{loss} train_time:{time}ms{average}"
    assert parse_line(line) == Metrics(step, steps, float(loss), time)
    assert not is_malformed(line)


@given(st.text(max_size=20), st.text(max_size=20))
def test_nothing_may_stand_before_or_after(before, after):
    line = f"{before}{LINE}{after}"
    if (before, after) not in (("", ""), ("", "\n")):
        assert parse_line(line) is None


@given(st.data())
def test_a_changed_line_is_refused_or_says_what_it_says(data):
    position = data.draw(st.integers(0, len(LINE) - 1))
    character = data.draw(st.characters(codec=None) | st.sampled_from("0123456789.-/: \r\t"))
    line = LINE[:position] + character + LINE[position + 1 :]
    found = parse_line(line)
    if found is not None:
        assert line.isascii()
        assert found == Metrics(
            int(line.split("step:")[1].split("/")[0]),
            int(line.split("/")[1].split(" ")[0]),
            pytest.approx(float(line.split("val_loss:")[1].split(" ")[0])),
            int(line.split("train_time:")[1].split("ms")[0]),
        )


MALFORMED = [
    "step:१२५/1390 val_loss:4.3210 train_time:5678ms",  # digits of another script
    "step:125/1390 val_loss:４.3210 train_time:5678ms",
    "step:125/1390 val_loss:4.3210 train_time:5678ms\r",
    "step:125/1390 val_loss:4.3210 train_time:5678ms \n",
    " step:125/1390 val_loss:4.3210 train_time:5678ms",
    "\ufeffstep:125/1390 val_loss:4.3210 train_time:5678ms",
    "st\u200bep:125/1390 val_loss:4.3210 train_time:5678ms",
    "step:125/1390 val_loss:4.3210 train_time:5.678s",
    "step:125/1390 val_loss:4.3210 train_time:56",
    "step:125/1390 val_loss:4e0 train_time:5678ms",
    "step:125/1390 val_loss:+4.3210 train_time:5678ms",
    "step:125/1390 val_loss:4 train_time:5678ms",
    "step:125/1390 val_loss:NaN train_time:5678ms",
    "step:125/1390 val_loss:4_3.0 train_time:5678ms",
    "step:-5/1390 val_loss:4.3210 train_time:5678ms",
    "step:125/1390  val_loss:4.3210 train_time:5678ms",
    "step:125/1390 val_loss:tensor(4.3210) train_time:5678ms",
    f"step:{'9' * 16}/1390 val_loss:4.3210 train_time:5678ms",
    "step:125/1390 val_loss:4.3210 train_time:5678ms step_avg:45.42ms step_avg:1.00ms",
    "STEP:125/1390 VAL_LOSS:1.0",
    LINE + "x" * MAX_LINE,
]


@pytest.mark.parametrize("line", MALFORMED)
def test_a_line_that_only_looks_like_a_validation(line):
    assert parse_line(line) is None
    assert is_malformed(line)
    assert "malformed" in reason([*HONEST, line])


@pytest.mark.parametrize(
    "line",
    [
        'print0(f"step:{step}/{steps} val_loss:{val_loss:.4f} train_time:{ms:.0f}ms")',
        '    "step:{}/{} val_loss:{:.4f}",',
        "# step:S val_loss is what the last line says",
        "#   step:125/1390 val_loss:4.3210 train_time:5678ms",
        "step:100/300 train_time:900ms step_avg:9.00ms",
        "val_loss is computed at every step: see below",
        "",
    ],
)
def test_source_text_in_a_log_does_not_spoil_it(line):
    assert reason([line, *HONEST, line]) == ""


# --- a whole log --------------------------------------------------------------------------


def test_an_honest_log():
    report = parse_log(HONEST)
    assert report.reason(TARGET) == ""
    assert report.valid_lines == 4
    assert report.last == Metrics(300, 300, 3.25, 2400)
    assert report.first_at_target(TARGET) == Metrics(250, 300, 3.279, 2000)


def test_the_last_line_decides_not_the_best():
    lines = [*HONEST[:-1], "step:300/300 val_loss:3.2900 train_time:2400ms"]
    assert reason(lines) == "val_loss 3.2900 is over the target 3.28"
    assert reason(lines, 3.29) == ""


def test_a_target_that_is_no_number_is_never_reached():
    assert "over the target nan" in reason(HONEST, math.nan)


def test_at_the_target_is_enough():
    assert reason(["step:9/9 val_loss:3.2800 train_time:5ms"]) == ""


ATTACKS = {
    "no line": ([], "no validation line"),
    "a line after the end": (
        [*HONEST, "step:301/300 val_loss:1.0000 train_time:2401ms"],
        "ends at step 301 of 300",
    ),
    "the end twice": ([*HONEST, HONEST[-1]], "step 300 comes after one of step 300"),
    "a second, faster run": ([*HONEST, *HONEST], "step 0 comes after one of step 300"),
    "a faster end after the end": (
        [*HONEST, "step:300/300 val_loss:3.0000 train_time:9ms"],
        "step 300 comes after",
    ),
    "an earlier step late": (
        [*HONEST[:-1], "step:200/300 val_loss:3.2 train_time:2100ms", HONEST[-1]],
        "step 200 comes after one of step 250",
    ),
    "the clock set back": (
        [*HONEST[:-1], "step:300/300 val_loss:3.2500 train_time:1999ms"],
        "train_time goes back from 2000 to 1999",
    ),
    "fewer steps than begun": (
        [*HONEST[:-1], "step:260/260 val_loss:3.2500 train_time:2100ms"],
        "number of steps changes from 300 to 260",
    ),
    "another grammar": ([*HONEST, "s:301 tel:3.0"], "number of steps changes from 300 to None"),
    "not the end": (HONEST[:-1], "ends at step 250 of 300"),
    "nan at the end": ([*HONEST[:-1], "step:300/300 val_loss:nan train_time:2400ms"], "is nan"),
    "nan on the way": (
        ["step:0/300 val_loss:nan train_time:0ms", *HONEST[2:]],
        "val_loss is nan at step 0",
    ),
    "inf": (["step:9/9 val_loss:inf train_time:9ms"], "is inf"),
    "minus inf": (["step:9/9 val_loss:-inf train_time:9ms"], "is -inf"),
    "a number too great": ([f"step:9/9 val_loss:{'9' * 400}.0 train_time:9ms"], "is inf"),
    "negative": (["step:9/9 val_loss:-3.0000 train_time:9ms"], "negative"),
    "a small negative": (["step:9/9 val_loss:-0.0000 train_time:9ms"], "negative"),
    "no step": (["step:0/0 val_loss:3.0000 train_time:9ms"], "without a step"),
    "negative time": (["step:9/9 val_loss:3.0000 train_time:-9ms"], "out of range"),
    "no time": (["step:9/9 val_loss:3.0000 train_time:0ms"], "train_time is 0"),
    "too much time": (
        [f"step:9/9 val_loss:3.0000 train_time:{MAX_TIME_MS + 1}ms"],
        "out of range",
    ),
    "no clock": (["s:9 tel:3.0"], "no train_time"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_named(name):
    lines, expected = ATTACKS[name]
    assert expected in reason(lines)


@given(st.data())
def test_one_line_more_or_out_of_place_never_counts(data):
    """A validation put anywhere spoils the log, unless it is where an honest one could be."""
    at = data.draw(st.integers(0, len(HONEST)))
    step, time = data.draw(st.integers(0, 400)), data.draw(st.integers(0, 3000))
    extra = f"step:{step}/300 val_loss:3.0000 train_time:{time}ms"
    lines = [*HONEST[:at], extra, *HONEST[at:]]
    curve = [m for m in map(parse_line, lines) if m]
    steps, times = [m.step for m in curve], [m.train_time_ms for m in curve]
    in_order = steps == sorted(set(steps)) and times == sorted(times) and steps[-1] == 300
    assert (reason(lines) == "") == in_order


def test_first_at_target_wants_a_number():
    losses = (-math.inf, math.nan, -1.0, -0.0)
    curve = tuple(Metrics(k, 9, loss, k) for k, loss in enumerate(losses, start=1))
    assert Report(curve).first_at_target(TARGET) is None


@pytest.mark.parametrize("pattern", [":", ": ", "::1x", " :\t"])
def test_no_line_takes_long(pattern):
    """A script prints what it likes, as much as it likes, and the controller reads it."""
    line = "step" + pattern * (MAX_LINE // len(pattern) - 2)
    began = time.process_time()
    for _ in range(20):
        parse_log([line])
    assert time.process_time() - began < 1


def test_only_ten_malformed_lines_are_kept():
    report = parse_log(["step:1/2 val_loss:x" + "y" * 1000] * 50)
    assert len(report.malformed) == 10
    assert max(map(len, report.malformed)) == 200


def test_too_many_validations_are_counted_and_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_CURVE", 10)
    lines = [f"step:{k}/25 val_loss:3.0 train_time:{k}ms" for k in range(1, 26)]
    report = parse_log(lines)
    assert (len(report.curve), report.valid_lines) == (10, 25)
    assert report.last == Metrics(25, 25, 3.0, 25)
    assert "too many" in report.reason(TARGET)


# --- bytes --------------------------------------------------------------------------------


def test_only_a_newline_ends_a_line():
    data = b"bar 10%\rstep:9/9 val_loss:3.0 train_time:5ms\nvt\x0b\xe2\x80\xa8end\nlast"
    assert list(read_lines(io.BytesIO(data))) == [
        "bar 10%\rstep:9/9 val_loss:3.0 train_time:5ms\n",
        "vt\x0b\u2028end\n",
        "last",
    ]


def test_bytes_that_are_no_text_do_not_stop_the_reading():
    data = b"\xff\xfe\n" + "\n".join(HONEST).encode()
    assert reason(read_lines(io.BytesIO(data))) == ""


@pytest.mark.parametrize("length", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 5 * MAX_LINE + 3])
def test_an_overlong_line_is_one_line_and_is_cut(length):
    hidden = b"x" * length + HONEST[-1].encode()
    lines = list(read_lines(io.BytesIO(hidden + b"\nnext\n")))
    assert len(lines) == 2
    assert len(lines[0]) <= MAX_LINE + 1
    assert lines[1] == "next\n"
    assert parse_log(lines).curve == ()


@given(st.lists(st.binary(max_size=40)), st.binary(max_size=40))
def test_lines_are_those_between_newlines(parts, last):
    data = b"\n".join([*parts, last])
    lines = list(read_lines(io.BytesIO(data)))
    assert "".join(lines) == data.decode("utf-8", "backslashreplace")
    assert len(lines) == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


# --- FSR and storage ----------------------------------------------------------------------


def test_fsr_is_never_clipped():
    assert fsr(100, 50, 100) == 0
    assert fsr(100, 50, 50) == 1
    assert fsr(100, 50, 25) == 1.5
    assert fsr(100, 50, 200) == -2


@pytest.mark.parametrize("target", [100, 101, math.nan])
def test_fsr_needs_a_speedup(target):
    with pytest.raises(ValueError, match="no speedup to recover"):
        fsr(100, target, 50)


@given(
    st.builds(Metrics, counts, counts | st.none(), st.floats(allow_nan=False), counts | st.none())
)
def test_metrics_survive_their_json(metrics):
    assert metrics_from_dict(metrics_to_dict(metrics)) == metrics


def test_no_metrics_and_nan_survive_too():
    assert metrics_from_dict(metrics_to_dict(None)) is None
    restored = metrics_from_dict(metrics_to_dict(Metrics(1, 2, math.nan, 3)))
    assert restored is not None
    assert math.isnan(restored.val_loss)
