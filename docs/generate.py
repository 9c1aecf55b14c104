"""Write the parts of the reference that follow from the code.

A page holds ``<!-- generated: NAME -->`` and ``<!-- end -->``; what stands between them is
replaced.

    python docs/generate.py            # write the pages
    python docs/generate.py --check    # exit status 1 if one is not as it would be written
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from enum import EnumMeta
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel

REFERENCE = Path(__file__).resolve().parent / "reference"
BUILTIN = "speedkit.plugins"
"""The module of the plugin that comes with speedkit."""
WIDTH = 100
"""Characters of a line of code."""
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """Return a page with its generated parts as they should be."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{PARTS[m[2]]().strip()}\n\n{m[3]}", text)


def stale() -> list[Path]:
    """Return the pages that are not as they would be written."""
    pages = sorted(REFERENCE.glob("*.md"))
    return [p for p in pages if (text := p.read_text(encoding="utf-8")) != rendered(text)]


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or say which are stale."""
    pages = stale()
    for page in pages:
        if "--check" in arguments:
            print(f"{page.name} is stale; run: python docs/generate.py")
        else:
            page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"wrote {page.name}")
    return int(bool(pages) and "--check" in arguments)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells are Markdown without line ends."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def code(text: str) -> str:
    """Return a text as Markdown code, an empty one as nothing."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Return a sentence that holds names in double backticks or angle brackets as Markdown."""
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    return " ".join(plain.replace("<", "&lt;").split())


# --- the command line -----------------------------------------------------------------------


def commands() -> str:
    """Return a section for each command of the built-in plugin."""
    from speedkit.core.plugins import Plugins

    found = Plugins(load=[BUILTIN], entry_points=False).commands().items()
    own = [(name, one.load()) for name, one in found if one.origin.plugin == BUILTIN]
    return "\n\n".join(_command(f"speedkit {name}", command, 2) for name, command in own)


def _command(path: str, command: click.Command, level: int) -> str:
    """Return the section of a command, and those of the commands below it."""
    context = click.Context(command, info_name=path)
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    group = isinstance(command, click.Group)
    usage = " ".join([path, "[OPTIONS]", *map(_argument, arguments), *["COMMAND ..."] * group])
    parts = [f"{'#' * level} {path}", f"```text\n{usage}\n```", _help(command)]
    rows = [_option(p) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if rows:
        parts.append(table(("option", "value", "what it does"), rows))
    if isinstance(command, click.Group):
        below = [(n, command.get_command(context, n)) for n in command.list_commands(context)]
        parts += [_command(f"{path} {n}", c, level + 1) for n, c in below if c is not None]
    return "\n\n".join(part for part in parts if part)


def _help(command: click.Command) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(_paragraph(p) for p in paragraphs)


def _paragraph(text: str) -> str:
    """Return a paragraph of help; one that click would not wrap keeps its lines."""
    kept = text.startswith("\b\n")
    return f"```text\n{text[2:]}\n```" if kept else prose(text)


def _argument(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    name = (argument.name or "").upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _option(option: click.Option) -> tuple[str, str, str]:
    names = ", ".join(code(name) for name in [*option.opts, *option.secondary_opts])
    return names, code(_value(option)), prose(option.help or "")


def _value(option: click.Option) -> str:
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return " | ".join(map(str, option.type.choices))
    return option.type.name.upper().removesuffix(" RANGE")


# --- components -----------------------------------------------------------------------------


def components() -> str:
    """Return a section for each kind, with the built-in components and their options."""
    sections = []
    for kind, entries in _by_kind(_builtin_components()).items():
        sections.append(f"## {kind}")
        sections += [_component(entry) for entry in entries]
    return "\n\n".join(sections)


def _builtin_components() -> list[dict[str, Any]]:
    """Return what `speedkit plugins list --options --json` says of the built-in plugin."""
    from click.testing import CliRunner

    from speedkit.cli.main import cli

    done = CliRunner().invoke(cli, ["plugins", "list", "--options", "--json"])
    if done.exception is not None:
        raise done.exception
    found: list[dict[str, Any]] = json.loads(done.stdout)["components"]
    return [c for c in found if c["plugin"] == "builtin"]


def _by_kind(entries: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        kinds.setdefault(entry["kind"], []).append(entry)
    return kinds


def _component(entry: Mapping[str, Any]) -> str:
    if entry["reason"] is not None:
        raise RuntimeError(f"{entry['kind']} {entry['name']}: {entry['reason']}")
    title = f"### {entry['name']} ({entry['kind']})"
    rows = [_component_option(option) for option in entry["options"]]
    headers = ("option", "type", "default", "what it does")
    options = table(headers, rows) if rows else "No options."
    return f"{title}\n\n{_about(entry['kind'], entry['name'])}\n\n{options}"


def _about(kind: str, name: str) -> str:
    """Return the first paragraph of the docstring of a component."""
    from speedkit.core.plugins import Plugins

    plugins = Plugins(load=[BUILTIN], entry_points=False)
    one = next(r for r in plugins.registrations(kind) if r.name == name)
    return prose((inspect.getdoc(one.load()) or "").split("\n\n")[0])


def _component_option(option: Mapping[str, Any]) -> tuple[str, str, str, str]:
    default = "required" if option["required"] else _default(option["default"])
    return code(option["name"]), code(option["type"]), default, prose(option["description"])


def _default(value: Any) -> str:
    return "none" if value is None else code(value if isinstance(value, str) else json.dumps(value))


# --- configuration --------------------------------------------------------------------------


def settings() -> str:
    """Return the keys of a run's configuration."""
    from speedkit.core.config import RunConfig

    groups = ("options", "llm", "stop")
    fields = _fields(RunConfig, skip=groups)
    rows = [
        (key, kind, default, code(_variable(name)), text)
        for name, key, kind, default, text in fields
    ]
    return table(("key", "type", "default", "environment", "what it is"), rows)


def model_settings() -> str:
    """Return the keys of the table `llm`, but for those with a key of their own."""
    from speedkit.core.llm_types import LLMSettings

    own = ("model", "api_base", "max_cost", "max_tokens", "cache", "cache_mode")
    return _settings(LLMSettings, own)


def stop_settings() -> str:
    """Return the keys of the table `stop`."""
    from speedkit.core.curve_stop import CurveStop

    return _settings(CurveStop, ())


def _settings(model: type[BaseModel], skip: Sequence[str]) -> str:
    rows = [row[1:] for row in _fields(model, skip)]
    return table(("key", "type", "default", "what it is"), rows)


def _fields(
    model: type[BaseModel], skip: Sequence[str] = ()
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield name, and as Markdown key, type, default and description of each field."""
    for name, field in model.model_fields.items():
        if name not in skip:
            value = field.get_default(call_default_factory=True)
            default = "none" if value in (None, ()) else _default(value)
            kind = _type(field.annotation)
            yield name, code(name), code(kind), default, prose(field.description or "")


def _type(annotation: Any) -> str:
    """Return a type as one would write it; that None is allowed is seen from the default."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    return inspect.formatannotation(annotation).removesuffix(" | None")


def _variable(name: str) -> str:
    return f"SPEEDKIT_{name.upper()}"


# --- hooks, exit status ---------------------------------------------------------------------


def hooks() -> str:
    """Return every hook with its arguments and meaning."""
    from speedkit.core import hookspecs

    functions = [f for _, f in inspect.getmembers(hookspecs, inspect.isfunction)]
    specified = [f for f in functions if hasattr(f, "speedkit_spec")]
    ordered = sorted(specified, key=lambda f: f.__code__.co_firstlineno)
    rows = [(code(_signature(f)), prose(inspect.getdoc(f) or "")) for f in ordered]
    return table(("hook", "when, or what for"), rows)


def _signature(function: Callable[..., Any]) -> str:
    return f"{function.__name__}({', '.join(inspect.signature(function).parameters)})"


def errors() -> str:
    """Return the errors that speedkit raises on purpose, with their exit status."""
    from speedkit.core import errors as module

    found = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    own = [c for c in found if issubclass(c, module.SpeedkitError)]
    ordered = sorted(own, key=lambda c: (c.exit_code, len(c.__mro__), c.__name__))
    rows = [
        (str(c.exit_code), code(c.__name__), prose((inspect.getdoc(c) or "").split("\n\n")[0]))
        for c in ordered
    ]
    return table(("status", "error", "what happened"), rows)


# --- the public names -----------------------------------------------------------------------


def public() -> str:
    """Return a section for each public name of speedkit."""
    import speedkit

    return _names(speedkit)


def public_testing() -> str:
    """Return a section for each public name of the kit for authors of plugins."""
    import speedkit.testing

    return _names(speedkit.testing)


def public_model() -> str:
    """Return a section for the method by which a component asks the language model."""
    from speedkit.core.llm import LLM

    return f"### complete\n\n{_public('complete', LLM.complete)}"


def _names(module: Any) -> str:
    names = sorted(module.__all__, key=str.lower)
    return "\n\n".join(f"### {name}\n\n{_public(name, getattr(module, name))}" for name in names)


def _public(name: str, value: Any) -> str:
    """Return what is to be said of a public name: how it is called, what it is, what it has."""
    if name in PLAIN:
        return PLAIN[name]
    parts = [_docstring(value)]
    is_called = inspect.isfunction(value) or is_dataclass(value)
    if is_called:
        parts.insert(0, _code_block(name, inspect.signature(value)))
    if isinstance(value, EnumMeta):
        members: Iterable[Any] = value.__members__.values()
        parts.append("\n".join(f"- `{name}.{one.name}`: `{one.value}`" for one in members))
    elif inspect.isclass(value):
        parts += [f"A subclass of `{b.__name__}`." for b in value.__bases__ if _is_public(b)]
        parts += _described_fields(value)
        parts += [_member(value, *item) for item in vars(value).items() if _is_member(*item)]
    return "\n\n".join(parts)


PLAIN = {
    "hookimpl": "Marks a function of a plugin as the implementation of the hook of the same name.",
    "Message": "A message of a talk, a mapping: `role` (`user` or `assistant`) and `content`.",
    "TINY": "The folder of the tiny family, a `pathlib.Path`.",
}
"""What is to be said of names without a docstring of their own."""


def _is_public(cls: type) -> bool:
    import speedkit

    return cls.__name__ in speedkit.__all__


def _described_fields(cls: type) -> list[str]:
    """Return a list of the fields of options that say what they are."""
    fields = getattr(cls, "model_fields", {}).items()
    found = [f"- `{name}`: {prose(f.description)}" for name, f in fields if f.description]
    return ["\n".join(found)] if found else []


MEMBERS: tuple[Any, ...] = (property, cached_property, classmethod, FunctionType)
"""What of a class is shown."""


def _is_member(name: str, value: Any) -> bool:
    return isinstance(value, MEMBERS) and (name == "__call__" or not name.startswith("_"))


def _member(cls: type, name: str, value: Any) -> str:
    """Return a paragraph on a property or method, with what its docstring lists."""
    shown = name
    if not isinstance(value, property | cached_property):
        shown = _call(name, inspect.signature(getattr(cls, name)))
    needed = ", to be defined" if getattr(value, "__isabstractmethod__", False) else ""
    return f"**`{shown}`**{needed}: {_docstring(value)}"


def _call(name: str, signature: inspect.Signature, between: str = ", ") -> str:
    """Return how something is called; ``between`` stands between two arguments."""
    result = signature.return_annotation
    end = "" if result in (None, "None", signature.empty) else f" -> {result}"
    return f"{name}({between.join(_arguments(signature))}){end}"


def _arguments(signature: inspect.Signature) -> Iterator[str]:
    is_by_name = False
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not is_by_name:
            is_by_name = True
            yield "*"
        stars = "*" * (one.kind is one.VAR_POSITIONAL) or "**" * (one.kind is one.VAR_KEYWORD)
        kind = "" if one.annotation is one.empty else f": {one.annotation}"
        default = repr(one.default)
        default = "" if one.default is one.empty else f" = {'...' if '<' in default else default}"
        yield f"{stars}{one.name}{kind}{default}"


def _code_block(name: str, signature: inspect.Signature) -> str:
    """Return how something is called as a block of code, an argument a line if it is long."""
    text = _call(name, signature)
    if len(text) > WIDTH:
        head, _, tail = _call(name, signature, ",\n    ").partition("(")
        inner, close, end = tail.rpartition(")")
        text = f"{head}(\n    {inner},\n{close}{end}"
    return f"```python\n{text}\n```"


def _docstring(value: Any) -> str:
    """Return the docstring of a class or function as Markdown, its sections as lists."""
    return "\n\n".join(map(_docstring_part, (inspect.getdoc(value) or "").split("\n\n")))


def _docstring_part(text: str) -> str:
    head, _, rest = text.partition("\n")
    if head not in ("Args:", "Attributes:", "Raises:", "Returns:"):
        return prose(text)
    if head == "Returns:":
        return f"Returns: {prose(rest)}"
    items = (one.partition(": ") for one in re.split(r"\n(?! )", textwrap.dedent(rest)))
    listed = "\n".join(f"- `{name}`: {prose(about)}" for name, _, about in items)
    return f"Raises:\n\n{listed}" if head == "Raises:" else listed


PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "components": components,
    "settings": settings,
    "model_settings": model_settings,
    "stop_settings": stop_settings,
    "hooks": hooks,
    "errors": errors,
    "public": public,
    "public_model": public_model,
    "public_testing": public_testing,
}
"""What makes each generated part."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
