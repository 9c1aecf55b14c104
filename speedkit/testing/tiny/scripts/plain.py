"""Trains two numbers by gradient descent and prints what a training run prints."""

from dataclasses import dataclass


@dataclass
class Hyperparameters:
    """What the tuner may change."""

    num_iterations: int = 200
    learning_rate: float = 0.04


args = Hyperparameters()
curvature = (20.0, 0.4)
weights = [1.0, 3.0]


def loss() -> float:
    """Half the curvature times the square, summed over both numbers."""
    return sum(0.5 * c * w * w for c, w in zip(curvature, weights, strict=True))


for step in range(args.num_iterations):
    for i, c in enumerate(curvature):
        weights[i] -= args.learning_rate * c * weights[i]
    if (step + 1) % 40 == 0 or step + 1 == args.num_iterations:
        print(
            f"step:{step + 1}/{args.num_iterations} val_loss:{loss():.4f} "
            f"train_time:{6 * (step + 1)}ms",
            flush=True,
        )
