"""Python source as a list of statements that comments and formatting leave alone."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from speedkit.core.errors import SpeedkitError
from speedkit.core.syntax import quiet

MODULE = "<module>"
"""The scope of what stands in no function and no class."""
MARK = "§"
"""Begins the token of a name that a script may choose as it likes; its number follows."""
MAX_CHARACTERS = 1_000_000
"""A longer script is no training script."""
MAX_STATEMENTS = 4000
"""So that comparing two scripts ends in reasonable time, whatever they hold."""
MAX_STRING = 120
"""Characters of a string that :func:`plain` keeps."""

_TOKEN = re.compile(
    rf"{MARK}\d+|[^\W\d]\w*"  # a name
    r"|\d[\w.]*(?:(?<=[eE])[+-]\d+)?"  # a number
    r"|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""  # a string
    r"|\S",
    re.DOTALL,
)
_MARKED = re.compile(rf"{MARK}(\d+)")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_FUNCTIONS, ast.ClassDef)


@dataclass(frozen=True)
class Name:
    """A name that can be another without a change of meaning, and the scope that binds it."""

    scope: str
    text: str


@dataclass(frozen=True)
class Statement:
    """A simple statement, or the head of a compound one.

    Attributes:
        scope: dotted name of the function or class that it stands in, or :data:`MODULE`.
        tokens: its tokens; names that can be another are :data:`MARK` and an index.
        text: the same for people, with the names of the script.
    """

    scope: str
    tokens: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Script:
    """A script, read: its statements in order, and the names that their tokens refer to."""

    statements: tuple[Statement, ...]
    names: tuple[Name, ...]


def parse(source: str) -> ast.Module:
    """Return the syntax tree of a script without docstrings and annotations.

    Raises:
        SpeedkitError: it is no Python, or too much of it.
    """
    if len(source) > MAX_CHARACTERS:
        raise SpeedkitError(f"the script is too long to be judged: {len(source)} characters")
    with _readable():
        tree: ast.Module = _Stripper().visit(ast.parse(source))
    return tree


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what can go wrong with a hostile script into one line."""
    try:
        with quiet():
            yield
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        raise SpeedkitError(f"the script does not parse: {error.msg}{line}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise SpeedkitError(f"the script cannot be parsed: {reason}") from None


def plain(source: str) -> str:
    """Return a script without comments and docstrings, evenly formatted, long strings cut.

    Raises:
        SpeedkitError: it does not parse.
    """
    with _readable():
        return ast.unparse(_Shortener().visit(parse(source))) + "\n"


def read_script(source: str) -> Script:
    """Return the statements of a script.

    Raises:
        SpeedkitError: it does not parse, or has too many statements.
    """
    tree = parse(source)
    marker = _Marker(tree)
    statements: list[Statement] = []
    with _readable():
        marker.visit(tree)
        for scope, text in _statements(tree.body, MODULE, marker.readable):
            if len(statements) == MAX_STATEMENTS:
                raise ValueError(f"over {MAX_STATEMENTS} statements")
            tokens = tuple(_TOKEN.findall(text))
            statements.append(Statement(scope, tokens, marker.readable(text).strip()))
    return Script(tuple(statements), tuple(marker.names))


# --- what is left out -------------------------------------------------------------------


class _Stripper(ast.NodeTransformer):
    """Removes docstrings, annotations and ``pass``, which do nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        silent = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if silent else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if node.value is None:
            return node
        return ast.Assign(targets=[node.target], value=node.value, lineno=node.lineno)


class _Shortener(ast.NodeTransformer):
    """Cuts long strings."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and len(node.value) > MAX_STRING:
            return ast.Constant(value=node.value[:MAX_STRING] + " …")
        return node


# --- names ------------------------------------------------------------------------------


@dataclass
class _Scope:
    """A function or the module, and what it binds."""

    path: str
    bound: set[str] = field(default_factory=set)


class _Marker(ast.NodeTransformer):
    """Replaces names that a script may choose as it likes by marks.

    These are parameters, variables of functions and of the module, and functions and classes
    that are no attribute. A class's own names are attributes, which other code can spell.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.names: list[Name] = []
        self._index: dict[Name, int] = {}
        self._stack = [_Scope(MODULE, _bound(tree))]
        self._path: list[str] = []
        self._in_class = False
        self._members: set[str] = set()

    def readable(self, text: str) -> str:
        """Return a text with its marks replaced by the names of the script."""

        def name(match: re.Match[str]) -> str:
            index = int(match[1])
            return self.names[index].text if index < len(self.names) else match[0]

        return _MARKED.sub(name, text)

    def _mark(self, text: str) -> str:
        if self._in_class and text in self._members:
            return text
        scope = next((s for s in reversed(self._stack) if text in s.bound), None)
        if scope is None:
            return text
        name = Name(scope.path, text)
        if name not in self._index:
            self._index[name] = len(self.names)
            self.names.append(name)
        return f"{MARK}{self._index[name]}"

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._mark(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self._mark(node.arg)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = self._mark(node.name) if node.name else node.name
        return self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> ast.AST:
        node.names = [self._mark(name) for name in node.names]
        return node

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        node.names = [self._mark(name) for name in node.names]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        outer = self._in_class, self._members
        self._path.append(node.name)
        node.name = self._mark(node.name)
        self._stack.append(_Scope(".".join(self._path), _bound(node)))
        self._in_class = False
        for arg in ast.walk(node.args):
            if isinstance(arg, ast.arg):
                self.visit(arg)
        node.body = [self.visit(child) for child in node.body]
        self._stack.pop()
        self._path.pop()
        self._in_class, self._members = outer
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        node.bases = [self.visit(base) for base in node.bases]
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        outer = self._in_class, self._members
        self._path.append(node.name)
        node.name = self._mark(node.name)
        self._in_class, self._members = True, _bound(node)
        node.body = [self.visit(child) for child in node.body]
        self._in_class, self._members = outer
        self._path.pop()
        return node


def _bound(scope: ast.AST) -> set[str]:
    """Return the names that a module, function or class binds, imports left out.

    Variables of comprehensions and parameters of lambdas are counted to what they stand in.
    """
    found: set[str] = set()
    free: set[str] = set()
    for node in _own_nodes(scope):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, (*_SCOPES, ast.ExceptHandler)):
            found.add(node.name or "")
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            free.update(node.names)
    return found - free


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a scope; of an inner one only the node itself."""
    todo: list[ast.AST] = list(getattr(scope, "body", []))
    if isinstance(scope, _FUNCTIONS):
        todo += [a for a in ast.walk(scope.args) if isinstance(a, ast.arg)]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, _SCOPES):
            todo += ast.iter_child_nodes(node)


# --- statements -------------------------------------------------------------------------

_BLOCKS = {"body": "", "handlers": "", "orelse": "else", "finalbody": "finally"}
"""The parts of a compound statement, and the word that goes before each."""


def _statements(
    body: Sequence[ast.AST], scope: str, readable: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Yield scope and text of each statement; of compound ones the head, then the parts."""
    for node in body:
        if isinstance(node, ast.Pass):
            continue
        if isinstance(node, _SCOPES):
            name = readable(node.name)
            inner = name if scope == MODULE else f"{scope}.{name}"
            yield inner, _head(node)
            yield from _statements(node.body, inner, readable)
        elif hasattr(node, "body"):
            yield scope, _head(node)
            for block, word in _BLOCKS.items():
                inside = getattr(node, block, ())
                if inside and word:
                    yield scope, word
                yield from _statements(inside, scope, readable)
        else:
            yield scope, ast.unparse(node)


def _head(node: ast.AST) -> str:
    head = copy.copy(node)
    for block in _BLOCKS:
        if hasattr(head, block):
            setattr(head, block, [])
    return ast.unparse(head)
