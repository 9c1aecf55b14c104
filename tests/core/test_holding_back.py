"""What keeps a node from counting: guards, and being stopped early."""

from __future__ import annotations

import pytest

import speedkit
from speedkit.core.findings import Finding, Level, worst
from speedkit.core.node import Outcome

PLUGIN = '''
import speedkit
from speedkit.core.components import Coder, Draft
from speedkit.core.guards import Guard, GuardOptions, Level


class ByTime(Guard):
    """Objects to the time that a node claims."""

    name = "by_time"

    class Options(GuardOptions):
        level: str = "quarantine"

    def check_result(self, result):
        assert result.start_ms and result.execution.wall_s
        assert result.code.parent_script
        if self.options.level == "raise":
            raise RuntimeError("out of order")
        yield self.found(Level(self.options.level), f"{result.report.last.train_time_ms} ms")


class ByCode(Guard):
    """Objects to a word in the code."""

    name = "by_code"

    class Options(GuardOptions):
        word: str = "nowhere"

    def check_code(self, code):
        if self.options.word in code.script:
            yield self.found(Level.REJECT, f"the word {self.options.word}")


@speedkit.hookimpl
def register_guards(register):
    register("by_time", ByTime)
    register("by_code", ByCode)
'''


@pytest.fixture
def guarded_run(toy_run, tmp_path):
    """Return a function that runs the toy family with the guards of the plugin."""
    from tests.conftest import INSTANT

    plugin = tmp_path / "guards.py"
    plugin.write_text(PLUGIN)

    def run(guard, guards=("by_time", "by_code"), nodes=1, **settings):
        load = (str(INSTANT), str(plugin))
        options = {"guard": guard}
        return toy_run(load=load, options=options, guards=guards, nodes=nodes, **settings)

    return run


def test_a_quarantined_node_keeps_its_numbers_and_does_not_count(guarded_run):
    tree = guarded_run({"by_time": {"level": "quarantine"}})
    node = tree[1]
    assert node.outcome is Outcome.QUARANTINED
    assert node.metrics is not None
    assert node.reason == f"guard by_time: {node.train_time_ms} ms"
    assert node.findings == (Finding("by_time", Level.QUARANTINE, f"{node.train_time_ms} ms"),)
    assert tree.best() is None
    assert tree.fsr() is None
    assert speedkit.open_run(tree.path)[1] == node


def test_a_rejected_result_is_invalid(guarded_run):
    tree = guarded_run({"by_time": {"level": "reject"}})
    assert tree[1].outcome is Outcome.INVALID
    assert tree[1].metrics is not None


def test_a_note_lets_a_node_pass(guarded_run):
    tree = guarded_run({"by_time": {"level": "pass"}})
    assert tree[1].outcome is Outcome.VALID
    assert len(tree[1].findings) == 1


def test_strictness_moves_the_level(guarded_run):
    strict = guarded_run({"by_time": {"level": "quarantine", "strictness": "strict"}}, out="strict")
    assert strict[1].outcome is Outcome.INVALID
    lenient = guarded_run({"strictness": "lenient"}, out="lenient")
    assert lenient[1].outcome is Outcome.VALID


def test_a_guard_that_fails_holds_the_node_back(guarded_run):
    tree = guarded_run({"by_time": {"level": "raise"}})
    assert tree[1].outcome is Outcome.QUARANTINED
    assert "by_time: the guard failed: RuntimeError: out of order" in tree[1].reason


def test_rejected_code_is_not_run(guarded_run):
    tree = guarded_run({"by_code": {"word": "num_iterations"}})
    assert tree[1].outcome is Outcome.INVALID
    assert tree[1].metrics is None
    assert tree[1].wall_s is None
    assert tree[1].reason == "guard by_code: the word num_iterations"


def test_without_guards_nothing_is_held_back(guarded_run):
    tree = guarded_run({}, guards=())
    assert tree[1].outcome is Outcome.VALID
    assert tree[1].findings == ()


def test_an_unknown_guard_is_refused(guarded_run):
    with pytest.raises(speedkit.SpeedkitError, match="by_tine"):
        guarded_run({}, guards=("by_tine",))


def test_the_worst_finding_decides():
    note, doubt, no = (Finding("g", level, str(level)) for level in Level)
    assert worst([]) is None
    assert worst([note]) is None
    assert worst([note, doubt, doubt]) is doubt
    assert worst([doubt, no, note]) is no


# --- stopped early ------------------------------------------------------------------------

FAMILY = """\
schema = 1
name = "curves"
script = "train.py"

[target]
val_loss = 1.0

[run]
launcher = "python"
timeout_s = 60

[[record]]
index = 1
title = "start"
script = "train.py"
time_ms = 1000

[[record]]
index = 2
title = "target"
time_ms = 500
"""
TRAIN = """\
import time

pace, loss = 50, 3.0
for step in range(21):
    if step:
        time.sleep({pause} if step < 10 else {late})
    print(f"step:{{step}}/20 val_loss:{{loss - 0.11 * step:.4f}} train_time:{{pace * step}}ms")
print("done")
"""
SLOWER = '''
import speedkit
from speedkit.core.components import Coder, Draft


class Slower(Coder):
    """Makes each step take three times as long, or the loss no number."""

    def write(self, request):
        name = request.task.script
        text = request.files[name]
        new = ("pace, loss = 150, 3.0", "pace, loss = 50, float('nan')")[request.node_id % 2]
        text = text.replace("pace, loss = 50, 3.0", new)
        return Draft({name: text}, "slower")


@speedkit.hookimpl
def register_coders(register):
    register("slower", Slower)
'''


@pytest.fixture
def curve_run(tmp_path):
    """Return a function that runs two hopeless nodes by the real executor."""
    (tmp_path / "family.toml").write_text(FAMILY)
    (tmp_path / "slower.py").write_text(SLOWER)

    def run(out, pause, late, **settings):
        (tmp_path / "train.py").write_text(TRAIN.format(pause=pause, late=late))
        return speedkit.run(
            f"{tmp_path}/1",
            out=tmp_path / out,
            scaffold="flat",
            coder="slower",
            load=(str(tmp_path / "slower.py"),),
            calibration="reference",
            nodes=2,
            guards=(),
            **settings,
        )

    return run


def test_hopeless_jobs_are_stopped_and_not_scored(curve_run):
    tree = curve_run("run", 0.15, 5)
    by_nan, by_pace = tree[1], tree[2]
    assert {by_nan.outcome, by_pace.outcome} == {Outcome.STOPPED}
    assert "nan" in by_nan.reason
    assert "cannot end before" in by_pace.reason
    assert by_pace.wall_s < 50, "20 steps take 56 s"
    assert by_pace.metrics.step < 20
    assert tree.fsr() is None


def test_stopping_can_be_switched_off(curve_run):
    tree = curve_run("run", 0, 0, stop={"mode": "off"})
    assert tree[2].outcome is Outcome.VALID
    assert tree.fsr(tree[2]) == pytest.approx(-4)
    assert tree[1].outcome is Outcome.INVALID
