"""A server that answers as a script says."""

from __future__ import annotations

from tests.kit.fixtures import fake_openai

__all__ = ["fake_openai"]
