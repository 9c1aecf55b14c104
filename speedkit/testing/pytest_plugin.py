"""The pytest plugin for authors of plugins; nothing heavy is imported before a fixture is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from speedkit.api import RunTree
    from speedkit.core.task import Task
    from speedkit.testing.fake_openai import FakeOpenAI

CACHE = "SPEEDKIT_CACHE_DIR"


@pytest.fixture
def tiny_task() -> Task:
    """A task whose scripts run in milliseconds and print the same times everywhere."""
    from speedkit.testing.tiny import tiny_task

    return tiny_task()


@pytest.fixture
def tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunTree]:
    """A function that searches the tiny task and returns the tree.

    ``tiny_run("my_plugin", coder="mine", nodes=3)`` loads the module ``my_plugin`` and no
    plugin that is installed; the rest are the settings of :func:`speedkit.run`. Scripts run
    in this process, and no guard is asked unless ``guards`` names some.
    """
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))

    def run(*load: str, out: str = "run", **settings: Any) -> RunTree:
        return _search(tmp_path / out, *load, **settings)

    return run


@pytest.fixture
def run_dir(tmp_path: Path, _speedkit_finished_run: Path) -> Path:
    """The directory of a finished run: valid, invalid and buggy nodes, and a failed edit."""
    return Path(shutil.copytree(_speedkit_finished_run, tmp_path / "run_dir"))


@pytest.fixture(scope="session")
def _speedkit_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speedkit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder / "cache"))
        _search(folder / "run", coder="scripted", scaffold="multi_aide", nodes=8)
    return folder / "run"


@pytest.fixture
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    """A server on the loopback interface that speaks the OpenAI chat protocol.

    It answers with the longest code block of the prompt and one comment more, until the test
    sets ``script``. ``settings`` are what a run needs to ask it.
    """
    from speedkit.testing.fake_openai import FakeOpenAI, edit_script

    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake")
    with FakeOpenAI(edit_script) as server:
        yield server


def _search(path: Path, *load: str, **settings: Any) -> RunTree:
    import speedkit
    from speedkit.testing.tiny import TINY, tiny_plugins

    defaults = {"task": f"{TINY}/1", "executor": "instant", "coder": "noop", "guards": ("none",)}
    return speedkit.run(out=path, plugins=tiny_plugins(*load), **{**defaults, **settings})
