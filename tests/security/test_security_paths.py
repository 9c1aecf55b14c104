"""Names, links, repositories and archives that reach beyond the place that is meant."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
from pathlib import Path

import pytest

import speedkit
from speedkit.core.errors import RunDirectoryError
from speedkit.core.files import read_ends, read_tail
from speedkit.core.history import GitHistory, default_run_path
from speedkit.core.journal import decode, encode
from speedkit.core.node import Node, Stage
from tests.conftest import TESTS
from tests.kit.made_runs import Made, make_run

SOURCE = TESTS.parent / "speedkit"
NAMES = (
    *("../x.py", "/etc/x", "a/b.py", "..", ".", "", ".git", ".GIT", ".git/hooks/post-commit"),
    *("a\nb.py", "a\x00b.py", "a\\..\\b.py", "\u202eyp.x", "\x1b[2Jx.py"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_coder_cannot_name_a_file_elsewhere(toy_run, tmp_path, name):
    """A coder of a third party is told, and neither git nor a job gets the file."""
    plugin = tmp_path / "astray.py"
    plugin.write_text(
        "import speedkit\n"
        "from speedkit.core.components import Coder, Draft\n"
        "class Astray(Coder):\n"
        "    def write(self, request):\n"
        f"        return Draft({{**request.files, {name!r}: 'x = 1\\n'}}, 'astray')\n"
        "@speedkit.hookimpl\n"
        "def register_coders(register): register('astray', Astray)\n"
    )
    load = (str(plugin), str(TESTS / "kit" / "instant.py"))
    with pytest.raises(RunDirectoryError, match="cannot have a file named"):
        toy_run(load=load, coder="astray", nodes=1)
    events = {e["type"] for e in speedkit.core.journal.read_events(tmp_path / "run/events.jsonl")}
    assert "node_created" in events  # node 0
    assert len(speedkit.open_run(tmp_path / "run")) == 1
    outside = [p for p in tmp_path.rglob("x.py") if "cache" not in str(p)]
    assert not outside


def test_a_log_that_is_no_file_is_not_waited_for(tmp_path):
    (tmp_path / "private").write_text("private words")
    (tmp_path / "link").symlink_to(tmp_path / "private")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert [read_tail(tmp_path / n) for n in ("link", "pipe", "folder", "none")] == [""] * 4
    assert read_tail(tmp_path / "private", 5) == "words"
    assert read_ends(tmp_path / "private", 3, 5) == "pri\n[5 bytes are left out here]\nwords"
    assert read_ends(tmp_path / "private", 3, 10) == "private words"


# --- the repository of a run directory from a stranger ---------------------------------------

EVIL = """
[core]
    repositoryformatversion = 1
    fsmonitor = {mark}
    hooksPath = {hooks}
    pager = {mark}
    sshCommand = {mark}
    gitProxy = {mark}
[extensions]
    partialClone = origin
[remote "origin"]
    url = {url}
    promisor = true
    partialclonefilter = blob:none
[protocol]
    allow = always
[protocol "ext"]
    allow = always
[diff]
    external = {mark}
[diff "py"]
    command = {mark}
    textconv = {mark}
[uploadpack]
    packObjectsHook = {mark}
"""


@pytest.fixture(params=["ext::{mark}", "ssh://host/x", "git://127.0.0.1:9/x", "file://{mark}"])
def trapped(request, tmp_path):
    """Return a run whose repository would run a program, and the mark of that."""
    path = make_run(tmp_path / "run", [Made(code="print(1)\n"), Made(code="print(2)\n")])
    mark, program = tmp_path / "ran", tmp_path / "mark"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / hook).symlink_to(program)
    config = path / "repo" / "config"
    text = config.read_text().replace("repositoryformatversion = 0", "")
    url = request.param.format(mark=program)
    config.write_text(text + EVIL.format(mark=program, hooks=hooks, url=url))
    (path / "repo" / "info").mkdir(exist_ok=True)
    (path / "repo" / "info" / "attributes").write_text("*.py diff=py\n")
    return path, mark


def forget_blobs(path):
    """Delete the files of a history, which git would then want to fetch."""
    command = ["git", "-C", str(path / "repo"), "cat-file", "--batch-all-objects", "--batch-check"]
    env = {**os.environ, "GIT_ALLOW_PROTOCOL": "none"}
    listed = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    for sha, kind, _ in (line.split() for line in listed.splitlines()):
        if kind == "blob":
            (path / "repo/objects" / sha[:2] / sha[2:]).unlink()


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "objects missing"])
def test_the_configuration_of_a_repository_runs_nothing(program, trapped, whole):
    path, mark = trapped
    if not whole:
        forget_blobs(path)
    for command in (["diff", path, 1], ["diff", path, 1, "--stat"], ["report", path]):
        done = program(*command)
        assert done.code == (0 if whole or "report" in command else 2), done.err
        assert done.err.count("\n") <= 1
        assert not mark.exists(), command
    for command in (["show", path, 1], ["log", path], ["judge", path, 1]):
        assert program(*command).err.count("\n") <= 1
        assert not mark.exists(), command


@pytest.mark.parametrize("commit", ["--output={out}", "--no-index", "HEAD", "node/1", "", "-"])
def test_a_commit_of_the_journal_is_no_option_of_git(program, tmp_path, commit):
    path, out = make_run(tmp_path / "run", [Made()]), tmp_path / "written"
    journal = path / "events.jsonl"
    events = [decode(line) for line in journal.read_bytes().splitlines(keepends=True)]
    for event in events:
        if event.get("id") == 1 and "commit" in event:
            event["commit"] = commit.format(out=out)
    journal.write_bytes(b"".join(map(encode, events)))
    done = program("diff", path, 1)
    assert done.code == 2
    assert "names no commit" in done.err
    assert done.err.count("\n") == 1
    assert not out.exists()


def test_a_damaged_history_is_one_line(program, tmp_path):
    path = make_run(tmp_path / "run", [Made(code="print(3)\n")])
    forget_blobs(path)
    done = program("diff", path, 1)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cannot be read" in done.err


def test_run_directories_have_plain_names():
    for task in ("/tmp/\x1b[2J\u202ex/1", "a b\n/1", "../../x/1", "mini/1", "./1", "."):
        name = default_run_path(task).name
        assert name.replace("-", "").replace("_", "").isalnum()
        assert default_run_path(task).parent == Path("runs")


def test_git_objects_are_on_disk_before_a_ref_names_them(tmp_path, monkeypatch):
    """What a loss of power may take is the ref, which the journal has too, never an object."""
    path = make_run(tmp_path / "run", [])
    steps = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(fd):
        steps.append(("sync", os.readlink(f"/proc/self/fd/{fd}")))
        real_sync(fd)

    def replace(old, new):
        steps.append(("name", str(new)))
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    history = GitHistory(path / "repo")
    node = Node(1, 0, Stage.DRAFT, 1, hypothesis="h")
    start = history.repo.commit("refs/heads/node/0").hexsha
    steps.clear()
    history.commit(node, {"solve.py": "print('new')\n"}, start)
    history.close()
    at = steps.index(("name", str(path / "repo/refs/heads/node/1")))
    synced = [name for kind, name in steps[:at] if kind == "sync"]
    assert sum("/objects/" in name for name in synced) == 3  # file, folder and commit
    assert any(".1." in name for name in synced), "the ref itself"


# --- what the code of speedkit never does ----------------------------------------------------


@functools.cache
def nodes_of(path):
    """Return the syntax tree of a file as one list."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def calls_in(path):
    """Yield the dotted names of what a file imports or calls."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)


MAY = {"plugins/executors/warm_entry.py": {"exec"}}
"""Programs that run the script of a node, where jobs run."""


def test_nothing_is_unpacked_unpickled_or_evaluated():
    forbidden = {
        *("tarfile", "zipfile", "shutil.unpack_archive", "pickle", "marshal", "shelve", "dill"),
        *("eval", "exec", "os.system", "os.popen", "yaml.load", "xml.etree.ElementTree"),
    }
    for path in SOURCE.rglob("*.py"):
        allowed = MAY.get(str(path.relative_to(SOURCE)), set())
        assert not forbidden.intersection(calls_in(path)) - allowed, path


def test_checkpoints_are_read_as_weights_alone():
    found = 0
    for path in SOURCE.rglob("*.py"):
        for node in nodes_of(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                found += 1
                assert "weights_only=True" in ast.unparse(node), path
    assert found


def test_no_shell_reads_a_text_of_ours():
    for path in SOURCE.rglob("*.py"):
        for node in nodes_of(path):
            if isinstance(node, ast.Call):
                shells = [k for k in node.keywords if k.arg == "shell"]
                assert not shells, f"{path}:{node.lineno}"


def test_no_server_listens_but_the_fake_one_of_tests():
    servers = {"http.server", "socketserver", "aiohttp", "flask", "fastapi", "uvicorn"}
    using = {p.relative_to(SOURCE) for p in SOURCE.rglob("*.py") if servers & set(calls_in(p))}
    assert using == {Path("testing/fake_openai.py")}
