"""Scores on measured serving points: which rows are fitted on, and how far repeats differ.

Owns the split by model, the score and the floor. Reads rows as the importer
`aiconfigurator_serving` gives them; knows no model of serving.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..errors import NoDataError
from ..store import Table
from ..store.splits import Split
from ..store.tables import is_text, map_text, require_columns

__all__ = ["CONFIGURATION", "TRAIN_MODELS", "Score", "network", "repeats", "score",
           "unseen_network"]  # fmt: skip

# What the networks of the measured points are called in any spelling of their checkpoints.
_NETWORKS = (
    ("llama-3.1-70b", r"llama-3\.1-70b"), ("llama-3.1-8b", r"llama-3\.1-8b"),
    ("qwen3-32b", r"qwen3-32b"), ("gpt-oss-120b", r"gpt-oss-120b"),
    # "dsr1" of InferenceX is called DeepSeek-V3 in one export; both have one architecture
    ("deepseek-r1", r"deepseek-(r1|v3)$|deepseek-r1-nvfp4"), ("kimi-k2.5", r"kimi-k2\.5"),
    ("minimax-m2.5", r"minimax-m2\.5"), ("glm-5", r"glm-5$"),
    ("qwen3.5-397b-a17b", r"qwen3\.5-397b"), ("qwen3-235b-a22b", r"qwen3-235b"),
)  # fmt: skip
TRAIN_MODELS = ("llama-3.1-70b", "llama-3.1-8b", "qwen3-32b", "gpt-oss-120b")
"""Networks that overheads of serving engines are fitted on; all others are scored only."""

CONFIGURATION = (
    "model", "hardware", "engine", "mode", "isl", "osl", "concurrency", "tp", "pp", "dp", "moe_tp",
    "ep", "replicas", "gemm_format", "moe_format",
    *(f"{side}_{name}" for side in ("prefill", "decode")
      for name in ("tp", "dp", "ep", "devices", "workers")),
)  # fmt: skip
"""Columns that say how a point was served; neither the engine's version nor drafting is among
them, since few rows state both."""


@dataclass(frozen=True, slots=True)
class Score:
    """Relative errors (shares, 0.1 = 10 %) of `rows` rows."""

    rows: int
    median: float
    mape: float

    def __str__(self) -> str:
        return f"{self.median:.1%} / {self.mape:.1%} ({self.rows} rows)"


def network(spelling: str) -> str:
    """Network that a checkpoint's name means, the name in lower case where it is none of ours.

    >>> network("nvidia/Llama-3.1-8B-Instruct-FP8")
    'llama-3.1-8b'
    """
    lower = spelling.lower()
    return next((name for name, form in _NETWORKS if re.search(form, lower)), lower)


def unseen_network(table: Table, train: Sequence[str] = TRAIN_MODELS) -> Split:
    """Fit on the valid rows of some networks, score on those of all others.

    Raises NoDataError when one side has no row.
    """
    require_columns(table, ("model", "valid"), what="unseen_network")
    ours = np.isin(map_text(table["model"], network).astype(str), list(train))
    valid = table["valid"].astype(bool)
    left, right = ours & valid, ~ours & valid
    if not left.any() or not right.any():
        raise NoDataError(f"unseen_network: no {'test' if left.any() else 'training'} row")
    return Split("unseen_network", left, right, f"fitted on {', '.join(train)}")


def score(measured: np.ndarray, predicted: np.ndarray) -> Score:
    """Median and mean of |predicted / measured - 1| over rows where both are finite."""
    ratio = np.asarray(predicted, float) / np.asarray(measured, float)
    error = np.abs(ratio[np.isfinite(ratio)] - 1.0)
    if not len(error):
        return Score(0, float("nan"), float("nan"))
    return Score(len(error), float(np.median(error)), float(error.mean()))


def repeats(table: Table, column: str, *, beside: Sequence[str] = ()) -> Score:
    """How far two measurements of one configuration differ: the floor of any prediction by it.

    All pairs of valid rows that agree in CONFIGURATION and in the columns `beside` (such as
    engine_version). The difference of a pair is larger / smaller - 1. Repeats here hide whether
    tokens were drafted, which doubles the speed of some: the mean is no noise of a benchmark.
    """
    keys = (*CONFIGURATION, *beside)
    require_columns(table, (column, *keys, "valid"), what="repeats")
    groups: dict[tuple[object, ...], list[float]] = {}
    columns = [_cells(table, name) for name in keys]
    for row in np.flatnonzero(table["valid"].astype(bool)):
        key = tuple(cells[row] for cells in columns)
        groups.setdefault(key, []).append(float(table[column][row]))
    pairs = [(min(p), max(p)) for g in groups.values() for p in combinations(g, 2)]
    low, high = np.array(pairs, dtype=float).reshape(-1, 2).T
    return score(low, high)


def _cells(table: Table, name: str) -> list[object]:
    """Values of a column that can be compared: networks by name, NaN as None."""
    column = table[name]
    if name == "model":
        return map_text(column, network).tolist()
    if is_text(column):
        return column.tolist()
    return [None if np.isnan(v) else v for v in column.astype(float).tolist()]
