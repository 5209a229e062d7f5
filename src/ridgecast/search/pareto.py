"""The rows of which no other is better in everything, of any number of objectives.

A row dominates another when it is at least as good in every objective and better in one; equal
rows do not dominate each other and stay together. Rows with a missing objective are never in the
set. Owns dominance alone; knows nothing of what the objectives are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..store import Table, numeric, select

__all__ = ["DIRECTIONS", "front", "non_dominated"]

DIRECTIONS = ("min", "max")

Ranks = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_SLAB = 64  # rows compared with all others at once
_SLABS = 24  # slabs before the bit sets take over, or fewer:
_WORTH = 0.98  # of the rows left over by a slab: then it is not worth another
_STEPS = 256  # thresholds of each objective
_BLOCK = 128  # rows looked up at once
_MANY = 64  # words of candidates a row before what certainly dominates is looked up first


def front(table: Table, objectives: Mapping[str, str]) -> Table:
    """Rows of a table that no other dominates, best in the first objective first.

    `objectives` are columns, each "min" or "max". Raises SpecError for a missing column, one that
    is no number, or another direction.

    >>> t = {"cost": np.array([1.0, 2.0, 3.0]), "speed": np.array([5.0, 9.0, 7.0])}
    >>> front(t, {"cost": "min", "speed": "max"})["cost"].tolist()
    [1.0, 2.0]
    """
    if not objectives:
        raise SpecError("objectives: none given; for example {'cost': 'min', 'speed': 'max'}")
    columns: list[np.ndarray] = []
    for name in objectives:
        values, bad = numeric(table, name)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise SpecError(f"objective {name!r}: row {row} is {table[name][row]!r}, no number")
        columns.append(values)
    directions = list(objectives.values())
    kept = np.flatnonzero(non_dominated(np.stack(columns, axis=1), directions))
    first = columns[0][kept] if directions[0] == "min" else -columns[0][kept]
    return select(table, kept[np.argsort(first, kind="stable")])


def non_dominated(values: npt.ArrayLike, directions: Sequence[str] | None = None) -> Mask:
    """Mask of the rows of `values` [rows, objectives] that no other row dominates.

    Each direction is "min" (the default) or "max". Takes O(rows) memory; the time grows with the
    square of the set's size and little with the rows outside it.
    Raises SpecError for another shape or direction.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise SpecError(f"values: got shape {matrix.shape}, need [rows, objectives]")
    ways = list(directions) if directions is not None else ["min"] * matrix.shape[1]
    if len(ways) != matrix.shape[1]:
        raise SpecError(f"directions: got {len(ways)} for {matrix.shape[1]} objectives")
    for way in ways:
        if way not in DIRECTIONS:
            raise SpecError(f"direction: got {way!r}, allowed: {', '.join(DIRECTIONS)}")
    out = np.zeros(len(matrix), dtype=np.bool_)
    known = np.flatnonzero(~np.isnan(matrix).any(axis=1))
    if not known.size:
        return out
    signs = np.array([1.0 if way == "min" else -1.0 for way in ways])
    unique, inverse = _distinct(_ranks(matrix[known] * signs))
    best = np.zeros(len(unique), dtype=np.bool_)
    best[_best(unique)] = True
    out[known] = best[inverse]
    return out


def _ranks(values: np.ndarray) -> Ranks:
    """Place of each value among the distinct values of its column; equal values share it."""
    return np.stack([np.unique(v, return_inverse=True)[1].ravel() for v in values.T], axis=1)


def _distinct(ranks: Ranks) -> tuple[Ranks, npt.NDArray[np.intp]]:
    """Distinct rows, and which of them each row is."""
    order = np.lexsort(ranks.T)
    ordered = ranks[order]
    new = np.ones(len(ranks), dtype=np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    inverse = np.empty(len(ranks), dtype=np.intp)
    inverse[order] = np.cumsum(new) - 1
    return ordered[new], inverse


def _best(ranks: Ranks) -> npt.NDArray[np.intp]:
    """Places of the distinct rows that none dominates.

    By the sum of ranks what dominates comes first, and among the rows left over the first is in
    the set. So slabs of first rows sweep the others away; what remains after some slabs, the set
    and a little more, is looked up in bit sets.
    """
    if ranks.shape[1] == 2:  # along the first, the second must fall
        order = np.lexsort(ranks.T[::-1])
        least = np.minimum.accumulate(ranks[order, 1])
        falls = np.ones(len(order), dtype=np.bool_)
        falls[1:] = least[1:] < least[:-1]
        return order[falls]
    sums = ranks.sum(axis=1)
    left = np.argsort(sums, kind="stable")
    done: list[npt.NDArray[np.intp]] = []
    for _ in range(_SLABS):
        slab = left[:_SLAB]
        slab = slab[~_dominated(ranks[slab], ranks[slab])]
        rest = left[_SLAB:]
        done.append(slab)
        left = rest[~_dominated(ranks[rest], ranks[slab])]
        if not left.size:
            return np.concatenate(done)
        if len(left) > _WORTH * len(rest):
            break
    return np.concatenate([*done, left[~_dominated_among(ranks[left])]])


def _dominated(rows: Ranks, by: Ranks) -> Mask:
    """Whether each row is dominated by one of a few others; equal rows do not dominate."""
    below = rows[:, None, 0] >= by[None, :, 0]
    for j in range(1, rows.shape[1]):
        below &= rows[:, None, j] >= by[None, :, j]
    below &= rows.sum(axis=1)[:, None] > by.sum(axis=1)[None, :]
    return below.any(axis=1)


def _dominated_among(rows: Ranks) -> Mask:
    """Whether each of many distinct rows is dominated by another of them.

    For each objective, bit sets hold the rows below each of some thresholds. The intersection at
    a row's thresholds, rounded up, holds what can dominate it: itself and few more, compared one
    by one; rounded down, it holds what certainly does.
    """
    order = np.argsort(rows[:, 0], kind="stable")  # what dominates a row then stands before it
    ranks = _ranks(rows[order])
    step = np.maximum(1, -(-(ranks.max(axis=0) + 1) // _STEPS))
    sets = [_bits(column, int(size)) for column, size in zip(ranks.T, step, strict=True)]
    at = ranks // step
    out = np.zeros(len(ranks), dtype=np.bool_)
    for begin in range(0, len(ranks), _BLOCK):
        here = np.arange(begin, min(begin + _BLOCK, len(ranks)))
        end = np.searchsorted(ranks[:, 0], ranks[here[-1], 0], side="right")
        words = -(-int(end) // 64)
        found = _meet(sets[1:], at[here, 1:] + 1, words)
        if np.count_nonzero(found) > _MANY * len(here):
            out[here] = _meet(sets, at[here], words).any(axis=1)
            found[out[here]] = 0
        query, word = np.nonzero(found)
        bits = np.unpackbits(found[query, word][:, None].view(np.uint8), axis=1, bitorder="little")
        pair, bit = np.nonzero(bits)
        mine, other = here[query[pair]], 64 * word[pair] + bit
        worse = (ranks[other] <= ranks[mine]).all(axis=1) & (other != mine)
        out[mine[worse]] = True
    back = np.empty_like(out)
    back[order] = out
    return back


def _meet(sets: list[np.ndarray], at: Ranks, words: int) -> np.ndarray:
    """Intersections [queries, words] of the bit sets at each query's thresholds."""
    if not sets:
        return np.full((len(at), words), np.uint64(2**64 - 1))
    inside = sets[0][at[:, 0], :words]
    for j in range(1, len(sets)):
        inside &= sets[j][at[:, j], :words]
    return inside


def _bits(ranks: npt.NDArray[np.int64], step: int) -> np.ndarray:
    """Bit sets [thresholds, words]: the rows of rank below 0, step, 2 step ... and of all."""
    count = int(ranks.max()) // step + 2
    words = -(-len(ranks) // 64)
    out = np.zeros((count, 8 * words), dtype=np.uint8)
    for i in range(1, count):
        packed = np.packbits(ranks < i * step, bitorder="little")
        out[i, : len(packed)] = packed
    return out.view(np.uint64)
