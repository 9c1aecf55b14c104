"""How the guards compute the validation loss of a mini model again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speedkit.core.evaluation import ModelTest
from speedkit.core.task import Task
from speedkit.records.mini import corpus
from speedkit.records.shards import read_tokens

PROGRAM = Path(__file__).resolve().with_name("logits_program.py")
CONTRACT = (
    "the script must save the state_dict of GPT(Hyperparameters()) as model.pt, and the model "
    "must map tokens (B, T) to logits (B, T, 256)"
)
VAL_FILE = "mini_val_000001.bin"
VAL_TOKENS = 32_768
HIDDEN_TOKENS = 16_384
LENGTH = 128
VOCAB = 256
FIRST_HIDDEN_SEED = 1000
"""Smaller seeds belong to the public shards."""


def model_test(task: Task, data: Path, seed: int) -> ModelTest:
    """Return how a model is tested: on the public validation tokens, and on hidden ones.

    Args:
        data: folder of the public shards.
        seed: of the hidden text, which the same generator writes.
    """
    text = corpus.write_text(FIRST_HIDDEN_SEED + seed, HIDDEN_TOKENS + 1)
    return ModelTest(
        program=PROGRAM.read_text(encoding="utf-8"),
        contract=CONTRACT,
        vocab=VOCAB,
        length=LENGTH,
        public=np.array(read_tokens(data / VAL_FILE)[: VAL_TOKENS + 1]),
        hidden=np.frombuffer(text, np.uint8).astype(np.uint16),
    )
