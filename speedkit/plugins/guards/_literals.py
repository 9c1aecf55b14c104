"""What a script carries with it: weights in its text, and characters that look like others."""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
import unicodedata
from collections import Counter
from collections.abc import Iterator

from speedkit.plugins.guards._syntax import Issue, Script, quarantine, reject, texts

MAX_TEXT = 2000
"""Characters of a text constant that no reader will want to read."""
MAX_NUMBERS = 128
"""Numbers of one list, tuple, set or dictionary."""
MAX_DIGITS = 40
"""Digits of one number."""
MAX_GROWTH = 100_000
"""Bytes by which a script may grow beyond its start record."""
ENTROPY = 3.5
"""Bits a character; a ruled line has less, bytes coded in 16 or 64 characters have 4 to 6."""
_CODED = re.compile(r"[A-Za-z0-9+/=_\\-]{200,}")
_LOOK_ALIKE = ("Nd", "Nl", "No", "Cf", "Co", "Cn")


def find(node: Script, start: Script) -> Iterator[Issue]:
    """Yield constants that may hold weights, and characters that mislead a reader."""
    yield from _sizes(node, start)
    yield from _constants(node, start)
    yield from _characters(node, start)


def _sizes(node: Script, start: Script) -> Iterator[Issue]:
    growth = len(node.source.encode("utf-8", "replace")) - len(start.source.encode())
    if growth > MAX_GROWTH:
        yield reject(None, f"the script is {growth // 1000} kB longer than its start record")
    for match in _CODED.finditer(node.source):
        if match[0] not in start.source and entropy(match[0]) > ENTROPY:
            line = node.source.count("\n", 0, match.start()) + 1
            yield Issue(reject(None, "").level, line, f"{len(match[0])} characters of coded bytes")


def entropy(text: str | bytes) -> float:
    """Return the bits a character that the frequencies of the characters have."""
    counts = Counter(text).values()
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts)


def _constants(node: Script, start: Script) -> Iterator[Issue]:
    for at in node.nodes:
        if isinstance(at, ast.Constant):
            yield from _constant(at, start)
        elif isinstance(at, ast.List | ast.Tuple | ast.Set | ast.Dict):
            numbers = _numbers(at)
            if numbers > MAX_NUMBERS:
                make = reject if numbers > 8 * MAX_NUMBERS else quarantine
                yield make(at, f"{numbers} numbers in one literal")


def _constant(at: ast.Constant, start: Script) -> Iterator[Issue]:
    value = at.value
    if isinstance(value, bytes) and len(value) > 100:
        yield reject(at, f"{len(value)} bytes in one literal")
    elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        yield reject(at, f"a number of more than {MAX_DIGITS} digits")
    elif isinstance(value, str) and len(value) > MAX_TEXT and value not in start.strings:
        yield quarantine(at, f"{len(value)} characters in one literal")
    elif isinstance(value, str) and len(value) > 200 and not value.isascii():
        yield reject(at, f"{len(value)} characters that are not all ASCII in one literal")


def _numbers(node: ast.expr) -> int:
    values = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))
    return sum(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _characters(node: Script, start: Script) -> Iterator[Issue]:
    if node.source.isascii():
        return
    known = {name for _, name in _names(start)}
    for line, name in _names(node):
        if name not in known:
            yield Issue(reject(None, "").level, line, f"the name {name!r} is not plain ASCII")
    for at, text in texts(node.nodes):
        odd = {c for c in text if ord(c) > 126 and unicodedata.category(c) in _LOOK_ALIKE}
        if odd and text not in start.strings:
            yield reject(at, f"a text with characters that look like others: {ascii(text)[:60]}")


def _names(script: Script) -> Iterator[tuple[int, str]]:
    """Yield names that are not ASCII as they are written, before Python folds them."""
    if script.source.isascii():
        return
    try:
        for token in tokenize.generate_tokens(io.StringIO(script.source).readline):
            if token.type == tokenize.NAME and not token.string.isascii():
                yield token.start[0], token.string
    except (tokenize.TokenError, SyntaxError):  # what Python parsed, its tokenizer may refuse
        return
