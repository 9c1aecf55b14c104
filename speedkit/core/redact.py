"""Removes secrets from text before it is stored or sent."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, AnyStr
from urllib.parse import quote, quote_plus

MIN_SECRET_LENGTH = 8
"""Values shorter than this are no secrets: removing them would damage ordinary text."""

_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:api_?key|apikey|key|token|secret|passwd|password|passphrase|credentials?|pat)"
    r"(?:$|[_-])",
    re.IGNORECASE,
)
_NOT_A_SECRET_NAME = re.compile(r"_(?:path|file|dir|url|sock|name|limit)$", re.IGNORECASE)
_PLAIN_VALUE = re.compile(r"[+-]?[\d.,_]{1,11}|true|false|none|null|default|disabled|enabled", re.I)

_SHAPES = {
    "sk-": r"(?<![\w-])sk-(?=[\w-]*\d)[\w-]{20,}",
    "ghp_": r"(?<!\w)ghp_[A-Za-z0-9]{36,}",
    "gho_": r"(?<!\w)gho_[A-Za-z0-9]{36,}",
    "ghs_": r"(?<!\w)ghs_[A-Za-z0-9]{36,}",
    "ghu_": r"(?<!\w)ghu_[A-Za-z0-9]{36,}",
    "ghr_": r"(?<!\w)ghr_[A-Za-z0-9]{36,}",
    "github_pat_": r"(?<!\w)github_pat_\w{50,}",
    "glpat-": r"(?<!\w)glpat-[\w-]{20,}",
    "hf_": r"(?<!\w)hf_[A-Za-z0-9]{30,}",
    "gsk_": r"(?<!\w)gsk_[A-Za-z0-9]{40,}",
    "r8_": r"(?<!\w)r8_[A-Za-z0-9]{36,}",
    "xox": r"(?<!\w)xox[abeoprs]-[\w-]{20,}",
    "xai-": r"(?<!\w)xai-[A-Za-z0-9]{60,}",
    "nvapi-": r"(?<!\w)nvapi-[\w-]{40,}",
    "pplx-": r"(?<!\w)pplx-[A-Za-z0-9]{40,}",
    "AKIA": r"(?<![A-Za-z0-9+/])AKIA[0-9A-Z]{16}(?![A-Za-z0-9+/])",
    "ASIA": r"(?<![A-Za-z0-9+/])ASIA[0-9A-Z]{16}(?![A-Za-z0-9+/])",
    "AIza": r"(?<![\w-])AIza[\w-]{35}(?![\w-])",
    ".eyJ": r"(?<!\w)eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "://": r"(?<=://)[^\s/:@'\"]{0,100}:[^\s/@'\"]{1,200}(?=@)",
    "earer ": r"(?<!\w)[Bb]earer +(?!\[secret)[\w.~+/=-]{16,}",
}
"""Keys that show by their form what they are, by a text that each of them holds.

Never "any 32 letters": hashes must survive.
"""


class Redactor:
    """Replaces secrets by ``[secret NAME]``, or ``[secret]`` for those without a name.

    A secret is a known value, in any of its usual spellings (raw, base64, URL-encoded,
    JSON-escaped), or a text with the shape of a well-known kind of key. No secret spans
    lines, so that a stream may be cleaned line by line. Safe to share between threads.

    Args:
        secrets: values by name. Values shorter than ``MIN_SECRET_LENGTH`` are left alone;
            of a value of several lines, each line is a secret.
    """

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self._names = dict(_spellings(secrets or {}))
        self._shapes = [(mark, re.compile(shape, re.ASCII)) for mark, shape in _SHAPES.items()]
        self._byte_shapes = [
            (mark.encode(), re.compile(shape.encode())) for mark, shape in _SHAPES.items()
        ]
        # A longer spelling may contain a shorter one, so the longest go first.
        spellings = sorted(self._names, key=len, reverse=True)
        self._values = [(text, f"[secret {self._names[text]}]") for text in spellings]
        self._byte_values = [(text.encode(), mark.encode()) for text, mark in self._values]

    def __repr__(self) -> str:
        return f"<Redactor of {', '.join(sorted(set(self._names.values()))) or 'shapes only'}>"

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, extra: Mapping[str, str] | None = None
    ) -> Redactor:
        """Return a redactor of the variables whose names look like those of secrets.

        Args:
            environ: ``os.environ`` by default.
            extra: more secrets, value by name.
        """
        found = secret_variables(os.environ if environ is None else environ)
        return cls({**found, **(extra or {})})

    def clean(self, text: AnyStr) -> AnyStr:
        """Return the text, or the bytes, without secrets."""
        if isinstance(text, bytes):
            return _replace(text, self._byte_values, self._byte_shapes, b"[secret]")
        return _replace(text, self._values, self._shapes, "[secret]")

    def lines(self, lines: Iterable[AnyStr]) -> Iterator[AnyStr]:
        """Clean a stream line by line."""
        for line in lines:
            yield self.clean(line)

    def tree(self, value: Any) -> Any:
        """Return a JSON value with all its strings cleaned, keys included."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, Mapping):
            return {self.tree(key): self.tree(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.tree(item) for item in value]
        return value


def _replace(
    text: AnyStr,
    values: Sequence[tuple[AnyStr, AnyStr]],
    shapes: Sequence[tuple[AnyStr, re.Pattern[AnyStr]]],
    unnamed: AnyStr,
) -> AnyStr:
    # Nearly always nothing is found, and a plain search says so soonest.
    for value, label in values:
        if value in text:
            text = text.replace(value, label)
    for mark, shape in shapes:
        if mark in text:
            text = shape.sub(unnamed, text)
    return text


def secret_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables whose names and values look like those of secrets."""
    return {
        name: value
        for name, value in environ.items()
        if _SECRET_NAME.search(name)
        and not _NOT_A_SECRET_NAME.search(name)
        and not _PLAIN_VALUE.fullmatch(value)
        and not value.startswith("/")
    }


def _spellings(secrets: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in secrets.items():
        for line in value.splitlines():
            if len(line.strip()) >= MIN_SECRET_LENGTH:
                for spelling in _spellings_of(line.strip()):
                    yield spelling, name


def _spellings_of(value: str) -> set[str]:
    quoted = {quote(value, safe=""), quote(value), quote_plus(value)}
    lower = {re.sub(r"%[0-9A-F]{2}", lambda m: m.group().lower(), text) for text in quoted}
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    slashed = {text.replace("/", r"\/") for text in escaped}
    return {value, *quoted, *lower, *escaped, *slashed, *_base64_spellings(value.encode())}


def _base64_spellings(value: bytes) -> Iterator[str]:
    """Yield what any base64 text that contains the value must contain.

    The value may start at any of three places in a group of three bytes; the characters
    that also depend on its neighbours are left out.
    """
    for offset in range(3):
        start = -(-offset * 8 // 6)
        end = (offset + len(value)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(offset) + value).decode()[start:end]
