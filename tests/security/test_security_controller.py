"""Controllers that are killed, doubled, hung up on, short of disk, or whose clock jumps."""

from __future__ import annotations

import ast
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import speedkit
from speedkit.core.history import RunDirectory
from speedkit.core.ledger import Usage
from speedkit.core.llm_cache import ReplyCache, Stored
from tests.conftest import INSTANT, TESTS, TOY
from tests.core.test_resume import check_once, facts
from tests.e2e.test_kill import family, start, survivors, wait_until

__all__ = ["family"]

HOLD = """
import pathlib, subprocess, sys, time
from speedkit.core.history import RunDirectory
with RunDirectory(pathlib.Path(sys.argv[1])).writing():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(toy_run):
    """Return a run that another process holds, that process, and the id of a child of it."""
    tree = toy_run(nodes=2)
    command = [sys.executable, "-c", HOLD, str(tree.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield tree.path, process, child
    for pid in (process.pid, child):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def test_a_second_controller_ends_with_status_2_and_says_who_is_first(program, holder):
    path, process, _ = holder
    before = (path / "events.jsonl").read_bytes()
    done = program("run", "--resume", path)
    assert done.code == 2
    assert f"process {process.pid} on " in done.err
    assert "has held it since" in done.err
    assert (path / "events.jsonl").read_bytes() == before
    assert program("show", path).code == 0  # readers are welcome


def test_a_dead_controller_holds_nothing_even_if_its_child_lives(program, holder):
    path, process, child = holder
    process.kill()
    process.wait()
    os.kill(child, 0)
    assert program("run", "--resume", path).code == 0


@pytest.mark.parametrize(
    "left",
    [
        {"pid": os.getpid(), "host": "here", "since": "2001-01-01"},
        {"pid": 1, "host": "elsewhere", "since": "2001-01-01"},
        "garbage \x1b[2J",
        "",
    ],
    ids=["living process", "another host", "garbage", "empty"],
)
def test_what_stands_in_a_lock_decides_nothing(toy_run, left):
    tree = toy_run(nodes=2)
    (tree.path / "lock").write_text(left if isinstance(left, str) else json.dumps(left))
    assert speedkit.open_run(tree.path).status == "finished"
    assert speedkit.run(resume=tree.path, nodes=3).status == "finished"


def test_whatever_lock_git_left_the_run_goes_on(toy_run):
    whole = toy_run("whole", nodes=4)
    tree = toy_run(nodes=4)
    journal = tree.path / "events.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:20])
    repo = tree.path / "repo"
    left = ["HEAD.lock", "config.lock", "packed-refs.lock", "refs/heads/node/3.lock"]
    left += ["refs/notes/commits.lock", "refs/heads/node/.3.abc", "objects/ab/tmp_obj_x"]
    for name in left:
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text("torn")
    resumed = speedkit.run(resume=tree.path)
    assert facts(resumed) == facts(whole)
    assert not [name for name in left if (repo / name).exists()]
    check = subprocess.run(["git", "-C", str(repo), "fsck", "--strict"], capture_output=True)
    assert check.returncode == 0
    check_once(tree.path)


def test_refs_that_are_lost_or_torn_come_back_from_the_journal(toy_run):
    tree = toy_run(nodes=4)
    refs = tree.path / "repo/refs/heads/node"
    (refs / "1").unlink()
    (refs / "2").write_text("")
    speedkit.run(resume=tree.path)
    for node in tree:
        assert (refs / str(node.id)).read_text().strip() == node.commit


def test_a_run_of_a_later_version_is_refused_and_left_alone(program, toy_run):
    tree = toy_run(nodes=1)
    manifest = tree.path / "run.toml"
    manifest.write_text(manifest.read_text().replace("schema = 1", "schema = 2"))
    before = {p: p.stat().st_mtime_ns for p in tree.path.rglob("*")}
    for command in (["show"], ["log"], ["run", "--resume"], ["report"]):
        done = program(*command, tree.path)
        assert done.code == 2
        assert "upgrade speedkit" in done.err
        assert "Traceback" not in done.err
    assert {p: p.stat().st_mtime_ns for p in tree.path.rglob("*")} == before


@pytest.mark.parametrize("step_s", [-3600.0, 86400.0 * 400, 0.0])
def test_a_clock_that_jumps_changes_no_result(toy_run, monkeypatch, step_s):
    """Each look at the wall clock is an hour back, a year on, or the same for ever."""
    straight = toy_run("straight", nodes=4, scaffold="aide", seed=3)
    now = [1_700_000_000.0]

    def jumping():
        now[0] += step_s
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    tree = toy_run("jumping", nodes=4, scaffold="aide", seed=3)
    monkeypatch.undo()
    assert facts(tree) == facts(straight)
    assert tree.fsr() == straight.fsr()
    assert all(0 <= n.wall_s < 60 for n in tree if n.wall_s is not None)


def test_a_hang_up_ends_the_run_as_an_interrupt_does(family, tmp_path):
    path = tmp_path / "run"
    process = start(family, path)
    wait_until(lambda: (path / "events.jsonl").exists() and survivors(path))
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not survivors(path)
    assert speedkit.open_run(path).status == "interrupted"


def test_impatience_loses_no_node(family, tmp_path):
    """Further interrupts while the run ends: jobs are gone, and it can be gone on with."""
    path = tmp_path / "run"
    process = start(family, path)
    wait_until(lambda: (path / "events.jsonl").exists() and survivors(path))
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), err
    wait_until(lambda: not survivors(path))
    before = [e for e in RunDirectory(path).events() if e["type"] == "node_finished"]
    resumed = speedkit.run(resume=path)
    assert resumed.status == "finished"
    assert all(resumed[e["id"]].outcome == e["outcome"] for e in before)
    check_once(path)


LIMITED = """
import resource, signal, sys
sys.dont_write_bytecode = True  # a limit would tear what others import
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from speedkit.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("limit", [900, 5100, 8000])
def test_a_disk_that_fills_up_leaves_a_run_that_goes_on(toy_run, tmp_path, limit):
    """A limit on the size of files stands for the disk: each kind of file meets it somewhere."""
    path = tmp_path / "run"
    options = ["--load", str(INSTANT), "--executor", "instant", "--nodes", "6", "--seed", "1"]
    options += ["--scaffold", "flat", "--coder", "tuner", "--display", "none"]
    command = [sys.executable, "-c", LIMITED, str(limit)]
    command += ["run", f"{TOY}/1", "--out", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    if limit < 5000:  # nothing was begun, and the same command begins anew
        assert not (path / "run.toml").exists()
        assert f"{path}/repo cannot be made" in done.stderr
        resumed = toy_run(nodes=6, seed=1, scaffold="flat")
    else:
        assert "File too large" in done.stderr
        assert f"speedkit run --resume {path}" in done.stderr
        resumed = speedkit.run(resume=path)
    assert facts(resumed) == facts(toy_run("whole", nodes=6, seed=1, scaffold="flat"))
    check_once(path)


def test_many_writers_of_one_cache_lose_no_reply(tmp_path):
    """Transactions that begin as writers wait for each other instead of failing."""
    path, lost = tmp_path / "replies.sqlite", []

    def write(writer):
        cache = ReplyCache(path)
        for k in range(30):
            kept = Stored(f"{writer}/{k}", "", None, Usage(), "stop")
            if cache.put(f"{writer}/{k}", kept, model="m", sample=0) != kept:
                lost.append((writer, k))
        cache.close()

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = ReplyCache(path)
    stored = [cache.get(f"{w}/{k}") for w in range(4) for k in range(30)]
    cache.close()
    assert lost == []
    assert [one.text for one in stored] == [f"{w}/{k}" for w in range(4) for k in range(30)]


def test_a_cache_that_another_process_begins_is_waited_for(tmp_path):
    """SQLite refuses at once, whatever its patience, to change a file that is being written."""
    path = tmp_path / "replies.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE mine (x)")
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ["COMMIT"])
    release.start()
    cache = ReplyCache(path)
    try:
        kept = Stored("one", "", None, Usage(), "stop")
        assert cache.put("k", kept, model="m", sample=0) == kept
    finally:
        release.join()
        other.close()
        cache.close()


WRITERS = {"write_text", "write_bytes"}
MAY_WRITE = {
    "core/files.py": "the one that replaces a file whole",
    "core/redact.py": "the same for logs",
    "core/llm_log.py": "new files only, by O_EXCL",
    "core/trial.py": "the workspace of a job, gone after it",
}


def test_no_state_is_written_in_place():
    """A kill between two writes must leave the old file or the new one."""
    source = TESTS.parent / "speedkit"
    found = {
        str(path.relative_to(source))
        for path in [*(source / "core").rglob("*.py"), *source.glob("*.py")]
        if path.name != "packaging.py" and any(map(writes, ast.walk(ast.parse(path.read_text()))))
    }
    assert found == set(MAY_WRITE)


def writes(node):
    """Whether a call writes a file under its own name."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")[2]
    if name in WRITERS:
        return True
    texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return name in ("open", "fdopen") and any(
        t[:1] in ("w", "a", "x") and len(t) < 4 for t in texts
    )


def test_nothing_of_a_run_stands_outside_its_folder(toy_run, tmp_path, own_cache, monkeypatch):
    """A kill needs no search for what to clean up."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    before = set(Path(own_cache).rglob("*"))
    tree = toy_run(nodes=2)
    assert list(home.rglob("*")) == []
    made = {p.relative_to(own_cache).parts[0] for p in set(Path(own_cache).rglob("*")) - before}
    assert made <= {"calibrations", "calibration"}
    names = {p.name for p in tree.path.iterdir()}
    assert names <= {
        *("run.toml", "events.jsonl", "repo", "nodes", "work", "cache", "lock", "calibration"),
    }
    assert list((tree.path / "work").iterdir()) == []
