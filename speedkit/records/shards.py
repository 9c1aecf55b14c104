"""Token shards: files of a header and token ids, as NanoGPT trainers read them.

A shard begins with 256 little-endian int32 (magic number, version, number of tokens, zeros),
followed by the tokens as little-endian uint16.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speedkit.core.errors import FamilyError

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN_BYTES = 2
MAX_TOKENS = 2**31 - 1
"""The number of tokens is an int32."""

Tokens = NDArray[np.uint16]


class ShardError(FamilyError):
    """A file that is no whole shard."""


@dataclass(frozen=True)
class Shard:
    """A file of tokens.

    Attributes:
        tokens: how many it holds.
    """

    path: Path
    tokens: int


def write_shard(path: Path, parts: Iterable[Tokens], tokens: int) -> Shard:
    """Write a shard part by part; the file appears only when it is whole.

    Args:
        path: the file.
        parts: token ids, uint16, in order.
        tokens: how many the parts hold together.

    Raises:
        ValueError: the parts hold another number of tokens.
    """
    if not 0 < tokens <= MAX_TOKENS:
        raise ValueError(f"a shard holds 1 to {MAX_TOKENS} tokens, not {tokens}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        written = 0
        with os.fdopen(fd, "wb") as file:
            file.write(_header(tokens))
            for part in parts:
                file.write(part.astype("<u2", copy=False).tobytes())
                written += part.size
        if written != tokens:
            raise ValueError(f"{path.name}: {written} tokens in place of {tokens}")
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return Shard(path, tokens)


def _header(tokens: int) -> bytes:
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


def read_shard(path: Path) -> Shard:
    """Read the header of a shard and compare it with the size of the file.

    Raises:
        ShardError: the file is missing, of another format, or cut short.
    """
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror or error}") from None
    if len(data) < HEADER_BYTES:
        raise ShardError(f"{path} is no shard: it has {size} bytes")
    magic, version, tokens = (int(n) for n in np.frombuffer(data, "<i4", count=3))
    if magic != MAGIC:
        raise ShardError(f"{path} is no shard: its magic number is {magic}, not {MAGIC}")
    if version != VERSION:
        raise ShardError(f"{path} is a shard of version {version}; {VERSION} is known")
    expected = HEADER_BYTES + TOKEN_BYTES * tokens
    if tokens < 1 or size != expected:
        raise ShardError(
            f"{path} is damaged: {size} bytes in place of {expected} for {tokens} tokens; "
            "remove it and get it again"
        )
    return Shard(path, tokens)


def read_tokens(path: Path) -> Tokens:
    """Return all tokens of a shard, uint16, mapped from the file."""
    shard = read_shard(path)
    tokens: Tokens = np.memmap(path, "<u2", "r", offset=HEADER_BYTES, shape=(shard.tokens,))
    return tokens


# --- synthetic text ---------------------------------------------------------------------


@dataclass(frozen=True)
class SyntheticText:
    """Tokens that behave like text as far as speed goes: frequencies, documents, word pairs.

    Ranks follow Zipf's law, so that a few tokens are common and most are rare. With
    probability ``pair_prob`` a token is one of four successors of the token before it, so
    that there is something to learn. Documents end after a geometric number of tokens.

    Attributes:
        seed: the same seed gives the same tokens.
        vocab: number of token ids; the last one separates documents.
        pair_prob: share of tokens that follow from the one before.
        document: mean tokens of a document.
    """

    seed: int
    vocab: int = 50257
    pair_prob: float = 0.4
    document: int = 700

    SUCCESSORS = 4
    CHUNK = 1 << 20
    LONGEST_CHAIN = 12

    def parts(self, stream: int, tokens: int) -> Iterator[Tokens]:
        """Yield the tokens of one stream (one shard), at most 2^20 at a time."""
        rng = np.random.default_rng([self.seed, stream])
        tables = self._tables()
        for start in range(0, tokens, self.CHUNK):
            part = self._chunk(rng, min(self.CHUNK, tokens - start), *tables)
            if start == 0:
                part[0] = self.vocab - 1
            yield part

    def _tables(self) -> tuple[NDArray[np.float64], Tokens, Tokens]:
        """Return cumulative frequencies by rank, token by rank, successors by token."""
        rng = np.random.default_rng([self.seed, 2**32])
        weights = 1 / (np.arange(self.vocab - 1) + 2.7)
        cumulative = np.cumsum(weights / weights.sum())
        by_rank = rng.permutation(self.vocab - 1).astype(np.uint16)
        drawn = self._draw(rng, (self.vocab, self.SUCCESSORS), cumulative, by_rank)
        return cumulative, by_rank, drawn

    @staticmethod
    def _draw(
        rng: np.random.Generator,
        shape: int | tuple[int, int],
        cumulative: NDArray[np.float64],
        by_rank: Tokens,
    ) -> Tokens:
        ranks = np.searchsorted(cumulative, rng.random(shape)).clip(max=by_rank.size - 1)
        drawn: Tokens = by_rank[ranks]
        return drawn

    def _chunk(
        self,
        rng: np.random.Generator,
        size: int,
        cumulative: NDArray[np.float64],
        by_rank: Tokens,
        successors: Tokens,
    ) -> Tokens:
        tokens = self._draw(rng, size, cumulative, by_rank)
        follows = rng.random(size) < self.pair_prob
        follows[0] = False
        choice = rng.integers(self.SUCCESSORS, size=size)
        # How far each token is from the last one that follows from nothing.
        index = np.arange(size)
        depth = index - np.maximum.accumulate(np.where(follows, 0, index))
        for k in range(1, self.LONGEST_CHAIN + 1):
            at = np.flatnonzero(depth == k)
            tokens[at] = successors[tokens[at - 1], choice[at]]
        tokens[rng.random(size) < 1 / self.document] = self.vocab - 1
        return tokens
