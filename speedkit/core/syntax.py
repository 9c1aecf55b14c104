"""What all that read the scripts of others as syntax trees have in common."""

from __future__ import annotations

import ast
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_filters = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Let Python not warn of what it compiles: escapes and the like in scripts of others.

    The filters of warnings belong to the process, and several threads may come here: one that
    restored them while another is inside would leave them wrong for good.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_constant(statement: ast.AST) -> bool:
    """Whether a statement is a constant and nothing else, as a docstring is."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
