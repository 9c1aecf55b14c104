"""The hints knowledge source."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from speedkit.core.errors import FamilyError
from speedkit.core.task import Family, Task
from speedkit.plugins.knowledge.hints import HintsKnowledge

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
[[record]]
index = 3
title = "third"
"""


@pytest.fixture
def family(tmp_path: Path) -> Family:
    (tmp_path / "family.toml").write_text(FAMILY)
    hints = tmp_path / "hints" / "1"
    hints.mkdir(parents=True)
    (hints / "1-pseudocode.md").write_text("for … do")
    (hints / "3-paper.md").write_text("Abstract. é")
    return Family.load(tmp_path)


@pytest.fixture
def task(family: Family) -> Task:
    return family.task(1)


def hints(levels: object) -> HintsKnowledge:
    return HintsKnowledge(HintsKnowledge.Options(levels=levels))


@pytest.mark.parametrize("levels", ["1,3", "3, 1", (1, 3), [3, 1, 1], ["1", "3"]])
def test_levels_come_in_order(task: Task, levels: object) -> None:
    entries = hints(levels).entries(task)
    assert [e.text for e in entries] == ["for … do", "Abstract. é"]
    assert [e.title for e in entries] == ["Hint level 1: pseudocode", "Hint level 3: mini-paper"]
    assert {e.source for e in entries} == {"hints"}


@pytest.mark.parametrize(("levels", "expected"), [("2", (2,)), (2, (2,)), ("", ()), ((), ())])
def test_one_level_or_none(levels: object, expected: tuple[int, ...]) -> None:
    assert hints(levels).options.levels == expected


def test_no_level_is_no_entry(task: Task) -> None:
    assert list(hints(()).entries(task)) == []


@pytest.mark.parametrize("levels", ["4", "0", "1,x", [1.5], {"a": 1}, None, "-1"])
def test_other_levels_are_refused(levels: object) -> None:
    with pytest.raises(ValidationError):
        hints(levels)


def test_a_missing_level_is_one_clear_line(task: Task) -> None:
    with pytest.raises(FamilyError) as error:
        HintsKnowledge().entries(task)
    assert str(error.value) == "tiny/1 has no hint of level 2; it has 1, 3"


def test_a_task_without_hints_says_so(family: Family) -> None:
    with pytest.raises(FamilyError) as error:
        hints("1,3").entries(family.task(2))
    assert str(error.value) == "tiny/2 has no hint of level 1, 3; it has no hints at all"


def test_options_are_described() -> None:
    assert all(field.description for field in HintsKnowledge.Options.model_fields.values())
