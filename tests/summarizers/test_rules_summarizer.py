"""The rules summarizer: what each outcome reads like, and that it stays short and clean."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedkit.core.components import Ending, Execution, RankError, SummaryRequest
from speedkit.core.metrics import Metrics, Report
from speedkit.core.node import Node, Outcome, Stage
from speedkit.core.task import Family, Task
from speedkit.plugins.summarizers.rules import RulesSummarizer, clean, last_traceback, spread_out

FAMILY = """
schema = 1
name = "tiny"
script = "train.py"
[target]
val_loss = 2.6
[[record]]
index = 1
title = "first"
[[record]]
index = 2
title = "second"
"""
TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 9, in <module>
    main()
  File "train.py", line 5, in main
    raise ValueError("bad shape")
ValueError: bad shape"""

FINISHED = Execution(Ending.FINISHED, 0, wall_s=12.34)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "family.toml").write_text(FAMILY)
    return Family.load(folder).task(1)


def request(
    task: Task,
    outcome: str = "valid",
    *,
    reason: str = "",
    curve: tuple[Metrics, ...] = (),
    execution: Execution | None = FINISHED,
    stderr: str = "",
    parent_ms: int | None = 9500,
) -> SummaryRequest:
    metrics = curve[-1] if curve else None
    parent = Node(
        1,
        0,
        Stage.DRAFT,
        1,
        outcome=Outcome.VALID,
        metrics=Metrics(1, 1, 2.5, parent_ms) if parent_ms else None,
    )
    node = Node(3, 1, Stage.IMPROVE, 2, outcome=Outcome(outcome), reason=reason, metrics=metrics)
    return SummaryRequest(
        task, node, parent, Report(curve), execution, "", stderr, 10_000.0, Path()
    )


def summarize(*args: object, options: dict[str, object] | None = None, **kwargs: object) -> str:
    summarizer = RulesSummarizer(RulesSummarizer.Options(**(options or {})))
    return summarizer.summarize(request(*args, **kwargs))


LOSSES = {0: 4.2, 50: 3.5, 100: 3.1, 150: 2.8, 200: 2.7, 250: 2.58, 300: 2.55}
CURVE = tuple(Metrics(step, 300, loss, 30 * step) for step, loss in LOSSES.items())


def test_a_valid_node(task: Task) -> None:
    assert summarize(task, curve=CURVE).splitlines() == [
        "Node 3 (improve of node 1) is valid.",
        "The job finished after 12.3 s.",
        "Last validation: step 300 of 300, val_loss 2.5500 (at or under the target 2.6), "
        "train_time 9000 ms.",
        "The target was reached at step 250 already, 7500 ms.",
        "10.0 % faster than the 10000 ms of the start record.",
        "5.3 % faster than the 9500 ms of its parent, node 1.",
        "Curve (step: val_loss): 0: 4.2, 50: 3.5, 100: 3.1, 200: 2.7, 250: 2.58, 300: 2.55.",
    ]


def test_an_invalid_node_keeps_its_reason(task: Task) -> None:
    last = (Metrics(300, 300, 2.7, 12_000),)
    text = summarize(task, "invalid", reason="val_loss 2.7000 is over the target 2.6", curve=last)
    assert "is invalid: val_loss 2.7000 is over the target 2.6." in text
    assert "(not under the target 2.6)" in text
    assert "20.0 % slower than the 10000 ms of the start record" in text
    assert "Curve" not in text


def test_harmless_noise_of_a_finished_run_is_left_out(task: Task) -> None:
    last = (Metrics(300, 300, 2.7, 12_000),)
    assert "bad shape" not in summarize(task, "invalid", curve=last, stderr=TRACEBACK)
    assert "bad shape" not in summarize(task, "valid", curve=last, stderr=TRACEBACK)


def test_a_crash_names_the_rank_and_ends_with_its_traceback(task: Task) -> None:
    error = RankError(1, "ValueError: bad shape", TRACEBACK)
    execution = Execution(Ending.CRASHED, 1, (error, RankError(0, "other")), 3.0)
    text = summarize(task, "buggy", reason="crashed", execution=execution)
    assert "The job crashed with exit status 1 after 3.0 s." in text
    assert "Rank 1 failed: ValueError: bad shape" in text
    assert text.endswith(TRACEBACK)


def test_the_traceback_comes_from_stderr_where_the_rank_has_none(task: Task) -> None:
    ranked = "\n".join(f"[rank0]: {line}" for line in TRACEBACK.splitlines())
    stderr = f"{TRACEBACK.replace('shape', 'old')}\n\nnoise\n{ranked}\n\nW0101 more noise\n"
    execution = Execution(Ending.CRASHED, 1, (RankError(0, "exit code 1"),))
    text = summarize(task, "buggy", reason="crashed", execution=execution, stderr=stderr)
    assert text.endswith(TRACEBACK)
    assert "bad old" not in text


def test_without_a_traceback_the_last_words_are_shown(task: Task) -> None:
    stderr = (
        "noise\n" * 9 + '  File "train.py", line 3\n    f(\n     ^\nSyntaxError: never closed\n'
    )
    execution = Execution(Ending.CRASHED, 1)
    text = summarize(task, "buggy", reason="crashed", execution=execution, stderr=stderr)
    assert text.endswith("End of stderr:\nnoise\n" + stderr.split("noise\n")[-1].rstrip("\n"))


def test_a_signal_is_named(task: Task) -> None:
    execution = Execution(Ending.CRASHED, 1, (RankError(-1, "", signal="SIGKILL"),))
    text = summarize(task, "buggy", reason="killed", execution=execution)
    assert "A rank failed (signal SIGKILL): no message" in text


@pytest.mark.parametrize("ending", Ending)
def test_every_ending_has_words(task: Task, ending: Ending) -> None:
    text = summarize(task, "buggy", reason="why", execution=Execution(ending, reason="limit 90 s"))
    assert text.splitlines()[1].startswith("The job ")
    assert "limit 90 s" in text


def test_a_reason_is_not_said_twice(task: Task) -> None:
    execution = Execution(Ending.TIMED_OUT, reason="over 90 s")
    text = summarize(task, "buggy", reason="timed out: over 90 s", execution=execution)
    assert text.count("over 90 s") == 1


def test_a_failed_edit_was_not_run(task: Task) -> None:
    text = summarize(task, "edit_failed", reason="no change.", execution=None)
    assert text == "Node 3 (improve of node 1) was not run, its edit failed: no change."


def test_losses_that_are_no_numbers_and_missing_clocks(task: Task) -> None:
    curve = (Metrics(10, 20, float("nan"), None),)
    text = summarize(task, "invalid", reason="val_loss is nan", curve=curve)
    assert "step 10 of 20, val_loss nan (not under the target 2.6)." in text
    assert "start record" not in text


def test_a_long_traceback_is_cut_in_its_middle(task: Task) -> None:
    frames = "".join(f'  File "x.py", line {i}, in f\n    f()\n' for i in range(1000))
    stderr = f"Traceback (most recent call last):\n{frames}RecursionError: {'x' * 9999}\n"
    execution = Execution(Ending.CRASHED, 1)
    text = summarize(
        task, "buggy", execution=execution, stderr=stderr, options={"traceback_lines": 4}
    )
    tail = text[text.index("Traceback") :].splitlines()
    assert tail[1] == "  …"
    assert len(tail) == 6
    assert tail[-1].startswith("RecursionError: xxx")
    assert max(map(len, tail)) <= 300


def test_options_leave_parts_out(task: Task) -> None:
    execution = Execution(Ending.CRASHED, 1)
    text = summarize(
        task,
        "buggy",
        curve=CURVE,
        execution=execution,
        stderr=TRACEBACK,
        options={"traceback_lines": 0, "curve_points": 0},
    )
    assert "Traceback" not in text
    assert "Curve" not in text
    assert all(field.description for field in RulesSummarizer.Options.model_fields.values())


def test_the_worst_case_stays_short(task: Task) -> None:
    wordy = "several words " * 500
    execution = Execution(
        Ending.STALLED, 1, (RankError(3, wordy, TRACEBACK, "SIGTERM"),), 1e6, reason="other " * 500
    )
    text = summarize(task, "buggy", reason=wordy, curve=CURVE, execution=execution)
    assert text.endswith(TRACEBACK)
    assert len(text.removesuffix(TRACEBACK).split()) <= 150


@given(count=st.integers(0, 12), length=st.integers(0, 40))
def test_points_of_a_curve_are_spread_out(count: int, length: int) -> None:
    curve = [Metrics(i, length, 1.0, 1) for i in range(length)]
    shown = spread_out(curve, count)
    assert len(shown) == min(count, length)
    assert [m.step for m in shown] == sorted({m.step for m in shown})
    if shown:
        assert shown[-1] is curve[-1]
    if len(shown) > 1:
        assert shown[0] is curve[0]


@given(st.text())
def test_clean_text_has_no_control_characters(text: str) -> None:
    kept = clean(text)
    assert all(c >= " " or c in "\t\n" for c in kept)
    assert clean(kept) == kept or "[rank" in kept


def test_escape_sequences_go_as_a_whole() -> None:
    assert clean("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\r\ny\x00") == "red x\ny"


def test_no_traceback_no_text() -> None:
    assert last_traceback("Trace me") == ""
    assert last_traceback("x\nTraceback (most recent call last):") == (
        "Traceback (most recent call last):"
    )


def test_a_message_of_several_lines_is_kept() -> None:
    text = TRACEBACK + "\nsecond line\n\nafter"
    assert last_traceback(text) == TRACEBACK + "\nsecond line"


def test_summarizing_changes_nothing(task: Task) -> None:
    asked = request(task, curve=CURVE)
    before = dataclasses.replace(asked)
    first = RulesSummarizer().summarize(asked)
    assert RulesSummarizer().summarize(asked) == first
    assert asked == before
