"""The sandbox: what a job sees in it, and what becomes of jobs where there is none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest
from executor_bench import as_another_user

from speedkit.core.components import Ending
from speedkit.core.errors import ExecutorError
from speedkit.plugins.executors import machine, mounts, processes, sandbox, selfcheck, torchrun
from speedkit.plugins.executors.mounts import View
from speedkit.plugins.executors.supervisor import Controller, Order, Supervisor
from speedkit.plugins.executors.torchrun import TorchrunExecutor, TorchrunOptions

BWRAP = pytest.mark.parametrize("sandbox", ["bwrap"])


@pytest.fixture
def no_bwrap(monkeypatch, tmp_path):
    """A machine on which bubblewrap is not installed."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(torchrun, "_said", set())
    return tmp_path / "bin"


# --- it holds -------------------------------------------------------------------------------


@BWRAP
@pytest.mark.slow
def test_the_selfcheck_passes(bench):
    before = os.umask(0o077)  # as where files are closed to others unless that is said
    try:
        rows = selfcheck.check()
    finally:
        os.umask(before)
    assert len(rows) == 22
    assert [row for row in rows if not row.ok] == []


@BWRAP
def test_the_selfcheck_fails_without_a_sandbox(bench, monkeypatch):
    """Each attempt is one that can succeed; the size of a file is limited there as well."""
    options = TorchrunOptions
    monkeypatch.setattr(
        selfcheck, "TorchrunOptions", lambda **kw: options(**{**kw, "sandbox": "none"})
    )
    monkeypatch.setattr(selfcheck, "_meet", lambda *arguments: ())
    failed = {row.name for row in selfcheck.check() if not row.ok}
    always = {"user and rights", "processes", "writing outside", "network", "unix sockets"}
    always |= {"tracing", "kernel doors", "other nodes", "history", "records", "temporary files"}
    assert failed >= always | {"number of processes"}
    assert "file size" not in failed
    if os.getuid() == 0:
        assert {"passwords", "kernel settings", "namespaces"} <= failed


def test_the_selfcheck_says_that_there_is_no_sandbox(no_bwrap):
    (row,) = selfcheck.check()
    assert (row.name, row.ok) == ("sandbox", False)
    assert "bubblewrap is not installed" in row.found


# --- what a job sees ------------------------------------------------------------------------


@BWRAP
def test_data_are_readable_and_the_workspace_is_handed_back(bench, tmp_path):
    data, store = tmp_path / "data", tmp_path / "store"
    for folder in (data, store):
        folder.mkdir()
    (store / "blob").write_text("tokens")
    (data / "shard.bin").symlink_to(store / "blob")
    extra = tmp_path / "extra"
    extra.write_text("more")
    (bench.workspace / "data").symlink_to(data)
    (bench.workspace / "logs").mkdir()
    script = """
        import sys
        text = open("data/shard.bin").read() + open(sys.argv[1]).read()
        with open("logs/out.txt", "w") as file:
            file.write(text)
        try:
            open("data/new", "w")
        except OSError as error:
            print(error.strerror)
    """
    job = bench.job(script, args=(str(extra),), readable=(extra,), collect=("logs/*.txt",))
    done = bench.executor().execute(job, bench.watch)
    assert done.ending is Ending.FINISHED, bench.log("rank0.stderr.log")
    assert bench.watch.texts() == ["Read-only file system"]
    (collected,) = done.collected
    assert collected.read_text() == "tokensmore"


@BWRAP
def test_a_cache_is_shared_by_jobs_and_not_the_users_own(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "the-users"))
    cache = tmp_path / "cache" / "triton"
    (cache / "old").mkdir(parents=True)
    (cache / "old" / "kernel").write_text("1")
    script = """
        import os
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
        folder = os.environ["TRITON_CACHE_DIR"]
        path = folder + "/old/kernel"
        number = int(open(path).read())
        with open(path, "w") as file:
            file.write(str(number + 1))
        print(number, os.listdir(os.path.dirname(folder)))
    """
    for _ in range(2):
        bench.run(script, env={"TRITON_CACHE_DIR": str(cache)})
    assert bench.watch.texts() == ["1 ['triton']", "2 ['triton']"]
    assert not (tmp_path / "the-users").exists()


@BWRAP
def test_records_nodes_and_history_in_a_visible_folder_are_masked(bench, tmp_path):
    """Where all of it lies in the interpreter's own folder, which a job sees."""
    root = tmp_path / "env"
    venv.create(root, symlinks=True, with_pip=False)
    (site,) = root.glob("lib/python*/site-packages")
    secrets = [
        site / "speedkit" / "records" / "record.py",
        site / "family" / "hints" / "hint.md",
        root / "run" / "work" / "other" / "train.py",
        root / "run" / "nodes" / "0001" / "reply",
    ]
    workspace, logs = root / "run" / "work" / "node", root / "run" / "nodes" / "0002"
    for path in [*secrets, workspace / "x", logs / "x"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (site / "module.py").write_text("value = 4")
    (workspace / "script.py").write_text(
        "import json, module, os, sys\n"
        "print(json.dumps([module.value, sys.prefix, *map(os.path.exists, sys.argv[1:])]))\n"
    )
    job = replace(
        bench.job("", args=[str(path) for path in secrets], hidden=(site / "family", root / "run")),
        workspace=workspace,
        log_dir=logs,
    )
    done = bench.executor({"python": str(root / "bin" / "python")}).execute(job, bench.watch)
    assert done.ending is Ending.FINISHED, (logs / "rank0.stderr.log").read_bytes()
    assert json.loads(bench.watch.texts()[0]) == [4, str(root), False, False, False, False]


@BWRAP
def test_a_run_in_a_folder_that_is_given_is_masked(bench, tmp_path):
    """Data that were asked for are seen all the same, even below what is hidden."""
    root, run = tmp_path / "root", tmp_path / "root" / "run"
    secrets = [run / "events.jsonl", run / "repo" / "HEAD", run / "nodes" / "0001" / "reply"]
    secrets += [run / "work" / "other" / "train.py", root / "family" / "hint.md"]
    workspace, shards = run / "work" / "node", run / "verify" / "shuffled"
    for path in [*secrets, run / "run.toml", shards / "shard", workspace / "x", root / "public"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (workspace / "data").symlink_to(shards)
    (workspace / "script.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps([open('data/shard').read(), *map(os.path.exists, sys.argv[1:])]))\n"
    )
    job = bench.job("", args=[str(path) for path in [root / "public", *secrets]])
    job = replace(job, readable=(root,), hidden=(root / "family",), workspace=workspace)
    done = bench.executor().execute(job, bench.watch)
    assert done.ending is Ending.FINISHED, bench.log("rank0.stderr.log")
    assert json.loads(bench.watch.texts()[0]) == ["shard", True, *[False] * len(secrets)]


@BWRAP
def test_a_controller_that_closes_its_files_to_others_can_make_one(bench):
    before = os.umask(0o077)
    try:
        found = sandbox._find.__wrapped__(sys.executable, shutil.which("bwrap"))
        bench.workspace.chmod(0o700)
        bench.run("import os\nprint(os.getcwd(), os.environ['PWD'])")
    finally:
        os.umask(before)
    assert found.reason == ""
    assert bench.watch.texts() == [f"{bench.workspace} {bench.workspace}"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root's jobs are another user's")
@BWRAP
def test_data_that_jobs_cannot_read_are_refused_with_what_to_do(bench, tmp_path):
    closed = tmp_path / "closed data"
    closed.mkdir(0o700)
    (bench.workspace / "data").symlink_to(closed)
    with pytest.raises(ExecutorError, match=r"chmod -R a\+rX '.*/closed data'"):
        bench.run("print('hi')")


@BWRAP
def test_the_network_has_a_name_and_loopback(bench):
    script = """
        import os, pwd, socket
        server = socket.create_server((socket.gethostname(), 0))
        socket.create_connection(server.getsockname()).close()
        print(socket.gethostname(), pwd.getpwuid(os.getuid()).pw_name)
        print(os.environ["HOME"], os.environ["GLOO_SOCKET_IFNAME"])
    """
    assert bench.run(script).ending is Ending.FINISHED
    assert bench.watch.texts() == ["localhost job", "/tmp/home lo"]


@BWRAP
def test_an_exit_code_is_not_taken_for_a_signal(bench):
    assert bench.run("import sys; sys.exit(255)").exit_code == 255


@BWRAP
def test_limits_of_files_and_memory_hold(bench):
    script = """
        import errno
        for path, size in (("large", 30), ("/tmp/large", 30)):
            try:
                with open(path, "wb") as file:
                    for _ in range(size):
                        file.write(bytes(1_000_000))
            except OSError as error:
                print(errno.errorcode[error.errno])
    """
    bench.run(script, {"max_file_gb": 0.02, "max_tmp_gb": 0.01})
    assert bench.watch.texts() == ["EFBIG", "ENOSPC"]


def test_an_error_file_is_one_of_the_jobs_folder(tmp_path):
    """What a rank says of itself may name any path, or one that leads anywhere."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "out").symlink_to("/etc")
    facts = dict.fromkeys(Order._fields, "")
    with open(os.devnull, "wb") as nobody:
        order = Order(**{**facts, "scratch": str(tmp_path)})
        one = Supervisor(order, Controller(nobody.fileno()))
    good = str(tmp_path / "torch" / "error.json")
    assert one._own_file(good) == good
    for path in ("/etc/hostname", f"{tmp_path}/../x", f"{tmp_path}/torch/out/hostname", ""):
        assert one._own_file(path) == ""


# --- where there is none --------------------------------------------------------------------


def test_auto_goes_on_without_and_says_so_once(bench, no_bwrap, caplog):
    for _ in range(2):
        done = bench.run("print('hi')", {"python": sys.executable})
        assert done.ending is Ending.FINISHED
    (line,) = [r.getMessage() for r in caplog.records if r.name == "speedkit"]
    assert line.startswith("speedkit: jobs run without a sandbox (bubblewrap is not installed")
    assert "can read this user's files" in line
    assert TorchrunExecutor().fingerprint()["sandbox"] == "none"


def test_one_that_must_be_there_and_is_not(bench, no_bwrap):
    with pytest.raises(ExecutorError, match=r"not installed.*executor\.sandbox=none"):
        bench.run("print('hi')", {"sandbox": "bwrap"})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions"),
        ("exit 0", "makes no sandbox here"),
        ("echo '[1000, true, 0]'", "does not hold"),
        ("echo '[0, true, -1]'", "does not hold"),
    ],
)
def test_one_that_does_not_work_is_not_used(no_bwrap, body, reason):
    script = no_bwrap / "bwrap"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.9 && exit\n{body}\n')
    script.chmod(0o755)
    found = sandbox.find(sys.executable)
    assert found.bwrap is None
    assert reason in found.reason


@pytest.mark.skipif(os.getuid() != 0, reason="only root hands files over")
@BWRAP
def test_where_files_cannot_be_handed_over_there_is_none(bench, monkeypatch):
    """As for root in a container that has taken its rights away."""

    def refuse(*arguments, **more):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    found = sandbox._find.__wrapped__(sys.executable, shutil.which("bwrap"))
    assert found.bwrap is None
    assert "files cannot be given to another user: [Errno 1]" in found.reason


@pytest.mark.parametrize(
    ("mode", "options"), [(0o4755, {"--perms"}), (0o755, {"--perms", "--size"})]
)
def test_one_that_has_the_rights_of_root_is_given_no_sizes(no_bwrap, monkeypatch, mode, options):
    script = no_bwrap / "bwrap"
    script.write_text("#!/bin/sh\necho '    --perms OCTAL  x'\necho '    --size BYTES  x'\n")
    script.chmod(mode)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert sandbox._options(str(script)) == options


def test_a_machine_without_a_filter_has_none(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr("shutil.which", lambda name: "/nowhere/bwrap")
    assert "no filter of system calls for riscv64" in sandbox.find(sys.executable).reason


@BWRAP
def test_one_that_fails_later_is_the_machinerys_fault(bench, monkeypatch, tmp_path):
    bench.executor().fingerprint()
    monkeypatch.setattr(sandbox, "_PACKAGE", tmp_path / "gone")
    done = bench.run("print('hi')")
    assert done.ending is Ending.LOST
    assert done.reason.startswith("the sandbox could not be made: ")
    assert "gone" in done.reason


def test_a_controller_can_be_closed_to_processes_of_its_user():
    """Both processes are of another user than root, whom nothing stops."""
    ready, told = os.pipe()
    go, stop = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(stop)
        _become_another()
        for close in (lambda: None, processes.close_to_equals):
            close()
            os.write(told, b"x")
            os.read(go, 1)
        os._exit(0)
    os.close(go)
    seen = []
    for _ in range(2):
        os.read(ready, 1)
        seen.append(_another_reads(pid))
        os.write(stop, b"x")
    os.close(stop)
    os.waitpid(pid, 0)
    assert seen == [True, False]


def _another_reads(pid: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            _become_another()
            Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _become_another() -> None:
    if os.getuid() == 0:
        os.setgid(sandbox.UID - 1)
        os.setuid(sandbox.UID - 1)
    # Closed by the change of user, or by a job of an earlier test.
    processes._prctl(processes._PR_SET_DUMPABLE, 1)


# --- what bubblewrap is told ----------------------------------------------------------------


@pytest.fixture
def view(tmp_path):
    (tmp_path / "work" / "node").mkdir(parents=True)
    return View(tmp_path / "work" / "node")


def told(view, tmp_path, env=None, limits=None):
    """Return the arguments of bubblewrap."""
    (tmp_path / "scratch" / "pipes").mkdir(parents=True)
    found = sandbox.Found("/usr/bin/bwrap", "0.9", frozenset({"--perms", "--size"}))
    command = [sys.executable, "script.py"]
    made = sandbox.enclose(
        found, command, view, tmp_path / "scratch", env or {}, limits or sandbox.Limits()
    )
    return made.command


def bound(arguments, option):
    """Return the paths that an option of three words is given with."""
    return [arguments[at + 2] for at, word in enumerate(arguments) if word == option]


def test_devices_of_accelerators_are_passed(view, tmp_path, monkeypatch):
    there = {"/dev/nvidia*": ["/dev/nvidiactl", "/dev/nvidia0"], "/dev/dri": ["/dev/dri"]}
    monkeypatch.setattr("glob.glob", lambda pattern: there.get(pattern, []))
    group = os.stat_result((0, 0, 0, 0, 0, 44, 0, 0, 0, 0))
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **kw: group if "/dev/" in str(path) else real(path, **kw)
    )
    arguments = told(view, tmp_path)
    assert bound(arguments, "--dev-bind") == ["/dev/dri", "/dev/nvidia0", "/dev/nvidiactl"]
    facts = json.loads(arguments[-3])
    assert facts["groups"] == [44]


def test_folders_that_variables_name_are_shown(view, tmp_path):
    for name in ("cuda", "libs"):
        (tmp_path / name).mkdir()
    env = {
        "CUDA_HOME": str(tmp_path / "cuda"),
        "LD_LIBRARY_PATH": f"{tmp_path}/libs:/:relative:{tmp_path}/missing:{Path.home()}",
    }
    shown = mounts.shown(view, sys.executable, env).read_only
    assert {str(tmp_path / "cuda"), str(tmp_path / "libs")} <= set(shown)
    assert not {"/", "relative", f"{tmp_path}/missing", str(Path.home())} & set(shown)


def test_compilers_are_shown_with_what_they_belong_to(view, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("opt/gcc/bin/gcc", "home/tools/bin/clang", "home/own/bin/c++"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.touch(0o755)
    folders = [tmp_path / "opt/gcc/bin", tmp_path / "home/tools/bin"]
    env = {"PATH": ":".join(map(str, folders)), "CXX": f"{tmp_path}/home/own/bin/c++ -m64"}
    seen = mounts.shown(view, sys.executable, env).read_only
    assert {str(tmp_path / "opt/gcc"), str(tmp_path / "home/own")} <= set(seen)
    assert not any(path.startswith(str(tmp_path / "home/tools")) for path in seen)


def test_a_folder_of_the_data_that_is_closed_is_passed_over(tmp_path):
    """As ``lost+found`` of a disk; root may enter any folder, so another user tries."""
    (tmp_path / "data" / "closed").mkdir(parents=True)
    (tmp_path / "data" / "open").mkdir()
    (tmp_path / "data" / "open" / "shard").symlink_to("/etc/hostname")

    def look():
        os.chmod("data/closed", 0)
        assert list(mounts._links_out_of("data")) == ["/etc/hostname"]

    as_another_user(tmp_path, look)


def test_a_link_in_a_shown_folder_is_left_to_lead_on(tmp_path, view):
    """As ``/usr/local/cuda``, on which nothing can be mounted."""
    for name in ("prefix/cuda-13", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "prefix" / "cuda").symlink_to("cuda-13")
    (tmp_path / "prefix" / "away").symlink_to(tmp_path / "elsewhere")
    paths = {}
    for name in ("prefix", "prefix/cuda", "prefix/away"):
        mounts._show(paths, tmp_path / name)
    assert list(paths) == [str(tmp_path / "prefix"), str(tmp_path / "elsewhere")]
    given = {}
    mounts._show(given, tmp_path / "prefix" / "cuda", paths)
    assert list(given) == [str(tmp_path / "prefix" / "cuda-13")]


def test_no_more_is_shown_than_the_list(view, tmp_path):
    seen = mounts.shown(view, sys.executable, {})
    roots = {sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix)}
    allowed = [*mounts.SYSTEM, *mounts.LINKED, *mounts.ETC, *roots]
    for path in seen.read_only:
        assert any(mounts.is_below(path, root) for root in allowed), path
    assert set(seen.writable) == {str(view.workspace)}


def test_without_root_the_job_keeps_its_user(view, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 1000)
    arguments = told(view, tmp_path)
    assert "--unshare-user" in arguments
    assert "--cap-add" not in arguments
    facts = json.loads(arguments[-3])
    assert facts["uid"] is None
    assert (tmp_path / "scratch" / "etc" / "passwd").read_text().startswith("job:x:1000:1000:")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hand files over")
def test_what_a_user_has_is_not_handed_over_again(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "old").write_text("x")
    (folder / "link").symlink_to("/etc/hostname")
    before = os.stat("/etc/hostname").st_uid
    sandbox._hand_over(str(folder), sandbox.UID)
    assert {(folder / name).lstat().st_uid for name in ("old", "link")} == {sandbox.UID}
    (folder / "roots").write_text("x")
    sandbox._hand_over(str(folder), sandbox.UID)
    assert (folder / "roots").stat().st_uid == 0
    assert os.stat("/etc/hostname").st_uid == before


def test_the_pipes_of_a_job_are_written_to_only(view, tmp_path):
    told(view, tmp_path)
    mode = stat.S_IMODE((tmp_path / "scratch" / "pipes").stat().st_mode)
    assert mode == 0o711 if os.getuid() == 0 else mode & 0o700


def test_the_paths_of_an_option_are_absolute():
    with pytest.raises(ValueError, match="not an absolute path"):
        TorchrunOptions(readable=("relative",))


def test_what_an_interpreter_says_is_asked_of_it(tmp_path):
    with pytest.raises(ExecutorError, match="does not run"):
        mounts.interpreter(str(tmp_path / "no-python"))
    assert mounts.interpreter(machine.find_interpreter(None))["executable"] == sys.executable


def test_a_unix_socket_outside_is_not_reached(bench, tmp_path, monkeypatch):
    """Even if it lies beside the workspace."""
    if sandbox.find(sys.executable).bwrap is None:
        pytest.skip("no sandbox can be made here")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the whole path may be too long
        server.bind("s")
        server.listen(1)
        script = f"""
            import os, socket
            try:
                os.chdir({str(tmp_path)!r})
                socket.socket(socket.AF_UNIX).connect("s")
            except OSError as error:
                print(type(error).__name__)
        """
        bench.run(script)
    assert bench.watch.texts() == ["FileNotFoundError"]
