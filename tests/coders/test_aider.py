"""The coder ``aider``: with a stand-in for the program, and with the real one where it is found."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from speedkit.core.components import KnowledgeEntry
from speedkit.core.errors import BudgetReached, PluginError, UsageError
from speedkit.core.ledger import Ledger, Usage
from speedkit.core.llm import LLM, LLMRefused, LLMSettings, LLMStopped
from speedkit.core.prompting import installed_packages
from speedkit.plugins.coders import aider as aider_module
from speedkit.plugins.coders import aider_environment
from speedkit.plugins.coders._aider_command import environment
from speedkit.plugins.coders._aider_folder import AiderFolder
from speedkit.plugins.coders._aider_log import Events, Talk, Trouble
from speedkit.plugins.coders._aider_prompt import hypothesis_of
from speedkit.plugins.coders._hypothesis import MISSING
from speedkit.plugins.coders.aider import AiderCoder
from tests.kit.code_requests import code_request, services, toy_task
from tests.kit.fake_openai import HANG, FakeOpenAI, fail, fault, say, usage

OLD = toy_task().start.read()
LINE = "    num_iterations: int = 100\n"
KEY = "canary-key-5fe1c09b7a"

REAL = os.environ.get("SPEEDKIT_TEST_AIDER") or aider_environment.installed()
"""Looked for before the tests get a cache folder of their own."""
needs_aider = [
    pytest.mark.aider,
    pytest.mark.skipif(
        REAL is None, reason="no aider: run `speedkit aider install` or set SPEEDKIT_TEST_AIDER"
    ),
]

STAND_IN = """#!{python}
import json, os, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).parent
ARGV = sys.argv[1:]
CALL = len(list(HERE.glob("call-*.json"))) + 1
FILES = [Path(a) for a in ARGV if a.startswith(os.getcwd() + "/")]

def value(flag):
    return Path(ARGV[ARGV.index(flag) + 1])

def add(flag, text):
    with open(value(flag), "a", encoding="utf-8") as file:
        file.write(text)

def event(name, **facts):
    add("--analytics-log", json.dumps({{"event": name, "properties": facts}}) + "\\n")

def history(role, text):
    add("--llm-history-file", role + " 2030-01-02T03:04:05\\n" + text + "\\n")

def start():
    event("message_send_starting")
    history("TO LLM", "USER do it")

def spoken(text):
    return "\\n".join("ASSISTANT " + line for line in text.split("\\n"))

def reply(text, prompt=100, completion=10, cost=0.0, model="openai/fake"):
    history("LLM RESPONSE", spoken(text))
    add("--chat-history-file", text + "\\n")
    event("message_send", main_model=model, edit_format="diff", prompt_tokens=prompt,
          completion_tokens=completion, cost=cost)

def note(text):
    add("--chat-history-file", "> " + text + "  \\n")

def edit(old="= 100", new="= 60"):
    FILES[0].write_text(FILES[0].read_text().replace(old, new))

seen = {{"argv": ARGV, "env": dict(os.environ), "cwd": os.getcwd(), "stdin": sys.stdin.read(),
        "message": value("--message-file").read_text(), "text": FILES[0].read_text(),
        "settings": json.loads(value("--model-settings-file").read_text()),
        "metadata": json.loads(value("--model-metadata-file").read_text()),
        "work": sorted(os.listdir()), "home": os.listdir(os.environ["HOME"])}}
(HERE / f"call-{{CALL}}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(autouse=True, scope="module")
def list_packages_once():
    """Ask the interpreter for its packages once, not for every coder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aider_module, "installed_packages", functools.cache(installed_packages))
        yield


@pytest.fixture(autouse=True)
def own_keys(monkeypatch):
    """Give the model's key, and one that is not for aider."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "another-canary-77")
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_ORGANIZATION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bed(tmp_path):
    """Return a function that runs a body of code in place of aider."""
    return functools.partial(Bed, tmp_path)


class Bed:
    """A coder with a program, a client and a log folder."""

    def __init__(self, tmp_path, body=None, *, executable=None, settings=None, **options):
        self.folder, self.log_dir = tmp_path, tmp_path / "log"
        if body is not None:
            executable = tmp_path / "aider"
            executable.write_text(STAND_IN.format(python=sys.executable) + body)
            executable.chmod(0o755)
        given = {"model": "openai/fake", "api_base": "http://127.0.0.1:1/v1", **(settings or {})}
        self.calls, self.intents = [], []
        llm_settings = LLMSettings(**given)
        ledger = Ledger(
            max_cost=llm_settings.max_cost,
            max_tokens=llm_settings.max_tokens,
            on_intent=self.intents.append,
            on_call=self.calls.append,
        )
        self.llm = LLM(llm_settings, ledger=ledger)
        self.coder = AiderCoder(AiderCoder.Options(executable=str(executable), **options))
        self.coder.bind(services(self.llm))

    def write(self, **fields):
        return self.coder.write(code_request(self.log_dir, **fields))

    def call(self, number=1):
        return json.loads((self.folder / f"call-{number}.json").read_text())

    @property
    def spent(self):
        return [(c.usage.input, c.usage.output, c.status) for c in self.calls]

    def check_ledger(self):
        """See that nothing is left set aside, and that every intent was settled."""
        assert self.llm.ledger.in_flight == ()
        assert {i.request_id for i in self.intents} <= {c.request_id for c in self.calls}
        assert len({c.request_id for c in self.calls}) == len(self.calls)


# --- success ----------------------------------------------------------------------------


def test_a_change_becomes_a_draft(bed):
    it = bed("start(); edit(); reply('HYPOTHESIS: fewer steps\\n\\nsolve.py', 321, 45)")
    draft = it.write()
    assert draft.failure == ""
    assert draft.files == {"solve.py": OLD.replace("= 100", "= 60")}
    assert draft.hypothesis == "fewer steps"
    assert draft.model == "openai/fake"
    assert draft.notes == {"edit_format": "diff", "edit_errors": [], "rounds": 1, "replies": 1}
    assert it.spent == [(321, 45, "ok")]
    it.check_ledger()


def test_the_command_line_is_quiet_offline_and_without_secrets(bed):
    it = bed(
        "start(); edit(); reply('x')",
        settings={"reasoning_effort": "low", "temperature": 0.3, "timeout_s": 44},
        edit_format="udiff",
    )
    it.write()
    seen = it.call()
    argv = seen["argv"]
    for flag in (
        *("--no-git", "--no-auto-commits", "--no-check-update", "--no-show-release-notes"),
        *("--no-detect-urls", "--no-suggest-shell-commands", "--no-auto-lint", "--no-gitignore"),
        *("--no-analytics", "--no-stream", "--no-fancy-input", "--no-show-model-warnings"),
    ):
        assert flag in argv
    assert "--yes-always" not in argv
    for flag, value in {
        "--map-tokens": "0",
        "--max-chat-history-tokens": "1000000000",
        "--env-file": os.devnull,
        "--model": "openai/fake",
        "--weak-model": "openai/fake",
        "--edit-format": "udiff",
        "--reasoning-effort": "low",
        "--timeout": "44",
    }.items():
        assert argv[argv.index(flag) + 1] == value
    assert Path(argv[-1]).is_absolute()
    assert KEY not in " ".join(argv)
    assert seen["settings"][0]["extra_params"] == {
        "temperature": 0.3,
        "api_base": "http://127.0.0.1:1/v1",
    }
    assert seen["stdin"] == "n\n" * 1000


def test_without_a_temperature_samples_differ(bed):
    it = bed("start(); edit(); reply('x')")
    it.write()
    assert it.call()["settings"][0]["extra_params"]["temperature"] == 1.0
    assert "--edit-format" not in it.call()["argv"]


def test_known_prices_are_told(bed):
    it = bed("start(); edit(); reply('x')", settings={"price_in": 2, "price_out": 8})
    it.write()
    facts = it.call()["metadata"]["openai/fake"]
    assert facts["input_cost_per_token"] == pytest.approx(2e-6)
    assert facts["output_cost_per_token"] == pytest.approx(8e-6)


def test_the_environment_holds_one_key(bed, monkeypatch):
    monkeypatch.setenv("AIDER_MODEL", "other")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    it = bed("start(); edit(); reply('x')")
    it.write()
    env = it.call()["env"]
    assert env["OPENAI_API_KEY"] == KEY
    assert not {"ANTHROPIC_API_KEY", "AIDER_MODEL", "PYTHONPATH"} & set(env)
    assert not [name for name in env if name.startswith("SPEEDKIT")]
    assert env["HOME"] != os.environ["HOME"]
    assert it.call()["home"] == []


def test_a_key_of_another_name_goes_under_the_usual_one(tmp_path):
    folder = AiderFolder(tmp_path)
    source = {"MY_KEY": "secret-1", "OPENAI_API_KEY": "secret-2", "OTHER": "x", "PATH": "/bin"}
    chosen = environment(
        LLMSettings(model="openai/m", api_key_env="MY_KEY"), folder, ("OTHER",), source
    )
    assert chosen["OPENAI_API_KEY"] == "secret-1"
    assert chosen["OTHER"] == "x"
    assert "MY_KEY" not in chosen
    assert "secret-2" not in chosen.values()


@pytest.mark.parametrize(
    ("model", "api_base", "name", "value"),
    [
        ("openai/m", "http://127.0.0.1:1/v1", "OPENAI_API_KEY", "none"),
        ("openai/m", None, "OPENAI_API_KEY", None),
        ("deepseek/m", None, "DEEPSEEK_API_KEY", "d"),
        ("claude-x", None, "ANTHROPIC_API_KEY", "a"),
        ("gemini/m", None, "GOOGLE_API_KEY", "g"),
    ],
)
def test_each_provider_gets_its_own_variables(tmp_path, model, api_base, name, value):
    source = {"DEEPSEEK_API_KEY": "d", "ANTHROPIC_API_KEY": "a", "GOOGLE_API_KEY": "g"}
    settings = LLMSettings(model=model, api_base=api_base)
    env = environment(settings, AiderFolder(tmp_path), (), source)
    assert env.get(name) == value
    assert set(source) & set(env) <= {name}


def test_the_folder_is_clean_and_outside_the_run(bed):
    it = bed("start(); edit(); reply('x')")
    it.write()
    seen = it.call()
    assert seen["work"] == [".git", "solve.py"]
    assert seen["text"] == OLD
    assert not Path(seen["cwd"]).exists()
    assert not Path(seen["cwd"]).is_relative_to(it.log_dir)


def test_the_prompt_has_the_task_but_neither_code_nor_another_format(bed):
    it = bed("start(); edit(); reply('x')")
    it.write(knowledge=(KnowledgeEntry("hints", "An idea", "use fewer steps"),))
    message = it.call()["message"]
    assert message[0].isalpha()
    assert "use fewer steps" in message
    assert "HYPOTHESIS:" in message
    assert "Task" in message
    assert LINE.strip() not in message
    assert "SEARCH" not in message
    assert "END OF EDITS" not in message


def test_the_prompt_can_be_seen_beforehand(bed):
    it = bed("start(); edit(); reply('x')")
    request = code_request(it.log_dir)
    system, (message,) = it.coder.prompt(request)
    it.coder.write(request)
    assert (system, message["role"]) == ("", "user")
    assert message["content"] == it.call()["message"]


def test_a_template_cannot_make_the_message_a_command(bed, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "system.j2").write_text("!touch /tmp/x")
    it = bed("start(); edit(); reply('x')", prompts=prompts)
    it.write()
    assert it.call()["message"][0] not in "/!"
    assert "!touch" in it.call()["message"]


def test_the_logs_are_kept_without_secrets(bed):
    it = bed(f"start(); edit(); reply('HYPOTHESIS: {KEY} helps'); note('{KEY}'); print('{KEY}');")
    draft = it.write()
    assert KEY not in draft.hypothesis
    names = sorted(path.name for path in it.log_dir.iterdir())
    assert names == [
        *("aider-001-chat.md", "aider-001-events.jsonl"),
        *("aider-001-llm.txt", "aider-001-output.txt"),
    ]
    texts = [path.read_text() for path in it.log_dir.iterdir()]
    assert all(texts)
    assert not any(KEY in text for text in texts)


def test_files_beside_the_editable_ones_are_ignored(bed):
    it = bed("start(); edit(); reply('x'); Path('extra.py').write_text('1'); os.mkdir('d')")
    assert set(it.write().files) == {"solve.py"}


def test_line_ends_survive(bed):
    it = bed("start(); edit(); reply('x')")  # a text file written anew has other line ends
    files = {"solve.py": OLD.replace("\n", "\r\n")}
    changed = it.write(files=files).files["solve.py"]
    assert changed == OLD.replace("= 100", "= 60").replace("\n", "\r\n")


def test_other_line_ends_alone_are_no_change(bed):
    it = bed("start(); reply('x'); FILES[0].write_text(FILES[0].read_text())")
    draft = it.write(files={"solve.py": OLD.replace("\n", "\r\n")})
    assert draft.failure == "edit: aider changed no file"


# --- failures ---------------------------------------------------------------------------


def test_exit_status_0_without_a_change_is_a_failure(bed):
    it = bed("start(); reply('HYPOTHESIS: I would rather talk')")
    draft = it.write()
    assert draft.failure == "edit: aider changed no file"
    assert draft.notes["failure"] == "edit"
    assert draft.files == {"solve.py": OLD}
    it.check_ledger()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("FILES[0].unlink()", "cannot be read"),
        ("FILES[0].unlink(); FILES[0].symlink_to('/etc/hosts')", "cannot be read"),
        ("os.link(FILES[0], 'other')", "no ordinary file"),
        ("FILES[0].unlink(); os.mkfifo(FILES[0])", "no ordinary file"),
        ("FILES[0].unlink(); FILES[0].mkdir()", "ordinary"),
        ("FILES[0].write_bytes(b'x = 1 # \\xff\\n')", "no UTF-8"),
        ("FILES[0].write_bytes(b'#' * 3_000_000)", "would grow over"),
    ],
)
def test_only_ordinary_text_files_are_read_back(bed, damage, words):
    draft = bed(f"start(); edit(); reply('x'); {damage}").write()
    assert draft.failure.startswith("edit: solve.py ")
    assert words in draft.failure


def test_edits_that_were_left_out_are_a_failure(bed):
    it = bed("start(); edit(); reply('x'); note('Only 3 reflections allowed, stopping.')")
    assert it.write().failure == "edit: not all edits of the answers could be applied"


def test_a_refused_key_ends_the_run(bed):
    it = bed(
        "start(); history('LLM RESPONSE', ''); note('litellm.AuthenticationError:"
        f" AuthenticationError: OpenAIException - Incorrect key: {KEY}')"
    )
    with pytest.raises(LLMRefused) as caught:
        it.write()
    assert str(caught.value) == (
        "openai/fake refuses the key in OPENAI_API_KEY: Incorrect key: [secret OPENAI_API_KEY]"
    )
    assert it.spent == [(0, 0, "refused")]
    it.check_ledger()


def test_an_unknown_model_ends_the_run(bed):
    it = bed("start(); note('litellm.NotFoundError: NotFoundError: no such thing')")
    with pytest.raises(LLMRefused, match="knows no model openai/fake: no such thing"):
        it.write()


def test_a_reply_that_quotes_a_refusal_ends_nothing(bed):
    it = bed("start(); reply('> litellm.AuthenticationError: ha\\n')")
    assert it.write().failure == "edit: aider changed no file"


def test_other_errors_fail_the_node(bed):
    it = bed(
        "start(); history('LLM RESPONSE', '');"
        "note('litellm.InternalServerError: InternalServerError: OpenAIException - overloaded')"
    )
    draft = it.write()
    assert draft.failure == "model: overloaded"
    assert it.spent == [(0, 0, "failed")]


def test_a_cut_answer_is_paid_for_and_not_used(bed):
    it = bed(
        "start(); history('LLM RESPONSE', spoken('word ' * 300));"
        "note('Model openai/fake has hit a token limit!')"
    )
    draft = it.write()
    assert "cut off" in draft.failure
    (call,) = it.calls
    assert call.estimated
    assert call.usage.output == pytest.approx(500, abs=20)
    assert call.usage.input > 0


def test_a_prompt_that_is_too_long_is_shortened(bed):
    it = bed(
        "start()\n"
        "if 'second idea' in seen['message']:\n"
        "    history('LLM RESPONSE', '')\n"
        "    event('message_send', main_model='openai/fake', prompt_tokens=900,"
        " completion_tokens=0, cost=0.0)\n"
        "    note('Model openai/fake has hit a token limit!')\n"
        "else:\n"
        "    edit(); reply('HYPOTHESIS: short')\n"
    )
    entries = [KnowledgeEntry("k", t, t) for t in ("first idea", "second idea")]
    draft = it.write(knowledge=entries)
    assert draft.failure == ""
    assert it.spent == [(0, 0, "overflow"), (100, 10, "ok")]
    it.check_ledger()


def test_a_prompt_that_never_fits_is_a_failure_of_its_own(bed):
    it = bed(
        "start(); history('LLM RESPONSE', '');"
        "event('message_send', prompt_tokens=9, completion_tokens=0);"
        "note('Model openai/fake has hit a token limit!')"
    )
    draft = it.write()
    assert draft.notes["failure"] == "context"


def test_a_program_that_is_no_aider_ends_the_run(bed):
    it = bed("print('aider: error: unrecognized arguments: --frobnicate'); sys.exit(2)")
    with pytest.raises(PluginError, match=r"sent no request \(exit status 2\): aider: error: unr"):
        it.write()
    it.check_ledger()


def test_a_program_that_cannot_be_started_ends_the_run(bed, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    it = bed(executable=broken)
    with pytest.raises((PluginError, OSError)):
        it.write()
    it.check_ledger()


# --- repairs ----------------------------------------------------------------------------


BREAK_THEN_MEND = """
start()
if CALL == 1:
    edit(new="= (60")
    reply("HYPOTHESIS: fewer")
else:
    edit(old="= (60", new="= 60")
    reply("mended")
"""


def test_python_that_does_not_parse_goes_back(bed):
    it = bed(BREAK_THEN_MEND)
    draft = it.write()
    assert draft.failure == ""
    assert draft.files["solve.py"] == OLD.replace("= 100", "= 60")
    assert draft.hypothesis == "fewer"
    assert draft.notes["rounds"] == 2
    assert "no valid Python" in draft.notes["edit_errors"][0]
    assert "no valid Python" in it.call(2)["message"]
    assert "= (60" in it.call(2)["text"]
    assert [c.purpose for c in it.calls] == ["code", "repair"]
    assert (it.log_dir / "aider-002-chat.md").is_file()
    it.check_ledger()


@pytest.mark.parametrize("repairs", [0, 2])
def test_repairs_come_to_an_end(bed, repairs):
    it = bed("start(); edit(new='= (60'); reply('x')", repairs=repairs)
    draft = it.write()
    assert draft.failure.startswith("edit: the change cannot be used: solve.py would be no valid")
    assert draft.notes["rounds"] == 1 + repairs


def test_a_repair_that_takes_the_change_back_is_no_success(bed):
    it = bed(
        "start(); edit(*(('= 100', '= (60') if CALL == 1 else ('= (60', '= 100'))); reply('x')",
        repairs=1,
    )
    assert "as they were before" in it.write().failure


# --- time -------------------------------------------------------------------------------

LINGER = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
(HERE / "pids").write_text(f"{os.getpid()} {child.pid}")
start()
time.sleep(600)
"""


def wait_until(condition, limit_s=20):
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pids(folder):
    return [int(word) for word in (folder / "pids").read_text().split()]


def test_a_hang_is_ended_with_all_its_processes(bed, tmp_path):
    it = bed(LINGER, timeout_s=2)
    began = time.monotonic()
    draft = it.write()
    assert draft.failure == "model: aider was ended after 2 s"
    assert time.monotonic() - began < 12
    assert all(wait_until(lambda p=pid: gone(p), 5) for pid in pids(tmp_path))
    (call,) = it.calls
    assert call.estimated
    assert call.status == "stopped"
    assert call.usage.input > 0
    it.check_ledger()


def test_stop_ends_aider(bed, tmp_path):
    it = bed(LINGER)
    caught = []

    def write():
        try:
            it.write()
        except LLMStopped as error:
            caught.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert wait_until((tmp_path / "pids").exists)
    it.llm.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert len(caught) == 1
    assert all(wait_until(lambda p=pid: gone(p), 5) for pid in pids(tmp_path))
    it.check_ledger()


WAIT_FOR_IT = """
import sys
from pathlib import Path
from speedkit.plugins.coders._aider_process import run_process
folder = Path(sys.argv[1])
run_process([str(folder / "program")], env={}, folder=folder, answers=Path("/dev/null"),
            output=folder / "out", timeout_s=600, tick=lambda: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a feature of Linux")
def test_aider_does_not_outlive_a_killed_controller(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho $$ > pids\nexec sleep 600\n")
    program.chmod(0o755)
    controller = subprocess.Popen([sys.executable, "-c", WAIT_FOR_IT, str(tmp_path)])
    try:
        written = tmp_path / "pids"
        assert wait_until(lambda: written.exists() and written.read_text().endswith("\n"))
        (pid,) = pids(tmp_path)
        assert not gone(pid)
    finally:
        controller.send_signal(signal.SIGKILL)
        controller.wait()
    assert wait_until(lambda: gone(pid), 5)


# --- what it costs ----------------------------------------------------------------------


def test_every_reply_is_a_call_of_the_ledger(bed):
    it = bed(
        "start(); reply('first', 100, 10, 0.5); start(); reply('second', 200, 20, 0.25);"
        "start(); edit(); reply('third', 300, 30, 0.125)"
    )
    it.write()
    assert it.spent == [(100, 10, "ok"), (200, 20, "ok"), (300, 30, "ok")]
    assert [c.cost for c in it.calls] == [0.5, 0.25, 0.125]
    totals = it.llm.ledger.totals
    assert totals.calls == 3
    assert totals.usage == Usage(600, 0, 60)
    assert totals.cost == pytest.approx(0.875)
    it.check_ledger()


def test_an_unknown_price_stays_unknown(bed):
    it = bed("start(); edit(); reply('x', cost=0.0)")
    it.write()
    assert it.calls[0].cost is None
    assert it.llm.ledger.totals.cost is None


def test_prices_of_the_settings_come_first(bed):
    it = bed(
        "start(); edit(); reply('x', 1000, 100, cost=9.0)",
        settings={"price_in": 1, "price_out": 10},
    )
    it.write()
    assert it.calls[0].cost == pytest.approx(0.002)


def test_tokens_that_nobody_counted_are_estimated(bed):
    it = bed("start(); edit(); reply('word ' * 60, 0, 0)")
    it.write()
    (call,) = it.calls
    assert call.estimated
    assert call.usage.output == pytest.approx(100, abs=5)
    assert call.usage.input > 1000


def test_a_reached_limit_lets_nothing_start(bed):
    it = bed("start(); edit(); reply('x', 100, 10)", settings={"max_tokens": 110})
    assert it.write().failure == ""
    with pytest.raises(BudgetReached):
        it.write()
    assert not (it.folder / "call-2.json").exists()
    it.check_ledger()


def test_a_limit_reached_under_way_ends_aider(bed):
    it = bed(
        "start(); reply('no edit', 100, 10); start(); time.sleep(600)",
        settings={"max_tokens": 110},
    )
    with pytest.raises(BudgetReached):
        it.write()
    assert it.spent[0] == (100, 10, "ok")
    assert it.calls[-1].status == "stopped"
    it.check_ledger()


def test_a_paid_change_is_kept_when_it_reaches_the_limit(bed):
    it = bed("start(); reply('x', 100, 10); time.sleep(0.8); edit()", settings={"max_tokens": 110})
    assert it.write().failure == ""


def test_replies_cannot_be_replayed(bed, tmp_path):
    (tmp_path / "cache.db").touch()
    it = bed("start()", settings={"cache": tmp_path / "cache.db", "cache_mode": "replay"})
    with pytest.raises(UsageError, match="cannot replay"):
        it.write()


# --- logs -------------------------------------------------------------------------------


def test_events_leave_out_what_is_unfinished_or_garbage():
    line = json.dumps({"event": "message_send_starting", "properties": {}})
    facts = {"main_model": "x/REDACTED", "prompt_tokens": float("inf"), "cost": "1"}
    sent = json.dumps({"event": "message_send", "properties": facts})
    events = Events.parse(f"{line}\nnull\n[1]\n{{broken\n{sent}\n{line}")
    assert events.starts == 1
    assert (events.sent[0].model, events.sent[0].input, events.sent[0].cost) == (None, 0, 0.0)


def test_a_prompt_cannot_pass_for_a_reply():
    text = (
        "TO LLM 2030-01-02T03:04:05\n-------\nUSER LLM RESPONSE 2030-01-02T03:04:05\n"
        "USER ASSISTANT fake\nLLM RESPONSE 2030-01-02T03:04:06\nASSISTANT a\nASSISTANT \n"
        "ASSISTANT   b\nLLM RESPONSE 2030-01-02T03:04:07\nASSISTANT \n"
    )
    assert Talk.parse(text).replies == ("a\n\n  b", "")


def test_trouble_is_what_aider_itself_says():
    assert Trouble.parse("litellm.AuthenticationError: no\n") == Trouble("", "", False, False)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (["HYPOTHESIS: a", "HYPOTHESIS: b", "ok"], "b"),
        (["I cut the steps. Then more.\n\nsolve.py\n```\nx\n```"], "I cut the steps."),
        (["solve.py\n```\nx\n```", "Sorry! Now it is right."], "Sorry!"),
        (["word " * 1000], ("word " * 60).strip()),
        ([], MISSING),
    ],
)
def test_the_hypothesis_is_marked_or_the_first_sentence(replies, expected):
    assert hypothesis_of(replies, {"solve.py": ""}).strip() == expected


# --- the environment of aider -----------------------------------------------------------


def test_no_aider_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="speedkit aider install"):
        aider_environment.find()
    with pytest.raises(UsageError, match=r"correct coder\.executable"):
        aider_environment.find(str(tmp_path / "nothing"))


def program(path, text="#!/bin/sh\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_option_before_installed_before_path(monkeypatch, tmp_path):
    common = program(tmp_path / "bin" / "aider")
    monkeypatch.setenv("PATH", str(common.parent))
    assert aider_environment.find() == aider_environment.Found(common, "PATH")
    folder = aider_environment.environment_dir()
    own = program(folder / "bin" / "aider")
    assert aider_environment.find().source == "PATH"  # without a stamp it is unfinished
    (folder / "complete.json").write_text(json.dumps({"folder": str(folder)}))
    assert aider_environment.find() == aider_environment.Found(own, "installed")
    other = program(tmp_path / "other")
    assert aider_environment.find(str(other)) == aider_environment.Found(other, "option")


def test_a_moved_environment_does_not_count():
    folder = aider_environment.environment_dir()
    program(folder / "bin" / "aider")
    (folder / "complete.json").write_text(json.dumps({"folder": "/elsewhere"}))
    assert aider_environment.installed() is None


def test_unfit_interpreters_are_named(tmp_path):
    old = program(tmp_path / "old", "#!/bin/sh\necho 3 9\n")
    with pytest.raises(UsageError, match=r"needs Python 3.10 to 3.12, but .*old is 3.9"):
        aider_environment.choose_python(str(old))
    with pytest.raises(UsageError, match="no Python interpreter"):
        aider_environment.choose_python(str(tmp_path / "none"))


def test_an_interpreter_is_looked_for(monkeypatch, tmp_path):
    program(tmp_path / "python3.12", "#!/bin/sh\nexit 1\n")
    fit = program(tmp_path / "python3.10", "#!/bin/sh\necho 3 10\n")
    new = program(tmp_path / "new", "#!/bin/sh\necho 3 14\n")
    monkeypatch.setattr(sys, "executable", str(new))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert aider_environment.choose_python() == str(fit)
    fit.unlink()
    with pytest.raises(UsageError, match="name another one with --python"):
        aider_environment.choose_python()


FAKE_PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *version_info*) echo 3 11;;
  *"-m venv"*) for last; do :; done
     mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; : > "$last/begun";;
  *"-m pip"*) {pip}; here=$(dirname "$0"); : > "$here/aider"; chmod 755 "$here/aider";;
esac
"""


def test_an_installation_is_made_once_and_to_its_end(tmp_path):
    log = tmp_path / "log"
    python = str(program(tmp_path / "py", FAKE_PYTHON.format(log=log, pip=":")))
    own = aider_environment.install(python)
    assert own == aider_environment.installed()
    assert f"install --no-input aider-chat=={aider_environment.VERSION}" in log.read_text()
    before = log.read_text()
    assert aider_environment.install(python) == own
    assert log.read_text() == before


def test_a_broken_installation_is_told_and_made_anew(tmp_path):
    pip = "echo 'ERROR: no network'; exit 1"
    bad = str(program(tmp_path / "bad", FAKE_PYTHON.format(log=tmp_path / "log", pip=pip)))
    with pytest.raises(Exception, match="cannot be made: ERROR: no network"):
        aider_environment.install(bad)
    assert aider_environment.installed() is None
    left = aider_environment.environment_dir() / "left over"
    left.write_text("")
    good = str(program(tmp_path / "good", FAKE_PYTHON.format(log=tmp_path / "log", pip=":")))
    assert aider_environment.install(good).is_file()
    assert not left.exists()


def test_the_installer_sees_no_key(tmp_path, monkeypatch):
    dump = f"env > {tmp_path / 'env'}"
    python = str(program(tmp_path / "py", FAKE_PYTHON.format(log=tmp_path / "log", pip=dump)))
    aider_environment.install(python)
    assert KEY not in (tmp_path / "env").read_text()


def test_status_and_install_on_the_command_line(monkeypatch, tmp_path):
    from click.testing import CliRunner

    from speedkit.cli.aider import command

    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    status = CliRunner().invoke(command, ["status", "--json"])
    assert json.loads(status.stdout) == {
        "pinned": aider_environment.VERSION,
        "executable": None,
        "source": None,
    }
    assert "speedkit aider install" in CliRunner().invoke(command, ["status"]).output
    python = program(tmp_path / "py", FAKE_PYTHON.format(log=tmp_path / "log", pip=":"))
    done = CliRunner().invoke(command, ["install", "--python", str(python)])
    assert done.exit_code == 0
    assert "is ready" in done.output
    assert "is there" in CliRunner().invoke(command, ["install"]).output
    found = json.loads(CliRunner().invoke(command, ["status", "--json"]).stdout)
    assert found["source"] == "installed"


# --- the real aider ---------------------------------------------------------------------


NEW_LINE = LINE.replace("100", "60")


def block(old=LINE, new=NEW_LINE, name="solve.py"):
    return f"{name}\n```python\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n"


EDIT = f"HYPOTHESIS: fewer steps suffice.\n\n{block()}"


class RealBed(Bed):
    """A coder with the real aider and a scripted server."""

    def __init__(self, tmp_path, script, *, settings=None, **options):
        self.server = FakeOpenAI(script)
        given = {"api_base": self.server.url, **(settings or {})}
        options = {"edit_format": "diff", **options}
        super().__init__(tmp_path, executable=REAL, settings=given, **options)

    def write(self, **fields):
        with self.server:
            return super().write(**fields)

    def check_counts(self):
        """See that the ledger has what the server counted."""
        counts = [usage(self.server.step(r), r) for r in self.server.requests]
        assert [(c.usage.input, c.usage.output) for c in self.calls] == [
            (c["prompt_tokens"], c["completion_tokens"]) for c in counts
        ]
        self.check_ledger()


@pytest.fixture
def real(tmp_path):
    """Return a function that runs the real aider against a script of answers."""
    return functools.partial(RealBed, tmp_path)


class Real:
    """Tests of the real program; each is a process of some seconds."""

    pytestmark = needs_aider


class TestRealAider(Real):
    def test_an_edit_its_hypothesis_and_its_cost(self, real):
        it = real([EDIT], settings={"price_in": 1, "price_out": 5, "temperature": 0.4})
        draft = it.write(knowledge=(KnowledgeEntry("hints", "An idea", "use fewer steps"),))
        assert draft.failure == ""
        assert draft.files == {"solve.py": OLD.replace("= 100", "= 60")}
        assert draft.hypothesis == "fewer steps suffice."
        assert draft.model == "openai/fake"
        assert draft.notes["edit_format"] == "diff"
        it.check_counts()
        assert it.calls[0].cost == pytest.approx(
            (it.calls[0].usage.input + 5 * it.calls[0].usage.output) / 1e6
        )
        (request,) = it.server.requests
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.body["temperature"] == 0.4
        assert "use fewer steps" in request.prompt
        assert request.prompt.count(LINE) == 1
        assert KEY not in "".join(p.read_text() for p in it.log_dir.iterdir())

    def test_reflections_of_its_own_are_counted_one_by_one(self, real):
        it = real([block(old="no such line\n"), EDIT])
        assert it.write().failure == ""
        assert len(it.calls) == 2
        it.check_counts()

    def test_edits_that_never_apply(self, real):
        it = real([block() + block(old="no such line\n")])
        draft = it.write()
        assert draft.failure == "edit: not all edits of the answers could be applied"
        assert len(it.server.requests) == 4
        it.check_counts()

    @pytest.mark.parametrize("text", ["I would rather talk.", ""])
    def test_no_edit_in_spite_of_exit_status_0(self, real, text):
        it = real([say(text)])
        assert it.write().failure == "edit: aider changed no file"
        it.check_counts()

    def test_broken_python_goes_back(self, real):
        broken = LINE.replace("100", "(60")
        it = real([f"HYPOTHESIS: fewer\n\n{block(new=broken)}", block(old=broken)])
        draft = it.write()
        assert draft.failure == ""
        assert draft.files["solve.py"] == OLD.replace("= 100", "= 60")
        assert draft.hypothesis == "fewer"
        it.check_counts()

    def test_the_whole_format(self, real):
        text = OLD.replace("= 100", "= 60")
        it = real([f"HYPOTHESIS: fewer\n\nsolve.py\n```python\n{text}```\n"], edit_format="whole")
        assert it.write().files["solve.py"] == text

    def test_it_writes_no_file_that_a_reply_asks_for(self, real, tmp_path):
        outside, victim = tmp_path / "outside.txt", tmp_path / "victim.py"
        victim.write_text("a = 1\n")
        asked = (
            block(old="", new="hello\n", name=str(outside)),
            block(old="a = 1\n", new="a = 2\n", name=str(victim)),
            block(old="", new="hello\n", name="../../up.txt"),
            block(old="", new="x = 1\n", name="extra.py"),
            f"```bash\ntouch {tmp_path}/shell\n```\n",
        )
        draft = real([EDIT + "\n".join(asked)]).write()
        assert set(draft.files) == {"solve.py"}
        assert draft.failure == ""
        assert not outside.exists()
        assert victim.read_text() == "a = 1\n"
        assert not (tmp_path / "shell").exists()

    def test_dot_files_around_and_above_are_not_read(self, real, tmp_path, monkeypatch):
        other = FakeOpenAI([EDIT])
        trap = tmp_path / "repo"
        (trap / "tmp").mkdir(parents=True)
        subprocess.run(["git", "init", "-q", str(trap)], check=True)
        for folder in (trap, trap / "tmp"):
            (folder / ".env").write_text(f"OPENAI_API_BASE={other.url}\nOPENAI_API_KEY=wrong\n")
            (folder / ".aider.conf.yml").write_text("model: openai/wrong\nmessage: wrong\n")
        monkeypatch.setenv("HOME", str(trap))
        monkeypatch.setenv("TMPDIR", str(trap / "tmp"))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.chdir(trap)
        it = real([EDIT])
        with other:
            assert it.write().failure == ""
        assert other.requests == []
        assert it.server.requests[0].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize("model", ["openai/llama-3-70b", "openai/gpt-4.1"])
    def test_nobody_but_the_model_is_asked(self, real, monkeypatch, model):
        with socket.socket() as proxy:
            proxy.bind(("127.0.0.1", 0))
            proxy.listen()
            proxy.settimeout(0.2)
            address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
                monkeypatch.setenv(name, address)
            assert real([EDIT], settings={"model": model}).write().failure == ""
            with pytest.raises(TimeoutError):
                proxy.accept()

    def test_a_refused_key_ends_the_run(self, real):
        it = real([fail(401, f"Incorrect API key: {KEY}, see https://example.com/keys", "bad")])
        with pytest.raises(LLMRefused, match="refuses the key in OPENAI_API_KEY") as caught:
            it.write()
        assert KEY not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert len(it.server.requests) == 1
        assert KEY not in "".join(p.read_text() for p in it.log_dir.iterdir())
        it.check_ledger()

    def test_an_unknown_model_ends_the_run(self, real):
        with pytest.raises(LLMRefused, match="knows no model openai/fake"):
            real([fail(404, "no such model", "model_not_found")]).write()

    def test_another_refusal_fails_the_node(self, real):
        assert real([fail(400, "bad thing")]).write().failure == "model: bad thing"

    def test_an_overload_is_waited_for(self, real):
        it = real([fail(500), EDIT])
        assert it.write().failure == ""
        assert it.spent[-1][2] == "ok"

    def test_a_cut_answer_is_not_used(self, real):
        it = real([say(EDIT, finish_reason="length")])
        draft = it.write()
        assert draft.files == {"solve.py": OLD}
        assert "cut off" in draft.failure
        (call,) = it.calls
        assert call.estimated
        assert call.usage.total > 1000

    def test_a_prompt_that_is_too_long_is_shortened(self, real):
        def script(request):
            long = "second idea" in request.prompt
            words = "This model's maximum context length is 10 tokens"
            return fail(400, words, "context_length_exceeded") if long else EDIT

        it = real(script)
        entries = [KnowledgeEntry("k", t, t) for t in ("first idea", "second idea")]
        assert it.write(knowledge=entries).failure == ""
        assert it.spent[0] == (0, 0, "overflow")

    def test_a_server_that_does_not_count(self, real):
        it = real([say(EDIT, usage=None)])
        assert it.write().failure == ""
        assert it.calls[0].estimated
        assert it.calls[0].usage.total > 1000

    def test_a_server_that_hangs(self, real):
        it = real([fault(HANG)], timeout_s=25)
        assert it.write().failure == "model: aider was ended after 25 s"
        assert it.server.requests
        assert it.calls[0].status == "stopped"

    def test_a_limit_reached_under_way(self, real):
        wrong = block(old="no such line\n")
        it = real(
            lambda request: say(wrong, latency_s=0 if request.index == 0 else 60),
            settings={"max_tokens": 100},
        )
        with pytest.raises(BudgetReached):
            it.write()
        assert len(it.server.requests) <= 2
        it.check_ledger()

    def test_a_template_is_no_command(self, real, tmp_path):
        prompts = tmp_path / "prompts"
        prompts.mkdir()
        (prompts / "system.j2").write_text(f"!touch {tmp_path}/shell\n/exit\n")
        assert real([EDIT], prompts=prompts).write().failure == ""
        assert not (tmp_path / "shell").exists()
