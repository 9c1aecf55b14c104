"""The command is as it should be; the executor keeps its promises with a stand-in and an engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from speedkit_docker.command import DockerOptions, command, container_name
from speedkit_docker.executor import DockerExecutor

import speedkit
from speedkit.testing import check_component

IMAGE = os.environ.get("SPEEDKIT_TEST_IMAGE", "python:3.12-slim")


@pytest.fixture
def job(tmp_path: Path) -> speedkit.Job:
    """Return a job with data, a cache and a further folder."""
    for name in ("workspace", "logs", "shards", "cache", "more"):
        (tmp_path / name).mkdir()
    (tmp_path / "workspace" / "data").symlink_to(tmp_path / "shards")
    (tmp_path / "workspace" / "gone").symlink_to(tmp_path / "nowhere")
    return speedkit.Job(
        name="node-3",
        run_id="0123456789abcdef",
        workspace=tmp_path / "workspace",
        log_dir=tmp_path / "logs",
        script="train.py",
        args=("--lr", "$(id) 1"),
        nproc=8,
        env={"SEED": "7", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        readable=(tmp_path / "more",),
    )


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """Return a program that takes the place of docker."""
    folder = tmp_path / "bin"
    folder.mkdir()
    source = Path(__file__).with_name("fake_docker.py")
    (folder / "fake_docker.py").write_text(source.read_text())
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {folder}/fake_docker.py "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_the_whole_command(job: speedkit.Job, tmp_path: Path) -> None:
    """Word by word, for torchrun."""
    words = command(DockerOptions(image="my/torch", gpus="all", memory="64g", cpus=8), job, "c1")
    assert words == [
        *("docker", "run", "--rm", "--init", "--name=c1"),
        *("--label=speedkit.run=0123456789abcdef", "--log-driver=none"),
        *("--cap-drop=ALL", "--security-opt=no-new-privileges"),
        *("--network=none", "--pids-limit=4096", "--shm-size=8g", "--tmpfs=/tmp:exec"),
        *("--gpus=all", "--memory=64g", "--cpus=8"),
        f"--volume={tmp_path}/cache:{tmp_path}/cache",
        f"--volume={tmp_path}/workspace:{tmp_path}/workspace",
        f"--volume={tmp_path}/more:{tmp_path}/more:ro",
        f"--volume={tmp_path}/shards:{tmp_path}/shards:ro",
        *("--env=HOME=/tmp", "--env=PYTHONUNBUFFERED=1", "--env=SEED=7"),
        f"--env=TORCHINDUCTOR_CACHE_DIR={tmp_path}/cache",
        *(f"--workdir={tmp_path}/workspace", f"--user={os.getuid()}:{os.getgid()}"),
        "my/torch",
        *("python", "-u", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=8"),
        *("--local-ranks-filter=0", "train.py", "--lr", "$(id) 1"),
    ]


def test_what_differs_for_one_process(job: speedkit.Job) -> None:
    """No launcher, and the options of the user before the image."""
    options = DockerOptions(image="py", engine="podman", arguments=("--userns=keep-id",))
    words = command(options, speedkit_job(job, launcher="python"), "c1")
    assert words[0] == "podman"
    assert words[-6:] == ["py", "python", "-u", "train.py", "--lr", "$(id) 1"]
    assert words[-7] == "--userns=keep-id"
    assert not [word for word in words if word.startswith(("--gpus", "--memory", "--cpus"))]


def speedkit_job(job: speedkit.Job, **changes: Any) -> speedkit.Job:
    """Return a job with other facts."""
    return speedkit.Job(**{**vars(job), **changes})


def test_names_are_those_of_containers(job: speedkit.Job) -> None:
    """Whatever the job is called."""
    name = container_name(speedkit_job(job, name="node 3/é"), "ab12")
    assert name == "speedkit-0123456789ab-node-3---ab12"


def test_it_conforms_with_a_stand_in(stand_in: str) -> None:
    """All but the processes, which only a container can hold together."""
    options = {"image": "any", "engine": stand_in}
    check_component(DockerExecutor, options=options, skip=["processes"])


def test_an_engine_that_cannot_start_a_container_is_told(stand_in: str, tiny_run: Any) -> None:
    """In its words."""
    options = {"executor": {"image": "absent", "engine": stand_in}}
    with pytest.raises(speedkit.ExecutorError, match="Unable to find image 'absent:latest'"):
        tiny_run("speedkit_docker", executor="docker", options=options)


def test_a_missing_engine_is_told(tiny_run: Any) -> None:
    """Before anything is run."""
    options = {"executor": {"image": "any", "engine": "no-such-engine-4711"}}
    with pytest.raises(speedkit.ExecutorError, match="no program 'no-such-engine-4711'"):
        tiny_run("speedkit_docker", executor="docker", options=options)


def has_image() -> bool:
    """Whether an engine runs here and has the image of the test."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "image", "inspect", IMAGE]
    try:
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.skipif(not has_image(), reason=f"no engine runs here that has the image {IMAGE}")
def test_it_conforms_in_containers() -> None:
    """With a real engine."""
    check_component(DockerExecutor, options={"image": IMAGE})
