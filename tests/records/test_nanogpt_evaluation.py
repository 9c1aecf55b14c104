"""The shim of nanogpt's trusted evaluation, below a small script in the style of the records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from speedkit.core.findings import Level
from speedkit.core.metrics import parse_log
from speedkit.core.task import find_task
from speedkit.records.nanogpt.evaluation import (
    Validation,
    accounts,
    instrument,
    judge,
    read_accounts,
    recount,
    target_sum,
)
from speedkit.records.shards import write_shard

TOKENS = 4096
SCRIPT = """\
import sys
with open(sys.argv[0]) as f:
    code = f.read()
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from dataclasses import dataclass

@dataclass
class Hyperparameters:
    val_tokens: int = 4096
args = Hyperparameters()
data = np.fromfile("val.raw", dtype=np.uint16).astype(np.int64)

class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.head = nn.Linear(8, 32)
    def forward(self, x, y):
        logits = self.head(self.embed(x))
        return F.cross_entropy(logits.view(-1, 32), y.view(-1))

torch.manual_seed(0)
model = GPT()
opt = torch.optim.Adam(model.parameters(), lr=0.05)
for step in range(5):
    if step % 2 == 0:
        model.eval()
        val_loss = 0
        with torch.no_grad():
            for i in range(0, args.val_tokens, 1024):
                x, y = data[i : i + 1024], data[i + 1 : i + 1025]
                val_loss += model(torch.from_numpy(x), torch.from_numpy(y))
        val_loss /= args.val_tokens // 1024
        print(f"step:{step}/4 val_loss:{val_loss:.4f} train_time:{10 * step + 1}ms")
        model.train()
    if step < 4:
        model(torch.from_numpy(data[:64]), torch.from_numpy(data[1:65])).backward()
        opt.step()
        opt.zero_grad()
assert "Hyperparameters" in code and __name__ == "__main__"
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a script below the shim; it gives the counts and the log."""
    tokens = np.random.default_rng(0).integers(32, size=TOKENS + 1, dtype=np.uint16)
    tokens.tofile(tmp_path / "val.raw")
    write_shard(tmp_path / "data" / "fineweb_val_000000.bin", [tokens], TOKENS + 1)

    def run(source):
        task = find_task("nanogpt/1")
        for name, text in instrument(task, {task.script: source}, "2.6.0").items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        env = {**os.environ, "RANK": "0", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, task.script],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        counted = read_accounts([tmp_path / name for name in accounts(1)])
        return counted, parse_log(done.stdout.splitlines())

    return run


def test_an_honest_script_is_counted_to_the_token(run, tmp_path):
    counted, report = run(SCRIPT)
    assert [v.tokens for v in counted] == [TOKENS] * 3
    assert [round(v.loss, 4) for v in counted] == [m.val_loss for m in report.curve]
    expected = partial(target_sum, tmp_path / "data")
    assert list(judge(counted, report, TOKENS, counted, expected)) == []


def test_a_script_that_validates_half_and_prints_less_is_seen(run, tmp_path):
    cheat = SCRIPT.replace("range(0, args.val_tokens, 1024)", "range(0, 2048, 1024)")
    counted, report = run(cheat)
    assert [v.tokens for v in counted] == [TOKENS // 2] * 3
    (finding,) = judge(counted, report, TOKENS)
    assert finding.level is Level.REJECT
    assert "read 2048 tokens" in finding.reason
    (finding,) = judge(counted, report, TOKENS // 2)  # the mean is over twice as many parts
    assert "printed" in finding.reason


REPORT = parse_log(
    ["step:0/2 val_loss:3.0000 train_time:0ms", "step:2/2 val_loss:2.5000 train_time:9ms"]
)
GOOD = (Validation(100, 300.0, 7), Validation(100, 250.1, 7))
CASES = {
    "good": (GOOD, None),
    "nothing seen": ((), Level.QUARANTINE),
    "one more": ((*GOOD, GOOD[0]), Level.REJECT),
    "one less": (GOOD[:1], Level.REJECT),
    "too few tokens": ((GOOD[0], replace(GOOD[1], tokens=99)), Level.REJECT),
    "another loss": ((GOOD[0], replace(GOOD[1], loss_sum=260.0)), Level.REJECT),
    "not a number": ((GOOD[0], replace(GOOD[1], loss_sum=float("nan"))), Level.REJECT),
    "other tokens": ((GOOD[0], replace(GOOD[1], target_sum=8)), Level.QUARANTINE),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_of_counts(case):
    counted, level = CASES[case]
    found = list(judge(counted, REPORT, 100, (), lambda tokens: 7))
    assert [f.level for f in found] == ([] if level is None else [level])


def test_a_loss_may_be_that_of_rank_0_if_it_read_enough():
    elsewhere = [replace(v, loss_sum=v.loss_sum + 50) for v in GOOD]
    (finding,) = judge(elsewhere, REPORT, 100)
    assert "printed 3.0000, and had 3.5000" in finding.reason
    assert list(judge(elsewhere, REPORT, 100, GOOD)) == []
    (finding,) = judge(elsewhere, REPORT, 100, [replace(v, tokens=99) for v in GOOD])
    assert finding.level is Level.REJECT


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("printed", [3.0, 3.5])
def test_honest_shares_of_ranks_are_no_fault(tmp_path, batch, printed):
    """As records 1 to 3 validate: each rank two batches, twice as many tokens from record 2 on."""
    tokens = np.arange(100, dtype=np.uint16)
    write_shard(tmp_path / "data" / "fineweb_val_000000.bin", [tokens], 100)
    targets = tokens[1:].astype(int)
    for rank, name in enumerate(accounts(2)):
        share = np.concatenate([targets[(2 * k + rank) * batch :][:batch] for k in range(2)])
        row = {
            "tokens": 2 * batch,
            "loss_sum": 2 * batch * (3 + rank),
            "target_sum": int(share.sum()),
        }
        (tmp_path / name).write_text(json.dumps({"validations": [row]}))
    task = SimpleNamespace(
        start=SimpleNamespace(val_tokens=8), script="t.py", family=find_task("nanogpt/1").family
    )
    made = recount(task, {"t.py": SCRIPT}, "2.6.0", 2, tmp_path / "data")
    report = parse_log([f"step:1/1 val_loss:{printed:.4f} train_time:9ms"])
    assert list(made.judge([tmp_path / name for name in made.artifacts], report)) == []


def test_ranks_are_added_up_and_must_agree(tmp_path):
    paths = [tmp_path / name for name in accounts(2)]
    row = {"tokens": 10, "loss_sum": 2.5, "target_sum": 4}
    paths[0].write_text(json.dumps({"validations": [row, row]}))
    paths[1].write_text(json.dumps({"validations": [row, row]}))
    assert read_accounts(paths) == (Validation(20, 5.0, 8), Validation(20, 5.0, 8))
    paths[1].write_text(json.dumps({"validations": [row]}))
    with pytest.raises(ValueError, match="same number"):
        read_accounts(paths)


@pytest.mark.parametrize("text", ["", "[]", '{"validations": 3}', '{"validations": [{}]}', "\xff"])
def test_an_account_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "account.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"account|Expecting|decode"):
        read_accounts([path])
