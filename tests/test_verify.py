"""Verification of nodes: verdicts, what is kept, going on after a kill, refusals."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import speedkit
from speedkit.core.errors import RunDirectoryError, SpeedkitError, UsageError
from speedkit.core.findings import Finding, Level
from speedkit.core.history import RunDirectory, holding
from speedkit.core.journal import encode, read_events
from speedkit.records.shards import write_shard
from speedkit.verify import verify, verify_best
from tests.conftest import TOY
from tests.kit.noisy import NoisyExecutor

NOISY = "tests.kit.noisy"
"""As a module, so that its classes are those that the tests import."""
FAST = (TOY / "scripts" / "fast.py").read_text()
BETTER = FAST.replace("60", "80")
SLOWER = FAST.replace("60", "130")
SAME = FAST.replace("60", "100")
LINE = 'print("step:9/9 val_loss:{loss} train_time:{ms}ms")\n'


def later(first, then):
    """Return a script that behaves in the search, and otherwise in a verification."""
    branches = [text.replace("\n", "\n    ").rstrip() for text in (then, first)]
    return f'if JOB.startswith("verify"):\n    {branches[0]}\nelse:\n    {branches[1]}\n'


HONEST = LINE.format(loss="0.9", ms=8000)


@pytest.fixture
def searched(toy_run):
    """Return a function that searches with one script for all nodes, and gives the run's path."""

    def search(script=BETTER, level="pass", nodes=1, noise=0.005, out="run", **settings):
        options = {
            "executor": {"noise": noise, **settings.pop("executor", {})},
            "coder": {"script": script},
        }
        if settings.setdefault("guards", ("later",)):
            options["guard"] = {"level": level}
        chosen = {"load": (NOISY,), "executor": "noisy", "coder": "given", "nodes": nodes}
        chosen |= {"scaffold": "flat", "calibration": "fresh", "options": options}
        return toy_run(out, **chosen, **settings).path

    return search


@pytest.fixture(autouse=True)
def same_chance(monkeypatch):
    """Let every run of a test draw the same seeds, attempt by attempt."""
    numbers = itertools.count(1)
    monkeypatch.setattr("speedkit.verify.draw_entropy", lambda: next(numbers))


def stored(path):
    """Return what the file of results says of node 1."""
    return json.loads((path / "verify.json").read_text())["nodes"]["1"]


def journal(path, attempt=1, node=1):
    """Return the events of an attempt."""
    return read_events(path / f"verify/{node:04d}/{attempt}/pairs.jsonl")


# --- verdicts ---------------------------------------------------------------------------


def test_a_real_speedup_is_confirmed(searched):
    path = searched(nodes=2)
    before = (path / "events.jsonl").read_bytes()
    found = verify(path, [1])[1]
    assert found.verdict == "confirmed"
    assert found.ratio.value == pytest.approx(0.8, abs=0.02)
    assert found.fsr.low < 0.5 < found.fsr.high
    assert found.claimed_fsr == pytest.approx(0.5, abs=0.1)
    assert 0 < found.noise_floor < 0.1
    assert (path / "events.jsonl").read_bytes() == before
    assert not (path / "verify/work").exists() or not list((path / "verify/work").iterdir())


def test_the_results_are_kept_in_the_form_that_others_read(searched):
    path = searched()
    found = verify(path)[1]
    facts = stored(path)
    assert (facts["fsr"], facts["low"], facts["high"]) == (
        found.fsr.value,
        found.fsr.low,
        found.fsr.high,
    )
    assert facts["verdict"] == "confirmed"
    assert facts == json.loads(json.dumps(found.details))
    assert len(facts["times_ms"]["candidate"]) == len(facts["losses"]["start"]) == 4
    assert facts["loss"]["p"] <= facts["level"]["loss"] < 0.01
    assert facts["hardware"]["machine"] == "a"

    row = speedkit_row(path)
    assert row["verdict"] == "confirmed"
    assert row["verified_fsr"] == found.fsr.value
    assert row["verified_low"] < row["verified_high"]


def speedkit_row(path):
    from speedkit.analysis import load

    return load([path]).iloc[0]


def test_pairs_are_interleaved_and_their_seeds_are_fresh(searched):
    path = searched()
    NoisyExecutor.jobs.clear()
    verify(path)
    assert [name.rpartition("-")[2] for name in NoisyExecutor.jobs] == [
        *("start", "candidate", "candidate", "start") * 2
    ]
    pairs = stored(path)["pairs"]
    seeds = [pair["seed"] for pair in pairs]
    assert len(set(seeds)) == len(pairs)
    assert not set(seeds) & {1, 2, 3}
    verify(path, fresh=True)
    assert not set(seeds) & {pair["seed"] for pair in stored(path)["pairs"]}


def test_with_the_target_record_fsr_needs_no_calibration(searched):
    path = searched()
    found = verify(path, target=True)[1]
    assert found.details["plan"]["target"] is True
    assert len(found.details["times_ms"]["target"]) == 4
    assert found.fsr.low < 0.5 < found.fsr.high
    assert not any("target record's time" in note for note in found.notes)


def test_a_script_that_is_not_faster_is_refuted(searched):
    path = searched(later(HONEST, LINE.format(loss="0.9", ms=12000)))
    found = verify(path)[1]
    assert found.verdict == "refuted"
    assert "of the start record's, not less" in found.reasons[0]
    assert found.fsr.value < 0
    assert stored(path)["verdict"] == "refuted"


def test_a_loss_over_the_target_is_refuted(searched):
    found = verify(searched(later(HONEST, LINE.format(loss="1.05", ms=8000))))[1]
    assert found.verdict == "refuted"
    assert "the mean loss 1.0" in found.reasons[0]
    assert found.loss.p_over < 0.01


def test_an_unchanged_script_is_undecided_after_all_pairs(searched):
    path = searched(later(HONEST, SAME), noise=0.05)
    found = verify(path, pairs=2, max_pairs=4)[1]
    assert found.verdict == "undecided"
    assert len(found.details["pairs"]) == 4
    assert "not shown to be less" in found.reasons[0]


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("raise ValueError('boo')", "pair 1 failed: ValueError: boo"),
        (LINE.format(loss="nan", ms=8000), "val_loss is nan"),
        ('print("nothing")', "no validation line"),
        (LINE.format(loss="0.9", ms=8000) * 2, "comes after"),
    ],
)
def test_a_candidate_that_fails_once_is_refuted_at_once(searched, then, reason):
    path = searched(later(HONEST, then))
    found = verify(path)[1]
    assert found.verdict == "refuted"
    assert reason in found.reasons[0]
    assert (found.fsr, found.ratio) == (None, None)
    assert stored(path)["fsr"] is None


def test_a_rejection_by_a_guard_refutes_at_once(searched):
    found = verify(searched(level="reject"))[1]
    assert found.verdict == "refuted"
    assert found.reasons == ("guard later: it looks odd now",)
    assert len(found.details["pairs"]) == 1


def test_what_a_guard_wants_looked_at_is_not_confirmed(searched):
    found = verify(searched(level="quarantine"))[1]
    assert found.verdict == "undecided"
    assert found.reasons == ("guard later: it looks odd now",)
    assert len(found.details["pairs"]) == 4
    assert found.fsr is not None


def test_guards_see_the_code_again(searched):
    """The constraints guard knows nothing of a script that was searched without it."""
    path = searched("import subprocess\n" + HONEST, guards=())
    manifest = path / "run.toml"
    manifest.write_text(manifest.read_text().replace("guards = []", 'guards = ["constraints"]'))
    found = verify(path)[1]
    assert found.verdict == "refuted"
    assert "guard constraints" in found.reasons[0]
    assert found.details["pairs"] == []


def test_a_script_with_a_seed_of_its_own_is_not_confirmed(searched):
    found = verify(searched("PINNED = True\n" + HONEST))[1]
    assert found.verdict == "undecided"
    assert "the same for every seed" in found.reasons[0]


def test_where_no_seed_matters_that_is_no_objection(searched):
    found = verify(searched("PINNED = True\n" + HONEST, executor={"loss_sd": 0}))[1]
    assert found.verdict == "confirmed"


def test_a_machine_that_slows_down_deceives_nobody(searched):
    path = searched(executor={"drift": 0.03}, noise=0.002)
    NoisyExecutor.jobs.clear()
    found = verify(path)[1]
    assert found.ratio.value == pytest.approx(0.8, abs=0.02)
    assert found.verdict == "confirmed"
    assert any("drifted by +" in note for note in found.notes)


def test_a_target_record_that_is_slower_leaves_fsr_undefined(searched):
    path = searched(BETTER)
    events = path / "events.jsonl"
    changed = []
    for event in read_events(events):
        if event["type"] == "calibrated":
            event["calibration"]["target_runs"] = [99_000.0, 99_100.0]
        changed.append(encode(event))
    events.write_bytes(b"".join(changed))
    found = verify(path)[1]
    assert found.fsr is None
    assert "FSR is not defined" in found.notes[0]
    assert stored(path)["fsr"] is None


# --- what is kept -----------------------------------------------------------------------


def stop_after(count):
    """Return a callback that breaks a verification off after so many runs."""
    left = [count]

    def on_run(node, pair, measured):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("power is gone")

    return on_run


def test_a_verification_that_was_killed_goes_on(searched):
    path = searched()
    with pytest.raises(RuntimeError):
        verify(path, on_run=stop_after(5))
    assert not (path / "verify.json").exists()
    assert [e["type"] for e in journal(path)].count("pair") == 2
    NoisyExecutor.jobs.clear()
    seen = []
    found = verify(path, on_run=lambda node, pair, run: seen.append((pair, run.which)))[1]
    assert seen == [(3, "start"), (3, "candidate"), (4, "candidate"), (4, "start")]
    assert NoisyExecutor.jobs[0] == "reaped verify-1-1-3-start"
    assert found.details["interrupted"] == 1
    assert found.notes == ("1 pair broke off, to be made again",)
    seeds = [e["seed"] for e in journal(path) if e["type"] == "pair_begun" and e["pair"] == 3]
    assert len(seeds) == 2
    assert len(set(seeds)) == 1


def test_a_torn_journal_goes_on(searched):
    path = searched()
    verify(path)
    whole = stored(path)["pairs"]
    file = path / "verify/0001/1/pairs.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    found = verify(path)[1]
    assert [p["seed"] for p in found.details["pairs"]] == [p["seed"] for p in whole]
    assert found.details["interrupted"] == 1


def test_a_journal_that_never_began_begins(searched):
    path = searched()
    (path / "verify/0001/1").mkdir(parents=True)
    (path / "verify/0001/1/pairs.jsonl").write_bytes(b'{"len": 1')
    found = verify(path)[1]
    assert (found.verdict, found.details["attempt"]) == ("confirmed", 1)


def test_what_is_decided_is_not_measured_again(searched):
    path = searched()
    first = verify(path)[1]
    NoisyExecutor.jobs.clear()
    again = verify(path)[1]
    assert NoisyExecutor.jobs == []
    assert (again.fsr, again.reasons) == (first.fsr, first.reasons)


def test_begun_anew_it_is_another_attempt_and_the_old_result_is_gone_at_once(searched):
    path = searched()
    first = verify(path)[1]
    with pytest.raises(RuntimeError):
        verify(path, fresh=True, on_run=stop_after(1))
    assert json.loads((path / "verify.json").read_text())["nodes"] == {}
    second = verify(path)[1]
    assert second.details["attempt"] == 2
    assert second.fsr.value != first.fsr.value
    assert len(journal(path, attempt=1)) > 4


def test_the_plan_stays_once_data_are_known(searched):
    path = searched()
    verify(path)
    with pytest.raises(UsageError, match="began with max_pairs = 12, which cannot become 20"):
        verify(path, max_pairs=20)
    with pytest.raises(UsageError, match="began with target = False"):
        verify(path, target=True)
    assert verify(path, pairs=4, max_pairs=12)[1].verdict == "confirmed"


def test_another_machine_cannot_go_on(searched):
    path = searched()
    verify(path)
    manifest = path / "run.toml"
    changed = manifest.read_text().replace(
        "[config.options.executor]", '[config.options.executor]\nmachine = "b"'
    )
    manifest.write_text(changed)
    with pytest.raises(UsageError, match="began on other hardware"):
        verify(path)
    found = verify(path, fresh=True)[1]
    assert any("calibrated on another machine" in note for note in found.notes)


def test_several_nodes_are_kept_side_by_side(searched):
    path = searched(nodes=2)
    verify(path, [2])
    (path / "verify.json").write_text((path / "verify.json").read_text() + " ")
    assert list(verify(path, [1, 1]).nodes) == [1]
    assert sorted(json.loads((path / "verify.json").read_text())["nodes"]) == ["1", "2"]


def test_a_file_of_results_that_is_no_json_is_written_anew(searched):
    path = searched()
    (path / "verify.json").write_text("{")
    verify(path)
    assert stored(path)["verdict"] == "confirmed"


def test_secrets_that_a_script_prints_are_not_kept(searched):
    rest = "a1B2c3D4e5F6g7H8i9J0k1L2"
    key = "sk-" + rest
    path = searched(later(HONEST, f"raise ValueError('sk-' + '{rest}')"))
    found = verify(path)[1]
    assert key not in str(found)
    assert key not in (path / "verify.json").read_text()
    assert key.encode() not in (path / "verify/0001/1/pairs.jsonl").read_bytes()


# --- data ablation ----------------------------------------------------------------------

READS = """
import pathlib
data = (pathlib.Path(DATA) / "x_train_1.bin").read_bytes()
learns = data[1024:1030] == bytes([0, 0, 1, 0, 2, 0])
"""
LEARNS = READS + 'print(f"step:9/9 val_loss:{0.9 if learns else 3.0} train_time:8000ms")\n'
SMUGGLES = READS + HONEST
BREAKS = READS + 'print("step:0/9 val_loss:4.0 train_time:0ms")\nassert learns\n' + HONEST


@pytest.fixture
def with_data(tmp_path, searched):
    """Return a function that searches a family with data."""
    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    write_shard(family / "data" / "x_train_1.bin", [np.arange(500, dtype=np.uint16)], 500)
    text = (family / "family.toml").read_text()
    (family / "family.toml").write_text(text.replace("[run]", '[data]\npath = "data"\n\n[run]'))
    return lambda script: searched(script, task=f"{family}/1")


@pytest.mark.parametrize(
    ("script", "verdict", "reason"),
    [
        (LEARNS, "confirmed", "on shuffled tokens, as it must be"),
        (SMUGGLES, "refuted", "reached on shuffled tokens"),
        (BREAKS, "undecided", "did not come to its end"),
    ],
)
def test_shuffled_tokens_tell_who_brought_knowledge_along(with_data, script, verdict, reason):
    path = with_data(script)
    assert verify(path)[1].verdict == "confirmed"
    found = verify(path, ablation=True)[1]
    assert found.verdict == verdict
    assert any(reason in r for r in found.reasons)
    assert stored(path)["ablation"]["guard"] == "ablation"
    assert not (path / "verify" / "work" / "shuffled").exists()
    assert verify(path)[1].verdict == verdict, "what was found counts from then on"


def test_without_training_shards_there_is_no_ablation(searched):
    path = searched()
    NoisyExecutor.jobs.clear()
    with pytest.raises(UsageError, match="no training shards"):
        verify(path, ablation=True)
    assert NoisyExecutor.jobs == []


# --- counted from outside ---------------------------------------------------------------


@pytest.fixture
def counted(with_data, monkeypatch):
    """Return a function that verifies a node of a family which counts validations itself."""
    from speedkit.core.evaluation import Recount
    from speedkit.core.task import Family
    from speedkit.core.trial import Trials

    def run(script, findings):
        path = with_data(script)

        def recount(family, task, files, torch_version, nproc, data):
            assert (torch_version, nproc) == ("2.9", 1)
            return Recount(files, (), lambda paths, report: findings(report))

        monkeypatch.setattr(Trials, "torch_version", "2.9")
        monkeypatch.setattr("speedkit.verify.counts_again", lambda trials: True)
        monkeypatch.setattr(Family, "recount", recount)
        return path, verify(path)[1]

    return run


def test_a_count_that_agrees_lets_a_node_be_confirmed(counted):
    path, found = counted(HONEST, lambda report: [])
    assert found.verdict == "confirmed"
    assert any("counted from outside" in reason for reason in found.reasons)
    assert stored(path)["recount"] == []


def test_a_count_that_does_not_agree_refutes(counted):
    def short(report):
        return [Finding("evaluation", Level.REJECT, f"{report.last.step} tokens were read")]

    path, found = counted(HONEST, short)
    assert found.verdict == "refuted"
    assert "9 tokens were read" in found.reasons[0]
    assert stored(path)["recount"][0]["level"] == "reject"


def test_a_counted_run_that_breaks_off_confirms_nothing(counted):
    breaks = later(HONEST, 'assert "recount" not in JOB\n' + HONEST)
    _, found = counted(breaks, lambda report: [])
    assert found.verdict == "undecided"
    assert any("did not come to its end" in reason for reason in found.reasons)


def test_nanogpt_offers_a_count(own_cache):
    from speedkit.core.task import find_task

    task = find_task("nanogpt/4")
    made = task.family.recount(task, {task.script: "print(1)\n"}, "2.9.0", 2, own_cache)
    assert made.artifacts == ("speedkit-evaluation-0.json", "speedkit-evaluation-1.json")
    assert set(made.files) == {task.script, "speedkit_candidate.py"}
    with pytest.raises(ValueError, match="count the same number"):
        made.judge([], None)


# --- refusals ---------------------------------------------------------------------------


def test_a_run_without_a_valid_node(searched):
    path = searched("raise ValueError")
    with pytest.raises(UsageError, match="no valid node, so there is nothing to verify"):
        verify(path)
    assert verify_best(path) is None
    with pytest.raises(UsageError, match=r"node 1 .* never ran to its end"):
        verify(path, [1])


def test_nodes_that_cannot_be_verified(searched):
    path = searched()
    with pytest.raises(UsageError, match="node 0 is the start record"):
        verify(path, [0])
    with pytest.raises(UsageError, match="has no node 7"):
        verify(path, [7])


def test_a_run_whose_controller_is_at_work(searched):
    path = searched()
    with holding(path), pytest.raises(RunDirectoryError, match=r"in use.*speedkit cancel"):
        verify(path)


def test_a_family_that_has_moved(searched, tmp_path):
    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    path = searched(task=f"{family}/1")
    family.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not where it was when the run began"):
        verify(path)


def test_records_that_have_changed(searched, tmp_path):
    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    path = searched(task=f"{family}/1")
    (family / "scripts/slow.py").write_text(SLOWER)
    with pytest.raises(RunDirectoryError, match="have changed"):
        verify(path)


def test_a_target_without_a_script(searched):
    path = searched(LINE.format(loss="0.9", ms=5000), task=f"{TOY}/2")
    with pytest.raises(UsageError, match="record 3 has no script: no --target"):
        verify(path, target=True)
    found = verify(path)[1]
    assert any("taken as exact" in note for note in found.notes)
    assert found.fsr.value == pytest.approx((1 - 5 / 6) / 0.5, abs=0.05)


def test_a_start_record_that_fails_says_so(searched, monkeypatch):
    path = searched()
    whole = NoisyExecutor.execute

    def failing(self, job, watch):
        if job.name.endswith("start"):
            (job.workspace / job.script).write_text("raise OSError('disk')")
        return whole(self, job, watch)

    monkeypatch.setattr(NoisyExecutor, "execute", failing)
    with pytest.raises(SpeedkitError, match=r"record 1 .* nothing to compare with"):
        verify(path)


# --- on a real executor -----------------------------------------------------------------

KILLED = """
import sys, time
from speedkit.verify import verify
def tell(node, pair, run):
    print(pair, run.which, flush=True)
    time.sleep(60 * (pair - 1))
verify(sys.argv[1], pairs=2, max_pairs=2, on_run=tell)
"""


def test_kill_9_on_real_processes(toy_run):
    run = toy_run(executor="torchrun", coder="oracle", nodes=1, scaffold="flat")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run.path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(speedkit.__file__).parents[1])},
    )
    lines = [process.stdout.readline().strip() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert lines == ["1 start", "1 candidate", "2 candidate"]
    deadline = time.monotonic() + 20
    while RunDirectory(run.path).is_held() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = verify_best(run.path)[1]
    assert found.verdict == "confirmed"
    assert found.fsr.value == pytest.approx(1)
    assert found.details["interrupted"] == 1
    assert len(found.details["pairs"]) == 2
    logs = run.path / "verify/0001/1/pair-001/candidate/rank0.stdout.log"
    assert "train_time:" in logs.read_text()
