"""What a script reaches for: modules, the system, files, its environment, hidden code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from speedkit.plugins.guards._evaluation_code import SEED
from speedkit.plugins.guards._syntax import (
    FUNCTIONS,
    Issue,
    Script,
    imported_modules,
    last_name,
    quarantine,
    reject,
    texts,
    words,
)

ALLOWED = words(
    "__future__ abc argparse bisect collections contextlib copy dataclasses datetime enum "
    "functools gc glob heapq itertools json math numbers numpy operator os pathlib random re "
    "statistics string subprocess sys time torch triton typing typing_extensions uuid warnings"
)
"""Modules that a training script may import whether its start record does or not.

Of subprocess it may use what asks for the GPUs alone, which is looked at by itself.
"""
FORBIDDEN = words(
    "_ctypes _thread builtins cffi code codeop ctypes datasets fcntl ftplib http httpx "
    "huggingface_hub imp importlib marshal mmap multiprocessing pdb pickle pkgutil posix psutil "
    "pty requests runpy shelve shutil signal site smtplib socket socketserver speedkit ssl "
    "telnetlib transformers urllib urllib3 wandb webbrowser xmlrpc zipimport"
)
"""Modules that reach outside the script: other programs, the network, files, running code."""
FORBIDDEN_PARTS = (
    "torch.distributed.elastic",
    "torch.distributed.launcher",
    "torch.distributed.rpc",
    "torch.distributed.run",
    "torch.hub",
    "torch.multiprocessing",
    "torch.package",
    "torch.utils.cpp_extension",
    "torch.utils.model_zoo",
)
OS_ALLOWED = words(
    "environ path makedirs getpid getenv cpu_count sep fspath PathLike stat sched_getaffinity "
    "urandom"
)
OS_FORBIDDEN = re.compile(
    r"system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork\w*|kill\w*|_exit|abort|setsid|set\w*id|"
    r"open|write|dup\w*|pipe\w*|link|symlink|rename\w*|replace|remove\w*|unlink|rmdir|truncate|"
    r"ch(?:mod|own|dir|root)|mkfifo|mknod|putenv|unsetenv|ptrace|memfd_create|sendfile"
)
SYS_ALLOWED = words(
    "argv version version_info stdout stderr platform maxsize byteorder float_info executable "
    "setrecursionlimit"
)
SYS_FORBIDDEN = words(
    "modules _getframe _current_frames settrace setprofile path meta_path path_hooks "
    "path_importer_cache addaudithook displayhook excepthook __stdout__ __stderr__"
)
LOADERS = (
    *("torch.load", "torch.jit.load", "torch.export.load", "torch.ops.load_library"),
    *("torch.classes.load_library", "torch.UntypedStorage.from_file", "torch.serialization"),
    *("numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.loadtxt", "numpy.genfromtxt"),
    *("numpy.lib", "numpy.ctypeslib"),
)
"""What reads weights, libraries or arrays from files."""
CODE = words("exec eval compile __import__ globals breakpoint input")
"""Built-in functions that run, or reach, what a reader of the script does not see."""
DOUBTFUL_CODE = words("locals vars exit quit delattr")
HIDDEN = words(
    "__globals__ __builtins__ __subclasses__ __code__ __closure__ __loader__ __spec__ __bases__ "
    "__mro__ __base__ __self__ __wrapped__ _getframe f_globals f_locals f_back f_builtins "
    "tb_frame gi_frame cr_frame ag_frame"
)
"""Names that lead from an object to the interpreter behind it."""
INNER = words(
    "os _os sys _sys builtins bltns importlib subprocess ctypes socket shutil pickle inspect "
    "threading _thread multiprocessing runpy"
)
"""Modules that other modules have imported for themselves: ``glob.os``."""
OUT_OF_SIGHT = words(
    "get_type_hints ForwardRef CompilationUnit PyCodeCache TorchFunctionMode TorchDispatchMode "
    "__torch_function__ __torch_dispatch__ __format__ __str__ __repr__"
)
"""What runs text, or stands between a script and its functions or what it prints."""
ATTRIBUTES_BY_TEXT = ("operator.attrgetter", "operator.methodcaller")
COLLECTING = words("collect enable disable freeze unfreeze is_tracking get_threshold set_threshold")
"""What a script may use of gc; the rest finds objects that no name leads to."""
FILE_METHODS = words(
    "write_text write_bytes read_text read_bytes unlink symlink_to hardlink_to rglob iterdir "
    "rename rmtree touch"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_PLACES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_KEPT = re.compile(r"CACHE|TMP|TEMP|HOME|_DIR$")
_TUNING = ("TORCH", "PYTORCH", "CUDA", "NCCL", "OMP_", "MKL_", "TRITON", "GLOO_", "KMP_")
_OUTSIDE = re.compile(r"(?:/|~/?|\.\./?)[\w.][\w.*/~@+-]+")
_LEFT_BEHIND = re.compile(
    r"\.pth\b|sitecustomize|usercustomize|site-packages|LD_PRELOAD|/proc/|https?://|hf\.co"
)


def find(node: Script, start: Script) -> Iterator[Issue]:
    """Yield what the script reaches for and its start record does not."""
    yield from _imports(node, start)
    yield from _uses(node, start)
    yield from _attributes(node, start)
    yield from _out_of_sight(node, start)
    yield from _computed(node, start)
    yield from _environment(node, start)
    yield from _paths(node, start)


# --- modules ----------------------------------------------------------------------------


def _imports(node: Script, start: Script) -> Iterator[Issue]:
    tops = {name.partition(".")[0] for name in start.modules}
    for statement, name in imported_modules(node.nodes):
        top = name.partition(".")[0]
        if any(f"{name}.".startswith(f"{part}.") for part in FORBIDDEN_PARTS):
            yield reject(statement, f"imports {name}")
        elif name.endswith(".*") and name not in start.modules:
            yield reject(statement, f"imports {name}, so that nobody sees which names it binds")
        elif top in FORBIDDEN and top not in tops:
            yield reject(statement, f"imports {name}, which reaches outside the script")
        elif top not in tops and top not in ALLOWED:
            what = "a file of its own folder" if not top else f"{name}, which its start does not"
            yield quarantine(statement, f"imports {what}")


def _uses(node: Script, start: Script) -> Iterator[Issue]:
    for at, name in node.used:
        top, _, rest = name.partition(".")
        if name in start.uses:
            continue
        part = rest.partition(".")[0]
        if top == "os" and part and part not in OS_ALLOWED:
            make = reject if OS_FORBIDDEN.fullmatch(part) else quarantine
            yield make(at, f"uses os.{part}")
        elif top == "subprocess" and part not in ("", "PIPE") and not _asks_for_gpus(node, at):
            yield reject(at, f"uses {name}: the script may not start programs")
        elif top == "sys" and part and part not in SYS_ALLOWED:
            make = reject if part in SYS_FORBIDDEN else quarantine
            yield make(at, f"uses sys.{part}")
        elif node.is_imported(at) and INNER & {*rest.split(".")}:
            yield reject(at, f"uses {name}, a module that another one imported")
        elif any(f"{name}.".startswith(f"{loader}.") for loader in LOADERS):
            yield reject(at, f"uses {name}, which reads a file")
        elif any(f"{name}.".startswith(f"{part}.") for part in FORBIDDEN_PARTS):
            yield reject(at, f"uses {name}")
        elif name in CODE:
            yield reject(at, f"uses {name}, which runs or reaches hidden code")
        elif name in DOUBTFUL_CODE:
            yield quarantine(at, f"uses {name}")
        elif name in ("contextlib.redirect_stdout", "contextlib.redirect_stderr"):
            yield reject(at, f"uses {name}: output must go where the start record sends it")
        elif name in ATTRIBUTES_BY_TEXT or (top == "gc" and part and part not in COLLECTING):
            yield quarantine(at, f"uses {name}")


def _asks_for_gpus(script: Script, at: ast.expr) -> bool:
    """Whether this is part of ``subprocess.run(["nvidia-smi"], ...)``, as many records have it."""
    call = next((n for n in script.inside(at) if isinstance(n, ast.Call)), None)
    if call is None or call.func is not at or not call.args:
        return False
    command = call.args[0]
    parts = command.elts if isinstance(command, ast.List) else []
    fixed = {k.arg for k in call.keywords} <= {"stdout", "stderr", "text", "check"}
    return fixed and [getattr(p, "value", None) for p in parts] == ["nvidia-smi"]


def _attributes(node: Script, start: Script) -> Iterator[Issue]:
    known = {last_name(n) for n in start.nodes}
    for at in node.nodes:
        name = last_name(at)
        if not name or name in known:
            continue
        if name in HIDDEN:
            yield reject(at, f"uses {name}, which leads into the interpreter")
        elif name == "__dict__":
            yield quarantine(at, "uses __dict__")
        elif name in FILE_METHODS and isinstance(at, ast.Attribute):
            yield quarantine(at, f"uses .{name}, which works on files")


def _out_of_sight(node: Script, start: Script) -> Iterator[Issue]:
    """Yield what runs text, or changes what functions and values do where nobody looks."""
    known = {name for _, name in _mentioned(start)}
    for at, name in _mentioned(node):
        if name in OUT_OF_SIGHT and name not in known:
            yield quarantine(at, f"uses {name}, whose effect is seen elsewhere")


def _mentioned(script: Script) -> Iterator[tuple[ast.AST, str]]:
    """Yield names that are used, defined and imported."""
    for node in script.nodes:
        if isinstance(node, FUNCTIONS):
            yield node, node.name
        elif name := last_name(node):
            yield node, name
    for statement, name in imported_modules(script.nodes):
        yield statement, name.rpartition(".")[2]


def _computed(node: Script, start: Script) -> Iterator[Issue]:
    """Yield attributes whose names are not in the source."""
    for at in node.nodes:
        if not isinstance(at, ast.Call) or last_name(at.func) not in ("getattr", "setattr"):
            continue
        if len(at.args) < 2 or isinstance(at.args[1], ast.Constant):
            continue
        if ast.unparse(at) in start.calls:
            continue
        make = reject if node.is_imported(at.args[0]) else quarantine
        yield make(at, f"reaches an attribute by a computed name: {ast.unparse(at)[:80]}")


# --- environment ------------------------------------------------------------------------


def _environment(node: Script, start: Script) -> Iterator[Issue]:
    known = {key for _, key, _ in _variables(start)}
    if SEED in known and SEED not in {key for _, key, is_set in _variables(node) if not is_set}:
        yield quarantine(
            None, f"takes no seed from {SEED} any more, so that none can be drawn anew"
        )
    for at, key, is_set in _variables(node):
        if key is None:
            yield reject(at, "reads the whole environment, or a variable of a computed name")
        elif _SECRET.search(key):
            yield reject(at, f"reads {key} of the environment")
        elif not is_set and key not in known and _KEPT.search(key):
            yield quarantine(at, f"reads {key} of the environment, a folder outside its own")
        elif is_set and key in _PLACES:
            yield reject(at, f"sets {key}: the number of processes is not the script's to choose")
        elif is_set and key not in known and not key.startswith(_TUNING):
            yield quarantine(at, f"sets {key} in the environment")


def _variables(script: Script) -> Iterator[tuple[ast.AST, str | None, bool]]:
    """Yield uses of environment variables: where, which (None: unknown), whether it is set."""
    for at, name in script.used:
        if name == "os.environ":
            yield _variable(script, at)
        elif name == "os.getenv":
            yield at, _first_text(script.parents[id(at)]), False


def _variable(script: Script, node: ast.expr) -> tuple[ast.AST, str | None, bool]:
    parent = script.parents[id(node)]
    if isinstance(parent, ast.Subscript) and parent.value is node:
        key = parent.slice.value if isinstance(parent.slice, ast.Constant) else None
        return node, str(key) if key is not None else None, not isinstance(parent.ctx, ast.Load)
    if isinstance(parent, ast.Attribute) and parent.attr in ("get", "setdefault", "pop"):
        call = script.parents[id(parent)]
        return node, _first_text(call), parent.attr != "get"
    if isinstance(parent, ast.Compare) and isinstance(parent.left, ast.Constant):
        return node, str(parent.left.value), False
    return node, None, False


def _first_text(call: ast.AST) -> str | None:
    if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
        return str(call.args[0].value)
    return None


# --- files ------------------------------------------------------------------------------


def _follows_a_value(script: Script, at: ast.Constant) -> bool:
    """Whether a text stands in an f-string after its first part."""
    outer = script.parents.get(id(at))
    return isinstance(outer, ast.JoinedStr) and outer.values[0] is not at


def _paths(node: Script, start: Script) -> Iterator[Issue]:
    for at, text in texts(node.nodes):
        if text in start.strings:
            continue
        if _LEFT_BEHIND.search(text):
            yield reject(at, f"names something outside its folder: {text[:60]!r}")
        elif _OUTSIDE.fullmatch(text.strip()) and not _follows_a_value(node, at):
            yield reject(at, f"names a path outside its folder: {text[:60]!r}")
    yield from _opened(node, start)


def _opened(node: Script, start: Script) -> Iterator[Issue]:
    """Yield files that are opened by a name in the script."""
    for call in node.nodes:
        if not isinstance(call, ast.Call) or node.name_of(call.func) not in ("open", "io.open"):
            continue
        named = bool(call.args) and isinstance(call.args[0], ast.Constant | ast.JoinedStr)
        text = ast.unparse(call)
        if named and text not in start.calls:
            yield quarantine(call, f"opens a file that its start does not: {text[:80]}")
