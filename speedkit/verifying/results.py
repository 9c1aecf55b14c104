"""Results of a verification: what is told of a node, and the file that keeps it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speedkit import __version__
from speedkit.core.calibration import Calibration
from speedkit.core.files import write_json
from speedkit.core.node import Node
from speedkit.core.paired import Interval, LossTest
from speedkit.core.task import Task
from speedkit.verifying.account import CANDIDATE, START, TARGET, Account, Book
from speedkit.verifying.decision import MAX_DRIFT, Decision, Figures, Rules, figures

SCHEMA = 1


@dataclass(frozen=True)
class NodeVerification:
    """What came of verifying a node.

    Attributes:
        node: its id.
        verdict: ``confirmed``, ``refuted`` or ``undecided``.
        reasons: for the verdict, a sentence each.
        fsr: fraction of the speedup recovered, None where it is not known or not defined.
        ratio: time of the candidate to that of the start record, geometric mean.
        loss: tests of the mean validation loss against the target.
        claimed_fsr: FSR that the search found, None if there is none.
        noise_floor: FSR of the best of as many unchanged scripts as the search had nodes.
        notes: what a reader must know, a sentence each.
        details: all of that and the pairs themselves, JSON values.
    """

    node: int
    verdict: str
    reasons: tuple[str, ...]
    fsr: Interval | None
    ratio: Interval | None
    loss: LossTest | None
    claimed_fsr: float | None
    noise_floor: float | None
    notes: tuple[str, ...]
    details: dict[str, Any] = field(repr=False)


def result_of(node: Node, book: Book, rules: Rules, decision: Decision) -> NodeVerification:
    """Return what came of a node."""
    seen = figures(book.account, rules)
    made = NodeVerification(
        node=node.id,
        verdict=decision.verdict,
        reasons=decision.reasons,
        fsr=seen.fsr if seen else None,
        ratio=seen.ratio if seen else None,
        loss=seen.loss if seen else None,
        claimed_fsr=rules.calibration.fsr(node.train_time_ms),
        noise_floor=seen.noise_floor if seen else None,
        notes=tuple(_notes(book.account, rules.calibration, seen)),
        details={},
    )
    facts = {
        **_told(made),
        "claimed": {
            "fsr": made.claimed_fsr,
            "time_ms": node.train_time_ms,
            "outcome": str(node.outcome),
        },
        "commit": node.commit,
        "attempt": book.attempt,
        "search_nodes": rules.nodes,
        **_measured(book.account, seen),
        "verified": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "speedkit": __version__,
    }
    made.details.update(facts)
    return made


def _told(made: NodeVerification) -> dict[str, Any]:
    fsr = made.fsr
    return {
        "fsr": fsr.value if fsr else None,
        "low": fsr.low if fsr else None,
        "high": fsr.high if fsr else None,
        "verdict": made.verdict,
        "reasons": list(made.reasons),
        "notes": list(made.notes),
        "fsr_method": fsr.method if fsr else None,
        "ratio": asdict(made.ratio) if made.ratio else None,
        "loss": asdict(made.loss) if made.loss else None,
        "noise_floor": made.noise_floor,
    }


def _measured(account: Account, seen: Figures | None) -> dict[str, Any]:
    """Return everything that was measured, and how it was looked at."""
    plan = account.plan
    scripts = (START, CANDIDATE, *((TARGET,) if plan.target else ()))
    return {
        "target_ratio": seen.target_ratio if seen else None,
        "level": asdict(seen.look) if seen else None,
        "drift": seen.drift if seen else None,
        "plan": {**asdict(plan), "looks": [asdict(look) for look in plan.looks]},
        "times_ms": {which: account.times(which) for which in scripts},
        "losses": {which: account.losses(which) for which in scripts},
        "pairs": [pair.to_dict() for pair in account.pairs],
        "code_findings": [f.to_dict() for f in account.code],
        "ablation": account.ablation.to_dict() if account.ablation else None,
        "recount": None if account.recount is None else [f.to_dict() for f in account.recount],
        "interrupted": account.interrupted,
        "hardware": dict(account.hardware),
    }


# --- notes ------------------------------------------------------------------------------


def _notes(account: Account, calibration: Calibration, seen: Figures | None) -> list[str]:
    notes = []
    if seen is not None:
        notes += _notes_on_fsr(account, calibration, seen)
        notes += [f"{longer}; look at what it does there" for longer in seen.longer]
        if seen.drift is not None and abs(seen.drift) > MAX_DRIFT:
            notes.append(
                f"the start record's time drifted by {seen.drift:+.0%} from the first pair to the "
                "last; most of it cancels within the pairs"
            )
    if account.interrupted:
        count = account.interrupted
        notes.append(f"{count} {'pair' if count == 1 else 'pairs'} broke off, to be made again")
    return notes


def _notes_on_fsr(account: Account, calibration: Calibration, seen: Figures) -> list[str]:
    if seen.fsr is None:
        return ["FSR is not defined: the target record is not faster than the start record"]
    notes = []
    if seen.fsr.method == "bootstrap":
        notes.append(
            "the speedup of the target record can hardly be told from none; the interval of FSR "
            "is therefore a bootstrap's, which promises little"
        )
    return notes if account.plan.target else notes + _notes_on_target(account, calibration)


def _notes_on_target(account: Account, calibration: Calibration) -> list[str]:
    """Return what must be known of a target record's time that was not measured again."""
    notes = []
    runs = calibration.start_runs, calibration.target_runs
    if calibration.source != "measured" or min(map(len, runs)) < 2:
        notes.append(
            "the target record's time is taken as exact, so that the interval of FSR is too "
            "narrow; --target measures it too"
        )
    if calibration.source != "reference" and not _is_same_machine(calibration, account):
        notes.append(
            "the run was calibrated on another machine, whose ratio of the two records is used; "
            "--target measures it here"
        )
    return notes


def _is_same_machine(calibration: Calibration, account: Account) -> bool:
    return bool(plain(calibration.fingerprint) == plain(account.hardware))


def plain(values: Any) -> Any:
    """Return values as they are after a visit to a file of JSON."""
    return json.loads(json.dumps(values, default=str))


# --- the file ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """The file with the results of a run's nodes.

    Args:
        path: the file.
        run_id: of the run.
        task: of the run.
    """

    path: Path
    run_id: str
    task: Task

    def keep(self, node: int, details: Mapping[str, Any]) -> None:
        """Enter the result of a node, in place of an earlier one."""
        self._write({**self._nodes(), str(node): dict(details)})

    def forget(self, node: int) -> None:
        """Take the result of a node out, if there is one."""
        nodes = self._nodes()
        if nodes.pop(str(node), None) is not None:
            self._write(nodes)

    def _write(self, nodes: Mapping[str, Any]) -> None:
        head = {"schema": SCHEMA, "run_id": self.run_id, "task": self.task.name}
        write_json(self.path, {**head, "nodes": nodes})

    def _nodes(self) -> dict[str, Any]:
        """Return the results of nodes; none where the file is not there or not whole."""
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        nodes = values.get("nodes") if isinstance(values, dict) else None
        return dict(nodes) if isinstance(nodes, dict) else {}
