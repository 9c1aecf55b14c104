"""What aider is told: the prompts of the coder ``llm``, without code and edit format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from speedkit.core.components import CodeRequest
from speedkit.core.files import one_line
from speedkit.core.prompting import (
    HYPOTHESIS_LABEL,
    Templates,
    build_messages,
    quoted,
)
from speedkit.plugins.coders._hypothesis import MISSING, read_hypothesis
from speedkit.plugins.coders._names import opening

MAX_SENTENCE = 300
"""Characters of a hypothesis that is not marked as one."""
_FORMAT = "format_aider"
_OPENING = "This is a complete task. Do it right away, without asking anything.\n\n"
_IN_CHAT = "# The complete text of this file is among the files of this chat.\n"


class AiderTemplates(Templates):
    """The prompt templates, and the answer format that goes with aider's own instructions."""

    def render(self, name: str, **slots: Any) -> str:
        """Fill the slots of a template; the one for aider's format is made here."""
        if name == _FORMAT:
            return _answer_format(slots["editable"])
        return super().render(name, **slots)


def _answer_format(editable: Sequence[str]) -> str:
    return (
        "## Answer format\n\n"
        "Say what you change and why it should shorten the training, in a sentence or two on one"
        f" line that begins with\n`{HYPOTHESIS_LABEL}`. Then give the change, in the edit format"
        " that you were told to use.\n\n"
        f"Files that may be changed: {', '.join(editable)}. Create no other file, and suggest no"
        " commands to run.\n"
    )


def first_message(
    request: CodeRequest, templates: Templates, packages: Iterable[str], history_tokens: int
) -> str:
    """Return the message that asks for a node.

    Aider puts the text of the files into the chat by itself, so it is left out here. The
    message begins with a letter, because aider runs one that begins with ``/`` or ``!`` as
    a command.
    """
    shown = replace(request, files=dict.fromkeys(request.files, _IN_CHAT))
    system, messages = build_messages(
        shown,
        edit_format=_FORMAT.removeprefix("format_"),
        templates=templates,
        packages=packages,
        token_budget=history_tokens,
    )
    return _OPENING + "\n".join([system, *(message["content"] for message in messages)])


def repair_message(error: str) -> str:
    """Return the message that asks to repair what the last round left behind."""
    return (
        "The last change to the files of this chat cannot be used. The reason:\n\n"
        f"{quoted(error, 'error')}\n\n"
        "Repair it in the files as they are now. Keep the idea of the change and everything else"
        " as it is.\n"
    )


def hypothesis_of(replies: Sequence[str], files: Mapping[str, str]) -> str:
    """Return the last hypothesis in some replies, or else the first sentence of the first."""
    found = [read_hypothesis(text, tuple(files)) for text in replies]
    given = [text for text in found if text != MISSING]
    if given:
        return given[-1]
    return next((s for text in replies if (s := _first_sentence(text, tuple(files)))), MISSING)


def _first_sentence(text: str, editable: Sequence[str]) -> str:
    words: list[str] = []
    for line in text.split("\n"):
        bare = line.strip(" *`:#")
        if opening(line) or bare in editable or (words and not bare):
            break
        words += line.split()
    paragraph = one_line(" ".join(words))
    end = next((i for i in range(len(paragraph)) if paragraph[i : i + 2] in (". ", "! ")), None)
    return (paragraph if end is None else paragraph[: end + 1])[:MAX_SENTENCE]
