"""The metrics line and the clock behind it: printed and measured as the start record does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from speedkit.plugins.guards._printing import LINE, form_of, parameters, passes_on
from speedkit.plugins.guards._syntax import (
    FUNCTIONS,
    Issue,
    Script,
    assigned,
    called_name,
    constant,
    dotted,
    last_name,
    names_in,
    quarantine,
    reject,
    targets_of,
    texts,
)

PRINTING = ("print", "write")
CLOCKS = ("time.time", "time.perf_counter")
WAITING = ("synchronize", "barrier")
"""Functions that return when the devices, or all ranks, have done their work."""
SPECS = ({""}, {""}, {".4f", ".5f", ".6f"}, {".0f", "d"}, {".2f"})
"""Formats that values of the line may have beside those of the start record."""
_SLOTS = ("step", "number of steps", "val_loss", "train_time")


@dataclass(frozen=True)
class Template:
    """An f-string that makes a metrics line.

    Attributes:
        form: its constant text, with {} for each value.
        values: source of each value.
        specs: format of each value, None where it is computed or converted.
    """

    node: ast.JoinedStr
    form: str
    values: tuple[str, ...]
    specs: tuple[str | None, ...]


def find(node: Script, start: Script) -> Iterator[Issue]:
    """Yield what is printed or timed otherwise than in the start record."""
    yield from _forms(node, start)
    yield from _printers(node, start)
    yield from _losses(node, start)
    yield from _clock(node, start)


# --- the line ---------------------------------------------------------------------------


@lru_cache(maxsize=32)
def templates(script: Script) -> tuple[Template, ...]:
    """Return the f-strings with a validation loss."""
    found = (_template(n) for n in script.nodes if isinstance(n, ast.JoinedStr))
    return tuple(t for t in found if "val_loss:" in t.form and "step:" in t.form)


def _template(node: ast.JoinedStr) -> Template:
    parts = [part for part in node.values if isinstance(part, ast.FormattedValue)]
    specs = (None if p.conversion != -1 else _spec(p.format_spec) for p in parts)
    return Template(node, form_of(node), tuple(ast.unparse(p.value) for p in parts), tuple(specs))


def _spec(spec: ast.expr | None) -> str | None:
    if spec is None:
        return ""
    parts = spec.values if isinstance(spec, ast.JoinedStr) else [spec]
    if all(isinstance(part, ast.Constant) for part in parts):
        return "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
    return None


def _forms(node: Script, start: Script) -> Iterator[Issue]:
    before = templates(start)
    if before and not templates(node):
        yield reject(None, "the metrics line is no longer printed as the start record does")
    for template in templates(node):
        if not template.form.isascii() or any(ord(c) < 32 and c != "\n" for c in template.form):
            yield reject(template.node, "the metrics line has characters that are not plain ASCII")
        elif not LINE.fullmatch(template.form):
            if template.form not in {t.form for t in before}:
                yield reject(template.node, f"the metrics line has another form: {template.form!r}")
        else:
            yield from _values(template, before)
    yield from _texts(node, start)


def _values(template: Template, before: tuple[Template, ...]) -> Iterator[Issue]:
    for slot, name in enumerate(_SLOTS):
        value, spec = template.values[slot], template.specs[slot]
        known = [t for t in before if len(t.values) > slot and LINE.fullmatch(t.form)]
        if spec not in SPECS[slot] and spec not in {t.specs[slot] for t in known}:
            yield reject(template.node, f"the printed {name} has another format: {spec!r}")
        if value not in {t.values[slot] for t in known} and not _is_plain(value, name):
            yield reject(template.node, f"the printed {name} is computed otherwise: {value[:80]}")


def _is_plain(value: str, slot: str) -> bool:
    """Whether a value is printed as it was measured."""
    node = ast.parse(value, mode="eval").body
    if slot == "train_time" and isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        sides = (node.left, node.right)
        if any(isinstance(s, ast.Constant) and s.value == 1000 for s in sides):
            return any(isinstance(s, ast.Name | ast.Attribute) for s in sides)
    if slot == "val_loss" and isinstance(node, ast.Call):
        if called_name(node) == "item" and isinstance(node.func, ast.Attribute):
            node = node.func.value
        elif called_name(node) == "float" and len(node.args) == 1:
            node = node.args[0]
    return isinstance(node, ast.Name | ast.Attribute)


def _texts(node: Script, start: Script) -> Iterator[Issue]:
    """Yield texts with parts of a metrics line that stand outside of f-strings."""
    for at, text in texts(node.nodes):
        if isinstance(node.parents.get(id(at)), ast.JoinedStr) or text in start.strings:
            continue
        if "val_loss:" in text or "train_time:" in text or re.search(r"step:[\d{%]", text):
            yield reject(at, f"makes a metrics line of text: {text[:60]!r}")


def _losses(node: Script, start: Script) -> Iterator[Issue]:
    """Yield statements that put a number of the script's own into the printed loss."""
    printed = {t.values[2] for t in templates(node) if LINE.fullmatch(t.form)}
    for at, name, value in node.assignments:
        if name not in printed or ast.unparse(at) in start.statements:
            continue
        numbers = (constant(n) for n in ast.walk(value))
        if any(isinstance(n, int | float) and n not in (0, 1) for n in numbers):
            yield reject(at, f"the printed val_loss is made up: {ast.unparse(at)[:80]}")


# --- the functions that print it -----------------------------------------------------------


def _printers(node: Script, start: Script) -> Iterator[Issue]:
    for template in templates(node):
        call = next((n for n in node.inside(template.node) if isinstance(n, ast.Call)), None)
        name = called_name(call) if call else ""
        if name in node.functions:
            yield from _printer(node.functions[name], start)
        elif name not in PRINTING:
            yield quarantine(template.node, "the metrics line is not printed where it is made")


def _printer(function: ast.FunctionDef | ast.AsyncFunctionDef, start: Script) -> Iterator[Issue]:
    before = start.functions.get(function.name)
    if before is not None and ast.unparse(before) == ast.unparse(function):
        return
    given = parameters(function)
    for at in ast.walk(function):
        if isinstance(at, ast.Name) and at.id in given and not isinstance(at.ctx, ast.Load):
            yield reject(at, f"{function.name} changes what it is given to print")
        printed = at.args if isinstance(at, ast.Call) and called_name(at) in PRINTING else []
        if not all(passes_on(argument, given) for argument in printed):
            yield reject(at, f"{function.name} prints something else than it is given")


# --- the clock --------------------------------------------------------------------------


@lru_cache(maxsize=32)
def clock_names(script: Script) -> frozenset[str]:
    """Return the names that a clock's reading, or the time so far, is kept under."""
    printed = (t.values[3] for t in templates(script) if LINE.fullmatch(t.form))
    sums = {name for value in printed for name in names_in(ast.parse(value, mode="eval"))}
    starts = {
        name
        for _, name, value in script.assignments
        if isinstance(value, ast.Call) and _is_clock(script, value)
    }
    return frozenset(sums - set(script.functions)) | starts


def _is_clock(script: Script, node: ast.AST) -> bool:
    """Whether this is ``time.perf_counter()`` or ``time.time()``, by a name that was imported."""
    return (
        isinstance(node, ast.Call)
        and not node.args
        and not node.keywords
        and dotted(node.func, script.imports) in CLOCKS
    )


def _clock(node: Script, start: Script) -> Iterator[Issue]:
    names = clock_names(node) | clock_names(start)
    if not clock_names(start):
        return
    for at, name, value in node.assignments:
        new = name in names and ast.unparse(at) not in start.statements
        if new and not _is_honest(node, at, value, names):
            yield reject(at, f"the clock is kept otherwise: {ast.unparse(at)[:80]}")
    yield from _hidden_times(node, start, names)
    yield from _resets(node, start, names)
    found, before = starts(node), starts(start)
    if len(found) > len(before):
        yield quarantine(
            found[-1], f"the clock is started at {len(found)} places, not {len(before)}"
        )
    late, before_late = _unpaired(node, names), _unpaired(start, names)
    if len(late) > len(before_late):
        yield quarantine(late[-1], "the clock is started again where it was not stopped before")
    unsynced, before_unsynced = _unsynced(node, names), _unsynced(start, names)
    if len(unsynced) > len(before_unsynced):
        yield quarantine(unsynced[-1], "the clock is read without waiting for the devices first")


def _hidden_times(node: Script, start: Script, names: frozenset[str]) -> Iterator[Issue]:
    """Yield places that give a time another value by other means than an assignment."""
    known = {name for _, name in _otherwise_bound(start)}
    for at, name in _otherwise_bound(node):
        if name in names and name not in known:
            make = quarantine if isinstance(at, ast.arg) else reject
            yield make(at, f"{name} stands for something else than the time so far")


def _otherwise_bound(script: Script) -> Iterator[tuple[ast.AST, str]]:
    """Yield names that are bound by parameters, loops, ``with`` and the like."""
    seen = {id(t) for n in script.nodes for t in targets_of(n) if not isinstance(n, ast.For)}
    for node in script.nodes:
        if isinstance(node, ast.arg):
            yield node, node.arg
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node, node.name
        elif isinstance(getattr(node, "ctx", None), ast.Store | ast.Del) and id(node) not in seen:
            yield node, last_name(node)


def _is_honest(script: Script, at: ast.AST, value: ast.expr, names: frozenset[str]) -> bool:
    """Whether a time is set to 0, to a clock's reading, or grows by what has passed."""
    if isinstance(at, ast.AugAssign):
        return isinstance(at.op, ast.Add) and _is_span(script, value, names)
    if isinstance(value, ast.Constant):
        return value.value == 0 and not isinstance(value.value, bool)
    return _is_clock(script, value)


def _is_span(script: Script, value: ast.expr, names: frozenset[str]) -> bool:
    """Whether this is ``clock() - started``, perhaps in milliseconds."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult):
        if isinstance(value.left, ast.Constant) and value.left.value == 1000:
            value = value.right
        elif isinstance(value.right, ast.Constant) and value.right.value == 1000:
            value = value.left
    return (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Sub)
        and (_is_clock(script, value.left) or last_name(value.left) in names)
        and last_name(value.right) in names
    )


def _resets(node: Script, start: Script, names: frozenset[str]) -> Iterator[Issue]:
    """Yield places in a loop at which the time so far is thrown away, or the clock moved on."""
    known = set(_conditions_of_resets(start, names))
    for at, condition in _reset_statements(node, names):
        if condition not in known:
            yield reject(at, f"the time so far is set to 0 under another condition: {condition}")


def _conditions_of_resets(script: Script, names: frozenset[str]) -> Iterator[str]:
    return (condition for _, condition in _reset_statements(script, names))


def _reset_statements(script: Script, names: frozenset[str]) -> Iterator[tuple[ast.AST, str]]:
    sums = {name for name in names if name not in _start_names(script)}
    for at, name, value in script.assignments:
        if name in sums and isinstance(at, ast.Assign) and isinstance(value, ast.Constant):
            outer = list(script.inside(at))
            loops = [i for i, n in enumerate(outer) if isinstance(n, ast.For | ast.While)]
            if loops:
                tests = [ast.unparse(n.test) for n in outer[: loops[0]] if isinstance(n, ast.If)]
                yield at, " and ".join(tests) or "none"


def _start_names(script: Script) -> set[str]:
    return {name for at in starts(script) for name, _ in assigned(at)}


@lru_cache(maxsize=32)
def starts(script: Script) -> tuple[ast.AST, ...]:
    """Return the statements that set a name to a clock's reading."""
    return tuple(
        node
        for node in script.nodes
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_clock(script, node.value or node)
    )


def _unpaired(script: Script, names: frozenset[str]) -> list[ast.AST]:
    """Return the starts in a loop that no stop goes before in the same block."""
    started = set(map(id, starts(script)))
    found: list[ast.AST] = []
    for block in script.blocks:
        stopped = False
        for at in block:
            if isinstance(at, ast.AugAssign) and last_name(at.target) in names:
                stopped = True
            elif id(at) in started:
                in_loop = any(isinstance(n, ast.For | ast.While) for n in script.inside(at))
                found += [at] if in_loop and not stopped else []
                stopped = False
    return found


def _unsynced(script: Script, names: frozenset[str]) -> list[ast.AST]:
    """Return the statements that add to the time with no synchronisation right before."""
    found: list[ast.AST] = []
    for block in script.blocks:
        for before, at in zip([None, *block], block, strict=False):
            is_sum = isinstance(at, ast.AugAssign) and last_name(at.target) in names
            waiting = called_name(getattr(before, "value", ast.Pass()))
            if is_sum and (waiting not in WAITING or waiting in script.functions):
                found.append(at)
    return found
