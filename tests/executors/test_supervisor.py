"""The supervisor: what it believes of a script, and what it keeps for the controller."""

from __future__ import annotations

import json
import os
import threading
import time
from types import SimpleNamespace

import pytest

from speedkit.core.components import Ending
from speedkit.plugins.executors.supervisor import Controller, Order, Supervisor

SLOW_LOOK = """
import sys, time
sys.path.insert(0, sys.argv[1])
from executors import processes, supervisor
look = processes.own_descendants
processes.own_descendants = lambda marker: (time.sleep(0.4), look(marker))[1]
sys.exit(supervisor.main())
"""
"""Runs a supervisor that needs a while to look for processes."""


class Silent:
    """A stream on which nothing has come."""

    recent, traceback_at = "", None


@pytest.fixture
def supervisor(tmp_path):
    """A supervisor of two ranks that have not begun, with nobody to tell."""
    (tmp_path / "torch").mkdir()
    facts = {**dict.fromkeys(Order._fields, ""), "scratch": str(tmp_path), "has_ranks": True}
    with open(os.devnull, "wb") as nobody:
        made = Supervisor(Order(**facts), Controller(nobody.fileno()))
    made._ranks = [
        SimpleNamespace(
            number=number, has_begun=False, pid=None, ended_at=None, error_file="", stderr=Silent()
        )
        for number in range(2)
    ]
    return made


@pytest.mark.parametrize(
    "words",
    [
        '{"rank": Infinity, "pid": 1, "error_file": ""}',
        '{"rank": NaN, "pid": 1, "error_file": ""}',
        '{"rank": 7, "pid": 1, "error_file": ""}',
        "[" * 100_000,
        "9" * 5000,
        "nothing",
        "{}",
        '{"rank": 0, "pid": ' + "9" * 30 + ', "error_file": ""}',
    ],
)
def test_no_words_of_a_script_end_it(supervisor, words):
    supervisor._on_announcement(words.encode() + b"\n" + b'{"rank": 1, "pid": 0, "error_file": ""}')
    assert supervisor._ranks[1].has_begun


def test_a_path_that_is_none_is_no_error_file(supervisor, tmp_path):
    for number in range(2000):
        (tmp_path / f"link{number}").symlink_to(f"link{number + 1}")
    (tmp_path / "link2000").symlink_to("/etc/hostname")
    for name in ("\0", "\ud800", "link0"):
        assert supervisor._own_file(f"{tmp_path}/{name}") == ""


def test_an_error_file_that_leads_elsewhere_later_is_not_read(supervisor, tmp_path):
    """A script may put a link in place of its folder after it has named the file in it."""
    inner, outer = tmp_path / "torch", tmp_path.parent / f"{tmp_path.name}-outer"
    outer.mkdir()
    for folder in (inner, outer):
        (folder / "error.json").write_text(json.dumps({"message": f"in {folder.name}"}))
    words = {"rank": 1, "pid": 0, "error_file": str(inner / "error.json")}
    supervisor._on_announcement(json.dumps(words).encode())
    summary = "  rank      : 1 (local_rank: 1)\n  exitcode  : 1 (pid: 7)\n"
    assert [e["message"] for e in supervisor._rank_errors(summary)] == ["in torch"]
    inner.rename(tmp_path / "moved")
    inner.symlink_to(outer)
    assert [e["message"] for e in supervisor._rank_errors(summary)] == ["exit code 1"]


@pytest.fixture
def pipe():
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_controller_that_was_stopped_misses_nothing(pipe):
    """The pipe holds a part of what there is to say; the rest waits as long as it has to."""
    heard, told = pipe
    controller = Controller(told)
    for number in range(5000):
        controller.put("line", text="x" * 100, number=number)
    received = bytearray()

    def read():
        time.sleep(0.5)
        while received.count(b"\n") < 5000:
            received.extend(os.read(heard, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    controller.finish(lambda: True)
    reader.join()
    assert controller.backlog == 0
    assert json.loads(received.splitlines()[-1])["number"] == 4999


def test_a_controller_that_is_gone_is_not_waited_for(pipe):
    controller = Controller(pipe[1])
    controller.put("line", text="x" * 1_000_000)
    controller.finish(lambda: False)
    assert controller.backlog > 0


@pytest.mark.parametrize("sandbox", ["bwrap"])
def test_a_script_that_ends_while_processes_are_looked_for_has_finished(bench, monkeypatch):
    monkeypatch.setattr("speedkit.plugins.executors.torchrun.BOOT", SLOW_LOOK)
    assert bench.run("print('hi')", stall_s=5).ending is Ending.FINISHED
