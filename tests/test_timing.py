"""Timing the human records anew: in turn, resumable, and plain about what cannot be run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time

import pytest

from speedkit.analysis.figures.records import family_times
from speedkit.calibrate import calibrate
from speedkit.core.errors import UsageError
from speedkit.core.plugins import Plugins
from speedkit.plugins.executors.ray import RayExecutor
from speedkit.plugins.executors.slurm import SlurmExecutor
from speedkit.plugins.executors.torchrun import TorchrunExecutor
from speedkit.timing import retime
from tests.conftest import TOY
from tests.kit import grid_parts


@pytest.fixture(autouse=True)
def behaviour():
    yield grid_parts.now
    grid_parts.now.reset()


@pytest.fixture(scope="module")
def plugins():
    return Plugins((grid_parts.NAME,))


@pytest.fixture
def timed(tmp_path, plugins):
    """Return a function that times the toy family, and notes the order of runs."""

    def run(family=TOY, **settings):
        order = []
        made = retime(
            str(family),
            out=tmp_path / "times.json",
            executor="quick",
            plugins=plugins,
            on_run=lambda index, k, trial: order.append((index, k)),
            **settings,
        )
        return made, order

    return run


def test_records_are_run_in_turn(timed):
    made, order = timed(repeats=3)
    assert order == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]
    first, second, third = made.records
    assert first.runs_ms == (10100.0,) * 3
    assert first.ratio == pytest.approx(1.01)
    assert second.losses == pytest.approx((0.8333,) * 3)
    assert (third.runs_ms, third.problem) == ((), "it has no script")


def test_jobs_have_their_files_where_other_machines_see_them(timed, tmp_path, behaviour):
    """An executor that may run jobs elsewhere gets no folder for temporary files."""
    seen = []
    behaviour.on_job = lambda job: seen.extend([job.workspace, job.log_dir])
    timed(repeats=1)
    assert len(seen) == 4
    assert all(path.is_relative_to(tmp_path) for path in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["times.json"], "they are gone afterwards"


@pytest.mark.parametrize("is_local", [True, False])
def test_an_executor_says_itself_whether_jobs_run_on_this_machine(
    timed, tmp_path, own_cache, plugins, behaviour, monkeypatch, is_local
):
    """Those of others as well; then their files are where temporary ones are."""
    monkeypatch.setattr(grid_parts.QuickExecutor, "is_local", is_local)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    seen = []
    behaviour.on_job = lambda job: seen.append(job.workspace)
    timed(repeats=1)
    calibrate(f"{TOY}/1", runs=1, executor="quick", plugins=plugins)
    assert len(seen) == 4
    inside = [path.is_relative_to(tmp_path / "temporary") for path in seen]
    assert inside == [is_local] * 4
    assert is_local or seen[-1].is_relative_to(own_cache)


def test_where_jobs_of_the_built_in_executors_run():
    class Own(TorchrunExecutor):
        """What a third party may build on it."""

    assert Own().is_local
    assert not SlurmExecutor().is_local
    assert not RayExecutor().is_local


def test_the_file_is_what_figures_read(timed, tmp_path):
    made, _ = timed(repeats=2)
    values = json.loads((tmp_path / "times.json").read_text())
    assert values == json.loads(json.dumps(made.to_dict()))
    assert values["hardware"] == {"executor": "quick"}
    read = family_times(values, "times.json")
    assert [(r.median_ms, r.reported_ms) for r in read.records] == [
        (10100.0, 10000.0),
        (pytest.approx(6060.0), 6000.0),
        (None, 3000.0),
    ]


def test_a_later_call_runs_only_what_is_missing(timed):
    timed(records=[1], repeats=1)
    made, order = timed(repeats=2)
    assert order == [(2, 1), (1, 2), (2, 2)]
    made, order = timed(records=[2], repeats=2)
    assert order == []
    assert [len(r.runs_ms) for r in made.records] == [2, 2, 0], "others are kept"


def test_a_record_that_fails_is_passed_over_and_tried_again(timed, behaviour):
    def crash(job):
        if job.name.startswith("record-1-"):
            (job.workspace / job.script).write_text("1 / 0")

    behaviour.on_job = crash
    made, order = timed(repeats=2)
    assert order == [(1, 1), (2, 1), (2, 2)], "it is not tried a second time"
    assert "it did not run to its end: ZeroDivisionError" in made.records[0].problem
    behaviour.reset()
    made, _ = timed(repeats=2)
    assert (made.records[0].problem, len(made.records[0].runs_ms)) == ("", 2)


def test_a_script_that_is_not_at_hand_has_a_reason(timed, tmp_path):
    shutil.copytree(TOY, tmp_path / "toy")
    (tmp_path / "toy/scripts/slow.py").unlink()
    made, _ = timed(tmp_path / "toy", repeats=1)
    assert made.records[0].problem == "its script is not at hand"
    assert made.records[1].runs_ms == (6060.0,)


def test_times_of_other_scripts_machines_and_families_are_not_mixed(timed, tmp_path):
    shutil.copytree(TOY, tmp_path / "toy")
    timed(tmp_path / "toy", repeats=1)
    script = tmp_path / "toy/scripts/slow.py"
    before = script.read_text()
    script.write_text(before + "\n")
    with pytest.raises(UsageError, match="record 1 is not the one"):
        timed(tmp_path / "toy", repeats=2)
    script.write_text(before)
    path = tmp_path / "times.json"
    text = path.read_text()
    path.write_text(text.replace('"executor": "quick"', '"executor": "quick", "gpus": 8'))
    with pytest.raises(UsageError, match=r"measured elsewhere or otherwise \(gpus differ\)"):
        timed(tmp_path / "toy", repeats=2)
    path.write_text(text.replace('"toy"', '"mini"'))
    with pytest.raises(UsageError, match="has times of mini"):
        timed(tmp_path / "toy", repeats=2)
    path.write_text("{}")
    with pytest.raises(UsageError, match="holds no times"):
        timed(tmp_path / "toy", repeats=2)


def test_an_interrupt_ends_the_job_and_keeps_what_was_measured(timed, tmp_path, behaviour):
    waiting = threading.Event()

    def hang(job):
        if job.name == "record-2-2":
            waiting.set()
            assert job.cancel.wait(60)

    def interrupt():
        waiting.wait(60)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    behaviour.on_job = hang
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        timed(repeats=3)
    kept = json.loads((tmp_path / "times.json").read_text())["records"]
    assert [len(r["runs_ms"]) for r in kept] == [2, 1, 0]
    behaviour.reset()
    _, order = timed(repeats=3)
    assert order == [(2, 2), (1, 3), (2, 3)]


def test_records_of_the_paper_say_why_they_cannot_run_here(tmp_path, plugins):
    made = retime("nanogpt", [1, 21], out=tmp_path / "times.json", plugins=plugins)
    assert made.records[0].reported_ms == 2_700_000, "that of the announcement"
    for record in made.records:
        assert record.runs_ms == ()
        assert "speedkit records import" in record.problem


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_a_table(program, tmp_path):
    common = ("--executor", "quick", "--load", grid_parts.NAME, "--out", tmp_path / "t.json")
    done = program("records", "time", TOY, "--repeats", "2", *common)
    assert done.code == 0
    assert re.search(r"1 slow +2 +10\.10 s +0\.00 s +10\.00 s +1\.010", done.out)
    assert "it has no script" in done.out
    assert "record 2, run 2/2: 6.06 s" in done.err
    again = program("records", "time", TOY, "--repeats", "2", "--json", *common)
    assert again.json["records"][0]["runs_ms"] == [10100.0, 10100.0]
    assert again.err == ""


def test_the_command_really_runs_scripts(program, tmp_path):
    done = program(
        "records",
        "time",
        TOY,
        "--records",
        "2",
        "--repeats",
        "1",
        "--json",
        "--out",
        tmp_path / "t",
    )
    assert done.code == 0
    assert [r["runs_ms"] for r in done.json["records"]] == [[6060.0]]
    assert done.json["hardware"]["cores"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--records", "x"), "--records x: write numbers"),
        (("--records", "9"), "toy has no record 9"),
        (("-o", "coder.x=1"), "timing uses the executor only"),
        (("-o", "executor.smoke_steps=2"), "a smoke run times nothing"),
    ],
)
def test_wrong_requests(program, tmp_path, arguments, message):
    done = program("records", "time", TOY, "--out", tmp_path / "t.json", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "t.json").exists()
