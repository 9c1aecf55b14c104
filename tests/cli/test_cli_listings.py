"""``speedkit tasks`` and ``speedkit records``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from speedkit.core.task import find_task
from tests.conftest import TOY


def test_tasks_of_a_folder(program):
    result = program("tasks", TOY)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split()[:3] == ["task", "start", "target"]
    assert " ".join(lines[2].split()) == f"{TOY}/1 1 slow 2 fast 10.00 s 6.00 s – both"
    assert lines[3].split()[-1] == "start"


def test_tasks_as_json(program):
    one, two = program("tasks", f"{TOY}/", "--json").json
    assert find_task(one["name"]).name == "toy/1"
    assert one["start"] == {"index": 1, "title": "slow", "time_ms": 10000, "has_script": True}
    assert one["target_loss"] == 1.0
    assert one["hint_levels"] == []
    assert two["target"]["has_script"] is False


def test_tasks_of_all_families(program):
    names = [t["name"] for t in program("tasks", "--json").json]
    assert "mini/1" in names
    assert [n for n in names if n.startswith("nanogpt/")] == [
        f"nanogpt/{i}" for i in (*range(1, 6), *range(7, 21))
    ]
    assert all(find_task(name) for name in names)


def test_hint_levels_are_those_that_are_there(program, tmp_path):
    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    (family / "hints/1").mkdir(parents=True)
    (family / "hints/1/2-text.md").write_text("less is more")
    assert program("tasks", family, "--json").json[0]["hint_levels"] == [2]


@pytest.mark.parametrize("command", ["tasks", "records"])
@pytest.mark.parametrize(
    ("name", "hint"), [("mimi", "did you mean mini?"), ("no/such", "family.toml")]
)
def test_an_unknown_family(program, command, name, hint):
    result = program(command, name)
    assert (result.code, result.out) == (2, "")
    assert hint in result.err
    assert len(result.err.splitlines()) == 1


def test_records_are_listed_by_default(program):
    short, long = program("records", TOY), program("records", "list", TOY)
    assert short.out == long.out
    last = [" ".join(line.split()[1:]) for line in short.out.splitlines()][-3:]
    assert last == [
        "1 slow – 10.00 s – – at hand",
        "2 fast – 6.00 s – – at hand",
        "3 known time only – 3.00 s – – –",
    ]


def test_records_of_all_families_as_json(program):
    records = program("records", "--json").json
    families = {r["family"] for r in records}
    assert {"mini", "nanogpt"} <= families
    assert sum(r["family"] == "nanogpt" for r in records) == 21


def test_records_say_their_known_time_hints_and_needs(program):
    rows = [" ".join(line.split()) for line in program("records", "nanogpt").out.splitlines()]
    assert any(
        row.startswith("nanogpt 12 ") and " 301.80 s 317.84 s 1, 2, 3 torch 2.6" in row
        for row in rows
    )
    by_index = {r["index"]: r for r in program("records", "nanogpt", "--json").json}
    assert by_index[12]["known_time_s"] == 301.8
    assert by_index[12]["needs"] == [
        "torch 2.6 or newer",
        "FlexAttention",
        "1 or 2 or 4 or 8 processes",
        "10 training shards",
    ]
    assert {i for i, r in by_index.items() if not r["hint_levels"]} == {1, 7}
    assert {r["state"] for r in by_index.values()} == {"missing"}
    facts = program("records", "show", "nanogpt", 1).out
    assert "known time   2700.00 s\n" in facts
    assert "2968.35 s on 8x H100; the clock includes compilation" in facts
    assert "needs        torch 2.0 or newer; 8 processes; 65 training shards\n" in facts


def test_a_damaged_script_is_shown_as_such(program, own_cache):
    path = own_cache / "records" / "nanogpt" / "record_05.py"
    path.parent.mkdir(parents=True)
    path.write_text("print('something else')\n")
    states = [r["state"] for r in program("records", "nanogpt", "--json").json]
    assert (states[4], states.count("missing")) == ("damaged", 20)
    facts = program("records", "show", "nanogpt", 5).out
    assert f"{path} (damaged; run: speedkit records import)" in facts


@pytest.mark.parametrize("command", [("import",), ("export", "somewhere")])
def test_scripts_of_other_families_are_neither_imported_nor_exported(program, command):
    result = program("records", *command, "--family", "mini")
    assert (result.code, result.out) == (2, "")
    assert "the scripts of mini stand in" in result.err


def test_a_misspelt_command_of_the_group(program):
    result = program("records", "shwo", "mini", "1")
    assert result.code == 2
    assert "did you mean show?" in result.err


def test_help_names_the_commands(program):
    out = program("records", "--help").out
    assert all(name in out for name in ("list", "show", "diff"))


def test_the_facts_of_a_record(program):
    out = program("records", "show", TOY, 2).out
    assert "2 of" in out
    assert str(TOY / "scripts/fast.py") in out
    assert f"{TOY}/1, {TOY}/2" in out
    facts = program("records", "show", TOY, 2, "--json").json
    assert facts["changes"] == ["num_iterations 100 -> 60"]
    assert facts["tasks"] == [f"{TOY}/1", f"{TOY}/2"]


def test_a_record_that_is_not_there(program):
    result = program("records", "show", TOY, 9)
    assert result.code == 2
    assert "records are 1 to 3" in result.err


def odd_family(tmp_path, start, target):
    family = tmp_path / "family"
    shutil.copytree(TOY, family)
    (family / "scripts/slow.py").write_bytes(start)
    (family / "scripts/fast.py").write_bytes(target)
    return family


def test_the_source_is_printed_byte_by_byte(program, tmp_path):
    source = "a = 'é\x1b[31m'\nb = 2".encode()
    family = odd_family(tmp_path, source, b"")
    assert program("records", "show", family, 1, "--source").out.encode() == source


def test_a_terminal_gets_no_control_characters(program, tmp_path, monkeypatch):
    family = odd_family(tmp_path, "a = '\x1b[31m\x9b'\n".encode(), b"")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert program("records", "show", family, 1, "--source").out == "a = '[31m'\n"


def test_a_script_that_is_no_text(program, tmp_path):
    result = program("records", "show", odd_family(tmp_path, b"a = '\xff'\n", b""), 1, "--source")
    assert result.code in (1, 2)
    assert "script of record 1 of toy is not UTF-8" in result.err
    assert "Traceback" not in result.err


def test_a_record_without_a_script(program):
    result = program("records", "show", TOY, 3, "--source")
    assert result.code == 2
    assert "record 3 of toy has no script" in result.err


@pytest.mark.parametrize(
    ("start", "target"),
    [
        (b"a\nb\nc\n", b"a\nB\nc\n"),
        (b"a\nb", b"a\nb\n"),
        (b"a\nb\n", b"a\nb"),
        (b"a\nb", b"a\nc"),
        ("line\u2028end\nx\n".encode(), "line\u2028end\ny\n".encode()),
    ],
)
def test_the_human_change_can_be_applied(program, tmp_path, start, target):
    family = odd_family(tmp_path, start, target)
    change = program("records", "diff", f"{family}/1").out
    (tmp_path / "solve.py").write_bytes(start)
    subprocess.run(
        ["git", "apply", "-p2", "--unsafe-paths"], input=change.encode(), cwd=tmp_path, check=True
    )
    assert (tmp_path / "solve.py").read_bytes() == target


def test_a_number_is_a_task_of_nanogpt(program):
    result = program("records", "diff", "6")
    assert result.code == 2
    assert "nanogpt/6" in result.err
    result = program("records", "diff", "11")
    assert result.code == 2
    assert "speedkit records import" in result.err


def test_a_number_is_a_task_of_the_family_named(program):
    assert "+    num_iterations: int = 60" in program("records", "diff", 1, "--family", TOY).out


def test_the_change_of_a_built_in_task(program):
    out = program("records", "diff", "mini/1").out
    assert out.startswith("--- mini/record-1/")
    assert out.splitlines()[1].startswith("+++ mini/record-2/")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tasks mi", {"mini"}),
        ("records ", {"list", "show", "diff", "mini", "nanogpt"}),
        ("records show nano", {"nanogpt"}),
        ("records diff mini/1", {"mini/1"}),
    ],
)
def test_shells_complete(words, offered):
    environ = {
        **os.environ,
        "_SPEEDKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": f"speedkit {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from speedkit.cli.main import main; main()"],
        capture_output=True, text=True, check=True, env=environ,
    )  # fmt: skip
    assert offered <= {line.partition(",")[2] for line in done.stdout.splitlines()}
