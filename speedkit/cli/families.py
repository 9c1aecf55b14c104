"""Which families a command was asked for, by name or by path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from speedkit.core.task import Family


class FamilyName(click.ParamType):
    """The name or the folder of a family; shells complete the built-in names."""

    name = "family"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the built-in families, then folders."""
        return complete_family(incomplete)


def complete_family(incomplete: str) -> list[CompletionItem]:
    """Return the built-in families that begin so; where there are none, offer folders."""
    from speedkit.core.task import builtin_families

    names = [n for n in builtin_families() if n.startswith(incomplete)]
    return [CompletionItem(n) for n in names] or [CompletionItem(incomplete, type="dir")]


def families(name: str | None) -> list[tuple[str, Family]]:
    """Return the family of a name or path, or all built-in ones, each with what was asked for.

    Raises:
        SpeedkitError: there is no such family, or its folder does not hold together.
    """
    from speedkit.core.task import builtin_families, find_family

    names = [name.rstrip("/") or name] if name is not None else list(builtin_families())
    return [(one, find_family(one)) for one in names]
