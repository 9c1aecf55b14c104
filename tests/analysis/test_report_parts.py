"""Pieces of the report: text, excerpts, scales, the layout of trees, figures."""

from __future__ import annotations

import math
import unicodedata
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speedkit.analysis.report import figures, text, tree
from speedkit.analysis.report.evidence import Folder
from speedkit.analysis.report.facts import Limits, read_run
from speedkit.analysis.report.svg import Axes, Scale, element, outline, spread
from speedkit.core.node import Node, Stage, Tree
from tests.kit.made_runs import Made, make_run

# --- text -----------------------------------------------------------------------------------


@given(st.text())
def test_what_is_visible_has_no_control_and_no_format_character(given):
    shown = text.visible(given)
    kinds = {unicodedata.category(c) for c in shown if c not in "\n\t"}
    # A few marks of Arabic, Syriac and Egyptian writing are of category Cf, and show.
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(shown) & set("\u200b\u200e\u202e\u2066\ufeff\u00ad")
    assert text.visible(shown) == shown


def test_visible_keeps_what_can_be_seen():
    assert text.visible("naïve 日本 🎉\n\tx\r\n") == "naïve 日本 🎉\n\tx\n"
    assert text.visible("\x1b\x7f\r\u202e\ud800\x02") == "[ESC][DEL][CR][U+202E][U+D800][U+0002]"


def test_logs_lose_colours_and_keep_every_state_of_a_bar():
    assert text.log_text("\x1b[1;31mred\x1b[0m 1%\r2%\r\n") == "red 1%\n2%\n"


@given(st.lists(st.text(st.characters(exclude_characters="\n"), min_size=1, max_size=5)))
def test_excerpts_keep_the_lines_they_should(lines):
    whole = "\n".join(lines)
    first, last = text.head(whole, 3), text.tail(whole, 3)
    if whole.strip():
        kept = whole.rstrip("\n").split("\n")
        assert list(first.lines) == kept[:3]
        assert list(last.lines) == kept[-3:]
        assert bool(first.note) == bool(last.note) == (len(kept) > 3)
    else:
        assert first.lines == last.lines == ()


def test_a_tail_that_was_cut_begins_with_a_whole_line():
    assert text.tail("lf a line\nwhole\n", 9, cut=True).lines == ("whole",)
    assert text.tail("one long line", 9, cut=True).lines == ("one long line",)


def test_a_line_of_code_cannot_pass_for_the_head_of_a_diff():
    lines = ["diff --git a/x b/x", "--- a/x", "+++ b/x", "@@ -1,2 +1,2 @@", "--- removed", " same",
             "+++ added", "", "\\ No newline", "diff --git a/y b/y", "new file mode"]  # fmt: skip
    assert [kind for kind, _ in text.diff_rows(lines)] == [
        "meta", "meta", "meta", "hunk", "del", "same", "add", "same", "meta", "meta", "meta",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (text.seconds(12345), "12.35 s"), (text.seconds(None), None),
        (text.seconds(8_250_000), "8,250 s"), (text.duration(90), "90.0 s"),
        (text.duration(600), "10 min"), (text.duration(7500), "2 h 05 min"),
        (text.signed(-0.5), "-0.500"), (text.times(1.5), "1.50×"),
        (text.loss(float("nan")), "nan"), (text.dollars(None), "unknown"),
        (text.dollars(0), "$0"), (text.dollars(0.0123), "$0.0123"),
        (text.dollars(1234.5), "$1,234.50"), (text.plain([1, True]), "1, yes"),
        (text.plain([]), "none"), (text.subject("  first\nsecond"), "first"),
    ],
)  # fmt: skip
def test_numbers_as_words(value, shown):
    assert value == shown


# --- pictures ---------------------------------------------------------------------------------


def test_elements_escape_what_they_are_given():
    made = element("text", "<&\u202e", class_='a"b', aria_label="<i>", x=1.25, y=None)
    assert made == '<text class="a&#34;b" aria-label="&lt;i&gt;" x="1.2">&lt;&amp;[U+202E]</text>'


limits = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))


@given(limits, limits)
def test_ticks_are_round_inside_and_neither_few_nor_many(a, b):
    low, high = spread([a, b])
    scale = Scale(low, high, 0, 100)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-6 <= t <= high + 1e-6 for t in ticks)
    assert scale(low) == 0
    assert math.isclose(scale(high), 100)


def test_a_place_far_outside_stays_near():
    scale = Scale(0, 1, 0, 100)
    assert scale(1e300) == 300
    assert scale(-1e300) == -200
    assert outline([]) == ""


# --- the tree ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**6), max_size=40))
def test_no_two_nodes_stand_in_one_place(choices):
    grown = Tree([Node(0, None, Stage.ROOT, 0)])
    for i, choice in enumerate(choices, start=1):
        grown.put(Node(i, choice % i, Stage.DRAFT, i))
    places = tree.layout(grown)
    assert len({(places.depth[n.id], places.slot[n.id]) for n in grown}) == len(grown)
    assert {n.id: places.depth[n.id] for n in grown} == {
        n.id: len(grown.ancestors(n.id)) for n in grown
    }
    for n in grown:
        slots = [places.slot[c.id] for c in grown.children(n.id)]
        assert slots == sorted(slots)
        assert not slots or slots[0] <= places.slot[n.id] <= slots[-1]


def test_a_chain_deeper_than_the_stack():
    nodes = [Node(i, i - 1 if i else None, Stage.ROOT, i) for i in range(3000)]
    assert tree.layout(Tree(nodes)).deepest == 2999
    assert tree.layout(Tree()).leaves == 0


def test_area_grows_with_the_speedup():
    assert tree.radius(2) ** 2 == pytest.approx(2 * tree.radius(1) ** 2)
    assert tree.radius(None) < tree.radius(1) < tree.radius(1e9) == tree.LARGEST
    assert tree.radius(1e-9) == tree.SMALLEST


def test_every_shape_is_as_large_as_a_circle_and_in_the_middle():
    for name in tree._POLYGONS:
        corners = tree._corners(name, 10)
        assert sum(x for x, _ in corners) == pytest.approx(0, abs=1e-9)
        pairs = zip(corners, corners[1:] + corners[:1], strict=True)
        area = abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2
        assert area == pytest.approx(math.pi * 100, rel=0.15), name


# --- figures ----------------------------------------------------------------------------------


def facts(folder, nodes, **settings):
    """Return what a report knows of a made-up run."""
    return read_run(make_run(folder, nodes, **settings), "r1", Limits())


def marks(picture, name):
    """Return the elements of a picture whose class begins with a name."""
    root = ET.fromstring(picture)
    return [e for e in root.iter() if (e.get("class") or "").split(" ")[0] == name]


def test_each_node_with_a_log_has_a_curve(tmp_path):
    run = facts(tmp_path / "r", [Made(), Made(outcome="buggy", time_ms=None), Made(1, "invalid")])
    assert len(marks(figures.curves(run), "curve")) == 2
    assert figures.curve(run, run.fact(2)) is None
    picture = figures.curve(run, run.fact(1))
    (line,) = marks(picture, "curve")
    assert line.get("d").count("L") == 10
    titles = [e.text for e in ET.fromstring(picture).iter("title")]
    assert "time of the start record: 10.05 s" in titles


def test_the_best_so_far_never_falls(tmp_path):
    times = (9000, 9500, 7000, 30000, 6500)
    run = facts(tmp_path / "r", [Made(time_ms=t) for t in times])
    corners = figures._steps([(n.node.id, n.fsr) for n in run.nodes[1:]], 5)
    values = [y for _, y in corners]
    assert values == sorted(values)
    assert values[-1] == run.best.fsr == pytest.approx((10050 - 6500) / 4000)
    picture = figures.best_so_far(run)
    assert len(marks(picture, "dot")) == 5
    assert len([e for e in marks(picture, "dot") if e.tag == "path"]) == 1  # far below


def test_without_a_valid_node_there_is_no_best_so_far(tmp_path):
    run = facts(tmp_path / "r", [Made(outcome="buggy", time_ms=None)])
    assert figures.best_so_far(run) is None
    assert figures.curves(run) is None
    assert figures.outcomes([]) is None


def test_bars_are_as_long_as_the_counts():
    bars = marks(figures.outcomes([("valid", 4), ("buggy", 2), ("melted", 0)]), "bar")
    first, second = (float(b.get("width")) for b in bars)
    assert first == 2 * second


def test_runs_that_differ_in_the_seed_share_a_row(tmp_path):
    runs = [facts(tmp_path / f"a{k}", [Made(time_ms=7000 + k)], config={"seed": k})
            for k in range(3)]  # fmt: skip
    runs.append(facts(tmp_path / "b", [Made(outcome="buggy")], config={"hints": [1]}))
    runs.append(facts(tmp_path / "c", [Made(outcome="pending")], status="failed"))
    picture = figures.fsr_of_runs(runs)
    assert len(marks(picture, "dot")) == 4  # a missing result is no point
    labels = [e.text for e in ET.fromstring(picture).iter("text") if "toy/1" in (e.text or "")]
    assert labels == ["toy/1 · aide · llm · hints none", "toy/1 · aide · llm · hints 1"]
    assert figures.fsr_of_runs(runs[-1:]) is None


def test_labels_of_runs_fit_beside_each_other(tmp_path):
    model = {"model": "provider/a-model-with-a-very-long-name-20260101"}
    runs = [facts(tmp_path / f"r{k}", [Made()], config={**model, "hints": [k]}) for k in (1, 2)]
    picture = ET.fromstring(figures.fsr_of_runs(runs))
    assert {"hints 1", "hints 2"} <= {e.text for e in picture.iter("text")}
    (label,) = [e.text for e in ET.fromstring(figures.fsr_of_runs(runs[:1])).iter("text")
                if "toy/1" in (e.text or "")]  # fmt: skip
    assert len(label) == figures.WIDEST


def test_a_plot_of_one_value_has_a_frame():
    axes = Axes(spread([3.0]), spread([0.0, 0.0]), "x", "y")
    assert "<line" in axes.frame()


# --- files ------------------------------------------------------------------------------------


def test_curves_are_thinned_out_and_keep_both_ends(tmp_path):
    import json

    curve = [{"step": k, "steps": 999, "val_loss": 3.0, "train_time_ms": k} for k in range(1000)]
    odd = [
        None, 3, {}, {"step": 1}, {**curve[0], "val_loss": "nan"}, {**curve[0], "val_loss": "x"},
        {**curve[0], "train_time_ms": None}, {**curve[0], "step": "1"}, {**curve[0], "step": -1},
        {**curve[0], "val_loss": 1e300}, {**curve[0], "train_time_ms": True},
    ]  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({"curve": odd + curve}))
    found = Folder(tmp_path, 50, 10, str).curve(".")
    assert len(found) == 50
    assert (found[0].step, found[-1].step) == (0, 999)


def test_errors_of_another_rank_are_shown_when_rank_0_has_none(tmp_path):
    (tmp_path / "rank0.stdout.log").write_text("out\n")
    (tmp_path / "rank3.stderr.log").write_text("Traceback\n")
    logs = Folder(tmp_path, 50, 10, str).logs(".")
    assert [log.name for log in logs] == ["rank0.stdout.log", "rank3.stderr.log"]
