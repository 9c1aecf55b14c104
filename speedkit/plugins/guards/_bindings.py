"""What a script may not put another meaning on: clocks, printing, modules, built-in functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from speedkit.plugins.guards._syntax import (
    FUNCTIONS,
    Issue,
    Script,
    constant,
    last_name,
    quarantine,
    reject,
    words,
)

BUILTINS = words(
    "print open int float str round format repr abs sum len range isinstance "
    "__name__ __file__ __builtins__ __import__ __build_class__"
)
MODULES = words(
    "time os sys builtins torch torch.cuda torch.distributed torch.nn torch.nn.functional"
)
"""Modules whose names keep their meaning all through the script."""
CLOCKS = ("time.", "torch.cuda.", "os.", "sys.", "torch.distributed.")
"""What is imported from these keeps its meaning, too."""
KEPT = words("perf_counter elapsed_time synchronize barrier all_reduce cross_entropy stdout print")
"""Attributes that keep their meaning, whatever they are found on."""
REFLECTION = words("getattr setattr delattr vars print open")
"""Built-in functions that are for calling, and not for being passed on."""
SETTINGS = (
    "torch.backends.",
    "torch._inductor.config.",
    "torch._dynamo.config.",
    "torch._functorch.config.",
    "torch.utils._triton.",
)
"""Attributes of modules that are there to be set."""


def find(node: Script, start: Script) -> Iterator[Issue]:
    """Yield names and attributes of others that the script sets to something of its own."""
    yield from _names(node, start)
    yield from _attributes(node, start)
    yield from _setters(node, start)
    yield from _passed_on(node, start)


def _names(node: Script, start: Script) -> Iterator[Issue]:
    known = {name for _, name in _bound(start)}
    meanings = {**start.imports, **node.imports}
    for at, name in _bound(node):
        meaning = meanings.get(name, "")
        if name in BUILTINS and name not in known:
            yield reject(at, f"gives {name} another meaning")
        elif _keeps(meaning) and name not in known:
            yield reject(at, f"gives {name} another meaning than {meaning}")
    for name, meaning in node.imports.items():
        before = start.imports.get(name, meaning)
        if (before != meaning and _keeps(before)) or name in BUILTINS:
            yield reject(None, f"imports {meaning} under the name {name}")


def _keeps(meaning: str) -> bool:
    return meaning in MODULES or meaning.startswith(CLOCKS)


def _bound(script: Script) -> Iterator[tuple[ast.AST, str]]:
    """Yield every name that is bound other than by an import."""
    for node in script.nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node, node.id
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            if not isinstance(script.parents.get(id(node)), ast.ClassDef):  # methods hide nothing
                yield node, node.name
        elif isinstance(node, ast.arg):
            yield node, node.arg
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node, node.name


def _attributes(node: Script, start: Script) -> Iterator[Issue]:
    known = {name for _, name in _stored(start)}
    for at, name in _stored(node):
        if name not in known and not name.startswith(SETTINGS):
            yield reject(at, f"changes {name}, which is not its own")


def _stored(script: Script) -> Iterator[tuple[ast.AST, str]]:
    """Yield what is set of imported things, and of classes found by type()."""
    for node in script.nodes:
        if not isinstance(node, ast.Attribute | ast.Subscript) or isinstance(node.ctx, ast.Load):
            continue
        owner = node.value
        if _is_class_of(owner) or (isinstance(node, ast.Attribute) and node.attr in KEPT):
            yield node, ast.unparse(node)
        elif script.is_imported(owner) and script.name_of(owner) != "os.environ":
            whole = script.name_of(node)
            yield node, whole or f"{script.name_of(owner)}[...]"


def _is_class_of(owner: ast.expr) -> bool:
    """Whether this is ``type(x)``, ``x.__class__``, or names by their text."""
    if isinstance(owner, ast.Call):
        return last_name(owner.func) in ("type", "vars", "globals")
    return isinstance(owner, ast.Attribute) and owner.attr == "__class__"


def _setters(node: Script, start: Script) -> Iterator[Issue]:
    for at in node.nodes:
        if not isinstance(at, ast.Call) or not at.args:
            continue
        name = constant(at.args[1]) if len(at.args) > 1 else None
        is_setter = last_name(at.func) in ("setattr", "delattr")
        if is_setter and (node.is_imported(at.args[0]) or name in KEPT):
            yield reject(at, f"changes {ast.unparse(at.args[0])}, which is not its own")
        elif last_name(at.func) == "__setattr__" and ast.unparse(at) not in start.calls:
            yield quarantine(at, "uses __setattr__")


def _passed_on(node: Script, start: Script) -> Iterator[Issue]:
    """Yield modules, and functions that reach any attribute, that get a name no rule knows."""
    known = {name for _, name in _values(start)}
    for at, name in _values(node):
        if name not in known:
            yield quarantine(at, f"passes {name} on as a value")


def _values(script: Script) -> Iterator[tuple[ast.expr, str]]:
    """Yield modules that stand elsewhere than before a dot, and functions not called."""
    for at, name in script.used:
        if script.is_base(at):
            continue
        is_module = name in MODULES or (isinstance(at, ast.Name) and at.id in script.module_names)
        kept = _is_renamed(script, at) if is_module else script.is_called(at)
        if (is_module or name in REFLECTION) and not kept:
            yield at, name


def _is_renamed(script: Script, at: ast.expr) -> bool:
    """Whether this is ``clock = time``, which the script's aliases know."""
    parent = script.parents.get(id(at))
    return isinstance(parent, ast.Assign) and all(isinstance(t, ast.Name) for t in parent.targets)
