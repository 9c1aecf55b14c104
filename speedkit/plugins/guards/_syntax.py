"""A training script as a syntax tree: what its names mean, and what it does where."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from speedkit.core.findings import Level
from speedkit.core.syntax import quiet

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "orelse", "finalbody")


@dataclass(frozen=True)
class Issue:
    """Something that a rule objects to.

    Attributes:
        line: in the node's script, from 1; 0 where no one line is to blame.
    """

    level: Level
    line: int
    text: str


def reject(node: ast.AST | None, text: str) -> Issue:
    """Return an issue that a node cannot count with."""
    return Issue(Level.REJECT, getattr(node, "lineno", 0), text)


def quarantine(node: ast.AST | None, text: str) -> Issue:
    """Return an issue that someone has to look at."""
    return Issue(Level.QUARANTINE, getattr(node, "lineno", 0), text)


class Script:
    """A script, parsed.

    Raises:
        ValueError: it is no Python.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.tree = _parse(source)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the tree but docstrings."""
        skipped = {id(node) for node in _docstrings(self.tree)}
        return tuple(node for node in ast.walk(self.tree) if id(node) not in skipped)

    @cached_property
    def parents(self) -> dict[int, ast.AST]:
        """The node that a node stands in, by the id of the inner one."""
        return {
            id(child): node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)
        }

    @cached_property
    def imports(self) -> dict[str, str]:
        """What imported names stand for: ``{"F": "torch.nn.functional"}``."""
        return dict(_imported(self.nodes))

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Imported names, and names that were simply set to something imported."""
        known = dict(self.imports)
        for node in self.nodes:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
                value = dotted(node.value, known)
                if value is not None and _root(node.value) in known:
                    known.update(
                        (t.id, value)
                        for t in node.targets
                        if isinstance(t, ast.Name) and t.id not in known
                    )
        return known

    @cached_property
    def modules(self) -> frozenset[str]:
        """Full names of everything imported, modules and what was taken from them."""
        return frozenset(module for _, module in imported_modules(self.nodes))

    @cached_property
    def module_names(self) -> frozenset[str]:
        """Names that modules were imported under: ``import a.b`` binds ``a``."""
        found = (n for n in self.nodes if isinstance(n, ast.Import))
        return frozenset(a.asname or a.name.partition(".")[0] for n in found for a in n.names)

    @cached_property
    def calls(self) -> frozenset[str]:
        """The text of every call."""
        return frozenset(ast.unparse(n) for n in self.nodes if isinstance(n, ast.Call))

    @cached_property
    def statements(self) -> frozenset[str]:
        """The text of every assignment."""
        kinds = (ast.Assign, ast.AugAssign, ast.AnnAssign)
        return frozenset(ast.unparse(n) for n in self.nodes if isinstance(n, kinds))

    @cached_property
    def strings(self) -> frozenset[str]:
        """Every text constant that is no docstring, parts of f-strings included."""
        return frozenset(text for _, text in texts(self.nodes))

    @cached_property
    def uses(self) -> frozenset[str]:
        """The full name of everything used of what is imported or built in."""
        return frozenset(name for _, name in self.used)

    @cached_property
    def blocks(self) -> tuple[list[ast.stmt], ...]:
        """Every list of statements."""
        found = (getattr(n, part, None) for n in ast.walk(self.tree) for part in _BLOCKS)
        return tuple(b for b in found if isinstance(b, list) and b and isinstance(b[0], ast.stmt))

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
        """Functions and methods by name, the last one of a name."""
        return {n.name: n for n in self.nodes if isinstance(n, FUNCTIONS)}

    @cached_property
    def used(self) -> tuple[tuple[ast.expr, str], ...]:
        """Names and attributes that are read, with their full names."""
        loads = (
            node
            for node in self.nodes
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
        )
        named = ((node, dotted(node, self.aliases)) for node in loads)
        return tuple((node, name) for node, name in named if name is not None)

    @cached_property
    def assignments(self) -> tuple[tuple[ast.AST, str, ast.expr], ...]:
        """Every assignment of a value to a name: the statement, the name's last part, the value."""
        return tuple((node, name, value) for node in self.nodes for name, value in assigned(node))

    def is_base(self, node: ast.AST) -> bool:
        """Whether only an attribute of an expression is used: ``a`` of ``a.b``."""
        parent = self.parents.get(id(node))
        return isinstance(parent, ast.Attribute) and parent.value is node

    def is_called(self, node: ast.AST) -> bool:
        """Whether an expression is what a call calls."""
        parent = self.parents.get(id(node))
        return isinstance(parent, ast.Call) and parent.func is node

    def is_imported(self, node: ast.expr) -> bool:
        """Whether an expression is something imported, or an attribute of it."""
        return _root(node) in self.aliases

    def name_of(self, node: ast.expr) -> str | None:
        """The full name of a name or attribute, None for other expressions."""
        return dotted(node, self.aliases)

    def statement_of(self, node: ast.AST) -> ast.AST:
        """The innermost statement that a node stands in."""
        while not isinstance(node, ast.stmt) and id(node) in self.parents:
            node = self.parents[id(node)]
        return node

    def inside(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what a node stands in, the innermost first."""
        while id(node) in self.parents:
            node = self.parents[id(node)]
            yield node

    def reached(self, nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
        """Yield the nodes below some, and below the script's functions that these call."""
        seen: set[str] = set()
        waiting = list(nodes)
        while waiting:
            for node in ast.walk(waiting.pop()):
                yield node
                name = called_name(node)
                if name in self.functions and name not in seen:
                    seen.add(name)
                    waiting.append(self.functions[name])


def leading_to(goals: Iterable[str], uses: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """Return the names that use one of some names, or a name that does, and those names."""
    users: dict[str, list[str]] = {}
    for name, used in uses.items():
        for other in used:
            users.setdefault(other, []).append(name)
    found: set[str] = set()
    waiting = list(goals)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += users.get(name, ())
    return frozenset(found)


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


@lru_cache(maxsize=32)
def read(source: str) -> Script:
    """Return a script, parsed once.

    Raises:
        ValueError: it is no Python.
    """
    return Script(source)


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """Return ``a.b.c`` with the first name resolved; None if it is no such chain."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def called_name(node: ast.AST) -> str:
    """Return the last name of what a call calls; empty if it is no call of a name."""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def names_in(node: ast.AST) -> set[str]:
    """Return the names, attributes included, that occur in an expression."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def targets_of(node: ast.AST) -> list[ast.expr]:
    """Return what a statement assigns to, tuples taken apart."""
    if isinstance(node, ast.Assign):
        found = list(node.targets)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For | ast.NamedExpr):
        found = [node.target]
    else:
        return []
    flat: list[ast.expr] = []
    while found:
        target = found.pop(0)
        if isinstance(target, ast.Tuple | ast.List):
            found = [*target.elts, *found]
        else:
            flat.append(target)
    return flat


def assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the last name of each target of an assignment and the value it gets."""
    value = getattr(node, "value", None)
    if isinstance(node, ast.Assign) and isinstance(value, ast.Tuple):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and len(target.elts) == len(value.elts):
                pairs = zip(target.elts, value.elts, strict=True)
                yield from ((last_name(t), v) for t, v in pairs)
                return
    if isinstance(value, ast.expr):
        yield from ((last_name(target), value) for target in targets_of(node))


def last_name(node: ast.AST) -> str:
    """Return ``c`` of ``a.b.c``; empty for anything but names and attributes."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def texts(nodes: Iterable[ast.AST]) -> Iterator[tuple[ast.Constant, str]]:
    """Yield the text constants among some nodes."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value


def imported_modules(nodes: Iterable[ast.AST]) -> Iterator[tuple[ast.AST, str]]:
    """Yield each import with the full name of what it imports; relative ones begin with a dot."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node, f"{module}.{name.name}") for name in node.names)


def constant(node: ast.AST) -> str | int | float | bool | None:
    """Return the value of a constant, or of arithmetic on numbers; None for the rest."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = constant(node.operand)
        return None if value is None or isinstance(value, str) else -value
    if isinstance(node, ast.BinOp):
        return _arithmetic(node)
    return None


def _arithmetic(node: ast.BinOp) -> int | float | None:
    left, right = constant(node.left), constant(node.right)
    if left is None or right is None or isinstance(left, str) or isinstance(right, str):
        return None
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.FloorDiv | ast.Div) and right:
        return left // right if isinstance(node.op, ast.FloorDiv) else left / right
    return None


def _parse(source: str) -> ast.Module:
    try:
        with quiet():
            return ast.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the script is no Python: {error}") from None
    except (RecursionError, MemoryError):
        raise ValueError("the script is nested too deeply") from None


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield texts that stand by themselves as a statement: docstrings and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.partition(".")[0]
                yield (name.asname, name.name) if name.asname else (top, top)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                yield name.asname or name.name, f"{node.module}.{name.name}"


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
