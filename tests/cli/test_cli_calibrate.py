"""``speedkit calibrate`` and the function behind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from speedkit.calibrate import calibrate, fsr_noise, spread
from speedkit.core import calibration as calibrations
from speedkit.core.calibration import Calibration
from speedkit.core.journal import read_events
from speedkit.core.plugins import Plugins
from speedkit.core.task import find_task
from tests.cli.conftest import PLUGIN
from tests.conftest import TOY

SHAKY = ("--load", PLUGIN, "--executor", "shaky")


def test_every_run_medians_and_noise(program):
    result = program(
        "calibrate", f"{TOY}/1", *SHAKY, "-o", "executor.jitter_ms=100", "--runs", 3, "--json"
    )
    facts = result.json
    assert facts["start_runs"] == [10100, 10200, 10300]
    assert facts["target_runs"] == [6060, 6160, 6260]
    assert (facts["start_ms"], facts["target_ms"]) == (10200, 6160)
    assert facts["start_sd_ms"] == facts["target_sd_ms"] == 100
    assert facts["start_fsr_sd"] == pytest.approx(100 / 4040)
    assert result.err.splitlines()[:2] == [
        "start record, run 1/3: 10.10 s",
        "target record, run 1/3: 6.06 s",
    ]


def test_for_people(program):
    out = program("calibrate", f"{TOY}/1", *SHAKY, "-o", "executor.jitter_ms=100").out
    assert "10.10, 10.20, 10.30" in out
    assert "speedup  1.66x" in out
    assert "±0.025 at the start record" in out


def test_one_run_has_no_spread(program):
    facts = program("calibrate", f"{TOY}/1", *SHAKY, "--runs", 1, "--json").json
    assert facts["start_sd_ms"] is None
    assert facts["start_fsr_sd"] is None
    assert "noise    –" in program("calibrate", f"{TOY}/1", *SHAKY, "--runs", 1).out


def test_it_is_always_fresh_and_later_runs_use_it(program, toy_run):
    arguments = ("calibrate", f"{TOY}/1", *SHAKY, "--runs", 2, "--json")
    first = program(*arguments).json
    task = find_task(f"{TOY}/1")
    path = calibrations.store_path(task, first["fingerprint"])
    path.write_text(path.read_text().replace("10100", "99999"))
    assert program(*arguments).json == first
    assert calibrations.load(task, first["fingerprint"]) == Calibration.from_dict(first)
    tree = toy_run(load=(str(PLUGIN),), executor="shaky", nodes=1)
    assert tree.calibration == Calibration.from_dict(first)
    assert "calibration_run" not in {e["type"] for e in read_events(tree.path / "events.jsonl")}


def test_it_is_kept_for_the_gate_that_runs_will_have(program, toy_run, monkeypatch):
    monkeypatch.setenv("SPEEDKIT_TARGET_LOSS", "0.9")
    out = program("calibrate", f"{TOY}/1", *SHAKY, "--runs", 2).out
    assert os.path.exists(out.split("kept in  ")[1].splitlines()[0])
    tree = toy_run(load=(str(PLUGIN),), executor="shaky", nodes=1, target_loss=0.9)
    assert "calibration_run" not in {e["type"] for e in read_events(tree.path / "events.jsonl")}


def test_a_target_known_by_its_time_alone_is_scaled(program):
    result = program("calibrate", f"{TOY}/2", *SHAKY)
    assert "source   scaled" in result.out
    facts = program("calibrate", f"{TOY}/2", *SHAKY, "--json").json
    assert facts["target_ms"] == facts["start_ms"] / 2
    assert facts["target_sd_ms"] is None


def test_a_target_that_is_not_faster_is_said(program, tmp_path):
    import shutil

    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    shutil.copy(family / "scripts/slow.py", family / "scripts/fast.py")
    result = program("calibrate", f"{family}/1", *SHAKY)
    assert result.code == 0
    assert "noise    –" in result.out
    assert "warning: record 2 is not faster than record 1 on this machine" in result.err


def test_a_record_that_does_not_run(program, tmp_path):
    import shutil

    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    (family / "scripts/slow.py").write_text("raise ValueError('no luck')\n")
    result = program("calibrate", f"{family}/1", *SHAKY, "--json")
    assert (result.code, result.out) == (1, "")
    assert "record 1 did not run to its end" in result.err
    assert "no luck" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "executor.jiter_ms=1"), "did you mean jitter_ms?"),
        (("-o", "executor.jitter_ms=x"), "jitter_ms"),
        (("-o", "scaffold.drafts=1"), "a calibration uses the executor only"),
        (("-o", "nonsense"), "KIND.OPTION=VALUE"),
        (("--executor", "shakey"), "did you mean shaky?"),
        (("--runs", "0"), "--runs"),
        (("--executor", "torchrun", "-o", "executor.smoke_steps=3"), "without smoke_steps"),
    ],
)
def test_mistakes(program, arguments, message):
    result = program("calibrate", f"{TOY}/1", *SHAKY, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_from_python():
    seen = []
    made = calibrate(
        f"{TOY}/1",
        runs=2,
        executor="shaky",
        options={"jitter_ms": 50},
        plugins=Plugins([str(PLUGIN)]),
        on_run=lambda which, k, trial: seen.append((which, k, trial.reason)),
    )
    assert made.start_runs == (10100, 10150)
    assert seen == [("start", 1, ""), ("target", 1, ""), ("start", 2, ""), ("target", 2, "")]
    assert calibrations.load(find_task(f"{TOY}/1"), made.fingerprint) == made


def test_the_noise_of_fsr():
    made = Calibration("toy/1", "measured", (100.0, 110.0, 90.0), (50.0,))
    assert spread(made.start_runs) == 10
    assert spread(made.target_runs) is None
    assert fsr_noise(made, 10) == 0.2
    assert fsr_noise(made, None) is None
    assert fsr_noise(Calibration("toy/1", "measured", (50.0,), (50.0,)), 10) is None


def test_an_interrupt_just_after_the_start_ends_the_job(monkeypatch):
    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments):
            super().submit(*arguments)
            raise KeyboardInterrupt

    monkeypatch.setattr("speedkit.calibrate.ThreadPoolExecutor", Pool)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        calibrate(
            f"{TOY}/1", executor="shaky", options={"wait": True}, plugins=Plugins([str(PLUGIN)])
        )
    assert time.monotonic() - began < 30, "the job would wait for a minute"


def test_an_interrupt_ends_the_job_and_keeps_nothing(tmp_path, own_cache):
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "speedkit", "calibrate", f"{TOY}/1", *map(str, SHAKY)]
    with subprocess.Popen(
        [*command, "-o", "executor.wait=true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; nothing was kept\n"
    assert list(tmp_path.iterdir()) == []
    assert not (own_cache / "calibration").exists()
