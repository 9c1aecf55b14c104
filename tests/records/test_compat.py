"""Scripts made fit for a torch version, and short runs that can never count."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from speedkit.core.compile_cache import cache_scope
from speedkit.core.metrics import parse_log
from speedkit.core.task import find_family
from speedkit.records.edits import EditError
from speedkit.records.nanogpt.compat import adapt, is_smoke, smoke
from speedkit.records.nanogpt.transforms import SETTINGS, transform

RECORDS = os.environ.get("SPEEDKIT_TEST_RECORDS")
needs_records = pytest.mark.skipif(
    RECORDS is None, reason="SPEEDKIT_TEST_RECORDS names no folder of record scripts"
)

# An operator whose fake tells of a row-major gradient while the real one is transposed.
OPERATOR = """
import torch
from torch import Tensor

@torch.library.custom_op("nanogpt::grads", mutates_args=())
def grads(x_f8: Tensor, w_f8: Tensor) -> tuple[Tensor, Tensor]:
    transposed = w_f8.t().contiguous().to(torch.float32)
    return x_f8.to(torch.bfloat16).clone(), transposed.t()

@grads.register_fake
def _(x_f8, w_f8):
    return x_f8.to(torch.bfloat16), w_f8.to(torch.float32)

def call(x, w):
    return torch.ops.nanogpt.grads(x, w)
"""

TRAINER = """\
# ünïcode: é
from dataclasses import dataclass
import config

@dataclass
class Hyperparameters:
    batch_size : int = 8*64
    device_batch_size : int = 64 # per device
    sequence_length : int = 1024
    num_iterations : int = 100
    val_loss_every : int = 25
    val_tokens : int = 10485760 # keep
args = Hyperparameters()
config.coordinate_descent_tuning = True
for step in range(args.num_iterations + 1):
    last_step = (step == args.num_iterations)
    if (last_step or (args.val_loss_every > 0 and step % args.val_loss_every == 0)):
        print(f"step:{step}/{args.num_iterations} val_loss:{1.5:.4f} train_time:{step * 10}ms")
    if last_step:
        break
"""


# --- torch versions ---------------------------------------------------------------------


def namespace(source: str) -> dict:
    values: dict = {}
    exec(compile(source, "operator", "exec"), values)
    return values


def test_the_fake_operator_gets_the_strides_of_the_real_one():
    torch = pytest.importorskip("torch")
    text, notes = adapt(OPERATOR, "2.11.0+cu128")
    assert notes == ("the fake FP8 backward has the strides of the real one (torch 2.7 or newer)",)
    x, w = torch.zeros(4, 3, dtype=torch.float16), torch.zeros(5, 3, dtype=torch.float16)
    old, new = namespace(OPERATOR), namespace(text)
    with pytest.raises(Exception, match=r"[Ss]tride"):
        torch.library.opcheck(old["grads"], (x, w), test_utils="test_faketensor")
    torch.library.opcheck(new["grads"], (x, w), test_utils="test_faketensor")
    for a, b in zip(old["call"](x, w), new["call"](x, w), strict=True):
        assert a.stride() == b.stride()


def test_an_adapted_operator_has_another_name():
    text, _ = adapt(OPERATOR, "2.11.0")
    assert '"nanogpt_strided::grads"' in text
    assert "torch.ops.nanogpt_strided.grads" in text
    assert "nanogpt::" not in text


@pytest.mark.parametrize("version", ["2.4.1", "2.6.0+cu126"])
def test_an_old_torch_gets_the_script_as_it_is(version):
    assert adapt(OPERATOR, version) == (OPERATOR, ())


@pytest.mark.parametrize("version", ["2.7.0", "2.7.0.dev20250125+cu126", "2.11.0a0", "3.0.0"])
def test_a_new_torch_gets_a_changed_one(version):
    assert adapt(OPERATOR, version)[0] != OPERATOR


def test_what_needs_nothing_or_was_mended_already_stays_as_it_is():
    assert adapt(TRAINER, "2.11.0") == (TRAINER, ())
    once = adapt(OPERATOR, "2.11.0")[0]
    assert adapt(once, "2.11.0") == (once, ())


def test_a_version_that_is_none_is_refused():
    with pytest.raises(EditError, match="no torch version"):
        adapt(OPERATOR, "nightly")


def test_compiled_code_is_shared_unless_operators_are_defined():
    assert cache_scope(TRAINER) == cache_scope(TRAINER + "# more\n") == "shared"
    assert cache_scope(OPERATOR) != cache_scope(OPERATOR + "# more\n")
    assert cache_scope(OPERATOR) == cache_scope(OPERATOR) != "shared"


# --- smoke runs -------------------------------------------------------------------------


class Config:
    coordinate_descent_tuning = None


def log_of(source: str, monkeypatch, capsys) -> tuple[list[str], Config]:
    config = Config()
    monkeypatch.setitem(__import__("sys").modules, "config", config)
    namespace(source)
    return capsys.readouterr().out.splitlines(), config


def test_a_smoke_run_ends_early_and_is_never_valid(monkeypatch, capsys):
    full, _ = log_of(TRAINER, monkeypatch, capsys)
    assert parse_log(full).reason(3.28) == ""
    text, notes = smoke(TRAINER, 12, 1)
    short, config = log_of(text, monkeypatch, capsys)
    report = parse_log(short)
    assert [m.step for m in report.curve] == [0, 12]
    assert report.reason(3.28) == "the log ends at step 12 of 100"
    assert config.coordinate_descent_tuning is False
    assert notes[0] == "12 of 100 steps"


def test_a_smoke_run_is_marked_in_its_first_line():
    text = smoke(TRAINER, 12, 1)[0]
    assert text.startswith("# speedkit: smoke run: 12 of 100 steps, never valid\n")
    assert is_smoke(text)
    assert not is_smoke(TRAINER)


def test_a_smoke_run_changes_nothing_else():
    text = smoke(TRAINER, 12, 8)[0]
    before, after = TRAINER.splitlines(), text.splitlines()[1:]
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert changed == [
        (
            "    val_tokens : int = 10485760 # keep",
            "    val_tokens : int = 524288 # keep",
        ),
        ("config.coordinate_descent_tuning = True", "config.coordinate_descent_tuning = False"),
        (
            "    last_step = (step == args.num_iterations)",
            "    last_step = (step == 12)",
        ),
    ]


@pytest.mark.parametrize(
    ("nproc", "tokens", "rounded"), [(1, 1, 65536), (1, 70_000, 131072), (8, 1, 524288)]
)
def test_validation_tokens_are_whole_batches(nproc, tokens, rounded):
    assert f"val_tokens : int = {rounded} " in smoke(TRAINER, 12, nproc, tokens)[0]


def test_a_script_without_the_tuning_flag_will_do():
    source = TRAINER.replace("config.coordinate_descent_tuning = True\n", "")
    text, notes = smoke(source, 12, 1)
    assert "last_step = (step == 12)" in text
    assert len(notes) == 2


@pytest.mark.parametrize("steps", [0, 100, 101])
def test_a_smoke_run_must_be_shorter_than_the_script(steps):
    with pytest.raises(EditError, match=f"of {steps} steps needs a script of more; this one: 100"):
        smoke(TRAINER, steps, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("last_step = (step == args.num_iterations)", "pass", "0 places that set last_step"),
        ("num_iterations : int = 100", "num_iterations : int = some()", "this one: None"),
        ("val_tokens : int = 10485760", "other : int = 1", "neither val_tokens nor"),
        ("sequence_length : int = 1024", "other : int = 1", "no setting named val_seq_len"),
        ("import config", "import (", "not valid Python"),
    ],
)
def test_a_script_of_another_form_is_refused(old, new, message):
    with pytest.raises(EditError, match=message):
        smoke(TRAINER.replace(old, new), 12, 1)


# --- the real scripts -------------------------------------------------------------------


def real(index: int) -> str:
    name = f"record_{index:02d}"
    source = (Path(RECORDS) / f"{name}.py").read_text(encoding="utf-8")
    return transform(name, source)[0] if name in SETTINGS else source


@needs_records
@pytest.mark.filterwarnings("ignore:invalid escape")
@pytest.mark.parametrize("index", range(1, 22))
@pytest.mark.parametrize("nproc", [1, 8])
def test_every_record_has_a_smoke_run(index, nproc):
    record = find_family("nanogpt").record(index)
    source = real(index)
    text, notes = smoke(source, 12, nproc)
    compile(text, record.script, "exec")
    assert notes[0] == f"12 of {record.steps} steps"
    assert ("no coordinate-descent tuning" in notes) == (index != 18)
    changed = set(text.splitlines()) - set(source.splitlines())
    assert len(changed) == (3 if index == 18 else 4)
    values = {
        getattr(node, "target", None).id: node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "val_tokens"
    }
    for tokens in values.values():
        assert tokens % (65536 * nproc) == 0


@needs_records
@pytest.mark.filterwarnings("ignore:invalid escape")
@pytest.mark.parametrize("index", range(1, 22))
def test_only_records_from_19_on_are_adapted(index):
    source = real(index)
    text, notes = adapt(source, "2.11.0+cu128")
    compile(text, "adapted", "exec")
    assert bool(notes) == (index >= 19)
    assert (text == source) == (index < 19)
    assert adapt(source, "2.6.0") == (source, ())
    assert (cache_scope(text) == "shared") == (index < 19)
    compile(smoke(text, 12, 1)[0], "both", "exec")
