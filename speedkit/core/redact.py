"""Removes secrets from text before it is stored or sent."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, AnyStr, BinaryIO
from urllib.parse import quote, quote_plus

MIN_SECRET_LENGTH = 8
"""Values shorter than this are no secrets: removing them would damage ordinary text."""

CHUNK = 8 << 20
"""Bytes of a file that are cleaned at once."""

_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:api_?keys?|keys?|tokens?|secrets?|passwd|passwords?|pwd|passphrase"
    r"|credentials?|pat)(?:$|[_-])"
    r"|(?:apikey|token|secret|passwd|password)$",
    re.IGNORECASE,
)
# What ends in _env names another variable, as SPEEDKIT_LLM_API_KEY_ENV does.
_NOT_A_SECRET_NAME = re.compile(r"_(?:path|file|dir|url|sock|name|limit|env)$", re.IGNORECASE)
_NAMING_VARIABLE = "SPEEDKIT_LLM_API_KEY_ENV"
_PLAIN_VALUE = re.compile(r"[+-]?[\d.,_]{1,11}|true|false|none|null|default|disabled|enabled", re.I)

# Of "\nsk-…" in JSON or in a literal, "%3Dsk-…" in an address and "[32msk-…" on a terminal, the
# letter or digit before the key is the end of something else.
_ESCAPE = (
    r"(?<=\\[abefnrtv])|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2})"
    r"|(?<=\[m)|(?<=[\[;]\dm)|(?<=[\[;]\d\dm)|(?<=;\d\d\dm)"
)
_WORD = rf"(?:(?<!\w)|{_ESCAPE})"
_DASHED = rf"(?:(?<![\w-])|{_ESCAPE})"
_BASE64 = rf"(?:(?<![A-Za-z0-9+/])|{_ESCAPE})"

_SHAPES = {
    "sk-": _DASHED + r"sk-(?=[\w-]*\d)[\w-]{20,}",
    "ghp_": _WORD + r"ghp_[A-Za-z0-9]{36,}",
    "gho_": _WORD + r"gho_[A-Za-z0-9]{36,}",
    "ghs_": _WORD + r"ghs_[A-Za-z0-9]{36,}",
    "ghu_": _WORD + r"ghu_[A-Za-z0-9]{36,}",
    "ghr_": _WORD + r"ghr_[A-Za-z0-9]{36,}",
    "github_pat_": _WORD + r"github_pat_\w{50,}",
    "glpat-": _WORD + r"glpat-[\w-]{20,}",
    "hf_": _WORD + r"hf_[A-Za-z0-9]{30,}",
    "gsk_": _WORD + r"gsk_[A-Za-z0-9]{40,}",
    "csk-": _DASHED + r"csk-(?=[a-z0-9]*\d)[a-z0-9]{40,}",
    "fw_": _WORD + r"fw_(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{22,}",
    "tgp_v1_": _WORD + r"tgp_v1_[\w-]{30,}",
    "npm_": _WORD + r"npm_[A-Za-z0-9]{36,}",
    "pypi-AgE": _DASHED + r"pypi-AgE[\w-]{50,}",
    "ya29.": _WORD + r"ya29\.[\w-]{30,}",
    "r8_": _WORD + r"r8_[A-Za-z0-9]{36,}",
    "xox": _WORD + r"xox[abeoprs]-[\w-]{20,}",
    "xai-": _WORD + r"xai-[A-Za-z0-9]{60,}",
    "nvapi-": _WORD + r"nvapi-[\w-]{40,}",
    "pplx-": _WORD + r"pplx-[A-Za-z0-9]{40,}",
    "AKIA": _BASE64 + r"AKIA[0-9A-Z]{16}(?![A-Za-z0-9+/])",
    "ASIA": _BASE64 + r"ASIA[0-9A-Z]{16}(?![A-Za-z0-9+/])",
    "AIza": _DASHED + r"AIza[\w-]{35}(?![\w-])",
    ".eyJ": _WORD + r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "://": r"(?<=://)(?:[^\s/:@'\"]{0,100}:[^\s/@'\"]{1,200}|[^\s/:@'\"]{20,200})(?=@)",
    "earer ": _WORD + r"[Bb]earer +(?!\[secret)[\w.~+/=-]{16,}",
}
"""Keys that show by their form what they are, by a text that each of them holds.

Never "any 32 letters": hashes must survive.
"""


class Redactor:
    """Replaces secrets by ``[secret NAME]``, or ``[secret]`` for those without a name.

    A secret is a known value, in any of its usual spellings (raw, base64, hexadecimal,
    URL-encoded, JSON-escaped), or a text with the shape of a well-known kind of key. No secret
    spans lines, so that a stream may be cleaned line by line. Safe to share between threads.

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
        self._byte_values = [(_bytes(text), mark.encode()) for text, mark in self._values]

    def __repr__(self) -> str:
        return f"<Redactor of {', '.join(sorted(set(self._names.values()))) or 'shapes only'}>"

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        extra: Mapping[str, str] | None = None,
        named: Iterable[str] = (),
    ) -> Redactor:
        """Return a redactor of the variables whose names look like those of secrets.

        Args:
            environ: ``os.environ`` by default.
            extra: more secrets, value by name.
            named: variables that hold a secret whatever their names look like; those that
                are not set are left out.
        """
        environ = os.environ if environ is None else environ
        told = {name: environ[name] for name in named if environ.get(name)}
        return cls({**secret_variables(environ), **told, **(extra or {})})

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

    def places(self, value: Any, prefix: str = "") -> Iterator[str]:
        """Yield the dotted keys of a JSON value below which a text holds a secret."""
        if isinstance(value, str):
            if self.clean(value) != value:
                yield prefix
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from self.places(item, f"{prefix}.{key}" if prefix else str(key))
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from self.places(item, prefix)

    def clean_files(self, folder: Path, spare: Collection[str] = ()) -> None:
        """Take secrets out of the files below a folder, in place; links are not followed.

        Args:
            spare: names of files that are left as they are.
        """
        for parent, _, names in os.walk(folder):
            for name in names:
                if name not in spare:
                    self._clean_file(Path(parent, name))

    def _clean_file(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # a link, or gone
            return
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return
            if all(self.clean(part) == part for part in _parts(file)):
                return
            file.seek(0)
            self._rewrite(path, file)

    def _rewrite(self, path: Path, file: BinaryIO) -> None:
        copy, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(copy, "wb") as target:
                os.fchmod(copy, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
                target.writelines(self.clean(part) for part in _parts(file))
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def _parts(file: BinaryIO) -> Iterator[bytes]:
    """Yield the file in parts that end where a line does, if lines are not endless."""
    while part := file.read(CHUNK):
        yield part + file.readline(CHUNK)


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
    """Return the variables whose names and values look like those of secrets.

    The variable that ``SPEEDKIT_LLM_API_KEY_ENV`` names is one of them, whatever its name.
    """
    told = environ.get(_NAMING_VARIABLE)
    return {
        name: value
        for name, value in environ.items()
        if (name == told and value)
        or (
            _SECRET_NAME.search(name)
            and not _NOT_A_SECRET_NAME.search(name)
            and not _PLAIN_VALUE.fullmatch(value)
            and not value.startswith("/")
        )
    }


def _spellings(secrets: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in secrets.items():
        for line in value.splitlines():
            if len(line.strip()) >= MIN_SECRET_LENGTH:
                for spelling in _spellings_of(line.strip()):
                    yield spelling, name


def _bytes(text: str) -> bytes:
    """Return a text as the environment holds it, where it need be no UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _spellings_of(value: str) -> set[str]:
    code = _bytes(value)
    quoted = {quote(code, safe=""), quote(code), quote_plus(code)}
    lower = {re.sub(r"%[0-9A-F]{2}", lambda m: m.group().lower(), text) for text in quoted}
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    slashed = {text.replace("/", r"\/") for text in escaped}
    hexadecimal = {code.hex(), code.hex().upper()}
    return {value, *quoted, *lower, *escaped, *slashed, *hexadecimal, *_base64_spellings(code)}


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
