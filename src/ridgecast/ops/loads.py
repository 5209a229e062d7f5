"""Loads: how many rows each of many groups gets when rows choose their groups.

Owns the expectations that grouped products and mixtures of experts need: rows, groups that get any,
and rows after padding each group to whole tiles. Knows nothing about formats, bytes or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .base import Amount

__all__ = ["DISTRIBUTIONS", "Loads", "loads", "tiles_of_binomial"]

F64 = npt.NDArray[np.float64]
DISTRIBUTIONS = ("balanced", "uniform", "zipf", "power_law")
_HEAD = 32  # groups of the largest loads that stand for themselves; as many classes for the rest


@dataclass(frozen=True, slots=True)
class Loads:
    """Classes of groups [cases, classes] that expect the same rows, and how a device sees them.

    `groups` counts the groups of a class that this device holds (an expectation). A group's rows
    are Binomial(`draws`, `chance`) where `random`, else exactly `draws` * `chance`.
    `spare` are the choices that rounding left over (or took too many), which go to groups one by
    one: they touch as many groups at least.
    """

    groups: F64
    draws: F64
    chance: F64
    random: bool
    spare: F64
    case: npt.NDArray[np.intp]
    scalar: bool

    def _out(self, values: F64) -> Amount:
        return float(values[0]) if self.scalar else values[self.case]

    @property
    def rows(self) -> Amount:
        """Rows that this device's groups get together."""
        return self._out((self.groups * self.draws * self.chance).sum(axis=1) + self.spare)

    @property
    def touched(self) -> Amount:
        """Groups of this device that get any row."""
        if self.random:
            return self._out((self.groups * -np.expm1(self.draws * _log1m(self.chance))).sum(1))
        some = (self.groups * np.minimum(1.0, self.draws * self.chance)).sum(axis=1)
        return self._out(np.maximum(some, self.spare))

    @property
    def most(self) -> Amount:
        """Rows of this device's most loaded group."""
        rows = self.draws * self.chance * (self.groups > 0)
        return self._out(np.maximum(rows.max(axis=1), np.minimum(self.spare, 1.0)))

    def tiles(self, tile: Amount) -> Amount:
        """Tiles of `tile` rows when each group's rows are rounded up to whole tiles."""
        sizes = np.broadcast_to(np.asarray(tile, np.float64), self.case.shape)
        if not np.any(sizes != sizes[0]):
            return self._out(self._tiles(float(sizes[0])))
        out = np.zeros(len(self.case))
        for value in np.unique(sizes):
            here = sizes == value
            out[here] = self._tiles(float(value))[self.case[here]]
        return out

    def _tiles(self, tile: float) -> F64:
        if self.random:
            each = tiles_of_binomial(self.draws, self.chance, tile)
        else:
            each = np.ceil(np.round(self.draws * self.chance, 6) / tile)
        return np.maximum((self.groups * each).sum(axis=1) + self.spare / tile, self.spare)


def loads(
    distribution: str, exponent: Amount, *, tokens: Amount, picks: Amount, groups: Amount,
    shards: Amount = 1.0,
) -> Loads:  # fmt: skip
    """Spread tokens over groups: each picks `picks` of `groups`, a device holds 1 / `shards`.

    balanced: all groups get the same rows, up to one. uniform: every token picks its groups at
    random, all alike and distinct, so a group's rows are Binomial(tokens, picks / groups).
    zipf: the same with probabilities that fall with the rank, r^-exponent, each at most 1.
    power_law: shares of the groups are the quantiles of a density x^-exponent from 1 to
    0.8 tokens (0.01 to 2 where there are no more choices than groups), and rows follow them
    exactly, as in AIConfigurator's measurements.
    Where loads are unequal the device is the one that holds the most loaded group; the others are
    placed at random. More than 64 groups are summed in 64 classes: the 32 largest alone, the rest
    by the middle rank of equal parts.
    """
    given = [np.asarray(x, np.float64) for x in (tokens, picks, groups, shards, exponent)]
    scalar = all(g.ndim == 0 for g in given)
    columns = np.stack([np.atleast_1d(g) for g in np.broadcast_arrays(*given)])
    distinct, case = np.unique(columns, axis=1, return_inverse=True)
    t, k, e, n, a = (row[:, None] for row in distinct)
    case = np.asarray(case, np.intp).ravel()
    none = np.zeros(len(t))
    if distribution == "uniform":
        return Loads(e / n, t, np.minimum(k / e, 1.0), True, none, case, scalar)
    if distribution == "balanced":
        low = np.floor(t * k / e)
        more = t * k - low * e
        held = np.concatenate([e - more, more], axis=1) / n
        rows = np.concatenate([low, low + 1.0], axis=1)
        return Loads(held, np.ones_like(t), rows, False, none, case, scalar)
    rank, many = _ranks(e)
    others = np.where(e > 1, (e / n - 1.0) / np.maximum(e - 1.0, 1.0), 1.0)
    held = many * np.where(rank == 1.0, 1.0, others)
    if distribution == "zipf":
        weights = np.where(many > 0, rank, 1.0) ** -a
        return Loads(held, t, _capped(weights, many, k), True, none, case, scalar)
    share = _capped(_pareto(1.0 - (rank - 0.5) / e, a, t, k, e), many, k)
    rows: F64 = np.rint(np.asarray(t * share, np.float64))
    spare: F64 = (t * k - (many * rows).sum(axis=1, keepdims=True)) / n
    return Loads(held, np.ones_like(t), rows, False, spare[:, 0], case, scalar)


def _ranks(groups: F64) -> tuple[F64, F64]:
    """Rank of each class, and how many groups it stands for."""
    steps = np.arange(_HEAD, dtype=np.float64)[None, :]
    width = np.maximum((groups - _HEAD) / _HEAD, 1.0)
    tail = _HEAD + 0.5 + (steps + 0.5) * width
    ranks = np.concatenate([np.broadcast_to(steps + 1.0, tail.shape), tail], axis=1)
    widths = np.concatenate([np.ones_like(tail), np.broadcast_to(width, tail.shape)], axis=1)
    return ranks, np.where(ranks <= groups, widths, 0.0)


def _capped(weights: F64, many: F64, picks: F64) -> F64:
    """Probabilities in proportion to weights, at most 1, that add up to `picks`."""
    full = np.zeros(weights.shape, bool)
    chance = weights
    for _ in range(2 * _HEAD):
        left = picks - (many * full).sum(axis=1, keepdims=True)
        total = (many * np.where(full, 0.0, weights)).sum(axis=1, keepdims=True)
        chance = np.where(full, 1.0, weights * left / np.maximum(total, 1e-300))
        over = (chance > 1.0) & ~full & (many > 0)
        if not over.any():
            break
        full |= over
    return np.clip(chance, 0.0, 1.0)


def _pareto(at: F64, exponent: F64, tokens: F64, picks: F64, groups: F64) -> F64:
    """Quantile of the density x^-exponent between its ends."""
    crowded = tokens * picks > groups
    low, high = np.where(crowded, 1.0, 0.01), np.where(crowded, np.maximum(0.8 * tokens, 1.0), 2.0)
    power = 1.0 - np.where(np.abs(exponent - 1.0) < 1e-6, 1.0 + 1e-6, exponent)
    at = np.clip(at, 0.0, 1.0)
    return ((high**power - low**power) * at + low**power) ** (1.0 / power)


def _log1m(chance: F64) -> F64:
    with np.errstate(divide="ignore"):
        return np.log1p(-chance)


def tiles_of_binomial(draws: F64, chance: F64, tile: float) -> F64:
    """Take the exact expectation of ceil(N / tile) for N of Binomial(draws, chance).

    The padding, (-N) mod tile, is a function with the period `tile`, so its expectation is a sum of
    the characteristic function at the roots of unity w = exp(2 pi i m / tile):
    (tile - 1) / 2 + sum over m from 1 of (1 - p + p w)^draws / (w - 1).

    >>> float(tiles_of_binomial(np.array(2.0), np.array(0.5), 2))  # 0 or 1 or 2 rows: 0, 1, 1 tiles
    0.75
    """
    draws, chance = np.broadcast_arrays(np.asarray(draws, np.float64), chance)
    padding = np.full(draws.shape, (tile - 1.0) / 2.0)
    log_keep = 2.0 * chance * (1.0 - chance)
    for m in range(1, int(tile) // 2 + 1):
        w = np.exp(2j * np.pi * m / tile)
        turn = 1.0 - w.real
        live = draws * np.log1p(-np.minimum(log_keep * turn, 1.0 - 1e-16)) > -80.0
        if not live.any():
            break  # the terms shrink with m
        power = np.exp(draws[live] * np.log(1.0 + chance[live] * (w - 1.0)))
        twice = 1.0 if 2 * m == tile else 2.0  # m and tile - m are conjugates
        padding[live] += twice * np.real(power / (w - 1.0))
    sure = (chance >= 1.0) | (chance <= 0.0)
    rows = draws * chance
    exact = np.ceil(rows / tile)
    return np.where(sure, exact, np.maximum((rows + np.maximum(padding, 0.0)) / tile, 0.0))
