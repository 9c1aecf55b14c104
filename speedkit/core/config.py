"""The configuration of a run: defaults < TOML file < environment < flags."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from speedkit.core.curve_stop import CurveStop
from speedkit.core.errors import ConfigError, UsageError, did_you_mean
from speedkit.core.plugins import REGISTER_HOOKS
from speedkit.core.redact import Redactor

if TYPE_CHECKING:
    from speedkit.core.llm_types import LLMSettings
    from speedkit.core.task import Family

ENV_PREFIX = "SPEEDKIT_"
RESERVED_ENV = (
    "LOAD_PLUGINS",
    "CACHE_DIR",
    "CONFIG",
    "DEBUG",
    "NANOGPT_DATA",
    "ALLOW_SHORT_DATA",
    "JOB",
)
"""Variables with the prefix that are no configuration keys."""
SETTINGS = ("llm", "stop")
"""Groups of settings that are given as the options of components are."""


def split_names(value: Any) -> Any:
    """Return a text as the names that it has between commas; anything else as it is."""
    return [name for name in value.split(",") if name] if isinstance(value, str) else value


class RunConfig(BaseModel):
    """What a run is asked to do; unknown keys are errors.

    Attributes are described in the fields; ``options`` holds component options by kind,
    and for a kind with several components also by component name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field("mini/1", description="FAMILY/ID, or the path of a family folder and an id")
    start: str | None = Field(
        None, description="file with a script to start from, in place of the start record's"
    )
    seed: int = Field(0, ge=0, description="seed of the scaffold and the coder")
    nodes: int | None = Field(
        None, ge=1, description="nodes besides the start record; default: the family's, or 20"
    )
    scaffold: str = Field("aide", description="search policy")
    coder: str | None = Field(
        None, description="writer of new nodes; default: llm if a model is set, else tuner"
    )
    executor: str = Field("torchrun", description="where scripts are run")
    summarizer: str = Field("rules", description="turns an outcome into text")
    judge: str | None = Field(None, description="scores how much of the human change is there")
    knowledge: tuple[str, ...] = Field((), description="sources of text for the coder")
    hints: tuple[int, ...] = Field((), description="hint levels given to the coder: 1, 2, 3")
    guards: tuple[str, ...] | None = Field(
        None, description="guards that a node must pass; default: all there are; none: no guard"
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of components, by kind"
    )
    target_loss: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="validation loss at or under which a node is valid; default: the family's",
    )
    train_duplicates: bool = Field(
        False, description="train a node even if an earlier one has the same code"
    )
    smoke_first: bool = Field(
        False,
        description="let a node make 3 steps without compilation before it is run, "
        "where the family knows how",
    )
    calibration: Literal["auto", "fresh", "reference"] = Field(
        "auto",
        description="times of the start and target record: measured once per machine, or again "
        "where more runs are asked for (auto), measured for this run (fresh), or taken from the "
        "family's manifest (reference)",
    )
    calibration_runs: int | None = Field(
        None, ge=1, description="runs of each record in a calibration; default: the family's, or 3"
    )
    model: str | None = Field(None, description="language model, as litellm names it")
    api_base: str | None = Field(None, description="URL of an OpenAI-compatible server")
    max_cost: float | None = Field(None, ge=0, description="limit on model calls, in dollars")
    max_tokens: int | None = Field(None, ge=0, description="limit on model calls, in tokens")
    llm_cache: str | None = Field(None, description="file that keeps the model's replies")
    llm_replay: bool = Field(False, description="take every reply from llm_cache, ask nobody")
    llm: dict[str, Any] = Field(
        default_factory=dict, description="further settings of model calls, for example timeout_s"
    )
    stop: CurveStop = Field(
        default_factory=CurveStop, description="when jobs that cannot recover anything are stopped"
    )
    prompts: str | None = Field(
        None, description="folder of prompt templates that replace the built-in ones"
    )
    load: tuple[str, ...] = Field((), description="extra plugins: FILE.py or a module")
    block: tuple[str, ...] = Field((), description="plugins that are not to be loaded")

    @field_validator("knowledge", "load", "block", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return split_names(value)

    @field_validator("guards", mode="before")
    @classmethod
    def _split_guards(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("name some guards, or write none")
        value = split_names(value)
        return [] if value is not None and list(value) == ["none"] else value

    @field_validator("hints", mode="before")
    @classmethod
    def _split_levels(cls, value: Any) -> Any:
        if isinstance(value, str):
            levels = [] if value == "none" else [level.strip() for level in value.split(",")]
            if not all(level.isdecimal() for level in levels):
                raise ValueError("hint levels are 1, 2 and 3, separated by commas, or none")
            return levels
        return [value] if isinstance(value, int) else value

    @field_validator("hints")
    @classmethod
    def _known_levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if set(value) - {1, 2, 3}:
            raise ValueError("hint levels are 1, 2 and 3")
        return tuple(sorted(set(value)))

    @field_validator("options")
    @classmethod
    def _known_kinds(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for kind in value:
            if kind not in REGISTER_HOOKS:
                raise ValueError(
                    f"no component kind {kind!r}; {did_you_mean(kind, REGISTER_HOOKS)}"
                )
        return value

    def llm_settings(self) -> LLMSettings:
        """Return how the model is called.

        Raises:
            UsageError: no model is set.
            ConfigError: wrong settings, a line for each.
        """
        from speedkit.core.llm_types import LLMSettings

        if self.model is None:
            raise UsageError(f"coder {self.coder_name} needs a model; give --model")
        values = {
            "model": self.model,
            "api_base": self.api_base,
            "max_cost": self.max_cost,
            "max_tokens": self.max_tokens,
            "cache": self.llm_cache,
            "cache_mode": "replay" if self.llm_replay else "record",
        }
        try:
            return LLMSettings.model_validate({**values, **self.llm})
        except ValidationError as error:
            raise ConfigError(explain(error, LLMSettings, prefix="llm.")) from None

    def redactor(self) -> Redactor:
        """Return what takes secrets out of all that a run stores, its model's own key included."""
        return redactor_of(self.llm)

    def budget(self, family: Family) -> int:
        """Return how many nodes a run on a family may have besides the start record."""
        return self.nodes or family.defaults.nodes or 20

    def stop_for(self, family: Family) -> CurveStop:
        """Return when jobs of a family are stopped."""
        if self.stop.margin is not None or family.defaults.stop_margin is None:
            return self.stop
        return self.stop.model_copy(update={"margin": family.defaults.stop_margin})

    @property
    def coder_name(self) -> str:
        """The coder that is used: the chosen one, or the default for the model setting."""
        return self.coder or ("llm" if self.model else "tuner")

    @property
    def knowledge_names(self) -> tuple[str, ...]:
        """The knowledge sources that are used; hint levels bring ``hints`` along."""
        if self.hints and "hints" not in self.knowledge:
            return ("hints", *self.knowledge)
        return self.knowledge


def load_config(
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> RunConfig:
    """Merge the layers and check the result.

    Args:
        flags: values given on the command line or from Python; None values are absent.
        file: a TOML file; ``SPEEDKIT_CONFIG`` names it otherwise.
        environ: the environment, by default that of the process.

    Raises:
        ConfigError: with one line for every mistake in all layers.
    """
    environ = os.environ if environ is None else environ
    file = file or (Path(environ["SPEEDKIT_CONFIG"]) if environ.get("SPEEDKIT_CONFIG") else None)
    merged: dict[str, Any] = {}
    for layer in (from_file(file), from_environment(environ), dict(flags or {})):
        _merge(merged, {k: v for k, v in layer.items() if v is not None})
    return check_config(merged)


def check_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate plain values, reporting every mistake at once.

    A secret among them is a mistake, because settings are stored and shown.
    """
    problems = _model_problems(values.get("llm"))
    try:
        config = RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError([*explain(error, RunConfig), *problems]) from None
    if places := sorted(set(config.redactor().places(dict(values)))):
        raise ConfigError([f"{place}: {_NO_SECRETS}" for place in places])
    if problems:
        raise ConfigError(problems)
    return config


def _model_problems(llm: object) -> list[str]:
    """Return what is wrong with the further settings of model calls, whatever the model is."""
    from speedkit.core.llm_types import LLMSettings

    if not llm or not isinstance(llm, Mapping):
        return []
    try:
        LLMSettings.model_validate({"model": "any", **llm})
    except ValidationError as error:
        return explain(error, LLMSettings, prefix="llm.")
    return []


_NO_SECRETS = (
    "this holds a secret, and settings are stored with the run; put it into an environment "
    "variable (llm.api_key_env names the one with the model's key)"
)


def redactor_of(llm: object) -> Redactor:
    """Return what takes secrets out of a run, given the ``llm`` settings of its configuration."""
    name = llm.get("api_key_env") if isinstance(llm, Mapping) else None
    return Redactor.from_environment(named=[name] if isinstance(name, str) else ())


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return a line for each mistake, with the nearest known key for unknown ones."""
    lines = []
    for problem in error.errors(include_url=False):
        where = prefix + ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = did_you_mean(str(problem["loc"][-1]), _fields_beside(problem["loc"], model))
            lines.append(f"{where}: there is no such setting; {near}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message[:1].lower()}{message[1:]}")
    return lines


def _fields_beside(loc: tuple[int | str, ...], model: type[BaseModel]) -> Collection[str]:
    """Return the names that stand where the last part of a place does."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        if field and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model.model_fields


def parse_value(text: str) -> Any:
    """Read the value of an option: a TOML value if it is one, else the text itself."""
    try:
        return tomli.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomli.TOMLDecodeError:
        return text


def parse_options(settings: tuple[str, ...] | list[str]) -> dict[str, dict[str, Any]]:
    """Read ``KIND.OPTION=VALUE`` or ``KIND.NAME.OPTION=VALUE`` settings.

    ``llm`` and ``stop`` count as kinds here: the further settings of model calls, and those
    of early stopping.

    Raises:
        ConfigError: with one line for every setting that has another form.
    """
    options: dict[str, dict[str, Any]] = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = key.strip().split(".")
        if not equals or len(parts) not in (2, 3) or not all(parts):
            problems.append(f"-o {setting}: write KIND.OPTION=VALUE")
        elif parts[0] not in (*REGISTER_HOOKS, *SETTINGS):
            near = did_you_mean(parts[0], (*REGISTER_HOOKS, *SETTINGS))
            problems.append(f"-o {setting}: no component kind {parts[0]!r}; {near}")
        else:
            value: Any = parse_value(text)
            for part in reversed(parts[1:]):
                value = {part: value}
            _merge(options, {parts[0]: value})
    if problems:
        raise ConfigError(problems)
    return options


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copy(value)


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def from_file(path: Path | None) -> dict[str, Any]:
    """Return the settings of a TOML file; none without a file."""
    if path is None:
        return {}
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no configuration file {path}") from None
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read ``SPEEDKIT_<KEY>`` and ``SPEEDKIT_<KIND>_<OPTION>``; empty ones are not set."""
    layer: dict[str, Any] = {}
    problems = []
    for name in sorted(name for name, value in environ.items() if value):
        key = name[len(ENV_PREFIX) :].lower()
        if not name.startswith(ENV_PREFIX) or key.upper() in RESERVED_ENV or key[:5] == "test_":
            continue
        kind, _, option = key.partition("_")
        if key in RunConfig.model_fields and key != "options":
            layer[key] = environ[name]
        elif kind in SETTINGS and option:
            _merge(layer, {kind: {option: parse_value(environ[name])}})
        elif kind in REGISTER_HOOKS and option:
            _merge(layer, {"options": {kind: {option: parse_value(environ[name])}}})
        else:
            near = did_you_mean(key, RunConfig.model_fields)
            problems.append(f"environment variable {name}: there is no such setting; {near}")
    if problems:
        raise ConfigError(problems)
    return layer
