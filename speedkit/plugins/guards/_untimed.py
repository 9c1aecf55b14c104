"""Training that no clock counts: while it stands still, before it starts, after it has stopped."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeGuard

from speedkit.plugins.guards._metric_print import clock_names, starts
from speedkit.plugins.guards._syntax import (
    FUNCTIONS,
    Issue,
    Script,
    assigned,
    called_name,
    last_name,
    leading_to,
    quarantine,
    reject,
    targets_of,
)

WHOLE_STEPS = 2
MAKING = ("__init__", "__new__", "__post_init__")
"""Methods that run when an object is made."""
_LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_GRADIENTS = ("torch.autograd.", "torch.func.")


def find(node: Script, start: Script) -> Iterator[Issue]:
    """Yield training that the clock does not count and the start record does not do."""
    names = clock_names(node) | clock_names(start)
    for block in node.blocks:
        for part in _paused(node, block, names):
            if any(_is_pass(node, n) for n in node.reached(part)):
                yield reject(part[0], "trains while the clock stands still")
            elif trains(node, part) or any(called_name(n) == "step" for n in node.reached(part)):
                yield quarantine(part[0], "may train while the clock stands still")
    if _uncounted(node) == WHOLE_STEPS > _uncounted(start):
        yield quarantine(None, "trains before the clock is started, or after it was stopped")
    for at in node.nodes:
        if isinstance(at, ast.Call) and "_hook" in called_name(at) and trains(node, at.args):
            yield quarantine(at, f"trains in a hook: {ast.unparse(at)[:80]}")


def _is_pass(script: Script, node: ast.AST) -> bool:
    """Whether this makes gradients, or is the function that does."""
    if called_name(node) == "grad" or (isinstance(node, ast.Attribute) and node.attr == "backward"):
        return True
    if not isinstance(node, ast.Name | ast.Attribute):
        return False
    return (script.name_of(node) or "").startswith(_GRADIENTS)


# --- what a statement may lead to ------------------------------------------------------------


def trains(script: Script, nodes: Iterable[ast.AST]) -> bool:
    """Whether gradients are made below some nodes, or by anything that these name."""
    trainers = _trainers(script)
    below = (n for node in nodes for n in ast.walk(node))
    return any(_is_pass(script, n) or _named(script, n) in trainers for n in below)


def reached(script: Script, node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, and below all that these name: called, passed on or kept."""
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        for below in ast.walk(waiting.pop()):
            yield below
            name = _named(script, below)
            if name not in seen:
                seen.add(name)
                waiting += _meanings(script).get(name, ())


def _named(script: Script, node: ast.AST) -> str:
    """Return a key of :func:`_meanings` for what is used: of ``a.b`` it is ``.b``."""
    if isinstance(node, ast.Attribute):
        return "" if script.is_base(node) else f".{node.attr}"
    if not isinstance(node, ast.Name) or script.is_base(node):
        return ""
    call = script.parents.get(id(node)) if script.is_called(node) else None
    is_stored = call and isinstance(script.parents.get(id(call)), ast.Assign | ast.AnnAssign)
    return f"{node.id}()" if is_stored else node.id


@lru_cache(maxsize=32)
def _trainers(script: Script) -> frozenset[str]:
    """Return the names of what makes gradients when it is called."""
    parts = {id(part): part for of in _meanings(script).values() for part in of}
    nodes = {key: list(ast.walk(part)) for key, part in parts.items()}
    names = {key: {_named(script, n) for n in below} for key, below in nodes.items()}
    direct = {key for key, below in nodes.items() if any(_is_pass(script, n) for n in below)}
    meanings = {name: {id(part) for part in of} for name, of in _meanings(script).items()}
    uses = {name: set().union(*(names[key] for key in of)) for name, of in meanings.items()}
    return leading_to((name for name, of in meanings.items() if of & direct), uses)


@lru_cache(maxsize=32)
def _meanings(script: Script) -> dict[str, list[ast.AST]]:
    """Return functions, classes, and what names are set to that may be called later.

    Methods and attributes have a dot before their names. Brackets stand after those of classes
    and functions whose result is kept: a class makes an object then, and no more.
    """
    timed = {id(n) for n in _path(script)}
    found: dict[str, list[ast.AST]] = {}
    for node in script.nodes:
        if isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, FUNCTIONS)]
            found.setdefault(node.name, []).append(node)
            found.setdefault(f"{node.name}()", []).extend(m for m in methods if m.name in MAKING)
        elif isinstance(node, FUNCTIONS) and id(node) not in timed:
            in_class = isinstance(script.parents.get(id(node)), ast.ClassDef)
            for name in (f".{node.name}",) if in_class else (node.name, f"{node.name}()"):
                found.setdefault(name, []).append(node)
    makers = {n.name for n in script.nodes if isinstance(n, ast.ClassDef) or _is_generator(n)}
    for node in script.nodes:
        for target in targets_of(node):
            dot = "." if isinstance(target, ast.Attribute) else ""
            values = [v for name, v in assigned(node) if name == last_name(target)]
            parts = (part for value in values for part in _kept(value, makers, found))
            found.setdefault(dot + last_name(target), []).extend(parts)
    return found


def _kept(value: ast.expr, makers: set[str], known: Mapping[str, list[ast.AST]]) -> list[ast.AST]:
    """Return the parts of a value that are kept and not made use of at once.

    The result of ``step()`` is no way to take another step; ``partial(step)``, a generator and
    the object of a class are.
    """
    if not isinstance(value, ast.Call):
        return [value]
    parts: list[ast.AST] = [*value.args, *(k.value for k in value.keywords)]
    maker = last_name(value.func)
    return [*parts, *known.get(maker, ())] if maker in makers else parts


def _is_generator(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    yields = (ast.Yield, ast.YieldFrom)
    return isinstance(node, FUNCTIONS) and any(isinstance(n, yields) for n in ast.walk(node))


# --- around the timed loop ------------------------------------------------------------------


def _paused(
    script: Script, block: list[ast.stmt], names: frozenset[str]
) -> Iterator[list[ast.stmt]]:
    """Yield the statements between each stop and the next start of the clock in a block."""
    started = set(map(id, starts(script)))
    part: list[ast.stmt] | None = None
    for at in block:
        if isinstance(at, ast.AugAssign) and last_name(at.target) in names:
            part = []
        elif id(at) in started:
            if part:
                yield part
            part = None
        elif part is not None:
            part.append(at)


@lru_cache(maxsize=32)
def _path(script: Script) -> tuple[ast.AST, ...]:
    """Return the timed loop, all that it stands in, and all that the calls of it stand in."""
    found: dict[int, ast.AST] = {}
    waiting: list[ast.AST] = list(_timed(script))
    while waiting:
        inner = waiting.pop()
        for node in (inner, *script.inside(inner)):
            if id(node) not in found and isinstance(node, FUNCTIONS):
                waiting += [n for n in script.nodes if called_name(n) == node.name]
            found[id(node)] = node
    return tuple(found.values())


def _timed(script: Script) -> Iterator[ast.AST]:
    """Yield the loops in which the clock is started, or else those after a start of it."""
    loops = [n for n in script.nodes if isinstance(n, ast.For | ast.While)]
    started = set(map(id, starts(script)))
    inside = [n for n in loops if any(id(below) in started for below in ast.walk(n))]
    if inside:
        yield from inside
        return
    for block in script.blocks:
        first = next((i for i, at in enumerate(block) if id(at) in started), len(block))
        yield from (at for at in block[first:] if isinstance(at, ast.For | ast.While))


def _uncounted(script: Script) -> int:
    """Return how much training stands before and after the timed loop.

    Returns:
        0 for none, 1 for one pass, WHOLE_STEPS for steps of an optimizer or passes in a loop.
    """
    path = {id(n) for n in _path(script)}
    around = (
        statement
        for block in script.blocks
        if any(id(at) in path for at in block)
        for statement in block
        if id(statement) not in path and not isinstance(statement, (*FUNCTIONS, ast.ClassDef))
    )
    return max((_training(script, statement) for statement in around), default=0)


def _training(script: Script, statement: ast.stmt) -> int:
    if not trains(script, [statement]):
        return 0
    nodes = list(reached(script, statement))
    in_loop = any(isinstance(n, _LOOPS) and trains(script, [n]) for n in nodes)
    return WHOLE_STEPS if in_loop or any(called_name(n) == "step" for n in nodes) else 1
