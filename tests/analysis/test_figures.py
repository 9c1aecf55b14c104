"""Figures of tables: what is drawn is what the statistics say, and what is missing shows."""

from __future__ import annotations

import random

import pytest
from matplotlib.patches import Rectangle

from speedkit.analysis import figures
from speedkit.analysis.figures.judged import correlation_note, ranks, spearman
from speedkit.analysis.figures.rows import grouped, rows_with_agent
from speedkit.analysis.statistics import Bootstrap, Strata, aggregate
from speedkit.core.errors import UsageError

QUICK = figures.Choice(bootstrap=Bootstrap(draws=200))


def run(task=1, fsr=0.5, **given):
    """Return a row of the results of one run."""
    row = {
        "task": f"mini/{task}",
        "task_id": task,
        "record": task,
        "target_record": task + 1,
        "family": "mini",
        "scaffold": "flat",
        "coder": "llm",
        "model": "a",
        "hints": "none",
        "status": "finished",
        "result": "valid" if fsr is not None else "invalid",
        "fsr": fsr,
    }
    return {**row, **given}


def texts(figure):
    """Return everything that is written in a figure."""
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def caption(figure):
    """Return what stands below a figure, on one line."""
    return " ".join(figure.texts[1].get_text().split())


def marks(axes):
    """Return the points that are drawn one by one, as (x, y, marker)."""
    points = [line for line in axes.lines if line.get_marker() not in ("None", "", None)]
    return [(*(float(v[0]) for v in line.get_data()), line.get_marker()) for line in points]


def hatched(axes):
    """Return the centres of what is drawn as missing."""
    found = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_hatch()]
    return [(p.get_x() + p.get_width() / 2, p.get_y() + p.get_height() / 2) for p in found]


# --- aggregates ---------------------------------------------------------------------------


@pytest.fixture
def four():
    """Two tasks, two runs each, at two hint levels; and a run that is not over."""
    scores = {1: (0.1, 0.3), 2: (0.5, 0.9)}
    rows = [run(t, v, hints=h) for t, vs in scores.items() for v in vs for h in ("none", "1+2")]
    return [*rows, run(2, None, hints="1+2"), run(1, 0.9, hints="3", status="running")]


def test_aggregates_are_those_of_the_statistics(four):
    figure = figures.aggregates(four, "hints", choice=QUICK)
    expected = aggregate(Strata([[0.1, 0.3], [0.5, 0.9, 0.0]]), QUICK.bootstrap)
    for axes, name in zip(figure.axes, ("median", "iqm", "mean", "optimality_gap"), strict=True):
        (_, (x, y, _)) = marks(axes)
        assert x == pytest.approx(expected[name].value)
        thick = [line for line in axes.lines if line.get_linewidth() > 3]
        ends = [line.get_xdata() for line in thick if line.get_ydata()[0] == y]
        assert ends == [pytest.approx((expected[name].low, expected[name].high))]


def test_a_row_without_a_result_is_hatched_and_no_zero(four):
    figure = figures.aggregates(four, "hints", choice=QUICK)
    (labels,) = [[t.get_text() for t in a.get_yticklabels()] for a in figure.axes[:1]]
    assert labels == ["none", "3", "1+2"]
    assert [len(marks(a)) for a in figure.axes] == [2, 2, 2, 2]
    assert [len(hatched(a)) for a in figure.axes] == [1, 1, 1, 1]
    assert texts(figure).count("n/a") == 4
    assert {"n = 4", "n = 0", "n = 5"} <= set(texts(figure))


def test_the_caption_says_how_many_and_which_intervals(four):
    text = caption(figures.aggregates(four, "hints", choice=QUICK))
    assert "n = 9 runs on 2 tasks, 1 of them invalid, which count as FSR 0" in text
    assert "left out: 1 not over" in text
    assert "95% intervals over seeds (tasks fixed): percentiles of 200 stratified" in text
    dropped = figures.Choice(invalid="drop", bootstrap=QUICK.bootstrap)
    text = caption(figures.aggregates(four, "hints", choice=dropped))
    assert "n = 8 runs on 2 tasks; left out: 1 invalid, 1 not over" in text


def test_agents_get_rows_of_their_own(four):
    other = [{**row, "model": "b"} for row in four]
    figure = figures.aggregates([*four, *other], "hints", agents=True, choice=QUICK)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
    assert len(marks(figure.axes[0])) == 4
    with pytest.raises(figures.NothingToDraw, match="one agent"):
        figures.aggregates(four, "hints", agents=True, choice=QUICK)


def test_pooled_settings_and_unlike_tasks_are_said():
    rows = [run(1, 0.1), run(1, 0.2, model="b"), run(2, 0.3, scaffold="tree")]
    text = caption(figures.aggregates(rows, "scaffold", choice=QUICK))
    assert "Runs that are pooled differ in model." in text
    assert "Rows have different tasks, so they do not compare." in text


def test_a_value_far_away_becomes_a_triangle_with_its_number():
    rows = [run(1, 0.4), run(1, 0.5), run(1, -7.25, scaffold="tree")]
    figure = figures.aggregates(rows, "scaffold", choice=QUICK)
    mean = figure.axes[2]
    assert [m[2] for m in marks(mean)] == ["o", "<"]
    assert "-7.25" in texts(figure)
    assert "1 mean values off the axis" in caption(figure)
    assert mean.get_xlim()[0] > -1


def test_no_result_at_all_is_refused():
    with pytest.raises(figures.NothingToDraw, match="no run has a result"):
        figures.aggregates([run(1, 0.4, status="failed")], choice=QUICK)


def test_wrong_choices_are_refused():
    with pytest.raises(UsageError, match="no score 'speed'"):
        figures.Choice("speed")
    with pytest.raises(UsageError, match="zero, drop"):
        figures.Choice(invalid="keep")


# --- by task ------------------------------------------------------------------------------


def test_each_task_and_hint_level_has_a_slot_and_gaps_are_hatched():
    rows = [run(1, 0.2), run(1, 0.4), run(3, 0.6, hints="1"), run(2, 0.1, scaffold="tree")]
    figure = figures.fsr_by_task(rows, "flat", choice=QUICK)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1\n→2", "2\n→3", "3\n→4"]
    assert [(round(x), y) for x, y, _ in marks(axes)] == [(0, pytest.approx(0.3)), (2, 0.6)]
    assert sorted(round(x, 2) for x, _ in hatched(axes)) == [0.21, 0.79, 1.21, 1.79]
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["no hints", "hints 1", "n/a: no result"]


def test_a_panel_for_each_agent():
    rows = [run(1, 0.2), run(1, 0.4, model="b"), run(1, 0.4, coder="noop", model=None)]
    figure = figures.fsr_by_task(rows, "flat", choice=QUICK)
    assert [a.get_title(loc="left") for a in figure.axes] == ["llm · a", "llm · b", "noop"]


def test_invalid_runs_are_crosses_and_far_ones_triangles():
    rows = [run(1, None), run(2, -9.0), run(3, 0.5)]
    figure = figures.fsr_by_task(rows, "flat", choice=QUICK)
    assert [m[2] for m in marks(figure.axes[0])] == ["x", "v", "o"]
    text = caption(figure)
    assert "Cross: every run invalid." in text
    assert "1 means off the axis, drawn as triangles at its edge (farthest: −9.00)" in text


def test_a_scaffold_without_results_is_refused():
    with pytest.raises(figures.NothingToDraw, match="scaffold aide has no run"):
        figures.fsr_by_task([run(1, 0.2)], "aide", choice=QUICK)


def test_a_cross_is_for_runs_that_are_drawn_and_not_for_dropped_ones():
    rows = [run(1, 0.4), run(1, None), run(2, None)]
    zero = figures.fsr_by_task(rows, "flat", choice=QUICK)
    assert [marker for _, _, marker in marks(zero.axes[0])] == ["o", "x"]
    dropped = figures.Choice(invalid="drop", bootstrap=QUICK.bootstrap)
    figure = figures.fsr_by_task(rows, "flat", choice=dropped)
    assert [(y, marker) for _, y, marker in marks(figure.axes[0])] == [(0.4, "o")]
    assert "Cross" not in caption(figure)
    assert "n = 1 run on 1 task; left out: 2 invalid." in caption(figure)


def test_a_judged_run_that_is_not_over_is_left_out_and_not_counted():
    judged = {"judge": "diff", "judge_score": 0.5}
    rows = [run(1, 0.2, **judged), run(2, 0.2, **judged, status="running")]
    assert "n = 1 run; left out: 1 without" in caption(figures.judge_by_task(rows, choice=QUICK))
    with pytest.raises(figures.NothingToDraw, match="no run that is over"):
        figures.judge_by_task(rows[1:], choice=QUICK)


def test_judges_have_panels_and_unjudged_slots_are_hatched():
    rows = [
        run(1, 0.2, judge="llm", judge_score=0.25),
        run(1, 0.2, scaffold="tree", judge="diff", judge_score=0.75),
        run(2, 0.4),
    ]
    figure = figures.judge_by_task(rows, choice=QUICK)
    assert [a.get_title(loc="left") for a in figure.axes] == ["judge: diff", "judge: llm"]
    assert [[y for _, y, _ in marks(a)] for a in figure.axes] == [[0.75], [0.25]]
    assert [len(hatched(a)) for a in figure.axes] == [3, 3]
    assert "n = 2 runs; left out: 1 without a judged best node" in caption(figure)
    with pytest.raises(figures.NothingToDraw, match="speedkit judge"):
        figures.judge_by_task([run(1, 0.2)], choice=QUICK)


# --- against the judge --------------------------------------------------------------------


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(3)
    x = [rng.choice((0.0, 0.25, 0.5, 1.0)) for _ in range(40)]
    y = [v + rng.gauss(0, 0.4) for v in x]
    expected = (stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0])
    note = correlation_note(x, y)
    assert f"r = {expected[0]:.2f}, Spearman's ρ = {expected[1]:.2f}, n = 40 runs" in note
    import numpy as np

    assert spearman(np.array(x), np.array(y)) == pytest.approx(expected[1], abs=1e-12)
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]


def test_a_correlation_of_few_or_equal_values_is_not_given():
    assert correlation_note([0.1, 0.2], [0.3, 0.4]) == "No correlation: n = 2 runs, 3 are needed."
    assert "the same in all runs" in correlation_note([0.5, 0.5, 0.5], [0.1, 0.2, 0.3])


def test_points_are_runs_that_have_both():
    rows = [
        run(1, 0.2, judge_score=0.3),
        run(2, -8.0, judge_score=0.1),
        run(3, None),
        run(4, 0.5),
        run(5, 0.5, judge_score=0.9, status="running"),
    ]
    figure = figures.fsr_against_judge(rows)
    (axes,) = figure.axes
    assert sorted(x for x, _, _ in marks(axes)) == [0.1, 0.3]
    text = caption(figure)
    assert "No correlation: n = 2 runs" in text
    assert "Left out: 1 invalid, 2 without a judged best node or not over." in text
    with pytest.raises(figures.NothingToDraw, match="no run has both"):
        figures.fsr_against_judge(rows[2:])


# --- outcomes -----------------------------------------------------------------------------


def test_bars_are_shares_and_unknown_outcomes_are_other():
    rows = [
        run(1, 0.2, nodes=4, nodes_valid=1, nodes_buggy=2),
        run(1, 0.2, nodes=4, nodes_valid=1, nodes_buggy=3),
        run(1, 0.2, scaffold="aide", nodes=2, nodes_valid=2),
        run(1, 0.2),
    ]
    figure = figures.outcomes(rows)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["flat", "aide"]
    widths = {}
    for bar in axes.patches:
        widths.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(bar.get_width())
    assert widths == {0: pytest.approx([25, 62.5, 12.5]), 1: pytest.approx([100, 0, 0])}
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["valid", "buggy", "other"]
    assert "n = 10 nodes of 3 runs" in caption(figure)
    assert "Left out: 1 run without nodes" in caption(figure)
    with pytest.raises(figures.NothingToDraw, match="no run says how many"):
        figures.outcomes(rows[3:])


# --- rows ---------------------------------------------------------------------------------


def test_groups_are_split_as_far_as_there_is_room():
    rows = rows_with_agent(
        [run(1, 0.1, hints=h, scaffold=c) for h in "123" for c in ("flat", "aide")]
    )
    columns = (("scaffold", "agent", "hints"), ("scaffold",))
    assert list(grouped(rows, columns, 6)) == [
        *("flat · hints 1", "flat · hints 2", "flat · hints 3"),
        *("aide · hints 1", "aide · hints 2", "aide · hints 3"),
    ]
    assert list(grouped(rows, columns, 5)) == ["flat", "aide"]


def test_an_agent_is_named_by_what_differs():
    rows = [run(), run(coder="aider"), run(coder="noop", model=None)]
    assert [r["agent"] for r in rows_with_agent(rows)] == ["llm · a", "aider · a", "noop"]
    assert [r["agent"] for r in rows_with_agent(rows[:1])] == ["a"]
    assert [r["agent"] for r in rows_with_agent([run(model=None, model_asked="asked")])] == [
        "asked"
    ]
