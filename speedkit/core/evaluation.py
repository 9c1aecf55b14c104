"""What a family offers for computing a validation loss again, or for counting it from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedkit.core.findings import Finding
from speedkit.core.metrics import Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens = NDArray[np.uint16]
else:
    Tokens = Any

TOKENS = "guard_tokens.bin"
"""Input of the program: uint16, little-endian, one sequence after the other."""
REQUEST = "guard_request.json"
"""Input of the program: a :class:`dict` with script, artifact, length, batch and parts."""
LOGITS = "guard_logits_{}.bin"
"""Outputs of the program: float32, little-endian, (sequences of the part, length, vocab)."""


@dataclass(frozen=True)
class ModelTest:
    """How the validation loss of a saved model is computed again.

    Attributes:
        program: source of a Python program that is run beside the node's files. It reads
            ``REQUEST`` and ``TOKENS`` and writes ``LOGITS``, a file for each part.
        contract: what the program needs of a script, a sentence for the user.
        vocab: number of token ids.
        length: tokens of a sequence that is validated.
        public: validation tokens, and one more as the last target.
        hidden: as many or fewer tokens of the same kind that no script has seen.
    """

    program: str
    contract: str
    vocab: int
    length: int
    public: Tokens
    hidden: Tokens


@dataclass(frozen=True)
class Recount:
    """A node, to be run once more below a program that counts what it validates.

    Attributes:
        files: what is run in place of the node's files.
        artifacts: names of the files in which the program writes what it counted.
        judge: given these files and the log of that run, returns what does not fit.
    """

    files: Mapping[str, str]
    artifacts: tuple[str, ...]
    judge: Callable[[Sequence[Path], Report], Sequence[Finding]]
