"""Causes are found in what ranks and launchers leave."""

from __future__ import annotations

import json
import os
import time

import pytest

from speedkit.plugins.executors import failures

PLAIN = """\
noise
Traceback (most recent call last):
  File "a.py", line 3, in <module>
    f()
  File "a.py", line 2, in f
    return 1 / 0
           ~~^~~
ZeroDivisionError: division by zero
"""
CHAINED = (
    PLAIN
    + """
During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 5, in <module>
    raise KeyError("x")
KeyError: 'x'
"""
)
SYNTAX = """\
  File "/w/a.py", line 1
    def f(:
          ^
SyntaxError: invalid syntax
"""
MULTI = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    load()
RuntimeError: Error(s) in loading state_dict:
\tMissing key(s): "a".
some warning afterwards
"""
SUMMARY = """\
============================================================
x.py FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2030-01-01_00:00:00
  host      : h
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 11)  (SIGTERM)
  error_file: <N/A>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2030-01-01_00:00:00
  host      : h
  rank      : 1 (local_rank: 1)
  exitcode  : 3 (pid: 12)
  error_file: <N/A>
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN, "ZeroDivisionError: division by zero"),
        (PLAIN + "[W1 x.cpp:1] Warning: pool not destroyed\n", "ZeroDivisionError: division"),
        (CHAINED, "KeyError: 'x'"),
        (SYNTAX, "SyntaxError: invalid syntax"),
        (MULTI, 'RuntimeError: Error(s) in loading state_dict: Missing key(s): "a".'),
        ("".join(f"[rank1]: {line}\n" for line in PLAIN.splitlines()), "ZeroDivisionError: div"),
    ],
)
def test_last_traceback(text, message):
    error = failures.rank_error(1, 1, text)
    assert error["message"].startswith(message)
    assert 'File "' in error["traceback"]


def test_a_chain_is_shown_from_its_first_exception():
    _, text = failures.last_traceback(CHAINED)
    assert text.startswith("Traceback")
    assert "ZeroDivisionError" in text
    assert text.endswith("KeyError: 'x'")


@pytest.mark.parametrize(
    "text",
    ["", "no", "Traceback (most recent call last):", "Traceback (most recent call last):\n  x"],
)
def test_no_traceback(text):
    assert failures.last_traceback(text) is None


def test_a_message_is_one_printable_bounded_line():
    error = failures.rank_error(0, 1, "x\x1b[31m\u202e" + "y" * 5000)
    assert error["message"].startswith("exit code 1: x?[31m?yyy")
    assert len(error["message"]) == failures.MAX_MESSAGE


def test_chance_does_not_decide_which_rank_is_named():
    def error(rank, message):
        return {"rank": rank, "message": message}

    same = [error(1, "a"), error(2, "b"), error(0, "a"), error(3, "b")]
    assert [e["rank"] for e in failures.grouped(same)] == [0, 1, 2, 3]
    first = [error(1, "cause"), error(0, "effect")]
    assert failures.grouped(first) == first


def test_summary_of_the_launcher():
    assert failures.summary(SUMMARY) == {0: -15, 1: 3}


def test_error_file(tmp_path):
    path = tmp_path / "error.json"
    words = {"message": "ValueError: bad", "extraInfo": {"py_callstack": "stack"}}
    path.write_text(json.dumps({"message": words}))
    assert failures.read_error_file(str(path)) == ("ValueError: bad", "stack")
    path.write_text(json.dumps({"message": "text only"}))
    assert failures.read_error_file(str(path)) == ("text only", "")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"message": 1}', "[" * 100_000])
def test_error_file_of_another_form(tmp_path, text):
    path = tmp_path / "error.json"
    path.write_text(text)
    assert failures.read_error_file(str(path)) is None


def test_error_file_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/hostname")
    for name in ("pipe", "link", "missing", ""):
        assert failures.read_error_file(str(tmp_path / name)) is None


DUMP = """\
terminate called without an active exception
Fatal Python error: Aborted

Thread 0x00007f01455e7b80 (most recent call first):
  {frame}
"""


def test_an_abort_after_the_exception_does_not_hide_it():
    after = PLAIN + DUMP.format(frame="<no Python frame>")
    error = failures.rank_error(1, -6, after)
    assert (error["message"], error["signal"]) == ("ZeroDivisionError: division by zero", None)
    assert "Fatal Python error" not in error["traceback"]
    within = PLAIN + DUMP.format(frame='File "/w/a.py", line 7 in train')
    error = failures.rank_error(1, -6, within)
    assert (error["message"], error["signal"]) == ("killed by SIGABRT", "SIGABRT")
    alone = DUMP.format(frame="<no Python frame>")
    assert failures.rank_error(1, -6, alone)["message"] == "killed by SIGABRT"


def test_a_script_that_aborts_while_python_ends(bench):
    script = """
        import atexit, os
        atexit.register(os.abort)
        raise ValueError("bad shape")
    """
    assert bench.run(script).reason == "ValueError: bad shape"


def test_a_dump_names_the_frame_of_the_script():
    dump = """\
Fatal Python error: Aborted

Thread 0x01 (most recent call first):
  File "/lib/threading.py", line 9 in wait

Current thread 0x02 (most recent call first):
  File "/lib/torch/distributed.py", line 100 in all_reduce
  File "/w/train.py", line 42 in step
  File "/w/train.py", line 50 in <module>
"""
    error = failures.hang(1, dump, "train.py")
    assert error["message"] == "was in step, train.py line 42"
    assert failures.hang(1, "nothing", "train.py") is None


FRAME = '  File "'
LONG = 64 * 1024


@pytest.mark.parametrize(
    "text",
    [
        "\n" * LONG,
        " " * LONG,
        "  rank : 0 (0)\n" * (LONG // 16),
        FRAME * (LONG // 8),
        '\n  File "a", line 1' * (LONG // 19),
        "Traceback (most recent call last):\n\nDuring handling of the above\n" * (LONG // 64),
    ],
    ids=["lines", "blanks", "ranks", "one frame", "frames", "chain"],
)
def test_no_text_takes_long_to_read(text):
    dump = f"Fatal Python error: Aborted\nCurrent thread{text}"
    began = time.process_time()
    failures.summary(text)
    failures.hang(0, dump, "x.py")
    failures.rank_error(0, 1, text)
    failures.rank_error(0, -6, dump)
    assert time.process_time() - began < 1.5


def test_numbers_that_no_launcher_writes_are_none():
    row = "  rank      : {} (local)\n  exitcode  : {} (pid: 1)\n"
    text = row.format("9" * 5000, 1) + row.format(1, "9" * 5000) + row.format("\u0664", 1)
    assert failures.summary(text + row.format(2, 3)) == {2: 3}
