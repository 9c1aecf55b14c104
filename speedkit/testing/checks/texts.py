"""What is asked of summarizers, judges and knowledge sources: sound values, no surprise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speedkit.core.components import (
    Ending,
    Execution,
    Judgement,
    JudgeRequest,
    KnowledgeEntry,
    Proposal,
    RankError,
    SummaryRequest,
)
from speedkit.core.errors import SpeedkitError
from speedkit.core.metrics import Metrics, Report
from speedkit.core.node import Outcome, Stage
from speedkit.testing.bench import TRACEBACK, Bench, one_line, shown
from speedkit.testing.footprint import Footprint, footprint

MAX_SUMMARY = 16_000
"""Characters; a search cuts a longer summary off."""
MAX_KNOWLEDGE = 200_000
"""Characters of all entries together, about 50,000 tokens of every prompt."""

# --- summarizer -----------------------------------------------------------------------------


def summaries(bench: Bench) -> Iterator[str]:
    """It answers every outcome with some text, short enough to be kept."""
    for what, request in _summary_requests(bench):
        text = bench.make().summarize(request)
        if not isinstance(text, str):
            yield f"{what}: returned {type(text).__name__}, no text"
        elif not text.strip():
            yield f"{what}: the summary is empty"
        elif len(text) > MAX_SUMMARY:
            yield f"{what}: {len(text)} characters, and only {MAX_SUMMARY} are kept"
        elif not _is_unicode(text):
            yield f"{what}: the summary cannot be written as UTF-8"


def summary_determinism(bench: Bench) -> Iterator[str]:
    """Without a model, the same outcome has the same summary."""
    if bench.cls.needs_model:
        return
    summarizer = bench.make()
    for what, request in _summary_requests(bench):
        first = summarizer.summarize(request)
        if first != summarizer.summarize(request) or first != bench.make().summarize(request):
            yield f"{what}: asked again, it answers differently"


def summary_confinement(bench: Bench) -> Iterator[str]:
    """It writes nothing but to the log folder."""
    summarizer = bench.make()
    _, request = next(_summary_requests(bench))
    with footprint(bench.new_folder("seen")) as seen:
        summarizer.summarize(request)
    yield from _traces(seen, request.log_dir)


def _traces(seen: Footprint, *allowed: Path) -> Iterator[str]:
    """Say what was left behind, but for files in folders that are allowed."""
    where = "outside its log folder" if allowed else "files"
    yield from (f"writes {where}: {path}" for path in seen.outside(*allowed))
    yield from (f"leaves a process: {process}" for process in seen.processes)
    yield from (f"changes the process it runs in: {change}" for change in seen.changes)


def _is_unicode(text: str) -> bool:
    return text == text.encode("utf-8", "replace").decode("utf-8")


def _summary_requests(bench: Bench) -> Iterator[tuple[str, SummaryRequest]]:
    """Yield a name and a request for each way in which a node can end."""
    request = _summary_request(bench, Outcome.VALID)
    yield "a valid node", request
    yield "a valid node without a time of the start record", replace(request, start_ms=None)
    crash = Execution(
        Ending.CRASHED, 1, (RankError(0, "NameError: undefined", TRACEBACK),), 1.5, "NameError"
    )
    buggy = _summary_request(bench, Outcome.BUGGY)
    yield "a node that crashed", replace(buggy, execution=crash, stderr=TRACEBACK)
    bare = Execution(Ending.CRASHED, None, (), 0.0, "")
    yield "a node that crashed without a word", replace(buggy, execution=bare, stdout="", stderr="")
    for ending in (Ending.TIMED_OUT, Ending.STALLED, Ending.FLOODED):
        ended = Execution(ending, None, (), 60.0, "ended at a limit")
        yield f"a node that was {ending}", replace(buggy, execution=ended)
    nan = Metrics(100, 100, math.nan, 5)
    invalid = _summary_request(bench, Outcome.INVALID)
    node = replace(invalid.node, metrics=nan)
    yield "a node whose loss is nan", replace(invalid, node=node, report=Report((nan,)))
    yield "a node over the target", invalid
    malformed = Report((), ("step:1/2 val_loss:oops train_time:5ms",))
    node = replace(invalid.node, metrics=None)
    yield "a node with a malformed line", replace(invalid, node=node, report=malformed)
    for outcome in (Outcome.QUARANTINED, Outcome.STOPPED):
        yield f"a node that was {outcome}", _summary_request(bench, outcome)
    failed = _summary_request(bench, Outcome.EDIT_FAILED)
    yield "a node that was not run", replace(failed, execution=None, stdout="", stderr="")
    huge = "\x1b[31m\u202e" + "x" * 65_000 + "\n"
    yield "a node with much hostile output", replace(buggy, stdout=huge, stderr=huge)


def _summary_request(bench: Bench, outcome: Outcome) -> SummaryRequest:
    node = bench.node(1, Proposal(0, Stage.DRAFT), 1, outcome)
    curve = (replace(node.metrics, step=50), node.metrics) if node.metrics else ()
    return SummaryRequest(
        task=bench.task,
        node=replace(node, summary=""),
        parent=bench.root(),
        report=Report(curve),
        execution=Execution(Ending.FINISHED, 0, (), 1.5),
        stdout="step:100/100 val_loss:0.0100 train_time:500ms\n",
        stderr="",
        start_ms=1000.0,
        log_dir=bench.new_folder("node"),
    )


# --- judge ----------------------------------------------------------------------------------


def scores(bench: Bench) -> Iterator[str]:
    """The score is a number from 0 to 1, and what comes with it can be kept."""
    for what, request in _judge_requests(bench):
        judgement = _judge(bench.make(), request)
        if judgement is not None:
            yield from (f"{what}: {fault}" for fault in _judgement_faults(judgement))


def sense(bench: Bench) -> Iterator[str]:
    """Without a model, the human change itself scores over no change at all."""
    if bench.cls.needs_model:
        return
    requests = dict(_judge_requests(bench))
    all_of_it = _judge(bench.make(), requests["the human change itself"])
    nothing = _judge(bench.make(), requests["no change"])
    if all_of_it is None or nothing is None:
        yield "refuses to judge the human change itself, or no change"
    elif not (isinstance(all_of_it, Judgement) and isinstance(nothing, Judgement)):
        return  # which `scores` has said
    elif not all_of_it.score > nothing.score:
        yield f"the human change scores {all_of_it.score}, and no change {nothing.score}"


def judge_determinism(bench: Bench) -> Iterator[str]:
    """Without a model, the same change has the same score; the request is as it was."""
    judge = bench.make()
    for what, request in _judge_requests(bench):
        before = dict(request.start), dict(request.human), dict(request.agent)
        first = _judge(judge, request)
        if (dict(request.start), dict(request.human), dict(request.agent)) != before:
            yield f"{what}: changes the files that it is given"
        if not bench.cls.needs_model and _judge(bench.make(), request) != first:
            yield f"{what}: asked again, it answers differently"


def judge_confinement(bench: Bench) -> Iterator[str]:
    """It writes nothing but to the log folder."""
    judge = bench.make()
    _, request = next(_judge_requests(bench))
    with footprint(bench.new_folder("seen")) as seen:
        _judge(judge, request)
    yield from _traces(seen, request.log_dir)


def _judge(judge: Any, request: JudgeRequest) -> Any:
    """Return what a judge answers, None if it says why there can be no judgement."""
    try:
        return judge.judge(request)
    except SpeedkitError:
        return None


def _judge_requests(bench: Bench) -> Iterator[tuple[str, JudgeRequest]]:
    script = bench.task.script
    start = bench.task.start_files()
    human = {**start, script: bench.task.target.read()}
    text = start[script]
    agents = {
        "the human change itself": human[script],
        "no change": text,
        "a comment more": text + "# nothing\n",
        "another change": text + "print('another change')\n",
        "a script that is no Python": "def broken(:\n",
        "an empty script": "",
    }
    for what, agent in agents.items():
        folder = bench.new_folder("judge")
        yield what, JudgeRequest(bench.task, dict(start), dict(human), {script: agent}, folder)


def _judgement_faults(judgement: Any) -> Iterator[str]:
    if not isinstance(judgement, Judgement):
        yield f"returned {shown(judgement)}, no Judgement"
        return
    score = judgement.score
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        yield f"the score is {score!r}, not a number from 0 to 1"
    try:
        json.dumps(
            [[dict(row) for row in judgement.table], dict(judgement.details)], allow_nan=False
        )
    except (TypeError, ValueError) as error:
        yield f"table or details are no JSON values: {one_line(str(error))}"


# --- knowledge ------------------------------------------------------------------------------


def entries(bench: Bench) -> Iterator[str]:
    """It offers texts, each with a source and a title, and not more than a prompt can hold."""
    found = bench.make().entries(bench.task)
    if isinstance(found, str) or not isinstance(found, Sequence):
        yield f"returned {type(found).__name__}, no sequence of entries"
        return
    for entry in found:
        yield from _entry_faults(entry)
    size = sum(len(str(e.text)) for e in found if isinstance(e, KnowledgeEntry))
    if size > MAX_KNOWLEDGE:
        yield f"{size} characters are in every prompt; {MAX_KNOWLEDGE} are the most"


def _entry_faults(entry: Any) -> Iterator[str]:
    if not isinstance(entry, KnowledgeEntry):
        yield f"{shown(entry)} is no KnowledgeEntry"
        return
    words = (entry.source, entry.title, entry.text)
    if not all(isinstance(text, str) and text.strip() for text in words):
        yield f"entry {entry.title!r} has an empty source, title or text"
    elif not _is_unicode(entry.text):
        yield f"entry {entry.title!r} cannot be written as UTF-8"


def knowledge_determinism(bench: Bench) -> Iterator[str]:
    """The same task has the same texts, in the same order, at every call and in every process."""
    source = bench.make()
    first = source.entries(bench.task)
    if source.entries(bench.task) != first:
        yield "asked twice, it offers other texts"
    elif bench.make().entries(bench.task) != first:
        yield "a new instance offers other texts"


def knowledge_confinement(bench: Bench) -> Iterator[str]:
    """It writes nothing, wherever it is asked."""
    source = bench.make()
    with footprint(bench.new_folder("seen")) as seen:
        source.entries(bench.task)
    yield from _traces(seen)


SUMMARIZER_CHECKS = (summaries, summary_determinism, summary_confinement)
JUDGE_CHECKS = (scores, sense, judge_determinism, judge_confinement)
KNOWLEDGE_CHECKS = (entries, knowledge_determinism, knowledge_confinement)
