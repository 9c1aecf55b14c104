"""A Ray cluster of two nodes on this machine for the tests of a session."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

_LEAN = {"object_store_memory": 80 * 1024 * 1024}


@functools.lru_cache(maxsize=1)
def _running() -> Any:
    """The one cluster of this process, however many modules import the fixture."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False, **_LEAN}
    )
    add_node(cluster, second=4)
    return cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Return a ``ray.cluster_utils.Cluster``; the test is skipped where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    yield _running()
    if _running.cache_info().currsize:
        import ray

        ray.shutdown()
        _running().shutdown()
        _running.cache_clear()


def add_node(cluster: Any, **resources: int) -> Any:
    """Add a node that offers some resources, and wait until it is there."""
    node = cluster.add_node(num_cpus=4, resources=resources, **_LEAN)
    cluster.wait_for_nodes()
    return node
