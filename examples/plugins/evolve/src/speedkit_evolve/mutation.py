"""Mutation of a script: one or two of the numbers that it gives names to."""

from __future__ import annotations

import math
import random
import re

NUMBER = re.compile(
    r"^(?P<head>[ \t]*(?P<name>[a-z_][a-z0-9_]*)[ \t]*(?::[ \t]*(?:int|float)[ \t]*)?=[ \t]*)"
    r"(?P<value>\d+\.?\d*(?:e-?\d+)?)(?=[ \t]*(?:#.*)?\r?$)",
    re.MULTILINE | re.IGNORECASE,
)
"""A line that gives a plain number a name, ``rate: float = 0.01`` for example."""
UNTOUCHED = re.compile(r"val|eval|log|seed|batch|seq|dim|head|layer|vocab|size", re.IGNORECASE)
"""Names of numbers that decide what is measured, or the shape of the model."""


def mutate(text: str, spread: float, rng: random.Random) -> tuple[str, list[str]]:
    """Return a text with one or two numbers scaled, and what was changed, in words.

    Args:
        spread: standard deviation of the logarithm of the factor.
    """
    found = [m for m in NUMBER.finditer(text) if not UNTOUCHED.search(m["name"])]
    chosen = rng.sample(found, min(len(found), rng.choice((1, 1, 2))))
    words = []
    for match in sorted(chosen, key=lambda m: m.start(), reverse=True):
        value = scaled(match["value"], math.exp(rng.gauss(0, spread)))
        if value != match["value"]:
            text = text[: match.start("value")] + value + text[match.end("value") :]
            words.append(f"{match['name']} {match['value']} becomes {value}")
    return text, sorted(words)


def scaled(value: str, factor: float) -> str:
    """Return a number as text, scaled; a whole number stays one, and at least 1."""
    if value.isdecimal():
        return str(max(1, round(int(value) * factor))) if int(value) else value
    return repr(float(f"{float(value) * factor:.3g}"))
