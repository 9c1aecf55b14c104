"""The errors that speedkit raises on purpose; each carries one line that says what to do.

SpeedkitError               exit 1  something outside went wrong
├── UsageError              exit 2  the user asked for something that cannot be
│   ├── ConfigError                 one or more mistakes in the configuration
│   ├── UnknownNameError            a component, task, record or node that does not exist
│   └── RunDirectoryError           a run directory that is locked, torn or too new
├── FamilyError             exit 2  a family folder that does not hold together
├── PluginError             exit 1  a plugin that cannot be loaded or used
├── ExecutorError           exit 1  jobs cannot be run on this machine at all
└── BudgetReached           exit 4  a limit on cost or tokens ended the run; it can be resumed

StopRun                             raised by an observer to end a run cleanly
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SpeedkitError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class UsageError(SpeedkitError):
    """The request itself is at fault."""

    exit_code = 2


class ConfigError(UsageError):
    """Mistakes in the configuration, all reported at once.

    Args:
        problems: one line each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class UnknownNameError(UsageError):
    """A name that is not in the list; the message offers the nearest ones.

    Args:
        kind: what the name should have named, for example ``"scaffold"``.
        name: the name that was given.
        known: the names that exist.
        hint: a sentence to put at the end.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name = kind, name
        self.known = tuple(sorted(known))
        text = f"no {kind} named {name!r}; {did_you_mean(name, self.known)}"
        super().__init__(f"{text}; {hint}" if hint else text)


class RunDirectoryError(UsageError):
    """A run directory that cannot be opened as asked."""


class FamilyError(SpeedkitError):
    """A family folder or its ``family.toml`` does not hold together."""

    exit_code = 2


class PluginError(SpeedkitError):
    """A plugin or component that cannot be loaded or used."""


class ExecutorError(SpeedkitError):
    """The executor cannot run jobs at all, whatever the script."""


class BudgetReached(SpeedkitError):
    """A limit on cost or tokens was reached; the run stops cleanly and can be resumed."""

    exit_code = 4


class StopRun(Exception):
    """Raised by an observer to end the run when what is under way is finished."""


@contextmanager
def blamed(kind: str, name: str) -> Iterator[None]:
    """Name the component at work where it raises what is not meant for the user.

    An ``OSError`` passes: it is the machine's, a full disk for example.

    Raises:
        PluginError: in place of what the component raised.
    """
    try:
        yield
    except (SpeedkitError, OSError):
        raise
    except Exception as error:  # a component of a third party may raise anything
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PluginError(f"{kind} {name} failed: {what} (SPEEDKIT_DEBUG=1 shows where)") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a clause that offers the nearest of ``known``, or lists them all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "there are: " + ", ".join(names) if names else "there are none"
