"""Edits at anchors, and what they make of records 1 to 3."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from speedkit.core.errors import UsageError
from speedkit.core.metrics import parse_line
from speedkit.records.edits import EditError, Replacement, parse, replace_match, replace_nodes
from speedkit.records.nanogpt.transforms import CLOCKS, SETTINGS, clock_of, transform

RECORDS = os.environ.get("SPEEDKIT_TEST_RECORDS")
needs_records = pytest.mark.skipif(
    RECORDS is None, reason="SPEEDKIT_TEST_RECORDS names no folder of record scripts"
)

# A trainer of our own with the places that the transformation of record 3 looks for. Its
# "training" takes fake seconds, so that the clock can be checked exactly.
TRAINER = '''
import os

class Time:
    """A clock that moves when told to."""
    now = 0.0
    def perf_counter(self):
        return self.now
time = Time()

class Cuda:
    def synchronize(self):
        pass
class Torch:
    cuda = Cuda()
torch = Torch()

class Model:
    def eval(self):
        pass
model = Model()

class Parser:
    def __init__(self):
        self.values = {}
    def add_argument(self, name, type=str, default=None, help=""):
        self.values[name.lstrip("-")] = default
    def parse_args(self):
        return self
    def __getattr__(self, name):
        return self.values[name]
parser = Parser()

def print0(text):
    print(text)

if True:
    parser.add_argument("--input_bin", type=str, help="train")
    parser.add_argument("--input_val_bin", type=str, help="val")
    parser.add_argument("--model", type=str, default="d12", help="d12|d24")
    parser.add_argument("--batch_size", type=int, default=4, help="batch")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--sequence_length", type=int, default=64)
    parser.add_argument("--num_iterations", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--warmup_iters", type=int, default=0)
    parser.add_argument("--warmdown_iters", type=int, default=0)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--val_loss_every", type=int, default=0)
    parser.add_argument("--val_max_steps", type=int, default=20)
    args = parser.parse_args()
    master_process, logfile, val_loss = True, os.devnull, 4.25

    for step in range(args.num_iterations + 1):
        last_step = (step == args.num_iterations)

        if (last_step or (args.val_loss_every > 0 and step % args.val_loss_every == 0)):
            model.eval()
            time.now += 1000  # a validation
            print0(f"val loss {val_loss}")
            if master_process and logfile is not None:
                with open(logfile, "a") as f:
                    f.write("s:%d tel:%f\\n" % (step, val_loss))
        if last_step:
            break
        time.now += 100 if step == 0 else 2  # a step, the first with compilation
'''


def run(source: str, capsys) -> list[str]:
    exec(compile(source, "trainer", "exec"), {"__name__": "trainer"})
    return capsys.readouterr().out.splitlines()


def test_the_consistent_clock_forgets_ten_steps_and_all_validations(capsys):
    lines = run(transform("record_03", TRAINER, "consistent")[0], capsys)
    last = parse_line(lines[-1])
    assert (last.step, last.steps, last.val_loss) == (7000, 7000, 4.25)
    assert last.train_time_ms == 2000 * (7000 - 10)


def test_the_official_clock_counts_everything_but_validations(capsys):
    lines = run(transform("record_03", TRAINER, "official")[0], capsys)
    assert parse_line(lines[-1]).train_time_ms == 2000 * (7000 - 1) + 100_000


def test_every_validation_is_printed_in_the_grammar_of_metrics(capsys):
    lines = run(transform("record_03", TRAINER)[0], capsys)
    metrics = [parse_line(line) for line in lines]
    assert [m.step for m in metrics] == [*range(0, 7000, 128), 7000]
    assert metrics[0].train_time_ms == 0


@pytest.mark.parametrize("nproc", [1, 2, 4, 8])
def test_fewer_processes_keep_the_tokens_of_a_step_and_a_validation(nproc, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", str(nproc))
    probe = "\nprint(args.batch_size * args.sequence_length, args.accumulation, args.val_max_steps)"
    tokens, accumulation, batches = map(
        int, run(transform("record_03", TRAINER)[0] + probe, capsys)[-1].split()
    )
    assert tokens * accumulation * nproc == 524_288
    assert tokens * batches * nproc == 10_485_760


def test_a_script_without_the_anchors_is_refused():
    for part in ("model.eval()", "last_step = (", 'print0(f"val loss', '"--warmup_iters"'):
        assert part in TRAINER
        with pytest.raises(EditError, match="0 places"):
            transform("record_03", TRAINER.replace(part, "something_else_"))


def test_an_anchor_that_occurs_twice_is_refused():
    twice = TRAINER + "\n".join(["            model.eval()", ""])
    with pytest.raises(EditError, match=r"2 places like 'model\.eval\(\)'"):
        transform("record_03", twice)


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="record_04"):
        transform("record_04", TRAINER)
    with pytest.raises(UsageError, match="consistent and official"):
        transform("record_03", TRAINER, "sundial")


def test_the_clock_of_a_stored_script_is_recognised():
    for clock in CLOCKS:
        assert clock_of("record_03", TRAINER, transform("record_03", TRAINER, clock)[0]) == clock
    assert clock_of("record_03", TRAINER, TRAINER) is None


def test_notes_name_each_change():
    notes = transform("record_03", TRAINER, "official")[1]
    assert any("official" in note and "compilation" in note for note in notes)
    assert any("arguments" in note for note in notes)


@needs_records
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("clock", CLOCKS)
def test_the_real_scripts_are_transformed(name, clock):
    source = (Path(RECORDS) / f"{name}.py").read_text(encoding="utf-8")
    text, _ = transform(name, source, clock)
    tree = ast.parse(text)
    assert "tiktoken" not in text
    defaults = {
        call.args[0].value[2:]: keyword.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"
        for keyword in call.keywords
        if keyword.arg == "default"
    }
    for argument, value in SETTINGS[name].items():
        assert ast.literal_eval(defaults[argument]) == value
    assert text.count("training_time_ms = 0.0") == (2 if clock == "consistent" else 1)
    assert clock_of(name, source, text) == clock
    changed = len(set(text.splitlines()) - set(source.splitlines()))
    assert changed < 35


# --- edits ------------------------------------------------------------------------------


def test_a_replacement_needs_its_text_once():
    edit = Replacement("one", "two")
    assert edit.apply("a one b") == "a two b"
    with pytest.raises(EditError, match="0 places like 'one'"):
        edit.apply("nothing")
    with pytest.raises(EditError, match="2 places"):
        edit.apply("one one")


def test_a_pattern_needs_one_match():
    assert replace_match("a=1", r"(a=)\d", r"\g<1>2", "a") == "a=2"
    with pytest.raises(EditError, match="2 places with the letter a"):
        replace_match("a a", "a", "b", "the letter a")


def test_expressions_are_replaced_where_lines_have_other_letters():
    source = "naïve = 'ü'; x = 1  # é\ny = (2 *\n     3)\n"
    nodes = [s.value for s in ast.parse(source).body[1:]]
    assert replace_nodes(source, zip(nodes, ["10", "20"], strict=True)) == (
        "naïve = 'ü'; x = 10  # é\ny = (20)\n"
    )


def test_what_is_no_python_is_refused():
    with pytest.raises(EditError, match="not valid Python"):
        parse("def (:")
