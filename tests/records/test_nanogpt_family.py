"""The NanoGPT manifest, and how rules of family, record and task combine."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from speedkit.core.errors import FamilyError, UnknownNameError, UsageError
from speedkit.core.task import Family, find_family, find_task
from speedkit.records.nanogpt.data import DataReport
from speedkit.records.nanogpt.transforms import SETTINGS
from speedkit.records.shards import Shard

TASKS = [*range(1, 6), *range(7, 21)]


@pytest.fixture(scope="module")
def family():
    return find_family("nanogpt")


def test_there_are_21_records_and_19_tasks(family):
    assert len(family.records) == 21
    assert list(family.tasks) == TASKS
    assert family.rules.target == 3.28
    assert family.run.nproc == 8
    with pytest.raises(UnknownNameError, match="nanogpt/6"):
        family.task(6)


def test_tasks_lead_to_the_next_record(family):
    for task in family.tasks.values():
        assert (task.start.index, task.target.index) == (task.id, task.id + 1)


def test_every_task_speeds_up(family):
    for task in family.tasks.values():
        assert task.target.time_ms < task.start.time_ms, task.name
        assert task.target.known_time_s < task.start.known_time_s, task.name


def test_records_6_and_7_are_one_script(family):
    assert family.record(6).source.sha256 == family.record(7).source.sha256
    hashes = {r.source.sha256 for r in family.records}
    assert len(hashes) == 20


def test_every_record_says_what_it_is(family):
    for record in family.records:
        assert record.title
        assert record.description.endswith(".")
        assert record.category
        assert record.hardware == "8x H100"
        assert bool(record.changes) == (record.index > 1)
        assert record.script == f"record_{record.index:02d}.py"


def batches_of_a_shard(index: int, step: int, rank: int) -> int:
    """Count what the loader of a record takes from a full shard, on one of eight ranks."""
    position = rank * step // 8 if index < 18 else 0  # later loaders move all ranks together
    count = 0
    while count == 0 or position + step + 1 < 10**8:
        position += step
        count += 1
    return count


def test_shards_suffice_for_every_rank(family):
    for record in family.records:
        counts = [batches_of_a_shard(record.index, record.tokens_per_step, r) for r in range(8)]
        assert record.shards == math.ceil(record.steps / min(counts)), record.index
        full = DataReport(Path(), (Shard(Path(), 10**8),) * record.shards, None)
        assert record.steps <= full.steps(record.tokens_per_step)
        assert full.steps(record.tokens_per_step) <= record.shards * min(counts)


def test_only_the_first_three_records_are_transformed(family):
    assert [r.transform for r in family.records[:3]] == list(SETTINGS)
    assert all(r.transform is None for r in family.records[3:])


def test_world_sizes_keep_the_batch(family):
    alone = {r.index for r in family.records if r.world_sizes == (8,)}
    assert alone == {1, 2, 15, 21}
    assert all(r.world_note for r in family.records if r.index in alone)
    assert all(r.world_sizes in ((8,), (1, 2, 4, 8)) for r in family.records)
    assert family.task(4).world_sizes == (1, 2, 4, 8)
    assert family.task(14).world_sizes == (8,)
    assert family.task(20).world_sizes == (8,)


def test_fewer_processes_get_more_time(family):
    full, quarter = family.task(4).run_with(None), family.task(4).run_with(2)
    assert (full.nproc, quarter.nproc) == (8, 2)
    assert quarter.timeout_s == 4 * full.timeout_s
    assert quarter.stall_s == 4 * full.stall_s


@pytest.mark.parametrize(
    ("task", "nproc", "reason"),
    [
        (1, 4, "record 1 needs 8 processes: the script asserts"),
        (14, 4, "record 15 needs 8 processes: the script asserts one sequence per GPU"),
        (20, 1, "record 21 needs 8 processes: a step is 49,152 tokens per GPU"),
        (4, 3, "record 4 needs 1 or 2 or 4 or 8 processes"),
    ],
)
def test_a_number_of_processes_that_changes_the_training_is_refused(family, task, nproc, reason):
    with pytest.raises(UsageError, match=reason):
        family.task(task).run_with(nproc)


def test_metrics_of_record_17_come_from_its_own_log(family):
    from_log = {r.index for r in family.records if r.rules.source == "logs/*.txt"}
    assert from_log == {17}
    assert family.task(15).rules.source == "stdout"
    assert family.task(16).rules.source == "logs/*.txt"
    assert family.task(17).rules.source == "logs/*.txt"
    assert family.task(18).rules.source == "stdout"
    for index in (16, 17):  # the script of record 17 prints nothing while it trains
        assert family.task(index).run.stall_s == family.task(index).run.timeout_s


def test_a_script_that_is_not_imported_says_how_to_get_it(family):
    with pytest.raises(FamilyError, match="speedkit records import"):
        family.task(4).start_files()


# --- the schema -------------------------------------------------------------------------

BASE = """
schema = 1
name = "tiny"
script = "train.py"
target = { val_loss = 1.0 }
[run]
launcher = "python"
args = ["--all"]
env = { A = "family", B = "family" }
timeout_s = 10
[metrics]
source = "stdout"
"""
RECORDS = """
[[record]]
index = 1
title = "one"
run = { env = { B = "record", C = "record" }, stall_s = 5 }
metrics = { source = "own/*.log" }
[[record]]
index = 2
title = "two"
"""


def load(tmp_path: Path, text: str) -> Family:
    (tmp_path / "family.toml").write_text(text, encoding="utf-8")
    return find_family(str(tmp_path))


def test_a_task_overrules_its_start_record_and_that_its_family(tmp_path):
    task = """
[[task]]
id = 1
start = 1
target = 2
run = { args = ["--task"], env = { C = "task" } }
metrics = { source = "task.log" }
"""
    family = load(tmp_path, BASE + RECORDS + task)
    run = family.task(1).run
    assert run.args == ("--task",)
    assert run.env == {"A": "family", "B": "record", "C": "task"}
    assert (run.timeout_s, run.stall_s, run.launcher) == (10, 5, "python")
    assert family.task(1).rules.source == "task.log"
    assert family.record(1).rules.source == "own/*.log"
    assert family.record(1).run_rules.args == ("--all",)
    assert family.record(2).rules.source == "stdout"
    assert family.record(2).run_rules == family.run


def test_without_overrides_the_start_record_decides(tmp_path):
    family = load(tmp_path, BASE + RECORDS)
    assert family.task(1).rules.source == "own/*.log"
    assert family.task(1).rules.target == 1.0


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ('metrics = { source = "../x" }', "record.1.metrics.source"),
        ("run = { nproc = 3 }", "record.1.run.nproc"),
        ("world_sizes = [0]", "record.1.world_sizes.0"),
        ('source = { commit = "abc", path = "a", last = 1, sha256 = "" }', "source.commit"),
        (
            f'source = {{ commit = "{"a" * 40}", path = "a", first = 3, last = 1, '
            f'sha256 = "{"b" * 64}" }}',
            "last must not come before first",
        ),
        ("colour = 1", "record.1.colour"),
    ],
)
def test_mistakes_in_the_manifest_are_named(tmp_path, mistake, message):
    with pytest.raises(FamilyError, match=message):
        load(tmp_path, BASE + RECORDS + mistake + "\n")


def test_hooks_and_checks_that_cannot_be_loaded_are_named(tmp_path):
    hooks = '[hooks]\nadapt = "speedkit.nowhere:adapt"\n'
    family = load(tmp_path, BASE + hooks + RECORDS)
    with pytest.raises(FamilyError, match=r"hooks\.adapt = 'speedkit\.nowhere:adapt'"):
        family.adapt("x = 1\n", "2.11.0")
    with pytest.raises(FamilyError, match=r"hooks\.smoke"):
        load(tmp_path, BASE + '[hooks]\nsmoke = "no colon"\n' + RECORDS)


def test_a_family_without_hooks_adapts_nothing_and_has_no_smoke_mode(tmp_path):
    family = load(tmp_path, BASE + RECORDS)
    assert family.adapt("x = 1\n", "2.11.0") == ("x = 1\n", ())
    with pytest.raises(UsageError, match="tiny has no smoke mode"):
        family.smoke("x = 1\n", 5, 1)
    assert family.data_folder() is None


def test_the_family_of_a_task_adapts_and_smokes(family):
    assert family.adapt("x = 1\n", "2.11.0+cu128") == ("x = 1\n", ())
    with pytest.raises(FamilyError, match="smoke run"):
        family.smoke("x = 1\n", 5, 1)


def test_tasks_are_found_by_name():
    assert find_task("nanogpt/12").target.title.startswith("Attention window")
