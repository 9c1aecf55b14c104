"""What is asked of coders: whole files, nothing but files, and the same again where possible."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from speedkit.core.components import CodeRequest, Draft
from speedkit.core.node import Stage
from speedkit.core.paths import cache_dir
from speedkit.testing.bench import Bench, listed, one_line, shown
from speedkit.testing.footprint import footprint

STRANGE = {
    "an empty file": "",
    "a file that is no Python": "def broken(:\n    '''\n",
    "a file with other line ends": "# é ∑\r\nprint('one')\r\n",
    "a file without a newline at its end": "print('one')",
}
"""What a parent's script may be, if an earlier coder made it so."""
THREADS = 4


def drafts(bench: Bench) -> Iterator[str]:
    """It answers with all files of the node, changed, and a sentence on what it did."""
    for request in bench.requests():
        for fault in _faults(request, bench.make().write(request)):
            yield f"{_what(request)}: {fault}"


def confinement(bench: Bench) -> Iterator[str]:
    """It writes nothing but to the log folder, and leaves no process and no change behind."""
    coder = bench.make()
    for request in bench.requests()[:2]:
        with footprint(bench.new_folder("seen")) as seen:
            coder.write(request)
        for path in seen.outside(request.log_dir, cache_dir()):
            yield f"writes outside its log folder: {path}"
        for path in seen.temporary:
            yield f"leaves {path.name} in the folder of temporary files"
        for process in seen.processes:
            yield f"leaves a process: {process}"
        for change in seen.changes:
            yield f"changes the process it runs in: {change}"


def request_untouched(bench: Bench) -> Iterator[str]:
    """The files and the tree that it is given are as they were."""
    for request in bench.requests():
        files, nodes = dict(request.files), list(request.tree)
        bench.make().write(request)
        if dict(request.files) != files:
            yield f"{_what(request)}: changes the parent's files that it is given"
        if list(request.tree) != nodes:
            yield f"{_what(request)}: changes the tree that it is given"


def determinism(bench: Bench) -> Iterator[str]:
    """Without a model, the same request has the same answer."""
    if bench.cls.needs_model:
        return
    for request in bench.requests():
        coder = bench.make()
        first = coder.write(request)
        for other, who in ((coder, "asked again"), (bench.make(), "a new instance")):
            again = other.write(replace(request, log_dir=bench.new_folder("again")))
            if _gist(again) != _gist(first):
                yield f"{_what(request)}: {who} answers differently; take chance from request.rng"


def threads(bench: Bench) -> Iterator[str]:
    """Several threads may ask one instance at once."""
    coder, tree = bench.make(), bench.tree()
    requests = [
        bench.request(tree, 1, Stage.IMPROVE, node_id=len(tree) + k, sibling=k, siblings=THREADS)
        for k in range(THREADS)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(coder.write, requests))
    for request, draft in zip(requests, together, strict=True):
        for fault in _faults(request, draft):
            yield f"asked by {THREADS} threads at once: {fault}"
        if not bench.cls.needs_model:
            alone = bench.make().write(replace(request, log_dir=bench.new_folder("alone")))
            if _gist(alone) != _gist(draft):
                yield f"asked by {THREADS} threads at once, it answers differently than alone"


def strange_files(bench: Bench) -> Iterator[str]:
    """Whatever the parent's script is, it answers, if only with a failure."""
    tree, script = bench.tree(), bench.task.script
    for what, text in STRANGE.items():
        request = bench.request(tree, 2, Stage.DEBUG, files={script: text})
        request = replace(request, read_files=lambda i, text=text: {script: text})  # type: ignore[misc]
        try:
            draft = bench.make().write(request)
        except (Exception, SystemExit) as error:  # a third party may raise anything
            yield f"given {what}, it raised {type(error).__name__}: {one_line(str(error))}"
            continue
        if not isinstance(draft, Draft):
            yield f"given {what}, it returned {shown(draft)}, no Draft"


def _what(request: CodeRequest) -> str:
    return f"{request.stage} of node {request.parent.id}"


def _gist(draft: Any) -> Any:
    return (draft.files, draft.hypothesis, draft.failure) if isinstance(draft, Draft) else draft


def _faults(request: CodeRequest, draft: Any) -> Iterator[str]:
    """Say what is wrong with a draft."""
    if not isinstance(draft, Draft):
        yield f"returned {shown(draft)}, no Draft"
        return
    if not isinstance(draft.files, Mapping):
        yield f"files is {shown(draft.files)}, no mapping from names to texts"
        return
    if not isinstance(draft.hypothesis, str) or not isinstance(draft.failure, str):
        yield "hypothesis and failure must be text"
        return
    if not isinstance(draft.model, str | None):
        yield f"model is {shown(draft.model)}, neither text nor None"
    yield from _note_faults(draft.notes)
    if draft.failure:
        if "\n" in draft.failure.strip():
            yield "failure is more than one line"
        return
    if not draft.hypothesis.strip():
        yield "the hypothesis is empty, and it is the commit message of the node"
    yield from _file_faults(request, draft)


def _file_faults(request: CodeRequest, draft: Draft) -> Iterator[str]:
    if missing := sorted(set(request.files) - set(draft.files)):
        yield f"files of the node are missing: {listed(missing)}"
    if added := sorted(set(draft.files) - set(request.files)):
        yield f"files that are not the node's: {listed(added)}"
    for name, text in draft.files.items():
        if not isinstance(text, str):
            yield f"{name} is {type(text).__name__}, no text"
        elif text != text.encode("utf-8", "replace").decode("utf-8"):
            yield f"{name} cannot be written as UTF-8"
    if dict(draft.files) == dict(request.files) and not draft.repeat:
        yield "changes nothing and says neither failure nor repeat"


def _note_faults(notes: Mapping[str, Any]) -> Iterator[str]:
    try:
        json.dumps(dict(notes), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"notes are no JSON values: {error}"


CHECKS = (drafts, confinement, request_untouched, determinism, threads, strange_files)
