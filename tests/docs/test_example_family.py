"""The family in examples/ is a speedrun: its records run, get faster and reach the target."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from speedkit.core.metrics import parse_log
from speedkit.core.task import Family
from tests.conftest import TESTS
from tests.docs.blocks import blocks_of

FOLDER = TESTS.parent / "examples" / "families" / "tour"
PAGE = TESTS.parent / "docs" / "howto" / "own-family.md"


@pytest.fixture(scope="module")
def family():
    return Family.load(FOLDER)


@pytest.fixture(scope="module")
def reports(family):
    """Run each record with two seeds, in the folder where its data stand."""
    found = {}
    for record in family.records:
        for seed in (1, 2):
            done = subprocess.run(
                [sys.executable, str(record.path)],
                cwd=FOLDER,
                env={**os.environ, "SPEEDKIT_SEED": str(seed)},
                capture_output=True,
                text=True,
                check=True,
            )
            found[record.index, seed] = parse_log(done.stdout.splitlines())
    return found


def test_three_records_two_tasks_and_all_hints(family):
    assert len(family.records) == 3
    assert [t.hint_levels() for t in family.tasks.values()] == [(1, 2, 3), (1, 2, 3)]


def test_every_record_reaches_the_target(family, reports):
    for key, report in reports.items():
        assert report.reason(family.rules.target) == "", key
        assert len(report.curve) >= 4


def test_the_seed_matters(reports):
    losses = {i: {reports[i, seed].last.val_loss for seed in (1, 2)} for i in (1, 2, 3)}
    assert all(len(found) == 2 for found in losses.values())


def test_the_last_record_is_the_fastest_by_far(reports):
    first, last = (min(reports[i, s].last.train_time_ms for s in (1, 2)) for i in (1, 3))
    assert last < first / 2


def test_each_record_makes_fewer_steps(reports):
    steps = [reports[i, 1].last.steps for i in (1, 2, 3)]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 3


def test_numbers_of_hints_are_those_of_the_records(family):
    for task_id, task in family.tasks.items():
        hint = task.hint(1)
        from_steps, to_steps = (
            int(record.read().partition("num_iterations: int = ")[2].split()[0])
            for record in (task.start, task.target)
        )
        assert f"{from_steps} -> {to_steps}" in hint, task_id
        assert f"{from_steps} -> {to_steps} steps" in task.target.changes


def test_a_cheaper_tour_is_no_tour(family, tmp_path):
    script = family.record(1).read().replace("tour = list(range(len(cities)))", "tour = [0] * 300")
    (tmp_path / "tour.py").write_text(script.replace("int = 1200", "int = 4"), encoding="utf-8")
    (tmp_path / "data").symlink_to(FOLDER / "data")
    done = subprocess.run([sys.executable, "tour.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "val_loss" not in done.stdout


def test_the_family_in_the_documentation_is_one(tmp_path):
    (tmp_path / "pi").mkdir()
    for block in blocks_of(PAGE.read_text(encoding="utf-8")):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    family = Family.load(tmp_path / "pi")
    steps = []
    for record in family.records:
        done = subprocess.run(
            [sys.executable, str(record.path)], capture_output=True, text=True, check=True
        )
        report = parse_log(done.stdout.splitlines())
        assert report.reason(family.rules.target) == ""
        assert report.last.val_loss > 0.8 * family.rules.target  # else a guard wants to look
        assert len(report.curve) == 4
        steps.append(report.last.steps)
    assert steps == [600000, 300000]
