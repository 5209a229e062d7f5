"""A fleet of unlike replicas for a mix of traffic: throughputs by `scenario`, counts by HiGHS.

Owns what each replica (device, layout, format) carries of each kind of request within the limits.
The integer program is `fleet`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InfeasibleError, RidgecastError, SpecError
from ..models import Network
from ..scenario import Traffic
from .fleet import Bucket, DeviceType, Fleet, plan_fleet, single_types
from .serving_plan import Limits, Space, plan_serving

__all__ = ["FleetPlan", "Mix", "parse_mix", "plan_mix"]

_OPTION = ("hardware", "engine", "dtype", "kv_dtype", "technique", "tp", "pp", "dp", "ep")
_MOST = 24  # kinds of replica that the program chooses among


@dataclass(frozen=True, slots=True)
class Mix:
    """One kind of request: prompt tokens, output tokens, and how many arrive a second."""

    isl: int
    osl: int
    rate: float

    @property
    def name(self) -> str:
        """Prompt and output tokens, as "1024:256"."""
        return f"{self.isl}:{self.osl}"


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The fleet, the kinds of replica by name, requests/s of each kind and mix, and each alone."""

    fleet: Fleet
    options: Mapping[str, Mapping[str, Any]]
    throughput: Mapping[str, Mapping[str, float]]
    alone: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        f = self.fleet
        return {
            "counts": dict(f.counts), "cost_usd_per_h": f.cost, "power_w": f.power,
            "bound": f.bound, "assignment_requests_per_s": {k: dict(v) for k, v in
                                                            f.assignment.items()},
            "busy": dict(f.busy), "options": {k: dict(v) for k, v in self.options.items()},
            "requests_per_s": {k: dict(v) for k, v in self.throughput.items()},
            "cost_alone_usd_per_h": dict(self.alone),
        }  # fmt: skip


def parse_mix(text: str) -> list[Mix]:
    """Read "isl:osl:rate,...".

    >>> parse_mix("1024:256:10,8192:512:2")[1]
    Mix(isl=8192, osl=512, rate=2.0)
    """
    found = []
    for word in text.split(","):
        try:
            isl, osl, rate = word.split(":")
            found.append(Mix(int(isl), int(osl), float(rate)))
        except ValueError:
            raise SpecError(f"mix: got {word!r}, need isl:osl:requests/s, as 1024:256:10") from None
    return found


def plan_mix(
    model: str | Network,
    space: Space,
    mix: Sequence[Mix],
    limits: Limits | None = None,
    *,
    objective: str = "cost",
) -> FleetPlan:
    """Find the fleet of least cost (or power) that carries a mix of requests within the limits.

    Each kind of replica serves each kind of request at the largest throughput that keeps the
    limits. Raises InfeasibleError that names the requests that no replica can serve in time.
    """
    limits = replace(limits or Limits(), power=None, cost_per_h=None)
    able: dict[str, dict[str, float]] = {}
    options: dict[str, dict[str, Any]] = {}
    told: list[str] = []
    for one in mix:
        try:
            plan = plan_serving(model, space, Traffic(one.isl, one.osl), limits,
                                objective="throughput")  # fmt: skip
        except RidgecastError as error:
            told.append(f"{one.name}: {error}")
            continue
        table, kept = plan.table, np.flatnonzero(plan.kept)
        for row in kept.tolist():
            name = " ".join(str(table[k][row]) for k in _OPTION[:5] if str(table[k][row]))
            name += "".join(f" {k}{table[k][row]}" for k in _OPTION[5:] if table[k][row] != 1)
            rate = float(table["output_tokens_per_s"][row]) / one.osl
            if rate > able.setdefault(name, {}).get(one.name, 0.0):
                able[name][one.name] = rate
                known = options.setdefault(name, {})
                known |= {k: table[k][row] for k in _OPTION}
                known["cost"] = float(table["cost_usd_per_h"][row])
                known["power"] = max(known.get("power", 0.0), float(table["power_w"][row]))
                known["devices"] = int(table["devices_each"][row])
    if not able:
        raise InfeasibleError("fleet: no replica keeps the limits; " + "; ".join(told[:3]))
    names = sorted(able, key=lambda n: -_worth(able[n], options[n]))[:_MOST]
    types = [DeviceType(n, options[n]["cost"], options[n]["power"]) for n in names]
    buckets = [Bucket(one.name, one.rate) for one in mix]
    matrix = [[able[n].get(one.name, 0.0) for n in names] for one in mix]
    fleet = plan_fleet(buckets, types, matrix, objective=objective)
    single = single_types(buckets, types, matrix, objective=objective)
    alone = {n: (f.cost if f is not None else None) for n, f in single.items()}
    used = [n for n in names if fleet.counts.get(n, 0)]
    return FleetPlan(fleet, {n: options[n] for n in used}, {n: able[n] for n in used}, alone)


def _worth(able: Mapping[str, float], option: Mapping[str, Any]) -> float:
    """Return requests per cost (devices where no price is known) at what it does best."""
    cost = option["cost"] if np.isfinite(option["cost"]) else float(option["devices"])
    return max(able.values()) / cost
