"""``speedkit doctor``: what is there, what is missing, and whether a task can run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speedkit import doctor
from speedkit.core.task import find_task
from tests.conftest import TOY

H100 = "NVIDIA H100 80GB HBM3, 81559, 570.86"
CANARY = "canary-4f1c9e-value"
FAMILY = """
schema = 1
name = "big"
script = "train.py"
[run]
launcher = "torchrun"
nproc = 4
[target]
val_loss = 3.0
[[record]]
index = 1
title = "first"
script = "one.py"
hardware = "4x H100"
world_sizes = [1, 4]
torch_min = "2.4"
[[record]]
index = 2
title = "second"
script = "two.py"
hardware = "4x H100"
world_sizes = [1, 4]
torch_min = "2.6"
needs = ["FP8 matrix products (compute capability 8.9 or more)"]
"""


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """Return a folder that is the whole PATH; of real programs it has git alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    git = shutil.which("git")
    assert git is not None
    (folder / "git").symlink_to(git)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**10))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.endswith(("_API_KEY", "_TOKEN")):
            monkeypatch.delenv(name)
    return folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def gpus(tools: Path, count: int, capability: str = "9.0") -> None:
    """Put a tool in place that lists so many H100; the last is as capable as said."""
    rows = "\n".join(f"echo '{k}, GPU-{k}a, {H100}'" for k in range(count))
    capabilities = ["9.0"] * (count - 1) + [capability]
    caps = "\n".join(f"echo '{k}, GPU-{k}a, {capabilities[k]}'" for k in range(count)) or ":"
    script(
        tools / "nvidia-smi",
        f'case "$1" in *compute_cap*)\n{caps}\n;; *)\n{rows or ":"}\n;; esac',
    )


def torch_of(tools: Path, version: str, cuda: str | None = "12.8") -> str:
    """Return an interpreter that has such a torch, by what it answers."""
    answer = "null" if cuda is None else f'"{cuda}"'
    python = tools / "fake-python"
    script(
        python,
        f'case "$3" in *importlib.metadata*) echo \'{{"python": "3.12.1", "torch": "{version}"}}\''
        f";; *) echo '{answer}';; esac",
    )
    return str(python)


@pytest.fixture
def big(tmp_path) -> str:
    """Return a task for four GPUs, its scripts in place."""
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "family.toml").write_text(FAMILY)
    for name in ("one.py", "two.py"):
        (folder / name).write_text("print('step:1/1 val_loss:3.0 train_time:1ms')\n")
    return f"{folder}/1"


def states(result) -> dict[str, str]:
    return {f["name"]: f["state"] for f in result.json["findings"]}


def finding(result, name: str) -> dict[str, object]:
    (found,) = (f for f in result.json["findings"] if f["name"] == name)
    return found


def test_the_machine_alone_is_never_an_error(program, tools):
    result = program("doctor", "--json")
    assert result.code == 0
    assert (result.json["task"], result.json["can_run"]) == (None, None)
    found = states(result)
    for name in ("python", "torch", "git", "cache folder", "run folder", "loopback port"):
        assert found[name] == "ok", name
    for name in ("GPUs", "bwrap", "aider", "keys", "nanogpt records", "nanogpt data"):
        assert found[name] == "missing", name
    assert all(f["remedy"] for f in result.json["findings"] if f["state"] == "missing")
    assert not any(f["remedy"] for f in result.json["findings"] if f["state"] == "ok")


def test_each_finding_is_one_line_with_its_remedy(program, tools):
    lines = program("doctor").out.splitlines()
    assert all(line.startswith(("ok ", "missing ")) for line in lines)
    (line,) = (line for line in lines if " aider " in line)
    assert line.startswith("missing")
    assert "speedkit aider install" in line
    assert any("0 of 21 imported; run: speedkit records import" in line for line in lines)


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_keys_are_named_and_never_shown(program, tools, monkeypatch, arguments):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    result = program("doctor", *arguments)
    assert "OPENAI_API_KEY" in result.out
    assert CANARY not in result.out + result.err


def test_no_program_that_is_asked_sees_a_key(program, tools, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    script(tools / "bwrap", f'export -p >> "{tmp_path}/seen"; echo bubblewrap 0.9')
    assert states(program("doctor", "--json"))["bwrap"] == "missing"
    assert "PATH" in (tmp_path / "seen").read_text()
    assert CANARY not in (tmp_path / "seen").read_text()


def test_programs_on_path_are_found(program, tools):
    script(tools / "aider", "echo aider 0.86")
    gpus(tools, 2)
    result = program("doctor", "--json", "--python", torch_of(tools, "2.7.1+cu128"))
    assert finding(result, "aider")["found"] == f"{tools / 'aider'} (PATH)"
    assert finding(result, "GPUs")["found"] == "2x NVIDIA H100 80GB HBM3 (80 GiB, driver 570.86)"
    assert finding(result, "torch")["found"] == "2.7.1+cu128, CUDA 12.8"
    assert "3.12.1" in finding(result, "python")["found"]


def test_a_sandbox_that_does_not_work_is_missing(program, tools):
    body = '[ "$1" = --version ] && echo bubblewrap 0.9 && exit; echo no user namespace >&2; exit 1'
    script(tools / "bwrap", body)
    found = finding(program("doctor", "--json"), "bwrap")
    assert found["state"] == "missing"
    assert "no user namespace" in found["found"]


def test_a_driver_that_fails_is_reported(program, tools):
    script(tools / "nvidia-smi", "echo 'Failed to initialize NVML: mismatch'; exit 18")
    found = finding(program("doctor", "--json"), "GPUs")
    assert found["state"] == "missing"
    assert found["found"] == "nvidia-smi fails: Failed to initialize NVML: mismatch"
    assert program("doctor").code == 0


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        *((None, 4), ("", 0), ("0,1", 2), ("3", 1), ("GPU-2", 1), ("0,9,1", 1), ("-1", 0)),
        *(("MIG-a,MIG-b", 2), ("1,MIG-a", 2)),
    ],
)
def test_hidden_gpus_do_not_count(tools, monkeypatch, visible, count):
    gpus(tools, 4)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(doctor.visible_gpus()) == count


def test_torch_without_cuda_beside_gpus_is_missing(program, tools):
    gpus(tools, 1)
    result = program("doctor", "--json", "--python", torch_of(tools, "2.7.1+cpu", None))
    assert finding(result, "torch")["found"] == "2.7.1+cpu is built without CUDA"


def test_the_build_of_an_installed_torch_is_read_without_importing_it():
    command = [sys.executable, "-c", "import torch; print(torch.version.cuda)"]
    expected = subprocess.check_output(command, text=True).strip()
    assert str(doctor.cuda_build(None)) == expected


# --- a task -----------------------------------------------------------------------------


def test_a_task_that_can_run(program, tools, big):
    gpus(tools, 4)
    result = program("doctor", big, "--python", torch_of(tools, "2.6.0+cu124"), "--json")
    assert result.code == 0, result.out
    assert result.json["can_run"] is True
    assert {s for n, s in states(result).items() if n.startswith("task")} == {"ok"}
    assert finding(result, "task GPU model")["found"] == "compute capability 9.0, 8.9 needed"


def test_too_few_gpus(program, tools, big):
    gpus(tools, 2)
    python = torch_of(tools, "2.6.0+cu124")
    result = program("doctor", big, "--python", python)
    assert result.code == 1
    assert "2 visible, 4 needed; with executor.nproc=1 the same training" in result.out
    assert result.out.endswith("cannot run here: task GPUs\n")
    assert program("doctor", big, "--python", python, "--nproc", 1).code == 0


def test_a_world_size_that_is_another_training(program, tools, big):
    gpus(tools, 4)
    result = program(
        "doctor", big, "--python", torch_of(tools, "2.6.0+cu124"), "--nproc", 2, "--json"
    )
    assert result.code == 1
    found = finding(result, "task processes")
    assert "needs 1 or 4 processes" in found["found"]
    assert found["remedy"] == "use executor.nproc=1 or 4"


@pytest.mark.parametrize(
    ("version", "cuda", "says"),
    [
        ("2.5.1+cu124", "12.4", "2.5.1+cu124, 2.6 or newer needed"),
        ("2.13.0+cpu", None, "2.13.0+cpu is built without CUDA"),
    ],
)
def test_a_torch_that_will_not_do(program, tools, big, version, cuda, says):
    gpus(tools, 4)
    result = program("doctor", big, "--python", torch_of(tools, version, cuda), "--json")
    assert result.code == 1
    assert finding(result, "task torch")["found"] == says


def test_old_gpus(program, tools, big):
    gpus(tools, 4, capability="8.0")
    result = program("doctor", big, "--python", torch_of(tools, "2.6.0+cu124"))
    assert result.code == 1
    assert result.out.endswith("cannot run here: task GPU model\n")


def test_an_old_gpu_that_is_hidden_is_no_reason_to_refuse(program, tools, big, monkeypatch):
    gpus(tools, 5, capability="7.5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    result = program("doctor", big, "--python", torch_of(tools, "2.6.0+cu124"), "--json")
    assert result.code == 0, result.out
    assert finding(result, "task GPU model")["found"] == "compute capability 9.0, 8.9 needed"


def test_parts_of_gpus_are_named(program, tools, monkeypatch):
    gpus(tools, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-4a7c")
    found = finding(program("doctor", "--json"), "GPUs")
    assert (found["state"], found["found"]) == ("ok", "1x part of a GPU, MIG-4a7c")


def test_a_missing_script(program, tools, big):
    gpus(tools, 4)
    (Path(big).parent / "two.py").unlink()
    result = program("doctor", big, "--python", torch_of(tools, "2.6.0+cu124"), "--json")
    assert result.code == 1
    assert finding(result, "task scripts")["found"] == "record 2 is missing"


def test_a_nanogpt_task_without_records_and_data(program, tools):
    gpus(tools, 8)
    result = program("doctor", "nanogpt/11", "--python", torch_of(tools, "2.7.0+cu126"), "--json")
    assert result.code == 1
    missing = {n for n, s in states(result).items() if n.startswith("task") and s == "missing"}
    assert missing == {"task scripts", "task data"}
    assert finding(result, "task scripts")["remedy"] == "run: speedkit records import"
    assert finding(result, "task data")["remedy"].startswith("run: speedkit data fetch nanogpt")


def test_too_few_data(program, tools, own_cache):
    from speedkit.records.nanogpt import data

    data.synth(own_cache / "data" / "nanogpt", shards=1, tokens_per_shard=1_000)
    result = program("doctor", "nanogpt/11", "--json")
    assert result.code == 1
    assert "1 training synthetic shards" in finding(result, "nanogpt data")["found"]
    assert "synthetic" in finding(result, "task data")["found"]


def test_a_task_without_gpus(program, tools):
    result = program("doctor", f"{TOY}/1")
    assert result.code == 0, result.out
    assert "task GPUs" not in result.out
    assert result.out.endswith("can run here\n")


def test_without_git_no_task_can_run(program, tools):
    (tools / "git").unlink()
    result = program("doctor", f"{TOY}/1")
    assert result.code == 1
    assert result.out.endswith("cannot run here: git\n")


def test_a_folder_that_cannot_be_written(program, tools, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPEEDKIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = program("doctor", f"{TOY}/1", "--json")
    assert result.code == 1
    found = finding(result, "cache folder")
    assert found["state"] == "missing"
    assert "SPEEDKIT_CACHE_DIR" in found["remedy"]


def test_little_space_is_no_reason_to_refuse(tools, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    found = doctor.examine(find_task(f"{TOY}/1"))
    (cache,) = (f for f in found if f.name == "cache folder")
    assert not cache.ok
    assert "1.0 GB free" in cache.found
    assert doctor.can_run(found)


def test_no_port(tools, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError("no loopback")

    monkeypatch.setattr(doctor.socket, "socket", refuse)
    (port,) = (f for f in doctor.examine() if f.name == "loopback port")
    assert not port.ok
    assert "no loopback" in port.found


def test_an_interpreter_that_is_not_there(program, tools):
    result = program("doctor", f"{TOY}/1", "--python", "/no/such/python")
    assert result.code == 1
    assert "missing  python" in result.out
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize("arguments", [("nanogpt/99",), ("--nproc", "2"), ("toy/1", "--nproc", 0)])
def test_wrong_requests(program, tools, arguments):
    result = program("doctor", *arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_nothing_heavy_is_imported(tools):
    code = (
        "import sys\n"
        "from speedkit.cli.main import main\n"
        "try: main(['doctor', '--json'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'litellm', 'pandas', 'rliable') if m in sys.modules])"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=TOY.parents[2])
    assert out.splitlines()[-1] == "[]"
