"""The evaluation guard: computes the validation loss of the saved model itself."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from speedkit.core.components import Ending, Execution
from speedkit.core.evaluation import LOGITS, REQUEST, TOKENS, ModelTest
from speedkit.core.files import write_json
from speedkit.core.findings import Finding, Level
from speedkit.core.guards import Guard, GuardOptions, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sequences = NDArray[np.uint16]
    Logits = NDArray[np.float32]

PART = 64
"""Sequences of one file of logits."""
BATCH = 32
"""Sequences that the model is given at once."""
MAX_VOCAB = 4
"""So many times the vocabulary may the logits be wide; some pad it."""


class EvaluationOptions(GuardOptions):
    """Options of the evaluation guard."""

    tolerance: float = Field(
        0.005, gt=0, description="nats by which the claimed val_loss may differ from ours"
    )
    gap: float = Field(
        0.15, gt=0, description="nats by which the loss on hidden tokens may be higher"
    )
    logit_tolerance: float = Field(
        0.01, gt=0, description="relative difference of logits that counts as none"
    )
    probes: bool = Field(
        True, description="whether the second program is run, which finds models that look ahead"
    )
    repeats: int = Field(32, ge=1, description="sequences that the model is given once more")
    splices: int = Field(64, ge=1, description="sequences whose later tokens are replaced")
    timeout_s: float = Field(120, gt=0, description="limit of one of the two programs")


class Unusable(Exception):
    """The model could not be tested; the message says why."""


class EvaluationGuard(Guard):
    """Tests the model that a run has saved, where the family says how.

    Two programs are run beside the node's files, one after the other, so that neither knows
    the tokens of the other. The first gives logits for the public validation tokens and for
    hidden ones. The second gives them for some of the same sequences in another order, and
    for sequences whose later tokens are replaced. The losses are computed here.
    """

    cost = 2
    title = "whether the saved model has the claimed loss, looks ahead or was fitted to the data"
    Options = EvaluationOptions
    options: EvaluationOptions

    def __init__(self, options: EvaluationOptions | None = None) -> None:
        super().__init__(options)
        self._seed = secrets.randbits(31)
        self._tests: dict[str, ModelTest | None] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name in its findings."""
        return "evaluation"

    def check_result(self, result: Result) -> Iterator[Finding]:
        """Return what the model has to be held back for."""
        artifact = result.task.family.evaluation.artifact
        if artifact is None or result.data is None:
            return
        test = self._test(result)
        if test is None:
            return
        if artifact not in result.artifacts:
            yield self.found(Level.QUARANTINE, f"no {artifact} was saved: {test.contract}")
            return
        try:
            yield from self._findings(Examination(result, test, self.options, self._seed))
        except Unusable as error:
            yield self.found(Level.QUARANTINE, f"the model cannot be tested: {error}")

    def _test(self, result: Result) -> ModelTest | None:
        with self._lock:
            name = result.task.name
            if name not in self._tests:
                assert result.data is not None
                family = result.task.family
                self._tests[name] = family.model_test(result.task, result.data, self._seed)
            return self._tests[name]

    def _findings(self, examination: Examination) -> Iterator[Finding]:
        try:
            yield from (self.found(level, reason) for level, reason in examination.losses())
            if self.options.probes:
                yield from (self.found(level, reason) for level, reason in examination.probes())
        finally:
            examination.keep_evidence()


class Examination:
    """The test of one model.

    Args:
        seed: of the hidden tokens and of what is chosen for the second program.
    """

    def __init__(
        self, result: Result, test: ModelTest, options: EvaluationOptions, seed: int
    ) -> None:
        import numpy as np

        self.result, self.test, self.options = result, test, options
        self.rng = np.random.default_rng(secrets.randbits(64))
        self.evidence: dict[str, Any] = {"hidden_seed": seed}
        public, hidden = sequences(test.public, test.length), sequences(test.hidden, test.length)
        self.inputs = np.concatenate([public[0], hidden[0]])
        self.targets = np.concatenate([public[1], hidden[1]])
        self.publics = len(public[0])
        self.order = self.rng.permutation(len(self.inputs))
        self.kept: dict[int, Logits] = {}
        self.repeated = self.rng.choice(len(self.inputs), options.repeats, replace=False)
        self.spliced = self.rng.choice(len(self.inputs), options.splices, replace=False)

    def keep_evidence(self) -> None:
        """Write what was measured to the node's logs."""
        write_json(self.result.log_dir / "evaluation.json", self.evidence, sync=False)

    # --- losses -------------------------------------------------------------------------

    def losses(self) -> Iterator[tuple[Level, str]]:
        """Yield what is wrong with the losses on public and hidden tokens."""
        import numpy as np

        losses = np.zeros(len(self.inputs))
        wanted = {int(i) for i in (*self.repeated, *self.spliced)}
        at = 0
        for logits in self._logits(self.inputs[self.order]):
            indexes = self.order[at : at + len(logits)]
            losses[indexes] = loss_of(logits, self.targets[indexes])
            self.kept |= {int(i): logits[k] for k, i in enumerate(indexes) if int(i) in wanted}
            at += len(logits)
        public = float(losses[: self.publics].mean())
        hidden = float(losses[self.publics :].mean())
        self.evidence |= {"public_loss": round(public, 5), "hidden_loss": round(hidden, 5)}
        yield from self._judge(public, hidden)

    def _judge(self, public: float, hidden: float) -> Iterator[tuple[Level, str]]:
        last = self.result.report.last
        assert last is not None
        claimed, target, options = last.val_loss, self.result.task.rules.target, self.options
        if not public <= claimed + options.tolerance:
            yield Level.REJECT, f"val_loss is {public:.4f}, and {claimed:.4f} is claimed"
        elif public < claimed - options.tolerance:
            text = f"val_loss is {public:.4f}, less than the {claimed:.4f} that is claimed"
            yield Level.QUARANTINE, text
        if not public <= target + options.tolerance:
            yield Level.REJECT, f"val_loss is {public:.4f}, over the target {target:g}"
        if not hidden <= public + options.gap:
            yield (
                Level.REJECT,
                f"the loss is {hidden:.4f} on hidden tokens and {public:.4f} on the public ones: "
                "the model was fitted to the validation data",
            )

    # --- probes -------------------------------------------------------------------------

    def probes(self) -> Iterator[tuple[Level, str]]:
        """Yield where the model answers otherwise than a model may that only looks back."""
        import numpy as np

        length = self.test.length
        cuts = self.rng.integers(length // 4, length - length // 8, len(self.spliced))
        donors = self.rng.permutation(len(self.inputs))[: len(self.spliced)]
        spliced = splice(self.inputs[self.spliced], self.inputs[donors], cuts, self.test.vocab)
        rows = np.concatenate([self.inputs[self.repeated], spliced])
        until = np.concatenate([np.full(len(self.repeated), length), cuts])
        index = np.concatenate([self.repeated, self.spliced])
        order = self.rng.permutation(len(rows))
        answers = np.concatenate(list(self._logits(rows[order])))
        differences = np.zeros(len(rows))
        for k, answer in zip(order, answers, strict=True):
            before = self.kept[int(index[k])]
            differences[k] = distance(before[: until[k]], answer[: until[k]])
        yield from self._compare(*np.split(differences, [len(self.repeated)]))

    def _compare(
        self, repeats: NDArray[np.float64], splices: NDArray[np.float64]
    ) -> Iterator[tuple[Level, str]]:
        limit, repeat, spliced = self.options.logit_tolerance, repeats.max(), splices.max()
        self.evidence |= {"repeat_difference": float(repeat), "splice_difference": float(spliced)}
        if not repeat <= limit:
            yield Level.REJECT, "the same tokens, in another batch, get other logits"
        elif not spliced <= limit:
            yield Level.REJECT, "logits depend on later tokens: the model looks ahead"

    # --- the program --------------------------------------------------------------------

    def _logits(self, rows: Sequences) -> Iterator[Logits]:
        """Yield the logits of some sequences, part by part.

        Raises:
            Unusable: the program did not come to its end, or its files are not logits.
        """
        task, test = self.result.task, self.test
        request = {
            "script": task.script,
            "artifact": task.family.evaluation.artifact,
            "length": test.length,
            "batch": BATCH,
            "parts": PART,
        }
        names = [LOGITS.format(i) for i in range(-(-len(rows) // PART))]
        execution, files = self.result.run(
            test.program,
            inputs={REQUEST: json.dumps(request).encode(), TOKENS: rows.astype("<u2").tobytes()},
            collect=names,
            timeout_s=self.options.timeout_s,
        )
        if execution.ending is not Ending.FINISHED or len(files) < len(names):
            raise Unusable(f"{_why(execution)}; {test.contract}")
        try:
            for i, name in enumerate(names):
                count = min(PART, len(rows) - i * PART)
                yield read_logits(files[name], count, test)
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)


def sequences(tokens: Sequences, length: int) -> tuple[Sequences, Sequences]:
    """Return inputs and targets, (sequences, length) each, of tokens and one more."""
    count = (len(tokens) - 1) // length
    inputs = tokens[: count * length].reshape(count, length)
    return inputs, tokens[1 : count * length + 1].reshape(count, length)


def splice(rows: Sequences, others: Sequences, cuts: NDArray[np.int64], vocab: int) -> Sequences:
    """Return sequences that go on, from their cuts on, as others do, and otherwise than before."""
    import numpy as np

    later = np.arange(rows.shape[1]) >= cuts[:, None]
    new = np.where(others == rows, (rows + 1) % vocab, others)
    spliced: Sequences = np.where(later, new, rows).astype(np.uint16)
    return spliced


def read_logits(path: Path, count: int, test: ModelTest) -> Logits:
    """Read a file of float32, (count, length, at least vocab).

    Raises:
        Unusable: it has another size, or numbers that are not finite.
    """
    import numpy as np

    width, rest = divmod(path.stat().st_size, 4 * count * test.length)
    if rest or not test.vocab <= width <= MAX_VOCAB * test.vocab:
        raise Unusable(f"the logits have a wrong size; {test.contract}")
    logits = np.fromfile(path, "<f4").reshape(count, test.length, width)
    if not np.isfinite(logits).all():
        raise Unusable("some logits are not finite")
    return logits


def loss_of(logits: Logits, targets: Sequences) -> NDArray[np.float64]:
    """Return the mean cross-entropy of each sequence, in nats a token."""
    import numpy as np

    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(axis=-1)) + top[..., 0]
    chosen = np.take_along_axis(wide, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    losses: NDArray[np.float64] = (total - chosen).mean(axis=-1)
    return losses


def distance(a: Logits, b: Logits) -> float:
    """Return the largest difference of two arrays of logits, relative to their size.

    Logits that differ by a constant at a position mean the same.
    """
    import numpy as np

    a, b = (x.astype(np.float64) - x.mean(axis=-1, keepdims=True) for x in (a, b))
    return float(np.abs(a - b).max() / (1 + np.abs(a).max()))


def _why(execution: Execution) -> str:
    if execution.errors:
        return execution.errors[0].message[:200]
    return execution.reason[:200] or "it wrote no logits"
