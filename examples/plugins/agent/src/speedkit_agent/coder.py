"""The coder ``agent``: any command-line coding agent, in a clean folder."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

import speedkit
from speedkit import CodeRequest, Draft, Services
from speedkit_agent import sandbox
from speedkit_agent.process import run
from speedkit_agent.prompt import HYPOTHESIS, write_prompt

ALLOWED = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Environment variables that every agent may see."""
MAX_FILE = 2 * 1024 * 1024
"""Bytes of a file that an agent may write."""
PROMPT = "{prompt}"
"""What stands for the prompt in the command; without it, the prompt is the standard input."""


class AgentOptions(speedkit.Options):
    """Options of the coder."""

    command: str = Field(
        min_length=1,
        description="the agent and its arguments, as a shell would take them; {prompt} stands for "
        "the prompt, which otherwise is its standard input",
    )
    pass_env: tuple[str, ...] = Field(
        (), description="names of variables that the agent needs, the key of its provider above all"
    )
    sandbox: Literal["auto", "bwrap", "none"] = Field(
        "auto", description="keep the agent apart by bubblewrap: where it works, always, or never"
    )
    readable: tuple[Path, ...] = Field(
        (), description="folders that the agent needs to read in the sandbox, which hides your home"
    )
    timeout_s: float = Field(1800, gt=0, description="seconds after which the agent is ended")
    max_output_mb: float = Field(16, gt=0, description="an agent that prints more MB is ended")
    history: int = Field(10, ge=1, description="earlier attempts that the prompt tells of")

    @field_validator("command")
    @classmethod
    def _is_a_command(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("must name a program")
        return value


class AgentCoder(speedkit.Coder):
    """Starts the agent in a folder that holds the editable files and nothing else.

    Home and temporary folder are new and empty, the environment is an allow-list, and at the
    end no process of the agent is left. In the sandbox the rest of the machine can only be
    read, and the user's home, the runs and the records of the family are hidden. What the
    agent says of itself does not matter: it has succeeded if a file has changed.
    """

    Options = AgentOptions
    options: AgentOptions

    def bind(self, services: Services) -> None:
        """Receive the services, and look for program and sandbox before the run starts."""
        super().bind(services)
        program = shlex.split(self.options.command)[0]
        path = shutil.which(program)
        if path is None:
            raise speedkit.UsageError(f"coder agent: there is no program {program!r}; install it")
        family = services.task.family
        self._hidden = (Path(family.root), Path(family.script_root))
        self._is_enclosed = self._choose()
        if self._is_enclosed and sandbox.is_hidden(Path(path), self._hidden, self.options.readable):
            raise speedkit.UsageError(
                f"coder agent: {path} stands in a folder that the sandbox hides; name what it "
                "needs in coder.readable, or set coder.sandbox=none"
            )

    def _choose(self) -> bool:
        """Whether the agent runs in a sandbox."""
        wanted = self.options.sandbox
        reason = "" if wanted == "none" else sandbox.why_not()
        if reason and wanted == "bwrap":
            raise speedkit.UsageError(f"coder agent: no sandbox can be made: {reason}")
        if reason:
            logging.getLogger("speedkit").warning(
                "speedkit: the agent runs without a sandbox (%s), with your rights", reason
            )
        return wanted != "none" and not reason

    def write(self, request: CodeRequest) -> Draft:
        """Return what the agent made of the files."""
        with tempfile.TemporaryDirectory(
            prefix="speedkit-agent-", ignore_cleanup_errors=True
        ) as name:
            folder = Path(name).resolve()
            fill(folder, request.files)
            status = self._run(request, folder, write_prompt(request, self.options.history))
            said = (folder / "output.txt").read_text("utf-8", "replace")
            said = self._without_secrets(said)
            (request.log_dir / "agent.log").write_text(said, "utf-8", "replace")
            return self._draft(request, folder, status, said)

    def _run(self, request: CodeRequest, folder: Path, prompt: str) -> int | None:
        most = self.options.max_output_mb * 1e6
        command = shlex.split(self.options.command)
        has_place = any(PROMPT in word for word in command)
        (folder / "prompt.txt").write_text("" if has_place else prompt, "utf-8", "replace")
        command = [word.replace(PROMPT, prompt) for word in command]
        if self._is_enclosed:
            runs = request.log_dir.resolve().parents[2]  # beside this run stand others
            hidden = (*self._hidden, runs)
            command = sandbox.enclosed(command, folder, hidden, self.options.readable)
        return run(
            command,
            env=self._environment(folder),
            folder=folder / "work",
            given=folder / "prompt.txt",
            output=folder / "output.txt",
            timeout_s=self.options.timeout_s,
            stop=lambda size: size > most,
        )

    def _environment(self, folder: Path) -> dict[str, str]:
        names = (*ALLOWED, *self.options.pass_env)
        passed = {name: os.environ[name] for name in names if name in os.environ}
        home = str(folder / "home")
        return {**passed, "HOME": home, "TMPDIR": str(folder / "tmp"), "XDG_CONFIG_HOME": home}

    def _without_secrets(self, text: str) -> str:
        for name in self.options.pass_env:
            if len(value := os.environ.get(name, "")) >= 8:
                text = text.replace(value, f"<{name}>")
        return text

    def _draft(self, request: CodeRequest, folder: Path, status: int | None, said: str) -> Draft:
        notes = {"exit_status": status}
        try:
            files = {name: read_file(folder / "work" / name) for name in request.files}
        except ValueError as error:
            return Draft(dict(request.files), "", failure=f"edit: {error}", notes=notes)
        if files == dict(request.files):
            words = said.strip().splitlines()[-1:] or ["it printed nothing"]
            how = "was ended at its limit" if status is None else f"ended with status {status}"
            reason = f"edit: the agent {how} and changed nothing: {words[0][:200]}"
            return Draft(files, "", failure=reason, notes=notes)
        return Draft(files, hypothesis_of(said), notes=notes)


def fill(folder: Path, files: Mapping[str, str]) -> None:
    """Make the folders of an agent and write its files."""
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir()
    for name, text in files.items():
        (folder / "work" / name).write_text(text, encoding="utf-8", newline="")


def read_file(path: Path) -> str:
    """Return the text of a file that an agent may have replaced by anything.

    Raises:
        ValueError: it is no ordinary text file any more; the message says what it is.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise ValueError(f"{path.name} is no ordinary file any more")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"{path.name} has grown over {MAX_FILE} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is no UTF-8 text any more") from None


def hypothesis_of(said: str) -> str:
    """Return the agent's last sentence on what it changed; a plain one if it said nothing."""
    lines = (line.strip().strip("*`") for line in said.splitlines())
    found = [line for line in lines if line.startswith(HYPOTHESIS)]
    words = found[-1].removeprefix(HYPOTHESIS).strip() if found else ""
    return words or "The agent changed the script and did not say how."
