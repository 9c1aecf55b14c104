"""The page: one HTML file that loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from speedkit import __version__
from speedkit.analysis.report import figures, text, tree
from speedkit.analysis.report.facts import RunFacts, Unreadable
from speedkit.analysis.report.outcomes import in_words, look

MAX_CELL = 300
"""Characters of a value in the tables of settings."""


def render_page(runs: Sequence[RunFacts], unreadable: Sequence[Unreadable], base: Path) -> str:
    """Return the page.

    Args:
        base: folder in which the page will stand, for links to other reports.
    """
    style, script = _asset("report.css"), _asset("report.js")
    return (
        _environment()
        .get_template("page.j2")
        .render(
            runs=runs,
            unreadable=unreadable,
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
            data=[_data(run) for run in runs],
            made=time.strftime("%Y-%m-%d %H:%M"),
            version=__version__,
            links={run.key: _link(run, base) for run in runs} if len(runs) > 1 else {},
        )
    )


def policy(style: str, script: str) -> str:
    """Return the content security policy: nothing is loaded, and only these two texts count."""
    return (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    """Return the templates; whatever they print is made visible and escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_asset),
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = (
        "seconds",
        "duration",
        "signed",
        "times",
        "loss",
        "dollars",
        "plain",
        "subject",
        "diff_rows",
    )
    environment.filters.update({name: getattr(text, name) for name in names})
    environment.filters["in_words"] = in_words
    environment.globals.update(
        badge=tree.badge,
        draw_tree=tree.draw,
        figures=figures,
        look=look,
        result_row=result_row,
        settings=settings,
    )
    return environment


def _shown(value: Any) -> Any:
    """Return what is printed for a value: text made visible, a dash for nothing."""
    if isinstance(value, Markup):
        return value
    return "–" if value is None else text.visible(str(value))


def result_row(run: RunFacts) -> list[tuple[str, str | None]]:
    """Return the result of a run as pairs of column and text; None is what is not known."""
    best, calibration = run.best, run.calibration
    verdict = best.verdict if best else None
    return [
        ("task", run.state.task.name),
        ("result", run.result),
        ("FSR", text.signed(best.fsr) if best else None),
        ("verified", verdict.text if verdict else None),
        ("training time", text.seconds(best.node.train_time_ms) if best else None),
        ("best node", str(best.node.id) if best else None),
        ("model", run.model),
        ("scaffold", run.component("scaffold")),
        ("coder", run.component("coder")),
        ("hints", run.hints),
        ("knowledge", run.knowledge),
        ("seed", run.seed),
        ("status", run.status),
        ("start record", text.seconds(calibration.start_ms) if calibration else None),
        ("target record", text.seconds(calibration.target_ms) if calibration else None),
        ("calibration", calibration.source if calibration else None),
        ("tokens", f"{run.spent.usage.total:,}"),
        ("dollars", text.dollars(run.spent.cost)),
        ("job time", text.duration(run.job_s)),
    ]


def settings(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as pairs of dotted name and value, unset ones left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += settings(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            shown = text.plain(value)
            cut = shown if len(shown) <= MAX_CELL else shown[: MAX_CELL - 1] + "…"
            pairs.append((f"{prefix}{key}", cut))
    return pairs


def _link(run: RunFacts, base: Path) -> str | None:
    """Return the address of the run's own report, None where it has none."""
    report = run.path / "report.html"
    if not report.is_file():
        return None
    relative = os.path.relpath(report.resolve(), base.resolve())
    return "./" + quote(Path(relative).as_posix(), errors="replace")


def _data(run: RunFacts) -> dict[str, Any]:
    """Return the numbers of a run as JSON values, for the page's script and other readers."""
    return {
        "key": run.key,
        "run": text.visible(run.name),
        "task": run.state.task.name,
        "status": run.status,
        "result": run.result,
        "fsr": run.best.fsr if run.best else None,
        "nodes": [
            {
                "id": n.node.id,
                "parent": n.node.parent,
                "outcome": n.outcome,
                "val_loss": _finite(n.node.metrics.val_loss) if n.node.metrics else None,
                "train_time_ms": n.node.train_time_ms,
                "fsr": n.fsr,
            }
            for n in run.nodes
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
