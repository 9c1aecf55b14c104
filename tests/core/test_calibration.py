"""When stored times of the two records may be used, and when they may not."""

from __future__ import annotations

import shutil

import pytest

import speedkit
from tests.conftest import TOY


@pytest.fixture
def family(tmp_path):
    """Return a copy of the toy family, whose file may be changed."""
    folder = tmp_path / "family"
    shutil.copytree(TOY, folder)
    return folder


def change(family, old, new):
    path = family / "family.toml"
    path.write_text(path.read_text().replace(old, new))


def test_a_known_time_that_was_corrected_counts(toy_run, family):
    task = f"{family}/2"
    before = toy_run("before", task=task, coder="noop", nodes=1).calibration
    change(family, "time_ms = 6000", "time_ms = 12000")
    after = toy_run("after", task=task, coder="noop", nodes=1).calibration
    assert before.target_ms == before.start_ms / 2
    assert after.target_ms == after.start_ms / 4


def test_without_a_known_time_nothing_is_run(toy_run, family, tmp_path):
    change(family, "time_ms = 6000\n", "")
    with pytest.raises(speedkit.SpeedkitError, match=r"record 2 .* give both a time_ms"):
        toy_run(task=f"{family}/2")
    assert not (tmp_path / "run").exists()  # what ran a job is kept


def test_more_runs_than_are_stored_are_made(toy_run):
    def runs(out, count):
        return len(toy_run(out, nodes=1, calibration_runs=count).calibration.start_runs)

    assert runs("first", 2) == 2
    assert runs("fewer", 1) == 2
    assert runs("whatever", None) == 2
    assert runs("more", 4) == 4
    assert runs("again", None) == 4
