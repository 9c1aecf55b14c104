"""Offers the scaffold and the coder ``evolve`` to speedkit."""

from __future__ import annotations

import speedkit


@speedkit.hookimpl
def register_scaffolds(register: speedkit.Register) -> None:
    """Offer the scaffold; its module is imported only when it is chosen."""
    register("evolve", "speedkit_evolve.scaffold:EvolveScaffold")


@speedkit.hookimpl
def register_coders(register: speedkit.Register) -> None:
    """Offer the coder."""
    register("evolve", "speedkit_evolve.coder:EvolveCoder")
