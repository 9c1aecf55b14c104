"""``speedkit metrics``: any log, read strictly."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

LOG = """\
import torch
print0(f"step:{step}/{steps} val_loss:{val_loss:.4f} train_time:{ms:.0f}ms")
step:0/300 val_loss:10.8258 train_time:0ms step_avg:nanms
step:100/300 train_time:900ms step_avg:9.00ms
step:125/300 val_loss:3.2800 train_time:1000ms step_avg:8.00ms
step:300/300 val_loss:3.2500 train_time:2400ms step_avg:8.00ms
peak memory consumption: 28000 MiB
"""
FACTS = {
    "valid_lines": 3,
    "step": 300,
    "steps": 300,
    "val_loss": 3.25,
    "train_time_ms": 2400,
    "first_at_target": {"step": 125, "train_time_ms": 1000},
    "reason": "",
}


@pytest.fixture
def log(tmp_path):
    """Return a function that writes a log."""

    def write(data=LOG, name="log.txt"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def test_one_object_a_log_on_one_line(program, log):
    one, two = log(), log("nothing here\n", "other.txt")
    lines = program("metrics", one, two, "--json").out.splitlines()
    assert [list(json.loads(line)) for line in lines] == [["file", *FACTS]] * 2
    assert json.loads(lines[0]) == {"file": str(one), **FACTS}
    assert json.loads(lines[1]) == {
        "file": str(two), "valid_lines": 0, "step": None, "steps": None, "val_loss": None,
        "train_time_ms": None, "first_at_target": None, "reason": "no validation line in the log",
    }  # fmt: skip


def test_a_target(program, log):
    facts = program("metrics", log(), "--target", "3.25", "--json").json
    assert facts["first_at_target"] == {"step": 300, "train_time_ms": 2400}
    assert facts["reason"] == ""
    facts = program("metrics", log(), "--target", "3.2", "--json").json
    assert facts["first_at_target"] is None
    assert facts["reason"] == "val_loss 3.2500 is over the target 3.2"


@pytest.mark.parametrize("target", ["0", "-1", "nan", "inf", "x"])
def test_a_target_that_is_none(program, log, target):
    assert program("metrics", log(), "--target", target).code == 2


def test_the_table(program, log):
    out = program("metrics", log()).out
    row = " ".join(out.splitlines()[-1].split())
    assert row.endswith("3 300/300 3.2500 2.40 s step 125, 1.00 s –")


def test_the_first_grammar_has_no_clock(program, log):
    facts = program("metrics", log("s:128 tel:4.0\ns:256 tel:3.27\n"), "--json").json
    assert (facts["step"], facts["steps"], facts["train_time_ms"]) == (256, None, None)
    assert facts["first_at_target"] == {"step": 256, "train_time_ms": None}
    assert facts["reason"] == "the log has no train_time"


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_json_does_not_have(program, log, loss):
    line = f"step:9/9 val_loss:{loss} train_time:5ms\n"
    facts = program("metrics", log(line), "--json").json
    assert facts["val_loss"] is None
    assert facts["reason"].startswith(f"val_loss is {loss}")
    assert facts["first_at_target"] is None


def test_a_missing_log_is_one_line_after_which_the_others_come(program, log, tmp_path):
    result = program("metrics", tmp_path / "absent.txt", tmp_path, log(), "--json")
    assert result.code == 2
    assert json.loads(result.out)["val_loss"] == 3.25
    assert result.err.splitlines() == [
        f"error: {tmp_path}/absent.txt: No such file or directory",
        f"error: {tmp_path}: Is a directory",
    ]


def test_standard_input(program, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LOG.encode())))
    assert program("metrics", "-", "--json").json == {"file": "-", **FACTS}


def test_bytes_that_are_no_text_and_returns_without_newline(program, log):
    data = b"\xff\xfe\x00\n" + LOG.encode() + b"bar\rstep:301/300 val_loss:1.0 train_time:1ms\n"
    assert program("metrics", log(data), "--json").json["reason"] == ""


def test_lines_that_end_as_on_windows_are_refused(program, log):
    facts = program("metrics", log(LOG.replace("\n", "\r\n")), "--json").json
    assert facts["valid_lines"] == 0
    assert "malformed" in facts["reason"]
    assert r"\r" in facts["reason"]


def test_no_control_character_reaches_the_terminal(program, log):
    path = log("step:1/2 val_loss:\x1b[31m1.0\x9b\n", "red\x1b[31m.txt")
    for arguments in ((), ("--json",)):
        out = program("metrics", path, *arguments).out
        assert "malformed" in out
        assert "\x1b" not in out
        assert "\x9b" not in out


def test_a_log_is_read_in_constant_memory(tmp_path):
    """A line of 200 MB and 300,000 validations need no more than any other log."""
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(200_000_000)
        file.seek(0, io.SEEK_END)
        file.write(b"\n")
        for k in range(1, 300_001):
            file.write(b"step:%d/300000 val_loss:3.0 train_time:%dms\n" % (k, k))
    code = (
        "import sys; from speedkit.cli.main import main\n"
        "try: main(['metrics', sys.argv[1], '--json'])\n"
        "finally:\n"
        "    status = dict(l.split(':', 1) for l in open('/proc/self/status') if ':' in l)\n"
        "    print(status['VmHWM'].split()[0], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["valid_lines"] == 300_000
    assert int(done.stderr) < 100_000  # KiB
