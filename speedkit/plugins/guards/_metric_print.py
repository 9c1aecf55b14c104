"""The metrics line and the clock behind it: printed and measured as the start record does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from speedkit.plugins.guards._syntax import (
    FUNCTIONS,
    Issue,
    Script,
    assigned,
    blocks,
    called_name,
    constant,
    dotted,
    last_name,
    names_in,
    quarantine,
    reject,
    texts,
)

LINE = re.compile(r"step:{}/{} val_loss:{} train_time:{}ms(?: step_avg:{}ms)?\n?")
"""The one form of a metrics line, with {} for each value."""
PRINTING = ("print", "write")
CLOCKS = ("time.time", "time.perf_counter")
SPECS = ({""}, {""}, {".4f", ".5f", ".6f"}, {".0f", "d"}, {".2f"})
"""Formats that values of the line may have beside those of the start record."""
WHOLE_STEPS = 2
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
    yield from _untimed_work(node, start)


# --- the line ---------------------------------------------------------------------------


@lru_cache(maxsize=32)
def templates(script: Script) -> tuple[Template, ...]:
    """Return the f-strings with a validation loss."""
    found = (_template(n) for n in script.nodes if isinstance(n, ast.JoinedStr))
    return tuple(t for t in found if "val_loss:" in t.form and "step:" in t.form)


def _template(node: ast.JoinedStr) -> Template:
    form, values, specs = "", [], []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            form += "{}"
            values.append(ast.unparse(part.value))
            specs.append(None if part.conversion != -1 else _spec(part.format_spec))
        elif isinstance(part, ast.Constant):
            form += str(part.value)
    return Template(node, form, tuple(values), tuple(specs))


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
    for at in node.nodes:
        for name, value in assigned(at):
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
    parameters = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    for at in ast.walk(function):
        if isinstance(at, ast.Name) and at.id in parameters and not isinstance(at.ctx, ast.Load):
            yield reject(at, f"{function.name} changes what it is given to print")
        printed = at.args if isinstance(at, ast.Call) and called_name(at) in PRINTING else []
        if not all(_passes_on(argument, parameters) for argument in printed):
            yield reject(at, f"{function.name} prints something else than it is given")


def _passes_on(node: ast.expr, parameters: set[str]) -> bool:
    if isinstance(node, ast.Starred):
        node = node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _passes_on(node.left, parameters) and _is_newline(node.right)
    if isinstance(node, ast.JoinedStr):
        values = [v.value for v in node.values if isinstance(v, ast.FormattedValue)]
        rest = [v for v in node.values if not isinstance(v, ast.FormattedValue)]
        return all(_passes_on(v, parameters) for v in values) and all(map(_is_newline, rest))
    return (isinstance(node, ast.Name) and node.id in parameters) or _is_newline(node)


def _is_newline(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in ("\n", "")


# --- the clock --------------------------------------------------------------------------


@lru_cache(maxsize=32)
def clock_names(script: Script) -> frozenset[str]:
    """Return the names that a clock's reading, or the time so far, is kept under."""
    printed = (t.values[3] for t in templates(script) if LINE.fullmatch(t.form))
    sums = {name for value in printed for name in names_in(ast.parse(value, mode="eval"))}
    starts = {
        name
        for node in script.nodes
        for name, value in assigned(node)
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
    for at in node.nodes:
        for name, value in assigned(at):
            new = name in names and ast.unparse(at) not in start.statements
            if new and not _is_honest(node, at, value, names):
                yield reject(at, f"the clock is kept otherwise: {ast.unparse(at)[:80]}")
    yield from _resets(node, start, names)
    starts, before = _starts(node), _starts(start)
    if len(starts) > len(before):
        yield quarantine(
            starts[-1], f"the clock is started at {len(starts)} places, not {len(before)}"
        )
    unsynced, before_unsynced = _unsynced(node, names), _unsynced(start, names)
    if len(unsynced) > len(before_unsynced):
        yield quarantine(unsynced[-1], "the clock is read without waiting for the devices first")


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
    for at in script.nodes:
        for name, value in assigned(at):
            if name in sums and isinstance(at, ast.Assign) and isinstance(value, ast.Constant):
                outer = list(script.inside(at))
                loops = [i for i, n in enumerate(outer) if isinstance(n, ast.For | ast.While)]
                if loops:
                    tests = [
                        ast.unparse(n.test) for n in outer[: loops[0]] if isinstance(n, ast.If)
                    ]
                    yield at, " and ".join(tests) or "none"


def _start_names(script: Script) -> set[str]:
    return {name for at in _starts(script) for name, _ in assigned(at)}


@lru_cache(maxsize=32)
def _starts(script: Script) -> tuple[ast.AST, ...]:
    """Return the statements that set a name to a clock's reading."""
    return tuple(
        node
        for node in script.nodes
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_clock(script, node.value or node)
    )


def _unsynced(script: Script, names: frozenset[str]) -> list[ast.AST]:
    """Return the statements that add to the time with no synchronisation right before."""
    found: list[ast.AST] = []
    for block in blocks(script.tree):
        for before, at in zip([None, *block], block, strict=False):
            is_sum = isinstance(at, ast.AugAssign) and last_name(at.target) in names
            if is_sum and called_name(getattr(before, "value", ast.Pass())) not in (
                "synchronize",
                "barrier",
            ):
                found.append(at)
    return found


# --- work that is not timed -----------------------------------------------------------------


def _untimed_work(node: Script, start: Script) -> Iterator[Issue]:
    names = clock_names(node) | clock_names(start)
    for block in blocks(node.tree):
        for part in _paused(node, block, names):
            if any(called_name(n) in ("backward", "grad") for n in node.reached(part)):
                yield reject(part[0], "trains while the clock stands still")
    if _warm_up(node) == WHOLE_STEPS > _warm_up(start):
        yield quarantine(None, "trains before the clock is started, which its start does not")


def _paused(
    script: Script, block: list[ast.stmt], names: frozenset[str]
) -> Iterator[list[ast.stmt]]:
    """Yield the statements between each stop and the next start of the clock in a block."""
    starts = set(map(id, _starts(script)))
    part: list[ast.stmt] | None = None
    for at in block:
        if isinstance(at, ast.AugAssign) and last_name(at.target) in names:
            part = []
        elif id(at) in starts:
            if part:
                yield part
            part = None
        elif part is not None:
            part.append(at)


def _warm_up(script: Script) -> int:
    """Return how much training stands before the first start of the clock.

    Returns:
        0 for none, 1 for one pass, WHOLE_STEPS for steps of an optimizer or passes in a loop.
    """
    starts = set(map(id, _starts(script)))
    before: list[ast.stmt] = []
    for block in blocks(script.tree):
        first = next((i for i, at in enumerate(block) if id(at) in starts), None)
        if first is not None:
            before = [s for s in block[:first] if not isinstance(s, (*FUNCTIONS, ast.ClassDef))]
            break
    return max((_training(script, statement) for statement in before), default=0)


def _training(script: Script, statement: ast.stmt) -> int:
    reached = list(script.reached([statement]))
    if not any(called_name(n) == "backward" for n in reached):
        return 0
    in_loop = isinstance(statement, ast.For | ast.While)
    return WHOLE_STEPS if in_loop or any(called_name(n) == "step" for n in reached) else 1
