"""The NanoGPT hints: all present, of the right length, and true to the human change."""

from __future__ import annotations

import difflib
import os
import re
from decimal import Decimal
from pathlib import Path

import pytest

from speedkit.records.nanogpt.transforms import SETTINGS, transform

HINTS = Path(__file__).parents[2] / "speedkit" / "records" / "nanogpt" / "hints"
TASKS = [*range(1, 6), *range(7, 21)]
WORDS = {"1-pseudocode.md": (250, 450), "2-text.md": (320, 460), "3-paper.md": (600, 880)}
FILES = [(task, name) for task in TASKS for name in WORDS]
NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e-?\d+)?")
FORBIDDEN = re.compile(
    r"\b(?:hints?|levels? ?[0-3]|diffs?|benchmarks?|speedruns?|modded-nanogpt)\b", re.IGNORECASE
)


def read(task: int, name: str) -> str:
    return (HINTS / str(task) / name).read_text(encoding="utf-8")


def numbers(text: str) -> set[Decimal]:
    """Numbers named in prose, where a comma may group digits."""
    return {Decimal(found.replace(",", "")) for found in NUMBER.findall(text)}


def code_numbers(code: str) -> set[Decimal]:
    """Numbers named in code, where a comma separates and an underscore may group digits."""
    return numbers(re.sub(r"(?<=\d)_(?=\d)", "", code).replace(",", " "))


def script(record: int) -> str:
    """Return the script of a record as it runs, and as a coder sees it."""
    folder = os.environ.get("SPEEDKIT_TEST_RECORDS")
    if not folder:
        pytest.skip("SPEEDKIT_TEST_RECORDS names no folder with record_XX.py")
    name = f"record_{record:02d}"
    source = Path(folder, f"{name}.py").read_text(encoding="utf-8")
    return transform(name, source)[0] if name in SETTINGS else source


def human_change(task: int) -> str:
    """Changed lines and their context, without file names and line numbers."""
    start, target = script(task).splitlines(), script(task + 1).splitlines()
    lines = list(difflib.unified_diff(start, target, lineterm=""))[2:]
    return "\n".join(line for line in lines if not line.startswith("@@"))


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
