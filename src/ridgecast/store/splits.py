"""Honest splits: which rows are learned from and which are scored, by name.

Owns the ways to hold data out. Groups are chosen by hashing their values with the seed, not by
their position, so one seed holds the same (n, k) out of every table, device and format. Knows no
model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import numpy as np

from ..errors import NoDataError, SpecError, unknown_name
from .schema import CONFIG_COLUMNS
from .tables import Table, factorize, is_text, length, require_columns

__all__ = ["SPLITS", "Split", "chip_family", "frontier", "make_split", "off_grid", "random",
           "unseen_config", "unseen_device", "unseen_group", "unseen_shape"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to learn from and rows to score: bool masks of the table's length, never overlapping.

    Rows in neither mask are excluded from both, because they would leak.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    describe: str


def random(table: Table, seed: int = 0, fraction: float = 0.1) -> Split:
    """Hold out rows at random, whatever they share with others: the easiest split."""
    rows = length(table)
    test = np.zeros(rows, dtype=bool)
    count = round(_fraction(fraction) * rows)
    test[np.random.default_rng(seed).permutation(rows)[:count]] = True
    return _split("random", ~test, test, f"{fraction:.0%} of rows at random, seed {seed}")


def unseen_shape(table: Table, seed: int = 0, fraction: float = 0.1) -> Split:
    """Hold out whole (n, k) groups: no pair of the test rows occurs in training, at any m."""
    test = _held_out(table, ("n", "k"), seed, fraction)
    return _split("unseen_shape", ~test, test, f"{fraction:.0%} of (n, k) pairs, seed {seed}")


def off_grid(table: Table, seed: int = 0, fraction: float = 0.2) -> Split:
    """Hold out values: neither the n nor the k of a test row occurs in training.

    `fraction` is the share of n values and of k values that are held out; rows with exactly one
    held value belong to neither side.
    """
    n = _held_out(table, ("n",), seed, fraction)
    k = _held_out(table, ("k",), seed, fraction)
    text = f"{fraction:.0%} of n values and of k values, rows with one of them dropped, seed {seed}"
    return _split("off_grid", ~(n | k), n & k, text)


def unseen_config(table: Table, seed: int = 0, fraction: float = 0.1) -> Split:
    """Hold out whole kernel configurations, on every device and shape.

    Raises SpecError when the table has no configuration column.
    """
    columns = [name for name in CONFIG_COLUMNS if name in table]
    if not columns:
        raise SpecError(
            f"unseen_config: the table has none of the columns {', '.join(CONFIG_COLUMNS[:8])} ..."
        )
    test = _held_out(table, columns, seed, fraction)
    return _split("unseen_config", ~test, test, f"{fraction:.0%} of configurations, seed {seed}")


def frontier(
    table: Table, seed: int = 0, fraction: float = 0.1, *, by: Sequence[str] = ()
) -> Split:
    """Hold out the largest tenth by operations (batch m n k), within each group of `by`.

    Ties at the edge are all held out. The seed is not used.
    """
    del seed
    require_columns(table, ("m", "n", "k", *by), what="frontier")
    work = table["m"].astype(float) * table["n"] * table["k"]
    if "batch" in table:
        work = work * table["batch"]
    groups = _codes(table, by) if by else np.zeros(length(table), dtype=np.int64)
    test = np.zeros(length(table), dtype=bool)
    for group in np.unique(groups):
        here = groups == group
        test |= here & (work >= np.quantile(work[here], 1.0 - _fraction(fraction)))
    return _split("frontier", ~test, test, f"the largest {fraction:.0%} by operations")


def unseen_device(
    table: Table,
    devices: str | Sequence[str],
    *,
    exclude_family: bool = False,
    family: Mapping[str, str] | None = None,
) -> Split:
    """Hold out all rows of one or several devices.

    With `exclude_family` the other devices of the same chip family are dropped from training too;
    `family` maps device to family, `chip_family` is used for the rest.
    Raises NoDataError when the table has no row of a device.
    """
    require_columns(table, ["hardware"], what="unseen_device")
    held = [devices] if isinstance(devices, str) else list(devices)
    codes, names = factorize(table["hardware"])
    for device in held:
        if device not in names:
            raise NoDataError(unknown_name("device in this table", device, map(str, names)))
    test = np.isin(codes, [names.index(device) for device in held])
    train = ~test
    text = f"all rows of {', '.join(held)}"
    if exclude_family:
        given = family or {}
        of = {name: given.get(name) or chip_family(name) for name in names}
        kin = {of[device] for device in held}
        train &= ~np.isin(codes, [i for i, name in enumerate(names) if of[name] in kin])
        text += f"; no other {', '.join(sorted(kin))} device in training"
    return _split("unseen_device", train, test, text)


@cache
def chip_family(device: str) -> str:
    """Family of chips that a device belongs to (`Hardware.family`); an unknown one is its own.

    >>> chip_family("h100_sxm") == chip_family("h200_sxm")
    True
    """
    from ..hardware import get

    try:
        return get(device).family
    except SpecError:
        return device


def unseen_group(
    table: Table, seed: int = 0, fraction: float = 0.1, *, columns: Sequence[str]
) -> Split:
    """Hold out whole groups of equal values in `columns`, such as (m, n, k, layout)."""
    test = _held_out(table, columns, seed, fraction)
    text = f"{fraction:.0%} of ({', '.join(columns)}) groups, seed {seed}"
    return _split("unseen_group", ~test, test, text)


SPLITS: dict[str, Callable[..., Split]] = {
    "random": random,
    "unseen_shape": unseen_shape,
    "off_grid": off_grid,
    "unseen_config": unseen_config,
    "frontier": frontier,
    "unseen_device": unseen_device,
    "unseen_group": unseen_group,
}


def make_split(name: str, table: Table, **options: object) -> Split:
    """Split by name. Raises SpecError with the nearest names."""
    if name not in SPLITS:
        raise SpecError(unknown_name("split", name, SPLITS))
    return SPLITS[name](table, **options)


# ----------------------------------------------------------------------------------- grouping


def _fraction(fraction: float) -> float:
    if not 0.0 < fraction < 1.0:
        raise SpecError(f"fraction: got {fraction}, need a number between 0 and 1")
    return fraction


def _split(name: str, train: np.ndarray, test: np.ndarray, text: str) -> Split:
    if not test.any() or not train.any():
        side = "test" if not test.any() else "training"
        raise NoDataError(f"{name} ({text}): no {side} row of {len(test)}; the data are too few")
    return Split(name, train, test, text)


def _held_out(table: Table, columns: Sequence[str], seed: int, fraction: float) -> np.ndarray:
    """Rows whose values in `columns` hash below `fraction`; at least one group on each side."""
    _fraction(fraction)
    require_columns(table, columns, what="split")
    if not length(table):
        return np.zeros(0, dtype=bool)
    score = _scores(table, columns, seed)
    held = score < fraction
    if not held.any():
        held = score == score.min()
    if held.all():
        held = score != score.max()
    return held


def _scores(table: Table, columns: Sequence[str], seed: int) -> np.ndarray:
    """Uniform number in [0, 1) per row that depends on the seed, column names and values only."""
    state = np.full(length(table), np.uint64(seed % 2**63), dtype=np.uint64)
    for name in columns:
        state = _mix(state ^ np.uint64(crc32(name.encode())))
        state = _mix(state ^ _as_bits(table[name]))
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply splitmix64's finaliser (Steele, Lea, Flood 2014, OOPSLA, figure 16)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _as_bits(column: np.ndarray) -> np.ndarray:
    """Integer per row that is the same for equal values, whether stored as int or as float."""
    if is_text(column):
        codes, values = factorize(column)
        table = np.array([crc32(str(v).encode()) for v in values], dtype=np.uint64)
        return table[codes]
    return (column.astype(np.float64) + 0.0).view(np.uint64)  # + 0.0 folds -0.0; NaN is one value


def _codes(table: Table, columns: Sequence[str]) -> np.ndarray:
    total = np.zeros(length(table), dtype=np.int64)
    for name in columns:
        codes, values = factorize(table[name])
        total = total * max(len(values), 1) + codes
    return total
