"""Which devices, how many, and who serves what: the cheapest fleet for a load, by integer program.

    least  sum_d cost_d n_d
    so that  sum_d x_bd = rate_b                  every bucket is served
             sum_b x_bd / throughput_bd <= n_d    no device is busy for more than all of the time
             n_d whole, 0 <= n_d <= available_d, x_bd = 0 where d misses b's latency limit

The formulation is Mélange's (Griggs et al., arXiv:2404.14527), whose slices of a bucket here
become a continuous rate, or multiples of rate / slices where `slices` says so. HiGHS solves it.
Throughputs are inputs: knows nothing of models or devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InfeasibleError, MissingExtraError, SpecError, unknown_name

__all__ = ["OBJECTIVES", "Bucket", "DeviceType", "Fleet", "plan_fleet", "single_types"]

OBJECTIVES = ("cost", "power", "carbon")
_TINY = 1e-9  # requests/s and shares below it are round-off of the solver

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of one size class: name, and how many arrive a second."""

    name: str
    rate: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise SpecError(f"bucket {self.name!r}: rate: got {self.rate!r}, need 0 or more")


@dataclass(frozen=True, slots=True)
class DeviceType:
    """One kind of replica: a device, or as many as one copy of the model takes.

    `cost` in USD/h, `power` in W and `carbon` in g/h are of one replica; NaN where not known.
    `available` replicas at most, None without limit.
    """

    name: str
    cost: float
    power: float = math.nan
    carbon: float = math.nan
    available: int | None = None

    def __post_init__(self) -> None:
        for name in OBJECTIVES:
            value = getattr(self, name)
            if not (math.isnan(value) or (math.isfinite(value) and value >= 0)):
                raise SpecError(f"device type {self.name!r}: {name}: got {value!r}, need 0 or more")
        count = self.available
        if count is not None and (count != int(count) or count < 0):
            raise SpecError(f"device type {self.name!r}: available: got {count!r}, need 0, 1, 2")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Counts by type, requests/s by bucket and type, sums an hour or at once, busy share by type.

    `bound` is the least of the objective with fractions of devices: no fleet can be below it.
    """

    objective: str
    counts: Mapping[str, int]
    assignment: Mapping[str, Mapping[str, float]]
    cost: float  # USD/h
    power: float  # W
    carbon: float  # g/h
    bound: float
    busy: Mapping[str, float] = field(default_factory=dict[str, float])


def plan_fleet(
    buckets: Sequence[Bucket],
    types: Sequence[DeviceType],
    throughput: npt.ArrayLike,
    *,
    objective: str = "cost",
    power_limit: float | None = None,
    slices: int | None = None,
) -> Fleet:
    """Fleet that serves all buckets with the least cost, power or carbon.

    `throughput` [buckets, types] are the requests/s of a bucket that one replica serves within the
    latency limit, 0 or NaN where it cannot. `power_limit` in W holds for the whole fleet.
    Raises InfeasibleError that names the buckets that cannot be served and by how much, SpecError
    for malformed input, MissingExtraError without scipy.

    >>> fleet = plan_fleet([Bucket("chat", 9.0)], [DeviceType("a", 1.0), DeviceType("b", 3.0)],
    ...                    [[2.0, 8.0]])
    >>> fleet.counts, fleet.cost
    ({'a': 1, 'b': 1}, 4.0)
    """
    rates = _checked(buckets, types, objective, slices)
    able = _throughput(throughput, len(buckets), len(types))
    _servable(buckets, types, rates, able)
    need = {"power"} if power_limit is not None else set()
    price, extra = _prices(types, objective, need)
    problem = _Problem(rates, able, types, extra if power_limit is not None else None, power_limit)
    solved = problem.solve(price, slices)
    if solved is None:
        raise InfeasibleError(_lacking(problem, buckets, types, power_limit))
    bound = problem.relaxed(price)
    return _fleet(objective, buckets, types, able, solved, bound)


def single_types(
    buckets: Sequence[Bucket],
    types: Sequence[DeviceType],
    throughput: npt.ArrayLike,
    *,
    objective: str = "cost",
) -> dict[str, Fleet | None]:
    """Best fleet of each type alone, None where one type cannot serve the load."""
    able = _throughput(throughput, len(buckets), len(types))
    found: dict[str, Fleet | None] = {}
    for i, one in enumerate(types):
        try:
            found[one.name] = plan_fleet(buckets, [one], able[:, [i]], objective=objective)
        except InfeasibleError:
            found[one.name] = None
    return found


# ------------------------------------------------------------------------------------ checking


def _checked(
    buckets: Sequence[Bucket], types: Sequence[DeviceType], objective: str, slices: int | None
) -> F64:
    if objective not in OBJECTIVES:
        raise SpecError(unknown_name("objective", objective, OBJECTIVES))
    for what, names in (("bucket", [b.name for b in buckets]), ("type", [t.name for t in types])):
        if not names:
            raise SpecError(f"fleet: no {what} is given")
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise SpecError(f"fleet: {what} {twice!r} is given twice")
    if slices is not None and (slices != int(slices) or slices < 1):
        raise SpecError(f"slices: got {slices!r}, need a whole number from 1")
    return np.array([b.rate for b in buckets], dtype=np.float64)


def _throughput(given: npt.ArrayLike, buckets: int, types: int) -> F64:
    able = np.asarray(given, dtype=np.float64)
    if able.shape != (buckets, types):
        raise SpecError(f"throughput: got shape {able.shape}, need [buckets, types] = "
                        f"({buckets}, {types})")  # fmt: skip
    able = np.where(np.isnan(able), 0.0, able)
    if not np.isfinite(able).all() or (able < 0).any():
        raise SpecError("throughput: need requests/s from 0 (0 or NaN: cannot serve)")
    return able


def _servable(
    buckets: Sequence[Bucket], types: Sequence[DeviceType], rates: F64, able: F64
) -> None:
    """Raise InfeasibleError for buckets that no type serves within the limit."""
    lost = [b for b, rate, row in zip(buckets, rates, able, strict=True)
            if rate > 0 and not row.any()]  # fmt: skip
    if lost:
        shown = ", ".join(f"{b.name} ({b.rate:g} requests/s)" for b in lost)
        raise InfeasibleError(
            f"no device type serves {shown} within the latency limit; types: "
            f"{', '.join(t.name for t in types)}. Loosen the limit or add a faster type"
        )


def _prices(types: Sequence[DeviceType], objective: str, need: set[str]) -> tuple[F64, F64]:
    for name in {objective, *need}:
        unknown = [t.name for t in types if math.isnan(getattr(t, name))]
        if unknown:
            raise SpecError(f"{name} of {', '.join(unknown)} is not known; the plan needs it")
    return (np.array([getattr(t, objective) for t in types], dtype=np.float64),
            np.array([t.power for t in types], dtype=np.float64))  # fmt: skip


# -------------------------------------------------------------------------------------- solving


def _optimise() -> Any:
    try:
        from scipy import optimize  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("planning a fleet needs scipy: pip install scipy") from error
    return optimize


class _Problem:
    """Constraints in scipy's form; variables are counts [types], then shares [buckets x types].

    A share is that of a bucket's rate which a type serves, from 0 to 1.
    """

    def __init__(
        self,
        rates: F64,
        able: F64,
        types: Sequence[DeviceType],
        power: F64 | None,
        power_limit: float | None,
    ) -> None:
        self.rates, self.able = rates, able
        self.buckets, self.types = able.shape
        self.available = np.array([math.inf if t.available is None else t.available for t in types])
        self._power, self._limit = power, power_limit
        self._optimise = _optimise()

    def solve(self, price: F64, slices: int | None = None) -> tuple[F64, F64] | None:
        """Return counts and shares of least price, None when there are none."""
        lack = np.zeros(self.buckets)
        return self._run(price, lack, whole=True, slices=slices)

    def relaxed(self, price: F64) -> float:
        """Least price with fractions of devices."""
        found = self._run(price, np.zeros(self.buckets), whole=False)
        return float("nan") if found is None else float(price @ found[0])

    def lacking(self) -> F64:
        """Least total rate that stays unserved [requests/s], by bucket."""
        found = self._run(np.zeros(self.types), self.rates, whole=True)
        if found is None:
            return self.rates
        return self.rates * (1.0 - found[1].sum(axis=1))

    def _run(
        self, price: F64, penalty: F64, *, whole: bool, slices: int | None = None
    ) -> tuple[F64, F64] | None:
        """Solve; with a penalty on unserved shares, buckets may stay unserved.

        Slices: shares are counted in whole slices, so their columns are scaled by 1 / slices.
        """
        unit = 1.0 / slices if slices else 1.0
        nb, nt = self.buckets, self.types
        can = (self.able > 0) | (self.rates[:, None] == 0)
        load = np.where(self.able > 0, self.rates[:, None] / np.maximum(self.able, 1e-300), 0.0)
        busy = np.zeros((nt, nt + nb * nt))
        served = np.zeros((nb, nt + nb * nt))
        for d in range(nt):
            busy[d, d] = -1.0
            busy[d, nt + d :: nt] = load[:, d] * unit
        for b in range(nb):
            served[b, nt + b * nt : nt + (b + 1) * nt] = unit
        constrain = self._optimise.LinearConstraint
        free = bool(penalty.any())
        limits = [constrain(busy, -np.inf, 0.0), constrain(served, 0.0 if free else 1.0, 1.0)]
        if self._power is not None and self._limit is not None:
            row = np.zeros((1, nt + nb * nt))
            row[0, :nt] = self._power
            limits.append(constrain(row, -np.inf, self._limit))
        upper = np.concatenate([self.available, (can / unit).ravel()])
        costs = np.concatenate([price, np.repeat(-penalty * unit, nt)])
        kinds = np.concatenate([np.full(nt, int(whole)), np.full(nb * nt, int(bool(slices)))])
        result = self._optimise.milp(
            costs, integrality=kinds, bounds=self._optimise.Bounds(0.0, upper),
            constraints=limits, options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        if result.x is None:
            return None
        return result.x[:nt], result.x[nt:].reshape(nb, nt) * unit


def _lacking(
    problem: _Problem,
    buckets: Sequence[Bucket],
    types: Sequence[DeviceType],
    power_limit: float | None,
) -> str:
    """Message for a load beyond what is available: which buckets, and by how much."""
    lack = problem.lacking()
    parts = [f"{b.name}: {missing:.4g} of {b.rate:g} requests/s"
             for b, missing in zip(buckets, lack, strict=True) if missing > 1e-6]  # fmt: skip
    have = ", ".join(
        f"{t.name} {'without limit' if t.available is None else t.available}" for t in types
    )
    limit = f" under {power_limit:g} W" if power_limit is not None else ""
    shown = "; ".join(parts) or "the load in whole slices"
    return (f"the devices available{limit} ({have}) leave unserved {shown} (the least total). "
            "Add devices, raise the power limit, or loosen the latency limit")  # fmt: skip


def _fleet(
    objective: str,
    buckets: Sequence[Bucket],
    types: Sequence[DeviceType],
    able: F64,
    solved: tuple[F64, F64],
    bound: float,
) -> Fleet:
    counts = np.rint(solved[0]).astype(int)
    assignment: dict[str, dict[str, float]] = {}
    load = np.zeros(len(types))
    for b, bucket in enumerate(buckets):
        served = {d: float(bucket.rate * share) for d, share in enumerate(solved[1][b])
                  if bucket.rate * share > _TINY}  # fmt: skip
        assignment[bucket.name] = {types[d].name: rate for d, rate in served.items()}
        for d, rate in served.items():
            load[d] += rate / able[b, d]

    def total(name: str) -> float:
        used = [(n, getattr(t, name)) for n, t in zip(counts.tolist(), types, strict=True) if n]
        return float(sum(n * value for n, value in used))

    return Fleet(
        objective=objective,
        counts={t.name: int(n) for t, n in zip(types, counts, strict=True) if n},
        assignment=assignment,
        cost=total("cost"),
        power=total("power"),
        carbon=total("carbon"),
        bound=bound,
        busy={t.name: float(w / n) for t, n, w in zip(types, counts, load, strict=True) if n},
    )
