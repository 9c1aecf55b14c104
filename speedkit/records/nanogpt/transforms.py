"""Small changes to records 1 to 3, which as imported need arguments and print no clock.

From record 4 on, scripts carry their settings, stop a clock while they validate and print
``step:N/M val_loss:X train_time:Yms``. These changes give the first three the same:

- Settings that were given on the command line become the defaults of the same arguments.
- Record 1 no longer loads a tokenizer, which it never used and which needs the network.
- Record 2 writes no checkpoint while it trains. Record 3 accumulates gradients when there
  are fewer than eight processes, so that a step and a validation keep their tokens.
- A cumulative clock stops while the script validates, and the metrics line is printed.

Two clocks are offered. ``consistent`` forgets the first ten steps, and with them the
compilation, as the later records do. ``official`` starts before the first step and never
forgets, as in the published re-timings of these three records.
"""

from __future__ import annotations

import json
import re
from typing import Literal, get_args

from speedkit.core.errors import UsageError
from speedkit.records.edits import Replacement, replace_match

Clock = Literal["consistent", "official"]
CLOCKS: tuple[Clock, ...] = get_args(Clock)

_TRAIN = "data/fineweb10B/fineweb_train_*.bin"
_VAL = "data/fineweb10B/fineweb_val_*.bin"
_WORLD = 'int(os.environ.get("WORLD_SIZE", 8))'

SETTINGS: dict[str, dict[str, str | int | float]] = {
    "record_01": {
        "input_bin": _TRAIN,
        "input_val_bin": _VAL,
        "output_dir": "logs",
        "model": "d12",
        "batch_size": 32,
        "sequence_length": 1024,
        "total_batch_size": 262144,
        "num_iterations": 24576,
        "val_loss_every": 128,
        "weight_decay": 0.1,
        "learning_rate": 0.0015,
        "warmup_iters": 256,
    },
    "record_02": {
        "input_bin": _TRAIN,
        "input_val_bin": _VAL,
        "output_dir": "logs",
        "model": "d12",
        "batch_size": 64,
        "sequence_length": 1024,
        "total_batch_size": 524288,
        "num_iterations": 9536,
        "val_loss_every": 128,
        "weight_decay": 0.1,
        "learning_rate": 0.0018,
        "warmup_iters": 256,
        "warmdown_iters": 2048,
        "save_every": 0,
    },
    "record_03": {
        "input_bin": _TRAIN,
        "input_val_bin": _VAL,
        "model": "d12",
        "batch_size": 64,
        "sequence_length": 1024,
        "num_iterations": 7000,
        "val_loss_every": 128,
        "weight_decay": 0.1,
        "learning_rate": 0.0018,
        "warmup_iters": 250,
        "warmdown_iters": 2000,
    },
}
"""Arguments of each record's run, which become defaults."""

_TOKENIZER = (
    Replacement("    import tiktoken\n", "", "tokenizer no longer loaded"),
    Replacement(
        '    # init (and write) the tokenizer\n    enc = tiktoken.get_encoding("gpt2")\n\n', ""
    ),
)
_SAVING = (
    Replacement(
        "if master_process and (step + 1) % args.save_every == 0:",
        "if master_process and args.save_every > 0 and (step + 1) % args.save_every == 0:",
        "no checkpoint while it trains",
    ),
)
_PRINT = (
    'print0(f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} '
    'train_time:{training_time_ms:.0f}ms")'
)
_LOOP = "    for step in range(args.num_iterations + 1):\n"
_LAST = "        last_step = (step == args.num_iterations)\n"
_EVAL = "            model.eval()\n"
_LOGGED = '                    f.write("s:%d tel:%f\\n" % (step, val_loss))\n'
_START = """\
    # the clock of training: stopped while the script validates
    training_time_ms = 0.0
    torch.cuda.synchronize()
    clock = time.perf_counter()
"""
_FORGET = """\
        # the first ten steps, with the compilation, do not count
        if step == 10:
            training_time_ms = 0.0
            clock = time.perf_counter()
"""
_STOP = """\
            torch.cuda.synchronize()
            training_time_ms += 1000 * (time.perf_counter() - clock)
"""
_GO_ON = """\
            torch.cuda.synchronize()
            clock = time.perf_counter()
"""


def transform(name: str, source: str, clock: Clock = "consistent") -> tuple[str, tuple[str, ...]]:
    """Return a script that runs by itself and prints its metrics, and notes on the changes.

    Args:
        name: ``record_01``, ``record_02`` or ``record_03``.
        source: the script as imported.
        clock: which steps the printed ``train_time`` counts.

    Raises:
        UsageError: there is no such transformation or clock.
        EditError: the source is not the script that the transformation was made for.
    """
    if name not in SETTINGS:
        raise UsageError(f"no transformation named {name!r}; there are: {', '.join(SETTINGS)}")
    if clock not in CLOCKS:
        raise UsageError(f"no clock named {clock!r}; there are: {' and '.join(CLOCKS)}")
    notes = ["the arguments of the record's run are defaults"]
    for argument, value in SETTINGS[name].items():
        source = _set_default(source, argument, json.dumps(value))
    if name == "record_03":
        source = _keep_batch(source)
        notes.append("gradients accumulated over fewer than 8 processes")
    edits = {"record_01": _TOKENIZER, "record_02": _SAVING}.get(name, ())
    for edit in (*edits, *_clock_edits(clock)):
        source = edit.apply(source)
        notes += [edit.note] if edit.note else []
    return source, tuple(notes)


def _set_default(source: str, argument: str, expression: str) -> str:
    name = re.escape(argument)
    pattern = rf'(parser\.add_argument\("--{name}", type=\w+)(?:, default=[^,()]+)?(?=[,)])'
    template = rf"\g<1>, default={expression}"
    return replace_match(source, pattern, template, f"the argument --{argument}")


def _keep_batch(source: str) -> str:
    source = _set_default(source, "accumulation", f"8 // {_WORLD}")
    return _set_default(source, "val_max_steps", f"20 * 8 // {_WORLD}")


def _clock_edits(clock: Clock) -> tuple[Replacement, ...]:
    forget = _FORGET if clock == "consistent" else ""
    counted = "all steps and the compilation" if clock == "official" else "from step 10 on"
    return (
        Replacement(_LOOP, _START + _LOOP),
        Replacement(_LAST, _LAST + forget, f"a cumulative clock ({clock}: {counted})"),
        Replacement(_EVAL, _STOP + _EVAL),
        Replacement('print0(f"val loss {val_loss}")', _PRINT, "the metrics line printed"),
        Replacement(_LOGGED, _LOGGED + _GO_ON),
    )


def clock_of(name: str, original: str, stored: str) -> Clock | None:
    """Return the clock with which ``stored`` was made of ``original``, None if with none."""
    for clock in CLOCKS:
        if transform(name, original, clock)[0] == stored:
            return clock
    return None
