"""Which changes of a script leave it the same code, and which do not."""

from __future__ import annotations

import ast
import io
import random
import tokenize
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import speedkit
from speedkit.core.same_code import MAX_PARSED, fingerprint, same_code

SCRIPTS = Path(speedkit.__file__).parent / "records" / "mini" / "scripts"
RECORD = (SCRIPTS / "record_03.py").read_text(encoding="utf-8")
OTHER = (SCRIPTS / "record_04.py").read_text(encoding="utf-8")

CODE = '''\
"""Docstring."""
import torch

RATE = 0.02  # peak


class Model:
    """What it is."""

    width: int = 64

    def forward(self, x, y=1):
        """What it does."""
        if x > 0:
            return self.width * x + y
        return -x


for step in range(10):
    print(step, "a b")
'''


def of(text, name="train.py"):
    return fingerprint({name: text})


def test_it_is_a_hash():
    assert of(CODE) == of(CODE)
    assert len(of(CODE)) == 64
    assert int(of(CODE), 16) > 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# peak", "# the highest learning rate"),
        ("  # peak", ""),
        ('"""Docstring."""\n', ""),
        ('    """What it is."""\n\n', ""),
        ("What it does.", "Something else,\n        on two lines."),
        ("\n\n\nclass", "\nclass"),
        ("x, y=1", "x , y = 1,"),
        ('"a b"', "'a b'"),
        ('"a b"', '("a" " b")'),
        ("self.width * x + y", "((self.width * x) + y)"),
        ("range(10)", "range(1_0)"),
        ("0.02", "2e-2"),
        ("\n", "\r\n"),
        ('"""Docstring."""', '\ufeff"""Docstring."""'),
        ("import torch", '"a remark"; import torch'),
    ],
)
def test_what_does_not_matter(old, new):
    changed = CODE.replace(old, new)
    assert changed != CODE
    assert of(changed) == of(CODE)
    assert same_code({"train.py": CODE}, {"train.py": changed})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.02", "0.021"),
        ("RATE", "RATES"),
        ("range(10)", "range(10.0)"),
        ('"a b"', '"a  b"'),
        ('"a b"', 'b"a b"'),
        ("x, y=1", "y=1, *x"),
        ("y=1", "y=True"),
        ("x > 0", "x >= 0"),
        ("width: int", "width: float"),
        ("            return self", "            pass\n        return self"),
        ("import torch\n\nRATE = 0.02", "RATE = 0.02\nimport torch"),
        ("self.width * x + y", "self.width * (x + y)"),
        ("print(step", "print(-step"),
    ],
)
def test_what_matters(old, new):
    changed = CODE.replace(old, new)
    assert changed != CODE
    ast.parse(changed)
    assert of(changed) != of(CODE)
    assert not same_code({"train.py": CODE}, {"train.py": changed})


def test_docstrings_count_where_the_code_reads_them():
    code = '"""One."""\nimport argparse\nargparse.ArgumentParser(description=__doc__)\n'
    assert of(code) != of(code.replace("One", "Two"))


def test_a_function_of_a_docstring_alone_does_nothing():
    assert of('def f():\n    "text"\n') == of("def f():\n    pass\n") == of("def f(): ...\n")
    assert of("def f(): ...\n") != of("def f(): return 1\n")


def test_an_encoding_that_a_comment_names_counts():
    plain, recoded = 'x = "ä"\n', '# coding: latin-1\nx = "ä"\n'
    assert of(plain) == of(f"# coding: utf-8\n{plain}")
    assert of(plain) != of(recoded)
    assert of(plain) == of(f"\n\n{recoded}"), "only the first two lines can name one"


def test_names_of_files_and_their_borders_count():
    assert fingerprint({"a.py": "x = 1", "b.py": "y = 2"}) == fingerprint(
        {"b.py": "y=2", "a.py": "x=1"}
    )
    assert fingerprint({"a.py": "x = 1", "b.py": "y = 2"}) != fingerprint(
        {"a.py": "y = 2", "b.py": "x = 1"}
    )
    assert fingerprint({"a.txt": "b.txt"}) != fingerprint({"a.txtb.txt": ""})
    assert fingerprint({}) != fingerprint({"a.py": ""})


def test_other_files_count_by_their_text():
    assert of("x = 1", "config.json") != of("x  = 1", "config.json")


@pytest.mark.parametrize(
    "text",
    [
        "def f(:\n",
        "x = 'a\0b'",
        "x = '\ud800'",
        "(" * 300 + ")" * 300,
        "-" * 100_000 + "1",
        "x" + ".y" * 50_000,
        "x = 0x" + "f" * 10_000,
        "x = " + "1" * 10_000,
        "#" * (MAX_PARSED + 1),
    ],
    ids=lambda text: text[:8].encode("unicode-escape").decode(),
)
def test_what_does_not_parse_counts_by_its_text(text):
    assert of(text) == of(text)
    assert of(text) != of(text + " ")


# --- of any code --------------------------------------------------------------------------

KNOWN = of(RECORD)


@given(st.text() | st.text("()[]{}:='\"#\\ \n\tabc019_"))
def test_any_text_has_a_fingerprint(text):
    assert of(text) == of(text)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20))
def test_remarks_and_blank_lines_do_not_matter(seed, remark):
    rng = random.Random(seed)
    remark = remark.replace("coding", "") or "x"
    lines = RECORD.splitlines()
    ends = [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(RECORD).readline)
        if token.type == tokenize.NEWLINE
    ]
    for number in rng.sample(ends, 20):
        lines[number - 1] += rng.choice([f"  # {remark}", "   ", "\n\n", f"\n# {remark}"])
    changed = "\n".join(lines) + "\n"
    assert changed != RECORD
    assert of(changed) == KNOWN


@pytest.mark.parametrize("text", [RECORD, OTHER, CODE])
def test_layout_does_not_matter(text):
    assert of(ast.unparse(ast.parse(text))) == of(text)


def changes(tree):
    """Yield functions that each change what the code does in one place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield lambda node=node: setattr(node, "value", node.value + 1)
        elif isinstance(node, ast.Name):
            yield lambda node=node: setattr(node, "id", f"{node.id}_")
        elif isinstance(node, ast.Attribute):
            yield lambda node=node: setattr(node, "attr", f"{node.attr}_")
        elif isinstance(node, ast.BinOp):
            kind = ast.Sub if isinstance(node.op, ast.Add) else ast.Add
            yield lambda node=node, kind=kind: setattr(node, "op", kind())
        elif isinstance(node, ast.FunctionDef) and len(node.body) > 2:
            yield lambda node=node: node.body.pop()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_any_change_of_a_name_a_value_or_an_operator_matters(seed):
    tree = ast.parse(RECORD)
    random.Random(seed).choice(list(changes(tree)))()
    assert of(ast.unparse(tree)) != KNOWN


def test_records_differ():
    scripts = [path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.glob("record_*.py"))]
    assert len({of(text) for text in scripts}) == len(scripts) > 1
