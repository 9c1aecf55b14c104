"""``speedkit run``: where plugins are named, and what a terminal shows."""

from __future__ import annotations

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
