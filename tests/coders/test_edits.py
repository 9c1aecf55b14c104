"""Replies of models become complete edits or exact errors, never half a file."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speedkit.core.prompting import END_MARKER
from speedkit.plugins.coders import _text
from speedkit.plugins.coders.edits import FORMATS, EditError, apply_reply, is_complete

OLD = '''"""Trains."""

import math


def rate(step):
    if step < 10:
        return 0.1
    return 0.01


def loss(step):
    x = math.exp(-step)
    return x


for step in range(20):
    print(step)
    print(rate(step))
    print(step)
'''
NEW = OLD.replace("return 0.1\n", "return 0.2\n")
FILES = {"train.py": OLD}
F = "```"


def apply(reply, fmt="search_replace", files=FILES, **fields):
    return apply_reply(reply, files, fmt, tuple(files), **{"finished": True, **fields})


def block(search, replace, name="train.py", fence=F, language="python"):
    head = f"{name}\n" if name else ""
    body = f"<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n"
    return head + (f"{fence}{language}\n{body}{fence}\n" if fence else body)


def full(text, name="train.py", fence=F, language="python"):
    return (f"{name}\n" if name else "") + f"{fence}{language}\n{text}{fence}\n"


def diff(hunks, name="train.py", language="diff"):
    head = f"--- {name}\n+++ {name}\n" if name else ""
    return f"{F}{language}\n{head}{hunks}{F}\n"


RATE = block("        return 0.1\n", "        return 0.2\n")
HUNK = (
    "@@ -7,3 +7,3 @@\n     if step < 10:\n"
    "-        return 0.1\n+        return 0.2\n     return 0.01\n"
)

GOOD = {
    "search_replace": {
        "plain": RATE,
        "prose around": f"HYPOTHESIS: faster.\n\nFirst:\n\n{RATE}\nThat is all.\n",
        "end marker": RATE + f"\n{END_MARKER}\n",
        "end marker in bold": RATE + f"\n**{END_MARKER}**\n",
        "no name": block("        return 0.1\n", "        return 0.2\n", name=""),
        "no fence": block("        return 0.1\n", "        return 0.2\n", fence=""),
        "fence not closed": RATE.rstrip().removesuffix(F),
        "name behind the fence": block(
            "        return 0.1\n", "        return 0.2\n", name="", language="python train.py"
        ),
        "name as attribute": block(
            "        return 0.1\n",
            "        return 0.2\n",
            name="",
            language='python title="train.py"',
        ),
        "name in bold": block(
            "        return 0.1\n", "        return 0.2\n", name="**`train.py`**:"
        ),
        "name as heading": block(
            "        return 0.1\n", "        return 0.2\n", name="### train.py"
        ),
        "name with label": block(
            "        return 0.1\n", "        return 0.2\n", name="File: train.py"
        ),
        "longer fence": block("        return 0.1\n", "        return 0.2\n", fence="`" * 5),
        "tilde fence": block("        return 0.1\n", "        return 0.2\n", fence="~~~"),
        "longer markers": RATE.replace("<<<<<<<", "<<<<<<<<").replace("=======", "========="),
        "crlf": RATE.replace("\n", "\r\n"),
        "byte order mark": "\ufeff" + RATE,
        "blank at line ends": block("        return 0.1   \n", "        return 0.2\n"),
        "less indentation": block("return 0.1\n", "return 0.2\n"),
        "more indentation": block(
            "      if step < 10:\n          return 0.1\n",
            "      if step < 10:\n          return 0.2\n",
        ),
        "a no-op beside an edit": block("import math\n", "import math\n") + RATE,
        "two steps": block("return 0.1\n", "return 0.3\n") + block("return 0.3\n", "return 0.2\n"),
        "two in one fence": RATE.replace(
            "<<<<<<< SEARCH\n",
            "<<<<<<< SEARCH\nimport math\n=======\nimport math\n>>>>>>> REPLACE\n<<<<<<< SEARCH\n",
        ),
        "another block before": f"Now:\n{F}bash\ntorchrun train.py\n{F}\n{RATE}",
    },
    "whole": {
        "plain": full(NEW),
        "no name": full(NEW, name=""),
        "no language": full(NEW, language=""),
        "other language": full(NEW, language="Python"),
        "prose around": f"HYPOTHESIS: x.\n\n{full(NEW)}\nDone.\n",
        "end marker": full(NEW) + END_MARKER,
        "longer fence": full(NEW, fence="`" * 4),
        "tilde fence": full(NEW, fence="~~~~"),
        "crlf": full(NEW).replace("\n", "\r\n"),
        "a command beside it": f"{F}bash\npython train.py\n{F}\n\n{full(NEW, name='')}",
        "a snippet without a name beside it": f"{F}python\nreturn 0.2\n{F}\n\n{full(NEW)}",
        "given twice alike": full(NEW) + "\n" + full(NEW),
        "name behind the fence": full(NEW, name="", language="python:train.py"),
        "no newline at the end": full(NEW.rstrip("\n") + "\n"),
    },
    "udiff": {
        "plain": diff(HUNK),
        "no line numbers": diff(HUNK.replace("@@ -7,3 +7,3 @@", "@@ ... @@")),
        "wrong line numbers": diff(HUNK.replace("-7,3 +7,3", "-90,1 +4,44")),
        "no name": diff(HUNK, name=""),
        "no language": diff(HUNK, language=""),
        "a/ and b/": diff(HUNK).replace("--- ", "--- a/").replace("+++ ", "+++ b/"),
        "git head": diff(HUNK).replace(
            "--- ", "diff --git a/train.py b/train.py\nindex 12..34 100644\n--- "
        ),
        "with times": diff(HUNK).replace("train.py\n", "train.py\t2024-01-01\n"),
        "no @@": diff(HUNK.split("\n", 1)[1]),
        "crlf": diff(HUNK).replace("\n", "\r\n"),
        "blank context without its space": diff(
            "@@ @@\n-        return 0.1\n+        return 0.2\n"
            "     return 0.01\n\n\n def loss(step):\n"
        ),
        "blank line at the end": diff(HUNK + "\n"),
        "no newline at the end": diff(HUNK + "\\ No newline at end of file\n"),
        "less indentation": diff("@@ @@\n-return 0.1\n+return 0.2\n"),
        "another block before": f"{F}text\nwhy\n{F}\n{diff(HUNK)}",
    },
}

BAD = {
    "search_replace": {
        "empty": ("  \n\n", "is empty"),
        "no edit": ("I would lower the learning rate.", "no line <<<<<<< SEARCH"),
        "refusal": ("I'm sorry, but I can't help with that.", "no line <<<<<<< SEARCH"),
        "nan": ('{"edit": NaN}', "no line <<<<<<< SEARCH"),
        "whole file instead": (full(NEW), "no line <<<<<<< SEARCH"),
        "absent": (
            block("        return 0.15\n", "        return 0.2\n"),
            "edit 1 quotes lines that are not in train.py",
        ),
        "absent, nearest": (
            block("    if step < 10:\n        return 0.15\n", "pass\n"),
            "lines of train.py:\n    7 |     if step < 10:\n    8 |         return 0.1",
        ),
        "absent, difference": (
            block("    if step < 10:\n        return 0.15\n", "pass\n"),
            "Line 2 of the quote is '        return 0.15', but line 8 of the file is"
            " '        return 0.1'.",
        ),
        "tabs": (
            block("\tif step < 10:\n\t\treturn 0.1\n", "\tif step < 10:\n\t\treturn 0.2\n"),
            r"'\tif step < 10:'",
        ),
        "nothing similar": (
            block("zzzzzzzz = qqqqqq\n", "pass\n"),
            "No lines of the file are similar",
        ),
        "ambiguous": (
            block("    print(step)\n", "    pass\n"),
            "occur 2 times in train.py, at lines 18, 20",
        ),
        "empty search": (block("", "x = 1\n"), "quotes no line of train.py"),
        "blank search": (block("\n\n", "x = 1\n"), "quotes blank lines only"),
        "no-op": (block("import math\n", "import math\n"), "changes nothing"),
        "no divider": (RATE.replace("=======\n", ""), "edit 1 has no line ======="),
        "not closed": (RATE.replace(">>>>>>> REPLACE\n", ""), "edit 1 is cut off"),
        "next begins inside": (
            RATE.replace(">>>>>>> REPLACE\n", "") + RATE,
            "edit 1 is not closed by >>>>>>> REPLACE before the next",
        ),
        "end without beginning": (
            RATE.replace("<<<<<<< SEARCH\n", ""),
            "REPLACE without <<<<<<< SEARCH",
        ),
        "second of two absent": (RATE + block("nowhere()\n", "pass\n"), "edit 2 quotes lines"),
        "syntax": (
            block("    return x\n", "    return (x\n"),
            "train.py would be no valid Python: line 14: '(' was never closed: 'return (x'",
        ),
        "nul": (block("    return x\n", "    return '\0'\n"), "line 14: there is a NUL"),
        "surrogate": (block("    return x\n", "    return '\ud800'\n"), "no valid Unicode"),
        "deep": (
            block("    return x\n", f"    return {'-' * 100_000}x\n"),
            "no valid Python",
        ),
        "absolute path": (
            block("x\n", "y\n", name="/etc/passwd"),
            "'/etc/passwd' cannot be changed",
        ),
        "parent folder": (block("x\n", "y\n", name="../train.py"), "'../train.py' cannot"),
        "inside": (block("x\n", "y\n", name="a/../train.py"), "'a/../train.py' cannot"),
        "dot": (block("x\n", "y\n", name="./train.py"), "'./train.py' cannot"),
        "backslashes": (block("x\n", "y\n", name=r"..\train.py"), "cannot be changed"),
        "hook": (block("x\n", "y\n", name=".git/hooks/pre-commit"), "cannot be changed"),
        "hidden": (block("x\n", "y\n", name=".bashrc"), "'.bashrc' cannot be changed"),
        "nul in a name": (block("x\n", "y\n", name="train.py\0"), "cannot be changed"),
        "sibling prefix": (block("x\n", "y\n", name="train.py.sh"), "'train.py.sh' cannot"),
        "other file": (block("x\n", "y\n", name="other.py"), "files that can be changed: train.py"),
        "other file behind the fence": (
            block("x\n", "y\n", name="", language="python other.py"),
            "'other.py' cannot be changed",
        ),
        "elision": (
            block("    return x\n", "    # ... rest of the function unchanged ...\n    return x\n"),
            "stands for code that is left out",
        ),
        "unclear indentation": (
            block("      if step < 10:\n          return 0.1\n", "if step < 10:\n    return 0.2\n"),
            "its place is unclear",
        ),
    },
    "whole": {
        "empty": ("", "is empty"),
        "no block": (NEW, "no file in the answer"),
        "one word": ("sorry", "no file in the answer"),
        "wrong fence": (f"'''python\n{NEW}'''\n", "no file in the answer"),
        "not closed": (full(NEW).rstrip().removesuffix(F), "is cut off"),
        "unchanged": (full(OLD), "changes nothing"),
        "syntax": (full(NEW.replace("(-step)", "(-step")), "line 13: '(' was never closed"),
        "two versions": (full(NEW) + full(NEW + "x = 1\n"), "more than once"),
        "two without names": (full(NEW, "") + full(NEW + "x = 1\n", ""), "several blocks"),
        "only a command": (f"{F}bash\npython train.py\n{F}\n", "no file in the answer"),
        "elision": (full("import math\n# ... existing code ...\nprint(1)\n"), "is left out"),
        "rest": (full("import math\n# the rest of the file stays the same\n"), "is left out"),
        "other file": (full(NEW, name="setup.py"), "'setup.py' cannot be changed"),
        "link": (full(NEW, name="/proc/self/cwd/train.py"), "cannot be changed"),
        "empty block": (full(""), "would be empty"),
    },
    "udiff": {
        "no fence": (f"--- train.py\n+++ train.py\n{HUNK}", "no edit in the answer"),
        "not closed": (diff(HUNK).rstrip().removesuffix(F), "is cut off"),
        "absent": (diff(HUNK.replace("0.01", "0.011")), "hunk 1 quotes lines that are not in"),
        "ambiguous": (diff("@@ @@\n-    print(step)\n"), "hunk 1 quotes lines that occur 2 times"),
        "ambiguous in spite of its number": (
            diff("@@ -18,1 +18,1 @@\n-    print(step)\n+    pass\n"),
            "occur 2 times",
        ),
        "no context": (diff("@@ @@\n+x = 1\n"), "hunk 1 quotes no line"),
        "no change": (diff("@@ @@\n import math\n"), "hunk 1 has no line that begins with - or +"),
        "no-op": (diff("@@ @@\n-import math\n+import math\n"), "changes nothing"),
        "no hunk": (diff(""), "no edit in the answer"),
        "context without a space": (
            diff("@@ @@\nimport math\n-x\n+y\n"),
            "begins with neither a space",
        ),
        "other file": (diff(HUNK, name="other.py"), "'other.py' cannot be changed"),
        "absolute path": (diff(HUNK, name="/etc/passwd"), "'/etc/passwd' cannot be changed"),
        "parent folder": (diff(HUNK, name="a/../../train.py"), "cannot be changed"),
        "created": (diff(HUNK).replace("--- train.py", "--- /dev/null"), "created or deleted"),
        "deleted": (diff(HUNK).replace("+++ train.py", "+++ /dev/null"), "created or deleted"),
        "symlink": (
            f"{F}diff\ndiff --git a/train.py b/train.py\nnew file mode 120000\n{HUNK}{F}\n",
            "cannot be created",
        ),
        "rename": (
            f"{F}diff\nrename from train.py\nrename to x.py\n{HUNK}{F}\n",
            "cannot be renamed",
        ),
        "binary": (f"{F}diff\nGIT binary patch\n{HUNK}{F}\n", "as binary data"),
        "second of two absent": (diff(HUNK + "@@ @@\n-nowhere()\n"), "hunk 2 quotes lines"),
    },
}


def cases(table):
    return [
        pytest.param(f, v, id=f"{f}-{k}") for f, group in table.items() for k, v in group.items()
    ]


def test_the_tables_are_long_enough():
    assert len(cases(GOOD)) >= 40
    assert len(cases(BAD)) >= 60


@pytest.mark.parametrize(("fmt", "reply"), cases(GOOD))
def test_good_replies(fmt, reply):
    result = apply(reply, fmt)
    assert result.files == {"train.py": NEW}
    assert result.changed == ("train.py",)


@pytest.mark.parametrize(("fmt", "case"), cases(BAD))
def test_bad_replies(fmt, case):
    reply, message = case
    with pytest.raises(EditError) as caught:
        apply(reply, fmt)
    assert message in str(caught.value)


# --- line ends --------------------------------------------------------------------------


def test_crlf_files_keep_their_line_ends():
    files = {"train.py": OLD.replace("\n", "\r\n")}
    for fmt, reply in (("search_replace", RATE), ("whole", full(NEW)), ("udiff", diff(HUNK))):
        assert apply(reply, fmt, files).files["train.py"] == NEW.replace("\n", "\r\n")


def test_lines_that_are_not_edited_keep_their_ends():
    mixed = OLD.replace("import math\n", "import math\r\n")
    result = apply(RATE, files={"train.py": mixed})
    assert result.files["train.py"] == NEW.replace("import math\n", "import math\r\n")


def test_a_last_line_without_an_end_can_be_edited_and_followed():
    files = {"train.py": "x = 1\ny = 2"}
    assert apply(block("y = 2\n", "y = 3\n"), files=files).files["train.py"] == "x = 1\ny = 3\n"
    reply = diff("@@ @@\n x = 1\n y = 2\n+z = 3\n")
    assert apply(reply, "udiff", files).files["train.py"] == "x = 1\ny = 2\nz = 3\n"


def test_tabs_and_unusual_characters_survive():
    old = "if True:\n\tx = 'a\x0cb\u2028c'\n\ty = 2\n"
    reply = block("\ty = 2\n", "\ty = 'é\u2028𝒳'\n")
    new = apply(reply, files={"train.py": old}).files["train.py"]
    assert new == "if True:\n\tx = 'a\x0cb\u2028c'\n\ty = 'é\u2028𝒳'\n"


# --- what may change --------------------------------------------------------------------


def test_only_editable_files_change():
    files = {"train.py": OLD, "data.py": "x = 1\n"}
    reply = block("x = 1\n", "x = 2\n", name="data.py")
    with pytest.raises(EditError, match=r"'data.py' cannot be changed"):
        apply_reply(reply, files, "search_replace", ("train.py",), finished=True)
    result = apply_reply(reply, files, "search_replace", tuple(files), finished=True)
    assert result.files == {"train.py": OLD, "data.py": "x = 2\n"}
    assert result.changed == ("data.py",)


def test_with_two_files_a_name_is_needed_and_carries_over():
    files = {"a.py": "x = 1\ny = 1\n", "b.py": "x = 1\n"}
    with pytest.raises(EditError, match="does not say which file"):
        apply(block("x = 1\n", "x = 2\n", name=""), files=files)
    reply = block("x = 1\n", "x = 2\n", name="a.py") + block("y = 1\n", "y = 2\n", name="")
    assert apply(reply, files=files).files == {"a.py": "x = 2\ny = 2\n", "b.py": "x = 1\n"}
    both = full("x = 3\n", name="a.py") + full("x = 4\n", name="b.py")
    assert apply(both, "whole", files).files == {"a.py": "x = 3\n", "b.py": "x = 4\n"}
    two = (
        f"{F}diff\n--- a/a.py\n+++ b/a.py\n@@ @@\n-y = 1\n+y = 2\n"
        f"--- a/b.py\n+++ b/b.py\n@@ @@\n-x = 1\n+x = 2\n{F}\n"
    )
    assert apply(two, "udiff", files).files == {"a.py": "x = 1\ny = 2\n", "b.py": "x = 2\n"}
    with pytest.raises(EditError, match="different ones"):
        apply(two.replace("+++ b/a.py", "+++ b/b.py"), "udiff", files)


def test_all_edits_or_none():
    files = dict(FILES)
    with pytest.raises(EditError):
        apply(RATE + block("nowhere\n", "x\n"), files=files)
    assert files == FILES


# --- the trap of fences and markers in code ---------------------------------------------

FENCED = OLD.replace('"""Trains."""', f'"""Trains.\n\n{F}\nexample\n{F}\n"""')


def test_code_with_fences_in_strings():
    new = FENCED.replace("0.1\n", "0.2\n")
    for text in (full(new), f"Before:\n{F}python\nreturn 0.1\n{F}\n{full(new)}"):
        assert apply(text, "whole", {"train.py": FENCED}).files["train.py"] == new
    assert apply(RATE, files={"train.py": FENCED}).files["train.py"] == new
    assert apply(diff(HUNK), "udiff", {"train.py": FENCED}).files["train.py"] == new


def test_code_with_a_divider_in_a_string():
    old = OLD.replace('"""Trains."""', '"""\nTrains\n=======\n"""')
    reply = block('=======\n"""\n', '-------\n"""\n')
    new = apply(reply, files={"train.py": old}).files["train.py"]
    assert new == old.replace("=======", "-------")
    with pytest.raises(EditError, match="read in several ways"):
        apply(block("Trains\n=======\n", "Learns\n=======\n"), files={"train.py": old})


def test_a_fragment_is_no_file():
    old = "".join(f"x{i} = {i}\n" for i in range(100))
    with pytest.raises(EditError, match="2 lines, but the file has 100"):
        apply(full("x = 1\ny = 2\n"), "whole", {"train.py": old})
    new = old.replace("= 7\n", "= 8\n")
    reply = full("x7 = 8\n", name="") + "So:\n" + full(new, name="")
    assert apply(reply, "whole", {"train.py": old}).files["train.py"] == new


@pytest.mark.parametrize(
    ("comment", "stands_for_code"),
    [
        ("# original code", True),
        ("# same code as above", True),
        ("# Original code here ...", True),
        ("# existing code for the loop", True),
        ("# Original code divided by 10, which is slower", False),
        ("# same code path for all ranks", False),
    ],
)
def test_a_remark_on_code_is_no_elision(comment, stands_for_code):
    reply = block("    return x\n", f"    {comment}\n    return 2 * x\n")
    if stands_for_code:
        with pytest.raises(EditError, match="is left out"):
            apply(reply)
    else:
        assert comment in apply(reply).files["train.py"]


def test_a_file_with_a_byte_order_mark_can_be_edited():
    result = apply(RATE, files={"train.py": "\ufeff" + OLD})
    assert result.files == {"train.py": "\ufeff" + NEW}


def test_an_elision_of_the_old_file_may_stay():
    old = OLD + "# ... existing code of others ...\n"
    assert apply(RATE, files={"train.py": old}).changed == ("train.py",)


def test_warnings_of_the_compiler_are_no_errors(recwarn):
    apply(block("    return x\n", "    return '\\d'\n"))
    assert not recwarn.list


# --- size -------------------------------------------------------------------------------


def test_a_reply_of_ten_megabytes_is_the_limit():
    with pytest.raises(EditError, match="at most 10485760"):
        apply("x" * (_text.MAX_REPLY + 1))
    filler = "long prose\n" * ((_text.MAX_REPLY - 1000) // 11)
    assert apply(filler + RATE).files == {"train.py": NEW}


def test_a_long_absent_quote_is_answered_quickly():
    lines = [f"    value_{i} = compute({i})" for i in range(5000)]
    file = {"train.py": "def f():\n" + "\n".join(lines) + "\n"}
    quote = "\n".join(lines[:4000]).replace("compute(3999)", "computed(3999)") + "\n"
    with pytest.raises(EditError, match=r"Line 4000 of the quote") as caught:
        apply(block(quote, "pass\n"), files=file)
    assert len(str(caught.value)) < 10_000


LARGE = {
    "fences": "```a\n```\n",
    "edits": "<<<<<<< SEARCH\nx1 = 1\n=======\nx1 = 1\n>>>>>>> REPLACE\n",
    "hunks": "```diff\n@@ @@\n-x1 = 1\n+x1 = 1\n```\n",
    "stars": "*" * 1000,
    "backticks": "`" * 1000,
    "remarks": "# rest of the code ",
    "blanks": "<<<<<<< SEARCH" + " " * 1000,
}


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("piece", LARGE.values(), ids=LARGE)
def test_no_large_reply_takes_long(fmt, piece):
    file = {"train.py": "".join(f"x{i} = {i}\n" for i in range(500))}
    start = time.process_time()
    with pytest.raises(EditError):
        apply(piece * (1024 * 1024 // len(piece)), fmt, file)
    assert time.process_time() - start < 10


# --- the end of a reply -----------------------------------------------------------------

TWO = RATE + "\nand\n\n" + block("    return x\n", "    return 2 * x\n")
TWICE = NEW.replace("return x", "return 2 * x")
CUTTABLE = {
    "search_replace": (TWO, TWICE),
    "whole": (full(FENCED.replace("0.1\n", "0.2\n")), FENCED.replace("0.1\n", "0.2\n")),
    "udiff": (diff(HUNK + "@@ @@\n-    return x\n+    return 2 * x\n"), TWICE),
}


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_reply_cut_at_any_byte_is_refused_or_complete(fmt):
    reply, new = CUTTABLE[fmt]
    data = f"HYPOTHESIS: é faster.\n\n{reply}\n{END_MARKER}\n".encode()
    outcomes = []
    for end in range(len(data) + 1):
        text = data[:end].decode("utf-8", "ignore")
        try:
            result = apply(text, fmt, finished=False)
        except EditError:
            outcomes.append(False)
        else:
            assert result.files == {"train.py": new}
            assert is_complete(text)
            outcomes.append(True)
    first = outcomes.index(True)
    assert first == len(data) - 1
    assert all(outcomes[first:])


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_single_edit_cut_at_any_byte_is_whole_even_without_a_marker(fmt):
    reply, new = {
        "search_replace": (RATE, NEW),
        "whole": CUTTABLE["whole"],
        "udiff": (diff(HUNK), NEW),
    }[fmt]
    results = set()
    for end in range(len(reply) + 1):
        try:
            results.add(apply(reply[:end], fmt).files["train.py"])
        except EditError:
            results.add(OLD)
    assert results == {OLD, new}


def test_without_a_marker_the_word_of_the_server_is_needed():
    with pytest.raises(EditError, match="breaks off"):
        apply(RATE, finished=False)
    assert apply(RATE, finished=True).files == {"train.py": NEW}


# --- anything ---------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "<<<<<<< SEARCH\n",
            "=======\n",
            ">>>>>>> REPLACE\n",
            f"{F}python\n",
            f"{F}\n",
            f"{F}diff\n",
        ),
        *("train.py\n", "--- train.py\n", "+++ train.py\n", "@@ @@\n", "    print(step)\n", " \n"),
        *(
            "-    return x\n",
            "+    return 1\n",
            "    return x\n",
            "import math\n",
            f"{END_MARKER}\n",
        ),
        *("../x.py\n", "\0", "\r\n", "\r", "\ud800", "HYPOTHESIS: ", "~~~\n", "é", OLD, NEW, "NaN"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(PIECES | st.text(max_size=20), max_size=25).map("".join), st.sampled_from([*FORMATS])
)
@example("<<<<<<< SEARCH", "search_replace")
def test_no_text_crashes_and_every_result_is_a_program(text, fmt):
    try:
        result = apply(text, fmt)
    except EditError:
        return
    assert set(result.files) == {"train.py"}
    assert result.files["train.py"] != OLD
    compile(result.files["train.py"], "train.py", "exec")


NAMES = st.text(alphabet="abtrainpy./\\~-_ \0\n", min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(NAMES)
def test_no_name_reaches_another_file(name):
    for fmt, reply in (
        ("search_replace", block("    return x\n", "    return 1\n", name=name)),
        ("whole", full(NEW, name=name)),
        ("udiff", diff(HUNK, name=name)),
    ):
        try:
            assert set(apply(reply, fmt).files) == {"train.py"}
        except EditError:
            continue
