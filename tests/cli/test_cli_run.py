"""``speedkit run``: where plugins are named, and what a terminal shows."""

from __future__ import annotations

import shutil

import pytest

import speedkit
from speedkit.cli.display import LiveView
from tests.conftest import INSTANT, TOY

QUIET = ("--executor", "instant", "--nodes", 1, "--display", "none")


def test_a_plugin_loaded_before_the_command_is_there_when_the_run_is_resumed(program, tmp_path):
    path = tmp_path / "run"
    done = program("--load", INSTANT, "run", f"{TOY}/1", *QUIET, "--out", path)
    assert done.code == 0, done.err
    assert program("run", "--resume", path, "--nodes", 2, "--display", "none").code == 0
    assert len(speedkit.open_run(path)) == 3


def test_a_plugin_may_be_named_by_the_file_or_the_environment(program, tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text(f"load = ['{INSTANT}']\n")
    done = program("run", f"{TOY}/1", *QUIET, "--config", file, "--out", tmp_path / "a")
    assert (done.code, done.err) == (0, "")
    monkeypatch.setenv("SPEEDKIT_LOAD", str(INSTANT))
    done = program("run", f"{TOY}/1", *QUIET, "--out", tmp_path / "b")
    assert (done.code, done.err) == (0, "")


def test_a_guard_is_chosen_like_any_component(program):
    done = program("run", f"{TOY}/1", "--plugin", "guard=clock", "--dry-run", "--json")
    assert [guard["name"] for guard in done.json["components"]["guard"]] == ["clock"]


def test_the_default_folder_is_named_after_the_task(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = program("run", f"{TOY}/1", "--load", INSTANT, *QUIET)
    assert done.code == 0, done.err
    assert [p.name.startswith("toy-1-2") for p in (tmp_path / "runs").iterdir()] == [True]


@pytest.mark.parametrize("wrong", [("--scaffold", "aid"), ("-o", "scaffold.draft=1")])
def test_a_mistake_leaves_no_folder_behind(program, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    assert program("run", f"{TOY}/1", "--load", INSTANT, *QUIET, *wrong).code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ("--hints", "1"),  # the family has none
        ("--model", "openai/any", "--prompts", "nowhere"),
        ("--model", "openai/any", "--llm-replay"),
    ],
)
def test_a_mistake_found_by_a_run_that_did_nothing_lets_it_be_asked_for_again(
    program, tmp_path, wrong
):
    asked = ("run", f"{TOY}/1", "--load", INSTANT, *QUIET, "--out", tmp_path / "run")
    assert program(*asked, *wrong).code == 2
    done = program(*asked)
    assert done.code == 0, done.err


def test_what_lay_in_the_folder_of_a_run_is_not_removed_with_it(program, tmp_path):
    kept = tmp_path / "run" / "nodes" / "mine.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    asked = ("run", f"{TOY}/1", "--load", INSTANT, *QUIET, "--out", tmp_path / "run")
    assert program(*asked, "--hints", "1").code == 2
    assert kept.read_text() == "mine"


def test_a_run_that_failed_at_work_is_kept(program, tmp_path):
    broken = tmp_path / "toy"
    shutil.copytree(TOY, broken)
    (broken / "scripts" / "slow.py").write_text("raise ValueError\n", encoding="utf-8")
    path = tmp_path / "run"
    options = (*QUIET, "--calibration", "fresh", "--out", path)
    assert program("run", f"{broken}/1", "--load", INSTANT, *options).code != 0
    assert speedkit.open_run(path).status == "failed"


def test_all_mistakes_in_settings_are_told_at_once(program):
    wrong = ("-o", "llm.temp=3", "-o", "stop.mod=off", "--hints", "one")
    done = program("run", f"{TOY}/1", *wrong, "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        "error: hints: hint levels are 1, 2 and 3, separated by commas, or none",
        "error: stop.mod: there is no such setting; did you mean mode?",
        "error: llm.temp: there is no such setting; did you mean stream?",
    ]


def test_who_resumes_a_run_that_is_over_is_told_so(program, tmp_path):
    path = tmp_path / "run"
    assert program("run", f"{TOY}/1", "--load", INSTANT, *QUIET, "--out", path).code == 0
    again = program("run", "--resume", path, "--display", "plain")
    assert again.code == 0
    assert "nothing was left to do; --nodes" in again.err
    assert "executor busy" not in again.out
    more = program("run", "--resume", path, "--nodes", 2, "--display", "plain")
    assert "nothing was left" not in more.err


def test_what_is_no_run_directory_says_why(program, tmp_path):
    path = tmp_path / "runs" / "one"
    assert program("run", f"{TOY}/1", "--load", INSTANT, *QUIET, "--out", path).code == 0
    folder, file = path.parent, path / "run.toml"
    why = {
        folder: f"it has no run.toml; a run in it is {path}",
        file: "it is a file",
        tmp_path / "nope": "there is no such folder",
    }
    for what, words in why.items():
        done = program("show", what)
        assert (done.code, done.err) == (2, f"error: {what} is no run directory: {words}\n")


def test_a_family_without_the_id_of_a_task_is_told_what_to_write(program):
    done = program("run", TOY, "--dry-run")
    assert done.code == 2
    assert f"for example {TOY}/1" in done.err


def test_who_blocks_a_plugin_that_is_not_there_is_told_so(program):
    words = "warning: no plugin named 'instnt' to block; did you mean instant?\n"
    done = program("run", f"{TOY}/1", "--load", INSTANT, "--block", "instnt", "--dry-run")
    assert (done.code, done.err) == (0, words)
    done = program("run", f"{TOY}/1", "--load", INSTANT, "--block", "instant", "--dry-run")
    assert (done.code, done.err) == (0, "")


def test_times_that_cannot_be_kept_do_not_end_a_run(program, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDKIT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "calibration").write_text("a file where a folder is needed")
    path = tmp_path / "run"
    done = program("run", f"{TOY}/1", "--load", INSTANT, *QUIET, "--out", path)
    assert done.code == 0, done.err
    assert "not kept for later runs" in done.err
    assert speedkit.open_run(path).calibration is not None


def test_an_error_of_the_machine_names_the_file(program, tmp_path):
    (tmp_path / "file").write_text("")
    done = program("run", f"{TOY}/1", "--load", INSTANT, *QUIET, "--out", tmp_path / "file" / "run")
    assert done.code == 1
    assert done.err == f"error: {tmp_path}/file/run: Not a directory\n"


def test_jobs_may_come_and_go_while_they_are_drawn():
    class Screen:
        def update(self, text):
            self.shown = str(text)

    class Meddler(str):
        """A line during whose drawing another thread adds a job."""

        def __format__(self, how):
            view._jobs[f"node-{len(view._jobs)}"] = "starting"
            return str(self)

    view = LiveView()
    view._live = Screen()
    view._jobs["node-1"] = Meddler("a line")
    view._refresh()
    assert "a line" in view._live.shown
