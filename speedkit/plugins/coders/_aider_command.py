"""The command line and the environment of an aider process, and its two settings files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speedkit.core.llm_types import LLMSettings
from speedkit.plugins.coders._aider_folder import AiderFolder

PASSED = (
    *("PATH", "TZ", "LD_LIBRARY_PATH", "PYENV_ROOT"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""Variables that aider gets from the environment, besides those of its provider."""

_FIXED = {
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "PYTHONUTF8": "1",
    "PYTHONNOUSERSITE": "1",
    # Else its libraries ask other servers for prices and tokenizers.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
}
_VARIABLES = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_BASE"),
    "azure": ("AZURE_API_KEY", "AZURE_API_BASE", "AZURE_API_VERSION", "AZURE_AD_TOKEN"),
    "bedrock": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("AWS_REGION", "AWS_REGION_NAME", "AWS_BEARER_TOKEN_BEDROCK"),
    ),
    "fireworks_ai": ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "huggingface": ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
    "openai": ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_ORGANIZATION"),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY"),
    "vertex_ai": (
        *("GOOGLE_APPLICATION_CREDENTIALS", "VERTEXAI_PROJECT", "VERTEXAI_LOCATION"),
        *("VERTEX_PROJECT", "VERTEX_LOCATION"),
    ),
}
"""Variables of the providers that do not simply have one for key and address each; the key
comes first."""
_OFF = (
    *("--no-git", "--no-gitignore", "--no-auto-commits", "--no-dirty-commits"),
    *("--no-check-update", "--no-show-release-notes", "--no-analytics", "--disable-playwright"),
    *("--no-detect-urls", "--no-suggest-shell-commands", "--no-auto-lint", "--no-auto-test"),
    *("--no-stream", "--no-pretty", "--no-fancy-input", "--no-show-model-warnings"),
    *("--no-check-model-accepts-settings", "--no-restore-chat-history", "--no-watch-files"),
)


def provider_name(model: str) -> str:
    """Return the provider of a model, as litellm names it."""
    provider, slash, _ = model.partition("/")
    if slash:
        return provider
    return "anthropic" if model.startswith("claude") else "openai"


def command_line(
    executable: Path,
    folder: AiderFolder,
    settings: LLMSettings,
    names: Iterable[str],
    *,
    edit_format: str | None,
    timeout_s: float,
) -> list[str]:
    """Return the command line; no secret is on it.

    Aider is not told to say yes to everything: it would create any file, anywhere, that a
    reply asks for. Its questions are answered with no.

    Args:
        names: the editable files.
        timeout_s: seconds for one request.
    """
    files = {
        "--config": folder.path("config.yml"),
        "--env-file": os.devnull,
        "--model-settings-file": folder.path("settings.yml"),
        "--model-metadata-file": folder.path("metadata.json"),
        "--message-file": folder.path("message.txt"),
        "--chat-history-file": folder.log("chat"),
        "--llm-history-file": folder.log("llm"),
        "--analytics-log": folder.log("events"),
        "--input-history-file": folder.path("input.txt"),
    }
    command = [str(executable), *_OFF, "--map-tokens", "0", "--encoding", "utf-8"]
    # Else it has the talk summarized, by requests that it neither needs nor counts.
    command += ["--max-chat-history-tokens", "1000000000"]
    for role in ("--model", "--weak-model", "--editor-model"):
        command += [role, settings.model]
    for flag, path in files.items():
        command += [flag, str(path)]
    command += ["--timeout", f"{min(settings.timeout_s, timeout_s):g}"]
    if edit_format:
        command += ["--edit-format", edit_format]
    if settings.reasoning_effort:
        command += ["--reasoning-effort", settings.reasoning_effort]
    return [*command, *(str(folder.editable(name)) for name in names)]


def environment(
    settings: LLMSettings,
    folder: AiderFolder,
    extra: Iterable[str] = (),
    source: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the whole environment: what is on a list, and the credentials of the model.

    Args:
        extra: names of further variables to pass.
        source: the environment that the values are taken from, ``os.environ`` by default.
    """
    source = os.environ if source is None else source
    passed = {name: source[name] for name in (*PASSED, *extra) if name in source}
    own = {"HOME": str(folder.home), "TMPDIR": str(folder.path("tmp"))}
    return {**passed, **_FIXED, **own, **_credentials(settings, source)}


def _credentials(settings: LLMSettings, source: Mapping[str, str]) -> dict[str, str]:
    provider = provider_name(settings.model)
    prefix = provider.upper().replace("-", "_")
    names = _VARIABLES.get(provider, (f"{prefix}_API_KEY", f"{prefix}_API_BASE"))
    found = {name: source[name] for name in names if source.get(name)}
    if settings.api_key_env:
        found.pop(names[0], None)
        if key := source.get(settings.api_key_env):
            found[names[0]] = key
    elif settings.api_base:
        found.setdefault(names[0], "none")  # a server of one's own wants no key, the client does
    return found


def model_settings(settings: LLMSettings, temperature: float) -> list[dict[str, Any]]:
    """Return what aider passes on with every request, as its settings file has it."""
    given = settings.temperature
    extra = {
        "temperature": temperature if given is None else given,
        "max_tokens": settings.max_output_tokens,
        "api_base": settings.api_base,
    }
    known = {name: value for name, value in extra.items() if value is not None}
    return [{"name": "aider/extra_params", "extra_params": known}]


def model_metadata(
    settings: LLMSettings, input_price: float | None, output_price: float | None
) -> dict[str, Any]:
    """Return what aider should know of the model, so that it does not look it up elsewhere.

    Args:
        input_price: dollars per token, None if unknown.
        output_price: the same of the reply.
    """
    facts: dict[str, Any] = {"litellm_provider": provider_name(settings.model), "mode": "chat"}
    if input_price is not None and output_price is not None:
        facts |= {"input_cost_per_token": input_price, "output_cost_per_token": output_price}
    return {settings.model: facts}
