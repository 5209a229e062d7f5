"""The pieces of a sweep's own model: intervals by place, one learned head, one kernel family.

Owns how a head is fitted (trees and a smooth half, averaged by held-out error), how its intervals
are calibrated on whole held-out groups, and the plain state of both. Knows features as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .gp import GaussianProcess, fit_gp
from .mlp import Mlp, MlpOptions, fit_mlp
from .trees import Trees, slim
from .utilisation import FEW_ROWS

__all__ = ["PLACES", "Fitting", "Folds", "Head", "Intervals", "fit_head"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PLACES = ("inside", "new_config", "beyond")
"""Where a row lies: its configuration was seen and its sizes lie between those seen; its
configuration was not; its sizes or its work lie beyond. Later ones outweigh earlier ones."""

_TREES = {
    "objective": "regression", "num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 4,
    "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.5, "verbosity": -1,
    "num_threads": 1, "deterministic": True, "force_row_wise": True,
    # bundled words of several fields went to other leaves in prediction than in training: all
    # bf16 experts of a GB200 came out a quarter too slow, on the very rows that were learned
    "enable_bundle": False,
}  # fmt: skip
_ROUNDS = 300
_MANY_TREES = {"num_leaves": 127, "learning_rate": 0.12, "min_data_in_leaf": 8}
_MANY_ROUNDS = 110  # beyond FEW_ROWS rows, as for library GEMM
_MOST_ROWS = 60_000  # beyond which twice as many trees pay
_EPOCHS = 40
_GP_ROWS = 300  # rows that the length scales come from; every row is a training point
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_BUCKETS = 3
_LEAST = 60  # residuals under which a bucket borrows from its place, and a place from inside
_BORROWED = 2.0  # how much wider a place without residuals of its own is than inside (assumed)
_FEW_CONFIGS = 20
_SCALES = (0.7, 3.0)  # by how much residuals of groups may shrink and grow (assumed)
_LEAST_EDGE = 0.01  # of an interval, in log units, so that none is of no width (assumed)
_KEPT = 600  # residuals stored per bucket; more are thinned to as many quantiles


@dataclass(frozen=True, slots=True)
class Intervals:
    """Sorted held-out residuals log(measured / predicted) per place and bucket of predicted value.

    `edges` [buckets - 1] part the predicted logarithm; `residuals[place][bucket]` is ascending.
    """

    edges: F64
    residuals: tuple[tuple[F64, ...], ...]

    def limits(self, value: F64, place: I64, level: float) -> tuple[F64, F64]:
        """Lower and upper offset of the logarithm per row.

        Ranks are those of split conformal, (n + 1) alpha / 2 from either end (Vovk et al. 2005);
        where n is too small for the level the extreme residuals stand.
        """
        bucket = np.searchsorted(self.edges, value)
        low, high = np.zeros(len(value)), np.zeros(len(value))
        tail = (1.0 - level) / 2.0
        for p, buckets in enumerate(self.residuals):
            for b, r in enumerate(buckets):
                rows = (place == p) & (bucket == b)
                if rows.any():
                    rank = (len(r) + 1) * tail - 1.0
                    at = np.arange(len(r))
                    low[rows] = np.interp(rank, at, r)
                    high[rows] = np.interp(len(r) - 1.0 - rank, at, r)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for a card, rounded to 1e-5."""
        return {
            "edges": [round(float(e), 5) for e in self.edges],
            "residuals": [[np.round(r, 5).tolist() for r in place] for place in self.residuals],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Intervals:
        """Undo `to_dict`."""
        places = tuple(
            tuple(np.asarray(r, np.float64) for r in place) for place in state["residuals"]
        )
        return cls(np.asarray(state["edges"], np.float64), places)


def fit_intervals(
    residual: F64, value: F64, place: I64, kinds: int, *, together: I64 | None = None
) -> Intervals:
    """Sort held-out residuals into places and, where rows suffice, thirds of predicted value.

    A place with fewer than _LEAST residuals takes its own and those of inside, _BORROWED wide.
    Rows of one new configuration err together, so with few configurations (`kinds`) their
    residuals are far fewer than they look: then they count in both directions, _BORROWED wide,
    unless `together` says by a code per row which they are: see `_scaled`.
    """
    inside = place == 0
    enough = inside.sum() >= _BUCKETS * _LEAST
    cuts = np.arange(1, _BUCKETS) / _BUCKETS
    edges = np.quantile(value[inside], cuts) if enough else np.empty(0)
    bucket = np.searchsorted(edges, value)
    places: list[tuple[F64, ...]] = []
    for p in range(max(len(PLACES), int(place.max(initial=0)) + 1)):
        own = residual[place == p]
        if p and len(own) < _LEAST:
            own = np.concatenate([own, _BORROWED * residual[inside]])
        whole = _thin(own if len(own) else residual)
        rows = [residual[(place == p) & (bucket == b)] for b in range(len(edges) + 1)]
        at = place == p
        if not len(own):  # nor any inside: other new configurations stand in
            at = ~np.isin(place, (0, 2))
        if together is not None and p not in (0, 2) and at.any():
            by = _scaled(residual[at], together[at])
            whole, rows = _thin(by * residual[at]), [by * r for r in rows]
        elif p == 1 and kinds < _FEW_CONFIGS:
            whole = _thin(_BORROWED * np.concatenate([own, -own]))
            rows = []
        rows = rows or [whole] * (len(edges) + 1)
        places.append(tuple(_thin(r) if len(r) >= _LEAST else whole for r in rows))
    return Intervals(edges, tuple(places))


def _scaled(residual: F64, together: I64) -> float:
    """Factor on residuals with which those of each code are held, on average, by the others'.

    Rows of a code err together, so that their pooled quantiles promise too much or too little for
    a new one: each code is left out in turn, and what its rows need is kept to 90 %
    (cross-conformal prediction over groups; Dunn, Wasserman, Ramdas 2023, JASA 118). A single code
    counts _BORROWED times.
    """
    need: list[F64] = []
    for code in np.unique(together):
        own, others = residual[together == code], residual[together != code]
        if len(others):
            low, high = np.quantile(others, (0.05, 0.95))
            edge = np.where(own < 0.0, min(low, -_LEAST_EDGE), max(high, _LEAST_EDGE))
            need.append(own / edge)
    if not need:
        return _BORROWED
    return float(np.clip(np.quantile(np.concatenate(need), 0.9), *_SCALES))


def _thin(residual: F64) -> F64:
    ordered = np.sort(residual)
    if len(ordered) <= _KEPT:
        return ordered
    return np.quantile(ordered, np.linspace(0.0, 1.0, _KEPT))


@dataclass(frozen=True, slots=True)
class Head:
    """Predicts one logarithm from features: trees and a smooth half, averaged.

    `share` [places] is the trees' weight, `columns` are the positions of its features among the
    family's, `text` is LightGBM's.
    """

    columns: I64
    text: str
    booster: Any
    smooth: GaussianProcess | Mlp
    share: F64
    intervals: Intervals

    def predict(self, x: F64, place: I64) -> F64:
        """Logarithm per row of x [rows, family features], each at its index of PLACES."""
        return _mix(*_halves(self.booster, self.smooth, x[:, self.columns]), self.share[place])

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Plain values for a card, and arrays; the trees travel as `text`."""
        card = {"columns": self.columns.tolist(), "share": self.share.tolist(),
                "intervals": self.intervals.to_dict()}  # fmt: skip
        return card, {**self.smooth.to_arrays()}

    @classmethod
    def from_state(
        cls, card: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], text: str
    ) -> Head:
        """Undo `to_state`. Raises SpecError for text that is no model; KeyError for a gap."""
        booster = Trees.of(text).booster
        kind = GaussianProcess if "dual" in arrays else Mlp
        return cls(
            np.asarray(card["columns"], np.int64), text, booster, kind.from_arrays(arrays),
            np.asarray(card["share"], np.float64), Intervals.from_dict(card["intervals"]),
        )  # fmt: skip


def _mix(trees: F64, smooth: F64, share: F64 | float) -> F64:
    return smooth + share * (trees - smooth)


def _halves(booster: Any, smooth: GaussianProcess | Mlp, x: F64) -> tuple[F64, F64]:
    trees = np.asarray(booster.predict(x, num_threads=1), np.float64)
    if isinstance(smooth, Mlp):
        return trees, smooth.predict(x.astype(np.float32)).astype(np.float64)
    return trees, smooth.predict(x)


def _fit_halves(x: F64, y: F64, seed: int, *, fold: bool = False) -> tuple[Any, Any]:
    """Trees, and a Gaussian process or, beyond FEW_ROWS rows, a small network."""
    import lightgbm as lgb

    many = len(y) > FEW_ROWS
    settings = {**_TREES, "seed": seed, "min_data_in_leaf": min(4, max(1, len(y) // 8))}
    settings |= _MANY_TREES if many else {}
    of_data = ("min_data_in_leaf", "verbosity", "enable_bundle")
    data = lgb.Dataset(x, y, params={name: settings[name] for name in of_data})
    rounds = _MANY_ROUNDS * (1 + (len(y) > _MOST_ROWS)) if many else _ROUNDS
    booster = lgb.train(settings, data, rounds)
    rng = np.random.default_rng(seed)
    if many:
        options = MlpOptions(epochs=_EPOCHS)
        return booster, fit_mlp(x.astype(np.float32), y, rng, options)
    rounds, most = (40, 200) if fold else (60, _GP_ROWS)
    return booster, fit_gp(x, y, rng, rounds=rounds, most=most)


@dataclass(frozen=True, slots=True)
class Folds:
    """Train and test masks with the place that their test rows imitate.

    `of_places` refines that place for each row, from the place and the training mask; with
    `together`, a code per row, residuals of new configurations are scaled so that those of one code
    would have been held by those of the others (`_scaled`).
    """

    parts: tuple[tuple[int, Mask, Mask], ...]
    kinds: int  # distinct configurations
    of_places: Callable[[int, Mask], I64] | None = None
    together: I64 | None = None

    def __iter__(self) -> Iterator[tuple[int, Mask, Mask]]:
        return iter(self.parts)


def make_folds(
    groups: I64, configs: I64, work: F64, rng: np.random.Generator, *, count: int = 5,
    configs_most: int = 3, few_most: int = 4,
) -> Folds:  # fmt: skip
    """Folds of whole groups (inside), whole configurations, and the largest and smallest work.

    `groups` and `configs` are codes per row, `work` orders rows by size. Configurations are parted
    into at most `few_most` folds, of many rows into `configs_most`.
    """
    parts: list[tuple[int, Mask, Mask]] = []
    few = len(work) <= 8 * FEW_ROWS  # beyond, three folds leave residuals enough
    turns_of = ((0, groups, count if few else 3), (1, configs, few_most if few else configs_most))
    for place, codes, most in turns_of:
        kinds = int(codes.max()) + 1
        turns = min(most, kinds)
        fold = (rng.permutation(kinds) % turns)[codes]
        if turns > 1:
            parts += [(place, fold != i, fold == i) for i in range(turns)]
    for top in (True, False):
        edge = float(np.quantile(work, 0.85 if top else 0.1))
        test = work > edge if top else work < edge
        if 5 <= test.sum() <= len(work) // 3:
            parts.append((2, ~test, test))
    return Folds(tuple(parts), int(configs.max()) + 1)


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out logarithms of all folds, stacked: place, row, by trees, by the smooth half."""

    place: I64
    row: I64
    trees: F64
    smooth: F64
    kinds: int


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a head is fitted, where not as usual.

    `shift` gives, for the training rows of a fold, how much higher the baseline's logarithm is
    [rows] when it is fitted to those alone: so that held-out rows are held out of the baseline too.
    `seen` gives the features [rows, features] as who knows the training rows alone would have them.
    Folds with more than `most` training rows are fitted to as many of them, drawn at random: what
    calibrates intervals need not be as good as what answers.
    """

    shift: Callable[[Mask], F64] | None = None
    seen: Callable[[Mask], F64] | None = None
    most: int = 2**62


def _held_out(x: F64, y: F64, folds: Folds, seed: int, fitting: Fitting, columns: I64) -> Held:
    parts: list[tuple[I64, I64, F64, F64]] = []
    for place, train, test in folds:
        by = fitting.shift(train) if fitting.shift else np.zeros(len(y))
        at = np.flatnonzero(train)
        if len(at) > fitting.most:
            at = np.sort(np.random.default_rng(seed).choice(at, fitting.most, replace=False))
        booster, smooth = _fit_halves(x[at], y[at] - by[at], seed, fold=True)
        asked = fitting.seen(train)[:, columns] if fitting.seen else x
        trees, even = _halves(booster, smooth, asked[test])
        rows = np.flatnonzero(test)
        places = folds.of_places(place, train) if folds.of_places else np.full(len(y), place)
        parts.append((places[rows], rows, trees + by[rows], even + by[rows]))
    stacked = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return Held(stacked[0], stacked[1], stacked[2], stacked[3], folds.kinds)


def informative(x: F64) -> I64:
    """Positions of columns that vary and are no copy (up to scale and shift) of an earlier one."""
    spread = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.maximum(spread, 1e-12)
    kept: list[int] = []
    for i in range(x.shape[1]):
        if spread[i] < 1e-9 * (1.0 + abs(float(x[0, i]))):
            continue
        if kept and np.abs(z[:, kept].T @ z[:, i] / len(z)).max() > 0.99999:
            continue
        kept.append(i)
    return np.asarray(kept, np.int64)


def fit_head(
    x: F64, y: F64, folds: Folds, seed: int,
    fitting: Callable[[Mask], F64] | Fitting | None = None,
) -> tuple[Head, dict[str, Any]]:  # fmt: skip
    """Fit y [rows] to x [rows, features] and calibrate; also the head's own figures.

    y is a logarithm relative to a baseline that was fitted to the same rows; `fitting` says how it
    is held out of folds (a function alone is its `shift`).

    The figures: rows, mean absolute held-out error of whole groups, importance per column (gain
    of the trees, summing to 1).
    """
    columns = informative(x)
    if not len(columns):  # one point in feature space: a constant is all that can be learned
        columns = np.zeros(1, np.int64)
    z = x[:, columns]
    if not isinstance(fitting, Fitting):
        fitting = Fitting(shift=fitting)
    held = _held_out(z, y, folds, seed, fitting, columns)
    if not (held.place == 0).any() and folds.together is None:
        # without groups to hold out, the folds of configurations stand in for them
        held = replace(held, place=np.where(held.place == 1, 0, held.place))
    place = held.place
    share = _shares(held, y)
    value = _mix(held.trees, held.smooth, share[place])
    residual = y[held.row] - value
    intervals = fit_intervals(
        residual, value, place, held.kinds,
        together=None if folds.together is None else folds.together[held.row],
    )  # fmt: skip
    booster, smooth = _fit_halves(z, y, seed)
    gain = np.asarray(booster.feature_importance("gain"), np.float64)
    weights = np.zeros(x.shape[1])
    weights[columns] = gain / max(float(gain.sum()), 1e-300)
    text = slim(booster.model_to_string())
    first = place == 0
    facts = {
        "rows": len(y),
        "held_out_error": (
            float(np.abs(np.expm1(-residual[first])).mean()) if first.any() else None
        ),
        "importance": weights.tolist(),
    }
    return Head(columns, text, booster, smooth, share, intervals), facts


def _shares(held: Held, y: F64) -> F64:
    """Weight of the trees per place with the least held-out absolute error; inside's for gaps."""
    out = np.zeros(max(len(PLACES), int(held.place.max(initial=0)) + 1))
    for p in range(len(out)):
        rows = held.place == p
        if rows.sum() < 10:
            out[p] = out[0]
            continue
        trees, smooth, truth = held.trees[rows], held.smooth[rows], y[held.row[rows]]
        errors = [np.abs(np.expm1(_mix(trees, smooth, s) - truth)).mean() for s in _SHARES]
        out[p] = _SHARES[int(np.argmin(errors))]
    return out


def codes_of(columns: Sequence[npt.NDArray[Any]]) -> I64:
    """Code per row, equal where all columns are equal."""
    code = np.zeros(len(columns[0]) if columns else 0, np.int64)
    for values in columns:
        _, part = np.unique(values.astype(str) if values.dtype == object else values,
                            return_inverse=True)  # fmt: skip
        _, code = np.unique(code * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
    return code.astype(np.int64)
