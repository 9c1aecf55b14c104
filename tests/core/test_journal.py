"""The journal: framing, torn tails, damage, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedkit.core.errors import RunDirectoryError
from speedkit.core.journal import MAX_EVENT, Journal, decode, encode, read_events

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_an_event_survives_the_frame(event):
    line = encode(event)
    assert line.count(b"\n") == 1
    restored = decode(line)
    assert json.dumps(restored, sort_keys=True) == json.dumps(
        json.loads(json.dumps(event).encode("utf-8", "backslashreplace")), sort_keys=True
    )


def test_a_line_is_plain_json():
    assert json.loads(encode({"type": "x"}))["event"] == {"type": "x"}


@given(st.data())
def test_a_damaged_line_is_refused(data):
    line = bytearray(encode({"type": "node_created", "id": 3}))
    position = data.draw(st.integers(0, len(line) - 2))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != line[position]))
    line[position] = value
    assert decode(bytes(line)) is None


def test_every_torn_tail_is_cut_off(tmp_path):
    path = tmp_path / "events.jsonl"
    whole = encode({"n": 1}) + encode({"n": 2})
    last = encode({"n": 3, "text": "x" * 50})
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        assert [e["n"] for e in read_events(path)] == [1, 2]
        journal = Journal(path)
        journal.append({"n": 4})
        journal.close()
        assert [e["n"] for e in read_events(path)] == [1, 2, 4]


def test_damage_before_the_end_is_an_error(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(encode({"n": 1})[:-5] + b"\n" + encode({"n": 2}))
    with pytest.raises(RunDirectoryError, match="damaged at line 1"):
        read_events(path)


def test_reading_does_not_touch_the_file(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(encode({"n": 1}) + b'{"len": 9')
    read_events(path)
    assert path.read_bytes().endswith(b'{"len": 9')


def test_a_large_event_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too large"):
        encode({"text": "x" * MAX_EVENT})


def test_a_full_disk_leaves_no_half_event(tmp_path):
    """RLIMIT_FSIZE stands for a full disk: a write beyond it fails in the middle."""
    path = tmp_path / "events.jsonl"
    script = (
        "import resource, signal, sys\n"
        "sys.dont_write_bytecode = True\n"
        "from speedkit.core.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "journal = Journal(__import__('pathlib').Path(sys.argv[1]))\n"
        "try:\n"
        "    for n in range(100): journal.append({'n': n, 'text': 'x' * 60})\n"
        "except OSError: sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == 7
    events = read_events(path)
    assert [e["n"] for e in events] == list(range(len(events)))
    assert path.read_bytes().endswith(b"}\n")


def test_kill_while_appending_loses_no_acknowledged_event(tmp_path):
    path = tmp_path / "events.jsonl"
    script = (
        "import pathlib, sys\n"
        "from speedkit.core.journal import Journal\n"
        "journal, n = Journal(pathlib.Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    journal.append({'n': n, 'text': 'x' * 30000})\n"
        "    print(n, flush=True)\n"
        "    n += 1\n"
    )
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        acknowledged = [process.stdout.readline() for _ in range(7)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.communicate()[0].splitlines()
        numbers = [e["n"] for e in read_events(path)]
        last = int(acknowledged[-1])
        assert numbers[-(last + 1) :][: last + 1] or numbers
        assert len([n for n in numbers if n == last]) >= 1
