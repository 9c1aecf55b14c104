"""What a plugin may offer: hooks to register parts, and hooks to watch a run.

A plugin implements any subset of these functions, marked with ``@speedkit.hookimpl``, in a
light module that an entry point of the group ``speedkit`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from speedkit.core.node import Node
    from speedkit.core.run import Run

hookspec = pluggy.HookspecMarker("speedkit")
hookimpl = pluggy.HookimplMarker("speedkit")


class Register(Protocol):
    """Given to the ``register_*`` hooks; call it once for each part."""

    def __call__(self, name: str, target: type | str, *, override: bool = False) -> None:
        """Offer a component under a name.

        Args:
            name: lower case letters, digits, ``_`` and ``-``.
            target: the class, or ``"module:Class"``, imported only when it is chosen.
            override: replace the component that another plugin offers under this name.
        """


class RegisterCommand(Protocol):
    """Given to ``register_commands``; call it once for each command."""

    def __call__(self, name: str, target: str, *, help: str) -> None:
        """Offer ``speedkit NAME``; ``target`` is ``"module:command"``, a click command."""


@hookspec
def register_scaffolds(register: Register) -> None:
    """Offer scaffolds: policies of the search."""


@hookspec
def register_coders(register: Register) -> None:
    """Offer coders: writers of new nodes."""


@hookspec
def register_executors(register: Register) -> None:
    """Offer executors: places where scripts are run."""


@hookspec
def register_summarizers(register: Register) -> None:
    """Offer summarizers: from outcome to text."""


@hookspec
def register_judges(register: Register) -> None:
    """Offer judges: how much of the human change a node reproduced."""


@hookspec
def register_knowledge(register: Register) -> None:
    """Offer knowledge sources: texts for the coder."""


@hookspec
def register_guards(register: Register) -> None:
    """Offer guards: what must hold before a node may count."""


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Offer commands of the ``speedkit`` program."""


@hookspec
def run_started(run: Run) -> None:
    """A run begins, or goes on after a resume."""


@hookspec
def node_created(run: Run, node: Node) -> None:
    """The code of a node is committed; it has not been run yet."""


@hookspec
def node_finished(run: Run, node: Node) -> None:
    """The outcome of a node is decided."""


@hookspec
def model_called(run: Run, call: Mapping[str, Any]) -> None:
    """A language model answered, or a call failed for good."""


@hookspec
def run_finished(run: Run, status: str) -> None:
    """A run ended: ``finished``, ``stopped``, ``interrupted`` or ``failed``."""
