"""The columns of a results table: one row a run, the same for own runs and imported ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "integer", "number"]


@dataclass(frozen=True)
class Column:
    """A column of the results table.

    Attributes:
        kind: ``text`` (None where missing), ``integer`` or ``number`` (NaN where missing).
        meaning: one phrase.
    """

    name: str
    kind: Kind
    meaning: str


COLUMNS = (
    Column("run", "text", "path of the run directory, or results file and row"),
    Column("name", "text", "name of the run"),
    Column("family", "text", "family of records"),
    Column("task", "text", "FAMILY/ID"),
    Column("task_id", "integer", "id of the task within the family"),
    Column("record", "integer", "index of the start record"),
    Column("target_record", "integer", "index of the record to reproduce"),
    Column("start", "text", "what the search started from: the record, or an own script"),
    Column("scaffold", "text", "search policy"),
    Column("coder", "text", "writer of the nodes"),
    Column("model", "text", "model as served; several are joined by +"),
    Column("model_asked", "text", "model as configured"),
    Column("hints", "text", "hint levels joined by +, or none"),
    Column("knowledge", "text", "knowledge sources but for hints, joined by +, or none"),
    Column("seed", "integer", "seed of the run"),
    Column("status", "text", "finished, stopped, interrupted, failed or running"),
    Column("result", "text", "valid, invalid or missing"),
    Column("nodes", "integer", "nodes that took one of the run's budget"),
    Column("nodes_valid", "integer", "those that may count"),
    Column("nodes_invalid", "integer", "those that ran and may not count"),
    Column("nodes_buggy", "integer", "those that crashed or printed no metrics"),
    Column("nodes_edit_failed", "integer", "those whose coder gave no usable edit"),
    Column("nodes_quarantined", "integer", "those that a guard wants looked at"),
    Column("nodes_stopped", "integer", "those ended early, since they could not win"),
    Column("nodes_pending", "integer", "those whose outcome is open"),
    Column("best_node", "integer", "id of the fastest valid node"),
    Column("train_time_ms", "number", "its training time in milliseconds"),
    Column("start_ms", "number", "time of the start record in milliseconds"),
    Column("target_ms", "number", "time of the target record in milliseconds"),
    Column("calibration", "text", "where these two come from: measured, scaled, reference"),
    Column("gate", "number", "validation loss at or under which a node is valid"),
    Column("fsr", "number", "fraction of the speedup recovered, never clipped"),
    Column("noise_floor", "number", "FSR expected of the best of as many unchanged scripts"),
    Column("verified_fsr", "number", "FSR measured anew by verification"),
    Column("verified_low", "number", "lower end of its interval"),
    Column("verified_high", "number", "upper end of its interval"),
    Column("verdict", "text", "confirmed, refuted or undecided"),
    Column("judge", "text", "name of the judge of the best node"),
    Column("judge_score", "number", "share of the human change that is there, 0 to 1"),
    Column("tokens_in", "integer", "tokens of prompts, cached ones included"),
    Column("tokens_cached", "integer", "those of them from the provider's cache"),
    Column("tokens_out", "integer", "tokens of replies, reasoning included"),
    Column("calls", "integer", "model calls that were sent"),
    Column("dollars", "number", "cost of the model calls; 0 is none, missing is unknown"),
    Column("job_s", "number", "seconds of the jobs of nodes, calibration left out"),
    Column("wall_s", "number", "seconds that controllers were at work on the run"),
    Column("created", "text", "when the run was created"),
    Column("speedkit", "text", "version of speedkit"),
    Column("source", "text", "run, or import"),
)
"""Every column, in order."""

NAMES = tuple(c.name for c in COLUMNS)
"""Names of the columns, in order."""
BY_NAME = {c.name: c for c in COLUMNS}
"""The columns by name."""
TEXTS = frozenset(c.name for c in COLUMNS if c.kind == "text")
"""Names of the columns that hold text."""
OUTCOMES = tuple(n.removeprefix("nodes_") for n in NAMES if n.startswith("nodes_"))
"""Outcomes of nodes that have a column of their own."""

VALID, INVALID, MISSING = "valid", "invalid", "missing"
RESULTS = (VALID, INVALID, MISSING)
"""``valid``: there is a best valid node. ``invalid``: the search is over and no node may count.
``missing``: nothing can be said, because the search is not over, cannot be read, or there is no
speedup to compare with."""
RECORD, OWN = "record", "own"
STARTS = (RECORD, OWN)
"""Whose script a search started from. FSR is measured from it, so that of a run with a start of
its own is no fraction of the human speedup."""
OVER = frozenset({"finished", "stopped"})
"""Statuses of a run whose search is over."""
