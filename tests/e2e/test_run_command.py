"""The command `speedkit run`, as a user would call it, and the mistakes a user makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

import speedkit
from tests.conftest import INSTANT, TOY

TWICE = 2 * "[[task]]\nid = 1\nstart = 1\ntarget = 2\n\n"
FAST = ("--load", str(INSTANT), "--executor", "instant", "--nodes", "3")


def speedkit_run(*arguments, cwd=None, **environment):
    command = [sys.executable, "-m", "speedkit", "run", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=cwd, timeout=120, check=False
    )


def test_the_result_is_on_stdout_and_the_talk_on_stderr(tmp_path):
    done = speedkit_run(f"{TOY}/1", *FAST, "--out", tmp_path / "run")
    assert done.returncode == 0
    assert "best     node" in done.stdout
    assert "FSR" in done.stdout
    assert "git -C" in done.stdout
    assert "no model is set" in done.stderr
    assert "calibration (measured)" in done.stderr
    assert "\x1b[" not in done.stdout + done.stderr


def test_a_family_in_the_current_folder_is_found_again(tmp_path):
    shutil.copytree(TOY, tmp_path / "toy")
    done = speedkit_run("./1", *FAST, "--out", tmp_path / "run", cwd=tmp_path / "toy")
    assert done.returncode == 0, done.stderr
    assert speedkit.open_run(tmp_path / "run").fsr() is not None


def test_json_is_one_event_a_line(tmp_path):
    done = speedkit_run(f"{TOY}/1", *FAST, "--json", "--out", tmp_path / "run")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["type"] == "run_started"
    assert events[-1] == {**events[-1], "type": "run_finished", "status": "finished"}
    finished = [e["id"] for e in events if e["type"] == "node_finished"]
    assert sorted(finished) == [0, 1, 2, 3]
    assert done.stderr == ""


def test_a_dry_run_starts_nothing(tmp_path):
    done = speedkit_run(f"{TOY}/1", "--dry-run", "--json", "--out", tmp_path / "run")
    plan = json.loads(done.stdout)
    assert (plan["task"], plan["nodes"]) == ("toy/1", 20)
    assert plan["components"]["scaffold"]["name"] == "aide"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toys/1"], "no family named 'toys'"),
        ([f"{TOY}/9"], "no task named 'toy/9'"),
        ([str(TOY)], "is no task; write FAMILY/ID"),
        (["/nowhere/1"], "no family at /nowhere"),
        ([f"{TOY}/1", "--scaffold", "aid"], "did you mean aide?"),
        ([f"{TOY}/1", "--plugin", "scaffold"], "write KIND=NAME"),
        ([f"{TOY}/1", "--plugin", "scafold=aide"], "did you mean scaffold?"),
        ([f"{TOY}/1", "-o", "coder.samplr=tpe"], "did you mean sampler?"),
        ([f"{TOY}/1", "-o", "coder.spread=x"], "coder.spread"),
        ([f"{TOY}/1", "--hints", "4"], "hint levels are 1, 2 and 3"),
        ([f"{TOY}/1", "--hints", "1"], "hint"),
        ([f"{TOY}/1", "--config", "absent.toml"], "no configuration file absent.toml"),
        ([f"{TOY}/2", "--coder", "oracle"], "script"),
        ([f"{TOY}/1", "--coder", "llm"], "coder llm needs a model; give --model"),
        (["--resume", "/nowhere"], "is no run directory"),
        (["--resume", "/nowhere", "--seed", "3"], "is no run directory"),
    ],
)
def test_a_mistake_is_a_line_and_exit_status_2(program, tmp_path, arguments, message):
    out = () if "--resume" in arguments else ("--out", tmp_path / "r")
    done = program("run", *arguments, *out)
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) <= 4


def test_a_used_directory_is_refused(program, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = program("run", f"{TOY}/1", *FAST, "--out", tmp_path)
    assert done.code == 2
    assert "is not empty" in done.err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_half_made_directory_is_taken_over(program, tmp_path):
    """A kill before run.toml was written leaves folders, and no run to resume."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "nodes").mkdir()
    assert program("run", "--resume", tmp_path).code == 2
    assert program("run", f"{TOY}/1", *FAST, "--out", tmp_path).code == 0


def test_settings_of_a_resumed_run_cannot_change_but_limits_can(program, tmp_path):
    path = tmp_path / "run"
    assert program("run", f"{TOY}/1", *FAST, "--out", path).code == 0
    done = program("run", "--resume", path, "--seed", "3")
    assert done.code == 2
    assert "only nodes, max_cost, max_tokens can be given anew, not seed" in done.err
    assert program("run", "--resume", path, "--nodes", "5").code == 0
    assert len(speedkit.open_run(path)) == 6


def test_a_target_known_by_its_time_alone(program, tmp_path):
    done = program("run", f"{TOY}/2", *FAST, "--coder", "noop", "--out", tmp_path / "run")
    assert done.code == 0
    tree = speedkit.open_run(tmp_path / "run")
    assert tree.calibration.source == "scaled"
    assert tree.calibration.target_ms == pytest.approx(tree.calibration.start_ms / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("launcher", "lancher"), "lancher"),
        (("index = 2", "index = 5"), "numbered 1, 2, 3"),
        (('script = "solve.py"', 'script = "../solve.py"'), "script"),
        (("val_loss = 1.0", "val_loss = -1"), "val_loss"),
        (("schema = 1", "schema = 7"), "schema"),
        (("[target]", "[target"), "family.toml"),
        (("[[record]]\nindex = 1", TWICE + "[[record]]\nindex = 1"), "two tasks 1"),
    ],
)
def test_a_wrong_family_file_is_a_line(program, tmp_path, change, message):
    folder = tmp_path / "family"
    shutil.copytree(TOY, folder)
    path = folder / "family.toml"
    path.write_text(path.read_text().replace(*change))
    done = program("run", f"{folder}/1", *FAST, "--out", tmp_path / "run")
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_full_disk_is_a_line_and_the_run_can_go_on(tmp_path):
    """RLIMIT_FSIZE stands for the full disk: the journal cannot grow.

    No bytecode is written meanwhile: the limit would tear what others import.
    """
    path = tmp_path / "run"
    limit = "export PYTHONDONTWRITEBYTECODE=1; ulimit -f 5; trap '' XFSZ; exec"
    command = f"{limit} {sys.executable} -m speedkit run {TOY}/1 {' '.join(FAST)} --nodes 12"
    done = subprocess.run(
        ["bash", "-c", f"{command} --out {path} --display none"], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert f"speedkit run --resume {path}" in done.stderr
    assert "Traceback" not in done.stderr
    assert speedkit.run(resume=path).status == "finished"


def test_help_is_quick():
    code = (
        "import resource, sys; from speedkit.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)\n"
    )
    times = []
    while not times or (min(times) > 0.4 and len(times) < 10):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(float(done.stdout.splitlines()[-1]))
    assert min(times) <= 0.4
