"""What is validated and on what data: as the start record has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache

from speedkit.plugins.guards._syntax import (
    FUNCTIONS,
    Issue,
    Script,
    assigned,
    called_name,
    constant,
    last_name,
    names_in,
    quarantine,
    reject,
    targets_of,
    texts,
)

_NOT_CONSTANT = re.compile(r"_(?:every|interval|loss|loader|steps_done)$")
_DATA = re.compile(r"(?:^|/)data(?:/|$)|\.(?:bin|npy|npz|safetensors|gguf)\b")
_VALIDATION = re.compile(r"(?:^|[^a-z])val(?:[^a-z]|$|id)", re.IGNORECASE)
_TRAINING = re.compile(r"(?:^|[^a-z])train(?:[^a-z]|$|ing)", re.IGNORECASE)
_PLACE = re.compile(r"(?:ddp_)?(?:world_size|rank|local_rank|num_processes|nproc)")
_PLACE_CALLS = ("get_world_size", "get_rank", "int", "get", "getenv", "get_node_local_rank")
_SAVING = ("save_every", "save_checkpoint")
PARTS = 5
"""A part of a part of the validation data is followed so far."""
SEED = "SPEEDKIT_SEED"
SEEDING = ("manual_seed", "manual_seed_all", "seed", "default_rng", "set_rng_state", "Random")
"""Functions that decide what a generator of random numbers will give."""

Value = str | int | float | bool | None


def find(node: Script, start: Script) -> Iterator[Issue]:
    """Yield what is evaluated otherwise than in the start record."""
    yield from _constants(node, start)
    yield from _overrides(node, start)
    yield from _shares(node)
    yield from _data(node, start)
    yield from _searched(node, start)
    yield from _roles(node, start)
    yield from _world(node, start)
    yield from _checkpoints(node, start)
    yield from _seeds(node, start)


# --- constants --------------------------------------------------------------------------


@lru_cache(maxsize=32)
def settings(script: Script) -> dict[str, tuple[ast.expr, Value]]:
    """Return named values of classes, of the module and of arguments, by name."""
    return {name: (value, constant(value)) for name, value in _settings(script)}


def _settings(script: Script) -> Iterator[tuple[str, ast.expr]]:
    for node in script.nodes:
        if isinstance(node, ast.ClassDef | ast.Module):
            for statement in node.body:
                yield from assigned(statement)
        elif called_name(node) == "add_argument" and isinstance(node, ast.Call):
            name = constant(node.args[0]) if node.args else None
            default = next((k.value for k in node.keywords if k.arg == "default"), None)
            if isinstance(name, str) and default is not None:
                yield name.lstrip("-"), default


def is_evaluation(name: str) -> bool:
    """Whether a setting decides how the model is validated."""
    parts = name.lower().split("_")
    named = any(part in ("val", "valid", "validation", "eval") for part in parts)
    return named and not _NOT_CONSTANT.search(name)


@lru_cache(maxsize=32)
def evaluation_settings(script: Script) -> dict[str, Value]:
    """Return the constants that decide how the model is validated, by name."""
    found = settings(script).items()
    return {n: v for n, (_, v) in found if is_evaluation(n) and v not in (None, "")}


def _constants(node: Script, start: Script) -> Iterator[Issue]:
    now = evaluation_settings(node)
    for name, before in evaluation_settings(start).items():
        if name in now:
            yield from _changed(name, before, now[name], settings(node)[name][0])
        elif name in settings(node):
            at = settings(node)[name][0]
            yield quarantine(at, f"{name} is no constant any more: {ast.unparse(at)[:60]}")
        elif before not in now.values():
            yield quarantine(None, f"{name} = {before!r} of the start record is gone")


def _changed(name: str, before: Value, now: Value, at: ast.AST) -> Iterator[Issue]:
    if now == before:
        return
    text = f"{name} is {now!r}, not {before!r}"
    fewer = isinstance(now, int) and isinstance(before, int) and now < before
    if isinstance(before, str) or (fewer and ("tokens" in name or "steps" in name)):
        yield reject(at, text)
    else:
        yield quarantine(at, text)


def _overrides(node: Script, start: Script) -> Iterator[Issue]:
    """Yield places that set a constant of the evaluation once more."""
    names = {*evaluation_settings(start), *evaluation_settings(node)}
    for at in node.nodes:
        for target in targets_of(at):
            if isinstance(target, ast.Attribute) and target.attr in names:
                yield reject(at, f"sets {target.attr} again: {ast.unparse(at)[:80]}")
        if isinstance(at, ast.Call):
            literals = {a.value for a in at.args if isinstance(a, ast.Constant)}
            given = {k.arg for k in at.keywords if isinstance(k.value, ast.Constant)}
            setter = last_name(at.func) in ("setattr", "__setattr__")
            for name in sorted(names & given | (names & literals if setter else set())):
                yield reject(at, f"sets {name} again: {ast.unparse(at)[:80]}")


def _shares(node: Script) -> Iterator[Issue]:
    """Yield expressions that take a part of the validation tokens."""
    names = {n for n, v in evaluation_settings(node).items() if isinstance(v, int | float)}
    for at in node.nodes:
        if isinstance(at, ast.BinOp):
            parts = [at.left, at.right]
        elif isinstance(at, ast.Call) and last_name(at.func) in ("min", "max"):
            parts = at.args
        else:
            continue
        values = [constant(part) for part in parts]
        scaled = any(v not in (None, 0, 1) for v in values)
        if scaled and any(last_name(part) in names for part in parts):
            yield reject(at, f"takes a part of what is to be validated: {ast.unparse(at)[:80]}")


# --- data -------------------------------------------------------------------------------


def _data(node: Script, start: Script) -> Iterator[Issue]:
    for at, text in texts(node.nodes):
        if _DATA.search(text) and text not in start.strings:
            yield reject(at, f"names data that its start does not: {text[:60]!r}")


def _searched(node: Script, start: Script) -> Iterator[Issue]:
    """Yield searches for files whose pattern is put together."""
    for at in node.nodes:
        if called_name(at) not in ("glob", "iglob", "listdir", "scandir", "walk", "iterdir"):
            continue
        assert isinstance(at, ast.Call)
        made = any(not isinstance(a, ast.Name | ast.Attribute) for a in at.args)
        if made and ast.unparse(at) not in start.calls:
            yield quarantine(
                at, f"looks for files otherwise than its start: {ast.unparse(at)[:80]}"
            )


def _roles(node: Script, start: Script) -> Iterator[Issue]:
    """Yield places where validation data are trained on, or training data validated on."""
    files = {
        name: value
        for name, (_, value) in settings(node).items()
        if isinstance(value, str) and _DATA.search(value)
    }
    before = settings(start)
    for name, value in files.items():
        same = name in before and before[name][1] == value
        if not same and bool(_VALIDATION.search(name)) != bool(_VALIDATION.search(value)):
            yield reject(settings(node)[name][0], f"{name} names other data: {value!r}")
    validation = {name for name, value in files.items() if _VALIDATION.search(value)}
    training = set(files) - validation
    kept = _kept(node, validation)
    for at in node.nodes:
        if isinstance(at, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For | ast.Return):
            yield from _role(node, at, validation | kept, training)
        elif called_name(at) == "backward" and names_in(at) & (validation | kept):
            yield reject(at, f"trains on validation data: {ast.unparse(at)[:80]}")
    for at, text in texts(node.nodes):
        if text in validation and text not in start.strings:
            yield quarantine(at, f"reaches the validation data by the name {text!r}")
    extra = _loads(node, validation) - _loads(start, validation)
    if extra > 0:
        yield quarantine(None, f"the validation data are read at {extra} more places")


def _kept(script: Script, files: set[str]) -> set[str]:
    """Return the names that hold what was loaded of some files, and those of parts of it.

    A name that is used for other things as well is no name of a part.
    """
    values: dict[str, list[ast.expr]] = {}
    for node in (n for n in script.nodes if isinstance(n, ast.Assign)):
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id not in ("args", "config"):
                values.setdefault(target.id, []).append(node.value)
    found = {name for name, given in values.items() if any(names_in(v) & files for v in given)}
    used = {name: [names_in(v) for v in given] for name, given in values.items()}
    for _ in range(PARTS):
        found |= {name for name, given in used.items() if all(names & found for names in given)}
    return found


def _role(script: Script, at: ast.AST, validation: set[str], training: set[str]) -> Iterator[Issue]:
    value = at.iter if isinstance(at, ast.For) else getattr(at, "value", None)
    if value is None or not (names_in(value) & (validation | training)):
        return
    where = {name for target in targets_of(at) for name in names_in(target)}
    outer = (n for n in script.inside(at) if isinstance(n, FUNCTIONS))
    where |= {n.name for n in outer if "backward" not in names_in(n)}  # that of the loop does both
    if names_in(value) & validation and any(_TRAINING.search(name) for name in where):
        yield reject(at, f"trains on validation data: {ast.unparse(at)[:80]}")
    elif names_in(value) & training and any(is_evaluation(name) for name in where):
        yield reject(at, f"validates on training data: {ast.unparse(at)[:80]}")


def _loads(script: Script, names: set[str]) -> int:
    """Return how often the settings that name validation data are read, under any name."""
    values = {
        name
        for name, (_, value) in settings(script).items()
        if isinstance(value, str) and _DATA.search(value) and _VALIDATION.search(value)
    }
    found = (n for n in script.nodes if isinstance(n, ast.Attribute | ast.Name))
    return sum(isinstance(n.ctx, ast.Load) and last_name(n) in names | values for n in found)


# --- processes and checkpoints --------------------------------------------------------------


def _world(node: Script, start: Script) -> Iterator[Issue]:
    for at, name, value in node.assignments:
        own = _PLACE.fullmatch(name) and not _is_given(value)
        if own and ast.unparse(at) not in start.statements:
            yield reject(at, f"sets its own {name}: {ast.unparse(at)[:80]}")
    for at in node.nodes:
        if called_name(at) == "init_process_group" and isinstance(at, ast.Call):
            fixed = {k.arg for k in at.keywords} & {"world_size", "rank"}
            if fixed and ast.unparse(at) not in start.calls:
                yield reject(at, f"sets its own {', '.join(sorted(map(str, fixed)))}")


def _is_given(value: ast.expr) -> bool:
    """Whether a rank or number of ranks is taken from where the launcher put it."""
    if isinstance(value, ast.Call):
        return last_name(value.func) in _PLACE_CALLS
    return isinstance(value, ast.Name | ast.Attribute)


def _checkpoints(node: Script, start: Script) -> Iterator[Issue]:
    for name in _SAVING:
        if name in settings(node):
            at, value = settings(node)[name]
            if value and (name not in settings(start) or settings(start)[name][1] != value):
                yield quarantine(at, f"saves checkpoints: {name} is {value!r}")


# --- seeds ----------------------------------------------------------------------------------


def _seeds(node: Script, start: Script) -> Iterator[Issue]:
    """Yield places where chance comes from something else than the seed that is offered."""
    if SEED not in start.strings:
        return
    for at in node.nodes:
        seeding = called_name(at) in SEEDING and ast.unparse(at) not in start.calls
        if seeding:
            yield quarantine(at, f"seeds a generator otherwise than its start: {_short(at)}")
    names = _seed_names(node)
    for at, name, _ in node.assignments:
        if name in names and ast.unparse(at) not in start.statements:
            yield quarantine(at, f"changes the seed that it is given: {_short(at)}")


def _seed_names(script: Script) -> set[str]:
    return {
        name
        for _, name, value in script.assignments
        if any(text == SEED for _, text in texts(ast.walk(value)))
    }


def _short(node: ast.AST) -> str:
    return ast.unparse(node)[:80]
