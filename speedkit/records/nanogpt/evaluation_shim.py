"""Run in place of a node's script: runs it, and keeps account of every loss of a validation.

A loss belongs to a validation when it is computed without gradients, or by a model that was put
into evaluation mode: early records validate with gradients, because torch could not compile
them otherwise.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

SCRIPT = "speedkit_candidate.py"
ACCOUNT = "speedkit-evaluation-{}.json"
HOOKED = ("cross_entropy", "linear_cross_entropy", "nll_loss")
TARGET = {"cross_entropy": 1, "linear_cross_entropy": 2, "nll_loss": 1}
"""Position of the targets among the arguments."""


class Account:
    """The losses of this rank, one list for each validation."""

    def __init__(self) -> None:
        self.validations: list[list[tuple[int, Tensor, Tensor]]] = []
        self.is_open = False
        self.evaluates = False
        self.depth = 0

    def add(self, loss: Tensor, target: Tensor, reduction: str, ignore_index: int) -> None:
        """Add one call of a validation."""
        if not self.is_open:
            self.validations.append([])
            self.is_open = True
        counted = target[target != ignore_index].to(torch.int64)
        total = loss.detach().double().sum()
        if reduction == "mean":
            total = total * counted.numel()
        self.validations[-1].append((counted.numel(), total, counted.sum()))

    def close(self, *_: Any) -> None:
        """End the validation: an optimizer has made a step."""
        self.is_open = False

    def write(self) -> None:
        """Write what was counted, in the folder that the script was started in."""
        rows = [
            {
                "tokens": sum(count for count, _, _ in calls),
                "loss_sum": sum(float(total) for _, total, _ in calls),
                "target_sum": sum(int(targets) for _, _, targets in calls),
            }
            for calls in self.validations
        ]
        path = FOLDER / ACCOUNT.format(os.environ.get("RANK", "0"))
        path.write_text(json.dumps({"validations": rows}), encoding="utf-8")


FOLDER = Path.cwd()
ACCOUNTS = Account()


@torch.compiler.disable
def note(loss: Tensor, target: Tensor, reduction: str, ignore_index: int) -> None:
    """Add a call to the account; never part of a compiled graph."""
    ACCOUNTS.add(loss, target, reduction, ignore_index)


def hook(name: str) -> None:
    """Put a function in the place of one of ``torch.nn.functional`` that also keeps account."""
    original = getattr(F, name)
    position = TARGET[name]

    def counted(*args: Any, **kwargs: Any) -> Any:
        trains = torch.is_grad_enabled() and not ACCOUNTS.evaluates
        if trains or ACCOUNTS.depth:
            return original(*args, **kwargs)
        ACCOUNTS.depth += 1  # cross_entropy may call nll_loss
        try:
            loss = original(*args, **kwargs)
        finally:
            ACCOUNTS.depth -= 1
        target = kwargs["target"] if "target" in kwargs else args[position]
        ignored = kwargs.get("ignore_index")
        note(loss, target, kwargs.get("reduction", "mean"), -100 if ignored is None else ignored)
        return loss

    setattr(F, name, counted)


def hook_modes() -> None:
    """Take note when a model is put into evaluation mode, and when it trains again."""
    original = torch.nn.Module.train

    def train(self: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
        ACCOUNTS.evaluates = not mode
        return original(self, mode)

    torch.nn.Module.train = train  # type: ignore[method-assign]


def main() -> None:
    """Hook the losses and run the script as if it had been started itself."""
    for name in HOOKED:
        if hasattr(F, name):
            hook(name)
    hook_modes()
    register_optimizer_step_post_hook(ACCOUNTS.close)
    atexit.register(ACCOUNTS.write)
    sys.argv[0] = SCRIPT
    runpy.run_path(SCRIPT, run_name="__main__")


if __name__ == "__main__":
    main()
