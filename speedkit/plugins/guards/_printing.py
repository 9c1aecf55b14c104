"""What a script prints: nothing but its metrics line may pass for one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache

from speedkit.core.metrics import MAX_LINE, parse_line
from speedkit.plugins.guards._syntax import (
    FUNCTIONS,
    Issue,
    Script,
    called_name,
    last_name,
    leading_to,
    quarantine,
    reject,
    targets_of,
    words,
)

ANY = "\0"
"""Stands for a text that is not known; ``#`` stands for a number."""
LINE = re.compile(r"step:{}/{} val_loss:{} train_time:{}ms(?: step_avg:{}ms)?\n?")
"""The one form of a metrics line, with {} for each value."""
SAMPLES = (
    "step:#/# val_loss:# train_time:#ms",
    "step:#/# val_loss:# train_time:#ms step_avg:#ms",
    "s:# tel:#",
)
"""Metrics lines."""
TEXTUAL = words(
    "bytes chr decode format format_map fromhex join lower replace sub translate upper "
    "hex removeprefix removesuffix split splitlines partition rpartition strip"
)
"""Functions and methods that make texts."""
PASSING = words(
    "str repr enumerate zip sorted reversed iter next list tuple dict set map filter min max "
    "partial nullcontext"
)
"""Functions whose results hold what they are given."""
FILLING = words("append extend insert add update setdefault")
"""Methods that put something into a list, a set or a dictionary."""
DEPTH = 6
"""So many assignments is a name followed."""
_NUMBERS = re.compile(r"[0-9#.]+")
_CODES = re.compile(r"%[-+ 0#]*[0-9.*]*([a-zA-Z%])")
_SPEC = re.compile(r"[-+ ,_0-9.<>^=]*[bdeEfFgGnoxX%]")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def find(node: Script, start: Script) -> Iterator[Issue]:
    """Yield what is printed that could be read as a validation and is none."""
    yield from _whole_lines(node, start)
    for call, text in _printed(node):
        if ast.unparse(call) in start.calls or (_is_the_line(call) and ANY not in text):
            continue
        if could_be_metrics(text):
            what = ast.unparse(call)[:80]
            yield quarantine(call, f"prints what could pass for a metrics line: {what}")
    yield from _changed_printers(node, start)


def _whole_lines(node: Script, start: Script) -> Iterator[Issue]:
    """Yield metrics lines in the source, comments and docstrings included."""
    known = set(start.source.splitlines())
    for number, line in enumerate(node.source.splitlines(), 1):
        if line not in known and parse_line(line.strip()):
            yield Issue(reject(None, "").level, number, "a metrics line stands in the source")


def form_of(node: ast.JoinedStr) -> str:
    """Return the constant text of an f-string, with {} for each value."""
    parts = (str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
    return "".join(parts)


def _is_the_line(call: ast.Call) -> bool:
    """Whether a call prints the metrics line in its one form."""
    first = call.args[0] if call.args else None
    return isinstance(first, ast.JoinedStr) and bool(LINE.fullmatch(form_of(first)))


def could_be_metrics(text: str) -> bool:
    """Whether a line of a text, in which ANY and ``#`` stand for values, may be a validation."""
    lines = (_NUMBERS.sub("#", line) for line in text.split("\n"))
    return any(_fits(line.split(ANY), sample) for line in lines for sample in SAMPLES)


def _fits(parts: list[str], sample: str) -> bool:
    """Whether a sample begins and ends as the outer parts say, with the others in between."""
    if len(parts) == 1:
        return parts[0] == sample
    at, end = len(parts[0]), len(sample) - len(parts[-1])
    if at > end or not (sample.startswith(parts[0]) and sample.endswith(parts[-1])):
        return False
    for part in parts[1:-1]:
        found = sample.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


# --- who prints -------------------------------------------------------------------------


@lru_cache(maxsize=32)
def printers(script: Script) -> frozenset[str]:
    """Return the functions of a script that print a text they are given, and ``print``."""
    uses: dict[str, list[str]] = {}
    for name, function in script.functions.items():
        given = parameters(function)
        for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
            if any(passes_on(a, given) and not isinstance(a, ast.Constant) for a in call.args):
                uses.setdefault(name, []).append(_printer_name(script, call))
    return leading_to(("print",), uses)


def _printer_name(script: Script, call: ast.Call) -> str:
    """Return what a call prints with, if it prints to standard output or error."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("write", "writelines"):
        return "print" if (script.name_of(call.func) or "").startswith("sys.") else ""
    files = [k.value for k in call.keywords if k.arg == "file"]
    elsewhere = any(not (script.name_of(f) or "").startswith("sys.") for f in files)
    return "" if elsewhere else last_name(call.func)


def parameters(function: _Function) -> frozenset[str]:
    """Return the names of a function's parameters."""
    return frozenset(a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg))


def passes_on(node: ast.expr, names: frozenset[str]) -> bool:
    """Whether a text is printed as it was given, perhaps with the end of a line."""
    if isinstance(node, ast.Starred):
        node = node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return passes_on(node.left, names) and is_newline(node.right)
    if isinstance(node, ast.JoinedStr):
        values = [v.value for v in node.values if isinstance(v, ast.FormattedValue)]
        rest = [v for v in node.values if not isinstance(v, ast.FormattedValue)]
        return all(passes_on(v, names) for v in values) and all(map(is_newline, rest))
    return (isinstance(node, ast.Name) and node.id in names) or is_newline(node)


def is_newline(node: ast.expr) -> bool:
    """Whether this is the end of a line, or nothing."""
    return isinstance(node, ast.Constant) and node.value in ("\n", "")


def _changed_printers(node: Script, start: Script) -> Iterator[Issue]:
    """Yield printers that are given another meaning, or that something is wrapped around."""
    names = (printers(node) | printers(start)) - {"print"}
    known = {ast.unparse(f) for f in start.functions.values()}
    for at in node.nodes:
        if isinstance(at, FUNCTIONS) and at.name in names:
            if at.decorator_list and ast.unparse(at) not in known:
                yield quarantine(at, f"{at.name}, which prints, is decorated")
            elif node.functions[at.name] is not at:
                yield quarantine(at, f"{at.name}, which prints, is defined more than once")
        elif isinstance(at, ast.Name) and at.id in names and not isinstance(at.ctx, ast.Load):
            yield reject(at, f"gives {at.id}, which prints, another meaning")


# --- what is printed --------------------------------------------------------------------


def _printed(script: Script) -> Iterator[tuple[ast.Call, str]]:
    """Yield the calls that print, and their texts; those that pass a text on are left out."""
    names = printers(script)
    for call in script.nodes:
        if isinstance(call, ast.Call) and _printer_name(script, call) in names:
            outer = next((n for n in script.inside(call) if isinstance(n, FUNCTIONS)), None)
            given = parameters(outer) if outer else frozenset()
            if outer and outer.name in names and all(passes_on(a, given) for a in call.args):
                continue
            yield call, _call_text(script, call)


def _call_text(script: Script, call: ast.Call) -> str:
    options = {k.arg: text_of(script, k.value) for k in call.keywords if k.arg in ("sep", "end")}
    is_write = isinstance(call.func, ast.Attribute)
    text = options.get("sep", " ").join(text_of(script, argument) for argument in call.args)
    end = options.get("end", ANY if is_write else "\n")
    return text + (end if end.endswith("\n") else end + ANY)


def text_of(script: Script, node: ast.expr, depth: int = DEPTH) -> str:
    """Return what is known of the text of an expression, with ANY and ``#`` for its values."""
    text = _text_of(script, node, depth)
    return text if len(text) <= MAX_LINE else ANY


@lru_cache(maxsize=4096)
def _text_of(script: Script, node: ast.expr, depth: int) -> str:
    if isinstance(node, ast.Constant):
        value = node.value
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        return _NUMBERS.sub("#", text.replace(ANY, " "))
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(script, part, depth) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "#" if _is_number_form(node) else text_of(script, node.value, depth)
    if not depth:
        return ANY
    if not _is_textual(script, node):
        return "#"
    if isinstance(node, ast.Name):
        values = [v for v in _values(script).get(node.id, ()) if _is_textual(script, v)]
        return text_of(script, values[0], depth - 1) if len(values) == 1 else ANY
    return _operation(script, node, depth) if isinstance(node, ast.BinOp) else ANY


def _operation(script: Script, node: ast.BinOp, depth: int) -> str:
    """Return the text that an operator makes."""
    if isinstance(node.op, ast.Add):
        return text_of(script, node.left, depth) + text_of(script, node.right, depth)
    if isinstance(node.left, ast.Constant):
        if isinstance(node.op, ast.Mod):
            return _CODES.sub(_value, text_of(script, node.left, depth))
        rule = str(node.left.value)
        if isinstance(node.op, ast.Mult) and not set(rule) & set("".join(SAMPLES)):
            return rule
    return ANY


def _value(code: re.Match[str]) -> str:
    return ANY if code[1] in "sra%" else "#"


def _is_number_form(node: ast.FormattedValue) -> bool:
    spec = node.format_spec
    if not isinstance(spec, ast.JoinedStr) or node.conversion != -1:
        return False
    parts = [v.value for v in spec.values if isinstance(v, ast.Constant)]
    return len(parts) == len(spec.values) and bool(_SPEC.fullmatch("".join(map(str, parts))))


def _is_textual(script: Script, node: ast.AST) -> bool:
    """Whether an expression may hold a text that the script has made."""
    names = _textual_names(script)
    return any(not part or part in names for part in _parts(node))


def _parts(node: ast.AST) -> Iterator[str]:
    """Yield the names that an expression may have its text from; empty for a text of its own."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str | bytes):
            yield ""
    elif isinstance(node, ast.Name | ast.Attribute):
        yield last_name(node)
    elif isinstance(node, ast.Subscript):
        yield from _parts(node.value)
    elif isinstance(node, ast.Call) and called_name(node) not in PASSING:
        yield "" if called_name(node) in TEXTUAL else called_name(node) or "()"
    elif not isinstance(node, ast.Compare | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _parts(child)


@lru_cache(maxsize=32)
def _textual_names(script: Script) -> frozenset[str]:
    """Return the names, those of functions included, that may stand for a text."""
    uses = {
        name: {part for value in values for part in _parts(value)}
        for name, values in _values(script).items()
    }
    return leading_to(("", "__doc__"), uses) - {""}


@lru_cache(maxsize=32)
def _values(script: Script) -> dict[str, tuple[ast.expr, ...]]:
    """Return what names are set to, parameters are given and functions return, by name."""
    found: dict[str, list[ast.expr]] = {}
    for _, name, value in script.assignments:
        found.setdefault(name, []).append(value)
    for node in script.nodes:
        for name, value in _drawn(node):
            found.setdefault(name, []).append(value)
        if isinstance(node, FUNCTIONS):
            returned = (n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value)
            found.setdefault(node.name, []).extend(returned)
        if isinstance(node, ast.Call) and (function := script.functions.get(called_name(node))):
            for name, value in _given(function, node):
                found.setdefault(name, []).append(value)
    return {name: tuple(values) for name, values in found.items()}


def _drawn(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield names that hold a value, or parts of it, other than by an assignment."""
    if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        targets, values = [node.target], [node.iter]
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        targets, values = [node.optional_vars], [node.context_expr]
    elif isinstance(node, ast.Assign | ast.AugAssign):
        targets = [t.value for t in targets_of(node) if isinstance(t, ast.Subscript)]
        values = [node.value]
    elif isinstance(node, ast.Call) and called_name(node) in FILLING:
        targets = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        values = node.args
    else:
        return
    names = [last_name(n) for target in targets for n in ast.walk(target)]
    yield from ((name, value) for name in names if name for value in values)


def _given(function: _Function, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """Yield what a call gives each parameter of a function."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    names = names[1:] if names[:1] == ["self"] else names
    yield from zip(names, call.args, strict=False)
    yield from ((k.arg, k.value) for k in call.keywords if k.arg)
