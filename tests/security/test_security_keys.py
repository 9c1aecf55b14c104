"""A key that a model says, a script prints and a file holds is in nothing that a run leaves."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import textwrap

import pytest

from speedkit.core.redact import Redactor
from speedkit.core.task import find_family
from tests.conftest import TESTS, TOY
from tests.e2e.test_models import STEPS
from tests.kit.fake_openai import say
from tests.security.provider_keys import forms, found_in, made_up_keys

OWN = "LAB_ACCESS"
"""The variable with the model's key; its name tells nobody that."""
DIGEST = hashlib.sha256(b"a golden value").hexdigest()
GOLDEN = (
    f"sha256 {DIGEST}",
    "commit c0ffee1234567890c0ffee1234567890c0ffee12",
    "id 550e8400-e29b-41d4-a716-446655440000",
    "tokens_per_second=524288 secret_sauce=key[:, None] https://example.org:8080/a@b",
)
"""Lines of a log that look a little like secrets and are none."""


CRASH = """
if crash:
    print("step:1/1 val_loss:" + said[0] + " train_time:1ms")
    raise ValueError(said)
"""


@pytest.fixture
def keys(monkeypatch):
    """Put a made-up key of each provider into the environment."""
    made = {**made_up_keys(), OWN: "".join(reversed(made_up_keys(1)["COHERE_API_KEY"]))}
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def family(tmp_path, keys):
    """Return the toy family with scripts that print every form of every key.

    The keys stand in the scripts backwards, as a script that means harm would hide them.
    """
    folder = tmp_path / "family"
    (folder / "scripts").mkdir(parents=True)
    (folder / "family.toml").write_text((TOY / "family.toml").read_text())
    said = [spelling for key in keys.values() for spelling in forms(key).values()]
    spy = f"""
        import os, sys, pathlib
        said = [text[::-1] for text in {[text[::-1] for text in said]!r}]
        everything = " ".join(os.environ.values())
        print("keys in the environment:", sum(text in everything for text in said))
        print(*{list(GOLDEN)!r}, sep="\\n")
        print(*said, sep="\\n")
        print("first", *said, file=sys.stderr)
        """
    for name in ("slow", "fast"):
        script = (TOY / "scripts" / f"{name}.py").read_text()
        text = textwrap.dedent(spy) + script + CRASH
        text = text.replace("args = Hyper", "crash = False\nargs = Hyper")
        (folder / "scripts" / f"{name}.py").write_text(text)
    return folder


def talkative(keys):
    """Return answers in which the model says all that it should not know."""
    said = " ".join(spelling for key in keys.values() for spelling in forms(key).values())
    short = " ".join(keys.values())
    noted = said.replace("\\", "").replace('"', "")
    drafts = itertools.count()

    def answer(request):
        text = request.body["messages"][-1]["content"]
        found = STEPS.findall(text)
        more = {"model": f"fake {short}", "message": {"reasoning_content": said}}
        if "SEARCH" not in text or not found:
            return say(f"It ran. {said}", **more)
        old = int(found[-1])
        crash = bool(next(drafts) % 2)
        return say(
            f"HYPOTHESIS: use {short}\n\nsolve.py\n```python\n<<<<<<< SEARCH\n"
            f"    num_iterations: int = {old}\n=======\n"
            f"    num_iterations: int = {old - 2}\n    note: str = '''{noted}'''\n"
            f">>>>>>> REPLACE\n```\n\nsolve.py\n```python\n<<<<<<< SEARCH\ncrash = False\n"
            f"=======\ncrash = {crash}  # {noted}\n>>>>>>> REPLACE\n```\n\nEND OF EDITS\n",
            **more,
        )

    return answer


def everything_below(path):
    """Return the bytes of all files below a folder, objects of git unpacked."""
    data = b"\n".join(p.read_bytes() for p in path.rglob("*") if p.is_file())
    for repo in path.rglob("repo"):
        command = ["git", "-C", str(repo), "cat-file", "--batch-all-objects", "--batch"]
        data += subprocess.run(command, capture_output=True, check=True).stdout
    return data


def test_no_form_of_any_key_is_left_by_a_run(program, family, keys, fake_openai, tmp_path):
    server = fake_openai(talkative(keys))
    notes = tmp_path / "notes.md"
    notes.write_text("\n".join(spelling for k in keys.values() for spelling in forms(k).values()))
    out, replies = tmp_path / "out", tmp_path / "out" / "replies.sqlite"
    out.mkdir()
    settings = ["--coder", "llm", "--summarizer", "llm", "--model", "openai/fake"]
    settings += ["--api-base", server.url, "--knowledge", "files", "--guards", "none"]
    settings += ["-o", f"knowledge.paths={notes}", "-o", f"llm.api_key_env={OWN}"]
    settings += ["--nodes", 2, "--scaffold", "flat", "--calibration-runs", 1]
    plan = program("run", f"{family}/1", *settings, "--dry-run")
    asked = program("prompts", "--task", f"{family}/1", *settings)
    run = out / "run"
    settings += ["--llm-cache", replies, "--out", run]
    done = program("run", f"{family}/1", *settings, "--display", "plain")
    assert done.code == 0, done.err
    shown = [program("show", run, node, "--json") for node in (0, 1, 2)]
    outcomes = {one.json["outcome"] for one in shown[1:]}
    assert outcomes == {"valid", "buggy"}
    said = [plan, asked, done, *shown]
    for command in ("show", "log", "diff", "results"):
        said.append(program(command, run, *(["1"] if command == "diff" else ())))
    said += [program("show", run, "--json"), program("log", run, "--json"), program("show", run, 2)]
    said += [program("results", run, form) for form in ("--csv", "--json", "--markdown")]
    said += [program("judge", run, 1), program("judge", run, 1, "--json")]
    said.append(program("report", run, "--out", out / "report.html"))
    assert [one.code for one in said] == [0] * len(said)
    for one in said:
        assert found_in(one.out + one.err, keys) == []
    for request in server.requests:
        assert found_in(request.prompt, keys) == []
    assert request.headers["authorization"] == f"Bearer {keys[OWN]}"
    left = everything_below(out)
    assert found_in(left, keys) == []
    assert b"[secret OPENAI_API_KEY]" in left
    assert b"[secret LAB_ACCESS]" in left
    valid = next(one.json["id"] for one in shown[1:] if one.json["outcome"] == "valid")
    check_log((run / f"nodes/{valid:04d}/rank0.stdout.log").read_text())


def check_log(log):
    """The log says that the job had no key, and what is no secret is as it was printed."""
    assert "keys in the environment: 0\n" in log
    assert "\n".join(GOLDEN) in log
    assert "\nstep:98/98 val_loss:0.7041 train_time:9898ms\n" in log


def test_nothing_that_is_no_secret_is_touched(keys):
    redactor = Redactor.from_environment()
    texts = [p for p in TESTS.parent.joinpath("speedkit").rglob("*") if p.suffix in TEXTS]
    assert len(texts) > 200
    changed = [str(p) for p in texts if redactor.clean(p.read_bytes()) != p.read_bytes()]
    assert changed == []
    records = [r.read() for r in find_family("mini").records]
    assert [redactor.clean(text) for text in records] == records


TEXTS = (".py", ".md", ".toml", ".j2", ".css", ".js")


@pytest.mark.parametrize("name", made_up_keys())
def test_a_key_goes_in_every_form(name):
    key = made_up_keys(2)[name]
    redactor = Redactor({name: key})
    for form, spelling in forms(key).items():
        for text in (f"<{spelling}>", f'{{"a": "x{spelling}y"}}'):
            assert found_in(redactor.clean(text), {name: key}) == [], form
            assert found_in(redactor.clean(text.encode()), {name: key}) == [], form


SHAPED = ("OPENAI", "ANTHROPIC", "GEMINI", "GROQ", "XAI", "DEEPSEEK", "OPENROUTER", "HF_TOKEN")


@pytest.mark.parametrize("name", [n for n in made_up_keys() if n.startswith(SHAPED)])
def test_a_key_that_nobody_told_us_of_goes_by_its_shape(name):
    key = made_up_keys(3)[name]
    assert key not in Redactor().clean(f"the key is {key}.")


# --- keys in settings -----------------------------------------------------------------------


def wrong_settings():
    """Return settings that hold a key: what is added to the command, and to the environment."""
    key = made_up_keys(4)
    return {
        "address with a password": (["--api-base", f"http://me:{key['AZURE_API_KEY']}@h/v1"], {}),
        "address with a token": (["--api-base", f"http://{key['AZURE_API_KEY']}@h/v1"], {}),
        "the key for its name": (["-o", f"llm.api_key_env={key['OPENAI_API_KEY']}"], {}),
        "an option of that name": ([], {"SPEEDKIT_LLM_API_KEY": key["MISTRAL_API_KEY"]}),
        "a known value": (
            ["-o", f"knowledge.paths={key['COHERE_API_KEY']}", "--knowledge", "files"],
            {"SOME_TOKEN": key["COHERE_API_KEY"]},
        ),
    }


@pytest.mark.parametrize("case", wrong_settings())
def test_a_key_among_the_settings_is_refused_and_not_stored(program, tmp_path, monkeypatch, case):
    flags, variables = wrong_settings()[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    done = program("run", f"{TOY}/1", "--model", "openai/fake", *flags, "--out", out)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "environment variable" in done.err
    assert found_in(done.out + done.err, made_up_keys(4)) == []
    assert not out.exists()


def test_the_name_of_a_variable_is_no_secret(program, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDKIT_LLM_API_KEY_ENV", "OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", made_up_keys(5)["OPENAI_API_KEY"])
    shown = program("config", "show")
    assert shown.code == 0, shown.err
    assert "OPENAI_API_KEY" in shown.out
    assert Redactor.from_environment().clean("set OPENAI_API_KEY") == "set OPENAI_API_KEY"


def test_a_start_script_with_a_key_is_refused(program, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(f"key = '{made_up_keys(6)['GROQ_API_KEY']}'\n")
    out = tmp_path / "run"
    done = program("run", f"{TOY}/1", "--start", script, "--out", out)
    assert (done.code, out.exists()) == (2, False)
    assert found_in(done.err, made_up_keys(6)) == []


# --- files that a job leaves ----------------------------------------------------------------


def test_logs_are_cleaned_and_nothing_else_is_touched(tmp_path):
    key = made_up_keys(7)["COHERE_API_KEY"]
    folder, outside = tmp_path / "logs", tmp_path / "outside.log"
    (folder / "below").mkdir(parents=True)
    outside.write_text(key)
    (folder / "rank0.stdout.log").write_bytes(b"\xff\x00 " + key.encode() + b"\nlast")
    (folder / "rank0.stdout.log").chmod(0o640)
    (folder / "below" / "model.pt").write_text(key)
    (folder / "link.log").symlink_to(outside)
    whole = folder / "below" / "whole.log"
    whole.write_text("step:1/2 val_loss:3.0000 train_time:5ms\n")
    before = whole.stat()
    Redactor({"KEY": key}).clean_files(folder, spare=("model.pt",))
    assert (folder / "rank0.stdout.log").read_bytes() == b"\xff\x00 [secret KEY]\nlast"
    assert (folder / "rank0.stdout.log").stat().st_mode & 0o777 == 0o640
    assert (folder / "below" / "model.pt").read_text() == key
    assert outside.read_text() == key
    assert (whole.stat().st_ino, whole.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(p.name for p in folder.iterdir()) == ["below", "link.log", "rank0.stdout.log"]


def test_a_key_across_the_parts_of_a_large_log_goes(tmp_path, monkeypatch):
    from speedkit.core import redact

    key = made_up_keys(8)["MISTRAL_API_KEY"]
    monkeypatch.setattr(redact, "CHUNK", 64)
    log = tmp_path / "rank0.stdout.log"
    for before in range(40, 70):
        log.write_text("x" * before + key + "\n" + "y" * 300)
        Redactor({"KEY": key}).clean_files(tmp_path)
        assert log.read_text() == "x" * before + "[secret KEY]\n" + "y" * 300
