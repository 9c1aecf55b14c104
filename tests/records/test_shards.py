"""Token shards: format, checks, synthetic text, and fetching from a hub on the loopback."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from speedkit.core.errors import FamilyError, SpeedkitError, UsageError
from speedkit.core.task import find_task
from speedkit.records.nanogpt import data
from speedkit.records.shards import (
    HEADER_BYTES,
    ShardError,
    SyntheticText,
    read_shard,
    read_tokens,
    write_shard,
)


def shard_bytes(tokens: int, seed: int = 0) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, tokens
    body = np.random.default_rng(seed).integers(50257, size=tokens).astype("<u2")
    return header.tobytes() + body.tobytes()


# --- the format -------------------------------------------------------------------------


def test_a_shard_is_read_as_it_was_written(tmp_path):
    tokens = np.array([50256, 1, 2, 65535], dtype=np.uint16)
    shard = write_shard(tmp_path / "deep" / "a.bin", [tokens[:3], tokens[3:]], 4)
    raw = shard.path.read_bytes()
    assert np.frombuffer(raw[:12], "<i4").tolist() == [20240520, 1, 4]
    assert len(raw) == HEADER_BYTES + 8
    assert read_shard(shard.path) == shard
    assert read_tokens(shard.path).tolist() == tokens.tolist()


def test_a_shard_that_comes_out_wrong_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="3 tokens in place of 4"):
        write_shard(tmp_path / "a.bin", [np.zeros(3, np.uint16)], 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-2], "damaged: 1042 bytes in place of 1044 for 10 tokens"),
        (lambda raw: raw + b"\0\0", "damaged: 1046 bytes"),
        (lambda raw: b"<html>" + raw[6:], "magic number"),
        (lambda raw: raw[:4] + b"\2\0\0\0" + raw[8:], "version 2"),
        (lambda raw: raw[:100], "no shard: it has 100 bytes"),
        (lambda raw: raw[:8] + b"\xff\xff\xff\xff" + raw[12:], "damaged"),
    ],
)
def test_damage_is_found_and_named(tmp_path, damage, message):
    path = tmp_path / "a.bin"
    path.write_bytes(damage(shard_bytes(10)))
    with pytest.raises(ShardError, match=message):
        read_shard(path)


def test_a_missing_shard_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ShardError, match="No such file"):
        read_shard(tmp_path / "a.bin")


# --- synthetic text ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    return np.concatenate(list(SyntheticText(3).parts(0, 1_200_000)))


def test_synthetic_text_depends_on_seed_and_stream_alone(text):
    again = np.concatenate(list(SyntheticText(3).parts(0, 1_200_000)))
    other_seed = next(SyntheticText(4).parts(0, 1000))
    other_stream = next(SyntheticText(3).parts(1, 1000))
    assert np.array_equal(text, again)
    assert not np.array_equal(text[:1000], other_seed)
    assert not np.array_equal(text[:1000], other_stream)


def test_synthetic_text_has_the_frequencies_of_text(text):
    counts = np.sort(np.bincount(text, minlength=50257))[::-1]
    assert text.dtype == np.uint16
    assert text.max() == 50256
    assert counts[0] > 0.01 * text.size
    assert 10 < counts[9] / counts[999] < 1000  # the hundredfold rank: about a hundredth
    assert (counts > 0).sum() > 40_000


def test_synthetic_text_has_documents(text):
    ends = np.flatnonzero(text == 50256)
    assert text[0] == 50256
    assert 500 < np.diff(ends).mean() < 900


def test_synthetic_text_can_be_predicted_from_the_token_before(text):
    common = np.bincount(text[text != 50256]).argmax()
    after = np.bincount(text[1:][text[:-1] == common], minlength=50257)
    assert np.sort(after)[-4:].sum() > 0.3 * after.sum()


def test_synthetic_text_keeps_far_from_the_target(text):
    # Even with four known successors of every token, no model gets near 3.28 nats.
    counts = np.bincount(text) / text.size
    unigram = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    assert (1 - SyntheticText(3).pair_prob) * unigram > 4


# --- the folder of a family -------------------------------------------------------------


@pytest.fixture
def task():
    return find_task("nanogpt/19")


def test_synth_writes_what_the_scripts_read(tmp_path):
    seen = []
    report = data.synth(tmp_path, 2, 5000, seed=1, on_shard=lambda *a: seen.append(a))
    assert sorted(p.name for p in (tmp_path / "fineweb10B").glob("*.bin")) == [
        "fineweb_train_000001.bin",
        "fineweb_train_000002.bin",
        "fineweb_val_000000.bin",
    ]
    assert [s.tokens for s in report.train] == [5000, 5000]
    assert report.val is not None
    assert report.synthetic
    assert [(k, n) for _, k, n in seen] == [(1, 3), (2, 3), (3, 3)]
    first = read_tokens(report.train[0].path)
    assert not np.array_equal(first, read_tokens(report.train[1].path))


def test_synth_replaces_its_own_shards_and_no_others(tmp_path):
    data.synth(tmp_path, 3, 100)
    assert len(data.synth(tmp_path, 1, 100).train) == 1
    (tmp_path / "fineweb10B" / data.SYNTHETIC_FILE).unlink()
    with pytest.raises(UsageError, match="real shards"):
        data.synth(tmp_path, 1, 100)


@pytest.mark.parametrize(
    "wrong", [{"shards": 0}, {"seed": -1}, {"tokens_per_shard": 0}, {"tokens_per_shard": 2**31}]
)
def test_synth_refuses_wrong_numbers_before_it_removes_anything(tmp_path, wrong):
    data.synth(tmp_path, 2, 100)
    with pytest.raises(UsageError, match="at least 1 shard, of 1 to 2,147,483,647 tokens"):
        data.synth(tmp_path, **{"shards": 1, "tokens_per_shard": 100, **wrong})
    assert len(data.check(tmp_path).train) == 2


def test_a_run_is_refused_without_data(task, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDKIT_NANOGPT_DATA", str(tmp_path))
    with pytest.raises(FamilyError, match="data fetch nanogpt --shards 8"):
        task.data_folder(allow_short=True)


def test_a_data_folder_that_does_not_exist_is_named(task, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDKIT_NANOGPT_DATA", str(tmp_path / "gone"))
    with pytest.raises(FamilyError, match="SPEEDKIT_NANOGPT_DATA names no folder"):
        task.data_folder()


def test_the_cache_folder_is_the_default(task, own_cache):
    data.synth(own_cache / "data" / "nanogpt", 1, 1000)
    assert task.data_folder(allow_short=True) == own_cache / "data" / "nanogpt"


def test_synthetic_data_are_refused_unless_told_otherwise(task, own_cache, monkeypatch):
    data.synth(own_cache / "data" / "nanogpt", 1, 1000)
    with pytest.raises(FamilyError, match="synthetic"):
        task.data_folder()
    monkeypatch.setenv("SPEEDKIT_ALLOW_SHORT_DATA", "1")
    assert task.data_folder() is not None


def hollow_shard(path, tokens):
    """Write a header and a hole, so that a shard of full length takes no disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shard_bytes(1)[:8] + tokens.to_bytes(4, "little") + b"\0" * 1012)
    with path.open("r+b") as file:
        file.truncate(HEADER_BYTES + 2 * tokens)


@pytest.mark.parametrize(("shards", "enough"), [(7, False), (8, True)])
def test_shards_are_counted_in_steps(task, own_cache, shards, enough):
    folder = own_cache / "data" / "nanogpt"
    hollow_shard(folder / "fineweb10B" / data.VAL_FILE, data.SHARD_TOKENS)
    for k in range(1, shards + 1):
        hollow_shard(folder / "fineweb10B" / data.train_file(k), data.SHARD_TOKENS)
    if enough:
        assert task.data_folder() == folder
    else:
        with pytest.raises(FamilyError, match="7 training shards suffice for 1,323 of 1,395"):
            task.data_folder()
        assert task.data_folder(allow_short=True) == folder


def test_a_damaged_shard_never_passes(task, own_cache):
    folder = own_cache / "data" / "nanogpt"
    data.synth(folder, 2, 1000)
    path = folder / "fineweb10B" / data.train_file(2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FamilyError, match=r"fineweb_train_000002\.bin is damaged"):
        task.data_folder(allow_short=True)


# --- the hub ----------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A server with the routes of the Hugging Face hub that a download of one file uses."""
    state = SimpleNamespace(files={}, requests=[], cut_after=None, headers=[])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            state.requests.append((self.command, self.path, self.headers.get("Range")))
            state.headers.append(dict(self.headers))
            prefix = f"/datasets/{data.DATASET}/resolve/main/"
            name = self.path.removeprefix(prefix)
            if name not in state.files:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = state.files[name]
            start = 0
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                start = int(span[1])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if not body:
                return
            if state.cut_after is not None:
                self.wfile.write(content[start : start + state.cut_after])
                self.wfile.flush()
                state.cut_after = None
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content[start:])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_sent")
    state.files[data.VAL_FILE] = shard_bytes(500, 9)
    for k in (1, 2):
        state.files[data.train_file(k)] = shard_bytes(1000 * k, k)
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def gets(state):
    return [path.rsplit("/", 1)[1] for command, path, _ in state.requests if command == "GET"]


def test_shards_are_fetched_and_checked(hub, tmp_path):
    seen = []
    report = data.fetch(2, tmp_path, on_shard=lambda shard, k, n: seen.append((k, n)))
    assert [s.tokens for s in report.train] == [1000, 2000]
    assert report.val is not None
    assert not report.synthetic
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for name, content in hub.files.items():
        assert (tmp_path / "fineweb10B" / name).read_bytes() == content
    assert not any("hf_not_to_be_sent" in str(h) for h in hub.headers)


def test_whole_shards_are_not_fetched_again_and_damaged_ones_are(hub, tmp_path):
    data.fetch(1, tmp_path)
    hub.requests.clear()
    path = tmp_path / "fineweb10B" / data.train_file(1)
    path.write_bytes(path.read_bytes()[:-10])
    data.fetch(2, tmp_path)
    assert sorted(gets(hub)) == [data.train_file(1), data.train_file(2)]
    assert path.read_bytes() == hub.files[data.train_file(1)]


def test_a_transfer_that_is_cut_short_goes_on(hub, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65_536)
    hub.files[data.VAL_FILE] = content = shard_bytes(400_000, 5)
    hub.cut_after = 300_000
    data.fetch(1, tmp_path)
    assert (tmp_path / "fineweb10B" / data.VAL_FILE).read_bytes() == content
    ranges = [r for c, p, r in hub.requests if c == "GET" and p.endswith(data.VAL_FILE) and r]
    assert any(int(re.search(r"\d+", r)[0]) > 0 for r in ranges)


def test_a_file_that_is_no_shard_is_not_kept(hub, tmp_path):
    hub.files[data.train_file(1)] = b"<html>try again later</html>" * 100
    with pytest.raises(SpeedkitError, match="damaged file"):
        data.fetch(1, tmp_path)
    assert not (tmp_path / "fineweb10B" / data.train_file(1)).exists()


def test_a_missing_file_is_one_line(hub, tmp_path):
    del hub.files[data.train_file(2)]
    with pytest.raises(SpeedkitError, match=r"cannot fetch fineweb_train_000002\.bin") as caught:
        data.fetch(2, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shards", [0, 104])
def test_a_number_of_shards_that_there_are_not(shards, tmp_path):
    with pytest.raises(UsageError, match="1 to 103"):
        data.fetch(shards, tmp_path)


def test_real_shards_are_not_put_among_synthetic_ones(tmp_path):
    data.synth(tmp_path, 1, 100)
    with pytest.raises(UsageError, match="synthetic"):
        data.fetch(1, tmp_path)
