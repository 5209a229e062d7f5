"""Where the training shapes of a model lie, and how far from them a new shape is.

Owns the distance classes of `conformal.DISTANCES` and the folds that imitate each class when a
model is calibrated. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .conformal import DISTANCES

__all__ = ["Domain", "Fold", "folds"]

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
_SHIFT = 2.0**31
_RANK = {name: i for i, name in enumerate(DISTANCES)}
_ROWS_WITHOUT_PAIR_FOLDS = 40
OFF_GRID_FOLDS = 3


@dataclass(frozen=True, slots=True)
class Domain:
    """Shapes a model was trained on: sorted values of n, k and (n, k) codes, and the extremes."""

    n: F64
    k: F64
    pairs: F64
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    most_work: float

    @classmethod
    def of(cls, m: F64, n: F64, k: F64, batch: F64) -> Domain:
        """Domain of training shapes."""
        return cls(
            np.unique(n), np.unique(k), np.unique(n * _SHIFT + k),
            (float(m.min()), float(n.min()), float(k.min())),
            (float(m.max()), float(n.max()), float(k.max())),
            float((m * n * k * batch).max()),
        )  # fmt: skip

    def distance(self, m: F64, n: F64, k: F64, batch: F64) -> I64:
        """Index of DISTANCES per row."""
        seen_n, seen_k = _member(self.n, n), _member(self.k, k)
        out = np.where(seen_n & seen_k, _RANK["unseen_pair"], _RANK["one_off_grid"])
        out[~seen_n & ~seen_k] = _RANK["off_grid"]
        out[_member(self.pairs, n * _SHIFT + k)] = _RANK["seen_pair"]
        beyond = [(x < a) | (x > b) for x, a, b in zip((m, n, k), self.low, self.high, strict=True)]
        out[(m * n * k * batch > self.most_work) | beyond[0]] = _RANK["frontier"]
        out[beyond[1] | beyond[2] | (batch > 1)] = _RANK["outside"]
        return out.astype(np.int64)

    def excess(self, m: F64, n: F64, k: F64, batch: F64) -> F64:
        """How many doublings beyond the largest training work or sizes a row lies; 0 inside."""
        ratio = np.maximum(m * n * k * batch / self.most_work, 1.0)
        for x, low, high in zip((m, n, k), self.low, self.high, strict=True):
            ratio = np.maximum(ratio, np.maximum(x / high, low / x))
        return np.log2(ratio)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for a card."""
        pairs = [[int(c // _SHIFT), int(c % _SHIFT)] for c in self.pairs]
        full = len(pairs) == len(self.n) * len(self.k)
        return {
            "n": [int(v) for v in self.n], "k": [int(v) for v in self.k],
            "pairs": "all" if full else pairs,
            "low": list(self.low), "high": list(self.high), "most_work": self.most_work,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Domain:
        """Undo `to_dict`."""
        n, k = (np.asarray(state[key], float) for key in ("n", "k"))
        if state["pairs"] == "all":
            pairs = np.sort((n[:, None] * _SHIFT + k[None, :]).ravel())
        else:
            listed = np.asarray(state["pairs"], float).reshape(-1, 2)
            pairs = np.sort(listed[:, 0] * _SHIFT + listed[:, 1])
        low, high = (tuple(float(v) for v in state[key]) for key in ("low", "high"))
        return cls(n, k, pairs, low, high, float(state["most_work"]))  # type: ignore[arg-type]


def _member(sorted_values: F64, x: F64) -> npt.NDArray[np.bool_]:
    at = np.minimum(np.searchsorted(sorted_values, x), len(sorted_values) - 1)
    return sorted_values[at] == x


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows to train on, rows to score, and the split that the fold imitates."""

    split: str
    train: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]


def _parts(values: F64, count: int, rng: np.random.Generator) -> I64:
    """Part of each row so that equal values share one."""
    unique, inverse = np.unique(values, return_inverse=True)
    part = rng.permutation(len(unique)) % count
    return part[inverse]


def folds(m: F64, n: F64, k: F64, batch: F64, rng: np.random.Generator) -> Iterator[Fold]:
    """Held-out folds for every distance class, on training rows alone.

    unseen_shape: five folds over whole (n, k) pairs; random: one tenth of rows; off_grid: three
    folds over n values and k values (rows with both held are `off_grid`, with one `one_off_grid`);
    frontier: the largest tenth by operations.
    """
    rows = len(m)
    pair = n * _SHIFT + k
    count = min(5, len(np.unique(pair)))
    if count > 1:
        part = _parts(pair, count, rng)
        for i in range(count):
            yield Fold("unseen_shape", part != i, part == i)
    if rows >= _ROWS_WITHOUT_PAIR_FOLDS:
        test = rng.random(rows) < 0.1
        if test.any() and not test.all():
            yield Fold("random", ~test, test)
    if len(np.unique(n)) > OFF_GRID_FOLDS and len(np.unique(k)) > OFF_GRID_FOLDS:
        part_n, part_k = (_parts(x, OFF_GRID_FOLDS, rng) for x in (n, k))
        for i in range(OFF_GRID_FOLDS):
            held = (part_n == i).astype(int) + (part_k == i)
            if (held == 2).any() and (held == 0).sum() >= 20:
                yield Fold("off_grid", held == 0, held > 0)
    work = m * n * k * batch
    top = work > np.quantile(work, 0.9)
    if top.sum() >= 5:
        yield Fold("frontier", ~top, top)
