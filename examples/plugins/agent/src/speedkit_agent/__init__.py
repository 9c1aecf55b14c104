"""Offers the coder ``agent`` to speedkit."""

from __future__ import annotations

import speedkit


@speedkit.hookimpl
def register_coders(register: speedkit.Register) -> None:
    """Offer the coder; its module is imported only when it is chosen."""
    register("agent", "speedkit_agent.coder:AgentCoder")
