"""Figures of runs, chains and record times, and the files that all of them become."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from xml.etree import ElementTree

import pytest

from speedkit.analysis import figures
from speedkit.analysis.statistics import Bootstrap
from speedkit.chain import Chain, Link, Seed
from speedkit.core.calibration import Calibration
from speedkit.core.errors import SpeedkitError, UnknownNameError, UsageError
from speedkit.core.metrics import Metrics
from tests.analysis.test_figures import caption, hatched, marks, run, texts
from tests.kit import made_runs
from tests.kit.made_runs import Made

QUICK = figures.Choice(bootstrap=Bootstrap(draws=100))
CURVE = tuple(Metrics(k, 10, 2.0 - k / 10, 1000 * k) for k in range(11))
CALIBRATION = Calibration(
    "toy/1", "measured", (10000.0,), (6000.0,), fingerprint={"nproc": 2}, start_curve=CURVE
)


def call(cost):
    """Return a model call of a journal."""
    return {
        "request_id": uuid.uuid4().hex,
        "purpose": "code",
        "model": "m",
        "model_served": "m-1",
        "usage": {"input": 1, "cached": 0, "output": 1},
        "cost": cost,
    }


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a function that makes a run; each one has an id of its own."""
    plain = made_runs.manifest

    def unique(config):
        return {**plain(config), "run_id": uuid.uuid4().hex}

    monkeypatch.setattr(made_runs, "manifest", unique)

    def make(name, nodes, **given):
        given.setdefault("calibration", CALIBRATION)
        return made_runs.make_run(tmp_path / "runs" / name, nodes, **given)

    return make


@pytest.fixture
def two(made):
    """Two runs: 8 s and 7 s; a crash, 7.2 s, and a node that a guard holds back."""
    made("one", [Made(time_ms=8000), Made(time_ms=7000)], calls=[call(0.5)])
    nodes = [Made(outcome="buggy", time_ms=None), Made(time_ms=7200)]
    held = Made(outcome="quarantined", time_ms=3000)
    return made("two", [*nodes, held], calls=[call(0.25)]).parent


# --- progress -----------------------------------------------------------------------------


def test_progress_counts_nodes_device_seconds_and_dollars(two):
    one, other = figures.find_material(two).progress()
    told = [(s.nodes, s.seconds, s.dollars) for s in one.steps]
    assert told == [(0, 0, 0.5), (1, 25, 0.5), (2, 50, 0.5)]
    assert [s.fsr for s in one.steps[1:]] == pytest.approx([0.5, 0.75])
    assert one.best_at("nodes", [0, 0.5, 1, 1.5, 2, 9]) == [0, 0, 0.5, 0.5, 0.75, 0.75]
    assert other.best_at("nodes", [1, 2, 3]) == pytest.approx([0, 0.7, 0.7])


def test_the_line_is_the_mean_of_the_runs(two):
    figure = figures.best_so_far(figures.find_material(two).progress(), choice=QUICK)
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert list(line.get_xdata()) == [0, 1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([0, 0.25, 0.725, 0.725])
    assert "n = 2 runs, over and calibrated, on 1 task." in caption(figure)
    assert "Band: 95% intervals over seeds" in caption(figure)
    assert "pooled" not in caption(figure)


def test_runs_that_share_a_line_and_differ_are_named(two):
    progress = figures.find_material(two).progress()
    progress[0].row["knowledge"] = "muon"
    figure = figures.best_so_far(progress, choice=QUICK)
    assert "Runs that are pooled differ in knowledge." in caption(figure)


def test_unknown_prices_and_runs_that_are_not_over_are_left_out(made):
    made("unpriced", [Made()], calls=[call(None)])
    made("open", [Made()], status=None)
    path = made("free", [Made(time_ms=8000)]).parent
    progress = figures.find_material(path).progress()
    assert len(progress) == 2
    with pytest.raises(figures.NothingToDraw, match="no run took any dollars"):
        figures.best_so_far(progress, "dollars", choice=QUICK)
    figure = figures.best_so_far(progress, "seconds", choice=QUICK)
    assert "n = 2 runs" in caption(figure)
    unpriced = [p for p in progress if p.row["name"] == "unpriced"]
    with pytest.raises(figures.NothingToDraw, match="a price is unknown"):
        figures.best_so_far(unpriced, "dollars", choice=QUICK)
    with pytest.raises(figures.NothingToDraw, match="no run directory"):
        figures.best_so_far([], choice=QUICK)


# --- curves -------------------------------------------------------------------------------


def test_curves_of_nodes_stand_against_the_records(two):
    figure = figures.training_curves(two / "two")
    (axes,) = figure.axes
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["start record", "best: node 2", "quarantined (1)"]
    assert {"target loss 1", "start: 10.00 s", "target: 6.00 s"} <= set(texts(figure))
    ends = {(x, y) for x, y, marker in marks(axes) if marker in "ox"}
    assert ends == {(7.2, 0.9), (3.0, 0.9)}
    text = caption(figure)
    assert "2 of 3 nodes have a curve; 1 printed no validation or were not run" in text
    assert "No curve of the target record is known." in text


def test_a_run_without_curves_is_refused(made, tmp_path):
    path = made("buggy", [Made(outcome="buggy", time_ms=None)])
    with pytest.raises(figures.NothingToDraw, match="has a validation"):
        figures.training_curves(path)
    with pytest.raises(figures.NothingToDraw, match="cannot be read"):
        figures.training_curves(tmp_path)


# --- chains -------------------------------------------------------------------------------


def link(task, agent, human):
    """Return a link of a chain that reached a speedup."""
    numbers = {"start_ms": 1.0, "target_ms": 1.0, "time_ms": 1.0, "calibration": "measured"}
    rest = {"run": "r", "node": 1, "commit": "", "gained": True, "fsr": 0.5, "verified_fsr": None}
    speed = {"agent_speedup": agent, "human_speedup": human}
    return Link(task=f"mini/{task}", target_record=task + 1, **numbers, **rest, **speed)


@pytest.fixture
def chain():
    """A chain of two seeds and three tasks: one ends after the first, one is at the second."""
    seeds = (
        Seed(0, "no gain", (link(1, 1.2, 1.5),)),
        Seed(1, "running", (link(1, 1.4, 1.5), link(2, 2.0, 2.5))),
    )
    return Chain(Path("c"), "mini", (1, 2, 3), False, False, {"scaffold": "aide"}, seeds)


def test_a_chain_shows_means_its_end_and_the_human_records(chain):
    result = chain.as_json()
    curve = figures.chain_curve(json.loads(json.dumps(result)), "result.json")
    figure = figures.cumulative([curve])
    (axes,) = figure.axes
    (thick,) = [line for line in axes.lines if line.get_linewidth() == 1.8]
    assert list(thick.get_ydata()) == pytest.approx([1, 1.3, 1.6, 1.2])
    (human,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert list(human.get_data()[0]) == [0, 1, 2]
    assert list(human.get_data()[1]) == [1, 1.5, 2.5]
    assert [t.get_text() for t in axes.get_xticklabels()][:2] == ["start", "task 1\n→ record 2"]
    assert "1 of 2" in texts(figure)
    assert "95% intervals by Student's t" in caption(figure)


def test_a_task_that_no_seed_has_reached_is_hatched(chain):
    running = Chain(Path("c"), "mini", (1, 2, 3), False, False, {}, chain.seeds[1:])
    figure = figures.cumulative([figures.chain_curve(running.as_json(), "x")])
    assert [x for x, _ in hatched(figure.axes[0])] == [3]
    assert "n/a" in texts(figure)
    assert "One seed a chain, so there are no intervals." in caption(figure)
    both = [figures.chain_curve(c.as_json(), "x") for c in (running, chain)]
    assert both[0].agent[2] is None
    assert hatched(figures.cumulative(both).axes[0]) == []  # the other chain has a point there
    nothing = Chain(Path("c"), "mini", (1,), False, False, {}, (Seed(0),))
    with pytest.raises(figures.NothingToDraw, match="no chain has done a task"):
        figures.cumulative([figures.chain_curve(nothing.as_json(), "x")])


def test_a_damaged_chain_is_one_line(chain):
    for spoil in ({"seeds": [{}]}, {"summary": 3}, {"settings": None}):
        with pytest.raises(UsageError, match=r"^r\.json does not hold what speedkit cumulative"):
            figures.chain_curve({**chain.as_json(), **spoil}, "r.json")


# --- record times -------------------------------------------------------------------------


def times(*records):
    """Return the times of a family's records."""
    names = ("index", "runs_ms", "reported_ms")
    values = [dict(zip(names, r, strict=True)) for r in records]
    return figures.family_times({"family": "mini", "records": values}, "t.json")


def test_record_times_and_their_ratio():
    found = times((2, [6000, 6400, 6200], 6100), (1, [10000], None), (3, [], 4000))
    figure = figures.record_times(found)
    above, below = figure.axes
    assert [(x, y) for x, y, m in marks(above) if m == "o"] == [(0, 10), (1, 6.2)]
    assert [(x, y) for x, y, m in marks(above) if m == "s"] == [(1, 6.1), (2, 4)]
    assert [(x, y) for x, y, _ in marks(below)] == [(1, pytest.approx(6200 / 6100))]
    assert ([x for x, _ in hatched(above)], [x for x, _ in hatched(below)]) == ([2], [0, 2])
    assert "n = 4 runs of 2 records, 1 to 3 a record." in caption(figure)
    assert "1 of 3 records were not run." in caption(figure)


@pytest.mark.parametrize(
    "record", [(1, [0], 5), (1, [float("nan")], 5), (1, ["x"], 5), (1, None, 5), ("a", [], 5)]
)
def test_wrong_record_times_are_one_line(record):
    with pytest.raises(UsageError, match=r"^t\.json does not hold times of records"):
        times(record)


def test_records_without_any_time_are_refused():
    with pytest.raises(figures.NothingToDraw, match="no record of mini has a time"):
        figures.record_times(times((1, [], None)))


# --- files --------------------------------------------------------------------------------


def test_equal_figures_are_equal_files_whatever_the_users_settings(tmp_path):
    import matplotlib

    rows = [run(1, 0.2), run(2, None), run(2, 0.5, scaffold="tree")]
    for form in ("svg", "png"):
        paths = [tmp_path / f"{k}.{form}" for k in range(2)]
        for path, size in zip(paths, (10.0, 31.0), strict=True):
            with matplotlib.rc_context({"font.size": size, "axes.grid": False}):
                figures.save(figures.fsr_by_task(rows, "flat", choice=QUICK), path, "a title")
        assert paths[0].read_bytes() == paths[1].read_bytes()
    svg = (tmp_path / "0.svg").read_text()
    assert not re.search(r"20\d\d-\d\d-\d\d|dc:date|Matplotlib v", svg)


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_drawn_as_they_are(tmp_path):
    name = "$\\frac{1$ --> <script>&\x1b[31m\u202e_模型"
    rows = [run(1, 0.2, model=name, scaffold="_" + name), run(1, 0.3, model="_b", hints="1")]
    figure = figures.aggregates(rows, "hints", agents=True, choice=QUICK)
    path = tmp_path / "f.svg"
    figures.save(figure, path, name)
    ElementTree.fromstring(path.read_text())
    assert any(t.startswith("$\\frac{1$ --> <script>&[31m_") for t in texts(figure))
    assert "\x1b" not in path.read_text()


def test_the_program_draws_what_there_is_and_says_what_not(program, two, tmp_path):
    (tmp_path / "times.json").write_text(
        json.dumps({"family": "toy", "records": [{"index": 1, "runs_ms": [5], "reported_ms": 4}]})
    )
    out = tmp_path / "out"
    only = ("outcomes", "records", "curves", "best-nodes", "judge-fsr", "cumulative")
    flags = [f for name in only for f in ("--only", name)]
    flags += ["--format", "png", "--draws", 100, "--json"]
    done = program("figures", two, tmp_path / "times.json", "--out", out, *flags)
    assert done.code == 0
    names = ["records-toy.png", "curves-one.png", "curves-two.png", "outcomes.png"]
    assert [Path(p).name for p in done.json["files"]] == [*names, "best-nodes.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "best-nodes.png"])
    assert done.json["skipped"] == {
        "judge-fsr": "no run has both an FSR and a judged best node",
        "cumulative": "there is no cumulative speedrun; give its directory",
    }


def test_nothing_to_draw_and_mistakes_are_one_line_each(program, made, tmp_path, monkeypatch):
    path = made("open", [], status=None, calibration=None)
    out = tmp_path / "out"
    done = program("figures", path, "--out", out, "--only", "hints")
    assert (done.code, done.out) == (1, "")
    assert "error: hints: no run has a result (FSR)" in done.err
    done = program("figures", path, "--out", out, "--only", "hint")
    assert (done.code, "did you mean" in done.err) == (2, True)
    assert program("figures", tmp_path / "no", "--out", out).err.startswith("error: no such file")
    listed = program("figures", "--list")
    assert all(name in listed.out for name in figures.FIGURES)


def test_runs_of_a_chain_are_no_single_tasks(chain, two, made):
    folder = two / "chain"
    made("chain/seed-0/task-01", [Made()])
    asked = {"schema": 1, "seeds": [0, 1], "tasks": [1, 2, 3], "family": "mini"}
    asked |= {"verified": False, "go_on": False, "settings": {}}
    (folder / "chain.json").write_text(json.dumps(asked))
    (folder / "result.json").write_text(json.dumps(chain.as_json()))
    material = figures.find_material(two)
    assert [row["name"] for row in material.rows] == ["one", "two"]
    assert [c.reached for c in material.chains] == [(2, 1, 0)]
    alone = figures.find_material([folder, folder / "result.json"])
    assert (len(alone.rows), len(alone.chains)) == (0, 2)
    (folder / "chain.json").write_text("{}")
    heard = []
    assert figures.find_material(two, heard.append).chains == []
    assert len(heard) == 1
    with pytest.raises(SpeedkitError):
        figures.find_material(folder, heard.append)


def test_many_runs_have_curves_only_when_asked(two, tmp_path, monkeypatch):
    from speedkit.analysis.figures import drawing

    monkeypatch.setattr(drawing, "MAX_CURVES", 1)
    monkeypatch.setattr(drawing, "FIGURES", {"curves": figures.FIGURES["curves"]})
    written = figures.write_figures(two, tmp_path / "a", forms=["svg"])
    assert written.skipped == {"curves": "there are 2 runs; --only curves draws all of them"}
    assert written.files == []
    written = figures.write_figures(two, tmp_path / "a", forms=["svg"], only=["curves"])
    assert len(written.files) == 2
    with pytest.raises(UnknownNameError):
        figures.write_figures(two, tmp_path / "a", only=["other"])
    with pytest.raises(UsageError, match="png or svg"):
        figures.write_figures(two, tmp_path / "a", forms=["pdf"])
