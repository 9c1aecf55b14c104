"""Files that a script leaves are taken with care."""

from __future__ import annotations

import os
import socket

import pytest

from speedkit.core.components import Ending
from speedkit.plugins.executors import collect as collecting
from speedkit.plugins.executors.collect import collect


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "workspace"
    (folder / "logs" / "deep").mkdir(parents=True)
    (folder / "logs" / "b.txt").write_text("b")
    (folder / "logs" / "a.txt").write_text("a")
    (folder / "logs" / "deep" / "c.txt").write_text("c")
    (folder / "top.txt").write_text("top")
    return folder


@pytest.fixture
def take(workspace, tmp_path):
    """Return a function that collects and returns relative paths and refusals."""

    def call(*globs, max_bytes=1000, max_total=5000):
        target = tmp_path / "collected"
        found = collect(workspace, globs, target, max_bytes, max_total)
        on_disk = sorted(p for p in target.rglob("*") if not p.is_dir())
        assert on_disk == found.files
        return [str(path.relative_to(target)) for path in found.files], found.refused

    return call


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("logs/*.txt", ["logs/a.txt", "logs/b.txt"]),
        ("*.txt", ["top.txt"]),
        ("**/*.txt", ["logs/a.txt", "logs/b.txt", "logs/deep/c.txt", "top.txt"]),
        ("logs/**", ["logs/a.txt", "logs/b.txt", "logs/deep/c.txt"]),
        ("./logs/[a]*", ["logs/a.txt"]),
        ("logs", []),
        ("nothing/*", []),
        ("../*/*.txt", []),
        ("/etc/passwd", []),
    ],
)
def test_patterns(take, glob, expected):
    assert take(glob) == (expected, [])


def test_several_patterns_take_a_file_once(take):
    assert take("logs/*.txt", "**/a.txt")[0] == ["logs/a.txt", "logs/b.txt"]


def test_contents_are_copied_and_the_old_copies_go(take, tmp_path):
    take("logs/*.txt")
    assert (tmp_path / "collected/logs/a.txt").read_text() == "a"
    assert take("top.txt")[0] == ["top.txt"]


def test_no_link_is_followed(take, workspace, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("secret")
    (workspace / "logs/link.txt").symlink_to(secret / "key.txt")
    (workspace / "linked").symlink_to(secret)
    os.link(secret / "key.txt", workspace / "logs/hard.txt")
    taken, refused = take("logs/*.txt", "linked/*.txt", "**/key.txt")
    assert taken == ["logs/a.txt", "logs/b.txt"]
    assert len(refused) == 2
    assert refused[0] == "'logs/hard.txt' was not collected: it has a second name"
    assert refused[1].startswith("'logs/link.txt' was not collected: ")


def test_a_workspace_that_is_a_link_is_not_entered(take, workspace, tmp_path):
    workspace.rename(tmp_path / "moved")
    workspace.symlink_to(tmp_path / "moved")
    assert take("**")[0] == []


def test_what_is_no_file_is_refused_at_once(take, workspace, monkeypatch):
    os.mkfifo(workspace / "pipe.txt")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(workspace)  # the whole path may be too long
    server.bind("s.txt")
    taken, refused = take("*.txt")
    server.close()
    assert taken == ["top.txt"]
    assert len(refused) == 2


def test_sizes_are_bounded(take, workspace):
    with (workspace / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)
    assert take("huge.txt", max_bytes=64_000_000, max_total=1 << 50) == (
        [],
        ["'huge.txt' was not collected: it is larger than 64 MB"],
    )
    for name in "vwxyz":
        (workspace / f"{name}.part").write_bytes(b"1" * 900)
    taken, refused = take("*.part", max_total=2000)
    assert taken == ["v.part", "w.part"]
    assert refused


def test_numbers_are_bounded(take, workspace, monkeypatch):
    monkeypatch.setattr(collecting, "MAX_FILES", 3)
    for n in range(9):
        (workspace / f"{n}.part").touch()
    taken, refused = take("*.part")
    assert taken == ["0.part", "1.part", "2.part"]
    assert refused == ["'3.part' was not collected: there are too many"]
    monkeypatch.setattr(collecting, "MAX_ENTRIES", 0)
    assert take("*.part") == ([], [])


def test_a_deep_tree_ends(take, workspace, monkeypatch):
    monkeypatch.setattr(collecting, "MAX_DEPTH", 3)
    folder = workspace
    for _ in range(5):
        folder = folder / "d"
        folder.mkdir()
        (folder / "f").touch()
    assert take("**/f")[0] == ["d/d/d/f", "d/d/f", "d/f"]


def test_a_job_is_collected(bench):
    script = """
        import os
        os.mkdir("logs")
        open("logs/run.txt", "w").write("step:1/1")
        os.symlink("/etc/passwd", "logs/evil.txt")
    """
    done = bench.run(script, collect=["logs/*.txt"])
    assert done.ending is Ending.FINISHED
    assert done.collected == (bench.log_dir / "collected/logs/run.txt",)
    assert done.collected[0].read_text() == "step:1/1"
    assert done.reason.startswith("'logs/evil.txt' was not collected: ")


def test_of_a_file_that_grows_no_more_is_taken_than_it_had(workspace, take, monkeypatch):
    real = os.fstat

    def earlier(descriptor):
        state = real(descriptor)
        return os.stat_result((*state[:6], 4, *state[7:]))

    (workspace / "logs" / "a.txt").write_text("four, and more later")
    monkeypatch.setattr(collecting.os, "fstat", earlier)
    assert take("logs/a.txt", max_bytes=10) == (["logs/a.txt"], [])
    assert (workspace.parent / "collected" / "logs" / "a.txt").read_text() == "four"
