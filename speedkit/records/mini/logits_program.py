"""Run beside a node's script: load the model that it saved and write logits of given tokens."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

REQUEST = "guard_request.json"
TOKENS = "guard_tokens.bin"
LOGITS = "guard_logits_{}.bin"
WRAPPERS = ("_orig_mod.", "module.")
"""What compilation and data parallelism put before the names of weights."""


def load_model(script: str, artifact: str) -> nn.Module:
    """Return the model of a script with its saved weights, in evaluation mode."""
    sys.argv = [script]
    spec = importlib.util.spec_from_file_location("candidate", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["candidate"] = module
    spec.loader.exec_module(module)
    model: nn.Module = module.GPT(module.Hyperparameters())
    state = torch.load(artifact, map_location="cpu", weights_only=True)
    model.load_state_dict({plain(name): value for name, value in state.items()})
    return model.eval()


def plain(name: str) -> str:
    """Return the name of a weight without what wrappers have put before it."""
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


@torch.no_grad()
def write_logits(model: nn.Module, tokens: Tensor, batch: int, path: Path) -> None:
    """Write the logits of tokens, (sequences, length) int64, as float32."""
    with path.open("wb") as file:
        for part in tokens.split(batch):
            logits = model(part)
            assert logits.shape[:2] == part.shape, f"logits have the shape {tuple(logits.shape)}"
            file.write(logits.float().contiguous().numpy().astype("<f4").tobytes())


def main() -> None:
    """Do what the request says."""
    request = json.loads(Path(REQUEST).read_text(encoding="utf-8"))
    flat = np.frombuffer(Path(TOKENS).read_bytes(), "<u2").astype(np.int64)
    tokens = torch.from_numpy(flat).view(-1, request["length"])
    model = load_model(request["script"], request["artifact"])
    for i, part in enumerate(tokens.split(request["parts"])):
        write_logits(model, part, request["batch"], Path(LOGITS.format(i)))


if __name__ == "__main__":
    main()
