"""The values that a sweep varies: how they are written, read and shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from speedkit.core.config import SETTINGS, RunConfig, parse_value
from speedkit.core.errors import did_you_mean
from speedkit.core.plugins import REGISTER_HOOKS

LISTS = ("hints", "knowledge", "guards")
"""Keys whose value is a list, written ``a+b``, and ``none`` for an empty one."""
FIXED = ("options", *SETTINGS, "load", "block")
"""Keys of a configuration that are no values, or that hold for the whole process."""
KEYS = tuple(key for key in RunConfig.model_fields if key not in FIXED)
"""Keys of a configuration that a sweep may vary."""
NONE = "none"
"""How a setting is written that is not set."""
MAX_NAME = 48
"""Characters of a value in the name of a run directory."""

Value = str | int | float | bool | list[Any] | dict[str, Any]
_OPENING, _CLOSING = "[{", "]}"
_UNFIT = re.compile(r"[^A-Za-z0-9._+-]+")


def parse_vary(settings: Sequence[str]) -> tuple[dict[str, tuple[Value, ...]], list[str]]:
    """Read ``KEY=VALUE,VALUE`` settings.

    Returns:
        The values by key, and a line for every mistake.
    """
    vary: dict[str, tuple[Value, ...]] = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"--vary {setting}: write KEY=VALUE,VALUE")
        elif key in vary:
            problems.append(f"--vary {key}: given twice")
        else:
            given = split_values(text)
            typed = [parse_value(one) for one in given] if "." in key else given
            values, wrong = read_values(key, typed)
            vary |= {key: values} if values else {}
            problems += [f"--vary {line}" for line in wrong]
    return vary, problems


def split_values(text: str) -> list[str]:
    """Split at commas that stand outside of quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += (not quote and char in _OPENING) - (not quote and char in _CLOSING)
        if char == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def read_values(key: str, given: Any) -> tuple[tuple[Value, ...], list[str]]:
    """Return the values of a key as they are kept, and a line for every mistake."""
    if problem := _key_problem(key):
        return (), [f"{key}: {problem}"]
    if not isinstance(given, (list, tuple)) or not given:
        return (), [f"{key}: write a list of values"]
    if any(value == "" for value in given):
        return (), [f"{key}: a value is missing"]
    values = tuple(_kept(key, value) for value in given)
    names = [shown(value) for value in values]
    twice = sorted({name for name in names if names.count(name) > 1})
    return values, [f"{key}: {name} is given twice" for name in twice]


def _key_problem(key: str) -> str:
    head, *rest = key.split(".")
    kinds = (*REGISTER_HOOKS, *SETTINGS)
    if not rest:
        known = (*KEYS, *(f"{kind}.OPTION" for kind in kinds))
        return "" if key in KEYS else f"cannot be varied; {did_you_mean(key, known)}"
    if head not in kinds or len(rest) > 2 or not all(rest):
        near = did_you_mean(head, kinds)
        return f"cannot be varied; write KIND.OPTION or KIND.NAME.OPTION; {near}"
    return ""


def _kept(key: str, value: Any) -> Value:
    """Return a value as a TOML file can hold it, the same however it was written."""
    if value is None:
        return NONE
    if key in LISTS:
        return _joined(key, value)
    return value  # type: ignore[no-any-return]


def _joined(key: str, value: Any) -> str:
    items = value if isinstance(value, (list, tuple)) else str(value).split("+")
    words = [str(item).strip() for item in items if str(item).strip() not in ("", NONE)]
    return "+".join(sorted(set(words)) if key == "hints" else words) or NONE


def settings_of(key: str, value: Value) -> dict[str, Any]:
    """Return the settings of a run that a value of a key stands for."""
    head, *rest = key.split(".")
    if not rest:
        return {key: _setting(key, value)}
    for part in reversed(rest):
        value = {part: value}
    return {head: value} if head in SETTINGS else {"options": {head: value}}


def _setting(key: str, value: Value) -> Any:
    if key in LISTS:
        words = [] if value == NONE else str(value).split("+")
        return [NONE] if key == "guards" and not words else words
    return None if value == NONE else value


def shown(value: Value) -> str:
    """Return a value as it is written in tables."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "+".join(map(shown, value)) or NONE
    if isinstance(value, dict):
        return "+".join(f"{k}-{shown(v)}" for k, v in value.items()) or NONE
    return str(value)


def in_name(value: Value) -> str:
    """Return a value as part of a file name, the same at every time and place.

    A slash becomes a dash. Where more than that would be lost, a few letters of a hash tell
    the value from others.
    """
    text = shown(value)
    name = text.replace("/", "-")
    fit = _UNFIT.sub("-", name)
    if fit == name and len(fit) <= MAX_NAME:
        return fit
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{fit[: MAX_NAME - 7].rstrip('-')}-{digest}"


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay settings over others, tables key by key."""
    for key, value in layer.items():
        if isinstance(value, Mapping):
            below = into.get(key)
            into[key] = dict(below) if isinstance(below, Mapping) else {}
            merge(into[key], value)
        else:
            into[key] = value
