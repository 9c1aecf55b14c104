"""Offers the scaffold ``mcts`` to speedkit."""

from __future__ import annotations

import speedkit


@speedkit.hookimpl
def register_scaffolds(register: speedkit.Register) -> None:
    """Offer the scaffold; its module is imported only when it is chosen."""
    register("mcts", "speedkit_mcts.scaffold:MctsScaffold")
