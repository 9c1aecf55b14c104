"""What the tests of judges share."""

from __future__ import annotations

import pytest

from speedkit.core.components import JudgeRequest
from tests.kit.code_requests import toy_task

START = '''
"""Train."""
import torch


class Hyperparameters:
    steps: int = 100
    rate: float = 0.01


def schedule(step, total):
    """Return the factor of the rate."""
    return min(1.0, (total - step) / total)


def train(model, batches, args):
    optimizer = torch.optim.SGD(model.parameters(), lr=args.rate)
    for step in range(args.steps):
        loss = model(next(batches))
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = args.rate * schedule(step, args.steps)
        optimizer.step()
'''

HUMAN = '''
"""Train faster."""
import torch


class Hyperparameters:
    steps: int = 60
    rate: float = 0.02
    momentum: float = 0.95


def orthogonalize(update, rounds):
    """Push the singular values towards one."""
    x = update / update.norm()
    for _ in range(rounds):
        a = x @ x.T
        x = 3.4 * x - 4.8 * a @ x + 2.0 * a @ a @ x
    return x


class Muon:
    """Momentum, orthogonalized."""

    def __init__(self, weights, momentum):
        self.weights, self.momentum = weights, momentum

    def step(self, rate):
        for weight in self.weights:
            buffer = weight.grad.lerp(weight.state, self.momentum)
            weight.sub_(orthogonalize(buffer, 5), alpha=rate)


def schedule(step, total):
    """Return the factor of the rate."""
    return min(1.0, 2 * (total - step) / total)


def train(model, batches, args):
    optimizer = Muon(model.parameters(), args.momentum)
    for step in range(args.steps):
        loss = model(next(batches))
        loss.backward()
        optimizer.step(args.rate * schedule(step, args.steps))
'''


@pytest.fixture(autouse=True)
def no_guards(monkeypatch):
    """Let made-up losses and times pass."""
    monkeypatch.setenv("SPEEDKIT_GUARDS", "none")


@pytest.fixture
def request_of(tmp_path):
    """Return a function that asks how much of HUMAN an agent's script holds."""

    def ask(agent, start=START, human=HUMAN, task=None):
        task = task or toy_task()
        files = [{task.script: text} for text in (start, human, agent)]
        return JudgeRequest(task, *files, log_dir=tmp_path / "log")

    return ask
