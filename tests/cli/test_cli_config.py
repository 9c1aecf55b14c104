"""``speedkit config show``: the configuration and where each part of it is from."""

from __future__ import annotations

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from speedkit.cli.config import leaves, toml_key, toml_value
from speedkit.core.config import load_config


def origins(out):
    """Return key and origin of each line."""
    pairs = (line.rsplit("  # ", 1) for line in out.splitlines())
    return {text.removeprefix("# ").split(" ")[0]: origin for text, origin in pairs}


def test_each_key_has_its_origin(program, tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text('scaffold = "tree"\nseed = 1\nnodes = 3\n[options.scaffold]\ndrafts = 2\n')
    monkeypatch.setenv("SPEEDKIT_SEED", "2")
    monkeypatch.setenv("SPEEDKIT_NODES", "4")
    monkeypatch.setenv("SPEEDKIT_CODER_SPREAD", "1.5")
    result = program(
        *("config", "show", "--config", file, "--nodes", 5, "--plugin", "coder=noop"),
        *("--plugin", "guard=clock"),
        *("-o", "scaffold.debug_prob=0.25", "--hints", "3,1"),
    )
    found = origins(result.out)
    expected = {
        "task": "default",
        "scaffold": "file",
        "seed": "env",
        "nodes": "flag",
        "coder": "flag",
        "guards": "flag",
        "hints": "flag",
        "model": "default",
        "options.scaffold.drafts": "file",
        "options.scaffold.debug_prob": "flag",
        "options.coder.spread": "env",
    }
    assert {key: found[key] for key in expected} == expected
    values = tomli.loads(result.out)
    assert (values["seed"], values["nodes"], values["hints"]) == (2, 5, [1, 3])
    assert values["options"]["scaffold"] == {"drafts": 2, "debug_prob": 0.25}


def test_the_output_is_a_configuration_file(program, tmp_path):
    arguments = ("--nodes", 5, "-o", "scaffold.debug_prob=0.25", "--knowledge", "files", "mini/2")
    out = program("config", "show", *arguments).out
    file = tmp_path / "run.toml"
    file.write_text(out)
    assert load_config(file=file) == load_config(
        {
            "task": "mini/2",
            "nodes": 5,
            "knowledge": ["files"],
            "options": {"scaffold": {"debug_prob": 0.25}},
        }
    )


def test_the_file_that_the_environment_names(program, tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text("seed = 7\n")
    monkeypatch.setenv("SPEEDKIT_CONFIG", str(file))
    facts = program("config", "show", "--json").json
    assert facts["config"]["seed"] == 7
    assert facts["origins"]["seed"] == "file"
    assert facts["origins"]["nodes"] == "default"


def test_what_is_not_set_is_said_in_a_comment(program):
    assert "# model is not set  # default\n" in program("config", "show").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "-1"), "seed: "),
        (("--plugin", "scafold=aide"), "did you mean scaffold"),
        (("-o", "x"), "write KIND.OPTION=VALUE"),
        (("--config", "no-such-file.toml"), "no configuration file no-such-file.toml"),
    ],
)
def test_mistakes_are_those_of_run(program, arguments, message):
    result = program("config", "show", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), values)
def test_a_value_is_one_line_of_toml(key, value):
    line = f"{toml_key((key,))} = {toml_value(value)}  # comment"
    assert "\n" not in line
    assert tomli.loads(line) == {key: value}


def test_leaves_are_dotted():
    nested = {"a": 1, "options": {"coder": {"x": 1, "y": {}}}, "llm": {}}
    assert list(leaves(nested)) == [
        (("a",), 1),
        (("options", "coder", "x"), 1),
        (("options", "coder", "y"), {}),
        (("llm",), {}),
    ]
