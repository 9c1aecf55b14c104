"""Making a run directory, holding it, and opening one that is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import tomli
import tomli_w

import speedkit
from speedkit.core.errors import RunDirectoryError
from speedkit.core.history import RunDirectory, holding, new_run_path
from speedkit.core.journal import encode

MANIFEST = {"config": {"task": "toy/1"}, "components": {}, "scripts": {}}


def test_runs_that_start_in_the_same_second_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(new_run_path, ["toy/1"] * 16))
    assert len(set(paths)) == 16
    assert all(path.is_dir() for path in paths)


def test_of_two_that_want_one_folder_one_gets_it(tmp_path):
    def create(name):
        try:
            return RunDirectory.create(tmp_path / "run", {**MANIFEST, "run_id": name}).run_id
        except RunDirectoryError:
            return None

    with ThreadPoolExecutor(4) as pool:
        made = [name for name in pool.map(create, "abcd") if name]
    assert made == [RunDirectory(tmp_path / "run").run_id]


LOOKING = """
import sys, pathlib
from speedkit.core.history import is_held
print("begun", flush=True)
while True:
    is_held(pathlib.Path(sys.argv[1]))
"""


def test_who_only_looks_keeps_nobody_out(tmp_path):
    command = [sys.executable, "-c", LOOKING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looking:
        try:
            looking.stdout.readline()
            for _ in range(100):
                with holding(tmp_path):
                    pass
        finally:
            looking.kill()


def without(table):
    def damage(path):
        values = tomli.loads((path / "run.toml").read_text())
        del values[table]
        (path / "run.toml").write_text(tomli_w.dumps(values))

    return damage


def strange_event(path):
    with (path / "events.jsonl").open("ab") as file:
        file.write(encode({"type": "node_finished", "id": 77}))


def no_repository(path):
    os.rename(path / "repo", path / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config"), r"has no table \[config\]"),
        (without("scripts"), r"has no table \[scripts\]"),
        (strange_event, "event [0-9]+ cannot be read"),
        (no_repository, "repo is no git repository"),
    ],
)
def test_damage_is_a_line(toy_run, damage, message):
    path = toy_run(nodes=1).path
    damage(path)
    with pytest.raises(RunDirectoryError, match=message):
        speedkit.run(resume=path)
