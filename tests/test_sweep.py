"""What a sweep is: how it is written, which runs it has, and what is wrong with it."""

from __future__ import annotations

import pytest
import tomli

from speedkit.core.errors import ConfigError, UsageError
from speedkit.core.plugins import Plugins
from speedkit.sweeping import make_sweep, plan_sweep, read_sweep
from speedkit.sweeping.cells import make_cells
from speedkit.sweeping.values import in_name, parse_vary, settings_of, split_values
from tests.conftest import INSTANT, TOY

TASK = f"{TOY}/1"


@pytest.fixture(scope="module")
def plugins():
    return Plugins((str(INSTANT),))


def cells(sweep, plugins):
    found, problems = make_cells(sweep, plugins)
    assert not problems
    return found


def names(sweep, plugins):
    return [cell.name for cell in cells(sweep, plugins)]


def problems(sweep, plugins):
    with pytest.raises(ConfigError) as caught:
        plan_sweep(sweep, plugins=plugins)
    return caught.value.problems


# --- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a", ["a"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("a, b ,c", ["a", "b", "c"]),
        ("a,", ["a", ""]),
    ],
)
def test_values_are_split_at_commas_outside_of_brackets_and_quotes(text, parts):
    assert split_values(text) == parts


@pytest.mark.parametrize(
    ("setting", "key", "values"),
    [
        ("hints=none,1,1+2+3", "hints", ("none", "1", "1+2+3")),
        ("hints=3+1", "hints", ("1+3",)),
        ("knowledge=none,muon+flexattention", "knowledge", ("none", "muon+flexattention")),
        ("scaffold.debug_prob=0.1,0.5", "scaffold.debug_prob", (0.1, 0.5)),
        ('executor.env=["A","B"],["C"]', "executor.env", (["A", "B"], ["C"])),
        ("model=none,openai/x", "model", ("none", "openai/x")),
    ],
)
def test_values_on_the_command_line(setting, key, values):
    vary, wrong = parse_vary([setting])
    assert not wrong
    assert vary == {key: values}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scafold=a", "did you mean scaffold"),
        ("hints", "write KEY=VALUE,VALUE"),
        ("options=1", "cannot be varied"),
        ("load=a.py", "cannot be varied"),
        ("scafold.x=1", "did you mean scaffold"),
        ("scaffold.a.b.c=1", "KIND.OPTION or KIND.NAME.OPTION"),
        ("coder=a,,b", "a value is missing"),
        ("coder=a,a", "a is given twice"),
        ("hints=1+2,2+1", "1+2 is given twice"),
    ],
)
def test_wrong_values_are_explained(setting, message):
    _, wrong = parse_vary([setting])
    assert len(wrong) == 1
    assert message in wrong[0]


def test_settings_that_values_stand_for():
    assert settings_of("hints", "1+3") == {"hints": ["1", "3"]}
    assert settings_of("hints", "none") == {"hints": []}
    assert settings_of("guards", "none") == {"guards": ["none"]}
    assert settings_of("model", "none") == {"model": None}
    assert settings_of("scaffold.aide.debug_prob", 0.1) == {
        "options": {"scaffold": {"aide": {"debug_prob": 0.1}}}
    }
    assert settings_of("llm.temperature", 0.5) == {"llm": {"temperature": 0.5}}


def test_names_are_fit_for_files_and_tell_values_apart():
    assert in_name("openai/gpt-4.1") == "openai-gpt-4.1"
    assert in_name(0.1) == "0.1"
    assert in_name(True) == "true"
    odd = [in_name(v) for v in ("a:b", "a;b", "a b", "x" * 60, "x" * 61)]
    assert len(set(odd)) == 5
    assert all(len(name) <= 48 and not set(name) & set(":; /") for name in odd)


# --- which runs -------------------------------------------------------------------------------


def test_a_grid_has_every_combination(plugins):
    vary = {"scaffold": ["flat", "aide"], "coder": ["noop", "tuner"]}
    found = cells(make_sweep([TASK], vary, seeds=2), plugins)
    assert [c.name for c in found[:2]] == [
        "toy-1_scaffold=flat_coder=noop_seed=0",
        "toy-1_scaffold=flat_coder=tuner_seed=0",
    ]
    assert len({c.name for c in found}) == 8
    assert [c.seed for c in found] == [0] * 4 + [1] * 4, "a seed of everything comes first"
    assert (found[-1].config.scaffold, found[-1].config.coder) == ("aide", "tuner")


def test_one_at_a_time_changes_one_key_from_the_base(plugins):
    vary = {"scaffold": ["flat", "aide", "tree"], "coder": ["noop", "tuner"]}
    sweep = make_sweep([TASK], vary, one_at_a_time=True)
    arms = [(c.config.scaffold, c.config.coder) for c in cells(sweep, plugins)]
    assert arms == [("flat", "noop"), ("aide", "noop"), ("tree", "noop"), ("flat", "tuner")]


def test_an_option_of_one_component_multiplies_only_its_runs(plugins):
    vary = {"scaffold": ["flat", "aide"], "scaffold.aide.debug_prob": [0.1, 0.5]}
    found = cells(make_sweep([TASK], vary), plugins)
    assert [c.name for c in found] == [
        "toy-1_scaffold=flat_seed=0",
        "toy-1_scaffold=aide_scaffold.aide.debug_prob=0.1_seed=0",
        "toy-1_scaffold=aide_scaffold.aide.debug_prob=0.5_seed=0",
    ]
    assert found[0].config.options == {}
    assert found[1].config.options == {"scaffold": {"aide": {"debug_prob": 0.1}}}


def test_options_of_the_base_are_left_out_where_their_component_is_not_used(plugins):
    base = {"options": {"scaffold": {"aide": {"debug_prob": 0.2}}, "knowledge": {"hints": {}}}}
    found = cells(make_sweep([TASK], {"scaffold": ["flat", "aide"]}, **base), plugins)
    assert found[0].config.options == {}
    assert found[1].config.options == {"scaffold": {"aide": {"debug_prob": 0.2}}}


def test_a_value_lies_over_the_base(plugins):
    vary = {
        "hints": ["none", "1+2"],
        "model": ["none", "openai/x"],
        "guards": ["none", "log+clock"],
    }
    sweep = make_sweep(["mini/1"], vary, model="openai/y", hints=(3,), guards=("clock",))
    found = cells(sweep, plugins)
    assert {c.config.hints for c in found} == {(), (1, 2)}
    assert {c.config.model for c in found} == {None, "openai/x"}
    assert {c.config.guards for c in found} == {(), ("log", "clock")}


def test_tasks_and_seeds_may_be_varied_too(plugins):
    sweep = make_sweep([], {"task": [TASK, "mini/2"], "seed": ["5", "7"], "nodes": [3]})
    assert (sweep.tasks, sweep.seeds) == ((TASK, "mini/2"), (5, 7))
    assert len(names(sweep, plugins)) == 4


def test_seeds_begin_at_the_seed_of_the_base():
    assert make_sweep([TASK], seeds=3, seed=4).seeds == (4, 5, 6)
    assert make_sweep([TASK], seeds=[9, 2], seed=4).seeds == (9, 2)


# --- files ------------------------------------------------------------------------------------

TEXT = f"""
tasks = ["{TASK}"]
seeds = 2
jobs = 3
max_cost = 1.5
max_hours = 2
[base]
nodes = 3
options.scaffold.children = 2
[vary]
hints = ["none", [1, 2]]
scaffold.debug_prob = [0.1, 0.5]
"scaffold.aide.max_debug_depth" = [2]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "hints.toml"
    path.write_text(TEXT)
    return path


def test_a_file_is_read(file):
    sweep = read_sweep(file)
    assert sweep.vary == {
        "hints": ("none", "1+2"),
        "scaffold.debug_prob": (0.1, 0.5),
        "scaffold.aide.max_debug_depth": (2,),
    }
    assert (sweep.seeds, sweep.jobs) == ((0, 1), 3)
    assert sweep.limits.given() == {"max_cost": 1.5, "max_hours": 2}
    assert sweep.base == {"nodes": 3, "options": {"scaffold": {"children": 2}}}


def test_what_is_stored_reads_as_it_was(file, tmp_path, plugins):
    vary = {"scaffold.debug_prob": ["'1'", 0.5], "smoke_first": [True, False], "judge": ["none"]}
    for sweep in (read_sweep(file), make_sweep([TASK], vary, coder="noop", hints=(1,))):
        sweep.save(tmp_path)
        assert read_sweep(tmp_path / "sweep.toml", environ={}) == sweep


def test_the_environment_lies_over_the_file_and_is_kept(file, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDKIT_NODES", "9")
    monkeypatch.setenv("SPEEDKIT_SCAFFOLD_DRAFTS", "4")
    sweep = read_sweep(file)
    assert sweep.base["nodes"] == 9
    assert sweep.base["options"]["scaffold"] == {"children": 2, "drafts": 4}
    sweep.save(tmp_path)
    monkeypatch.setenv("SPEEDKIT_NODES", "1")
    assert read_sweep(tmp_path / "sweep.toml", environ={}).base["nodes"] == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taskz = []", "did you mean tasks"),
        ('tasks = "mini/1"', "write a list of names"),
        ("seeds = 0", "seeds: write how many"),
        ("seeds = []", "seeds: write how many"),
        ("jobs = 0", "jobs: must be a whole number"),
        ("max_cost = -1", "max_cost: must be a number from 0 on"),
        ("max_hours = nan", "max_hours: must be a number from 0 on"),
        ("base = 3", "base: must be a table"),
        ("one_at_a_time = 1", "one_at_a_time: write true or false"),
        ("schema = 9", "another version"),
        ('[base]\nscafold = "x"', "scafold: there is no such setting"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep(path)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_sweep(tmp_path / "none.toml")
    (tmp_path / "torn.toml").write_text("tasks = [")
    with pytest.raises(UsageError, match=r"torn\.toml"):
        read_sweep(tmp_path / "torn.toml")


def test_the_written_file_is_plain_toml(file):
    values = tomli.loads(read_sweep(file).to_toml())
    assert values["vary"]["scaffold.debug_prob"] == [0.1, 0.5]
    assert values["max_cost"] == 1.5


# --- all mistakes at once ---------------------------------------------------------------------


def test_all_mistakes_of_a_grid_are_told_at_once(plugins):
    vary = {
        "coder": ["nop", "tuner"],
        "hints": ["none", "4"],
        "scafold": ["flat"],
        "scaffold.debug_prob": [0.1, 2],
        "summarizer": ["rules", "llm"],
    }
    found = problems(make_sweep([TASK, f"{TOY}/9"], vary), plugins)
    told = "\n".join(found)
    assert "no coder named 'nop'; did you mean noop?" in told
    assert "hints=4: hint levels are 1, 2 and 3" in found
    assert "vary.scafold: cannot be varied" in told
    assert "scaffold.debug_prob: input should be less than or equal to 1" in told
    assert "summarizer llm needs a model" in told
    assert "no task named 'toy/9'" in told
    assert len(found) == 6, "each mistake once"
    assert "(4 times, toy-1_coder=nop_hints=none" in next(line for line in found if "'nop'" in line)


def test_a_missing_hint_is_found_before_anything_runs(plugins):
    (line,) = problems(make_sweep([TASK], {"hints": ["none", "2"]}), plugins)
    assert "toy/1 has no hint of level 2" in line
    assert line.endswith("(toy-1_hints=2)")


def test_a_mistake_in_every_run_names_none(plugins):
    (line,) = problems(make_sweep([TASK], {"scaffold": ["flat", "aide"]}, coder="nop"), plugins)
    assert line == "no coder named 'nop'; did you mean noop?"


def test_nothing_to_run_is_a_mistake(plugins):
    assert problems(make_sweep([]), plugins) == ("tasks: name at least one, for example mini/1",)
    assert "seeds: 1 is given twice" in problems(make_sweep([TASK], seeds=[1, 1]), plugins)
    both = make_sweep([TASK], {"task": ["mini/1"]})
    assert "give either tasks or this" in problems(both, plugins)[0]


def test_families_of_one_name_are_told_apart(tmp_path, plugins):
    import shutil

    shutil.copytree(TOY, tmp_path / "toy")
    _, wrong = make_cells(make_sweep([TASK, f"{tmp_path}/toy/1"]), plugins)
    assert "two runs have the same name toy-1_seed=0" in wrong[0]
