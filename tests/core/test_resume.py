"""A run that was killed at any moment ends as one that was not."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import speedkit
from speedkit.core.history import RunDirectory
from speedkit.core.journal import read_events


def facts(tree):
    """Return what must not depend on whether a run was interrupted."""
    return [
        (n.id, n.parent, str(n.stage), n.step, n.commit, str(n.outcome), n.metrics, n.same_as)
        for n in tree
    ]


def forget(path, events):
    """Undo in the repository what the events do not know yet, and every note."""
    (path / "repo/refs/notes/commits").unlink(missing_ok=True)
    known = {e["id"] for e in events if e["type"] == "node_created"}
    for ref in (path / "repo/refs/heads/node").glob("*"):
        if int(ref.name) not in known:
            ref.unlink()


@pytest.mark.parametrize("scaffold", ["aide"])
def test_every_prefix_of_the_journal_leads_to_the_same_tree(toy_run, tmp_path, scaffold):
    whole = toy_run("whole", scaffold=scaffold, seed=3)
    lines = (whole.path / "events.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) > 25
    for kept in range(len(lines)):
        path = tmp_path / f"cut-{kept}"
        shutil.copytree(whole.path, path)
        torn = lines[kept][: (7 * kept) % len(lines[kept])]
        (path / "events.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        forget(path, read_events(path / "events.jsonl"))
        resumed = speedkit.run(resume=path)
        assert facts(resumed) == facts(whole), f"cut after {kept} events"
        check_once(path)
        shutil.rmtree(path)


def check_once(path):
    """No node was finished twice, and each has its ref and its note."""
    events = read_events(path / "events.jsonl")
    finished = [e["id"] for e in events if e["type"] == "node_finished"]
    assert len(finished) == len(set(finished))
    refs = {int(p.name) for p in (path / "repo/refs/heads/node").glob("*")}
    assert refs == set(finished)
    command = ["git", "-C", str(path / "repo"), "notes", "list"]
    notes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {e["commit"] for e in events if e["type"] == "node_created"} == set(notes[1::2])


def test_resuming_a_finished_run_changes_nothing(toy_run):
    whole = toy_run(seed=2)
    again = speedkit.run(resume=whole.path)
    assert facts(again) == facts(whole)
    assert again.status == "finished"


def test_a_second_controller_is_told_who_holds_the_run(toy_run):
    tree = toy_run()
    with RunDirectory(tree.path).writing(), pytest.raises(speedkit.SpeedkitError, match="process"):
        speedkit.run(resume=tree.path)


def test_stale_locks_of_git_do_not_block(toy_run):
    tree = toy_run(nodes=2)
    lock = tree.path / "repo/refs/heads/node/1.lock"
    lock.touch()
    speedkit.run(resume=tree.path)
    assert not lock.exists()


def test_damaged_notes_are_made_again(toy_run):
    tree = toy_run(nodes=2)
    ref = tree.path / "repo/refs/notes/commits"
    ref.write_text("0" * 39 + "1\n")
    speedkit.run(resume=tree.path, nodes=3)
    check_once(tree.path)


def test_a_newer_format_is_refused(toy_run):
    tree = toy_run(nodes=1)
    manifest = tree.path / "run.toml"
    manifest.write_text(manifest.read_text().replace("schema = 1", "schema = 99"))
    with pytest.raises(speedkit.SpeedkitError, match="newer speedkit"):
        speedkit.open_run(tree.path)


def test_changed_records_are_refused(toy_run, tmp_path):
    import tests.conftest as kit

    family = tmp_path / "family"
    shutil.copytree(kit.TOY, family)
    tree = toy_run(task=f"{family}/1", nodes=1)
    script = family / "scripts/slow.py"
    script.write_text(script.read_text() + "\n# changed\n")
    with pytest.raises(speedkit.SpeedkitError, match="have changed"):
        speedkit.run(resume=tree.path)
