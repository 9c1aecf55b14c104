"""The NanoGPT hints: all present, of the right length, and true to the human change."""

from __future__ import annotations

import difflib
import os
import re
from decimal import Decimal
from pathlib import Path

import pytest

HINTS = Path(__file__).parents[2] / "speedkit" / "records" / "nanogpt" / "hints"
TASKS = [*range(1, 6), *range(7, 21)]
WORDS = {"1-pseudocode.md": (250, 450), "2-text.md": (320, 460), "3-paper.md": (600, 880)}
FILES = [(task, name) for task in TASKS for name in WORDS]
NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e-?\d+)?")
FORBIDDEN = re.compile(
    r"\b(?:hints?|levels? ?[0-3]|diffs?|benchmarks?|speedruns?|modded-nanogpt)\b", re.IGNORECASE
)

# Records 1 to 3 take their settings as arguments: these belong to the change as the code does.
ARGUMENTS = {
    1: """batch_size 32 sequence_length 1024 total_batch_size 262144 num_iterations 24576
          weight_decay 0.1 learning_rate 0.0015 warmup_iters 256 val_loss_every 128""",
    2: """batch_size 64 sequence_length 1024 total_batch_size 524288 num_iterations 9536
          weight_decay 0.1 learning_rate 0.0018 warmup_iters 256 warmdown_iters 2048
          val_loss_every 128""",
    3: """batch_size 64 sequence_length 1024 num_iterations 7000 weight_decay 0.1
          learning_rate 0.0018 warmup_iters 250 warmdown_iters 2000 val_loss_every 128""",
}


def read(task: int, name: str) -> str:
    return (HINTS / str(task) / name).read_text(encoding="utf-8")


def numbers(text: str) -> set[Decimal]:
    """Numbers named in prose, where a comma may group digits."""
    return {Decimal(found.replace(",", "")) for found in NUMBER.findall(text)}


def code_numbers(code: str) -> set[Decimal]:
    """Numbers named in code, where a comma separates and an underscore may group digits."""
    return numbers(re.sub(r"(?<=\d)_(?=\d)", "", code).replace(",", " "))


def script(record: int) -> str:
    folder = os.environ.get("SPEEDKIT_TEST_RECORDS")
    if not folder:
        pytest.skip("SPEEDKIT_TEST_RECORDS names no folder with record_XX.py")
    return Path(folder, f"record_{record:02d}.py").read_text(encoding="utf-8")


def human_change(task: int) -> str:
    """Changed lines and their context, without file names and line numbers; then the arguments."""
    start, target = script(task).splitlines(), script(task + 1).splitlines()
    lines = list(difflib.unified_diff(start, target, lineterm=""))[2:]
    arguments = [ARGUMENTS.get(task, ""), ARGUMENTS.get(task + 1, "")]
    return "\n".join([*(line for line in lines if not line.startswith("@@")), *arguments])


def test_numbers_are_found_in_prose_and_code() -> None:
    assert numbers("10,485,760 tokens, 1e-6. Then 4.7750") == {
        Decimal(10485760),
        Decimal("1e-6"),
        Decimal("4.775"),
    }
    assert code_numbers("view(64,1024) + 1_770") == {Decimal(64), Decimal(1024), Decimal(1770)}


def test_every_task_has_a_folder_and_no_other() -> None:
    assert {path.name for path in HINTS.iterdir() if path.is_dir()} == {str(t) for t in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_its_three_files(task: int) -> None:
    assert sorted(path.name for path in (HINTS / str(task)).iterdir()) == sorted(WORDS)


@pytest.mark.parametrize(("task", "name"), FILES)
def test_length_is_in_its_band(task: int, name: str) -> None:
    low, high = WORDS[name]
    assert low <= len(read(task, name).split()) <= high


@pytest.mark.parametrize(("task", "name"), FILES)
def test_a_hint_speaks_of_the_change_alone(task: int, name: str) -> None:
    assert FORBIDDEN.findall(read(task, name)) == []


@pytest.mark.parametrize(("task", "name"), FILES)
def test_a_hint_has_a_title(task: int, name: str) -> None:
    assert read(task, name).startswith("# ")


@pytest.mark.parametrize("task", TASKS)
def test_numbers_of_the_text_occur_in_the_change(task: int) -> None:
    named = numbers(read(task, "2-text.md"))
    assert named, "a text without numbers cannot say what changed"
    assert named - code_numbers(human_change(task)) == set()


@pytest.mark.parametrize(("task", "name"), FILES)
def test_no_line_of_a_script_is_copied(task: int, name: str) -> None:
    lines = {line.strip() for line in (script(task) + script(task + 1)).splitlines()}
    text = read(task, name)
    assert [line for line in lines if len(line) >= 30 and line in text] == []
