"""Run directories as rows: valid, invalid and missing, and nothing touched."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from speedkit.analysis import load
from speedkit.analysis.columns import COLUMNS, NAMES
from speedkit.core.errors import UsageError
from speedkit.core.history import RunDirectory

OVER = "val_loss 1.0050 is over the target 1"


def row(*paths, warnings=None, **options):
    """Load one run; without a list for them, warnings fail the test."""
    heard = [] if warnings is None else warnings
    frame = load(paths, on_warning=heard.append, **options)
    assert len(frame) == 1
    if warnings is None:
        assert heard == []
    return frame.iloc[0]


def test_a_real_run_is_one_row_with_every_column(toy_run):
    tree = toy_run(seed=5)
    found = row(tree.path)
    assert list(found.index) == list(NAMES)
    assert found.fsr == tree.fsr()
    assert found.best_node == tree.best().id
    assert found.train_time_ms == tree.best().train_time_ms
    assert (found.start_ms, found.target_ms) == (10100, 6060)
    assert (found.family, found.task, found.task_id) == ("toy", "toy/1", 1)
    assert (found.record, found.target_record, found.gate) == (1, 2, 1.0)
    assert (found.scaffold, found.coder, found.hints) == ("aide", "tuner", "none")
    assert (found.knowledge, found.seed, found.status) == ("none", 5, "finished")
    assert (found.result, found.source, found.calibration) == ("valid", "run", "measured")
    assert found.nodes == 6 == sum(found[n] for n in NAMES if n.startswith("nodes_"))
    assert (found.calls, found.tokens_in, found.dollars) == (0, 0, 0)
    assert found.model is None
    assert found.model_asked is None
    assert math.isnan(found.verified_fsr)
    assert found.job_s > 0
    assert found.wall_s > 0


def test_types_do_not_depend_on_what_is_missing(made):
    full, empty = made("a", [{}]), made("b", calibrated=False, status=None)
    for paths in ([full], [empty], [full, empty]):
        frame = load(paths)
        for column in COLUMNS:
            wanted = object if column.kind == "text" else float
            assert frame[column.name].dtype == wanted, column


def test_reading_touches_nothing(made, tmp_path):
    path = made("open", [{}], status=None)
    with (path / "events.jsonl").open("ab") as file:
        file.write(b'{"len": 10, "cr')
    before = _state(tmp_path)
    assert row(path).status == "interrupted"
    assert _state(tmp_path) == before


def _state(folder):
    files = sorted(p for p in folder.rglob("*"))
    return [(str(p), p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in files]


def test_a_run_that_is_at_work_is_running_and_not_disturbed(made):
    path = made("open", [{"outcome": "pending"}], status=None)
    with RunDirectory(path).writing() as journal:
        found = row(path)
        assert (found.status, found.result) == ("running", "missing")
        assert (found.nodes, found.nodes_pending) == (1, 1)
        journal.append({"type": "run_finished", "status": "stopped"})
    assert row(path).status == "stopped"


@pytest.mark.parametrize(
    ("status", "outcome", "result"),
    [
        ("finished", "valid", "valid"),
        ("finished", "invalid", "invalid"),
        ("finished", "buggy", "invalid"),
        ("finished", "quarantined", "invalid"),
        ("finished", "stopped", "invalid"),
        ("stopped", "edit_failed", "invalid"),
        ("interrupted", "invalid", "missing"),
        ("failed", "invalid", "missing"),
        (None, "pending", "missing"),
        ("interrupted", "valid", "valid"),
    ],
)
def test_missing_is_not_invalid_and_neither_is_zero(made, status, outcome, result):
    found = row(made("r", [{"outcome": outcome}], status=status))
    assert found.result == result
    assert found[f"nodes_{outcome}"] == 1
    assert math.isnan(found.fsr) == (result != "valid")
    assert math.isnan(found.train_time_ms) == (result != "valid")
    assert found.start_ms == 10000


def test_slower_than_the_start_is_valid_and_negative(made):
    found = row(made("r", [{"time": 12000}]))
    assert (found.result, found.fsr) == ("valid", -0.5)
    assert row(made("s", [{"time": 1000}])).fsr == 2.25


def test_without_a_calibration_or_a_speedup_the_result_is_missing(made):
    assert row(made("none", calibrated=False)).result == "missing"
    warnings = []
    found = row(made("slow", [{}], target_ms=11000.0), warnings=warnings)
    assert found.result == "missing"
    assert math.isnan(found.fsr)
    assert "not faster" in warnings[0]


def test_nodes_that_cost_nothing_are_not_counted(made):
    nodes = [{}, {"same_as": 1}, {"outcome": "dropped", "time": None}]
    assert row(made("r", nodes)).nodes == 1


# --- gates --------------------------------------------------------------------------------------


def test_another_gate_judges_stored_nodes_anew(made):
    nodes = [
        {"time": 9000, "loss": 0.95},
        {"time": 7000, "loss": 1.005, "outcome": "invalid", "reason": OVER},
        {"time": 5000, "loss": 0.9, "outcome": "invalid", "reason": "guard x: reads the target"},
        {"time": 4000, "loss": 0.9, "outcome": "quarantined", "reason": "guard y: look"},
        {"time": 3000, "loss": "nan", "outcome": "invalid", "reason": "val_loss is nan"},
    ]
    path = made("r", nodes)
    assert (row(path).best_node, row(path).gate) == (1, 1.0)
    wide = row(path, gate=1.01)
    assert (wide.best_node, wide.gate, wide.fsr, wide.result) == (2, 1.01, 0.75, "valid")
    strict = row(path, gate=0.94)
    assert (strict.result, strict.gate) == ("invalid", 0.94)
    assert math.isnan(strict.fsr)


def test_the_gate_of_the_configuration_goes_before_the_familys(made):
    assert row(made("r", [{}], config={"target_loss": 1.5})).gate == 1.5


# --- what is unknown ----------------------------------------------------------------------------


def test_a_run_whose_family_is_gone_keeps_its_numbers(toy_run, tmp_path):
    family = tmp_path / "own"
    shutil.copytree(Path(__file__).parent.parent / "families" / "toy", family)
    tree = toy_run(task=f"{family}/1")
    shutil.rmtree(family)
    warnings = []
    found = row(tree.path, warnings=warnings)
    assert found.fsr == tree.fsr()
    assert (found.task, found.family, found.task_id) == ("toy/1", "toy", 1)
    assert math.isnan(found.record)
    assert math.isnan(found.gate)
    assert len(warnings) == 1
    assert "\n" not in warnings[0]


@pytest.mark.parametrize("spoil", ["journal", "outcome", "toml", "newer"])
def test_a_run_that_cannot_be_read_is_missing_with_one_line(made, spoil):
    good, bad = made("good", [{}]), made("bad", [{}])
    if spoil == "journal":
        text = (bad / "events.jsonl").read_bytes()
        (bad / "events.jsonl").write_bytes(text.replace(b"8000", b"1000", 1))
    elif spoil == "outcome":
        bad = made("worse", [{"outcome": "of a later version"}])
    elif spoil == "toml":
        (bad / "run.toml").write_text("x = [")
    else:
        text = (bad / "run.toml").read_text()
        (bad / "run.toml").write_text(text.replace("schema = 1", "schema = 99"))
    warnings = []
    frame = load([good, bad], on_warning=warnings.append)
    assert list(frame.result) == ["valid", "missing"]
    assert math.isnan(frame.fsr[1])
    assert math.isnan(frame.nodes[1])
    assert len(warnings) == 1
    assert str(bad) in warnings[0]


def test_warnings_are_pythons_unless_asked_for(made):
    path = made("r", [{}], config={"task": "/gone/family/1"})
    with pytest.warns(UserWarning, match="no family at"):
        load(path)


# --- spending -----------------------------------------------------------------------------------


def _intent(request, cost=0.5, input_cost=0.1):
    usage = {"input": 100, "cached": 0, "output": 1000}
    intent = {"request_id": request, "purpose": "code", "model": "m", "usage": usage}
    return {"type": "model_intent", "intent": {**intent, "cost": cost, "input_cost": input_cost}}


def _call(request, cost=0.25, cached=False):
    usage = {"input": 90, "cached": 40, "output": 10}
    call = {"request_id": request, "purpose": "code", "model": "m", "model_served": "m-1"}
    return {
        "type": "model_called",
        "call": {**call, "usage": usage, "cost": cost, "cached": cached},
    }


def test_tokens_and_dollars(made):
    events = [_intent("a"), _call("a"), _intent("b"), _call("b"), _call("c", 0.0, cached=True)]
    nodes = [{"model": "m-1"}, {"model": "m-1"}, {"model": "m-2"}]
    found = row(made("r", nodes, events=events, config={"model": "m"}))
    assert (found.tokens_in, found.tokens_cached, found.tokens_out) == (180, 80, 20)
    assert (found.calls, found.dollars, found.job_s) == (2, 0.5, 7.5)
    assert (found.model, found.model_asked) == ("m-1+m-2", "m")


def test_a_call_that_nobody_saw_the_end_of_is_charged(made):
    found = row(made("r", [{}], events=[_intent("a")], status="interrupted"))
    assert (found.calls, found.tokens_in, found.dollars) == (1, 100, 0.1)


def test_an_unknown_price_is_missing_and_not_zero(made):
    found = row(made("r", [{}], events=[_call("a", cost=None)]))
    assert math.isnan(found.dollars)
    assert found.tokens_in == 90


def test_time_between_two_controllers_is_not_counted(made):
    path = made("r", [{}], status="interrupted")
    before = row(path).wall_s
    with RunDirectory(path).writing() as journal:
        journal.append({"type": "run_started", "at": 90000.0})
        journal.append({"type": "run_finished", "at": 90007.0, "status": "finished"})
    assert row(path).wall_s == before + 7


# --- hints, knowledge, verification, judges -----------------------------------------------------


def test_hints_and_knowledge(made):
    part = {"plugin": "builtin", "distribution": "speedkit", "version": "0"}
    sources = [
        {"name": "hints", **part, "options": {"levels": [1, 3]}},
        {"name": "muon", **part, "options": {}},
        {"name": "files", **part, "options": {}},
    ]
    found = row(made("r", [{}], components={"knowledge": sources}))
    assert (found.hints, found.knowledge) == ("1+3", "muon+files")


def test_verification_and_judge_of_the_best_node(made):
    path = made("r", [{}, {"time": 7000}], config={"judge": "llm"})
    (path / "verify.json").write_text(
        json.dumps({"nodes": {"2": {"fsr": 0.7, "low": 0.6, "high": 0.8, "verdict": "confirmed"}}})
    )
    folder = path / "nodes" / "0002"
    folder.mkdir(parents=True)
    (folder / "judge-diff.json").write_text('{"score": 0.25, "table": []}')
    assert (row(path).judge, row(path).judge_score) == ("diff", 0.25)
    (folder / "judge-llm.json").write_text('{"score": 0.5, "table": []}')
    found = row(path)
    assert (found.judge, found.judge_score) == ("llm", 0.5)
    assert (found.verified_fsr, found.verified_low, found.verified_high) == (0.7, 0.6, 0.8)
    assert found.verdict == "confirmed"


@pytest.mark.parametrize("text", ["[", "[]", '{"nodes": 3}', '{"nodes": {"1": {"fsr": "x"}}}'])
def test_a_bad_verification_is_no_verification(made, text):
    path = made("r", [{}])
    (path / "verify.json").write_text(text)
    found = row(path, warnings=[])
    assert found.result == "valid"
    assert math.isnan(found.verified_fsr)
    assert found.verdict is None


@pytest.mark.parametrize("score", ["2", "-1", "NaN", "true", '"1"'])
def test_a_bad_score_is_no_score(made, score):
    path = made("r", [{}])
    (path / "nodes" / "0001").mkdir(parents=True)
    (path / "nodes" / "0001" / "judge-x.json").write_text(f'{{"score": {score}}}')
    assert math.isnan(row(path).judge_score)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(made):
    path = made("r", [{}])
    os.mkfifo(path / "verify.json")
    warnings = []
    assert row(path, warnings=warnings).result == "valid"
    assert "verify.json" in warnings[0]


# --- finding runs -------------------------------------------------------------------------------


def test_folders_are_searched_and_runs_taken_once(made, tmp_path):
    for name in ("all/a", "all/sweep/b", "all/sweep/deep/c", "all/.hidden/d"):
        made(name, [{}])
    made("all/a/nested", [{}])
    frame = load([tmp_path / "all", tmp_path / "all" / "a"], on_warning=pytest.fail)
    assert list(frame.name) == ["a", "b", "c"]


def test_a_run_has_a_name_from_wherever_it_is_looked_at(made, monkeypatch):
    monkeypatch.chdir(made("here", [{}]))
    assert row(".").loc["name"] == "here"


def test_a_copy_of_a_run_counts_once(made, tmp_path):
    path = made("a", [{}])
    shutil.copytree(path, tmp_path / "b")
    warnings = []
    frame = load([path, tmp_path / "b"], on_warning=warnings.append)
    assert list(frame.name) == ["a"]
    assert "copy of the run" in warnings[0]


def test_paths_without_results_are_refused(made, tmp_path):
    made("a/b/c/d/e/too-deep", [{}])
    (tmp_path / "table.csv").write_text("task,fsr\nmini/1,1\n")
    for name, message in (
        ("gone", "no such file or folder"),
        ("a", "holds no results"),
        ("table.csv", "speedkit results import"),
    ):
        with pytest.raises(UsageError, match=message):
            load(tmp_path / name)
