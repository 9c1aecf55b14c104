"""Reading scripts of others leaves the process's warnings as they were, in any thread."""

from __future__ import annotations

import ast
import warnings
from concurrent.futures import ThreadPoolExecutor

from speedkit.core.syntax import is_constant, quiet

WARNS = "x = '\\d' is 'a'\n" * 50


def test_threads_leave_the_filters_as_they_were():
    def read(number):
        for _ in range(40):
            with quiet():
                compile(WARNS, str(number), "exec")

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert warnings.filters == before


def test_it_is_quiet_inside_and_may_be_nested(recwarn):
    with quiet(), quiet():
        compile(WARNS, "script", "exec")
    assert not recwarn.list


def test_docstrings_are_constants():
    doc, code = ast.parse("'text'\nx = 1\n").body
    assert is_constant(doc)
    assert not is_constant(code)
