"""The mini family: corpus, scripts, manifest and hints agree with each other."""

from __future__ import annotations

import ast
import difflib
import hashlib
import itertools
import random
import re
import runpy
import struct
from decimal import Decimal
from pathlib import Path

import pytest
import tomli

from speedkit.records import mini
from speedkit.records.mini import corpus

FOLDER = Path(mini.__file__).parent
FAMILY = tomli.loads((FOLDER / "family.toml").read_text(encoding="utf-8"))
RECORDS = range(1, len(FAMILY["record"]) + 1)
TASKS = range(1, len(FAMILY["record"]))
WORDS = {"1-pseudocode.md": (100, 300), "2-text.md": (120, 300), "3-paper.md": (300, 600)}
HINTS = [(task, name) for task in TASKS for name in WORDS]
NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e-?\d+)?")
TESTS_OF_THE_LOSS = ("train_files", "val_files", "val_tokens", "val_seq_len", "vocab_size")


def script_path(record: int) -> Path:
    return FOLDER / FAMILY["record"][record - 1]["script"]


def script(record: int) -> str:
    return script_path(record).read_text(encoding="utf-8")


def hyperparameters(record: int) -> dict[str, str]:
    """Names and default values, as source, of the fields of a script's Hyperparameters."""
    classes = [node for node in ast.parse(script(record)).body if isinstance(node, ast.ClassDef)]
    (found,) = [node for node in classes if node.name == "Hyperparameters"]
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(field.target): ast.unparse(field.value) for field in fields if field.value}


def hint(task: int, name: str) -> str:
    return (FOLDER / "hints" / str(task) / name).read_text(encoding="utf-8")


def numbers(text: str) -> set[Decimal]:
    return {Decimal(found.replace(",", "")) for found in NUMBER.findall(text)}


def change(task: int) -> str:
    """The change from a task's start to its target, with three lines of context."""
    start, target = script(task).splitlines(), script(task + 1).splitlines()
    lines = list(difflib.unified_diff(start, target, lineterm=""))[2:]
    return "\n".join(line for line in lines if not line.startswith("@@"))


# --- the corpus ---


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "data"
    corpus.prepare(folder)
    return folder


def test_the_corpus_has_the_pinned_files_and_no_other(data):
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in data.iterdir()}
    assert found == {name: shard.sha256 for name, shard in corpus.SHARDS.items()}


@pytest.mark.parametrize("name", corpus.SHARDS)
def test_a_shard_has_the_header_and_as_many_tokens_as_it_says(data, name):
    content = (data / name).read_bytes()
    magic, version, count, *rest = struct.unpack("<256i", content[:1024])
    assert (magic, version, count) == (20240520, 1, corpus.SHARDS[name].tokens)
    assert not any(rest)
    tokens = struct.unpack(f"<{count}H", content[1024:])
    assert set(tokens) <= {ord("\n"), *range(ord(" "), 127)}


def test_shards_hold_different_documents_of_one_language(data):
    texts = [(data / name).read_bytes()[1024::2].decode() for name in corpus.SHARDS]
    assert len({text[:1000] for text in texts}) == len(texts)
    train, val = set(texts[0].split()), texts[-1].split()
    assert sum(word in train for word in val) > 0.9 * len(val)


def test_text_does_not_depend_on_the_global_random_state():
    random.seed(1)
    first = corpus.write_text(seed=7, size=5000)
    random.seed(2)
    assert corpus.write_text(seed=7, size=5000) == first
    assert corpus.write_text(seed=8, size=5000) != first
    assert corpus.write_text(seed=7, size=9000)[:5000] == first


def test_encode_writes_bytes_as_uint16():
    content = corpus.encode(b"\x00A\xff")
    assert struct.unpack("<3i", content[:12]) == (20240520, 1, 3)
    assert content[1024:] == b"\x00\x00A\x00\xff\x00"


def test_intact_files_are_left_alone(data):
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
    corpus.prepare(data)
    assert {path: path.stat().st_mtime_ns for path in data.iterdir()} == before


@pytest.mark.parametrize("damage", ["truncated", "one byte", "missing"])
def test_a_damaged_file_is_rebuilt(data, damage):
    path = data / "mini_val_000001.bin"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if damage == "truncated" else content[:-2] + b"\x01\x00")
    corpus.prepare(data)
    assert path.read_bytes() == content
    assert len(list(data.iterdir())) == len(corpus.SHARDS)


def test_a_text_other_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    shard = corpus.Shard(seed=9, tokens=100, sha256="0" * 64)
    monkeypatch.setattr(corpus, "SHARDS", {"mini_val_000001.bin": shard})
    with pytest.raises(RuntimeError, match=r"mini_val_000001\.bin.*SHA-256"):
        corpus.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_neither_a_half_file_nor_a_temporary_one(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(corpus.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        corpus.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the scripts ---


@pytest.mark.parametrize("record", RECORDS)
def test_a_script_has_the_interface_of_the_family(record):
    fields = hyperparameters(record)
    needed = {*TESTS_OF_THE_LOSS, "num_iterations", "batch_size", "seq_len", "learning_rate"}
    assert needed | {"val_loss_every", "seed"} <= set(fields)
    assert "SPEEDKIT_SEED" in fields["seed"]
    assert '"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} "' in script(record)
    assert '"train_time:{1000 * train_time:.0f}ms step_avg:' in script(record)


@pytest.mark.parametrize("record", RECORDS)
def test_all_scripts_measure_the_same_loss(record):
    fields, first = hyperparameters(record), hyperparameters(1)
    assert {name: fields[name] for name in TESTS_OF_THE_LOSS} == {
        name: first[name] for name in TESTS_OF_THE_LOSS
    }


@pytest.mark.parametrize("record", RECORDS)
def test_validations_are_few(record):
    fields = hyperparameters(record)
    assert 3 <= int(fields["num_iterations"]) / int(fields["val_loss_every"]) <= 4.2


@pytest.mark.parametrize("record", RECORDS)
def test_a_model_maps_tokens_to_logits_and_sees_no_future(record):
    torch = pytest.importorskip("torch")
    names = runpy.run_path(str(script_path(record)), run_name="script")
    torch.manual_seed(0)
    model = names["GPT"](names["Hyperparameters"]())
    for parameter in model.parameters():  # a zero-initialized head would hide everything
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randint(0, 256, (2, 128))
    changed = tokens.clone()
    changed[:, 64:] = torch.randint(0, 256, (2, 64))
    with torch.no_grad():
        logits, others = model(tokens), model(changed)
    assert logits.shape == (2, 128, 256)
    assert torch.allclose(logits[:, :64], others[:, :64], atol=1e-4)
    assert not torch.allclose(logits[:, 64:], others[:, 64:], atol=1e-2)


def test_loaders_of_two_ranks_share_every_batch(data, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(data.parent)
    names = runpy.run_path(str(script_path(1)), run_name="script")
    args = names["Hyperparameters"]()
    ranks = [names["train_batches"](args, rank, 2) for rank in (0, 1)]
    tokens = names["load_tokens"](args.train_files)
    size = args.batch_size * args.seq_len
    for step in range(3):
        first, second = (next(rank) for rank in ranks)
        whole = tokens[step * size : (step + 1) * size + 1]
        assert torch.equal(torch.cat([first[:-1], second]), whole)
        assert first[-1] == second[0]


def test_a_loader_refuses_a_file_that_is_no_shard(tmp_path):
    pytest.importorskip("torch")
    load_shard = runpy.run_path(str(script_path(1)), run_name="script")["load_shard"]
    good = corpus.encode(b"some text")
    for content, message in [
        (b"\x01" + good[1:], "magic number"),
        (good[:4] + b"\x02" + good[5:], "version"),
        (good[:-2], "number of tokens"),
    ]:
        (tmp_path / "bad.bin").write_bytes(content)
        with pytest.raises(AssertionError, match=message):
            load_shard(str(tmp_path / "bad.bin"))


# --- the manifest ---


def test_records_are_numbered_and_faster_each_time():
    assert [record["index"] for record in FAMILY["record"]] == list(RECORDS)
    times = [record["time_ms"] for record in FAMILY["record"]]
    assert all(later < 0.88 * earlier for earlier, later in itertools.pairwise(times))
    assert times[0] > 4 * times[-1]
    assert [script_path(record).name for record in RECORDS] == sorted(
        path.name for path in (FOLDER / "scripts").iterdir() if path.suffix == ".py"
    )


@pytest.mark.parametrize("record", [record for record in RECORDS if record > 1])
def test_changes_name_the_number_of_steps(record):
    before, after = (hyperparameters(r)["num_iterations"] for r in (record - 1, record))
    assert f"{before} -> {after} steps" in FAMILY["record"][record - 1]["changes"]


# --- the hints ---


def test_every_task_has_its_three_files():
    found = {str(path.relative_to(FOLDER / "hints")) for path in FOLDER.glob("hints/*/*")}
    assert found == {f"{task}/{name}" for task, name in HINTS}


@pytest.mark.parametrize(("task", "name"), HINTS)
def test_a_hint_has_a_title_and_its_length(task, name):
    low, high = WORDS[name]
    assert hint(task, name).startswith("# ")
    assert low <= len(hint(task, name).split()) <= high


@pytest.mark.parametrize("task", TASKS)
def test_numbers_of_the_text_occur_in_the_change(task):
    named = numbers(hint(task, "2-text.md"))
    assert named
    code = re.sub(r"(?<=\d)_(?=\d)", "", change(task)).replace(",", " ")
    assert named - numbers(code) == set()


@pytest.mark.parametrize(("task", "name"), HINTS)
def test_a_hint_names_every_changed_number_of_steps(task, name):
    steps = {Decimal(hyperparameters(record)["num_iterations"]) for record in (task, task + 1)}
    assert steps <= numbers(hint(task, name))


@pytest.mark.parametrize(("task", "name"), HINTS)
def test_no_line_of_a_script_is_copied(task, name):
    lines = {line.strip() for line in (script(task) + script(task + 1)).splitlines()}
    text = hint(task, name)
    assert [line for line in lines if len(line) >= 30 and line in text] == []
