"""What is known of the verification of one node, folded from a journal of its own.

::

    RUN/verify/0003/1/            node 3, first attempt
      pairs.jsonl                 the journal: begun, pair_begun, job_started, pair, …
      pair-001/{start,candidate}  logs of the runs
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speedkit.core.errors import UsageError
from speedkit.core.findings import Finding, Level, worst
from speedkit.core.journal import Journal, read_events
from speedkit.core.redact import Redactor
from speedkit.verifying.sequential import Plan

JOURNAL = "pairs.jsonl"
START, CANDIDATE, TARGET = "start", "candidate", "target"


@dataclass(frozen=True)
class Untimed:
    """Seconds of a run that its own clock did not count.

    Attributes:
        before: until the second validation, or the first of two: starting, compiling.
        between: from then to the last one: validations.
        after: from the last one to the end.
    """

    before: float
    between: float
    after: float


@dataclass(frozen=True)
class Measured:
    """One run of a script of a pair.

    Attributes:
        which: ``start``, ``candidate`` or ``target``.
        time_ms: its training time in milliseconds, None if it did not come to its end.
        loss: its last validation loss, None if it did not come to its end.
        fault: why it did not come to its end; empty if it did.
        findings: what guards had to say of it; they are asked of candidates only.
        wall_s: seconds from spawn to end.
        untimed: what of these its clock did not count, None if that was not seen.
    """

    which: str
    time_ms: float | None = None
    loss: float | None = None
    fault: str = ""
    findings: tuple[Finding, ...] = ()
    wall_s: float = 0.0
    untimed: Untimed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "findings": [f.to_dict() for f in self.findings]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """Undo :meth:`to_dict`."""
        findings = tuple(map(Finding.from_dict, values["findings"]))
        untimed = Untimed(**values["untimed"]) if values.get("untimed") else None
        return cls(**{**values, "findings": findings, "untimed": untimed})


@dataclass(frozen=True)
class Pair:
    """Runs of the scripts right after one another, with one seed.

    Attributes:
        number: from 1.
        seed: offered to every script of the pair.
        runs: in the order in which they were made; the last one may have failed.
    """

    number: int
    seed: int
    runs: tuple[Measured, ...]

    def __getitem__(self, which: str) -> Measured:
        return next(run for run in self.runs if run.which == which)

    def has(self, which: str) -> bool:
        """Whether a script was run."""
        return any(run.which == which for run in self.runs)

    @property
    def is_whole(self) -> bool:
        """Whether every run came to its end."""
        return all(run.time_ms is not None for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "number": self.number,
            "seed": self.seed,
            "runs": [run.to_dict() for run in self.runs],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Pair:
        """Undo :meth:`to_dict`."""
        runs = tuple(map(Measured.from_dict, values["runs"]))
        return cls(values["number"], values["seed"], runs)


@dataclass
class Account:
    """The verification of one node so far.

    Attributes:
        plan: what was fixed at the beginning.
        entropy: of the seeds of the pairs, drawn at the beginning.
        hardware: fingerprint of the machine that pairs are measured on.
        code: what guards had to say of the code.
        pairs: those that are over.
        interrupted: pairs that were begun, killed, and begun again.
        handles: of jobs that have started and whose pair is not over, by job name.
        ablation: what a run on shuffled tokens told, None if there was none.
        recount: what was found when its validations were counted, None if they were not.
    """

    plan: Plan
    entropy: int
    hardware: Mapping[str, Any]
    code: tuple[Finding, ...] = ()
    pairs: list[Pair] = field(default_factory=list)
    interrupted: int = 0
    handles: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    ablation: Finding | None = None
    recount: tuple[Finding, ...] | None = None
    _open: int | None = None

    @property
    def whole(self) -> list[Pair]:
        """The pairs whose runs all came to their end."""
        return [pair for pair in self.pairs if pair.is_whole]

    @property
    def findings(self) -> list[Finding]:
        """Everything that guards had to say, of code, runs and ablation."""
        found = [*self.code, *(f for p in self.pairs for run in p.runs for f in run.findings)]
        found += self.recount or ()
        return found if self.ablation is None else [*found, self.ablation]

    @property
    def objection(self) -> Finding | None:
        """The gravest finding that keeps the node from being confirmed."""
        return worst(self.findings)

    @property
    def is_rejected(self) -> bool:
        """Whether a guard rejected the node."""
        return self.objection is not None and self.objection.level is Level.REJECT

    def times(self, which: str) -> list[float]:
        """Return the times of a script in whole pairs, in milliseconds."""
        runs = [pair[which] for pair in self.whole if pair.has(which)]
        return [run.time_ms for run in runs if run.time_ms is not None]

    def losses(self, which: str) -> list[float]:
        """Return the losses of a script in whole pairs."""
        runs = [pair[which] for pair in self.whole if pair.has(which)]
        return [run.loss for run in runs if run.loss is not None]

    def untimed(self, which: str) -> list[Untimed]:
        """Return what the clock of a script did not count, in whole pairs where it was seen."""
        pairs = [p for p in self.whole if p[START].untimed and p[CANDIDATE].untimed]
        seen = (pair[which].untimed for pair in pairs)
        return [untimed for untimed in seen if untimed is not None]

    def apply(self, event: Mapping[str, Any]) -> None:
        """Fold one event into the account."""
        kind = event["type"]
        if kind == "pair_begun":
            self.interrupted += self._open == event["pair"]
            self._open = event["pair"]
        elif kind == "job_started":
            self.handles[event["job"]] = event["handle"]
        elif kind == "jobs_ended":
            self.handles.clear()
        elif kind == "pair":
            self.pairs.append(Pair.from_dict(event["pair"]))
            self.handles.clear()
        elif kind == "ablation":
            self.ablation = Finding.from_dict(event["finding"])
            self.handles.clear()
        elif kind == "recount":
            self.recount = tuple(map(Finding.from_dict, event["findings"]))
            self.handles.clear()


class Book:
    """The journal of one attempt at verifying a node, open for writing.

    Args:
        folder: of the attempt.
        account: what is known.
        journal: where further events go.
        redactor: takes secrets out of what is stored.
    """

    def __init__(
        self, folder: Path, account: Account, journal: Journal, redactor: Redactor
    ) -> None:
        self.folder, self.account, self._journal = folder, account, journal
        self._redactor = redactor

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1."""
        return int(self.folder.name)

    @classmethod
    def open(cls, folder: Path, redactor: Redactor) -> Book:
        """Go on with an attempt that has begun."""
        path = folder / JOURNAL
        return cls(folder, read_account(read_events(path)), Journal(path), redactor)

    @classmethod
    def begin(
        cls, folder: Path, account: Account, redactor: Redactor, facts: Mapping[str, Any]
    ) -> Book:
        """Begin an attempt.

        Args:
            facts: what else is to be found in the journal, JSON values.
        """
        folder.mkdir(parents=True, exist_ok=True)
        book = cls(folder, account, Journal(folder / JOURNAL), redactor)
        event = book.record(
            "begun",
            plan=asdict(account.plan),
            entropy=account.entropy,
            hardware=dict(account.hardware),
            code=[f.to_dict() for f in account.code],
            **facts,
        )
        book.account = read_account([event])
        return book

    def record(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Append an event, without secrets, fold it into the account, and return it."""
        event: dict[str, Any] = self._redactor.tree(
            {"type": kind, "at": round(time.time(), 3), **facts}
        )
        self._journal.append(event)
        self.account.apply(event)
        return event

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()


def read_account(events: Sequence[Mapping[str, Any]]) -> Account:
    """Fold the events of an attempt, of which the first one began it."""
    first = events[0]
    account = Account(
        plan=Plan(**first["plan"]),
        entropy=first["entropy"],
        hardware=first["hardware"],
        code=tuple(map(Finding.from_dict, first["code"])),
    )
    for event in events[1:]:
        account.apply(event)
    return account


def attempts(folder: Path) -> list[Path]:
    """Return the folders of the attempts at a node that have begun, the first one first."""
    numbered = [p for p in folder.glob("*") if p.name.isdigit() and _has_begun(p / JOURNAL)]
    return sorted(numbered, key=lambda p: int(p.name))


def _has_begun(journal: Path) -> bool:
    return journal.exists() and bool(read_events(journal))


def check_same(account: Account, asked: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    """Refuse to go on with an attempt under another plan, or on another machine.

    Args:
        asked: what the user asks for, by field of the plan; None where anything is right.

    Raises:
        UsageError: it was begun otherwise.
    """
    for name, value in asked.items():
        known = getattr(account.plan, name)
        if value is not None and value != known:
            raise UsageError(
                f"this verification began with {name} = {known}, which cannot become {value} now "
                "that data are known; leave it as it was, or begin anew with --fresh"
            )
    if dict(account.hardware) != dict(hardware):
        raise UsageError(
            "this verification began on other hardware or other versions; go on there, or begin "
            "anew with --fresh"
        )
