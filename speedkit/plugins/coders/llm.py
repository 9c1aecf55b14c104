"""The coder that asks a language model for an edit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from speedkit.core.components import Coder, CodeRequest, Draft, Options, Services
from speedkit.core.files import one_line
from speedkit.core.llm_types import ContextOverflow, LLMError, Message, Reply
from speedkit.core.node import Stage
from speedkit.core.prompting import (
    Templates,
    build_messages,
    format_instructions,
    head_and_tail,
    installed_packages,
)
from speedkit.plugins.coders._continuation import complete_lines, join_parts, last_line
from speedkit.plugins.coders._hypothesis import read_hypothesis
from speedkit.plugins.coders.edits import EditError, EditResult, apply_reply, is_complete

MAX_ECHO_TOKENS = 12_000
"""Tokens of a failed answer that is shown to the model again."""
MAX_DIFF_TOKENS = 4_000
"""Tokens of the diff of one sample, when the best of several is chosen."""
MAX_ERROR = 500
"""Characters of an edit error in a node's reason."""
_CHOICE = re.compile(r"CHOICE\W{0,5}:\W{0,5}([0-9]{1,4})\b", re.IGNORECASE)
_WITHHELD = ("content_filter", "refusal")

EditFormat = Literal["whole", "search_replace", "udiff"]


class LLMCoderOptions(Options):
    """Options of the coder ``llm``."""

    edit_format: EditFormat = Field(
        "search_replace", description="form of the answers: whole, search_replace or udiff"
    )
    max_reflections: int = Field(
        5, ge=0, description="how often a failed edit is asked again with its error"
    )
    fallback: int = Field(
        2, ge=0, description="failed edits after which whole files are asked for; 0: never"
    )
    max_continuations: int = Field(
        2, ge=0, description="how often an answer cut at the output limit is continued"
    )
    history_tokens: int = Field(
        8000, ge=0, description="estimated tokens for earlier attempts in the prompt"
    )
    best_of: int = Field(
        1,
        ge=1,
        le=100,
        description="samples for each draft; the model then chooses among those that apply",
    )
    prompts: Path | None = Field(
        None, description="folder of templates that replace the built-in ones"
    )
    python: str | None = Field(
        None,
        description="interpreter whose packages the prompt lists; by default executor.python",
    )


class LLMCoder(Coder):
    """Asks a model for an edit, applies it, and asks again with the error where it fails.

    Every node is a sample of its own: what a model was asked for one node is not shown to
    it for another, but for the history in the prompt. In the cache of replies the number of
    the sample is the node's id times ``best_of``, plus the number of the draft.
    """

    needs_model = True
    Options = LLMCoderOptions
    options: LLMCoderOptions

    def bind(self, services: Services) -> None:
        """Load the templates and list the packages that scripts can import."""
        super().bind(services)
        self.templates = Templates(self.options.prompts)
        self.packages = installed_packages(self.options.python)

    def write(self, request: CodeRequest) -> Draft:
        """Return the code of the node, or why no edit came out."""
        many = self.options.best_of if request.stage is Stage.DRAFT else 1
        first = request.node_id * self.options.best_of
        drafts = self._drafts(request, first, many)
        usable = [draft for draft in drafts if not draft.failure]
        if not usable or many == 1:
            return (usable or drafts)[0]
        return self._best(request, usable, first)

    def prompt(
        self,
        request: CodeRequest,
        edit_format: str | None = None,
        history_tokens: int | None = None,
    ) -> tuple[str, list[Message]]:
        """Return the system prompt and the messages that a request leads to."""
        tokens = self.options.history_tokens if history_tokens is None else history_tokens
        return build_messages(
            request,
            edit_format=edit_format or self.options.edit_format,
            templates=self.templates,
            packages=self.packages,
            token_budget=tokens,
        )

    # --- best of several drafts ---------------------------------------------------------

    def _drafts(self, request: CodeRequest, first: int, many: int) -> list[Draft]:
        """Ask for all drafts at once; the client sees to how many calls are in flight."""
        if many == 1:
            return [_Sample(self, request, first).draft()]
        folders = [request.log_dir / f"draft-{i}" for i in range(1, many + 1)]
        samples = [
            _Sample(self, replace(request, log_dir=folder), first + i)
            for i, folder in enumerate(folders)
        ]
        with ThreadPoolExecutor(many, thread_name_prefix="draft") as pool:
            return list(pool.map(_Sample.draft, samples))

    def _best(self, request: CodeRequest, drafts: Sequence[Draft], sample: int) -> Draft:
        chosen, chosen_by = (
            self._choose(request, drafts, sample) if len(drafts) > 1 else (0, "only")
        )
        draft = drafts[chosen]
        facts = {"best_of": self.options.best_of, "usable": len(drafts), "chosen": chosen}
        return replace(draft, notes={**draft.notes, **facts, "chosen_by": chosen_by})

    def _choose(
        self, request: CodeRequest, drafts: Sequence[Draft], sample: int
    ) -> tuple[int, str]:
        """Let the model choose; without a clear answer the first draft is taken."""
        text = self.templates.render(
            "select",
            task=request.task.name,
            target_loss=f"{request.task.rules.target:g}",
            candidates=[_candidate(i, d, request.files) for i, d in enumerate(drafts, 1)],
        )
        try:
            reply = self.services.llm().complete(
                [{"role": "user", "content": text}],
                system=self.templates.render("system_reader"),
                purpose="select",
                sample=sample,
                log_dir=request.log_dir,
            )
        except LLMError:
            return 0, "first"
        choices = [int(number) for number in _CHOICE.findall(reply.text)]
        if not choices or not 1 <= choices[-1] <= len(drafts):
            return 0, "first"
        return choices[-1] - 1, "model"


# --- one sample -------------------------------------------------------------------------


@dataclass
class _Sample:
    """A talk with the model that ends in a draft.

    Attributes:
        sample: number of the sample in the cache of replies.
        tail: the last failed answer and its error, which follow the prompt.
    """

    coder: LLMCoder
    request: CodeRequest
    sample: int
    tail: list[Message] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    continuations: int = 0
    model: str | None = None

    def __post_init__(self) -> None:
        self.options = self.coder.options
        self.format: str = self.options.edit_format
        self.level = 0
        self.levels = list(_levels(len(self.request.knowledge), self.options.history_tokens))

    def draft(self) -> Draft:
        """Ask until an edit applies, or until there is no more to be tried."""
        try:
            for number in range(self.options.max_reflections + 1):
                text, finish_reason = self._answer("reflect" if number else "code")
                try:
                    result = self._apply(text, finish_reason)
                except EditError as error:
                    self._reflect(text, str(error))
                else:
                    return self._success(result, text)
        except ContextOverflow as error:
            reason = f"the prompt does not fit the model, even at its shortest: {one_line(error)}"
            return self._failed("context", reason)
        except LLMError as error:
            return self._failed("model", one_line(str(error)))
        reason = (
            f"none of {len(self.errors)} answers was a usable edit; the last: {self.errors[-1]}"
        )
        return self._failed("edit", reason)

    # --- answers ------------------------------------------------------------------------

    def _answer(self, purpose: str) -> tuple[str, str]:
        """Ask once; return the whole answer, continued if it was cut, and how it ended."""
        reply = self._ask(self.tail, purpose)
        text = reply.text
        for _ in range(self.options.max_continuations):
            kept = complete_lines(text)
            if not reply.truncated or is_complete(text) or not kept:
                break
            asked = self.coder.templates.render("continue", last_line=last_line(kept))
            reply = self._ask([*self.tail, *_exchange(kept, asked)], "continue")
            self.continuations += 1
            text = join_parts(kept, reply.text)
        return text, reply.finish_reason

    def _ask(self, tail: Sequence[Message], purpose: str) -> Reply:
        """Ask with as much history and knowledge as the model can take."""
        while True:
            system, messages = self._prompt()
            try:
                reply = self.coder.services.llm().complete(
                    [*messages, *tail],
                    system=system,
                    purpose=purpose,
                    sample=self.sample,
                    log_dir=self.request.log_dir,
                )
            except ContextOverflow:
                if not self._compact(messages):
                    raise
            else:
                self.model = reply.model_served or self.model
                return reply

    def _prompt(self) -> tuple[str, list[Message]]:
        history_tokens, entries = self.levels[self.level]
        request = replace(self.request, knowledge=tuple(self.request.knowledge)[:entries])
        return self.coder.prompt(request, self.format, history_tokens)

    def _compact(self, messages: Sequence[Message]) -> bool:
        """Go to the next shorter prompt; False if there is none."""
        while self.level + 1 < len(self.levels):
            self.level += 1
            if self._prompt()[1] != messages:
                return True
        return False

    # --- edits --------------------------------------------------------------------------

    def _apply(self, text: str, finish_reason: str) -> EditResult:
        if finish_reason in _WITHHELD:
            raise EditError(f"the answer was withheld by the provider ({finish_reason})")
        if finish_reason == "length" and not text.strip():
            raise EditError(
                "the limit on output tokens was reached before the answer began; reason less"
            )
        files = self.request.files
        finished = finish_reason == "stop"
        return apply_reply(text, files, self.format, tuple(files), finished=finished)

    def _reflect(self, text: str, error: str) -> None:
        self.errors.append(one_line(error)[:MAX_ERROR])
        templates, instructions = self.coder.templates, ""
        if self.options.fallback and len(self.errors) >= self.options.fallback:
            if self.format != "whole":
                editable = tuple(self.request.files)
                instructions = format_instructions(templates, "whole", editable)
            self.format = "whole"
        asked = templates.render(
            "reflect",
            error=error,
            round=len(self.errors),
            rounds=self.options.max_reflections,
            format_instructions=instructions,
        )
        self.tail = _exchange(head_and_tail(text, MAX_ECHO_TOKENS, head=0.5), asked)

    # --- ends ---------------------------------------------------------------------------

    def _success(self, result: EditResult, text: str) -> Draft:
        hypothesis = read_hypothesis(text, tuple(self.request.files))
        return Draft(result.files, hypothesis, model=self.model, notes=self._notes())

    def _failed(self, kind: str, reason: str) -> Draft:
        return Draft(
            dict(self.request.files),
            hypothesis="",
            failure=f"{kind}: {reason}",
            model=self.model,
            notes={**self._notes(), "failure": kind},
        )

    def _notes(self) -> dict[str, Any]:
        tokens, entries = self.levels[self.level]
        notes: dict[str, Any] = {"edit_format": self.format, "edit_errors": list(self.errors)}
        if self.continuations:
            notes["continuations"] = self.continuations
        if self.level:
            notes["shortened"] = {"history_tokens": tokens, "knowledge_entries": entries}
        return notes


def _levels(entries: int, history_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield ever shorter prompts: first without history, then with fewer entries of knowledge.

    Each is a pair of history tokens and number of entries, of which the first are kept.
    """
    yield history_tokens, entries
    yield 0, entries
    while entries:
        entries //= 2
        yield 0, entries


def _exchange(answer: str, asked: str) -> list[Message]:
    answered = answer if answer.strip() else "(an empty answer)"
    return [{"role": "assistant", "content": answered}, {"role": "user", "content": asked}]


def _candidate(number: int, draft: Draft, files: Mapping[str, str]) -> dict[str, Any]:
    diff = "\n".join(
        line
        for name, text in draft.files.items()
        for line in difflib.unified_diff(
            files[name].splitlines(), text.splitlines(), name, name, lineterm=""
        )
    )
    shown = head_and_tail(diff, MAX_DIFF_TOKENS)
    return {"number": number, "text": f"{draft.hypothesis}\n\n{shown}"}
