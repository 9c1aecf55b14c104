"""Offers the executor ``docker`` to speedkit."""

from __future__ import annotations

import speedkit


@speedkit.hookimpl
def register_executors(register: speedkit.Register) -> None:
    """Offer the executor; its module is imported only when it is chosen."""
    register("docker", "speedkit_docker.executor:DockerExecutor")
