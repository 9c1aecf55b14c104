"""The summarizer that asks a language model, with rules to fall back on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from speedkit.core.components import Options, Services, Summarizer, SummaryRequest
from speedkit.core.errors import BudgetReached
from speedkit.core.files import one_line, printable
from speedkit.core.llm_types import LLMError, LLMRefused, LLMStopped, estimate_tokens
from speedkit.core.prompting import (
    Templates,
    head_and_tail,
    metrics_in_words,
    time_in_words,
)

MAX_WORDS = 500
"""Words that a summary stays under."""
MARK = "Read by a model, not counted:"
"""Begins the line with metrics that a model extracted."""
LARGEST = 10**12
"""A number from here on is taken for nonsense."""
_JSON = re.compile(r"\{[^{}]*\}")
_NUMBERS = ("val_loss", "train_time_ms", "steps")
_FAILURES = (LLMError, LLMRefused, LLMStopped, BudgetReached)


class LLMSummarizerOptions(Options):
    """Options of the summarizer ``llm``."""

    log_tokens: int = Field(
        8000, ge=200, description="estimated tokens of log in a prompt; the middle is left out"
    )
    extract_metrics: bool = Field(
        False, description="let the model read metrics too; they stand in the text and never count"
    )
    prompts: Path | None = Field(
        None, description="folder of templates that replace the built-in ones"
    )


class LLMSummarizer(Summarizer):
    """Lets a model describe what a log says; where it fails, rules do, and the text says so.

    A node whose edit failed has no log: rules describe it, and no model is asked.
    """

    needs_model = True
    Options = LLMSummarizerOptions
    options: LLMSummarizerOptions

    def bind(self, services: Services) -> None:
        """Load the templates, and the rules to fall back on."""
        from speedkit.plugins.summarizers.rules import RulesSummarizer

        super().bind(services)
        self.templates = Templates(self.options.prompts)
        self.rules = RulesSummarizer()
        self.rules.bind(services)

    def summarize(self, request: SummaryRequest) -> str:
        """Return a summary of fewer than :data:`MAX_WORDS` words."""
        if request.execution is None:
            return self.rules.summarize(request)
        logs = self._logs(request)
        try:
            text = self._ask("summary", request, **_facts(request), **logs)
        except _FAILURES as error:
            return self._fall_back(request, one_line(str(error)))
        if not text.strip():
            return self._fall_back(request, "its answer was empty")
        return first_words(printable(text).strip(), MAX_WORDS - 1) + self._extracted(request, logs)

    def _fall_back(self, request: SummaryRequest, reason: str) -> str:
        return (
            f"(Written by rules; the model failed: {reason[:200]})\n{self.rules.summarize(request)}"
        )

    def _ask(self, template: str, request: SummaryRequest, **slots: Any) -> str:
        reply = self.services.llm().complete(
            [{"role": "user", "content": self.templates.render(template, **slots)}],
            system=self.templates.render("system_reader"),
            purpose=template,
            sample=request.node.id,
            log_dir=request.log_dir,
        )
        return reply.text

    def _logs(self, request: SummaryRequest) -> dict[str, str]:
        """Return both streams, shortened; what one does not need the other may use."""
        out, err = (printable(text).strip() for text in (request.stdout, request.stderr))
        whole = self.options.log_tokens
        spare = max(whole // 2, whole - estimate_tokens(out))
        err = head_and_tail(err, spare)
        return {"stdout": head_and_tail(out, whole - estimate_tokens(err)), "stderr": err}

    def _extracted(self, request: SummaryRequest, logs: Mapping[str, str]) -> str:
        if not self.options.extract_metrics:
            return ""
        try:
            text = self._ask("metrics", request, **logs)
        except _FAILURES as error:
            return f"\n\n{MARK} nothing, the model failed: {one_line(str(error))[:200]}"
        return f"\n\n{MARK} {read_metrics(text) or 'nothing, the answer held no metrics'}"


def _facts(request: SummaryRequest) -> dict[str, Any]:
    node = request.node
    lines = [one_line(node.hypothesis) or "no hypothesis given"]
    if node.reason:
        lines.append(f"Not valid: {one_line(node.reason)}")
    return {
        "task": request.task.name,
        "target_loss": f"{request.task.rules.target:g}",
        "start_time": time_in_words(request.start_ms),
        "outcome": str(node.outcome),
        "metrics": metrics_in_words(node.metrics),
        "reason": one_line(node.reason),
        "idea": "\n".join(lines),
        "max_words": MAX_WORDS,
    }


def first_words(text: str, most: int) -> str:
    """Return a text up to a number of words, line breaks kept, with a mark where it was cut."""
    words = list(re.finditer(r"\S+", text))
    return text if len(words) <= most else text[: words[most - 2].end()] + " …"


def read_metrics(text: str) -> str:
    """Return the metrics of a model's JSON answer in words; empty if it holds none."""
    for match in reversed(list(_JSON.finditer(text))):
        try:
            found = json.loads(match[0])
        except ValueError:
            continue
        words = [f"{key} {found[key]}" for key in _NUMBERS if _is_number(found.get(key))]
        if isinstance(found.get("has_bugs"), bool):
            words.append(f"has bugs: {'yes' if found['has_bugs'] else 'no'}")
        if words:
            return ", ".join(words)
    return ""


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < LARGEST  # False for nan too
