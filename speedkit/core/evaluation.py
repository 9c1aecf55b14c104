"""What a family offers for computing a validation loss again, from a saved model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
