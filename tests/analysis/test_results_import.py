"""Results of others: a strict format, errors with line numbers, exports that are safe to open."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedkit.analysis import import_results, load
from speedkit.analysis.cells import guarded, unguarded
from speedkit.analysis.columns import NAMES
from speedkit.analysis.export import rows_of, to_csv, to_markdown
from speedkit.analysis.imported import parse_csv
from speedkit.core.errors import UsageError


def parse(text):
    return parse_csv(text, "f.csv")


def mistakes(text):
    with pytest.raises(UsageError) as error:
        parse(text)
    return str(error.value).splitlines()


def test_the_least_that_is_needed():
    (found,) = parse("task,fsr\nnanogpt/12,-0.25\n")
    assert found == {
        "task": "nanogpt/12",
        "family": "nanogpt",
        "task_id": 12,
        "fsr": -0.25,
        "result": "valid",
        "status": "finished",
        "start": "record",
    }


def test_fsr_from_times():
    head = "task,start_ms,target_ms,train_time_ms"
    (found,) = parse(f"{head}\nmini/1,10000,6000,8000\n")
    assert found["fsr"] == 0.5
    (line,) = mistakes(f"{head},fsr\nmini/1,10000,6000,8000,0.6\n")
    assert line == "f.csv: line 2: fsr is 0.6, but the times give 0.5000"
    assert parse(f"{head},fsr\nmini/1,10000,6000,8000,0.503\n")[0]["fsr"] == 0.503
    assert "no speedup" in mistakes(f"{head}\nmini/1,6000,10000,8000\n")[0]


def test_invalid_and_missing_must_be_said():
    rows = parse("task,fsr,result\nmini/1,,invalid\nmini/1,,missing\nmini/1,0,\n")
    assert [(r["result"], r.get("fsr")) for r in rows] == [
        ("invalid", None),
        ("missing", None),
        ("valid", 0.0),
    ]
    assert "must say invalid or missing" in mistakes("task,fsr\nmini/1,\n")[0]
    for result in ("invalid", "missing"):
        assert "leave fsr empty" in mistakes(f"task,fsr,result\nmini/1,0,{result}\n")[0]
    assert "a valid run needs fsr" in mistakes("task,result\nmini/1,valid\n")[0]


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1", 1.0), ("-0.5", -0.5), ("+.5", 0.5), (" 2. ", 2.0), ("1e-3", 0.001), ('"0.25"', 0.25)],
)
def test_numbers_that_are_numbers(cell, value):
    assert parse(f"task,fsr\nmini/1,{cell}\n")[0]["fsr"] == value


@pytest.mark.parametrize(
    "cell",
    [
        *("nan", "inf", "-inf", "1_000", "0x10", "1e999", "50%", "1 000", "=1+1", "None", "true"),
        *("١٢", "1e3000", "--1", "1.2.3", "0,5\x00", "9" * 50, "1e16"),
    ],
)
def test_numbers_that_are_none(cell):
    out = io.StringIO()
    csv.writer(out).writerows([["task", "fsr"], ["mini/1", "0.1"], ["mini/2", cell]])
    (line,) = mistakes(out.getvalue())
    assert line.startswith("f.csv: line 3: fsr: ")
    assert line.isascii()
    assert line.isprintable()


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("seed", "1.5", "no whole number"),
        ("seed", "-1", "negative"),
        ("dollars", "-0.1", "negative"),
        ("judge_score", "1.1", "over 1"),
        ("target_ms", "0", "no time"),
        ("train_time_ms", "1e11", "no time"),
        ("result", "good", "none of valid, invalid, missing"),
        ("status", "done", "none of finished"),
        ("verdict", "yes", "none of confirmed"),
        ("hints", "3+1", "levels in order"),
        ("hints", "4", "levels in order"),
        ("family", "nanogpt", "family is nanogpt, but task is mini/1"),
        ("task_id", "2", "task_id is 2"),
        ("model", "x" * 301, "301 characters"),
        ("model", "a\x1b[31m", "not printable"),
        ("model", "a\u202eb", "not printable"),
        ("model", '"two\nlines"', "not printable"),
        ("model", "tab\tbed", "not printable"),
        ("coder", "a\x00b", "not printable"),
    ],
)
def test_cells_that_do_not_fit(column, cell, message):
    lines = mistakes(f"task,fsr,{column}\nmini/1,0.5,{cell}\n")
    assert lines[0].startswith("f.csv: line 2: ")
    assert message in lines[0]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("task", ["mini", "mini/", "/1", "mini/x", "Mini/1", "mini/0", "../x/1"])
def test_tasks_that_are_none(task):
    assert "is no task" in mistakes(f"task,fsr\n{task},1\n")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the first line must name the columns"),
        ("\n\n", "the first line must name the columns"),
        ("task,fsr\n", "line 1: there is no row below the header"),
        ("task;fsr\nmini/1;1\n", "separated by commas"),
        ("fsr\n1\n", "one of them be task"),
        ("task,fsr,fsr\nmini/1,1,1\n", "column fsr stands there 2 times"),
        ("task,fsr,scafold\nmini/1,1,x\n", "did you mean scaffold"),
        ("task,fsr,\nmini/1,1,\n", "no column named ''"),
        ("task,fsr\nmini/1,1\nmini/2\n", "line 3: 1 cells, but the header names 2"),
        ("task,fsr\nmini/1,1,2\n", "line 2: 3 cells"),
        ('task,fsr\nmini/1,"1\n', "line 2: it is no CSV"),
        ('task,fsr\nmini/1,"1"2\n', "line 2: it is no CSV"),
        ("task,fsr\nmini/1," + "1" * 200_000, "it is no CSV"),
        ("task,fsr\r\nmini/1,1\rmini/2,1\n", ""),
    ],
)
def test_files_that_are_no_tables(text, message):
    lines = mistakes(text) if message else []
    assert not message or any(message in line for line in lines)
    assert len(lines) <= 3


def test_every_mistake_has_its_line_and_they_come_together():
    text = 'task,model,fsr\n\n"mini/1",a,x\nmini/2,"quoted, comma",0.5\n,b,1\nmini/3,c,nan\n'
    lines = mistakes(text)
    assert [line.split(": ")[1] for line in lines] == ["line 3", "line 5", "line 6"]


def test_a_line_number_counts_lines_and_not_rows():
    text = 'task,model,fsr\nmini/1,"a\nb\nc",1\nmini/2,x,nope\n'
    assert [line.split(": ")[1] for line in mistakes(text)] == ["line 2", "line 5"]


def test_a_flood_of_columns_is_one_mistake():
    assert mistakes(",".join(f"c{k}" for k in range(100_000)) + "\n") == [
        f"f.csv: line 1: 100000 columns; there are {len(NAMES)}"
    ]


def test_spaces_around_a_text_do_not_make_another_cell():
    rows = parse("task,scaffold,fsr\nmini/1, tree,1\nmini/1 ,tree ,1\n")
    assert {(row["task"], row["scaffold"]) for row in rows} == {("mini/1", "tree")}


def test_a_table_that_may_be_imported_can_be_read_though_it_grows(tmp_path, monkeypatch):
    from speedkit.analysis import imported

    monkeypatch.setattr(imported, "MAX_BYTES", 1000)
    path = tmp_path / "f.csv"
    path.write_text("task,fsr,seed\n" + "".join(f"mini/1,1,{k}\n" for k in range(80)))
    file = import_results(path)
    assert file.path.stat().st_size > imported.MAX_BYTES > path.stat().st_size
    assert len(load(file.path)) == 80


def test_a_flood_of_mistakes_is_cut():
    lines = mistakes("task,fsr\n" + "mini/1,x\n" * 5000)
    assert len(lines) == 21
    assert lines[-1] == "f.csv: 4980 further mistakes"


def test_the_same_run_twice_is_a_mistake():
    text = "task,scaffold,seed,fsr\nmini/1,aide,1,0.5\nmini/1,flat,1,0.5\nmini/1,aide,1,0.9\n"
    assert mistakes(text) == ["f.csv: line 4: the same run and seed as on line 2"]
    assert len(parse("task,fsr\nmini/1,0.5\nmini/1,0.5\n")) == 2


def test_a_byte_order_mark_and_foreign_line_ends():
    assert len(parse("\ufefftask,fsr\r\nmini/1,1\r\nmini/2,2\r\n")) == 2


def test_files_are_checked_before_anything_is_written(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes(b"task,fsr\nmini/1,1\nm\xff,1\n")
    with pytest.raises(UsageError, match="line 3: the text is not UTF-8"):
        import_results(path)
    with pytest.raises(UsageError, match="no such file"):
        import_results(tmp_path / "gone.csv")
    with pytest.raises(UsageError, match="no such file"):
        import_results(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["f.csv"]


def test_an_import_is_loaded_beside_runs(known, tmp_path, made):
    path = tmp_path / "published.csv"
    path.write_text(known.read_text())
    file = import_results(path)
    assert file.path == tmp_path / "published.results.json"
    frame = load([file.path, made("own", [{}])], on_warning=pytest.fail)
    assert len(frame) == 17
    assert list(frame.source) == ["run"] + ["import"] * 16
    imported = frame[frame.source == "import"].reset_index()
    assert imported.name[0] == "aide-1-0"
    assert imported.run[2] == f"{file.path}#3"
    assert dict(imported.result.value_counts()) == {"valid": 14, "invalid": 1, "missing": 1}
    assert math.isnan(imported.gate[0])
    assert imported.model[0] is None
    with pytest.raises(UsageError, match="exists already"):
        import_results(path)


def test_the_same_results_twice_count_once(known_file, tmp_path):
    copy = tmp_path / "copy.results.json"
    copy.write_bytes(known_file.read_bytes())
    warnings = []
    assert len(load([known_file, copy], on_warning=warnings.append)) == 16
    assert "counted once" in warnings[0]
    assert len(load([known_file, known_file], on_warning=pytest.fail)) == 16


def test_imported_results_know_their_own_gate_only(tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("task,fsr,gate\nmini/1,0.5,3.28\nmini/1,0.7,3.29\nmini/1,0.6,\n")
    file = import_results(path)
    assert list(load(file.path).result) == ["valid"] * 3
    wide = load(file.path, gate=3.29)
    assert list(wide.result) == ["missing", "valid", "missing"]
    assert list(wide.fsr.fillna(-1)) == [-1, 0.7, -1]


# --- results files that were tampered with ------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "not json", "{}", '{"speedkit_results": 1}', "[" * 100_000),
        '{"speedkit_results": 2, "rows": []}',
        '{"speedkit_results": 1, "rows": [3]}',
        '{"speedkit_results": 1, "rows": [{"task": "mini/1"}]}',
        '{"speedkit_results": 1, "rows": [{"task": "mini/1", "fsr": NaN}]}',
        '{"speedkit_results": 1, "rows": [{"task": "mini/1", "fsr": "0.5"}]}',
        '{"speedkit_results": 1, "rows": [{"task": "mini/1", "fsr": true}]}',
        '{"speedkit_results": 1, "rows": [{"task": "mini/1", "fsr": 1, "run": "/etc"}]}',
        '{"speedkit_results": 1, "rows": [{"task": "mini/1", "fsr": 1, "x": 1}]}',
        '{"speedkit_results": 1, "rows": [{"task": "mini/1", "fsr": 1, "model": "\\u001b[2J"}]}',
    ],
)
def test_a_results_file_is_checked_like_an_import(tmp_path, text):
    path = tmp_path / "x.results.json"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value).isprintable()


# --- exports ------------------------------------------------------------------------------------


def test_csv_reads_back_as_it_was(known_file, made, tmp_path):
    own = made("own", [{"time": 7919}], config={"model": "=cmd|' /C calc'!A0"})
    frame = load([known_file, own])
    path = tmp_path / "out.csv"
    path.write_text(to_csv(frame))
    back = load(import_results(path).path)
    kept = [n for n in NAMES if n not in ("run", "source")]
    assert list(rows_of(back[kept])) == list(rows_of(frame[kept]))


def test_no_text_becomes_a_formula(made, tmp_path):
    evil = ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "=1", "'=1", "\r\n=1", '=HYPERLINK("x")']
    paths = [made(f"r{k}", [{}], config={"model": text}) for k, text in enumerate(evil)]
    frame = load([*paths, made("minus", [{"time": 12000}])])
    table = list(csv.DictReader(io.StringIO(to_csv(frame))))
    assert all(line["model_asked"].startswith("'") for line in table[:-1])
    assert (table[-1]["fsr"], table[-1]["model_asked"]) == ("-0.5", "")
    path = tmp_path / "out.csv"
    path.write_text(to_csv(frame))
    back = load(import_results(path).path)
    assert list(back.model_asked)[:3] == ["=1+1", "+1", "-1"]


@given(st.text())
def test_guarding_can_be_undone_and_leaves_no_formula(text):
    safe = guarded(text)
    assert unguarded(safe) == text
    assert safe.lstrip()[:1] not in tuple("=+-@")


def test_markdown_shows_cells_as_they_are():
    text = to_markdown(["a", "b"], [["x|y\n# z <b> `c` [l](u)", None]])
    assert text.splitlines() == [
        "| a | b |",
        "| --- | --- |",
        r"| x\|y \# z \<b\> \`c\` \[l\](u) | – |",
    ]


def test_json_values_have_null_for_what_is_missing(known_file):
    rows = list(rows_of(load(known_file)))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[12]["result"] == "invalid"
    assert rows[12]["fsr"] is None
    assert rows[0]["fsr"] == 0
    assert isinstance(rows[0]["seed"], int)
