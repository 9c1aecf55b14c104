"""The tuner: numbers found and rewritten in place, the search space, and the search."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speedkit.core.components import CodeRequest
from speedkit.core.metrics import Metrics
from speedkit.core.node import Node, Outcome, Stage, Tree
from speedkit.core.task import Family, Task
from speedkit.plugins.coders import hyperparameters, tuner
from speedkit.plugins.coders.hyperparameters import find, rewrite
from speedkit.plugins.coders.tuner import HISTORY, TunerCoder, TunerOptions, history, score

FAMILY = """
schema = 1
name = "tiny"
script = "train.py"
[target]
val_loss = 2.6
[[record]]
index = 1
title = "first"
script = "train.py"
[[record]]
index = 2
title = "second"
"""
SCRIPT = '''"""Trains … something é."""
from dataclasses import dataclass, field

@dataclass
class Hyperparameters:
    train_files: str = "data/*.bin"
    val_tokens: int = 2*64*1024
    val_loss_every = 50
    seed: int = 1337
    batch_size: int = 32
    num_heads: int = 4
    num_iterations: int = 340 # "π" steps
    warmup_iters : int = 0
    cooldown_steps: int = 100
    learning_rate: float = 3e-3   # naïve
    head_lr: float = field(default=0.01)
    momentum = 0.9; beta: float = 1
    offset: float = -1e-3
    compiled: bool = True
    half = num_iterations // 2

args = Hyperparameters()
print("step", args.learning_rate)
'''
TUNABLE = {
    "num_iterations": 340,
    "cooldown_steps": 100,
    "learning_rate": 0.003,
    "head_lr": 0.01,
    "momentum": 0.9,
    "beta": 1.0,
    "offset": -0.001,
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "family.toml").write_text(FAMILY)
    (folder / "train.py").write_text(SCRIPT, encoding="utf-8")
    return Family.load(folder).task(1)


def root(time_ms: int | None = 10_000) -> Node:
    metrics = None if time_ms is None else Metrics(340, 340, 2.59, time_ms)
    return Node(0, None, Stage.ROOT, 0, outcome=Outcome.VALID, metrics=metrics)


def request(
    task: Task,
    tree: Tree | None = None,
    *,
    parent: int = 0,
    source: str = SCRIPT,
    start: str = SCRIPT,
    seed: int = 0,
) -> CodeRequest:
    tree = tree or Tree([root()])
    return CodeRequest(
        task=task,
        tree=tree,
        parent=tree[parent],
        node_id=len(tree),
        stage=Stage.IMPROVE,
        sibling=0,
        siblings=1,
        files={"train.py": source, "notes.txt": "kept"},
        knowledge=(),
        seed=seed,
        log_dir=Path(),
        read_files=lambda node_id: {"train.py": start if node_id == 0 else source},
    )


def coder(**options: object) -> TunerCoder:
    return TunerCoder(TunerOptions(**options))


def values(source: str) -> dict[str, int | float]:
    return {name: number.value for name, number in find(source).items()}


# --- numbers in a script ----------------------------------------------------------------


def test_numbers_of_the_class_are_found() -> None:
    assert values(SCRIPT) == {
        **TUNABLE,
        "val_tokens": 131_072,
        "val_loss_every": 50,
        "seed": 1337,
        "batch_size": 32,
        "num_heads": 4,
        "warmup_iters": 0,
    }


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1_000", 1000),
        ("0x10", 16),
        ("2*64*1024", 131_072),
        ("-1e-3", -0.001),
        ("(0.1)", 0.1),
        ("+3", 3),
        ("2**10", 1024),
        ("64*1024//3", 21_845),
        ("2/3/4", 2 / 3 / 4),
        ("10 % 4", 2),
        ("-(\n  1 + 2)", -3),
    ],
)
def test_constant_expressions_are_numbers(expression: str, value: float) -> None:
    source = f"class Hyperparameters:\n  x = {expression}\n  y = 1"
    assert values(source) == {"x": value, "y": 1}
    assert type(find(source)["x"].value) is type(value)
    assert values(rewrite(source, {"x": 7})) == {"x": 7, "y": 1}


@pytest.mark.parametrize(
    "expression",
    [
        *("True", "-True", "None", "'1'", "b", "f(1)", "[1]", "(1, 2)", "1j", "1 if b else 2"),
        *("1/0", "1e999", "-1e999 + 1e999", "(-8)**0.5", "9**9**9**9", "(10**18)**64", "10.0**64"),
        *("1 << 3", "not 1", "~1", "field(default_factory=list)", "field(1)", "10**18+1"),
    ],
)
def test_anything_else_is_not(expression: str) -> None:
    assert values(f"class Hyperparameters:\n  x: float = {expression}\n") == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", {}),
        ("class Other:\n  x = 1\n", {}),
        ("def f():\n  class Hyperparameters:\n    x = 1\n", {"x": 1}),
        ("if a:\n  pass\nelse:\n  class Hyperparameters:\n    x = 1\n", {"x": 1}),
        (
            "try:\n  pass\nexcept E:\n  class Hyperparameters:\n    x = 1\nfinally:\n  pass\n",
            {"x": 1},
        ),
        ("class Hyperparameters:\n  x = 1\nclass Hyperparameters:\n  y = 2\n", {"y": 2}),
        ("class Hyperparameters:\n  x = 1\n  x = 2\n", {"x": 2}),
        ("class Hyperparameters:\n  x = 1\n  x = f()\n", {}),
        ("class Hyperparameters:\n  x: int\n  a = b = 1\n  c, d = 1, 2\n  e.f = 1\n", {}),
        ("class Hyperparameters:\n  x = dataclasses.field(default=1)\n", {"x": 1}),
        ("class Hyperparameters:\n  def f(self):\n    x = 1\n", {}),
    ],
)
def test_where_numbers_are_looked_for(source: str, expected: dict[str, int]) -> None:
    assert values(source) == expected


@pytest.mark.parametrize("source", ["class", "x = (", "\x00", "\ud800", "(" * 500, "-" * 10**6])
def test_what_is_no_python_is_a_value_error(source: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the type is what is tested
        find(source)
    assert not isinstance(error.value, SyntaxError)


def test_warnings_of_the_script_are_kept_quiet() -> None:
    code = (
        "from speedkit.plugins.coders.hyperparameters import find\n"
        r"find('class Hyperparameters:\n  a = 1\nx = \'\\d\' is 1\n')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_rewriting_changes_the_literal_alone() -> None:
    text = rewrite(SCRIPT, {"num_iterations": 287, "learning_rate": 0.0041, "offset": -2e-5})
    expected = (
        SCRIPT.replace("340 #", "287 #")
        .replace("3e-3   #", "0.0041   #")
        .replace("-1e-3", "-2e-05")
    )
    assert text == expected


def test_several_numbers_on_a_line_and_unknown_names() -> None:
    assert "momentum = 0.95; beta: float = 2.0\n" in rewrite(
        SCRIPT, {"beta": 2.0, "momentum": 0.95, "unknown": 1}
    )
    assert rewrite(SCRIPT, {}) == SCRIPT


noise = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
line_end = st.sampled_from(["\n", "\r\n", "\r"])


@given(
    comments=st.lists(noise, min_size=4, max_size=4),
    end=line_end,
    bom=st.sampled_from(["", "\ufeff"]),
    new=st.one_of(st.integers(-(10**6), 10**6), st.floats(1e-9, 1e9)),
)
@example(comments=["\u2028", "\u0085", "é", "𝄞"], end="\r\n", bom="\ufeff", new=1)
def test_every_other_byte_stays(comments: list[str], end: str, bom: str, new: int | float) -> None:
    a, b, c, d = comments
    before = f"{bom}# {a}{end}\x0cclass Hyperparameters:{end}  s = {b!r}; x = "
    after = f" # {c}{end}  y = 0.5{end}{end}# {d}"
    source = f"{before}2*(3+4){after}"
    assert values(source) == {"x": 14, "y": 0.5}
    text = rewrite(source, {"x": new})
    assert text == f"{before}{new!r}{after}"
    assert values(text) == {"x": new, "y": 0.5}


# --- the space --------------------------------------------------------------------------


def test_the_space_of_a_script() -> None:
    space = {r.name: r for r in coder().ranges(values(SCRIPT))}
    assert {name: r.start for name, r in space.items()} == TUNABLE
    assert space["num_iterations"].bounds == (170, 340)
    assert space["learning_rate"].bounds == (0.0015, 0.006)


def test_options_widen_and_narrow_the_space() -> None:
    options = {"spread": 10, "shrink": 0.9, "protected": ("*_lr", "BETA"), "structural": ()}
    space = {r.name: r for r in coder(**options).ranges(values(SCRIPT))}
    assert {"head_lr", "beta", "warmup_iters"}.isdisjoint(space)
    assert space["num_iterations"].bounds == (306, 340)
    assert space["batch_size"].bounds == (4, 320)
    assert space["learning_rate"].bounds == pytest.approx((0.0003, 0.03))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "train_files",
            "input_bin",
            "data_path",
            "val_tokens",
            "val_loss_every",
            "val_batch_size",
        ),
        *("seed", "random_seed", "save_every", "save_checkpoint", "log_every", "vocab_size"),
        *("batch_size", "device_batch_size", "sequence_length", "train_seq_len", "num_heads"),
        *("model_dim", "num_layers", "n_layer", "n_head", "n_embd", "width", "block_size"),
    ],
)
def test_names_that_are_left_alone(name: str) -> None:
    assert coder().ranges({name: 64}) == []


@pytest.mark.parametrize(
    "name", ["lr", "head_lr", "embed_lr", "weight_decay", "cooldown_frac", "update_scale", "beta2"]
)
def test_names_that_are_tuned(name: str) -> None:
    assert [r.name for r in coder().ranges({name: 0.5})] == [name]


@pytest.mark.parametrize("name", ["num_iterations", "num_scheduled_iterations", "warmup_iters"])
def test_counts_may_only_shrink(name: str) -> None:
    assert coder().ranges({name: 100})[0].bounds == (50, 100)


@pytest.mark.parametrize(
    ("name", "start", "spread", "least", "greatest"),
    [
        ("momentum", 0.95, 2, 0.9, 0.975),
        ("beta2", 0.999, 10, 0.99, 0.9999),
        ("cooldown_fraction", 0.4, 2, 0.2, 0.8),
        ("cooldown_frac", 0.4, 10, 0.04, 0.99),
        ("dropout", 0.5, 10, 0.01, 0.95),
        ("rate", 0.95, 2, 0.475, 1.9),
        ("ratio", 1.5, 2, 0.75, 3.0),
    ],
)
def test_fractions_stay_fractions(
    name: str, start: float, spread: float, least: float, greatest: float
) -> None:
    (found,) = coder(spread=spread).ranges({name: start})
    ends = sorted([found.value(found.low), found.value(found.high)])
    assert ends == pytest.approx([least, greatest])
    assert [found.factor(value) for value in ends] == pytest.approx(
        sorted([found.low, found.high], reverse=found.from_one)
    )
    assert found.value(1.0) == start
    assert found.factor(start) == pytest.approx(1)
    assert found.factor(100.0) in (found.low, found.high)


@pytest.mark.parametrize("start", [0, 0.0])
def test_zeros_are_left_alone(start: float) -> None:
    assert coder().ranges({"weight_decay": start}) == []


def test_a_range_of_one_value_is_left_alone() -> None:
    assert coder().ranges({"num_iterations": 1}) == []
    assert [r.bounds for r in coder().ranges({"order": 1})] == [(1, 2)]


@given(
    start=st.one_of(st.integers(2, 10**9), st.floats(1e-9, 1e9), st.floats(-1e9, -1e-9)),
    spread=st.floats(1.5, 100),
    share=st.floats(0, 1),
)
def test_values_stay_in_range_and_keep_their_type(
    start: int | float, spread: float, share: float
) -> None:
    (found,) = coder(spread=spread).ranges({"x": start})
    value = found.value(found.low * (found.high / found.low) ** share)
    assert type(value) is type(start)
    assert math.copysign(1, value) == math.copysign(1, start)
    assert found.bounds[0] <= abs(value) <= found.bounds[1]
    assert found.low <= found.factor(value) <= found.high


# --- what the sampler is told -----------------------------------------------------------


def finished(id_: int, outcome: str, metrics: Metrics | None, **params: float) -> Node:
    notes = {"params": params} if params else {}
    return Node(id_, 0, Stage.DRAFT, 1, outcome=Outcome(outcome), metrics=metrics, notes=notes)


@pytest.mark.parametrize(
    ("outcome", "loss", "time_ms", "expected"),
    [
        ("valid", 2.6, 5000, 0.5),
        ("valid", 2.6, 15_000, 1.5),
        ("invalid", 2.86, 5000, 0.5 * math.e),
        ("valid", 2.574, 10_000, math.exp(-0.1)),
        ("valid", 1.0, 10_000, math.exp(-1)),
        ("invalid", 2.5, 5000, 1.0),
        ("invalid", 99.0, 5000, 10.0),
        ("invalid", math.nan, 5000, 10.0),
        ("invalid", math.inf, 5000, 10.0),
        ("quarantined", 2.5, 5000, 1.0),
        ("buggy", None, None, 10.0),
        ("dropped", None, None, None),
        ("pending", None, None, None),
        ("edit_failed", None, None, None),
    ],
)
def test_scores(
    outcome: str, loss: float | None, time_ms: int | None, expected: float | None
) -> None:
    metrics = None if loss is None else Metrics(1, 1, loss, time_ms)
    value = score(finished(1, outcome, metrics), 2.6, 10_000)
    assert value == (None if expected is None else pytest.approx(expected))


def test_history_is_node_0_and_what_the_tuner_wrote(task: Task) -> None:
    nodes = [
        finished(1, "valid", Metrics(1, 1, 2.5, 8000), learning_rate=0.006, num_iterations=170),
        finished(2, "valid", Metrics(1, 1, 2.5, 7000)),
        finished(3, "pending", None, learning_rate=0.004),
        dataclasses.replace(finished(4, "buggy", None), notes={"params": "of another coder"}),
        finished(5, "buggy", None, learning_rate=99.0, gone=1.0),
    ]
    ranges = [r for r in coder().ranges(TUNABLE) if r.name in ("learning_rate", "num_iterations")]
    trials = history(request(task, Tree([root(), *nodes])), ranges)
    assert [t.node_id for t in trials] == [0, 1, 5]
    at_the_target = [1.0 * math.exp(-1 / 26), 0.8 * math.exp(-1 / 2.6), 10.0]
    assert [t.value for t in trials] == pytest.approx(at_the_target)
    assert trials[0].factors == {"learning_rate": 1.0, "num_iterations": 1.0}
    assert trials[1].factors == {"learning_rate": 2.0, "num_iterations": 0.5}
    assert trials[2].factors == {"learning_rate": 2.0}


def test_a_long_history_keeps_the_best_and_the_latest(task: Task) -> None:
    nodes = [
        finished(i, "valid", Metrics(1, 1, 2.5, 1000 + i), momentum=0.9) for i in range(1, 1001)
    ]
    trials = history(request(task, Tree([root(), *nodes])), coder().ranges(TUNABLE))
    ids = [t.node_id for t in trials]
    half = HISTORY // 2
    assert ids == [*range(1, half + 1), *range(1001 - half, 1001)]


def test_times_need_no_start_time(task: Task) -> None:
    node = finished(1, "valid", Metrics(1, 1, 2.5, 8000), momentum=0.9)
    trials = history(request(task, Tree([root(None), node])), coder().ranges(TUNABLE))
    assert [t.value for t in trials] == pytest.approx([1.0, math.exp(-1 / 2.6)])


# --- drafts -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@given(seed=st.integers(0, 2**64))
@settings(max_examples=25, deadline=None)
def test_a_draft_changes_a_few_numbers_and_says_so(sampler: str, seed: int, task: Task) -> None:
    draft = coder(sampler=sampler).write(request(task, seed=seed))
    assert not draft.failure
    assert draft.files["notes.txt"] == "kept"
    new, old = values(draft.files["train.py"]), values(SCRIPT)
    changed = {name: new[name] for name in new if new[name] != old[name]}
    assert 1 <= len(changed) <= 3
    assert set(changed) <= set(TUNABLE)
    assert draft.notes == {"params": {name: new[name] for name in TUNABLE}}
    said = [part.split(" ") for part in draft.hypothesis.split(", ")]
    assert {name: float(value) for name, _, _, value in said} == pytest.approx(changed)
    assert all(float(before) == pytest.approx(old[name]) for name, before, _, _ in said)
    assert rewrite(draft.files["train.py"], {n: old[n] for n in changed}) == rewrite(
        SCRIPT, {n: old[n] for n in changed}
    )


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_write_is_a_pure_function_and_siblings_differ(task: Task, sampler: str) -> None:
    nodes = [
        finished(i, "valid", Metrics(1, 1, 2.5, 9000 - i), **{**TUNABLE, "momentum": 0.6 + i / 50})
        for i in range(1, 10)
    ]
    tree = Tree([root(), *nodes])
    before = list(tree)
    drafts = [coder(sampler=sampler).write(request(task, tree, seed=seed)) for seed in range(8)]
    again = [coder(sampler=sampler).write(request(task, tree, seed=seed)) for seed in range(8)]
    assert drafts == again
    assert len({draft.files["train.py"] for draft in drafts}) == 8
    assert list(tree) == before


def test_changes_are_relative_to_the_parent(task: Task) -> None:
    source = rewrite(SCRIPT, {name: value * 1.1 for name, value in TUNABLE.items()})
    parent = finished(1, "valid", Metrics(1, 1, 2.5, 9000), **TUNABLE)
    asked = request(task, Tree([root(), parent]), parent=1, source=source)
    draft = coder(max_changes=1).write(asked)
    new, old = values(draft.files["train.py"]), values(source)
    assert sum(new[name] != old[name] for name in new) == 1
    (changed,) = (name for name in new if new[name] != old[name])
    assert draft.hypothesis == f"{changed} {old[changed]:.6g} → {new[changed]:.6g}"


def test_the_count_of_steps_is_always_among_several_changes(task: Task) -> None:
    for seed in range(20):
        several = coder(max_changes=2, sampler="random").write(request(task, seed=seed))
        assert several.hypothesis.startswith("num_iterations 340 → ")
    single = [coder(max_changes=1).write(request(task, seed=seed)) for seed in range(60)]
    assert {draft.hypothesis.split()[0] for draft in single} == set(TUNABLE)


def test_the_count_of_steps_is_drawn_between_what_sufficed_and_what_did_not(task: Task) -> None:
    short = Metrics(1, 1, 2.7, 8000)
    nodes = [
        finished(1, "valid", Metrics(1, 1, 2.59, 8800), **{**TUNABLE, "num_iterations": 300}),
        finished(2, "invalid", short, **{**TUNABLE, "num_iterations": 280}),
        finished(3, "invalid", short, **{**TUNABLE, "num_iterations": 290, "beta": 1.5}),
        finished(4, "buggy", None, **{**TUNABLE, "num_iterations": 295}),
    ]
    alone, among_others = [], []
    for seed in range(40):
        draft = coder().write(request(task, Tree([root(), *nodes]), seed=seed))
        steps = values(draft.files["train.py"])["num_iterations"]
        (among_others if ", " in draft.hypothesis else alone).append(steps)
    assert 280 <= min(alone) < 290 < max(alone) <= 300
    assert 270 <= min(among_others) < 280
    assert max(among_others) <= 300


def test_a_parent_may_lack_parameters(task: Task) -> None:
    source = "class Hyperparameters:\n    momentum = 0.9\n    new_one = 3.0\n"
    for seed in range(10):
        draft = coder().write(request(task, source=source, seed=seed))
        assert set(draft.notes["params"]) == {"momentum"}
        assert values(draft.files["train.py"])["new_one"] == 3.0


def test_a_space_of_two_values_always_finds_the_other(task: Task) -> None:
    source = "class Hyperparameters:\n    num_iterations = 2\n"
    for seed in range(50):
        draft = coder().write(request(task, source=source, start=source, seed=seed))
        assert draft.hypothesis == "num_iterations 2 → 1"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x = 1\n", "has nothing to tune"),
        ("class Hyperparameters:\n    batch_size = 4\n    weight_decay = 0\n", "nothing to tune"),
        ("class Hyperparameters(:\n", "train.py cannot be read as Python"),
    ],
)
def test_a_script_that_cannot_be_tuned_is_a_failure(task: Task, source: str, why: str) -> None:
    draft = coder().write(request(task, source=source, start=source))
    assert why in draft.failure
    assert "\n" not in draft.failure
    assert draft.files == request(task, source=source).files


def test_a_script_without_its_file_is_a_failure(task: Task) -> None:
    asked = dataclasses.replace(request(task), files={})
    assert "nothing to tune" in coder().write(asked).failure


def test_options_are_described() -> None:
    assert all(field.description for field in TunerOptions.model_fields.values())


def test_default_patterns_are_patterns() -> None:
    for pattern in (*tuner.PROTECTED, *tuner.STRUCTURAL, *tuner.COUNTS):
        assert fnmatch.fnmatchcase(pattern.replace("*", "x"), pattern)


# --- a search ---------------------------------------------------------------------------


def train(numbers: Mapping[str, float]) -> tuple[str, Metrics]:
    """A made-up training: the best rate is 0.0045, and two thirds of the steps then suffice."""
    mistuned = sum(
        math.log(numbers[name] / best) ** 2
        for name, best in {"learning_rate": 0.0045, "momentum": 0.95, "head_lr": 0.012}.items()
    )
    loss = 2.45 + 0.15 * (230 / numbers["num_iterations"]) ** 2 + 0.4 * mistuned
    steps = int(numbers["num_iterations"])
    return "valid" if loss <= 2.6 else "invalid", Metrics(steps, steps, loss, 30 * steps)


def search(task: Task, seed: int, nodes: int, **options: object) -> float:
    """Return the time of the best valid node after a greedy search, relative to the start's."""
    tree, sources = Tree([root(30 * 340)]), {0: SCRIPT}
    for i in range(1, nodes + 1):
        best = tree.best(root=True)
        assert best is not None
        asked = request(
            task,
            tree,
            parent=best.id,
            source=sources[best.id],
            seed=random.Random(seed + i).getrandbits(63),
        )
        draft = coder(**options).write(asked)
        sources[i] = draft.files["train.py"]
        outcome, metrics = train(values(sources[i]))
        tree.put(
            Node(
                i,
                best.id,
                Stage.IMPROVE,
                i,
                outcome=Outcome(outcome),
                metrics=metrics,
                notes=draft.notes,
            )
        )
    best = tree.best(root=True)
    assert best is not None
    assert best.train_time_ms is not None
    return best.train_time_ms / (30 * 340)


def test_a_search_finds_a_speedup_and_tpe_more_of_it(task: Task) -> None:
    seeds = range(0, 8000, 1000)
    by_tpe = [search(task, seed, 20) for seed in seeds]
    by_chance = [search(task, seed, 20, sampler="random") for seed in seeds]
    assert statistics.median(by_tpe) < 0.8
    assert min(by_chance) < 1
    assert statistics.mean(by_tpe) < statistics.mean(by_chance)
    assert all(230 / 340 * 0.95 < time <= 1 for time in by_tpe + by_chance)


def test_nothing_is_said_on_stderr_and_random_needs_no_optuna(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from speedkit.core.task import Family
import test_tuner as t
folder = Path({str(tmp_path)!r})
(folder / "family.toml").write_text(t.FAMILY)
(folder / "train.py").write_text(t.SCRIPT, encoding="utf-8")
task = Family.load(folder).task(1)
t.search(task, 1, 3, sampler="random")
assert "optuna" not in sys.modules
t.search(task, 1, 12)
assert "optuna" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_cost_of_a_node_stays_flat(task: Task) -> None:
    nodes = [
        finished(i, "valid", Metrics(1, 1, 2.5, 9000 - i % 7), **TUNABLE) for i in range(1, 2001)
    ]
    coder().write(request(task, Tree([root(), *nodes[:20]])))  # imports optuna

    def cost(count: int) -> float:
        tree = Tree([root(), *nodes[:count]])
        times = []
        for seed in range(5):
            begin = time.process_time()
            coder().write(request(task, tree, seed=seed))
            times.append(time.process_time() - begin)
        return min(times)

    assert cost(20) < 0.05
    assert cost(2000) < 0.15


def test_the_module_of_numbers_is_cached_by_source() -> None:
    hyperparameters.find.cache_clear()
    assert find(SCRIPT) is find(SCRIPT)
    with pytest.raises(TypeError):
        find(SCRIPT)["x"] = None  # type: ignore[index]
