"""What is changed in a record's script so that today's torch runs it, and for smoke runs.

Both are functions from source to source. They touch nothing but what they name, say what they
did, and work on scripts that a coder has changed as well, as long as the places they look for
are still there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from speedkit.records.edits import EditError, parse, replace_nodes

SMOKE_MARK = "# speedkit: smoke run"
"""How the first line of a smoke script begins."""
SMOKE_VAL_TOKENS = 524_288
"""Validation tokens of a smoke run, rounded up to whole batches."""


# --- torch versions ---------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptation:
    """A change that scripts need from some torch on.

    Attributes:
        since: first release, as (major, minor), that refuses the script as it is.
        note: what is changed, a phrase for the user.
        anchor: a text that shows that a script needs the change; occurs once.
        texts: what is to be replaced wherever it occurs, and by what.
    """

    since: tuple[int, int]
    note: str
    anchor: str
    texts: tuple[tuple[str, str], ...]

    def fits(self, source: str, release: tuple[int, int]) -> bool:
        """Whether the script has the place to be changed and this torch refuses it."""
        return release >= self.since and source.count(self.anchor) == 1

    def apply(self, source: str) -> str:
        """Return the changed script."""
        for old, new in self.texts:
            source = source.replace(old, new)
        return source


_FAKE = "return x_f8.to(torch.bfloat16), w_f8.to(torch.float32)\n"

ADAPTATIONS = (
    # Records 19 to 21. The real operator returns the weight's gradient as the transpose of
    # a row-major matrix, its fake one as row-major. Torch compares the two since 2.7. Caches
    # of compiled code know an operator by its name alone, so the changed one gets another.
    Adaptation(
        since=(2, 7),
        note="the fake FP8 backward has the strides of the real one (torch 2.7 or newer)",
        anchor=_FAKE,
        texts=(
            (_FAKE, _FAKE.rstrip() + ".t().contiguous().t()\n"),
            ('"nanogpt::', '"nanogpt_strided::'),
            ("torch.ops.nanogpt.", "torch.ops.nanogpt_strided."),
        ),
    ),
)
"""All known adaptations."""


def adapt(source: str, torch_version: str) -> tuple[str, tuple[str, ...]]:
    """Return a script as the given torch runs it, and a note for each change.

    A script that needs nothing comes back as it is, byte for byte.

    Args:
        source: a script of the family.
        torch_version: as in ``torch.__version__``, for example ``2.11.0+cu128``.
    """
    release = _release(torch_version)
    notes = []
    for adaptation in ADAPTATIONS:
        if adaptation.fits(source, release):
            source = adaptation.apply(source)
            notes.append(adaptation.note)
    return source, tuple(notes)


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise EditError(f"{version!r} is no torch version")
    return int(match[1]), int(match[2])


# --- smoke runs -------------------------------------------------------------------------


def smoke(
    source: str, steps: int, nproc: int, val_tokens: int = SMOKE_VAL_TOKENS
) -> tuple[str, tuple[str, ...]]:
    """Return a script that stops after a few steps, and a note for each change.

    The script still prints ``step:N/M`` with the M of the full run, and never reaches it:
    by the ordinary rules its log is incomplete and it cannot be valid. Learning rates and
    windows are those of the first steps of the full run. Validation is shorter and the
    slowest part of compilation, coordinate-descent tuning, is off.

    Args:
        source: a script of the family.
        steps: optimisation steps to do; the clock of most scripts starts at step 10.
        nproc: number of processes that will run the script.
        val_tokens: tokens of a validation, rounded up to whole batches.

    Raises:
        EditError: the script has not the form of a record's, or is not longer than that.
    """
    tree = parse(source)
    full = _settings(tree).get("num_iterations")
    if not isinstance(full, int) or not 0 < steps < full:
        raise EditError(f"a smoke run of {steps} steps needs a script of more; this one: {full}")
    edits = [(_last_step(tree), str(steps)), *_validation(tree, nproc, val_tokens)]
    notes = [f"{steps} of {full} steps", f"about {val_tokens:,} validation tokens"]
    tuning = list(_tuning(tree))
    if tuning:
        edits += [(node, "False") for node in tuning]
        notes.append("no coordinate-descent tuning")
    head = f"{SMOKE_MARK}: {steps} of {full} steps, never valid\n"
    return head + replace_nodes(source, edits), tuple(notes)


def is_smoke(source: str) -> bool:
    """Whether a script was made by :func:`smoke`."""
    return source.startswith(SMOKE_MARK)


def _last_step(tree: ast.Module) -> ast.expr:
    """Find X in ``last_step = (step == X)``."""
    found = [
        node.value.comparators[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and _names(node.targets[0], "last_step")
        and isinstance(node.value, ast.Compare)
    ]
    if len(found) != 1:
        raise EditError(f"the script has {len(found)} places that set last_step; 1 is needed")
    return found[0]


def _validation(tree: ast.Module, nproc: int, tokens: int) -> Iterator[tuple[ast.expr, str]]:
    """Find the length of a validation, with what it is to be."""
    settings = _settings(tree)
    batch = nproc * _first(settings, "device_batch_size", default=1)
    batch *= _first(settings, "val_seq_len", "seq_len", "sequence_length", "max_device_batch_size")
    places = dict(_places(tree))
    if "val_tokens" in places:
        yield places["val_tokens"], str(batch * -(-tokens // batch))
    elif "val_max_steps" in places:
        batch *= _first(settings, "batch_size")
        yield places["val_max_steps"], str(-(-tokens // batch))
    else:
        raise EditError("the script has neither val_tokens nor val_max_steps")


def _first(settings: dict[str, object], *names: str, default: int | None = None) -> int:
    for name in names:
        if isinstance(value := settings.get(name), int):
            return value
    if default is None:
        raise EditError(f"the script has no setting named {' or '.join(names)}")
    return default


def _tuning(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _names(node.targets[0], "coordinate_descent_tuning"):
            yield node.value


def _names(target: ast.expr, name: str) -> bool:
    return (isinstance(target, ast.Name) and target.id == name) or (
        isinstance(target, ast.Attribute) and target.attr == name
    )


def _settings(tree: ast.Module) -> dict[str, object]:
    """Return the settings whose value can be read off, by name."""
    values = ((name, _value(node)) for name, node in _places(tree))
    return {name: value for name, value in values if value is not None}


def _places(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yield name and value of each class attribute and each argument's default."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    if item.value is not None:
                        yield item.target.id, item.value
                elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                    yield item.targets[0].id, item.value
        elif isinstance(node, ast.Call) and _names(node.func, "add_argument"):
            yield from _argument(node)


def _argument(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    for keyword in call.keywords:
        if keyword.arg == "default" and call.args and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value).lstrip("-"), keyword.value


def _value(node: ast.expr) -> int | None:
    """Return the value of an integer constant, or of a product of such."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _value(node.left), _value(node.right)
        return None if left is None or right is None else left * right
    return None
