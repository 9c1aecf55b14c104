"""Prints what a training run would print; its time depends on its numbers alone."""

from dataclasses import dataclass


@dataclass
class Hyperparameters:
    num_iterations: int = 100
    learning_rate: float = 0.01


args = Hyperparameters()
loss = 0.5 + 20 / args.num_iterations + abs(args.learning_rate - 0.01)
time_ms = round(100 * args.num_iterations * (1 + args.learning_rate))
print(
    f"step:{args.num_iterations}/{args.num_iterations} val_loss:{loss:.4f} train_time:{time_ms}ms"
)
