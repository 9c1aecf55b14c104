"""What can be said of a script before it takes a lane: it parses, and its imports are there."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from speedkit.core.syntax import is_constant, quiet

MAX_SCRIPT = 2 * 1024 * 1024
"""Bytes; a longer script is refused."""
ASK_S = 60
"""Seconds that the interpreter may take to say which modules it has."""
MAX_SHOWN = 200
"""Characters of a source line that are shown."""
_FOLDERS = frozenset({"data", "logs"})
"""Folders of a workspace, which Python takes for packages."""
_SYSTEM = ("sys", "site")
_SEARCH_PATH = ("path", "modules", "meta_path", "path_hooks", "addsitedir")
"""Names by which a script changes where modules come from."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_ASK = """
import importlib.util, json, sys
def found(name):
    try: return importlib.util.find_spec(name) is not None
    except ValueError: return True
asked = json.load(sys.stdin)
sys.path[:0] = asked["path"]
print(json.dumps([name for name in asked["names"] if found(name)]))
"""


@dataclass(frozen=True)
class Preflight:
    """What the look at a script came to.

    Attributes:
        reason: one line for the user: what is wrong, and where; empty when nothing is.
        traceback: the same in the form in which Python would say it.
    """

    reason: str = ""
    traceback: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against running the script."""
        return not self.reason


PASSED = Preflight()


def check(
    files: Mapping[str, str],
    script: str,
    python: str | None = sys.executable,
    python_path: Iterable[str] = (),
) -> Preflight:
    """Look at a script, and at those of its files that it imports.

    Only what is sure to fail is refused. An import counts where it is a statement of the
    module itself: one inside a function, a ``try`` or an ``if`` may be left out on purpose.
    Nothing of the script is run or imported.

    Args:
        files: the files of the node, text by name.
        script: name of the file that is run.
        python: the interpreter that will run it; None to look at no imports.
        python_path: further folders in which that interpreter will look for modules.
    """
    wanted: dict[str, tuple[str, int]] = {}
    waiting, seen = [script], {script}
    while waiting:
        name = waiting.pop(0)
        tree = parse_file(name, files[name])
        if isinstance(tree, Preflight):
            if _other_python_parses(python, files[name]):
                continue
            return tree
        fault = _script_fault(name, files[name], tree) if name == script else None
        if fault is not None:
            return fault
        for module, line in _imports(tree):
            local = _local_file(module, files)
            if local and local not in seen:
                seen.add(local)
                waiting.append(local)
            elif not local and not _is_local_folder(module, files):
                wanted.setdefault(module, (name, line))
    if python is None or not wanted:
        return PASSED
    known = modules.known(python, tuple(python_path), wanted)
    missing = next((module for module in wanted if module not in known), None)
    return PASSED if missing is None else _not_found(missing, *wanted[missing], files)


# --- syntax -----------------------------------------------------------------------------

CRASH_LENGTH = 100_000
"""Characters; only a longer text nests so deeply that the parser of Python 3.10 dies of it."""
_CAN_CRASH = sys.version_info < (3, 11)
_TRY = "import ast, sys; compile(ast.parse(sys.stdin.buffer.read()), 'script', 'exec')"


def parse(text: str, name: str = "script", *, compiled: bool = True) -> ast.Module:
    """Parse a text as Python reads it from a file, without warnings.

    Args:
        text: the source.
        name: what the text is called in errors.
        compiled: whether to compile it as well, which finds more errors.

    Raises:
        SyntaxError: it is no Python.
        ValueError: it holds a NUL character, or a number that is too long.
        RecursionError: it is nested too deeply, as is MemoryError.
    """
    if _CAN_CRASH and len(text) > CRASH_LENGTH and _try(sys.executable, text) not in (0, 1):
        raise RecursionError
    with quiet():
        tree = ast.parse(text.removeprefix("\ufeff"), name)
        if compiled:
            compile(tree, name, "exec", dont_inherit=True)
    return tree


def _try(python: str, text: str) -> int | None:
    """Return the exit status of an interpreter that parses a text; None if it does not run."""
    command = [python, "-I", "-c", _TRY]
    data = text.encode("utf-8", "surrogatepass")
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=ASK_S).returncode
    except (OSError, subprocess.TimeoutExpired):
        return None


def _other_python_parses(python: str | None, text: str) -> bool:
    """Whether a script that is no Python here is some for the one that will run it."""
    if python is None or python == sys.executable or _text_problem(text):
        return False
    return _try(python, text) == 0


def parse_file(name: str, text: str) -> ast.Module | Preflight:
    """Return the syntax tree of a file, or why it cannot be run."""
    if problem := _text_problem(text):
        return _syntax_error(name, *problem)
    try:
        tree = parse(text, name)
    except SyntaxError as error:
        return _syntax_error(name, error.msg, error.lineno, error.text, type(error).__name__)
    except (RecursionError, MemoryError):
        return _syntax_error(name, "it is nested too deeply to be parsed")
    except (ValueError, OverflowError) as error:
        return _syntax_error(name, str(error))
    return tree


def _text_problem(text: str) -> tuple[str, int | None] | None:
    """Return what is wrong with a text as such, and the line."""
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_SCRIPT:
        return f"it has {size} bytes; at most {MAX_SCRIPT} are allowed", None
    if "\0" in text:
        return "there is a NUL character", _line_of(text, text.index("\0"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return "there is a character that is no valid Unicode", _line_of(text, error.start)
    return None


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _syntax_error(
    name: str,
    message: str,
    line: int | None = None,
    text: str | None = None,
    kind: str = "SyntaxError",
) -> Preflight:
    where = name if line is None else f"{name}, line {line}"
    shown = f"    {_short(text)}\n" if text and text.strip() else ""
    place = f'  File "{name}"' + ("" if line is None else f", line {line}") + "\n"
    return Preflight(f"{where}: {_short(message)}", f"{place}{shown}{kind}: {_short(message)}")


def _short(text: str) -> str:
    """Return the beginning of a text as one printable line."""
    line = " ".join(text[: 4 * MAX_SHOWN].split())[:MAX_SHOWN]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


# --- imports ----------------------------------------------------------------------------


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the top-level modules that are imported for sure, with their lines.

    None where the code may change where its modules come from.
    """
    if any(_moves_search_path(node) for node in ast.walk(tree)):
        return
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.name.partition(".")[0], statement.lineno
        elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
            yield str(statement.module).partition(".")[0], statement.lineno


def _moves_search_path(node: ast.AST) -> bool:
    """Whether a node of the tree may change where modules come from."""
    if isinstance(node, ast.Attribute):
        return node.attr in _SEARCH_PATH and _is_name(node.value, _SYSTEM)
    if isinstance(node, ast.ImportFrom):
        return node.module in _SYSTEM and any(a.name in _SEARCH_PATH for a in node.names)
    if isinstance(node, ast.Import):
        return any(a.name in _SYSTEM and a.asname for a in node.names)
    return False


def _is_name(node: ast.expr, names: tuple[str, ...]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _local_file(module: str, files: Mapping[str, str]) -> str:
    """Return the file of the node that a module is, empty if none."""
    names = (f"{module}.py", f"{module}/__init__.py")
    return next((name for name in names if name in files), "")


def _is_local_folder(module: str, files: Mapping[str, str]) -> bool:
    return module in _FOLDERS or any(PurePosixPath(name).parts[0] == module for name in files)


def _script_fault(name: str, text: str, tree: ast.Module) -> Preflight | None:
    """Return what is wrong with a file as a script: no code, or a relative import."""
    if all(is_constant(statement) for statement in tree.body):
        return _syntax_error(name, "there is no code in it")
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.level:
            message = "attempted relative import with no known parent package"
            return _import_error(name, text, statement.lineno, "ImportError", message)
    return None


def _not_found(module: str, name: str, line: int, files: Mapping[str, str]) -> Preflight:
    message = f"No module named {module!r}"
    return _import_error(name, files[name], line, "ModuleNotFoundError", message)


def _import_error(name: str, text: str, line: int, kind: str, message: str) -> Preflight:
    source = _short(_LINE_END.split(text)[line - 1])
    return Preflight(
        f"{name}, line {line}: {message}",
        "Traceback (most recent call last):\n"
        f'  File "{name}", line {line}, in <module>\n    {source}\n{kind}: {message}',
    )


class InstalledModules:
    """Which top-level modules interpreters have, asked once for each that is there."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...]], set[str]] = {}
        self._asking = threading.Lock()

    def known(
        self, python: str, python_path: tuple[str, ...], names: Iterable[str]
    ) -> frozenset[str]:
        """Return those of the names that the interpreter finds.

        One that cannot be asked is taken to have them all: that is no fault of the script.
        What it lacked is asked again, as it may have been installed since.
        """
        with self._asking:
            known = self._known.setdefault((python, python_path), set())
            wanted = set(names)
            if new := wanted - known:
                known |= _ask(python, python_path, new)
            return frozenset(wanted & known)


modules = InstalledModules()
"""What was learnt of the interpreters in this process."""


def _ask(python: str, python_path: tuple[str, ...], names: set[str]) -> set[str]:
    question = json.dumps({"path": list(python_path), "names": sorted(names)})
    command = [python, "-I", "-c", _ASK]
    try:
        answer = subprocess.run(
            command, input=question, capture_output=True, text=True, timeout=ASK_S, check=True
        )
        return set(json.loads(answer.stdout))
    except (OSError, ValueError, subprocess.SubprocessError):
        return names
