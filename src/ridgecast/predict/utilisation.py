"""The learned half of a time prediction: log(measured / analytic) of library GEMMs.

Owns one model of two halves: boosted trees for the jumps that a library's kernel choice makes, and
for what is smooth between them a small network or, where rows are few, a Gaussian process. Knows
features as columns and nothing of files but its own state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from .features import NAMES, TREE_ONLY
from .gp import GaussianProcess, fit_gp
from .mlp import Mlp, MlpOptions, fit_mlp
from .trees import Trees, slim

__all__ = ["FitOptions", "Utilisation", "fit_utilisation", "rebuild"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
SMOOTH = np.array([i for i, name in enumerate(NAMES) if name not in TREE_ONLY])
# what the Gaussian process sees: sizes, shares, residency, tails of common tiles, waste
COORDINATES = np.array([
    NAMES.index(name) for name in (
        "log_m", "log_n", "log_k", "share_compute", "share_latency", "share_memory", "miss_b",
        "tail_128x128", "tail_64x128", "tail_256x128", "tail_128x256", "waste_m64", "waste_n128",
        "log_split", "log_time", "m_by_8",
    )
])  # fmt: skip
FEW_ROWS = 2048
"""Rows up to which the smooth half is a Gaussian process: exact, and still affordable."""
_SMALL_TREES = {"num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 4}
_SMALL_ROUNDS = 300


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Size of the two halves. `threads` is LightGBM's; `seed` fixes every draw."""

    trees: int = 110
    leaves: int = 127
    step: float = 0.12
    min_leaf: int = 8
    network: MlpOptions = field(default_factory=MlpOptions)
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Trees and a smooth half that each predict log(time / analytic)."""

    trees: Trees
    smooth: Mlp | GaussianProcess

    def predict(self, x: F32, threads: int = 1) -> tuple[F64, F64]:
        """Log ratio per row of x [rows, features] by the trees and by the smooth half."""
        trees = self.trees.predict(x, threads)
        columns = SMOOTH if isinstance(self.smooth, Mlp) else COORDINATES
        return trees, self.smooth.predict(x[:, columns]).astype(np.float64)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the smooth half's state; the trees travel as text."""
        return {**self.smooth.to_arrays()}


def fit_utilisation(x: F32, y: F64, options: FitOptions | None = None) -> Utilisation:
    """Fit both halves to y = log(time / analytic) [rows] on x [rows, features]."""
    import lightgbm as lgb

    o = options or FitOptions()
    few = len(y) <= FEW_ROWS
    large = {"num_leaves": o.leaves, "learning_rate": o.step, "min_data_in_leaf": o.min_leaf}
    parameters = {
        "objective": "regression", "bagging_fraction": 0.8, "bagging_freq": 1,
        "feature_fraction": 0.5, "verbosity": -1, "seed": o.seed, "num_threads": o.threads,
        "deterministic": True, "force_row_wise": True, **(_SMALL_TREES if few else large),
    }  # fmt: skip
    data = lgb.Dataset(x, y, feature_name=list(NAMES), free_raw_data=True)
    text = slim(lgb.train(parameters, data, _SMALL_ROUNDS if few else o.trees).model_to_string())
    rng = np.random.default_rng(o.seed)
    if few:
        smooth: Mlp | GaussianProcess = fit_gp(x[:, COORDINATES].astype(np.float64), y, rng)
    else:
        smooth = fit_mlp(x[:, SMOOTH], y, rng, o.network)
    return Utilisation(Trees.of(text), smooth)


def rebuild(text: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Utilisation:
    """Rebuild from text and the network's arrays. Raises SpecError when either is damaged."""
    try:
        kind = GaussianProcess if "dual" in arrays else Mlp
        smooth = kind.from_arrays(arrays)
    except (KeyError, ValueError) as error:
        raise SpecError(f"smooth.npz lacks or garbles {error}") from error
    trees = Trees.of(text)
    columns = trees.booster.num_feature()
    if columns != len(NAMES):
        raise SpecError(
            f"model.txt.xz has {columns} features, this version uses {len(NAMES)}; train it again"
        )
    return Utilisation(trees, smooth)
