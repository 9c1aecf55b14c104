"""What is asked of components of every kind."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from speedkit.core.components import Options
from speedkit.core.config import explain
from speedkit.testing.bench import Bench, listed


def construction(bench: Bench) -> Iterator[str]:
    """It is whole, is made with the given options, and can be bound to a run."""
    cls = bench.cls
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        yield f"does not define {listed(missing)}"
        return
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, Options)):
        yield "its Options are no subclass of speedkit.Options"
        return
    try:
        component = bench.make()
    except ValidationError as error:
        yield f"its options are refused, give others: {_refusal(error, cls.Options)}"
        return
    if not isinstance(getattr(component, "options", None), cls.Options):
        yield "__init__() does not call super().__init__(options)"
    if getattr(component, "services", None) is None:
        yield "bind() does not call super().bind(services)"


def documentation(bench: Bench) -> Iterator[str]:
    """It says what it does, and what each of its options does."""
    if not inspect.cleandoc(bench.cls.__dict__.get("__doc__") or ""):
        yield "the class has no docstring"
    for name, field in bench.cls.Options.model_fields.items():
        if not (field.description or "").strip():
            yield f"option {name} has no description"


def options(bench: Bench) -> Iterator[str]:
    """Its options can be written down and read again, and a wrong name is refused."""
    model = bench.cls.Options
    made = model.model_validate(dict(bench.options))
    try:
        values = json.loads(json.dumps(made.model_dump(mode="json"), allow_nan=False))
    except (ValueError, TypeError) as error:
        yield f"its options are no JSON values, so no run can record them: {error}"
        return
    yield from _read_again(model, made, values)
    if model.model_config.get("extra") != "forbid":
        yield "its Options accept unknown names; leave extra='forbid' as it is"
    if not model.model_config.get("frozen"):
        yield "its Options can be changed after the check; leave frozen=True as it is"


def _read_again(model: type[Options], made: Options, values: Any) -> Iterator[str]:
    try:
        again = model.model_validate(values)
    except ValidationError as error:
        yield f"options as a run records them are refused: {_refusal(error, model)}"
        return
    if again != made:
        names = [n for n in model.model_fields if getattr(again, n) != getattr(made, n)]
        yield f"options change when they are recorded and read again: {listed(names)}"


def _refusal(error: ValidationError, model: type[Options]) -> str:
    return "; ".join(explain(error, model))


CHECKS = (construction, documentation, options)
