"""Record 7: a smaller model, and short sequences in the first half of the training."""

import glob
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Hyperparameters:
    """Everything that a search may want to change."""

    # data
    train_files: str = "data/mini_train_*.bin"
    val_files: str = "data/mini_val_*.bin"
    val_tokens: int = 32768
    val_seq_len: int = 128
    # model
    vocab_size: int = 256
    num_layers: int = 2
    num_heads: int = 2
    model_dim: int = 64
    pair_buckets: int = 2048
    # optimization
    num_iterations: int = 33
    batch_size: int = 8  # sequences a step, over all ranks
    seq_len: int = 128
    short_seq_len: int = 32  # for the first part of the training
    short_fraction: float = 0.5
    learning_rate: float = 0.04  # of AdamW, for embeddings, head and shift
    muon_learning_rate: float = 0.12
    muon_momentum: float = 0.85
    ns_steps: int = 5
    cooldown_fraction: float = 0.7
    # evaluation and logging
    val_loss_every: int = 9
    log_every: int = 10
    seed: int = int(os.environ.get("SPEEDKIT_SEED", "0"))


# ---------------------------------------------------------------------------------------------
# The optimizer


def orthogonalize(G: Tensor, steps: int) -> Tensor:
    """Push the singular values of a stack of wide matrices towards 1 (quintic Newton-Schulz)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G / (G.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X


class Muon:
    """Nesterov momentum, orthogonalized in stacks of one shape: each rank does its share."""

    def __init__(self, weights: list[nn.Parameter], momentum: float, ns_steps: int) -> None:
        self.momentum, self.ns_steps = momentum, ns_steps
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        stacks: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = {}
        for weight in weights:
            rows, cols = weight.shape
            size = cols if rows == 3 * cols else rows  # q, k and v are matrices of their own
            for matrix, grad in zip(weight.data.split(size), weight.grad.split(size), strict=True):
                scale = max(1.0, size / cols) ** 0.5
                if size > cols:
                    matrix, grad = matrix.T, grad.T
                stacks.setdefault(matrix.shape, []).append((matrix, grad, scale))
        self.stacks = list(stacks.values())
        self.buffers: list[Tensor | None] = [None] * len(self.stacks)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every matrix at the rate lr."""
        for i, stack in enumerate(self.stacks):
            grad = torch.stack([grad for _, grad, _ in stack[self.rank :: self.world_size]])
            buffer = torch.zeros_like(grad) if self.buffers[i] is None else self.buffers[i]
            self.buffers[i] = buffer.lerp_(grad, 1 - self.momentum)
            update = grad.lerp_(buffer, self.momentum)
            updates = update.new_zeros(len(stack), *update.shape[1:])
            updates[self.rank :: self.world_size] = orthogonalize(update, self.ns_steps)
            dist.all_reduce(updates)
            for (matrix, _, scale), update in zip(stack, updates, strict=True):
                matrix.sub_(update, alpha=lr * scale)


# ---------------------------------------------------------------------------------------------
# The model


def norm(x: Tensor) -> Tensor:
    """Scale the last dimension to a root mean square of 1."""
    return F.rms_norm(x, (x.size(-1),))


class Rotary(nn.Module):
    """Rotate pairs of channels by an angle that grows with the position."""

    def __init__(self, head_dim: int, max_seq_len: int = 1024) -> None:
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angle = torch.outer(torch.arange(max_seq_len), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate queries or keys: (B, heads, T, head_dim) to the same."""
        cos, sin = self.cos[: x.size(-2)], self.sin[: x.size(-2)]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.rotary = Rotary(dim // num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, dim) to (B, T, dim)."""
        B, T, dim = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, dim))


class MLP(nn.Module):
    """Two layers, the hidden one twice as wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, dim) to (B, T, dim)."""
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, dim) to (B, T, dim)."""
        x = x + self.attn(norm(x))
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    """The language model."""

    def __init__(self, args: Hyperparameters) -> None:
        super().__init__()
        self.embed = nn.Embedding(args.vocab_size, args.model_dim)
        self.blocks = nn.ModuleList(
            Block(args.model_dim, args.num_heads) for _ in range(args.num_layers)
        )
        self.head = nn.Linear(args.model_dim, args.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.shift = nn.Parameter(torch.full((args.model_dim,), 0.5))
        self.pairs = nn.Embedding(args.pair_buckets, args.model_dim)
        nn.init.zeros_(self.pairs.weight)
        nn.init.zeros_(self.head.weight)
        for block in self.blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.proj.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, (B, T) int64, to the logits of the next ones, (B, T, vocab_size)."""
        x = self.embed(tokens)
        x = x + self.shift * F.pad(x[:, :-1], (0, 0, 1, 0))  # mix in the token before
        before = F.pad(tokens[:, :-1], (1, 0))
        x = norm(x + self.pairs((37 * before + 101 * tokens) % self.pairs.num_embeddings))
        for block in self.blocks:
            x = block(x)
        return self.head(norm(x))


# ---------------------------------------------------------------------------------------------
# The data


def load_shard(path: str) -> Tensor:
    """Return the tokens of a .bin file: 256 int32 of header, then uint16 tokens."""
    header = torch.from_file(path, size=256, dtype=torch.int32)
    assert header[0] == 20240520, f"{path}: magic number mismatch"
    assert header[1] == 1, f"{path}: unsupported version"
    count = int(header[2])
    assert os.path.getsize(path) == 2 * (512 + count), f"{path}: wrong number of tokens"
    return torch.from_file(path, size=512 + count, dtype=torch.uint16)[512:].to(torch.int64)


def load_tokens(pattern: str) -> Tensor:
    """Return the tokens of all shards whose names match."""
    files = sorted(glob.glob(pattern))
    assert files, f"no file matches {pattern}"
    return torch.cat([load_shard(file) for file in files])


def train_batches(args: Hyperparameters, rank: int, world_size: int) -> Iterator[Tensor]:
    """Yield this rank's share of every batch, without end."""
    tokens = load_tokens(args.train_files)
    size = args.batch_size * args.seq_len
    while True:
        for start in range(0, len(tokens) - size, size):
            yield rank_slice(tokens[start : start + size + 1], rank, world_size)


def rank_slice(tokens: Tensor, rank: int, world_size: int) -> Tensor:
    """Return this rank's equal share of the inputs, and one more token as the last target."""
    size = (len(tokens) - 1) // world_size
    return tokens[rank * size : (rank + 1) * size + 1]


# ---------------------------------------------------------------------------------------------
# The run


def print0(text: str) -> None:
    """Print from rank 0 alone."""
    if dist.get_rank() == 0:
        print(text, flush=True)


def loss_of(model: nn.Module, tokens: Tensor, seq_len: int) -> Tensor:
    """Return the mean cross-entropy, in nats a token, over sequences of seq_len tokens."""
    logits = model(tokens[:-1].view(-1, seq_len))
    return F.cross_entropy(logits.flatten(0, 1), tokens[1:])


@torch.no_grad()
def validate(model: nn.Module, tokens: Tensor, seq_len: int) -> float:
    """Return the mean loss over the tokens of all ranks."""
    size = 32 * seq_len
    parts = [tokens[start : start + size + 1] for start in range(0, len(tokens) - 1, size)]
    loss = torch.stack([loss_of(model, part, seq_len) for part in parts]).mean()
    dist.all_reduce(loss)
    return loss.item() / dist.get_world_size()


def gradient_buffer(parameters: list[nn.Parameter]) -> Tensor:
    """Return one flat tensor of which all gradients are views, so that it can be sent as it is."""
    flat = torch.zeros(sum(p.numel() for p in parameters))
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = grad.view_as(p)
    return flat


def schedule(args: Hyperparameters, step: int) -> float:
    """Return the factor of the learning rates: a plateau, then a linear decay to zero."""
    cooldown = (args.num_iterations - step) / (args.cooldown_fraction * args.num_iterations)
    return min(1.0, cooldown)


def main() -> None:
    """Train, validate and save."""
    args = Hyperparameters()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(args.seed)
    model = GPT(args)
    parameters = list(model.parameters())
    adam = torch.optim.AdamW(
        [p for name, p in model.named_parameters() if "blocks" not in name],
        lr=args.learning_rate,
        betas=(0.7, 0.9),
        weight_decay=0.0,
    )
    gradients = gradient_buffer(parameters)
    muon = Muon(list(model.blocks.parameters()), args.muon_momentum, args.ns_steps)
    train_loader = train_batches(args, rank, world_size)
    val_tokens = rank_slice(load_tokens(args.val_files)[: args.val_tokens + 1], rank, world_size)
    print0(f"{sum(p.numel() for p in parameters)} parameters, {world_size} ranks, {args}")

    # the first pass allocates memory and connects the ranks: not part of the measured time
    loss_of(model, torch.zeros_like(next(train_loader)), args.seq_len).backward()
    dist.all_reduce(gradients)
    gradients.zero_()

    train_time = 0.0  # seconds, without validation
    dist.barrier()
    started = time.perf_counter()
    for step in range(args.num_iterations + 1):
        last_step = step == args.num_iterations
        if last_step or (step > 0 and step % args.val_loss_every == 0):
            dist.barrier()
            train_time += time.perf_counter() - started
            val_loss = validate(model, val_tokens, args.val_seq_len)
            print0(
                f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} "
                f"train_time:{1000 * train_time:.0f}ms step_avg:{1000 * train_time / step:.2f}ms"
            )
            dist.barrier()
            started = time.perf_counter()
        if last_step:
            break

        short = step < args.short_fraction * args.num_iterations
        seq_len = args.short_seq_len if short else args.seq_len
        loss_of(model, next(train_loader), seq_len).backward()
        dist.all_reduce(gradients)
        gradients /= world_size
        factor = schedule(args, step)
        adam.param_groups[0]["lr"] = args.learning_rate * factor
        adam.step()
        muon.step(args.muon_learning_rate * factor)
        gradients.zero_()

        if (step + 1) % args.log_every == 0:
            so_far = 1000 * (train_time + time.perf_counter() - started)
            print0(
                f"step:{step + 1}/{args.num_iterations} "
                f"train_time:{so_far:.0f}ms step_avg:{so_far / (step + 1):.2f}ms"
            )

    if rank == 0:
        torch.save(model.state_dict(), "model.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
