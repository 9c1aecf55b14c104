"""``speedkit sweep`` and ``speedkit ablate`` as programs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

import speedkit
from speedkit.core.journal import read_events
from tests.conftest import TOY
from tests.kit import grid_parts

TASK = f"{TOY}/1"
BASE = ("--executor", "quick", "--load", grid_parts.NAME, "--nodes", "2", "--guards", "none")


@pytest.fixture(autouse=True)
def behaviour():
    yield grid_parts.now
    grid_parts.now.reset()


@pytest.fixture
def file(tmp_path):
    """Return a file that asks for four runs."""
    path = tmp_path / "grid.toml"
    path.write_text(
        f'tasks = ["{TASK}"]\nseeds = 2\n[base]\nexecutor = "quick"\nnodes = 2\n'
        f'guards = ["none"]\nload = ["{grid_parts.NAME}"]\ncoder = "fewer"\n'
        '[vary]\nscaffold = ["flat", "tree"]\n'
    )
    return path


def test_sweep_runs_a_file_and_ends_with_a_table(program, file, tmp_path):
    done = program("sweep", file, "--out", tmp_path / "s")
    assert done.code == 0
    assert "FSR of 4 runs by scaffold" in done.out
    assert "runs     4 of 4 over, 0 failed, 0 left" in done.out
    assert f"speedkit report {tmp_path / 's'}" in done.out
    assert f"speedkit compare {tmp_path / 's'} --by scaffold" in done.out
    assert "toy-1_scaffold=tree_seed=1: node 2: valid" in done.err
    assert program("compare", tmp_path / "s", "--by", "scaffold", "--draws", 100).code == 0
    assert program("results", tmp_path / "s").code == 0


def test_display(program, file, tmp_path):
    runs = program("sweep", file, "--out", tmp_path / "a", "--display", "runs").err
    assert "toy-1_scaffold=flat_seed=0: begins" in runs
    assert "node 1" not in runs
    assert program("sweep", file, "--out", tmp_path / "b", "--display", "none").err == ""


def test_json(program, file, tmp_path):
    result = program("sweep", file, "--out", tmp_path / "s", "--json").json
    assert [run["status"] for run in result["runs"]] == ["finished"] * 4
    assert result["runs"][0]["arm"] == {"scaffold": "flat"}
    assert result["spent"] == {"calls": 0, "tokens": 0, "dollars": 0.0}
    assert {cell["runs"] for cell in result["comparison"]["cells"]} == {2}


def test_flags_lie_over_the_settings_of_a_file(program, file, tmp_path):
    flags = ("--plugin", "coder=noop", "-o", "scaffold.drafts=1")
    done = program("sweep", file, *flags, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    run = speedkit.core.history.RunDirectory(tmp_path / "s" / "toy-1_scaffold=flat_seed=0")
    config = run.manifest["config"]
    assert (config["coder"], config["executor"]) == ("noop", "quick")
    assert config["options"] == {"scaffold": {"drafts": 1}}
    assert program("sweep", "--resume", tmp_path / "s").code == 0
    wrong = program("sweep", "--resume", tmp_path / "s", "--plugin", "coder=tuner")
    assert (wrong.code, len(wrong.err.splitlines())) == (2, 1)
    wrong = program("sweep", file, "--plugin", "coder")
    assert (wrong.code, wrong.err) == (2, "error: --plugin coder: write KIND=NAME\n")


def test_a_plugin_that_is_loaded_before_the_command_is_kept(program, file, tmp_path, monkeypatch):
    file.write_text(file.read_text().replace(f'load = ["{grid_parts.NAME}"]\n', ""))
    done = program("--load", grid_parts.NAME, "sweep", file, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    again = program("sweep", "--resume", tmp_path / "s", "--jobs", "2")
    assert again.code == 0, again.err


def test_dry_run_of_a_file(program, file, tmp_path):
    plan = program("sweep", file, "--out", tmp_path / "s", "--dry-run", "--max-hours", "3")
    assert plan.code == 0
    assert "runs     4: 0 over, 0 to go on with, 4 to begin; 1 at once" in plan.out
    assert "nodes    8 to be made" in plan.out
    assert "prompts  no model is asked for code" in plan.out
    assert "reference times of the family's hardware" in plan.out
    assert "limits   --max-hours 3" in plan.out
    assert not (tmp_path / "s").exists()
    values = program("sweep", file, "--dry-run", "--json").json
    assert values["states"] == {"missing": 4, "open": 0, "finished": 0, "stopped": 0}
    assert values["runs"][0]["times"] == "reference"


def test_dry_run_says_what_is_unknown(program):
    model = ("--model", "openai/fake", "--api-base", "http://127.0.0.1:9/v1")
    vary = ("--vary", "coder=llm,tuner")
    plan = program("ablate", TASK, *vary, *BASE, *model, "--dry-run").out
    assert "dollars  unknown for 1 run\n" in plan
    assert "tokens, if each were as long as the first" in plan


def test_ablate_is_a_full_grid_unless_asked_otherwise(program):
    vary = ("--vary", "scaffold=flat,aide,tree", "--vary", "coder=noop,tuner", "--seeds", "3")
    full = program("ablate", TASK, *vary, *BASE, "--dry-run", "--json").json
    assert len(full["runs"]) == 18
    single = program("ablate", TASK, *vary, *BASE, "--dry-run", "--json", "--one-at-a-time").json
    assert len(single["runs"]) == 12


def test_ablate_takes_the_options_of_a_run(program, tmp_path):
    done = program(
        *("ablate", TASK, "--vary", "hints=none", "--seed", "4", "--coder", "fewer", *BASE),
        *("-o", "scaffold.drafts=1", "--hints-from", "generated", "--out", tmp_path / "s"),
    )
    assert done.code == 0
    run = tmp_path / "s" / "toy-1_hints=none_seed=4"
    values = speedkit.core.history.RunDirectory(run).manifest["config"]
    assert values["options"] == {"scaffold": {"drafts": 1}}
    assert values["seed"] == 4


def test_a_failed_run_has_a_line_and_exit_status_1(program, file, tmp_path, behaviour):
    def break_one(request):
        if "seed=1" in str(request.log_dir) and "tree" in str(request.log_dir):
            raise RuntimeError("no\x1b[31m luck")

    behaviour.on_code = break_one
    done = program("sweep", file, "--out", tmp_path / "s")
    assert done.code == 1
    (line,) = [one for one in done.err.splitlines() if one.startswith("failed: ")]
    assert line.startswith("failed: toy-1_scaffold=tree_seed=1: ")
    assert "RuntimeError: no[31m luck" in line
    assert "runs     3 of 4 over, 1 failed, 0 left" in done.out
    assert "Traceback" not in done.err
    behaviour.reset()
    assert program("ablate", "--resume", tmp_path / "s").code == 0


def test_a_limit_has_a_line_and_exit_status_4(program, file, tmp_path, behaviour):
    behaviour.wall_s = 3600
    done = program("sweep", file, "--out", tmp_path / "s", "--max-hours", "5")
    assert done.code == 4
    assert f"speedkit sweep --resume {tmp_path / 's'} --max-hours MORE" in done.err
    assert program("sweep", "--resume", tmp_path / "s", "--max-hours", "50").code == 0


def test_mistakes_have_a_line_each_and_exit_status_2(program, tmp_path):
    vary = ("--vary", "coder=nop", "--vary", "hints=7", "--vary", "x=1")
    done = program("ablate", TASK, f"{TOY}/8", *vary, *BASE, "--out", tmp_path / "s")
    assert done.code == 2
    lines = done.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert len(lines) == 4, lines
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep",), "name a file"),
        (("sweep", "none.toml"), "no such file"),
        (("sweep", "a.toml", "--resume", "b"), "b is no sweep directory"),
        (("ablate",), "name at least one task"),
        (("ablate", "--resume", "b"), "b is no sweep directory"),
        (("ablate", "mini/1", "--resume", "b"), "give no other settings"),
        (("ablate", "mini/1", "--nodes", "0"), "settings of every run: nodes"),
    ],
)
def test_wrong_requests(program, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = program(*arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1


# --- a real program, ended by a signal --------------------------------------------------------


def jobs_of(folder):
    """Return the processes that carry the mark of any run of a sweep."""
    ids = {speedkit.core.history.RunDirectory(p.parent).run_id for p in folder.glob("*/run.toml")}
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get("SPEEDKIT_JOB", "")
        except psutil.Error:
            continue
        if any(mark.startswith(run_id) for run_id in ids):
            found.append(process)
    return found


def has_job(journal):
    """Whether a job has started, by the journal of a run."""
    return any(event["type"] == "job_started" for event in read_events(journal))


def wait_until(condition, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a sweep whose jobs take ten minutes, and waits for them."""
    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    script = family / "scripts/slow.py"
    script.write_text("import time\ntime.sleep(600)\n" + script.read_text())
    path = tmp_path / "s"
    processes = []

    def start(jobs, runs):
        command = [sys.executable, "-m", "speedkit", "ablate", f"{family}/1", "--seeds", "2"]
        command += ["--jobs", str(jobs), "--out", str(path), "--calibration", "fresh"]
        command += ["--nodes", "1"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        wait_until(lambda: sum(map(has_job, path.glob("*/events.jsonl"))) == runs)
        return process

    start.path = path
    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_job_and_says_how_to_go_on(started, signum):
    process, path = started(jobs=2, runs=2), started.path
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"interrupted; to go on: speedkit sweep --resume {path}" in err
    assert "the jobs of 2 runs share this machine" in err
    assert "Traceback" not in err
    assert not jobs_of(path)
    runs = [p.parent for p in path.glob("*/run.toml")]
    assert {speedkit.open_run(run).status for run in runs} == {"interrupted"}


def test_cancel_ends_a_sweep_and_no_sweep_is_ended_by_one_of_its_runs(started, program):
    process, path = started(jobs=1, runs=1), started.path
    (run,) = [p.parent for p in path.glob("*/run.toml")]
    refused = program("cancel", run)
    assert refused.code == 2
    assert f"process {process.pid} is at work on other runs too" in refused.err
    assert f"speedkit cancel {path}" in refused.err
    assert process.poll() is None
    done = program("cancel", path)
    assert (done.code, done.err) == (0, "")
    assert f"process {process.pid} has ended its jobs and itself" in done.out
    assert f"to go on: speedkit sweep --resume {path}" in done.out
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not jobs_of(path)


def test_cancel_ends_what_a_killed_sweep_left(started, program):
    process, path = started(jobs=2, runs=2), started.path
    process.kill()
    process.communicate()
    done = program("cancel", path, "--json")
    assert (done.code, done.json["controller"]) == (0, None)
    assert sorted(done.json["jobs"]) == sorted(
        f"{p.parent.name}/calibrate-start-1" for p in path.glob("*/run.toml")
    )
    wait_until(lambda: not jobs_of(path))
    again = program("cancel", path)
    assert again.out.startswith("nothing was running\n")
