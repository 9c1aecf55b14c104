"""The report as a page: what it says, and what hostile text cannot make of it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser

import pytest

from speedkit.analysis.report import default_out, find_runs, render, write_report
from speedkit.core.errors import SpeedkitError, UsageError
from tests.kit.hostile_texts import HOSTILE, MARK
from tests.kit.made_runs import Made, make_run

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
VOID = {"meta", "link", "br", "img", "input", "hr"}
OUTCOMES = (
    *("valid", "invalid", "quarantined", "buggy", "stopped"),
    *("edit_failed", "dropped", "pending"),
)
CALL = {
    "request_id": "x",
    "purpose": "improve",
    "model": "openai/a-model",
    "model_served": "a-model-2",
    "usage": {"input": 1200, "cached": 200, "output": 300},
    "cost": 0.25,
}


class Page(HTMLParser):
    """A parsed page: its elements in order, its text, and whether every element was closed."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.stack = []
        self.texts = []
        self.scripts = []
        self.errors = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        (self.scripts if self.stack[-1:] == ["script"] else self.texts).append(data)

    def handle_comment(self, data):
        self.errors.append("a comment")

    @property
    def text(self):
        return "".join(self.texts)

    def found(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]

    @property
    def structure(self):
        """Tags, names of attributes, and the values that style and script refer to."""
        kept = ("id", "class", "href", "type", "role", "tabindex")
        return [(t, sorted(a), [a.get(name) for name in kept]) for t, a in self.elements]


@pytest.fixture
def one(tmp_path):
    """Return a run with a node of every outcome, and of one nobody has heard of."""
    nodes = [Made(0, "valid", 7000, stage="draft", code="a = 1\nb = 2\n")]
    nodes += [Made(1, o, 9000 if o == "invalid" else None, reason=f"because {o}")
              for o in OUTCOMES[1:]]  # fmt: skip
    nodes += [Made(1, "valid", 6050, code="a = 1\nb = 3\n", stdout="the last line\n")]
    return make_run(tmp_path / "one", nodes, calls=[CALL])


def change_node(run, node_id, **facts):
    """Change what the journal says of the creation of a node."""
    from speedkit.core import journal

    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    events = [journal.decode(line) for line in lines]
    (created,) = (e for e in events if e["type"] == "node_created" and e["id"] == node_id)
    created.update(facts)
    (run / "events.jsonl").write_bytes(b"".join(map(journal.encode, events)))


# --- what it says ---------------------------------------------------------------------------


def test_the_page_says_everything_of_a_run(one):
    page = Page(render(one))
    assert not page.errors
    assert page.stack == []
    assert len(page.found("article")) == 10
    assert len([a for a in page.found("a") if (a.get("class") or "").startswith("node o-")]) == 10
    for text in ("toy/1: slow → fast", "+1.000", "because buggy", "the last line", "a-model-2"):
        assert text in page.text
    for text in ("$0.2500", "1,200 (200 cached)", "a processor", "aide", "valid"):
        assert text in page.text
    for outcome in OUTCOMES:
        assert outcome.replace("_", " ") in page.text


def test_the_difference_to_the_parent_is_coloured(one):
    html = render(one)
    assert re.search(r'<span class="del">-b = 2\n</span><span class="add">\+b = 3\n</span>', html)
    assert "the start record has no parent" not in html  # nothing is said where nothing is due


def test_the_numbers_are_there_as_json(one):
    data = json.loads(Page(render(one)).scripts[0])
    (run,) = data
    assert (run["task"], run["result"], run["status"]) == ("toy/1", "valid", "finished")
    assert run["fsr"] == 1.0
    assert [n["outcome"] for n in run["nodes"]] == ["valid", *OUTCOMES, "valid"]
    assert [n["parent"] for n in run["nodes"]] == [None, 0, *[1] * 8]


def test_an_outcome_that_is_not_known_and_a_loss_that_is_none(tmp_path):
    run = make_run(tmp_path / "r", [Made(0, "invalid", 5000, float("nan"), reason="nan")])
    page = Page(render(run))
    assert json.loads(page.scripts[0])[0]["nodes"][1]["val_loss"] is None
    assert "nan" in page.text
    from speedkit.analysis.report.outcomes import look, ordered

    assert look("melted").shape == "cross"
    assert ordered(["melted", "buggy", "valid", "buggy"]) == ["valid", "buggy", "melted"]


def test_findings_verdicts_and_judgements(tmp_path):
    findings = [{"guard": "clock", "level": "quarantine", "reason": "3 s took 10 s"}]
    table = {"score": 0.625, "table": [{"change": "rotary", "found": True}]}
    node = Made(findings=findings, files={"judge-diff.json": json.dumps(table)})
    run = make_run(tmp_path / "r", [node])
    verdict = {"fsr": 0.4, "low": 0.3, "high": 0.5, "verdict": "confirmed"}
    (run / "verify.json").write_text(json.dumps({"nodes": {"1": verdict}}))
    text = Page(render(run)).text
    for part in ("clock", "3 s took 10 s", "Judge diff: 0.62", "rotary", "confirmed, +0.400"):
        assert part in text
    assert "+0.300 to +0.500" in text


@pytest.mark.parametrize(
    ("status", "words"),
    [(None, "speedkit run --resume"), ("failed", "ended by a failure"), ("stopped", "stopped")],
)
def test_a_run_that_did_not_finish(tmp_path, status, words):
    run = make_run(tmp_path / "r", [Made(outcome="pending")], status=status)
    page = Page(render(run))
    assert words in page.text
    result = json.loads(page.scripts[0])[0]["result"]
    assert result == ("invalid" if status == "stopped" else "missing")


def test_a_run_that_is_going_on(one):
    from speedkit.core.history import RunDirectory

    path = one.with_name("going")
    make_run(path, [Made()], status=None)
    with RunDirectory(path).writing():
        assert "The search is going on" in Page(render(path)).text


def test_a_run_that_has_not_begun(tmp_path):
    run = make_run(tmp_path / "r", [], status=None, calibration=None)
    (run / "events.jsonl").unlink()
    page = Page(render(run))
    assert "The search has not begun" in page.text
    assert "no node yet" in page.text
    assert not page.errors


def test_calibration_without_a_speedup_gives_no_fsr(tmp_path):
    from speedkit.core.calibration import Calibration

    same = Calibration("toy/1", "measured", (100.0,), (100.0,))
    for nodes in ([Made()], [Made(outcome="buggy", time_ms=None)]):
        page = Page(render(make_run(tmp_path / nodes[0].outcome, nodes, calibration=same)))
        (run,) = json.loads(page.scripts[0])
        assert (run["fsr"], run["result"]) == (None, "missing")


def test_curves_of_records_that_an_earlier_run_measured(tmp_path):
    from speedkit.core.calibration import Calibration
    from speedkit.core.metrics import Metrics

    curve = tuple(Metrics(k, 9, 2.0 - k / 10, 1000 * k) for k in range(10))
    known = Calibration("toy/1", "measured", (9000.0,), (6000.0,), (), (), None, curve, curve[:7])
    page = Page(render(make_run(tmp_path / "r", [Made()], calibration=known)))
    assert not (tmp_path / "r" / "calibration").exists()
    for which in ("start", "target"):  # among all nodes, with node 1, and with node 0
        assert len(page.found("path", **{"class": f"curve {which}"})) == 3


def test_a_call_that_nobody_saw_the_end_of_is_charged(tmp_path):
    usage = {"input": 100, "cached": 0, "output": 1000}
    intent = {"request_id": "y", "purpose": "improve", "model": "m", "usage": usage}
    lost = {"type": "model_intent", "intent": {**intent, "cost": 0.5, "input_cost": 0.125}}
    run = make_run(tmp_path / "r", [Made()], calls=[CALL], status=None)
    from speedkit.core.history import RunDirectory

    with RunDirectory(run).writing() as journal:
        journal.append({"at": 2000.0, **lost})
        assert "$0.2500" in Page(render(run)).text
    assert "$0.3750" in Page(render(run)).text


def test_a_start_of_its_own_is_said(tmp_path):
    run = make_run(tmp_path / "r", [Made()])
    with (run / "run.toml").open("a") as file:
        file.write('[start]\nfile = "mine.py"\nscript = "x = 1"\n')
    assert "starting from mine.py in place of the record's script" in Page(render(run)).text


def test_a_second_parent_is_drawn_and_linked(tmp_path):
    run = make_run(tmp_path / "r", [Made(), Made(), Made(1)])
    assert "second parent" not in Page(render(run)).text
    change_node(run, 3, other=2)
    page = Page(render(run))
    assert len(page.found("path", **{"class": "edge other"})) == 1
    assert "second parent2" in page.text


def test_the_tree_is_a_group_of_links_to_those_who_do_not_see_it(one):
    (tree,) = Page(render(one)).found("svg", **{"class": "tree"})
    assert tree["role"] == "group"


def test_damage_is_said_and_not_fatal(one):
    (one / "nodes/0001/metrics.json").write_text("[" * 5000)
    (one / "verify.json").write_text('{"nodes": {"x": 1, "1": 3, "2": {"fsr": "a"}}}')
    (one / "nodes/0001/judge-x.json").write_text('{"score": "high", "table": [1, {"a": {}}]}')
    for path in (one / "repo/refs/heads/node").iterdir():
        path.unlink()
    assert "-b = 2" in render(one)  # the journal names the commits
    import shutil

    shutil.rmtree(one / "repo")
    text = Page(render(one)).text
    assert "the git history cannot be read" in text
    assert "Judge x: no score" in text


def test_a_run_of_the_real_loop(toy_run):
    tree = toy_run(scaffold="aide", seed=4)
    page = Page(render(tree.path))
    assert not page.errors
    run = json.loads(page.scripts[0])[0]
    assert run["fsr"] == tree.fsr()
    assert len(run["nodes"]) == len(tree)
    assert f"Node {tree.best().id}: valid ★ the best" in page.text


# --- its size ---------------------------------------------------------------------------------


def test_long_logs_and_differences_are_cut_with_a_note(tmp_path):
    lines = "".join(f"line {k}\n" for k in range(5000))
    node = Made(code=lines, stdout=lines + "x" * 5000 + "\n", stderr="e\n" * 50000)
    html = render(make_run(tmp_path / "r", [node]))
    assert len(html) < 200_000
    text = Page(html).text
    assert "more lines are not shown" in text
    assert "earlier lines are not shown" in text
    assert "4,500 more" in text
    assert "line 0\n" in text
    assert "line 4999\n" in text


def test_a_long_paragraph_of_prose_is_whole(tmp_path):
    words = "word " * 600 + "end"
    node = Made(hypothesis=words, summary=words)
    assert Page(render(make_run(tmp_path / "r", [node]))).text.count("word end") == 2


def test_many_nodes_share_the_room():
    from speedkit.analysis.report.facts import Limits

    assert Limits.sharing(0) == Limits.sharing(100) == Limits()
    assert Limits.sharing(2000).diff_lines * 2000 < 200_000
    assert Limits.sharing(10**6).log_lines >= 10


# --- hostile content --------------------------------------------------------------------------


def hostile(folder, text):
    """Return a run in which a text stands wherever a model, a script or a file may put it."""
    finding = {"guard": text, "level": "reject", "reason": text}
    table = json.dumps({"score": 0.5, "table": [{"k": text, text: "v"}]})
    metrics = {
        "ending": text[:60],
        "script_changes": [text],
        "curve": [{"step": 1, "steps": 2, "val_loss": 1.5, "train_time_ms": 10}, text, {text: 1}],
    }
    files = {"judge-a.json": table, "metrics.json": json.dumps(metrics)}
    every = {
        "hypothesis": text, "reason": text, "summary": text, "code": text.replace("\0", "") + "\n",
        "stdout": text + "\n", "stderr": text + "\n", "findings": [finding], "files": files,
    }  # fmt: skip
    nodes = [Made(0, outcome, None if outcome == "buggy" else 7000, **every)
             for outcome in ("valid", "buggy", "invalid")]  # fmt: skip
    call = {**CALL, "purpose": text, "model": text, "model_served": text}
    run = make_run(folder, nodes, calls=[call], config={"model": text, "prompts": text})
    (run / "verify.json").write_text(json.dumps({"nodes": {"1": {"fsr": 1, "verdict": text}}}))
    return run


def harmless():
    """Return a text of the same shape as the hostile one, so that pages can be compared."""
    return "word " * (len(HOSTILE) // 5)


def test_hostile_text_changes_nothing_but_text(tmp_path):
    bad = Page(render(hostile(tmp_path / "a" / "run", HOSTILE)))
    good = Page(render(hostile(tmp_path / "b" / "run", harmless())))
    assert bad.errors == good.errors == []
    assert bad.stack == good.stack == []
    assert bad.structure == good.structure
    assert bad.scripts[1:] == good.scripts[1:]
    assert f"<script>window.{MARK}=1</script>" in bad.text


def test_nothing_is_loaded_and_nothing_listens(tmp_path):
    folder = tmp_path / '<img src=x onerror="window.pwned=1"> javascript:'
    page = Page(render([hostile(folder, HOSTILE), hostile(tmp_path / "two", HOSTILE)]))
    for tag, attributes in page.elements:
        assert tag not in ("img", "link", "iframe", "base", "object", "embed", "form", "image")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert not {"src", "xlink:href", "srcdoc", "action"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    assert len(page.found("script")) == 2


def test_no_hidden_character_reaches_the_page(tmp_path):
    html = render(hostile(tmp_path / "r", HOSTILE))
    assert not HIDDEN.search(html)
    html.encode("utf-8")
    assert "abc[U+202E]gnp.exe" in html
    assert "[ESC]]8;;http://pwned/[BEL]link" in html


def test_only_the_page_s_own_script_and_style_may_count(one):
    html = render(one)
    (policy,) = (a["content"] for t, a in Page(html).elements
                 if a.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_secrets_are_taken_out(tmp_path, monkeypatch):
    key = "canary-0123456789abcdef"
    monkeypatch.setenv("OTHER_API_KEY", key)
    node = Made(code=f"key = '{key}'\n", stdout=f"{key}\n")
    html = render(make_run(tmp_path / "r", [node], config={"api_base": f"http://u:{key}@host/"}))
    assert key not in html
    assert "[secret OTHER_API_KEY]" in html


def test_files_outside_the_run_are_not_followed(tmp_path, one):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "rank0.stdout.log").write_text("private words\n")
    log = one / "nodes/0001/rank0.stdout.log"
    log.unlink()
    log.symlink_to(outside / "rank0.stdout.log")
    pipe = one / "nodes/0001/rank0.stderr.log"
    pipe.unlink()
    os.mkfifo(pipe)
    (one / "nodes/0002").rename(one / "nodes/elsewhere")
    (one / "nodes/0002").symlink_to(outside)
    assert "private words" not in render(one)


def test_a_commit_that_is_an_option_is_not_given_to_git(tmp_path):
    run = make_run(tmp_path / "r", [Made()])
    change_node(run, 1, commit=f"--output={tmp_path / 'written'}")
    assert "the journal names no commit" in render(run)
    assert not (tmp_path / "written").exists()


# --- several runs -----------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path):
    """Return a folder of three runs, one of which cannot be read, and something else."""
    folder = tmp_path / "sweep"
    make_run(folder / "a", [Made(time_ms=7000)], config={"seed": 1})
    make_run(folder / "deep" / "b", [Made(outcome="buggy", time_ms=None)])
    (folder / "c").mkdir()
    (folder / "c" / "run.toml").write_text("schema = 99\nrun_id = 'x'\n")
    (folder / "plan.toml").write_text("")
    return folder


def test_a_folder_of_runs_is_one_report_that_links_them(sweep):
    write_report(sweep / "a")
    path = write_report(sweep)
    assert path == sweep / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.errors
    links = [a["href"] for a in page.found("a")]
    assert {"#r1", "#r2", "./a/report.html"} <= set(links)
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert "written by a newer speedkit" in page.text
    results = [run["result"] for run in json.loads(page.scripts[0])]
    assert results == ["valid", "invalid"]


def test_ids_are_given_once(sweep):
    ids = [a["id"] for _, a in Page(render(sweep)).elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_run_that_is_named_twice_is_shown_once(sweep):
    assert find_runs([sweep / "a", sweep, sweep / "deep"]) == [
        sweep / "a", sweep / "c", sweep / "deep" / "b",
    ]  # fmt: skip


def test_what_is_no_run(tmp_path):
    for path, word in ((tmp_path, "holds no run"), (tmp_path / "x", "does not exist")):
        with pytest.raises(UsageError, match=word):
            render(path)
    with pytest.raises(UsageError, match="no run was given"):
        render([])


def test_the_only_run_that_cannot_be_read_is_an_error(sweep):
    with pytest.raises(SpeedkitError, match="newer speedkit"):
        render(sweep / "c")


# --- the file and the command -----------------------------------------------------------------


def test_a_run_of_a_later_speedkit_is_one_line(tmp_path, one):
    later = make_run(tmp_path / "later", [Made(outcome="of a later version")])
    with pytest.raises(SpeedkitError, match="cannot be read"):
        render(later)
    page = Page(render([later, one]))
    assert "'of a later version' is not a valid Outcome" in page.text
    assert len(json.loads(page.scripts[0])) == 1


def test_runs_none_of_which_can_be_read_are_listed(sweep):
    for name in ("a", "deep/b"):
        (sweep / name / "run.toml").write_text("x = [")
    page = Page(render(sweep))
    assert not page.errors
    assert "0 runs" in page.text
    assert len(page.found("li")) == 3


def test_where_a_report_goes(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(default_out([sweep / "a", sweep])) == "speedkit-report.html"
    assert write_report(sweep / "a") == sweep / "a" / "report.html"
    assert write_report(str(sweep / "a"), tmp_path / "new" / "x.html").is_file()
    with pytest.raises(UsageError, match="is a folder"):
        write_report(sweep / "a", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(sweep / "a", tmp_path / "file" / "x.html")


def test_a_report_leaves_the_run_untouched(one, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in one.rglob("*")}
    write_report(one, tmp_path / "out.html")
    assert {p: p.stat().st_mtime_ns for p in one.rglob("*")} == before


def program(capsys, *arguments):
    """Run the command as the shell would; return exit status, output and errors."""
    from speedkit.cli.main import main

    with pytest.raises(SystemExit) as ending:
        main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return ending.value.code or 0, captured.out, captured.err


def test_the_command(one, sweep, tmp_path, capsys):
    assert program(capsys, one) == (0, f"{one / 'report.html'}\n", "")
    out = tmp_path / "both.html"
    code, text, _ = program(capsys, one, sweep / "a", "--out", out, "--json")
    assert code == 0
    assert json.loads(text) == {"report": str(out), "bytes": out.stat().st_size}
    assert "2 runs" in out.read_text(encoding="utf-8")


def test_mistakes_are_one_line(tmp_path, capsys):
    code, out, err = program(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert (
        err == f"error: {tmp_path} holds no run; give the directory of a run, or a folder of runs\n"
    )
