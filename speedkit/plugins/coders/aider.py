"""The coder that has aider make the edit, by its command line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from speedkit.core.components import Coder, CodeRequest, Draft, Options, Services
from speedkit.core.errors import PluginError, UsageError
from speedkit.core.files import one_line
from speedkit.core.llm_types import LLMRefused, LLMStopped, Message, estimate_tokens
from speedkit.core.prompting import installed_packages
from speedkit.plugins.coders import aider_environment
from speedkit.plugins.coders._aider_account import REFUSALS, Account
from speedkit.plugins.coders._aider_command import (
    command_line,
    environment,
    model_metadata,
    model_settings,
)
from speedkit.plugins.coders._aider_folder import AiderFolder
from speedkit.plugins.coders._aider_log import Events, Talk, Trouble
from speedkit.plugins.coders._aider_process import run_process
from speedkit.plugins.coders._aider_prompt import (
    AiderTemplates,
    first_message,
    hypothesis_of,
    repair_message,
)
from speedkit.plugins.coders._text import EditError, check_file

AIDER_TOKENS = 4000
"""Tokens that aider adds to a prompt, at most: its instructions and examples."""
MAX_WORDS = 300
"""Characters of somebody else's message that are passed on."""

EditFormat = Literal["whole", "diff", "diff-fenced", "udiff", "udiff-simple", "patch"]


class AiderCoderOptions(Options):
    """Options of the coder ``aider``."""

    executable: str | None = Field(
        None, description="the program; default: that of `speedkit aider install`, else of PATH"
    )
    edit_format: EditFormat | None = Field(
        None, description="form of the answers, by aider's names; default: its choice for the model"
    )
    timeout_s: float = Field(
        1800, gt=0, description="seconds after which one aider process is ended"
    )
    repairs: int = Field(
        2, ge=0, description="how often a change that is no valid Python is sent back"
    )
    history_tokens: int = Field(
        8000, ge=0, description="estimated tokens for earlier attempts in the prompt"
    )
    temperature: float = Field(
        1.0,
        ge=0,
        description="sampling temperature unless llm.temperature is set; aider's own would be 0,"
        " with which all samples are alike",
    )
    prompts: Path | None = Field(
        None, description="folder of templates that replace the built-in ones"
    )
    python: str | None = Field(
        None,
        description="interpreter whose packages the prompt lists; by default executor.python",
    )
    pass_env: tuple[str, ...] = Field(
        (), description="names of further variables that aider needs for the provider"
    )


class AiderCoder(Coder):
    """Starts aider in a clean folder with the editable files, and reads them back.

    Aider's exit status says nothing. A change is a success when the files differ, no edit of
    the reply was left out, and they are valid Python. Aider itself asks again up to three
    times when edits do not apply; this coder starts it again when the result is no Python.
    """

    needs_model = True
    Options = AiderCoderOptions
    options: AiderCoderOptions

    def bind(self, services: Services) -> None:
        """Look for aider, load the templates and list the packages of the scripts."""
        super().bind(services)
        self.executable = aider_environment.find(self.options.executable).executable
        self.templates = AiderTemplates(self.options.prompts)
        self.packages = installed_packages(self.options.python)

    def write(self, request: CodeRequest) -> Draft:
        """Return the code of the node, or why no edit came out.

        Raises:
            LLMRefused: the provider refuses the key or the model.
            LLMStopped: the run ends.
            BudgetReached: a limit on model calls is reached.
            PluginError: the program does not work as aider does.
        """
        llm = self.services.llm()
        if llm.replaying:
            raise UsageError("coder aider cannot replay replies; use coder llm with --llm-replay")
        llm.check()
        with tempfile.TemporaryDirectory(
            prefix="speedkit-aider-", ignore_cleanup_errors=True
        ) as folder:
            return _Sample(self, request, AiderFolder(Path(folder).resolve())).draft()

    def prompt(self, request: CodeRequest) -> tuple[str, list[Message]]:
        """Return the system prompt, which is aider's affair, and the message it is given."""
        text = self.message(request, self.options.history_tokens)
        return "", [{"role": "user", "content": text}]

    def message(self, request: CodeRequest, history_tokens: int) -> str:
        """Return the first message of a talk, with so many tokens of history."""
        return first_message(request, self.templates, self.packages, history_tokens)


class _Failed(Exception):
    """No edit came out.

    Args:
        kind: ``edit``, ``model`` or ``context``.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class _Sample:
    """The rounds of aider that lead to one draft."""

    coder: AiderCoder
    request: CodeRequest
    folder: AiderFolder
    rounds: int = 0
    replies: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    edit_format: str = ""
    model: str | None = None

    def __post_init__(self) -> None:
        self.llm = self.coder.services.llm()
        self.options = self.coder.options

    def draft(self) -> Draft:
        """Ask for the change, then for repairs, until it can be used."""
        prices = self.llm.provider.prices
        settings = self.llm.settings
        self.folder.fill(
            self.request.files,
            model_settings(settings, self.options.temperature),
            model_metadata(settings, prices.input, prices.output),
        )
        try:
            self._ask()
            files = self._repaired()
        except _Failed as failure:
            return self._failed(failure.kind, str(failure))
        hypothesis = hypothesis_of(self.replies, self.request.files)
        return Draft(files, hypothesis, model=self.model, notes=self._notes())

    # --- rounds -------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask with as much history and knowledge as the model can take."""
        asked: dict[str, _Failed] = {}
        for message in self._messages():
            if message in asked:
                continue
            try:
                return self._round(message, "code")
            except _Failed as failure:
                if failure.kind != "context" or self.replies:
                    raise
                asked[message] = failure
        raise list(asked.values())[-1]

    def _messages(self) -> Iterator[str]:
        knowledge = tuple(self.request.knowledge)
        yield self.coder.message(self.request, self.options.history_tokens)
        yield self.coder.message(self.request, 0)
        while knowledge:
            knowledge = knowledge[: len(knowledge) // 2]
            yield self.coder.message(replace(self.request, knowledge=knowledge), 0)

    def _repaired(self) -> dict[str, str]:
        """Return the files once they can be run."""
        files = self._read()
        if all(text == self.request.files[name] for name, text in files.items()):
            raise _Failed("edit", "aider changed no file")
        while error := self._fault(files):
            self.errors.append(one_line(error)[:MAX_WORDS])
            if len(self.errors) > self.options.repairs:
                raise _Failed("edit", f"the change cannot be used: {self.errors[-1]}")
            self._round(repair_message(error), "repair")
            files = self._read()
        return files

    def _read(self) -> dict[str, str]:
        try:
            return self.folder.read_files(self.request.files)
        except EditError as error:
            raise _Failed("edit", str(error)) from None

    def _fault(self, files: dict[str, str]) -> str:
        before = self.request.files
        try:
            for name, text in files.items():
                check_file(name, before[name], text)
        except EditError as error:
            return str(error)
        same = files == dict(before)
        return "the files are as they were before the change" if same else ""

    def _round(self, message: str, purpose: str) -> None:
        """Run aider once with a message.

        Raises:
            _Failed: no reply came, or its edits were not all applied.
        """
        message = self.llm.redactor.clean(message)
        account = Account(self.llm, purpose, self._prompt_tokens(message))
        account.begin()
        status: int | None = None
        try:
            self.folder.begin(message)
            status = self._run(account)
        finally:
            events, talk, trouble = self._logs()
            account.close(events, talk, trouble, ended=status is None)
            self.folder.keep_logs(self.request.log_dir, self.llm.redactor)
        self._remember(events, talk)
        self._check(status, events, talk, trouble)

    def _run(self, account: Account) -> int | None:
        def tick() -> None:
            if self.llm.stopped:
                raise LLMStopped("the model call was stopped")
            if (events := self._events()).sent:
                account.see(events, self._talk())

        options, settings = self.options, self.llm.settings
        return run_process(
            command_line(
                self.coder.executable,
                self.folder,
                settings,
                self.request.files,
                edit_format=options.edit_format,
                timeout_s=options.timeout_s,
            ),
            env=environment(settings, self.folder, options.pass_env),
            folder=self.folder.work,
            answers=self.folder.path("answers.txt"),
            output=self.folder.log("output"),
            timeout_s=options.timeout_s,
            tick=tick,
        )

    def _prompt_tokens(self, message: str) -> int:
        texts = (message, *self.request.files.values())
        return AIDER_TOKENS + sum(estimate_tokens(t, self.llm.settings.model) for t in texts)

    # --- what aider's logs say ----------------------------------------------------------

    def _events(self) -> Events:
        return Events.parse(self.folder.read_log("events"))

    def _talk(self) -> Talk:
        return Talk.parse(self.folder.read_log("llm"))

    def _logs(self) -> tuple[Events, Talk, Trouble]:
        return self._events(), self._talk(), Trouble.parse(self.folder.read_log("chat"))

    def _remember(self, events: Events, talk: Talk) -> None:
        self.rounds += 1
        self.replies += [self.llm.redactor.clean(text) for text in talk.replies if text]
        if events.sent:
            self.model = events.sent[-1].model or self.llm.settings.model
            self.edit_format = events.sent[-1].edit_format

    def _check(self, status: int | None, events: Events, talk: Talk, trouble: Trouble) -> None:
        """See that the last reply came and that all its edits were applied."""
        if status is None:
            raise _Failed("model", f"aider was ended after {self.options.timeout_s:g} s")
        if not events.starts:
            raise PluginError(
                f"{self.coder.executable} sent no request (exit status {status}):"
                f" {self._last_words()}"
            )
        if trouble.limit and talk.replies and talk.replies[-1]:
            raise _Failed("edit", "the answer was cut off at the limit on output tokens")
        if trouble.limit:
            raise _Failed("context", "the prompt does not fit the model")
        if events.awaiting:
            self._check_refusal(events, trouble)
            raise _Failed("model", self._words(trouble) or "no reply came")
        if trouble.gave_up:
            raise _Failed("edit", "not all edits of the answers could be applied")

    def _check_refusal(self, events: Events, trouble: Trouble) -> None:
        """Stop the run when no other request would fare better."""
        # A reply could quote such an error, but then there is a reply.
        if events.sent or any(self.replies) or trouble.error not in REFUSALS:
            return
        settings, provider = self.llm.settings, self.llm.provider
        words = self._words(trouble)
        if trouble.error == "NotFoundError":
            place = settings.api_base or "its provider"
            raise LLMRefused(f"{place} knows no model {settings.model}: {words}")
        raise LLMRefused(f"{settings.model} refuses the key in {provider.key_variable}: {words}")

    def _words(self, trouble: Trouble) -> str:
        return self.llm.redactor.clean(one_line(trouble.words))[:MAX_WORDS]

    def _last_words(self) -> str:
        lines = [line for line in self.folder.read_log("output").splitlines() if line.strip()]
        text = self.llm.redactor.clean(lines[-1]) if lines else "it printed nothing"
        return one_line(text)[:MAX_WORDS]

    # --- ends ---------------------------------------------------------------------------

    def _failed(self, kind: str, reason: str) -> Draft:
        return Draft(
            dict(self.request.files),
            hypothesis="",
            failure=f"{kind}: {reason}",
            model=self.model,
            notes={**self._notes(), "failure": kind},
        )

    def _notes(self) -> dict[str, Any]:
        return {
            "edit_format": self.edit_format,
            "edit_errors": list(self.errors),
            "rounds": self.rounds,
            "replies": len(self.replies),
        }
