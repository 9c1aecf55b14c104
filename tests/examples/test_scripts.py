"""Every script of examples/ runs through on a made-up family, with a model on loopback."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pytest

from speedkit.core.plugins import Plugins
from tests.conftest import INSTANT, TOY
from tests.e2e.test_models import fewer_steps
from tests.kit.fake_openai import FakeOpenAI

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = (
    "swap_one_component",
    "scaffolds_by_hints",
    "flexattention_docs",
    "cumulative_speedrun",
    "retime_records",
)


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Return a function that runs a script as the shell would: status, output and errors."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk" + "-canary-0123456789abcdefghijklmnop")
    monkeypatch.setenv("SPEEDKIT_GUARDS", "none")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        captured = capsys.readouterr()
        return ending.value.code or 0, captured.out, captured.err

    yield run
    sys.modules.pop("_flags", None)


@pytest.fixture
def family(tmp_path):
    """Return the toy family with hints of every level."""
    folder = tmp_path / "toy"
    shutil.copytree(TOY, folder)
    (folder / "hints/1").mkdir(parents=True)
    for name in ("1-pseudocode.md", "2-text.md", "3-paper.md"):
        (folder / "hints/1" / name).write_text("Take fewer steps.\n")
    return folder


@pytest.fixture
def model():
    with FakeOpenAI(fewer_steps) as server:
        yield server


def asking(server):
    """Return the flags of a small run that asks the server."""
    flags = ("--model", "openai/fake", "--api-base", server.url, "--nodes", 2, "--seeds", 1)
    return (*flags, "--executor", "instant", "--load", INSTANT)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(script, name):
    code, out, _ = script(name, "--help")
    assert code == 0
    assert f"python examples/{name}.py" in out


def test_swap_one_component(script, family, model):
    code, out, err = script("swap_one_component", "--task", f"{family}/1", *asking(model))
    assert code == 0, err
    assert "FSR of 2 runs by scaffold, hints" in out
    assert "random_parent" in out
    assert len(model.requests) >= 4


def test_the_swapped_component_is_found_wherever_its_file_is_loaded(tmp_path, monkeypatch):
    """A resumed sweep, or a run of it, loads the file as a plugin, not as a script."""
    monkeypatch.chdir(tmp_path)
    plugins = Plugins((str(EXAMPLES / "swap_one_component.py"),))
    assert not plugins.broken
    assert "random_parent" in plugins.names("scaffold")


def test_scaffolds_by_hints(script, family, model):
    flags = ("--tasks", f"{family}/1", "--hints", "none", "1+3", *asking(model))
    code, out, err = script("scaffolds_by_hints", *flags)
    assert code == 0, err
    assert "runs     10 of 10 over" in out
    hinted = [r for r in model.requests if "Take fewer steps." in r.prompt]
    assert len(hinted) * 2 == len(model.requests)
    before = len(model.requests)
    assert script("scaffolds_by_hints", *flags)[0] == 0
    assert len(model.requests) == before, "what is over is not done again"


def test_scaffolds_by_hints_plans_the_whole_benchmark(script, model, tmp_path, monkeypatch):
    records = tmp_path / "cache"
    monkeypatch.setenv("SPEEDKIT_CACHE_DIR", str(records))
    code, out, err = script("scaffolds_by_hints", "--coder", "tuner", "--dry-run")
    assert code == 2, "the records are not imported here"
    assert "speedkit records import" in err
    assert out == ""


def test_flexattention_docs(script, family, model):
    flags = ("--task", f"{family}/1", "--hints", "none", *asking(model))
    code, out, err = script("flexattention_docs", *flags)
    assert code == 0, err
    assert "FSR of 2 runs by knowledge, hints" in out
    told = ["create_block_mask" in r.prompt for r in model.requests]
    assert any(told)
    assert not all(told)


def test_cumulative_speedrun(script, family, model):
    flags = ("--family", family, "--last", 1, *asking(model))
    code, out, err = script("cumulative_speedrun", *flags)
    assert code == 0, err
    assert "status finished" in out
    assert "toy/1" in err
    again = script("cumulative_speedrun", *flags)
    assert (again[0], again[1]) == (0, out)


def test_retime_records(script, family):
    flags = ("--family", family, "--repeats", 1, "--executor", "instant", "--load", INSTANT)
    code, out, err = script("retime_records", *flags)
    assert code == 0, err
    assert "record  1: 10.10 s, 1.010 of the reported time" in out
    assert "record  3: it has no script" in out
    assert Path("toy-times.json").is_file()


def test_a_mistake_is_a_line(script):
    code, _, err = script("swap_one_component", "--task", "mini/99", "--dry-run")
    assert code == 2
    assert err.startswith("error: no task named 'mini/99'")


def test_the_table_names_every_script():
    text = (EXAMPLES / "README.md").read_text()
    missing = [p.name for p in EXAMPLES.glob("[a-z]*.py") if f"]({p.name})" not in text]
    assert not missing
