"""The analytic time of one operation on one device: a non-negative sum of physical terms.

Owns the coefficients: those of all rows, and those of a family (one kernel family with one set of
formats) that enough structures were measured with. Learned ratios stand on this time; a structure
that nobody measured is then extrapolated by its own kernel's physics.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .sweep_features import analytic, fit_terms

__all__ = ["base_time", "fit_base"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]

_APART = ": "  # between a family and its term, in a coefficient's name
_STRUCTURES = 4  # with fewer a family's rows do not tell its terms apart (assumed)
_TERM_ROWS = 6000  # that the coefficients are fitted to; more change nothing
_FAMILY_ROWS = 3000
_FAMILY_ONLY = ("padded_odd",)  # what some kernels pay and others do not


def fit_base(
    terms: Mapping[str, F64], time: F64, family: Texts, structure: I64
) -> dict[str, float]:
    """Coefficients by name, of all rows as `term` and of a family as `family: term`.

    `terms` [s], `time` [s], `family` ("" without kernels) and `structure` codes are per row.
    """
    named = family != ""
    common = {n: v for n, v in terms.items() if n not in _FAMILY_ONLY or not named.any()}
    out = _fit(common, time, np.arange(len(time)), _TERM_ROWS)
    for name in np.unique(family[named]).tolist():
        at = np.flatnonzero(family == name)
        if len(np.unique(structure[at])) >= _STRUCTURES:
            own = _fit(terms, time, at, _FAMILY_ROWS)
            out |= {f"{name}{_APART}{term}": value for term, value in own.items()}
    return out


def _fit(terms: Mapping[str, F64], time: F64, at: I64, most: int) -> dict[str, float]:
    at = at[:: max(1, len(at) // most)]
    found = fit_terms({n: v[at] for n, v in terms.items()}, time[at])
    return {**found, "call": max(found.get("call", 0.0), 0.05)}  # 50 ns: never 0 (assumed)


def base_time(terms: Mapping[str, F64], family: Texts, coefficients: Mapping[str, float]) -> F64:
    """Analytic time [s] [rows]; families without coefficients of their own take the common ones."""
    parts: dict[str, dict[str, float]] = {}
    for name, value in coefficients.items():
        own, _, term = name.rpartition(_APART)
        parts.setdefault(own, {})[term] = value
    zero = np.zeros(len(family))
    known = {n: terms.get(n, zero) for some in parts.values() for n in some}
    out = analytic({n: known[n] for n in parts[""]}, parts[""])
    for own, some in parts.items():
        rows = family == own
        if own and rows.any():
            out[rows] = analytic({n: known[n][rows] for n in some}, some)
    return out
