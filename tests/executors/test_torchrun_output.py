"""Output beyond measure: memory, disk and metrics lines hold."""

from __future__ import annotations

import errno
import os
import random
import threading
import time

import psutil
import pytest

from speedkit.core.components import Ending
from speedkit.plugins.executors import capture

MB = 1_000_000
METRICS = [f"step:{n}/2 val_loss:3.0000 train_time:{5 * n}ms" for n in (1, 2)]
FLOOD = f"""
import os
def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
print("{METRICS[0]}")
for _ in range(COUNT):
    write(BODY)
print("\\n{METRICS[1]}")
"""


class Peak:
    """The largest resident size of this process's children while the block runs."""

    def __enter__(self):
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _look(self):
        while not self._stop.wait(0.02):
            for child in psutil.Process().children():
                try:
                    if child.cmdline() != psutil.Process().cmdline():  # else it shares our memory
                        self.bytes = max(self.bytes, child.memory_info().rss)
                except psutil.Error:
                    continue


def metrics(bench):
    return [text for text in bench.watch.texts() if text.startswith("step:")]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(
    "body",
    ["b'a line of ordinary length, and then the next\\\\n' * 22_000", "b'x' * 1_000_000"],
    ids=["lines", "no newline"],
)
def test_a_gigabyte(bench, body):
    script = FLOOD.replace("BODY", body.replace("\\\\", "\\")).replace("COUNT", "1000")
    with Peak() as peak:
        done = bench.run(script)
    assert done.ending is Ending.FINISHED
    assert metrics(bench) == METRICS
    assert peak.bytes < 100 * MB
    assert size_of(bench.log_dir) < 17 * MB
    log = bench.log("rank0.stdout.log")
    assert log.startswith(METRICS[0].encode())
    assert log.endswith(METRICS[1].encode() + b"\n")
    assert b"bytes left out here]\n" in log


def test_endless_output_is_ended(bench):
    script = "import os\nwhile True:\n    os.write(2, b'x' * 65536)"
    done = bench.run(script, {"max_output_mb": 100})
    assert done.ending is Ending.FLOODED
    assert done.reason == "more than 100 MB of output"
    assert size_of(bench.log_dir) < 17 * MB
    assert bench.ended_s < 50


def test_bytes_that_are_no_text(bench):
    data = b"\xff\xfe\x00\x1b[2J \xe2\x28\n\n" + METRICS[0].encode() + b"\n\xc3"
    done = bench.run(f"import os\nos.write(1, {data!r})")
    assert done.ending is Ending.FINISHED
    assert bench.log("rank0.stdout.log") == data
    assert bench.watch.texts() == ["\\xff\\xfe\x00\x1b[2J \\xe2(", "", METRICS[0], "\\xc3"]


def test_a_long_line_is_cut_and_its_rest_is_no_line(bench):
    script = f"print('x' * {capture.MAX_LINE} + 'step:1/1 val_loss:1.0 train_time:1ms')"
    bench.run(script)
    assert bench.watch.texts() == ["x" * capture.MAX_LINE]


def test_a_daemon_that_floods_after_the_end(bench):
    script = """
        import os, sys
        if os.fork() == 0:
            os.setsid()
            while True:
                os.write(1, b"y" * 65536)
        print("parent done")
    """
    done = bench.run(script, {"max_output_mb": 500})
    assert done.ending is Ending.FINISHED
    assert bench.ended_s < 50


def test_many_lines_do_not_swamp_the_controller(bench):
    began = time.process_time()
    bench.run("print('\\n'.join(map(str, range(300_000))))")
    assert len(bench.watch.texts()) < 3000
    assert time.process_time() - began < 1
    assert bench.log("rank0.stdout.log").count(b"\n") == 300_000


# --- parts ------------------------------------------------------------------------------------


def test_metrics_lines_pass_however_the_stream_is_cut():
    rng = random.Random(1)
    lines = []
    for n in range(3000):
        lines.append(rng.choice(["", "noise", "a step:1/2", "s", "step", f"step:{n}/9", f"s:{n}"]))
    data = "\n".join([*lines, ""]).encode()
    wanted = [line for line in lines if line.startswith(("step:", "s:"))]
    for size in (1, 7, 100, 4096, len(data)):
        picker = capture.Lines(capture.Allowance(rate=0, burst=5))
        pieces = (data[i : i + size] for i in range(0, len(data), size))
        found = [line.decode() for piece in pieces for line in picker.feed(piece)]
        assert [line for line in found if line.startswith(("step:", "s:"))] == wanted
        assert len(found) == len(wanted) + 5


def test_metrics_lines_are_many_but_not_without_limit(monkeypatch):
    monkeypatch.setattr(capture, "MAX_METRICS_LINES", 10)
    picker = capture.Lines(capture.Allowance(rate=0, burst=0))
    assert len(list(picker.feed(b"step:1/2\n" * 1000))) == 10


def test_an_unfinished_line_comes_at_the_end():
    picker = capture.Lines(capture.Allowance(rate=0, burst=9))
    assert list(picker.feed(b"one\ntw")) == [b"one"]
    assert list(picker.feed(b"o")) == []
    assert list(picker.rest()) == [b"two"]
    assert list(picker.rest()) == []


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_log_keeps_head_and_tail(tmp_path, size):
    data = b"".join(b"line %04d\n" % n for n in range(1000))
    log = capture.LogFile(str(tmp_path / "log"), head=25, tail=45)
    for i in range(0, len(data), size):
        log.write(data[i : i + size])
    log.close()
    head, note, tail = (
        (tmp_path / "log").read_bytes().partition(b"\n[speedkit: 9935 bytes left out here]\n")
    )
    assert note, (tmp_path / "log").read_bytes()
    assert head == data[:25]
    assert tail == data[-40:], "the tail begins with a whole line"


def test_log_that_fits_is_whole(tmp_path):
    log = capture.LogFile(str(tmp_path / "log"), head=5, tail=5)
    log.write(b"0123")
    log.write(b"456789")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"0123456789"


def test_log_does_not_follow_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        capture.LogFile(str(tmp_path / "link"), 5, 5)


def test_a_full_disk_ends_the_log_and_not_the_caller(tmp_path, monkeypatch):
    log = capture.LogFile(str(tmp_path / "log"), head=100, tail=100)
    log.write(b"before ")

    def full(fd, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        log.write(b"lost ")
    log.write(b"after")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"before "


def test_a_disk_that_is_full_only_when_a_log_is_closed_is_no_error(tmp_path, monkeypatch):
    log = capture.LogFile(str(tmp_path / "log"), head=25, tail=45)
    log.write(b"all of it")
    close = os.close

    def full(descriptor):
        close(descriptor)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(capture.os, "close", full)
    log.close()
    assert (tmp_path / "log").read_bytes() == b"all of it"
