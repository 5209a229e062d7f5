"""The learned half of a time prediction: log(measured / analytic) of library GEMMs.

Owns one model: boosted trees for the jumps that a library's kernel choice makes, a small network
for what is smooth between them, averaged. Knows features as columns and nothing of files but its
own state.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from .features import NAMES, TREE_ONLY
from .mlp import Mlp, MlpOptions, fit_mlp

__all__ = ["FitOptions", "Utilisation", "fit_utilisation", "pack_booster", "unpack_booster"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
SMOOTH = np.array([i for i, name in enumerate(NAMES) if name not in TREE_ONLY])
_UNUSED = (
    "split_gain", "internal_value", "internal_weight", "internal_count", "leaf_weight",
    "leaf_count", "tree_sizes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Size of the two halves. `threads` is LightGBM's; `seed` fixes every draw."""

    trees: int = 110
    leaves: int = 127
    step: float = 0.12
    min_leaf: int = 8
    network: MlpOptions = field(default_factory=lambda: MlpOptions(epochs=150))
    fold_epochs: int = 60
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Trees and network that each predict log(time / analytic)."""

    booster: Any
    network: Mlp
    text: str

    def predict(self, x: F32, threads: int = 1) -> tuple[F64, F64]:
        """Trees' and network's log ratio per row of x [rows, features]."""
        trees = self.booster.predict(x, num_threads=threads)
        return np.asarray(trees), self.network.predict(x[:, SMOOTH]).astype(np.float64)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the network's state; the trees travel as text (`pack_booster`)."""
        return self.network.to_arrays()


def fit_utilisation(x: F32, y: F64, options: FitOptions | None = None) -> Utilisation:
    """Fit both halves to y = log(time / analytic) [rows] on x [rows, features]."""
    import lightgbm as lgb

    o = options or FitOptions()
    rows = len(y)
    # small tables: fewer, smaller trees and as many network steps as a large table gets
    leaves = int(np.clip(rows // 20, 7, o.leaves))
    parameters = {
        "objective": "regression", "num_leaves": leaves, "learning_rate": o.step,
        "min_data_in_leaf": min(o.min_leaf, max(2, rows // 40)), "bagging_fraction": 0.8,
        "bagging_freq": 1, "feature_fraction": 0.5, "verbosity": -1, "seed": o.seed,
        "num_threads": o.threads, "deterministic": True, "force_row_wise": True,
    }  # fmt: skip
    data = lgb.Dataset(x, y, feature_name=list(NAMES), free_raw_data=True)
    text = lgb.train(parameters, data, o.trees).model_to_string()
    network = o.network
    if rows < 8192:
        # as many steps as a table of 8192 rows would take, on smaller batches, stronger decay
        batch = max(16, min(network.batch, rows // 8))
        steps = network.epochs * 8192 // network.batch
        network = replace(network, epochs=max(1, steps * batch // rows), batch=batch, decay=1e-2)
    smooth = fit_mlp(x[:, SMOOTH], y, np.random.default_rng(o.seed), network)
    packed = slim(text)
    return Utilisation(_booster(packed), smooth, packed)


def slim(text: str) -> str:
    """LightGBM model text without the fields that prediction does not read, leaves to 1e-4.

    The tree text shrinks to a third; a prediction moves by less than 0.1 %.
    """
    kept: list[str] = []
    for line in text.split("end of trees", 1)[0].splitlines():
        key, _, value = line.partition("=")
        if key in _UNUSED:
            continue
        digits = {"threshold": ".9g", "leaf_value": ".4f"}.get(key)
        if digits:
            kept.append(f"{key}=" + " ".join(format(float(v), digits) for v in value.split()))
        else:
            kept.append(line)
    return "\n".join(kept) + "\nend of trees\n"


def _booster(text: str) -> Any:
    import lightgbm as lgb

    try:
        return lgb.Booster(model_str=text)
    except lgb.basic.LightGBMError as error:
        raise SpecError(f"model text cannot be read as LightGBM: {error}") from error


def pack_booster(text: str) -> bytes:
    """Compress model text for disk (xz: model text is highly repetitive)."""
    return lzma.compress(text.encode(), preset=9)


def unpack_booster(data: bytes) -> str:
    """Undo `pack_booster`. Raises SpecError when the bytes are not xz text."""
    try:
        return lzma.decompress(data).decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise SpecError(f"model.txt.xz is damaged: {error}") from error


def rebuild(text: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Utilisation:
    """Rebuild from text and the network's arrays. Raises SpecError when either is damaged."""
    try:
        network = Mlp.from_arrays(arrays)
    except (KeyError, ValueError) as error:
        raise SpecError(f"network.npz lacks or garbles {error}") from error
    booster = _booster(text)
    if booster.num_feature() != len(NAMES):
        raise SpecError(
            f"model.txt.xz has {booster.num_feature()} features, this version uses {len(NAMES)}; "
            "train it again"
        )
    return Utilisation(booster, network, text)
