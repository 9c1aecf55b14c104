"""Where guards meet a node: before it is run, and after it has run well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speedkit.core.calibration import Calibration
from speedkit.core.findings import Finding, Level, worst
from speedkit.core.guards import Code, Guard, Result, check_code, check_result
from speedkit.core.node import Outcome
from speedkit.core.trial import Trial, Trials


@dataclass(frozen=True)
class Inspector:
    """Asks the guards of a run.

    Args:
        guards: in any order; they are asked by cost.
        trials: where their programs are run.
        start: files of the start record.
    """

    guards: Sequence[Guard]
    trials: Trials
    start: Mapping[str, str]

    def code(self, parent: Mapping[str, str], files: Mapping[str, str]) -> tuple[Finding, ...]:
        """Return what the guards say of a node's code, given its parent's."""
        return check_code(self.guards, self._code(parent, files))

    def result(
        self,
        name: str,
        parent: Mapping[str, str],
        files: Mapping[str, str],
        trial: Trial,
        log_dir: Path,
        calibration: Calibration | None,
        best_ms: float | None,
    ) -> tuple[Finding, ...]:
        """Return what the guards say of a node that has run and would be valid.

        Args:
            name: of the node's job; the guards' own jobs are named after it.
        """
        result = Result(
            code=self._code(parent, files),
            report=trial.report,
            execution=trial.execution,
            log_dir=log_dir,
            run=partial(
                self.trials.program, f"{name}-guard", files, trial.artifacts, log_dir / "guard"
            ),
            arrivals=trial.arrivals,
            start_ms=calibration.start_ms if calibration else None,
            target_ms=calibration.target_ms if calibration else None,
            best_ms=best_ms,
            data=self.trials.data,
            artifacts=trial.artifacts,
            hardware=self.trials.fingerprint,
        )
        return check_result(self.guards, result)

    def _code(self, parent: Mapping[str, str], files: Mapping[str, str]) -> Code:
        return Code(self.trials.task, self.start, parent, files)


def decide(outcome: Outcome, reason: str, findings: Sequence[Finding]) -> tuple[Outcome, str]:
    """Return the outcome of a node with what guards found taken into account.

    Only a node that would be valid can be held back; its numbers stay.
    """
    finding = worst(findings)
    if outcome is not Outcome.VALID or finding is None:
        return outcome, reason
    held = Outcome.INVALID if finding.level is Level.REJECT else Outcome.QUARANTINED
    return held, f"guard {finding.guard}: {finding.reason}"
