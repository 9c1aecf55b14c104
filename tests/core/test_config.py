"""Configuration: four layers, typed options, every mistake at once."""

from __future__ import annotations

import pytest

from speedkit.core.assemble import assemble
from speedkit.core.config import check_config, load_config, parse_options, parse_value
from speedkit.core.curve_stop import MARGIN
from speedkit.core.errors import ConfigError, UsageError
from speedkit.core.plugins import Plugins
from speedkit.core.task import find_family


def test_each_layer_overrides_the_one_before(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('seed = 1\nnodes = 5\nscaffold = "flat"\n[options.scaffold]\ndrafts = 4\n')
    environ = {
        "SPEEDKIT_NODES": "6",
        "SPEEDKIT_SCAFFOLD": "tree",
        "SPEEDKIT_SCAFFOLD_CHILDREN": "2",
    }
    config = load_config({"scaffold": "aide", "coder": None}, file, environ)
    assert (config.seed, config.nodes, config.scaffold, config.coder) == (1, 6, "aide", None)
    assert config.options == {"scaffold": {"drafts": 4, "children": 2}}


def test_the_environment_can_name_the_file(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("seed = 9")
    assert load_config(environ={"SPEEDKIT_CONFIG": str(file)}).seed == 9


def test_unknown_settings_are_all_named():
    with pytest.raises(ConfigError) as caught:
        load_config({"sede": 3, "nodes": "many", "hints": "4"}, environ={})
    text = str(caught.value)
    assert "sede: there is no such setting; did you mean seed?" in text
    assert "nodes: input should be a valid integer" in text
    assert "hints: hint levels are 1, 2 and 3" in text
    assert len(caught.value.problems) == 3


def test_an_unknown_variable_of_ours_is_an_error():
    with pytest.raises(ConfigError, match="SPEEDKIT_SEDE: there is no such setting"):
        load_config(environ={"SPEEDKIT_SEDE": "3"})


@pytest.mark.parametrize(
    ("text", "levels"), [("none", ()), ("2", (2,)), ("3,1", (1, 3)), ("1,1", (1,))]
)
def test_hint_levels(text, levels):
    config = load_config({"hints": text}, environ={})
    assert config.hints == levels
    assert config.knowledge_names == (("hints",) if levels else ())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("plain", "plain"),
        ("1,2", "1,2"),
    ],
)
def test_values_are_toml_or_text(text, value):
    assert parse_value(text) == value


def test_options_are_read_and_mistakes_all_named():
    assert parse_options(["scaffold.drafts=4", "knowledge.files.paths=['a']"]) == {
        "scaffold": {"drafts": 4},
        "knowledge": {"files": {"paths": ["a"]}},
    }
    with pytest.raises(ConfigError) as caught:
        parse_options(["drafts=4", "scafold.x=1", "scaffold.x"])
    assert len(caught.value.problems) == 3
    assert "did you mean scaffold?" in str(caught.value)


def test_a_bad_file_is_one_line(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("seed = = 3")
    with pytest.raises(UsageError, match=r"bad\.toml"):
        load_config(file=file, environ={})
    with pytest.raises(UsageError, match="no configuration file"):
        load_config(file=tmp_path / "absent.toml", environ={})


def test_component_mistakes_are_all_named():
    config = check_config(
        {
            "scaffold": "aid",
            "coder": "tuner",
            "options": {"coder": {"samplr": "tpe"}, "judge": {}, "executor": {"lanes": "two"}},
        }
    )
    with pytest.raises(ConfigError) as caught:
        assemble(config, Plugins())
    text = str(caught.value)
    assert "no scaffold named 'aid'; did you mean aide?" in text
    assert "coder.samplr: there is no such option; did you mean sampler?" in text
    assert "executor.lanes: input should be a valid integer" in text
    assert "options for judge are given, but no judge is chosen" in text


def test_options_of_one_among_several_components(tmp_path):
    config = check_config(
        {
            "hints": [1],
            "knowledge": ["files"],
            "options": {"knowledge": {"files": {"paths": [str(tmp_path)]}}},
        }
    )
    parts = assemble(config, Plugins())
    assert [type(k).__name__ for k in parts.knowledge] == ["HintsKnowledge", "FilesKnowledge"]
    assert parts.manifest["knowledge"][0]["options"]["levels"] == [1]


def test_an_empty_variable_is_as_if_it_were_not_set():
    names = ("MODEL", "GUARDS", "NODES", "SCAFFOLD_DRAFTS")
    assert load_config(environ={f"SPEEDKIT_{name}": "" for name in names}) == load_config(
        environ={}
    )


def test_no_guard_must_be_said_in_words():
    assert check_config({"guards": "none"}).guards == ()
    with pytest.raises(ConfigError, match="guards: name some guards, or write none"):
        check_config({"guards": ""})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "dif"}, "no judge named 'dif'; did you mean diff?"),
        ({"judge": "diff", "options": {"judge": {"x": 1}}}, "judge.x: there is no such option"),
        (
            {"options": {"knowledge": {"files": {"paths": ["a"]}}}},
            "options for knowledge are given, but no knowledge is chosen",
        ),
    ],
)
def test_what_would_be_ignored_is_a_mistake(settings, message):
    with pytest.raises(ConfigError, match=message):
        assemble(check_config(settings), Plugins())


def test_the_manifest_names_the_judge():
    parts = assemble(check_config({"judge": "diff"}), Plugins())
    assert parts.manifest["judge"]["name"] == "diff"


def test_the_default_coder_depends_on_the_model():
    assert check_config({}).coder_name == "tuner"
    assert check_config({"model": "openai/gpt-4.1"}).coder_name == "llm"
    assert check_config({"model": "x", "coder": "noop"}).coder_name == "noop"


def test_the_margin_of_the_user_comes_before_that_of_the_family():
    mini, nanogpt = find_family("mini"), find_family("nanogpt")
    assert check_config({}).stop_for(mini).margin == mini.defaults.stop_margin > MARGIN
    assert check_config({"stop": {"margin": 0.2}}).stop_for(mini).margin == 0.2
    assert check_config({}).stop_for(nanogpt).margin is None, "which means the general one"
