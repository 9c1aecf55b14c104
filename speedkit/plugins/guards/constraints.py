"""The constraints guard: what a script may not do, found in its syntax tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from pydantic import Field

from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Code, Guard, GuardOptions
from speedkit.plugins.guards import (
    _bindings,
    _evaluation_code,
    _literals,
    _metric_print,
    _printing,
    _reach,
    _untimed,
)
from speedkit.plugins.guards._syntax import Issue, Script, read

Rule = Callable[[Script, Script], Iterable[Issue]]
RULES: dict[str, Rule] = {
    "reach": _reach.find,
    "bindings": _bindings.find,
    "print": _metric_print.find,
    "printing": _printing.find,
    "untimed": _untimed.find,
    "evaluation": _evaluation_code.find,
    "literals": _literals.find,
}
"""The rules by name; each is given the node's script and that of the start record."""


class ConstraintsOptions(GuardOptions):
    """Options of the constraints guard."""

    skip: tuple[str, ...] = Field(
        (), description=f"rules that are not asked; there are: {', '.join(RULES)}"
    )
    most: int = Field(8, ge=1, description="findings of one node, at most")


class ConstraintsGuard(Guard):
    """Compares a node's script with that of the start record, by syntax.

    What the start record does stays allowed, whatever it is. Each node is compared with the
    start record and not with its parent, so that what is not allowed cannot be brought in by
    small steps.
    """

    cost = 0
    title = "what the script may not do, by its syntax, compared with the start record"
    Options = ConstraintsOptions
    options: ConstraintsOptions

    @property
    def name(self) -> str:
        """The name in its findings."""
        return "constraints"

    def check_code(self, code: Code) -> Iterator[Finding]:
        """Return what the rules object to, the gravest first."""
        start = code.start[code.task.script]
        if code.script == start:
            return
        try:
            issues = self._issues(read(code.script), read(start))
        except ValueError as error:
            yield self.found(Level.QUARANTINE, str(error))
            return
        except RecursionError:
            yield self.found(Level.QUARANTINE, "the script is nested too deeply to be read")
            return
        yield from (self.found(issue.level, _text(issue)) for issue in issues)

    def _issues(self, node: Script, start: Script) -> list[Issue]:
        rules = [rule for name, rule in RULES.items() if name not in self.options.skip]
        known = _own(start)
        every = (issue for rule in rules for issue in rule(node, start))
        found = dict.fromkeys(issue for issue in every if issue.text not in known)
        order = sorted(found, key=lambda issue: issue.level is not Level.REJECT)
        return order[: self.options.most]


@lru_cache(maxsize=32)
def _own(start: Script) -> frozenset[str]:
    """Return what the rules would say of the start record itself, and may not say of others."""
    return frozenset(issue.text for rule in RULES.values() for issue in rule(start, start))


def _text(issue: Issue) -> str:
    text = " ".join(issue.text.split())
    return f"line {issue.line}: {text}" if issue.line else text
