"""Scattered accesses: lines that they touch, how many of them are distinct, what a cache saves.

Owns the counting that gathers, probes and samplings share. Addresses are taken as independent and
uniform, which is the worst case for reuse: skewed addresses (power laws, neighbouring rays) touch
fewer distinct lines. Knows no operation, no device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Amount, Rule, number, plain, size

__all__ = ["Scattered", "distinct", "line_rule", "line_size", "locality_share", "scattered"]

LINES = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Scattered:
    """Bytes of scattered accesses, in whole lines: of all (touched) and of distinct ones (unique).

    `table` are the bytes of all lines that could be touched.
    """

    touched: Amount
    unique: Amount
    table: Amount

    def moved(self, locality: Amount) -> Amount:
        """Bytes from memory where this share of the repeated touches is served from cache."""
        return self.unique + (self.touched - self.unique) * (1.0 - np.asarray(locality, np.float64))


def distinct(touches: Amount, cells: Amount, share: Amount = 1.0) -> Amount:
    """Return how many of `cells` are hit by random touches, each of which hits `share` cells.

    cells (1 - (1 - share / cells)^touches): balls into bins (Feller 1968, An Introduction to
    Probability Theory, volume 1, section II.5).

    >>> round(distinct(2, 4), 9)  # 1, and another one with probability 3/4
    1.75
    """
    places, tries = np.asarray(cells, np.float64), np.asarray(touches, np.float64)
    with np.errstate(all="ignore"):
        missed = tries * np.log1p(-np.minimum(share / places, 1.0))
    return plain(np.where(tries == 0, 0.0, -places * np.expm1(missed)))


def scattered(
    touches: Amount, cells: Amount, cell_bytes: Amount, line: Amount, span: Amount = 1.0
) -> Scattered:
    """Count the lines of random accesses to a packed table.

    touches: accesses, each of `span` neighbouring cells of `cell_bytes`; cells: of the table.
    An access of B bytes at a random multiple of b bytes touches (B + L - gcd(b, L)) / L lines of
    L bytes on average: its offset in a line is uniform over the multiples of gcd(b, L). Distinct
    lines are counted as if all lay under equally many cells: a few per cent too many where not.

    >>> scattered(10, 1000, 48, 32).touched  # 48 B: from 0 to 47 or from 16 to 63, two lines
    640.0
    """
    stored = np.maximum(np.ceil(np.asarray(cell_bytes, np.float64)), 1.0)
    wide = np.asarray(line, np.float64)
    step = np.gcd(stored.astype(np.int64), wide.astype(np.int64))
    lines = (stored * span + wide - step) / wide
    table = np.maximum(np.ceil(np.asarray(cells, np.float64) * stored / wide), lines)
    touched = np.asarray(touches, np.float64) * lines * wide
    unique = np.minimum(distinct(touches, table, lines) * wide, touched)
    return Scattered(plain(touched), plain(unique), plain(table * wide))


def line_size(default: int = 32) -> int:
    """Define the bytes that one access fetches."""
    return size("bytes fetched at once: 32 (a sector), 64 or 128", default, high=128)


def line_rule(line: Amount) -> Rule:
    """Allow 32, 64 and 128 bytes."""
    return Rule("line", ~np.isin(np.asarray(line, np.float64), LINES), "32, 64 or 128")


def locality_share() -> float:
    """Define how much of the repeated touches a cache serves."""
    return number("share of repeated touches served from cache", 0.0, high=1.0)
