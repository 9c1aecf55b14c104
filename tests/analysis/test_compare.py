"""Comparing cells: which runs enter, what is said of them, and what the numbers depend on."""

from __future__ import annotations

import json

import pytest

from speedkit.analysis import compare, import_results, load
from speedkit.analysis.cellscores import cells_of, task_order
from speedkit.analysis.statistics import Bootstrap
from speedkit.core.errors import UnknownNameError, UsageError

QUICK = Bootstrap(draws=400)
OVER = "val_loss 1.0050 is over the target 1"


@pytest.fixture
def table(tmp_path):
    """Return a function that imports lines of CSV."""

    def make(*lines, head="task,scaffold,seed,result,fsr", name="t"):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([head, *lines]) + "\n")
        return import_results(path).path

    return make


def cells(found):
    return {",".join(cell.key): cell for cell in found.cells}


def rules(found, rule):
    return {",".join(s.key): s for s in found.sensitivity if s.rule == rule}


def test_the_known_set_end_to_end(known_file):
    found = cells(compare(known_file))
    aide, flat = found["aide"], found["flat"]
    assert (aide.runs, aide.tasks, aide.runs_a_task) == (9, ("mini/1", "mini/2", "mini/3"), (3, 3))
    iqm = aide.over_seeds["iqm"]
    assert (iqm.value, iqm.low, iqm.high) == pytest.approx((0.5, 0.26, 0.76), abs=1e-12)
    mean = aide.over_seeds["mean"]
    assert (mean.value, mean.low, mean.high) == pytest.approx((4.8 / 9, 2.9 / 9, 6.9 / 9))
    assert (flat.runs, flat.runs_a_task, flat.invalid) == (6, (1, 3), 1)
    assert flat.left_out == {"missing": 1}
    assert flat.over_seeds["mean"].value == pytest.approx((0.2 + 0.1 + 0.7) / 3)
    assert flat.over_seeds["median"].value == pytest.approx(0.2)


def test_intervals_over_tasks_are_wider_when_tasks_differ(table):
    lines = [f"mini/{t},aide,{s},,{t + s / 100}" for t in range(1, 5) for s in range(3)]
    (cell,) = compare(table(*lines), bootstrap=QUICK).cells
    seeds, tasks = cell.over_seeds["mean"], cell.over_tasks["mean"]
    assert seeds.value == tasks.value
    assert tasks.high - tasks.low > 20 * (seeds.high - seeds.low)


def test_invalid_counts_as_zero_or_is_dropped_and_missing_never_enters(table):
    path = table(
        "mini/1,aide,0,,0.6",
        "mini/1,aide,1,invalid,",
        "mini/1,aide,2,missing,",
    )
    zero = cells(compare(path, bootstrap=QUICK))["aide"]
    drop = cells(compare(path, invalid="drop", bootstrap=QUICK))["aide"]
    assert (zero.runs, zero.over_seeds["mean"].value) == (2, 0.3)
    assert (drop.runs, drop.over_seeds["mean"].value) == (1, 0.6)
    assert (zero.left_out, zero.invalid) == ({"missing": 1}, 1)
    assert (drop.left_out, drop.invalid) == ({"missing": 1, "invalid": 1}, 1)
    found = compare(path, bootstrap=QUICK)
    assert rules(found, "invalid as 0")["aide"].over_seeds["mean"].value == 0.3
    assert rules(found, "invalid dropped")["aide"].over_seeds["mean"].value == 0.6
    assert rules(found, "invalid dropped")["aide"].runs == 1


def test_a_run_that_is_not_over_does_not_enter_even_with_a_valid_node(made):
    paths = [made("a", [{}]), made("b", [{"time": 5000}], status="interrupted")]
    (cell,) = compare(paths, bootstrap=QUICK).cells
    assert (cell.runs, cell.left_out) == (1, {"not over": 1})
    assert cell.over_seeds["mean"].value == 0.5


def test_every_seed_enters_once_and_none_is_dropped(table):
    lines = [f"mini/1,aide,{s},,{s / 10}" for s in range(7)]
    lines += ["mini/2,aide,0,,0.5", "mini/3,aide,0,,0.25", "mini/3,aide,1,,0.75"]
    (cell,) = compare(table(*lines), bootstrap=QUICK).cells
    assert (cell.runs, cell.runs_a_task) == (10, (1, 7))
    assert cell.over_seeds["mean"].value == pytest.approx((0.3 + 0.5 + 0.5) / 3)


def test_clipping_is_a_sensitivity_and_not_the_default(table):
    path = table("mini/1,aide,0,,-1", "mini/1,aide,1,,3")
    found = compare(path, bootstrap=QUICK)
    assert cells(found)["aide"].over_seeds["mean"].value == 1.0
    assert rules(found, "unclipped")["aide"].over_seeds["mean"].value == 1.0
    assert rules(found, "clipped to [0, 1]")["aide"].over_seeds["mean"].value == 0.5


# --- gates --------------------------------------------------------------------------------------


def test_gates_of_the_speedrun_have_rows_by_default(made):
    nodes = [
        {"time": 9000, "loss": 3.275},
        {"time": 7000, "loss": 3.285, "outcome": "invalid", "reason": OVER},
    ]
    at_gate = [made(f"g{k}", nodes, config={"target_loss": 3.28, "seed": k}) for k in range(2)]
    other = made("other", nodes[:1], config={"seed": 2})
    found = compare([*at_gate, other], by="gate", bootstrap=QUICK)
    assert {s.rule for s in found.sensitivity if s.rule.startswith("gate")} == {
        "gate 3.28",
        "gate 3.29",
    }
    found = compare(at_gate, bootstrap=QUICK)
    assert rules(found, "gate 3.28")["aide"].over_seeds["mean"].value == 0.25
    assert rules(found, "gate 3.29")["aide"].over_seeds["mean"].value == 0.75


def test_gates_of_the_speedrun_leave_runs_of_other_families_alone(made):
    over = {"time": 7000, "loss": 1.005, "outcome": "invalid", "reason": OVER}
    other = made("other", [{"time": 9000}, over])
    speedrun = made("s", [{"loss": 3.0}], config={"target_loss": 3.28, "scaffold": "x"})
    found = compare([other, speedrun], by="gate", bootstrap=QUICK)
    assert rules(found, "gate 3.29")["1"].over_seeds["mean"].value == 0.25


def test_a_gate_may_be_asked_for(made):
    nodes = [{"time": 8000, "loss": 1.005, "outcome": "invalid", "reason": OVER}]
    found = compare(made("r", nodes), gates=[1.01], bootstrap=QUICK)
    assert cells(found)["aide"].over_seeds["mean"].value == 0.0
    assert rules(found, "gate 1.01")["aide"].over_seeds["mean"].value == 0.5
    none = compare(made("s", [{}]), bootstrap=QUICK)
    assert not [s for s in none.sensitivity if s.rule.startswith("gate")]
    assert any("no rows for other gates" in note for note in none.notes)


def test_imported_results_stay_out_of_gates_that_are_not_their_own(made, table):
    own = made("r", [{"loss": 3.0}], config={"target_loss": 3.28})
    other = table("toy/1,aide,1,,0.9,3.28", head="task,scaffold,seed,result,fsr,gate")
    found = compare([own, other], bootstrap=QUICK)
    assert rules(found, "gate 3.28")["aide"].runs == 2
    assert rules(found, "gate 3.29")["aide"].runs == 1
    assert any("another gate than their own" in note for note in found.notes)


# --- pairs --------------------------------------------------------------------------------------


def test_pairs_are_compared_on_the_tasks_that_both_have(table):
    path = table(
        *("mini/1,aide,0,,0.9", "mini/1,aide,1,,0.7", "mini/2,aide,0,,0.1", "mini/9,aide,0,,5"),
        *("mini/1,flat,0,,0.2", "mini/2,flat,0,,0.3", "mini/10,flat,0,,7"),
    )
    (pair,) = compare(path, bootstrap=QUICK).pairs
    assert (pair.x, pair.y, pair.runs) == (("flat",), ("aide",), (2, 3))
    assert pair.improvement.value == 0.5
    assert [(t.task, t.runs_x, t.runs_y) for t in pair.by_task] == [
        ("mini/1", 1, 2),
        ("mini/2", 1, 1),
    ]
    assert [t.difference.value for t in pair.by_task] == pytest.approx([-0.6, 0.2])
    assert pair.difference.value == pytest.approx(-0.2)


def test_a_baseline_stands_second_in_every_pair(table):
    lines = [f"mini/1,s{k},0,,0.{k}" for k in range(9)]
    path = table(*lines)
    many = compare(path, bootstrap=QUICK)
    assert [(p.x, p.y) for p in many.pairs] == [((f"s{k}",), ("s0",)) for k in range(1, 9)]
    based = compare(path, baseline="s4", bootstrap=QUICK)
    assert {p.y for p in based.pairs} == {("s4",)}
    assert len(based.pairs) == 8
    with pytest.raises(UnknownNameError, match="did you mean"):
        compare(path, baseline="s44", bootstrap=QUICK)


def test_cells_of_several_columns(table):
    path = table(
        *("mini/1,aide,none,0.1", "mini/1,aide,1+2,0.6", "mini/1,flat,none,0.2"),
        head="task,scaffold,hints,fsr",
    )
    found = compare(path, by=("scaffold", "hints"), baseline="aide,none", bootstrap=QUICK)
    assert list(cells(found)) == ["aide,1+2", "aide,none", "flat,none"]
    assert compare(path, by="scaffold,hints", bootstrap=QUICK).by == ("scaffold", "hints")


def test_by_task_there_is_nothing_to_pair(table):
    found = compare(table("mini/10,a,0,,1", "mini/9,a,0,,1"), by="task", bootstrap=QUICK)
    assert list(cells(found)) == ["mini/9", "mini/10"]
    assert found.pairs == ()


# --- what is said -------------------------------------------------------------------------------


def test_common_tasks(table):
    path = table("mini/1,a,0,,0.1", "mini/2,a,0,,0.9", "mini/2,b,0,,0.4")
    found = compare(path, bootstrap=QUICK)
    assert any("different tasks, 1 in common" in note for note in found.notes)
    kept = compare(path, common_tasks=True, bootstrap=QUICK)
    assert [c.tasks for c in kept.cells] == [("mini/2",), ("mini/2",)]
    assert cells(kept)["a"].left_out == {"task not in every cell": 1}
    assert not any("different tasks" in note for note in kept.notes)


def test_only_runs_that_enter_count_as_zero(table):
    path = table("mini/1,a,0,invalid,", "mini/2,a,0,,0.9", "mini/2,b,0,,0.4")
    kept = compare(path, common_tasks=True, bootstrap=QUICK)
    assert (cells(kept)["a"].runs, cells(kept)["a"].invalid) == (1, 0)
    path = table(
        *("mini/1,a,0,valid,0.5,finished", "mini/1,a,1,invalid,,failed"),
        head="task,scaffold,seed,result,fsr,status",
        name="failed",
    )
    (cell,) = compare(path, bootstrap=QUICK).cells
    assert (cell.runs, cell.invalid, cell.left_out) == (1, 0, {"not over": 1})


def test_runs_that_start_from_a_script_of_their_own_are_told_apart(program, made):
    paths = [made("a", [{}]), made("b", [{"time": 7000}])]
    with (paths[1] / "run.toml").open("a") as file:
        file.write('[start]\nfile = "mine.py"\nscript = "x = 1"\n')
    found = compare(paths, bootstrap=QUICK)
    assert any("differ in start (own, record)" in note for note in found.notes)
    assert list(cells(compare(paths, by="start", bootstrap=QUICK))) == ["own", "record"]
    assert "1 run from a script of its own" in program("results", *paths).out
    assert "of its own" not in program("results", paths[0]).out


@pytest.mark.parametrize(
    ("head", "lines", "note"),
    [
        ("task,hints,fsr", ["mini/1,1,0", "mini/1,none,0"], "differ in hints (1, none)"),
        ("task,gate,fsr", ["mini/1,3.28,0", "mini/1,3.29,0"], "differ in gate: 3.28, 3.29"),
        ("task,seed,fsr,name", ["mini/1,1,0,a", "mini/1,1,0,b"], "1 run with the task, settings"),
        ("task,fsr", ["mini/1,0", "mini/2,0"], "one run a task, so there is no interval"),
        ("task,fsr", ["mini/1,0", "mini/2,0", "mini/2,1"], "1 of 2 tasks have one run"),
        ("task,fsr", ["mini/1,0", "mini/1,0"], "2 runs from imported results"),
    ],
)
def test_notes(table, head, lines, note):
    found = compare(table(*lines, head=head), bootstrap=QUICK)
    assert any(note in text for text in found.notes), found.notes


def test_runs_of_two_families_may_have_two_gates(table):
    found = compare(table("a/1,1,0", "b/1,2,0", head="task,gate,fsr"), bootstrap=QUICK)
    assert not any("gate:" in note for note in found.notes)


def test_verified_scores_leave_out_what_was_not_verified(table):
    path = table(
        *("mini/1,valid,0.9,0.7", "mini/1,valid,0.8,", "mini/1,invalid,,"),
        head="task,result,fsr,verified_fsr",
    )
    (cell,) = compare(path, score="verified_fsr", bootstrap=QUICK).cells
    assert (cell.runs, cell.left_out) == (2, {"not verified": 1})
    assert cell.over_seeds["mean"].value == 0.35


def test_a_table_can_be_filtered_first(known_file):
    frame = load(known_file)
    found = compare(frame[frame.scaffold == "aide"], bootstrap=QUICK)
    assert list(cells(found)) == ["aide"]
    part = compare(frame[["task", "scaffold", "result", "fsr", "status"]], bootstrap=QUICK)
    assert part.cells[0].over_seeds == found.cells[0].over_seeds


def test_wrong_arguments(known_file, made):
    with pytest.raises(UnknownNameError, match="did you mean scaffold"):
        compare(known_file, by="scafold")
    with pytest.raises(UsageError, match="say by what"):
        compare(known_file, by=())
    with pytest.raises(UnknownNameError, match="no score named"):
        compare(known_file, score="speed")
    with pytest.raises(UsageError, match="no run has a result that could be compared"):
        compare(made("r", status=None))


def test_tasks_are_in_the_order_of_their_numbers():
    names = ["mini/10", "mini/9", "a/2", "–"]
    assert sorted(names, key=task_order) == ["a/2", "mini/9", "mini/10", "–"]


def test_nothing_is_compared_as_nothing():
    assert cells_of([], ("scaffold",), "fsr") == {}


# --- the commands -------------------------------------------------------------------------------


def test_the_command_says_what_everything_is(program, known_file):
    result = program("compare", known_file, "--by", "scaffold", "--draws", "2000", "--seed", "4")
    assert result.code == 0
    assert result.err == ""
    for text in (
        "FSR of 15 runs by scaffold, never clipped",
        "invalid: 1 run without a node that may count, as FSR 0",
        "left out: 1 missing",
        "95%, percentiles of 2,000 stratified bootstrap draws, bootstrap seed 4",
        "intervals over seeds (tasks fixed)",
        "intervals over tasks (tasks and seeds resampled)",
        "probability of improvement",
        "Difference of means for each task",
        "clipped to [0, 1]",
    ):
        assert text in result.out, text


def test_compare_as_json(program, known_file):
    facts = program("compare", known_file, "--draws", "300", "--json").json
    assert facts["bootstrap"] == {"draws": 300, "seed": 0, "level": 0.95, "method": "percentile"}
    assert (facts["runs"], facts["left_out"], facts["invalid"]) == (15, {"missing": 1}, "zero")
    assert facts["cells"][0]["key"] == ["aide"]
    assert facts["cells"][0]["over_seeds"]["iqm"]["value"] == 0.5
    assert facts["pairs"][0]["by_task"][2]["runs_x"] == 1
    assert len(facts["sensitivity"]) == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ("--by", "nothing"),
        ("--gate", "nan"),
        ("--gate", "0"),
        ("--draws", "1"),
        ("--baseline", "x"),
        ("--invalid", "maybe"),
    ],
)
def test_mistakes_of_the_command(program, known_file, arguments):
    result = program("compare", known_file, *arguments)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


def test_compare_of_nothing(program, tmp_path):
    result = program("compare", tmp_path / "gone")
    assert (result.code, result.err) == (
        2,
        f"error: no such file or folder: {tmp_path / 'gone'}\n",
    )


def test_hostile_names_do_not_reach_the_terminal(program, made):
    paths = [made(f"r{k}", [{"model": f"m{k}\x1b[2J\u202e"}]) for k in range(2)]
    for arguments in (("compare", *paths, "--by", "model", "--draws", "100"), ("results", *paths)):
        result = program(*arguments)
        assert result.code == 0
        assert "m1[2J" in result.out
        assert all(c.isprintable() or c == "\n" for c in result.out + result.err)


def test_a_warning_is_one_line_on_standard_error(program, made):
    result = program("results", made("r", [{}], config={"task": "/gone/x/1"}))
    assert result.code == 0
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("warning: ")


def test_results_in_every_form(program, made, known_file, tmp_path):
    path = made("own", [{"time": 12000}, {"outcome": "buggy", "time": None}])
    text = program("results", path, known_file).out
    assert "17 runs: 15 valid, 1 invalid, 1 missing" in text
    assert "-0.500" in text
    assert "1/0/1/0" in text
    (tmp_path / "out.csv").write_text(program("results", path, "--csv").out)
    assert program("results", "import", tmp_path / "out.csv").code == 0
    again = program("results", tmp_path / "out.results.json", "--json").json
    (first,) = program("results", "--json", path).json
    assert again[0]["fsr"] == first["fsr"] == -0.5
    assert first["dollars"] == 0
    assert first["model"] is None
    lines = program("results", "--markdown", path).out.splitlines()
    assert lines[0].startswith("| name | task |")
    assert lines[2].startswith(r"| own | toy/1 |")


def test_the_gate_of_results(program, made):
    path = made("r", [{"loss": 1.005, "outcome": "invalid", "reason": OVER}])
    assert program("results", path, "--json").json[0]["result"] == "invalid"
    assert program("results", path, "--json", "--gate", "1.01").json[0]["result"] == "valid"
    assert program("results", path, "--gate", "-1").code == 2


def test_import_reports_every_line_and_writes_nothing(program, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("task,fsr\nmini/1,a\nmini/2,\nmini/3,0.5\n")
    result = program("results", "import", path)
    assert (result.code, result.out) == (2, "")
    starts = [f"error: {path}: line 2: fsr:", f"error: {path}: line 3: without fsr"]
    assert all(line.startswith(s) for line, s in zip(result.err.splitlines(), starts, strict=True))
    assert not (tmp_path / "bad.results.json").exists()
    path.write_text("task,fsr\nmini/3,0.5\n")
    made = program("results", "import", path, "--out", tmp_path / "x" / "y.results.json", "--json")
    assert json.loads(made.out)["results"] == {"valid": 1}


def test_help_of_the_group_and_of_the_table(program):
    assert "import" in program("results", "--help").out
    assert "--markdown" in program("results", "table", "--help").out
    assert program("results").code == 2
