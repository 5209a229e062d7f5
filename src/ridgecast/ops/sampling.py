"""Sampling of the next token from logits over a vocabulary.

Owns operations and bytes of its algorithms. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Op, Rule, Work, choice, fmt, number, plain, size

__all__ = ["Sampling"]

FP32 = 4.0


@dataclass(frozen=True)
class Sampling(Op):
    """One token for each of `batch` sequences from `vocab` logits, of the `top_k` likeliest.

    variant: greedy (the largest: one read), online (softmax and top-k in one read, k values in
    registers: Milakov, Gimelshein 2018, arXiv:1805.02867, algorithm 4), select (radix select: a
    read for each byte of the key, then those above the threshold: Alabi et al. 2012, J. Exp.
    Algorithmics 17), sort (what a framework composes for top-p: sort of keys and indices by bytes,
    softmax, prefix sum, mask, scatter back, softmax, draw: each through memory), rejection
    (softmax, then `rounds` draws by inverse transform, each a read of all probabilities, none
    sorted: FlashInfer, Ye et al. 2025, arXiv:2501.01005). The rounds depend on the distribution;
    they are for the caller to give.

    >>> Sampling(batch=1, vocab=1000, variant="greedy").bytes
    4004.0
    """

    name: ClassVar[str] = "sampling"
    what: ClassVar[str] = "next-token sampling: greedy, top-k, top-p over a vocabulary"
    example: ClassVar[str] = "batch=64 vocab=128256 top_k=50 variant=online"

    batch: int = size("sequences")
    vocab: int = size("logits of a sequence")
    top_k: int = size("likeliest tokens that are drawn from (online, select)", 50)
    rounds: float = number("draws until one is accepted (rejection)", 2.0, low=1.0)
    dtype: str = fmt("format of the logits", "fp32")
    index_bytes: int = size("bytes of an index", 4)
    variant: str = choice("algorithm", ("online", "greedy", "select", "sort", "rejection"),
                          "online")  # fmt: skip

    def rules(self) -> Iterator[Rule]:
        """Check that there are top_k tokens."""
        if self.variant in ("online", "select"):
            yield Rule("top_k", np.greater(self.top_k, self.vocab), "at most vocab")

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        rows, digits = np.asarray(self.batch, np.float64), np.ceil(dtype(self.dtype).bits / 8.0)
        n = rows * self.vocab
        logits, tokens = dtype(self.dtype).bytes_of(1.0) * n, rows * self.index_bytes
        few = rows * self.top_k * (FP32 + self.index_bytes)
        probabilities, indices = FP32 * n, n * self.index_bytes
        if self.variant == "greedy":
            return Work({"vector": plain(2.0 * n)}, plain(logits), plain(tokens))
        if self.variant == "online":  # online softmax 5; comparison with the k-th; k insertions
            kept = rows * self.top_k
            return Work({"vector": plain(6.0 * n + kept * self.top_k), "special": plain(2.0 * n)},
                        plain(logits + few), plain(few + tokens),
                        footprint=plain(logits + few + tokens), launches=2.0)  # fmt: skip
        if self.variant == "select":  # softmax and draw of k values by a last kernel
            return Work({"integer": plain(3.0 * digits * n), "vector": plain(n),
                         "special": plain(rows * self.top_k)},
                        plain((digits + 1.0) * logits + few), plain(few + tokens),
                        footprint=plain(logits + few + tokens),
                        launches=digits + 2.0, steps=digits + 2.0)  # fmt: skip
        if self.variant == "rejection":  # softmax on chip; prefix sum, comparison, sum a round
            draws = probabilities * self.rounds
            return Work({"vector": plain((4.0 + 3.0 * self.rounds) * n), "special": plain(n)},
                        plain(logits + draws), plain(probabilities + tokens),
                        footprint=plain(logits + probabilities + tokens),
                        launches=2.0, steps=plain(1.0 + self.rounds))  # fmt: skip
        pairs = logits + indices
        # sort: histogram, digits passes over pairs, the first has no indices to read;
        # softmax 1 + 1, prefix sum 1 + 1, mask of sorted logits 2 + 1, scatter 1 + index + 1,
        # softmax 1 + 1, draw (prefix sum) 1
        read = logits + digits * pairs - indices + logits + 2.0 * probabilities
        read = read + logits + logits + indices + logits + probabilities
        written = digits * pairs + 2.0 * probabilities + 2.0 * logits + probabilities + tokens
        held = 4.0 * logits + 2.0 * indices + 3.0 * probabilities + tokens
        return Work({"integer": plain(7.0 * digits * n), "vector": plain((4.0 + 2.0 + 1.0 + 4.0
                     + 2.0) * n), "special": plain(2.0 * n)}, plain(read), plain(written),
                    footprint=plain(held), resident=plain(held),
                    launches=1.0 + digits + 6.0, steps=1.0 + digits + 6.0)  # fmt: skip
