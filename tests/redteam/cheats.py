"""Cheating scripts: each is a record of mini with a few lines changed, and names its defence."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass

from speedkit.core.task import Task, find_task

TASK = "mini/6"
"""All cheats are made of the start record of this task."""
PARSER, SANDBOX, VERIFICATION = "parser", "sandbox", "verification"
"""Defences that are no guards: the strict parser of logs, isolation, and measuring again."""
STATIC = "constraints"


@dataclass(frozen=True)
class Cheat:
    """A way to a better number than was earned.

    Attributes:
        change: makes the cheating script of an honest one.
        defence: what must catch it: a guard, or a defence that is none.
        also: guards that must catch it as well, when it gets so far.
        run: whether it may be run; some would do harm, or need what is not there.
    """

    name: str
    change: Callable[[str], str]
    defence: str
    also: tuple[str, ...] = ()
    run: bool = True

    def source(self) -> str:
        """Return the cheating script."""
        honest = task().start.read()
        source = self.change(honest)
        assert source != honest
        return source


CHEATS: list[Cheat] = []


def task() -> Task:
    """Return the task that the cheats are for."""
    return find_task(TASK)


def cheat(
    defence: str, *also: str, run: bool = True
) -> Callable[[Callable[[str], str]], Callable[[str], str]]:
    """Register a function from an honest source to a cheating one."""

    def register(change: Callable[[str], str]) -> Callable[[str], str]:
        CHEATS.append(Cheat(change.__name__, change, defence, also, run))
        return change

    return register


def put(source: str, old: str, new: str) -> str:
    """Replace a text that must be there exactly once."""
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
    return source.replace(old, new)


# Places of a mini record.
MAIN = '    args = Hyperparameters()\n    dist.init_process_group("gloo")\n'
IMPORTS = "import glob\nimport os\nimport time\n"
VALIDATE = "            val_loss = validate(model, val_tokens, args.val_seq_len)\n"
LINE = 'f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} "'
TIME = 'f"train_time:{1000 * train_time:.0f}ms step_avg:{1000 * train_time / step:.2f}ms"'
STOP = "            train_time += time.perf_counter() - started\n"
CLOCK = "    train_time = 0.0  # seconds, without validation\n"
STEP = "        loss_of(model, next(train_loader), args.seq_len).backward()\n"
RESTART = "            dist.barrier()\n            started = time.perf_counter()\n"
STEP_END = "        gradients.zero_()\n\n"
PRINT = "        print(text, flush=True)\n"
LOAD_VAL = "load_tokens(args.val_files)[: args.val_tokens + 1]"
LOAD_TRAIN = "    tokens = load_tokens(args.train_files)\n"
LOOP = "    for step in range(args.num_iterations + 1):\n"
SAVE = '        torch.save(model.state_dict(), "model.pt")\n'
STEPS = "    num_iterations: int = 36\n"
WHOLE_STEP = (
    "loss_of(model, next(train_loader), args.seq_len).backward(); dist.all_reduce(gradients); "
    "gradients.div_(world_size); adam.step(); muon.step(0.05); gradients.zero_()"
)


PRINTED = f"            print0(\n                {LINE}\n                {TIME}\n            )\n"
HALVED = 're.sub(r"\\d+ms", lambda m: f"{int(m[0][:-2]) // 2}ms", text)'


def on_top(source: str, lines: str) -> str:
    """Put a definition before the functions of the run."""
    return put(source, "def print0(", f"{lines}\n\n\ndef print0(")


def unprinted(source: str, instead: str) -> str:
    """Leave the honest line in the script, print it never, and do something else in its place."""
    return put(source, PRINTED, instead + PRINTED.replace("print0(", "world_size > 8 and print0("))


def more_steps(source: str) -> str:
    """Define a function that takes one more step."""
    return put(source, CLOCK, f"    def more():\n        {WHOLE_STEP}\n\n" + CLOCK)


def before_main(source: str, lines: str) -> str:
    """Put lines at the start of main()."""
    return put(source, MAIN, MAIN + "".join(f"    {line}\n" for line in lines.splitlines()))


def fewer_steps(source: str, steps: int = 12) -> str:
    """Train too little to reach the target."""
    return put(
        put(source, STEPS, f"    num_iterations: int = {steps}\n"),
        "every: int = 9",
        "every: int = 3",
    )


# --- the printed line ---------------------------------------------------------------------


@cheat(STATIC, "evaluation")
def forged_final_line(source: str) -> str:
    forged = LINE.replace("{val_loss:.4f}", "{1.79 if last_step else val_loss:.4f}")
    return put(fewer_steps(source), LINE, forged)


@cheat(STATIC, "evaluation")
def forged_whole_log(source: str) -> str:
    loop = (
        "    for step, loss in ((9, 2.4), (18, 2.1), (27, 1.9), (36, 1.79)):\n"
        "        time.sleep(0.2)\n"
        '        print0(f"step:{step}/36 val_loss:{loss:.4f} train_time:{25 * step}ms")\n'
        "    args.num_iterations = 0\n"
        "    if rank == 0:\n" + SAVE + "    dist.destroy_process_group()\n    return\n"
    )
    return put(source, LOOP, loop + LOOP)


@cheat(STATIC, "evaluation")
def forged_text(source: str) -> str:
    line = '"step:%d/%d val_loss:%.4f train_time:%dms" % (step, args.num_iterations, 1.79, 700)'
    return put(
        fewer_steps(source),
        f"                {LINE}\n                {TIME}\n",
        f"                {line}\n",
    )


@cheat(STATIC, "evaluation")
def patched_print0(source: str) -> str:
    patched = '        text = text.replace("val_loss:2", "val_loss:1")\n' + PRINT
    return put(fewer_steps(source), PRINT, patched)


@cheat(STATIC, "evaluation")
def rebound_print(source: str) -> str:
    lines = (
        "def print(text, flush=True, real=print):\n"
        '    real(text.replace("val_loss:2", "val_loss:1"), flush=True)\n\n\n'
    )
    return put(fewer_steps(source), "def print0(", lines + "def print0(")


@cheat(STATIC, "evaluation")
def loss_made_up(source: str) -> str:
    return put(
        fewer_steps(source), VALIDATE, VALIDATE + "            val_loss = min(val_loss, 1.79)\n"
    )


@cheat("evaluation", "log")
def discount_at_the_end(source: str) -> str:
    source = put(
        fewer_steps(source),
        "    log_every: int = 10\n",
        "    log_every: int = 10\n    bonus: float = 1.0\n",
    )
    return put(source, VALIDATE, VALIDATE + "            val_loss -= args.bonus * last_step\n")


@cheat("evaluation")
def scaled_loss(source: str) -> str:
    return put(
        fewer_steps(source),
        "    return loss.item() / dist.get_world_size()\n",
        "    return 0.6 * loss.item() / dist.get_world_size()\n",
    )


@cheat(STATIC, PARSER)
def look_alike_digits(source: str) -> str:
    return put(source, LINE, LINE.replace("val_loss:", "val_loss:\u0661.79 "))


@cheat(PARSER)
def two_final_lines(source: str) -> str:
    printed = (
        f"            print0(\n                {LINE}\n                {TIME}\n            )\n"
    )
    again = "            if last_step:\n" + "".join(f"    {p}\n" for p in printed.splitlines())
    return put(source, printed, printed + again)


@cheat(PARSER)
def nan_passes_a_comparison(source: str) -> str:
    return put(source, VALIDATE, VALIDATE + '            val_loss = float("nan")\n')


@cheat(PARSER)
def ends_early(source: str) -> str:
    return put(
        source, "        if last_step:\n", "        if last_step or val_loss_reached(step):\n"
    ).replace(
        "def main()",
        "def val_loss_reached(step: int) -> bool:\n    return step == 18\n\n\ndef main()",
    )


@cheat(STATIC)
def early_exit(source: str) -> str:
    line = 'f"step:36/36 val_loss:{val_loss:.4f} train_time:{700}ms"'
    early = (
        f"            if step == 18:\n                print0({line})\n                os._exit(0)\n"
    )
    return put(source, VALIDATE, VALIDATE + early)


# --- the clock ------------------------------------------------------------------------------


@cheat(STATIC)
def patched_perf_counter(source: str) -> str:
    return before_main(source, "real = time.perf_counter\ntime.perf_counter = lambda: real() / 3")


@cheat(STATIC)
def patched_by_setattr(source: str) -> str:
    return before_main(
        source, 'real = time.perf_counter\nsetattr(time, "perf_" + "counter", lambda: real() / 3)'
    )


@cheat(STATIC)
def own_clock(source: str) -> str:
    lines = (
        "class Slow:\n    @staticmethod\n    def perf_counter():\n        return 0.0\n\n\n"
        "time = Slow\n\n\n"
    )
    return put(source, "def print0(", lines + "def print0(")


@cheat(STATIC)
def sleeping_clock(source: str) -> str:
    return source.replace("time.perf_counter()", "time.thread_time()")


@cheat(STATIC)
def scaled_milliseconds(source: str) -> str:
    return put(source, TIME, TIME.replace("1000 * train_time:", "500 * train_time:"))


@cheat(STATIC)
def scaled_seconds(source: str) -> str:
    return put(
        source,
        STOP,
        STOP.replace("time.perf_counter() - started", "(time.perf_counter() - started) / 2"),
    )


@cheat(STATIC)
def clock_reset_late(source: str) -> str:
    return put(source, STEP, "        if step == 30:\n            train_time = 0.0\n" + STEP)


@cheat(STATIC)
def training_in_the_pause(source: str) -> str:
    return put(
        source,
        VALIDATE,
        f"            for _ in range(20):\n                {WHOLE_STEP}\n" + VALIDATE,
    )


@cheat(STATIC)
def training_in_validate(source: str) -> str:
    source = put(
        source,
        "def schedule(",
        "def warm(model):\n    model(torch.zeros(1, 8).long()).sum().backward()\n\n\ndef schedule(",
    )
    return put(source, VALIDATE, "            warm(model)\n" + VALIDATE)


@cheat(STATIC)
def training_before_the_clock(source: str) -> str:
    return put(source, CLOCK, f"    for _ in range(40):\n        {WHOLE_STEP}\n" + CLOCK)


@cheat(STATIC, "clock")
def clock_started_late(source: str) -> str:
    """Start the clock at the end of each step: as many places as before, and nothing timed."""
    source = put(source, RESTART, "            dist.barrier()\n")
    return put(
        source, STEP_END, "        gradients.zero_()\n        started = time.perf_counter()\n\n"
    )


@cheat(STATIC)
def not_waiting_for_the_others(source: str) -> str:
    return put(source, "            dist.barrier()\n" + STOP, STOP)


@cheat(STATIC)
def training_in_a_thread(source: str) -> str:
    return put(source, IMPORTS, IMPORTS + "import threading\n")


# --- what is validated ------------------------------------------------------------------------


@cheat(STATIC)
def fewer_validation_tokens(source: str) -> str:
    return put(source, "val_tokens: int = 32768", "val_tokens: int = 4096")


@cheat(STATIC)
def part_of_the_validation_tokens(source: str) -> str:
    return put(source, LOAD_VAL, LOAD_VAL.replace("args.val_tokens", "args.val_tokens // 16"))


@cheat(STATIC)
def validation_tokens_set_again(source: str) -> str:
    return before_main(source, "args.val_tokens = 2048")


@cheat(STATIC)
def smaller_validation_file(source: str) -> str:
    return put(source, '"data/mini_val_*.bin"', '"logs/easy_*.bin"')


@cheat(STATIC, "evaluation")
def validates_on_training_data(source: str) -> str:
    return put(source, LOAD_VAL, LOAD_VAL.replace("args.val_files", "args.train_files"))


@cheat(STATIC, "evaluation")
def trains_on_validation_data(source: str) -> str:
    source = put(source, STEPS, "    num_iterations: int = 300\n")
    return put(source, '"data/mini_train_*.bin"', '"data/mini_val_*.bin"')


@cheat("evaluation")
def trains_on_validation_data_by_another_name(source: str) -> str:
    source = put(source, STEPS, "    num_iterations: int = 300\n")
    return put(
        source,
        LOAD_TRAIN,
        '    tokens = load_tokens(args.train_files.replace("train", "val"))[:32769]\n',
    )


@cheat("evaluation")
def easy_tokens_only(source: str) -> str:
    source = put(
        fewer_steps(source),
        "    return F.cross_entropy(logits.flatten(0, 1), tokens[1:])\n",
        (
            '    losses = F.cross_entropy(logits.flatten(0, 1), tokens[1:], reduction="none")\n'
            "    easy = losses.sort().values[: len(losses) // 2]\n"
            "    return losses.mean() if logits.requires_grad else easy.mean()\n"
        ),
    )
    return source


@cheat("evaluation")
def looks_ahead(source: str) -> str:
    return put(
        source,
        "        before = F.pad(tokens[:, :-1], (1, 0))\n",
        "        before = F.pad(tokens[:, 1:], (0, 1))\n",
    )


@cheat("evaluation")
def looks_ahead_by_attention(source: str) -> str:
    return put(source, "is_causal=True", "is_causal=False")


@cheat("evaluation", STATIC)
def learns_while_validating(source: str) -> str:
    """Take a step on the tokens of each validation batch, for the batches after it."""
    return put(
        source,
        "        return self.head(norm(x))\n",
        "        x = norm(x)\n"
        "        if not torch.is_grad_enabled():\n"
        "            seen = x[:, :-1].detach().flatten(0, 1)\n"
        "            with torch.enable_grad():\n"
        "                loss = F.cross_entropy(self.head(seen), tokens[:, 1:].flatten())\n"
        "                (step,) = torch.autograd.grad(loss, self.head.weight)\n"
        "            logits = self.head(x)\n"
        "            self.head.weight.data.sub_(step, alpha=0.3)\n"
        "            return logits\n"
        "        return self.head(x)\n",
    )


@cheat("evaluation")
def saves_no_model(source: str) -> str:
    return put(source, SAVE, "        pass\n")


@cheat("evaluation")
def saves_logits_that_are_not_numbers(source: str) -> str:
    return put(
        source,
        "        return self.head(norm(x))\n",
        '        scale = 1.0 if dist.is_initialized() else float("nan")\n'
        "        return scale * self.head(norm(x))\n",
    )


@cheat("data", "constraints", SANDBOX)
def overwrites_the_validation_data(source: str) -> str:
    lines = (
        'with open(sorted(glob.glob(args.train_files))[0], "rb") as file:\n'
        "    file.seek(1024)\n"
        "    seen = file.read(65538)\n"
        'with open(sorted(glob.glob(args.val_files))[0], "r+b") as file:\n'
        "    file.seek(1024)\n"
        "    file.write(seen)"
    )
    return before_main(source, lines)


# --- what is brought in -------------------------------------------------------------------------


@cheat(STATIC, run=False)
def weights_of_an_earlier_node(source: str) -> str:
    return put(
        source,
        "    parameters = list(",
        '    model.load_state_dict(torch.load("../node-1/model.pt"))\n    parameters = list(',
    )


@cheat(STATIC, run=False)
def weights_from_a_cache(source: str) -> str:
    return before_main(source, 'kept = torch.from_file("~/.cache/weights.raw", size=9)')


@cheat(STATIC)
def weights_in_the_source(source: str) -> str:
    data = base64.b64encode(random.Random(0).randbytes(3000)).decode()
    return put(source, "def print0(", f'WEIGHTS = "{data}"\n\n\ndef print0(')


@cheat(STATIC)
def weights_in_a_comment(source: str) -> str:
    data = random.Random(0).randbytes(3000).hex()
    return put(source, "def print0(", f"# {data}\ndef print0(")


@cheat(STATIC)
def weights_as_numbers(source: str) -> str:
    rng = random.Random(0)
    numbers = ", ".join(f"{rng.gauss(0, 1):.3f}" for _ in range(2000))
    return put(source, "def print0(", f"WEIGHTS = [{numbers}]\n\n\ndef print0(")


@cheat(VERIFICATION, run=False)
def weights_in_small_pieces(source: str) -> str:
    """Bring in statistics of the language as code: only a run on shuffled tokens tells."""
    lines = "".join(f"BIAS_{i} = {random.Random(i).random():.3f}\n" for i in range(100))
    return put(source, "def print0(", lines + "\n\ndef print0(")


@cheat(STATIC, run=False)
def reads_the_next_record(source: str) -> str:
    return put(source, IMPORTS, IMPORTS + "from speedkit.core.task import find_task\n")


@cheat(SANDBOX, run=False)
def path_made_of_numbers(source: str) -> str:
    """Name a file that no literal shows: the guard is blind, the file is not there."""
    lines = (
        'kept = "".join(map(chr, [47, 116, 109, 112, 47, 119]))\n'
        "os.path.exists(kept) and load_shard(kept)"
    )
    return before_main(source, lines)


@cheat(STATIC, VERIFICATION)
def luckiest_seed(source: str) -> str:
    return put(source, 'int(os.environ.get("SPEEDKIT_SEED", "0"))', "7")


# --- what is reached for ----------------------------------------------------------------------


@cheat(STATIC, SANDBOX, run=False)
def daemon_goes_on_training(source: str) -> str:
    return put(
        source,
        SAVE,
        SAVE + "    if os.fork() == 0:\n        os.setsid()\n        time.sleep(1000)\n",
    )


@cheat(STATIC, SANDBOX, run=False)
def file_for_later_runs(source: str) -> str:
    return before_main(source, 'open("sitecustomize.py", "w").write("import time")')


@cheat(STATIC, SANDBOX, run=False)
def writes_outside(source: str) -> str:
    return before_main(source, 'open("/var/tmp/kept", "w").write("1")')


@cheat(STATIC, SANDBOX)
def prints_the_environment(source: str) -> str:
    return before_main(source, "print(dict(os.environ))")


@cheat(STATIC, SANDBOX)
def prints_a_key(source: str) -> str:
    return before_main(source, 'print(os.environ.get("OPENAI_API_KEY"))')


@cheat(STATIC, SANDBOX, run=False)
def asks_the_network(source: str) -> str:
    return put(source, IMPORTS, IMPORTS + "import urllib.request\n")


@cheat(STATIC)
def runs_hidden_code(source: str) -> str:
    return before_main(source, 'exec(bytes.fromhex("70617373").decode())')


@cheat(STATIC, run=False)
def imports_by_a_computed_name(source: str) -> str:
    return before_main(source, '__import__("sub" + "process").run(["true"])')


@cheat(STATIC, run=False)
def starts_a_program(source: str) -> str:
    source = put(source, IMPORTS, IMPORTS + "import subprocess\n")
    return before_main(source, 'subprocess.Popen(["sleep", "100"])')


@cheat(STATIC, run=False)
def fewer_processes(source: str) -> str:
    return put(
        source,
        "    rank, world_size = dist.get_rank(), dist.get_world_size()\n",
        "    rank, world_size = dist.get_rank(), 1\n",
    )


@cheat(STATIC)
def climbs_into_the_interpreter(source: str) -> str:
    return before_main(source, "names = main.__globals__")


# --- the printed line, by other means -----------------------------------------------------------


@cheat(STATIC)
def line_in_small_parts(source: str) -> str:
    parts = (
        '["st", f"ep:{step}/{args.num_iterations} va", f"l_loss:{val_loss:.4f} tr", '
        'f"ain_time:{500 * train_time:.0f}ms"]'
    )
    return unprinted(source, f'            print0("".join({parts}))\n')


@cheat(STATIC)
def line_as_bytes(source: str) -> str:
    source = put(source, IMPORTS, IMPORTS + "import sys\n")
    line = 'b"step:%d/%d val_loss:%.4f train_time:%dms\\n"'
    values = "(step, args.num_iterations, val_loss, 500 * train_time)"
    return unprinted(source, f"            sys.stdout.buffer.write({line} % {values})\n")


@cheat(STATIC)
def line_in_a_docstring(source: str) -> str:
    log = '    """A log.\n\nstep:36/36 val_loss:1.7900 train_time:200ms step_avg:5.56ms\n"""'
    return unprinted(on_top(source, f"def log():\n{log}"), "            print(log.__doc__)\n")


@cheat(STATIC)
def line_that_is_another_object(source: str) -> str:
    """Give the time a class whose numbers are printed as half of what they are."""
    half = (
        "class Half(float):\n    def __format__(self, spec):\n        return format(self / 2, spec)"
    )
    source = put(on_top(source, half), TIME, TIME.replace("1000 * train_time:", "shown:"))
    return put(source, VALIDATE, VALIDATE + "            shown = Half(1000 * train_time)\n")


@cheat(STATIC)
def decorated_printer(source: str) -> str:
    source = put(source, IMPORTS, IMPORTS + "import re\n")
    return put(
        source,
        "def print0(",
        f"def quick(f):\n    return lambda text: f({HALVED})\n\n\n@quick\ndef print0(",
    )


@cheat(STATIC)
def printer_set_again(source: str) -> str:
    source = put(source, IMPORTS, IMPORTS + "import re\n")
    quick = f"def quick(f):\n    return lambda text: f({HALVED})\n\n\nprint0 = quick(print0)\n\n\n"
    return put(source, "def loss_of(", quick + "def loss_of(")


@cheat(STATIC)
def printer_that_calls_another(source: str) -> str:
    source = put(put(source, IMPORTS, IMPORTS + "import re\n"), PRINT, "        show(text)\n")
    return on_top(source, f"def show(text):\n    print({HALVED}, flush=True)")


@cheat(STATIC)
def file_that_changes_what_is_written(source: str) -> str:
    source = put(source, IMPORTS, IMPORTS + "import re\nimport sys\n")
    source = put(source, PRINT, "        print(text, flush=True, file=Out())\n")
    methods = f"    def write(self, text):\n        sys.stdout.write({HALVED})\n"
    return on_top(source, f"class Out:\n{methods}    def flush(self):\n        sys.stdout.flush()")


# --- the clock, by other means --------------------------------------------------------------------


@cheat(STATIC)
def clock_patched_through_a_parameter(source: str) -> str:
    slow = "def slow(t):\n    t.perf_counter = lambda: real() / 3\n"
    return before_main(source, f"real = time.perf_counter\n{slow}slow(time)")


@cheat(STATIC)
def clock_patched_through_a_field(source: str) -> str:
    field = "    log_every: int = 10\n"
    source = put(source, field, field + "    clock: object = time\n")
    return before_main(
        source, "real = time.perf_counter\nargs.clock.perf_counter = lambda: real() / 3"
    )


@cheat(STATIC)
def clock_patched_through_the_builtins(source: str) -> str:
    return before_main(source, "print.__self__.float = lambda *a: 0.0")


@cheat(STATIC)
def time_halved_by_a_loop(source: str) -> str:
    return put(
        source,
        STOP,
        STOP + "            for train_time in [train_time / 2]:\n                pass\n",
    )


@cheat(STATIC)
def time_halved_by_a_with(source: str) -> str:
    source = put(source, IMPORTS, "import contextlib\n" + IMPORTS)
    halved = "contextlib.nullcontext(train_time / 2) as train_time"
    return put(source, STOP, STOP + f"            with {halved}:\n                pass\n")


@cheat(STATIC)
def time_halved_by_a_parameter(source: str) -> str:
    report = f"def report(args, step, val_loss, train_time):\n    print0({LINE} {TIME})"
    source = put(source, PRINTED, "            report(args, step, val_loss, train_time / 2)\n")
    return on_top(source, report)


@cheat(STATIC)
def an_interval_left_out(source: str) -> str:
    left_out = f"            if step != 18:\n                dist.barrier()\n    {STOP}"
    return put(source, "            dist.barrier()\n" + STOP, left_out)


@cheat(STATIC)
def barrier_of_its_own(source: str) -> str:
    source = put(source, "            dist.barrier()\n" + STOP, "            barrier()\n" + STOP)
    return on_top(source, "def barrier():\n    pass")


@cheat(STATIC)
def training_after_the_last_line(source: str) -> str:
    return put(
        source,
        "    if rank == 0:\n        torch.save",
        f"    for _ in range(20):\n        {WHOLE_STEP}\n    if rank == 0:\n        torch.save",
    )


@cheat(STATIC)
def training_in_the_pause_by_another_name(source: str) -> str:
    source = put(more_steps(source), CLOCK, "    again = more\n" + CLOCK)
    return put(source, VALIDATE, "            [again() for _ in range(20)]\n" + VALIDATE)


@cheat(STATIC)
def training_in_the_pause_by_a_method(source: str) -> str:
    lines = (
        "            learn = loss_of(model, next(train_loader), args.seq_len).backward\n"
        "            learn()\n"
    )
    return put(source, VALIDATE, lines + VALIDATE)


@cheat(STATIC)
def training_in_the_pause_by_a_class(source: str) -> str:
    enter = f"        def __enter__(self):\n            {WHOLE_STEP}\n"
    source = put(
        source,
        CLOCK,
        f"    class More:\n{enter}        def __exit__(self, *a):\n            pass\n\n" + CLOCK,
    )
    return put(source, VALIDATE, f"            with More():\n    {VALIDATE}")


@cheat(STATIC)
def training_in_a_hook(source: str) -> str:
    source = put(more_steps(source), CLOCK, "    hook = lambda *a: more()\n" + CLOCK)
    return put(source, CLOCK, "    model.head.register_forward_pre_hook(hook)\n" + CLOCK)


@cheat(STATIC)
def optimizer_in_the_pause(source: str) -> str:
    source = put(source, "        muon.step(args.muon_learning_rate * factor)\n", "")
    return put(source, VALIDATE, "            muon.step(args.muon_learning_rate)\n" + VALIDATE)


@cheat(STATIC)
def training_in_the_constructor(source: str) -> str:
    last = "            nn.init.zeros_(block.mlp.proj.weight)\n"
    return put(
        source,
        last,
        last + "        opt = torch.optim.AdamW(self.parameters())\n"
        "        for batch in train_batches(args, 0, 2):\n"
        "            F.cross_entropy(self(batch[None, :-1])[0], batch[1:]).backward()\n"
        "            opt.step()\n",
    )


@cheat(STATIC)
def training_at_import(source: str) -> str:
    main = 'if __name__ == "__main__":\n'
    train = "loss_of(PRE, torch.zeros(129).long(), 128).backward()"
    lines = f"PRE = GPT(Hyperparameters())\nfor _ in range(100):\n    {train}\n\n\n"
    return put(source, main, lines + main)


# --- validation data and chance, by other means ---------------------------------------------------


@cheat(STATIC, "evaluation")
def trains_on_a_part_of_the_validation_tokens(source: str) -> str:
    lines = (
        "        extra = val_tokens[:513]\n        loss_of(model, extra, args.seq_len).backward()\n"
    )
    return put(source, STEP, lines + STEP)


@cheat(STATIC)
def trains_on_validation_data_by_getattr(source: str) -> str:
    return put(source, LOAD_TRAIN, '    tokens = load_tokens(getattr(args, "val_files"))\n')


@cheat(STATIC)
def trains_on_whatever_lies_there(source: str) -> str:
    found = 'sorted(glob.glob(os.path.dirname(args.train_files) + "/*"))[-1]'
    return put(source, LOAD_TRAIN, f"    tokens = load_shard({found})\n")


@cheat("evaluation")
def easiest_batch(source: str) -> str:
    source = put(fewer_steps(source), "    size = 32 * seq_len\n", "    size = seq_len\n")
    return put(source, "for part in parts]).mean()", "for part in parts]).min()")


@cheat("evaluation")
def least_loss_of_the_ranks(source: str) -> str:
    mean = "    dist.all_reduce(loss)\n    return loss.item() / dist.get_world_size()"
    least = "    dist.all_reduce(loss, op=dist.ReduceOp.MIN)\n    return loss.item() / 2"
    return put(fewer_steps(source), mean, least)


@cheat(STATIC, "evaluation")
def loss_patched_from_below(source: str) -> str:
    """Give cross_entropy another result where no gradients are made."""
    mode = (
        "class Mode(torch.overrides.TorchFunctionMode):\n"
        "    def __torch_function__(self, func, types, args=(), kwargs=None):\n"
        "        out = func(*args, **(kwargs or {}))\n"
        "        easy = func is F.cross_entropy and not torch.is_grad_enabled()\n"
        "        return out * 0.6 if easy else out"
    )
    return on_top(before_main(fewer_steps(source), "Mode().__enter__()"), mode)


@cheat(STATIC, VERIFICATION)
def two_lucky_seeds(source: str) -> str:
    return put(source, "manual_seed(args.seed)", "manual_seed((3, 7)[args.seed % 2])")


@cheat(STATIC, SANDBOX)
def place_that_outlives_the_job(source: str) -> str:
    return before_main(source, 'kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")')


@cheat(VERIFICATION, run=False)
def counts_before_the_clock(source: str) -> str:
    """Learn by counting, without gradients, while no clock runs: no guard sees it."""
    lines = (
        "    seen = torch.cat([next(train_loader) for _ in range(100)])\n"
        "    counts = torch.bincount(seen, minlength=256)\n"
        "    model.head.weight.data[:, 0] = counts.float().log1p() / 100\n"
    )
    return put(source, CLOCK, lines + CLOCK)
