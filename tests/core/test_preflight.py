"""What is refused before it takes a lane, and what is not."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import speedkit
from speedkit.core import preflight
from speedkit.core.preflight import MAX_SCRIPT, InstalledModules, Preflight, check

SCRIPTS = Path(speedkit.__file__).parent / "records" / "mini" / "scripts"
NAME = "train.py"


def look(text, python=sys.executable, **files):
    named = {f"{name}.py": content for name, content in files.items()}
    return check({NAME: text, **named}, NAME, python)


def real_error(text, folder):
    """Return what Python itself says of a script."""
    (folder / NAME).write_text(text, encoding="utf-8")
    command = [sys.executable, NAME]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stderr


# --- syntax -------------------------------------------------------------------------------


def test_records_pass():
    for path in SCRIPTS.glob("record_*.py"):
        assert look(path.read_text(encoding="utf-8")) == Preflight()


def test_a_result_is_well_without_a_reason():
    assert Preflight().ok
    assert not Preflight("a reason").ok


def test_a_syntax_error_names_its_line(tmp_path):
    text = "import os\nx = 1\nif x\n    print(x)\n"
    found = look(text)
    assert found.reason == "train.py, line 3: expected ':'"
    assert found.traceback == "  File \"train.py\", line 3\n    if x\nSyntaxError: expected ':'"
    said = real_error(text, tmp_path)
    assert all(line in said for line in found.traceback.split("\n")[1:])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f():\nreturn 1", "train.py, line 2: expected an indented block"),
        ("x = 1\n\treturn", "train.py, line 2: unexpected indent"),
        ("return 1", "train.py, line 1: 'return' outside function"),
        ("x = 1\nx = 'a", "train.py, line 2: unterminated string literal"),
        ("", "train.py: there is no code in it"),
        (" \n\n# nothing\n", "train.py: there is no code in it"),
        ('"""Only words."""\n"more"\n...', "train.py: there is no code in it"),
        ("x = 1\ny = '\0'", "train.py, line 2: there is a NUL character"),
        ("x = 1\n\ny = '\ud800'", "train.py, line 3: there is a character that is no valid"),
        ("x = 1\n" * (MAX_SCRIPT // 6 + 1), "train.py: it has 2097156 bytes; at most 2097152"),
        ("a" * 10_000_000, "train.py: it has 10000000 bytes"),
        ("-" * 100_000 + "1", "train.py: it is nested too deeply"),
        ("x" + ".y" * 100_000, "train.py: it is nested too deeply"),
        ("(" * 1000, "train.py, line 1: too many nested parentheses"),
        ("x = " + "9" * 5000, "train.py, line 1: Exceeds the limit"),
        ("x = 1\n" + "y" * 5000 + " z", "train.py, line 2: invalid syntax"),
    ],
    ids=lambda value: value[:12].encode("unicode-escape").decode(),
)
def test_what_cannot_be_run(text, reason):
    found = look(text)
    assert found.reason.startswith(reason)
    assert len(found.reason) < 300
    assert len(found.traceback) < 1000
    assert "SyntaxError" in found.traceback or "IndentationError" in found.traceback


def test_control_characters_of_the_source_are_not_shown_as_they_are():
    found = look("x = '\x1b[31m' y\n")
    assert not found.ok
    assert "\x1b" not in found.reason + found.traceback
    assert "\\x1b" in found.traceback


def test_a_byte_order_mark_and_odd_escapes_pass_without_a_warning(recwarn):
    assert look("\ufeffx = '\\d'\n1 is 1\n").ok
    assert not recwarn.list


def test_a_parser_that_dies_is_no_crash(monkeypatch):
    monkeypatch.setattr(preflight, "_CAN_CRASH", True)
    monkeypatch.setattr(preflight, "CRASH_LENGTH", 10)
    assert look("x = 1\ny = 2\n").ok
    assert look("x = 1\ny = (2\n").reason == "train.py, line 2: '(' was never closed"
    monkeypatch.setattr(preflight, "_TRY", "import os; os.kill(os.getpid(), 11)")
    assert "nested too deeply" in look("x = 1\ny = 2\n").reason
    assert look("x = 1\n").ok, "a short text is not tried"


@given(st.text() | st.text("()[]{}:='\"#\\ \n\tabif019_"))
def test_any_text_is_passed_or_refused_with_one_line(text):
    found = look(text, python=None)
    assert found.ok == (not found.reason) == (not found.traceback)
    assert found.reason.isprintable()


# --- imports ------------------------------------------------------------------------------


def test_a_module_that_is_not_there(tmp_path):
    text = "import os, json\nimport tritonn.language as tl\n"
    found = look(text)
    assert found.reason == "train.py, line 2: No module named 'tritonn'"
    assert found.traceback == (
        "Traceback (most recent call last):\n"
        '  File "train.py", line 2, in <module>\n'
        "    import tritonn.language as tl\n"
        "ModuleNotFoundError: No module named 'tritonn'"
    )
    assert found.traceback.split("\n")[-1] in real_error(text, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "import os, sys, numpy\nfrom torch.nn import functional as F",
        "try:\n    import nowhere\nexcept ImportError:\n    nowhere = None",
        "if False:\n    import nowhere",
        "def f():\n    import nowhere",
        "import contextlib\nwith contextlib.suppress(ImportError):\n    import nowhere",
        "import sys\nsys.path.insert(0, 'lib')\nimport nowhere",
        "from sys import path\npath.append('lib')\nimport nowhere",
        "import sys as system\nsystem.path.append('lib')\nimport nowhere",
        "import sys\nsys.modules['nowhere'] = sys\nimport nowhere",
        "import data, logs",
        "import __main__",
    ],
)
def test_imports_that_may_be_there_pass(text):
    assert look(text) == Preflight()


def test_a_path_of_os_is_not_the_search_path():
    assert "nowhere" in look("import os\nos.path.join('a')\nimport nowhere").reason
    assert "nowhere" in look("from os import path\nimport nowhere").reason


def test_files_of_the_node_are_modules_and_are_looked_at():
    assert look("import model", model="import os\n").ok
    assert look("import model", model="import train\nimport model\n").ok
    assert look("import model", model="import nowhere").reason.startswith("model.py, line 1: No")
    assert look("from model import x", model="x = (").reason.startswith("model.py, line 1: ")
    assert look("import os", model="x = (") == Preflight(), "nobody imports it"
    package = {NAME: "import pack", "pack/__init__.py": "from . import a", "pack/a.py": ""}
    assert check(package, NAME).ok
    assert check({NAME: "import pack.a", "pack/a.py": ""}, NAME).ok


def test_a_relative_import_of_a_script_fails(tmp_path):
    found = look("import os\nfrom . import model\n", model="")
    assert found.reason.startswith("train.py, line 2: attempted relative import")
    assert found.traceback.split("\n")[-1] in real_error(
        "import os\nfrom . import model\n", tmp_path
    )


def test_the_line_is_found_whatever_ends_lines():
    assert look("import os\r\rimport nowhere\r\n").reason.startswith("train.py, line 3: ")


def test_no_interpreter_no_word_on_imports(tmp_path):
    assert look("import nowhere", python=None).ok
    assert look("import nowhere", python=str(tmp_path / "python")).ok
    assert not look("import (", python=None).ok


def test_nothing_is_imported_or_run(tmp_path):
    trap = tmp_path / "was_run"
    code = f"open({str(trap)!r}, 'w')\n"
    (tmp_path / "trapped.py").write_text(code)
    files = {NAME: f"{code}import trapped\n"}
    assert not check(files, NAME).ok
    assert check(files, NAME, python_path=[str(tmp_path)]).ok
    assert not trap.exists()


def test_syntax_is_that_of_the_interpreter_that_will_run_the_script(tmp_path, monkeypatch):
    other = str(tmp_path / "python")
    Path(other).symlink_to(sys.executable)
    assert not look("x = (", python=other).ok
    monkeypatch.setattr(preflight, "_TRY", "")  # one that takes anything
    assert look("x = (", python=other).ok
    assert not look("x = (").ok
    assert not look("x = '\0'", python=other).ok


# --- asking -------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Return the list of questions put to interpreters."""
    questions = []
    real = preflight._ask

    def ask(python, python_path, names):
        questions.append(set(names))
        return real(python, python_path, names)

    monkeypatch.setattr(preflight, "_ask", ask)
    monkeypatch.setattr(preflight, "modules", InstalledModules())
    return questions


def test_an_interpreter_is_asked_once_for_what_it_has(asked):
    assert look("import os, json").ok
    assert look("import json\nimport os, re").ok
    assert look("import re").ok
    assert asked == [{"os", "json"}, {"re"}]


def test_what_is_missing_is_asked_again(asked, tmp_path):
    files = {NAME: "import late"}
    assert not check(files, NAME, python_path=[str(tmp_path)]).ok
    (tmp_path / "late.py").write_text("")
    assert check(files, NAME, python_path=[str(tmp_path)]).ok
    assert not check(files, NAME).ok, "another search path is another matter"


def test_threads_ask_one_after_the_other(asked):
    threads = [threading.Thread(target=look, args=("import os, json",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [{"os", "json"}]


def test_very_many_imports():
    text = "".join(f"import module_{k}\n" for k in range(20_000))
    assert look(text).reason == "train.py, line 1: No module named 'module_0'"
