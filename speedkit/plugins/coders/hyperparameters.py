"""Numeric hyperparameters of a training script: find them, and rewrite them in place."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from speedkit.core.syntax import quiet

CLASS_NAME = "Hyperparameters"
"""Name of the class whose attributes are hyperparameters."""
LARGEST = 10**18
"""Magnitude over which a constant expression is left alone."""
LARGEST_EXPONENT = 64

_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_BOM = "\ufeff"
# The line ends that Python's tokenizer knows; str.splitlines knows more.
_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True)
class Hyperparameter:
    """A number in a script.

    Attributes:
        name: name of the class attribute.
        value: its default; a float where the annotation says so, even if written as an int.
        start: offset of the expression in the UTF-8 bytes of the source.
        end: offset of the byte after it.
    """

    name: str
    value: int | float
    start: int
    end: int


@lru_cache(maxsize=64)
def find(source: str) -> Mapping[str, Hyperparameter]:
    """Return the numeric attributes of the script's ``Hyperparameters`` class, by name.

    Annotated and plain class attributes count, as does ``field(default=…)``. The value
    must be a constant expression of numbers; booleans, names and calls are passed over.
    Where a script has several such classes, or a class several lines for one name, the
    last one counts, as it does for Python.

    Raises:
        ValueError: the source is no Python.
    """
    body = _parse(source)
    offsets = _line_offsets(source)
    found: dict[str, Hyperparameter] = {}
    for name, expression, is_float in _attributes(body):
        found.pop(name, None)  # a later line hides an earlier one, number or not
        number = _number(expression)
        if number is not None:
            start, end = _span(expression, offsets)
            found[name] = Hyperparameter(name, float(number) if is_float else number, start, end)
    return MappingProxyType(found)


def rewrite(source: str, values: Mapping[str, int | float]) -> str:
    """Return the source with new values; every byte outside the replaced numbers stays.

    Args:
        source: the text of the script.
        values: by name; names that the script does not have are ignored.

    Raises:
        ValueError: the source is no Python, or would not read back as ``values``.
    """
    found = find(source)
    wanted = {name: value for name, value in values.items() if name in found}
    data = source.encode()
    for old in sorted((found[name] for name in wanted), key=lambda h: h.start, reverse=True):
        data = data[: old.start] + literal(wanted[old.name]).encode() + data[old.end :]
    text = data.decode()
    read = find(text)
    if any(name not in read or read[name].value != value for name, value in wanted.items()):
        raise ValueError("the rewritten script does not read back as it was meant")
    return text


def literal(value: int | float) -> str:
    """Return the number as Python source; it keeps its type and value."""
    return repr(value)


def _parse(source: str) -> ast.Module:
    try:
        with quiet():
            return ast.parse(source.removeprefix(_BOM))
    except SyntaxError as error:
        raise ValueError(f"{error.msg} (line {error.lineno})") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("its expressions are nested too deeply") from error


def _line_offsets(source: str) -> list[int]:
    data = source.encode()
    first = len(_BOM.encode()) if source.startswith(_BOM) else 0
    return [first, *(end.end() for end in _LINE_END.finditer(data))]


def _span(node: ast.expr, offsets: list[int]) -> tuple[int, int]:
    end_line, end_col = node.end_lineno, node.end_col_offset
    assert end_line is not None
    assert end_col is not None
    return offsets[node.lineno - 1] + node.col_offset, offsets[end_line - 1] + end_col


def _attributes(module: ast.Module) -> Iterator[tuple[str, ast.expr, bool]]:
    """Yield name, default and whether the annotation is ``float``, in the order of the source."""
    classes = [n for n in _classes(module.body) if n.name == CLASS_NAME]
    for statement in max(classes, key=lambda c: c.lineno).body if classes else []:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, _default(value), _is_float(statement.annotation)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, _default(value), False


def _classes(body: list[ast.stmt]) -> Iterator[ast.ClassDef]:
    """Yield classes at any depth of statements; expressions hold none and are not visited."""
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield statement
        for part in ("body", "orelse", "finalbody"):
            yield from _classes(getattr(statement, part, []))
        for handler in getattr(statement, "handlers", []):
            yield from _classes(handler.body)


def _is_float(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "float"


def _default(value: ast.expr) -> ast.expr:
    """Look through ``field(default=…)``."""
    if isinstance(value, ast.Call):
        name = value.func.attr if isinstance(value.func, ast.Attribute) else None
        name = value.func.id if isinstance(value.func, ast.Name) else name
        if name == "field":
            return next((k.value for k in value.keywords if k.arg == "default"), value)
    return value


def _number(node: ast.expr) -> int | float | None:
    """Return the value of a constant expression, None if it is something else."""
    try:
        return _evaluate(node)
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _evaluate(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _checked(value)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _checked(_UNARY[type(op)](_evaluate(operand)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _evaluate(left), _evaluate(right)
            if isinstance(op, ast.Pow) and abs(b) > LARGEST_EXPONENT:
                raise ValueError("the exponent is too large")
            return _checked(_BINARY[type(op)](a, b))
    raise ValueError("not a constant expression of numbers")


def _checked(value: Any) -> int | float:
    """Refuse what is not a finite number of reasonable size (a power may be complex)."""
    if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError("out of range")
    return value
