"""A fingerprint of code: equal for files that differ only in layout, comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping

from speedkit.core.preflight import parse
from speedkit.core.syntax import is_constant

MAX_PARSED = 2 * 1024 * 1024
"""Characters; a longer file is compared as text."""
_COOKIE = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_READS_DOCSTRINGS = ("__doc__", "getdoc", "doctest")
_BLOCKS = ("body", "orelse", "finalbody")


def fingerprint(files: Mapping[str, str]) -> str:
    """Return a hash of files, text by name.

    Python files count by their syntax tree without docstrings and other constants that stand
    as statements: layout and comments do not matter, and names, values and order do. Where
    docstrings are read by the code, they count. A file that is no Python, or does not parse,
    counts by its exact text.

    Returns:
        64 hexadecimal digits. They depend on the version of Python, whose trees differ.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        kind, content = _canonical(name, files[name])
        for part in (name, kind, content):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def same_code(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two sets of files, text by name, do the same as far as their syntax tells."""
    return one == other or fingerprint(one) == fingerprint(other)


def _canonical(name: str, text: str) -> tuple[str, str]:
    """Return what of a file counts, and of what kind it is."""
    if not name.endswith(".py") or len(text) > MAX_PARSED or _is_recoded(text):
        return "text", text
    try:
        return "tree", _dump(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return "text", text


def _is_recoded(text: str) -> bool:
    """Whether a comment has Python read the file in an encoding other than UTF-8."""
    cookies = (_COOKIE.match(line) for line in text.split("\n", 2)[:2])
    names = (match[1].lower().replace("_", "-") for match in cookies if match)
    return any(name not in ("utf-8", "utf8") for name in names)


def _dump(text: str) -> str:
    tree = parse(text, compiled=False)
    keep = any(word in text for word in _READS_DOCSTRINGS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.kind = None  # the u of u"text"
        if not keep:
            _drop_constants(node)
    return ast.dump(tree, annotate_fields=False)


def _drop_constants(node: ast.AST) -> None:
    """Take out of a node's blocks the statements that are a constant and nothing else."""
    for field in _BLOCKS:
        block = getattr(node, field, None)
        if isinstance(block, list) and block:
            kept = [s for s in block if not is_constant(s)]
            setattr(node, field, kept or [ast.Pass()])
