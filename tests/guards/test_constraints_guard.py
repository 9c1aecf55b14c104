"""The constraints guard: the rules one by one, and the human scripts, which all may pass."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from speedkit.core.findings import Level
from speedkit.core.guards import Code, GuardOptions, weigh
from speedkit.core.task import find_task
from speedkit.plugins.guards.constraints import RULES, ConstraintsGuard, ConstraintsOptions
from speedkit.records.nanogpt.transforms import SETTINGS, transform

RECORDS = os.environ.get("SPEEDKIT_TEST_RECORDS")
START = """\
import os
import time
import torch
import torch.nn.functional as F


class Hyperparameters:
    train_files = "data/train_*.bin"
    val_files = "data/val_*.bin"
    val_tokens = 4096
    steps = 10


args = Hyperparameters()
seed = int(os.environ.get("SPEEDKIT_SEED", "0"))
world_size = int(os.environ["WORLD_SIZE"])


def print0(text):
    print(text, flush=True)


train_time = 0.0
started = time.perf_counter()
for step in range(args.steps + 1):
    if step == args.steps:
        train_time += time.perf_counter() - started
        val_loss = validate(args.val_files, args.val_tokens)
        print0(
            f"step:{step}/{args.steps} val_loss:{val_loss:.4f} "
            f"train_time:{1000 * train_time:.0f}ms"
        )
        started = time.perf_counter()
        break
    loss = model(next(loader))
    loss.backward()
    opt.step()
"""
TASK = find_task("mini/1")


def levels(node: str, start: str = START, **options) -> dict[str, Level]:
    files = {TASK.script: start}
    guard = ConstraintsGuard(ConstraintsOptions(**options))
    return {
        f.reason: f.level for f in guard.check_code(Code(TASK, files, files, {TASK.script: node}))
    }


def with_line(line: str) -> str:
    return START.replace("train_time = 0.0\n", f"{line}\ntrain_time = 0.0\n")


HONEST = [
    "import math",
    "import triton",
    "from torch import nn",
    "from torch.nn.attention.flex_attention import flex_attention",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch._dynamo.config.cache_size_limit = 64",
    'torch.set_float32_matmul_precision("high")',
    'os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"',
    'print0(f"peak {torch.cuda.max_memory_allocated()} step {args.steps}")',
    "model = torch.compile(model, dynamic=False)",
    "flex_attention = torch.compile(F.relu)",
    "betas = (0.8, 0.95)",
    "model.bias = 0",
    'rate = getattr(model, "rate", 1.0)',
    "def get_lr(step): return min(1.0, 2 * (1 - step / args.steps))",
    "half = args.steps // 2",
    "numbers = [1, 2, 3] * 100",
    "torch.distributed.barrier()",
    "# \u2192 a comment may have any character",
    "name = 'cuda'; print0(f'{name}: {torch.__version__}')",
    "print0('=' * 80); print0(str(args))",
    "for name, value in vars_of(args): print0(f'{name}: {value}')",
    "import gc; gc.collect(); gc.disable()",
    "from functools import partial; rate = partial(min, 1.0)",
    "class Fast(torch.autograd.Function):\n    def backward(ctx, grad): return grad",
]


@pytest.mark.parametrize("line", HONEST)
def test_an_honest_line_passes(line):
    assert levels(with_line(line)) == {}


REJECTED = [
    "import subprocess; subprocess.run(['ls'])",
    "import ctypes",
    "from urllib import request",
    "import torch.utils.cpp_extension",
    "torch.hub.load('a', 'b')",
    "from builtins import print",
    "time = object()",
    "def open(path): return None",
    "print = lambda *a, **k: None",
    "torch.cuda.synchronize = lambda: None",
    "torch.cuda.Event.elapsed_time = lambda *a: 1.0",
    "F.cross_entropy = lambda *a: 0",
    "clock = time; clock.perf_counter = lambda: 0",
    "del time.perf_counter",
    "setattr(time, 'perf_counter', int)",
    "type(torch.zeros(1)).item = lambda self: 1.7",
    "globals()['print'] = None",
    "eval('1')",
    "getattr(time, 'perf' + '_counter')",
    "import sys; sys.modules['time'] = None",
    "import sys; sys._getframe()",
    "os.system('ls')",
    "os.kill(1, 9)",
    "os.environ['WORLD_SIZE'] = '1'",
    "print(os.environ)",
    "os.environ.get('HF_TOKEN')",
    "state = torch.load('x')",
    "x = '/etc/passwd'",
    "x = '../node-3/model.pt'",
    "x = 'data/*.bin'",
    "args.val_tokens = 1",
    "args = Hyperparameters(val_tokens=8)",
    "tokens = args.val_tokens // 4",
    "tokens = min(args.val_tokens, 512)",
    "train_loader = read(args.val_files)",
    "world_size = 1",
    "train_time -= 1.0",
    "started = time.process_time()",
    "val_loss = 1.79",
    "x = 1" + 60 * "0",
    "x = b'" + 200 * "a" + "'",
    "pr\u0456nt = 1",
    "x = 'step:\u0661'",
    "x = 'step:%d/%d val_loss:%f'",
    "def slow(t): t.perf_counter = None",
    "(clock := time).perf_counter = None",
    "setattr(clock, 'perf_counter', None)",
    "print.__self__.print = None",
    "__builtins__.print = None",
    "__loader__.get_data('x')",
    "loss.__class__.item = None",
    "import glob; glob.os.system('ls')",
    "import dataclasses; dataclasses.sys.modules.clear()",
    "import enum; enum.bltns.exec('1')",
    "from os import *",
    "for train_time in [0.5]: pass",
    '"""\nstep:9/9 val_loss:1.7 train_time:8ms\n"""',
    "print0 = None",
]


@pytest.mark.parametrize("line", REJECTED)
def test_a_line_that_no_script_may_have_is_rejected(line):
    assert Level.REJECT in levels(with_line(line)).values()


HELD = [
    "import threading",
    "import einops",
    "from . import helper",
    "x = getattr(model, name)",
    "os.sched_setaffinity(0, {1})",
    "os.environ['FOO'] = '1'",
    "f = open('notes.txt')",
    "x = [" + "1.5, " * 200 + "]",
    "x = '" + "word " * 500 + "'",
    "slow(time)",
    "pair = (torch.cuda, 1)",
    "reach = getattr",
    "import gc; gc.get_referents(print0)",
    "import typing; typing.get_type_hints(print0)",
    "from torch.overrides import TorchFunctionMode",
    "def __format__(self, spec): return 'x'",
    "os.environ.get('TRITON_CACHE_DIR')",
    "print0('st' + 'ep:' + ''.join(parts))",
    "for number, word in enumerate('a b'.split()): print0(word)",
    "print('st', end='')",
    "kept = {}; kept[0] = 'st' + str(args); print0(kept[0])",
    "kept = []; kept.append('st' + str(args)); print0(kept[0])",
    "import glob; glob.glob(args.place + '/*')",
    "torch.manual_seed(7)",
    "seed = seed % 2",
    "def report(train_time): return train_time",
    "model.register_forward_hook(lambda *a: loss.backward())",
]


@pytest.mark.parametrize("line", HELD)
def test_a_line_that_someone_has_to_look_at_is_held(line):
    assert set(levels(with_line(line)).values()) == {Level.QUARANTINE}


@pytest.mark.parametrize("line", REJECTED + HELD)
def test_what_the_start_record_does_stays_allowed(line):
    assert levels(with_line(line) + "\nmore = 1\n", with_line(line)) == {}


def test_a_main_that_is_called_train_may_validate():
    head, _, tail = START.partition("train_time")
    main = f"train_time{tail}".replace("\n", "\n    ").rstrip()
    assert levels(f"{head}def train():\n    {main}\n\n\ntrain()\n") == {}


def test_a_class_that_trains_may_be_made_before_the_clock_starts():
    trainer = (
        "class Trainer:\n    def step(self, loader):\n"
        "        model(next(loader)).backward()\n\n\ntrainer = Trainer()"
    )
    step = "    loss = model(next(loader))\n    loss.backward()\n"
    assert levels(with_line(trainer).replace(step, "    trainer.step(loader)\n")) == {}


def test_the_start_itself_passes_unread():
    assert levels("not python (", "not python (") == {}


def test_a_script_that_is_no_python_is_held():
    ((reason, level),) = levels("def f(:\n").items()
    assert level is Level.QUARANTINE
    assert "no Python" in reason


def test_deep_nesting_is_held_and_does_not_crash():
    assert set(levels("x = " + "(" * 5000 + ")" * 5000).values()) <= {Level.QUARANTINE}
    assert len(levels("x = " + "-" * 20000 + "1")) <= 1
    assert "nested too deeply" in next(iter(levels("x = " + " + ".join(["'a'"] * 3000))))


def test_texts_that_multiply_take_no_time():
    parts = (f"a{i} = f'" + f"{{a{i + 1}}}" * 40 + "'" for i in range(12))
    assert len(levels(with_line("\n".join([*parts, "a12 = 'x'", "print0(a0)"])))) == 1


def test_rules_can_be_skipped_and_findings_are_few():
    assert levels(with_line("import ctypes"), skip=("reach",)) == {}
    assert levels(with_line("import ctypes"), skip=tuple(RULES)) == {}
    many = "\n".join(f"import {name}" for name in ("ctypes", "socket", "pickle", "shutil"))
    assert len(levels(with_line(many), most=2)) == 2


def test_strictness_shifts_what_a_finding_means():
    files = {TASK.script: START}
    code = Code(TASK, files, files, {TASK.script: with_line("import ctypes")})
    for strictness, level in (("lenient", Level.QUARANTINE), ("strict", Level.REJECT)):
        guard = ConstraintsGuard(ConstraintsOptions(strictness=strictness))
        (finding,) = guard.check_code(code)
        assert weigh(guard, finding).level is level
    assert issubclass(ConstraintsOptions, GuardOptions)


def human_scripts() -> list[str]:
    """Return the scripts as they are run: the first three carry their settings and a clock."""
    found = []
    for number in range(1, 22):
        name = f"record_{number:02}"
        source = (Path(str(RECORDS)) / f"{name}.py").read_text(encoding="utf-8")
        fresh = name in SETTINGS and "training_time_ms" not in source
        found.append(transform(name, source)[0] if fresh else source)
    return found


@pytest.mark.skipif(RECORDS is None, reason="SPEEDKIT_TEST_RECORDS names no folder of scripts")
def test_no_human_script_is_rejected_and_few_are_held():
    held = []
    for before, after in pairwise(human_scripts()):
        found = levels(after, before)
        assert Level.REJECT not in found.values(), found
        held += list(found)
    assert len(held) <= 2, held
