"""Each check finds a component that was broken on purpose."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pydantic import ConfigDict, Field

import speedkit
from speedkit import (
    Draft,
    Finding,
    Judgement,
    KnowledgeEntry,
    Level,
    Outcome,
    Proposal,
    Stage,
)

DRAFT = Stage.DRAFT


def fast_sleeper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


# --- all kinds ------------------------------------------------------------------------------


class Fine(speedkit.KnowledgeSource):
    """Offers one text."""

    def entries(self, task):
        return [KnowledgeEntry("fine", "One", "A text.")]


class Unnamed(Fine):
    """Has an option that nobody can understand."""

    class Options(speedkit.Options):
        depth: int = 3


class Lax(Fine):
    """Takes any option."""

    class Options(speedkit.Options):
        model_config = ConfigDict(extra="allow", frozen=False)


class Unwritable(Fine):
    """Has an option that is no JSON value."""

    class Options(speedkit.Options):
        limit: float = Field(float("inf"), description="a limit")


class Forgetful(Fine):
    """Reads an option as something else than it was written."""

    class Options(speedkit.Options):
        path: Path | str = Field(Path("a"), description="a path")


class Unbound(Fine):
    """Does not keep the services."""

    def bind(self, services):
        self.task = services.task


class Bare(Fine):
    """Does not keep its options."""

    def __init__(self, options):
        self.asked = 0


class Half(speedkit.KnowledgeSource):
    """Lacks its one method."""


class Mute(Fine):
    pass


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Half, "construction", "does not define entries"),
        (Unbound, "construction", "super().bind(services)"),
        (Bare, "construction", "super().__init__(options)"),
        (Mute, "documentation", "no docstring"),
        (Unnamed, "documentation", "option depth has no description"),
        (Lax, "options", "accept unknown names"),
        (Lax, "options", "can be changed"),
        (Unwritable, "options", "no JSON values"),
        (Forgetful, "options", "recorded and read again: path"),
    ],
)
def test_common(faults, cls, check, words):
    assert words in " ".join(faults(cls, only=check)[check])


def test_options_that_are_needed_are_asked_for(faults):
    class Needy(Fine):
        """Must be told where."""

        class Options(speedkit.Options):
            path: str = Field(description="where")

    assert "its options are refused, give others" in faults(Needy)["construction"][0]
    assert not faults(Needy, options={"path": "x"})
    (message,) = faults(Needy, options={"pth": "x", "path": "y"})["construction"]
    assert "pth: there is no such setting; did you mean path?" in message


# --- scaffold -------------------------------------------------------------------------------


class Scaffold(speedkit.Scaffold):
    """Drafts for ever."""

    def propose(self, tree, rng):
        return [Proposal(0, DRAFT)]


class Global(Scaffold):
    """Takes chance from the process."""

    def propose(self, tree, rng):
        return [Proposal(random.choice([n.id for n in tree if n.outcome]), DRAFT)]


class Counting(Scaffold):
    """Remembers how often it was asked."""

    steps = 0

    def propose(self, tree, rng):
        self.steps += 1
        return [Proposal(self.steps % len(tree), DRAFT)]


class Orphans(Scaffold):
    """Asks for children of a node that is not there."""

    def propose(self, tree, rng):
        return [Proposal(len(tree), DRAFT)]


class Roots(Scaffold):
    """Asks for another start record."""

    def propose(self, tree, rng):
        return [Proposal(0, Stage.ROOT)]


class Pairs(Scaffold):
    """Answers with something else."""

    def propose(self, tree, rng):
        return [(0, "draft")]


def asking(answer):
    """Return a scaffold with one answer, or what a function of the tree says."""

    class Asking(Scaffold):
        """Always wants the same."""

        def propose(self, tree, rng):
            return answer(tree) if callable(answer) else answer

    return Asking


class Endless(Scaffold):
    """Asks for too much."""

    def propose(self, tree, rng):
        return [Proposal(0, DRAFT)] * 1_000_000


class Optimist(Scaffold):
    """Fails where no node is valid."""

    def propose(self, tree, rng):
        if len(tree) == 1:
            return [Proposal(0, DRAFT)]
        return [Proposal(tree.best().id, Stage.IMPROVE)]


class Still(Scaffold):
    """Never begins."""

    def propose(self, tree, rng):
        return []


class Gardener(Scaffold):
    """Prunes the tree that it is shown."""

    def propose(self, tree, rng):
        tree.update(0, summary="seen")
        return [Proposal(0, DRAFT)]


class Hasty(Scaffold):
    """Builds on nodes that are not finished."""

    lookahead = 3

    def propose(self, tree, rng):
        return [Proposal(max(n.id for n in tree), DRAFT)]


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Global, "purity", "answers differently"),
        (Counting, "purity", "answers differently"),
        (Orphans, "answers", "which is not in the tree"),
        (Roots, "answers", "stage <Stage.ROOT"),
        (Pairs, "answers", "no Proposal"),
        (asking(None), "answers", "returned None, no sequence of Proposals"),
        (asking(Proposal(0, DRAFT)), "answers", "no sequence of Proposals"),
        (asking(lambda tree: [Proposal(tree.root, DRAFT)]), "answers", "no id of a node"),
        (asking([Proposal(0, DRAFT, 99)]), "answers", "a second parent, node 99"),
        (asking([Proposal(0, DRAFT, 0)]), "answers", "whose second parent is the same"),
        (Endless, "answers", "more than 10000 children"),
        (Optimist, "answers", "raised AttributeError"),
        (Still, "answers", "no child of node 0"),
        (Gardener, "tree_untouched", "changes the tree"),
        (Hasty, "lookahead", "child of node 7, which is not finished"),
    ],
)
def test_scaffolds(faults, cls, check, words):
    assert words in " ".join(faults(cls, only=check)[check])


def test_a_plain_scaffold_has_no_fault(faults):
    assert not faults(Scaffold)


# --- coder ----------------------------------------------------------------------------------


class Coder(speedkit.Coder):
    """Adds a comment."""

    def write(self, request):
        script = request.task.script
        text = request.files[script] + f"# {request.node_id}\n"
        return Draft({**request.files, script: text}, "Add a comment")


def changed(**fields):
    """Return a coder whose drafts differ from a good one in some fields."""

    class Changed(Coder):
        """Answers with something wrong."""

        def write(self, request):
            given = {k: v(request) if callable(v) else v for k, v in fields.items()}
            return replace(super().write(request), **given)

    return Changed


def effect(act):
    """Return a coder that does something besides."""

    class Effect(Coder):
        """Does more than it should."""

        def write(self, request):
            act(request)
            return super().write(request)

    return Effect


class Forgetting(Coder):
    """Loses its answers when several threads ask at once."""

    def write(self, request):
        self.request = request
        time.sleep(0.1)
        return super().write(self.request)


class Drifting(Coder):
    """Counts its answers."""

    numbers = itertools.count()

    def write(self, request):
        draft = super().write(request)
        return replace(draft, hypothesis=f"Comment {next(self.numbers)}")


class Fragile(Coder):
    """Takes for granted that the parent has a line."""

    def write(self, request):
        request.files[request.task.script].splitlines()[0]
        return super().write(request)


class Textual(Coder):
    """Answers with text."""

    def write(self, request):
        return "print('hello')"


class Leaving(Coder):
    """Ends the program."""

    def write(self, request):
        sys.exit("no key")


class Secretive(Coder):
    """Asks a model without saying so."""

    def write(self, request):
        self.services.llm()


def write_home(request):
    Path.home().joinpath("notes.txt").write_text("x")


def write_family(request):
    Path(tempfile.gettempdir()).parent.joinpath("elsewhere.txt").write_text("x")


def write_by_child(request):
    subprocess.run(["touch", "made-by-a-child"], check=True)


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Textual, "drafts", "no Draft"),
        (Leaving, "drafts", "raised SystemExit: no key"),
        (Leaving, "strange_files", "raised SystemExit: no key"),
        (changed(files="print('hello')"), "drafts", "no mapping from names to texts"),
        (changed(model=7), "drafts", "model is 7"),
        (changed(hypothesis=" "), "drafts", "hypothesis is empty"),
        (changed(failure="one\ntwo"), "drafts", "more than one line"),
        (changed(files={}), "drafts", "files of the node are missing: train.py"),
        (changed(files=lambda r: {**r.files, "a.py": ""}), "drafts", "not the node's: a.py"),
        (changed(files=lambda r: dict(r.files)), "drafts", "changes nothing"),
        (changed(files=lambda r: {r.task.script: b"x"}), "drafts", "bytes, no text"),
        (changed(files=lambda r: {r.task.script: "\ud800"}), "drafts", "written as UTF-8"),
        (changed(notes={"path": Path("x")}), "drafts", "notes are no JSON values"),
        (effect(write_home), "confinement", "outside its log folder"),
        (effect(write_family), "confinement", "elsewhere.txt"),
        (effect(write_by_child), "confinement", "made-by-a-child"),
        (effect(lambda r: tempfile.mkdtemp("", "kept-")), "confinement", "leaves kept-"),
        (effect(lambda r: fast_sleeper()), "confinement", "leaves a process"),
        (effect(lambda r: os.chdir("..")), "confinement", "working directory"),
        (effect(lambda r: os.environ.update(KIT="1")), "confinement", "variable KIT"),
        (
            effect(lambda r: r.files.update({"train.py": ""})),
            "request_untouched",
            "the parent's files",
        ),
        (effect(lambda r: r.tree.update(0, summary="x")), "request_untouched", "the tree"),
        (Drifting, "determinism", "take chance from request.rng"),
        (Forgetting, "threads", "differently than alone"),
        (Fragile, "strange_files", "given an empty file, it raised IndexError"),
        (Secretive, "drafts", "does not say needs_model"),
    ],
)
def test_coders(faults, cls, check, words):
    assert words in " ".join(faults(cls, only=check)[check])


def test_what_is_no_draft_is_said_once_a_request_and_briefly(faults):
    messages = [m for found in faults(Textual).values() for m in found]
    assert all("no Draft" in message and len(message) < 200 for message in messages)


def test_a_plain_coder_has_no_fault(faults):
    assert not faults(Coder)


def test_a_process_that_a_coder_left_is_ended(faults):
    started = []
    faults(effect(lambda r: started.append(fast_sleeper())), only="drafts")
    assert started
    assert not [process.pid for process in started if psutil.pid_exists(process.pid)]


# --- summarizer, judge, knowledge -----------------------------------------------------------


class Summarizer(speedkit.Summarizer):
    """Says what became of a node."""

    def summarize(self, request):
        return f"It was {request.node.outcome}."


class Raising(Summarizer):
    """Needs metrics."""

    def summarize(self, request):
        return f"It took {request.node.metrics.train_time_ms} ms."


class Verbose(Summarizer):
    """Passes everything on."""

    def summarize(self, request):
        return "The log:" + request.stdout + request.stderr


class Silent(Summarizer):
    """Says nothing of invalid nodes."""

    def summarize(self, request):
        return "" if request.node.outcome is Outcome.INVALID else "It ran."


class Nothing(Summarizer):
    """Returns nothing."""

    def summarize(self, request):
        return None


class Torn(Summarizer):
    """Cuts characters in two."""

    def summarize(self, request):
        return "\ud83d"


class Moving(Summarizer):
    """Goes elsewhere."""

    def summarize(self, request):
        os.chdir("/")
        return "It ran."


class Timed(Summarizer):
    """Says when."""

    def summarize(self, request):
        return f"At {time.monotonic_ns()} it was {request.node.outcome}."


class Scribbling(Summarizer):
    """Keeps notes where it stands."""

    def summarize(self, request):
        Path("notes.txt").write_text("x")
        return "It ran."


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Raising, "summaries", "raised AttributeError"),
        (Verbose, "summaries", "characters, and only 16000 are kept"),
        (Silent, "summaries", "the summary is empty"),
        (Nothing, "summaries", "returned NoneType"),
        (Torn, "summaries", "written as UTF-8"),
        (Moving, "summary_confinement", "the working directory is /"),
        (Timed, "summary_determinism", "answers differently"),
        (Scribbling, "summary_confinement", "notes.txt"),
    ],
)
def test_summarizers(faults, cls, check, words):
    assert words in " ".join(faults(cls, only=check)[check])


def scoring(score, **fields):
    """Return a judge that gives a score, or what a function of the request says."""

    class Scoring(speedkit.Judge):
        """Has made up its mind."""

        def judge(self, request):
            value = score(request) if callable(score) else score
            return Judgement(value, **fields)

    return Scoring


def same(request):
    return float(request.agent == request.human)


def scribbled(request):
    Path("notes.txt").write_text("x")
    return same(request)


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (scoring(1.5), "scores", "the score is 1.5"),
        (scoring(float("nan")), "scores", "the score is nan"),
        (scoring(True), "scores", "the score is True"),
        (scoring("high"), "scores", "the score is 'high'"),
        (scoring(same, details={"set": {1}}), "scores", "no JSON values"),
        (scoring(lambda r: compile(r.agent["train.py"], "", "exec")), "scores", "SyntaxError"),
        (scoring(0.5), "sense", "scores 0.5, and no change 0.5"),
        (scoring(lambda r: random.random()), "judge_determinism", "answers differently"),
        (scoring(lambda r: same(r) * len([r.agent.clear()])), "judge_determinism", "the files"),
        (scoring(scribbled), "judge_confinement", "notes.txt"),
    ],
)
def test_judges(faults, cls, check, words):
    assert words in " ".join(faults(cls, only=check)[check])


def test_a_plain_judge_has_no_fault(faults):
    assert not faults(scoring(same))


def offering(make):
    """Return a knowledge source with the entries that a function makes."""

    class Offering(speedkit.KnowledgeSource):
        """Offers what it is told to."""

        def entries(self, task):
            return make()

    return Offering


def entry(text="A text.", title="One"):
    return KnowledgeEntry("kit", title, text)


def shuffled():
    return random.sample([entry(title=str(k)) for k in range(30)], 30)


def download():
    Path("download.txt").write_text("x")
    return [entry()]


@pytest.mark.parametrize(
    ("make", "check", "words"),
    [
        (lambda: "a text", "entries", "returned str"),
        (lambda: ["a text"], "entries", "is no KnowledgeEntry"),
        (lambda: [entry("")], "entries", "empty source, title or text"),
        (lambda: [entry(None)], "entries", "empty source, title or text"),
        (lambda: [entry("\ud800")], "entries", "written as UTF-8"),
        (lambda: [entry("x" * 150_000)] * 2, "entries", "300000 characters"),
        (shuffled, "knowledge_determinism", "other texts"),
        (lambda: [entry(str(time.monotonic_ns()))], "knowledge_determinism", "other texts"),
        (download, "knowledge_confinement", "download.txt"),
    ],
)
def test_knowledge(faults, make, check, words):
    assert words in " ".join(faults(offering(make), only=check)[check])


# --- guard ----------------------------------------------------------------------------------


class Guard(speedkit.Guard):
    """Looks at nothing."""

    title = "nothing"
    name = "nothing"


class Blind(Guard):
    """Rejects everything."""

    def check_code(self, code):
        return [self.found(Level.REJECT, "it is code")]


class Wary(Blind):
    """Has doubts about everything."""

    def check_code(self, code):
        return [self.found(Level.QUARANTINE, "it is code")]


class Late(Guard):
    """Rejects every run."""

    def check_result(self, result):
        return [self.found(Level.REJECT, "it ran")]


class Single(Guard):
    """Answers with a finding, not with several."""

    def check_code(self, code):
        return self.found(Level.PASS, "fine")


class Stern(Guard):
    """Cannot be made lenient."""

    class Options(speedkit.Options):
        pass


class Wordless(Guard):
    """Gives no reason."""

    def check_code(self, code):
        return [self.found(Level.PASS, "")]


class Foreign(Guard):
    """Signs with the name of another."""

    def check_code(self, code):
        return [Finding("log", Level.PASS, "fine")]


class Parsing(Guard):
    """Takes for granted that code is Python."""

    def check_code(self, code):
        compile(code.script, "", "exec")
        return ()


class Needing(Guard):
    """Takes for granted that there are data."""

    def check_result(self, result):
        return [self.found(Level.PASS, str(list(result.data.iterdir())))]


class Untitled(Guard):
    """Does not say what it looks at."""

    title = ""
    cost = 7


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Blind, "start_passes", "rejects the start record: it is code"),
        (Wary, "start_passes", "quarantines the start record: it is code"),
        (Late, "result_findings", "rejects a run of the human change: it ran"),
        (Single, "code_findings", "no sequence of Findings"),
        (Stern, "identity", "no strictness"),
        (Wordless, "code_findings", "no line for the user"),
        (Foreign, "code_findings", "signed 'log'"),
        (Parsing, "code_findings", "raised SyntaxError"),
        (Needing, "result_findings", "raised AttributeError"),
        (Untitled, "identity", "title is no line"),
        (Untitled, "identity", "cost is 7"),
    ],
)
def test_guards(faults, cls, check, words):
    assert words in " ".join(faults(cls, only=check)[check])


def test_a_plain_guard_has_no_fault(faults):
    assert not faults(Guard)


def test_checks_leave_this_process_as_it_was(faults):
    before = os.getcwd(), dict(os.environ), tempfile.gettempdir(), threading.active_count()
    faults(effect(lambda r: os.environ.update(KIT="1")))
    assert (os.getcwd(), dict(os.environ), tempfile.gettempdir()) == before[:3]
