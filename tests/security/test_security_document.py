"""THREATS.md speaks of every threat, and each proof that it names is there."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from tests.conftest import TESTS

ROOT = TESTS.parent
TEXT = (ROOT / "THREATS.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if re.match(r"\| [0-9]+ \|", line)
]
CLAIMS = ("Defended", "Partly", "Not defended", "Does not apply")
PROOF = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


@functools.cache
def found_in_file(name):
    """Return the names of the tests of a file, without running it."""
    path = ROOT / name
    if not path.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(
        n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
    )


def test_every_threat_has_a_row_in_order():
    assert [int(row[0]) for row in ROWS] == list(range(1, 78))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_says_what_holds_and_names_tests_that_exist(row):
    assert len(row) == 4
    _, threat, answer, proof = row
    assert threat
    assert answer.startswith(CLAIMS)
    assert len(answer) > 20
    named = PROOF.findall(proof)
    assert PROOF.sub("", proof).strip() == "", "nothing but proofs stands in the last column"
    assert named or answer.startswith(("Not defended", "Does not apply"))
    for file, test in named:
        assert test in found_in_file(file), f"{file} has no {test}"


def test_files_that_the_text_speaks_of_are_there():
    for path in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / path).is_file(), path


def test_the_files_of_this_folder_are_all_named():
    named = {file for file, _ in PROOF.findall(TEXT)}
    here = {f"tests/security/{p.name}" for p in TESTS.joinpath("security").glob("test_*.py")}
    assert here - named == {"tests/security/test_security_document.py"}
