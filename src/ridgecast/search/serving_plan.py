"""Which devices, how many, in which layout and format, serve a model within limits; at what cost.

Owns the space of configurations, their evaluation in bulk, the Pareto set, the cheapest answer, and
why each rejected option failed. Physics is `scenario`'s, disaggregation that of `pairs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype
from ..errors import InfeasibleError, RidgecastError, SpecError
from ..hardware import resolve
from ..models import Layout, Network
from ..models import get as get_model
from ..scenario import Points, Scenario, Traffic
from ..scenario import engine as find_engine
from ..scenario.advice import need_text
from ..scenario.case import Made
from ..scenario.solve import largest_batch, machine_of, memory_at, solve_all
from ..store.tables import Table
from ..techniques import treatment_of
from .engine import Function, Progress, run
from .pairs import with_pairs
from .pareto import non_dominated

__all__ = ["Limits", "ServingPlan", "Space", "evaluate_table", "plan_serving"]

F64 = npt.NDArray[np.float64]
NODES = 9  # batches that are solved; those between follow by interpolation in log space
_KEYS = ("hardware", "engine", "dtype", "kv_dtype", "technique", "tp", "pp", "dp", "ep")
_NUMBERS = ("ttft_s", "tpot_s", "e2e_s", "output_tokens_per_s", "power_w", "memory_bytes",
            "tpot_high_s", "ttft_high_s", "decode_s", "decode_high_s")  # fmt: skip
# column of a plan -> array of the solver
_SOLVED = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_s": "e2e", "power_w": "power",
           "output_tokens_per_s": "output_tokens_per_s", "tpot_high_s": "tpot_high",
           "ttft_high_s": "ttft_high", "decode_s": "decode",
           "decode_high_s": "decode_high"}  # fmt: skip
# what a notebook shows of a configuration
_SHOWN = (*_KEYS, "replicas", "devices", "batch", "ttft_s", "tpot_s",
          "output_tokens_per_s_per_gpu", "service_power_w", "cost_usd_per_h",
          "cost_per_million_tokens_usd")  # fmt: skip
_CASES = 48  # layouts that one table of predictions holds


@dataclass(frozen=True, slots=True)
class Limits:
    """What an answer must keep: seconds, W of all devices, USD/h of all devices, devices.

    `strict` holds the upper ends of the 90 % intervals of the times to the limits, not the medians.
    """

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    power: float | None = None
    cost_per_h: float | None = None
    devices: int = 64
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot", "e2e", "power", "cost_per_h", "devices"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SpecError(f"limits.{name}: got {value}, need more than 0")


@dataclass(frozen=True, slots=True)
class Space:
    """What is tried: every combination that can be.

    `devices` are names, `prices` USD per device and hour where a device's own is missing or not
    the user's. `batches` None takes 64 sizes up to the largest that fits.
    """

    devices: Sequence[str]
    engines: Sequence[str] = ("vllm",)
    dtypes: Sequence[str] = ("",)
    kv_dtypes: Sequence[str] = ("",)
    techniques: Sequence[str] = ("",)
    tp: Sequence[int] = (1, 2, 4, 8)
    pp: Sequence[int] = (1, 2)
    dp: Sequence[int] = (1,)
    ep: Sequence[int] = (1,)
    batches: int = 64
    disaggregate: bool = False
    prices: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """All configurations, which of them keep the limits, the Pareto set and the best.

    `table` has a row a configuration with its numbers for the whole service (replicas included);
    `front` are rows of `table`; `best` is one of them. `rejected` says of every option (device,
    format, layout ...) that gave no answer why its best configuration failed.
    """

    table: Table
    kept: npt.NDArray[np.bool_]
    front: npt.NDArray[np.int64]
    best: int | None
    rejected: list[dict[str, Any]]
    objective: str
    searched: int

    def row(self, index: int) -> dict[str, Any]:
        """One configuration as plain values."""
        return {k: v[index].item() if hasattr(v[index], "item") else v[index]
                for k, v in self.table.items()}  # fmt: skip

    def _repr_html_(self) -> str:
        """Rich display in a notebook."""
        from ..richtext import block, line, table

        found = ([] if self.best is None else [self.row(self.best)]), [
            self.row(int(i)) for i in self.front]  # fmt: skip
        title = f"{self.searched} configurations searched, best by {self.objective}"
        return block(line(title, strong=True), table(found[0], _SHOWN, caption="best"),
                     table(found[1], _SHOWN, caption="those that none beats"),
                     table(self.rejected, (*_KEYS, "reason"), caption="failed"))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the document that `plan serve --json` prints."""
        return {
            "best": None if self.best is None else self.row(self.best),
            "front": [self.row(int(i)) for i in self.front], "rejected": self.rejected,
            "searched": self.searched, "kept": int(self.kept.sum()), "objective": self.objective,
        }  # fmt: skip


def plan_serving(  # noqa: PLR0913 - what, where, under which limits, how
    model: str | Network,
    space: Space,
    traffic: Traffic,
    limits: Limits | None = None,
    *,
    objective: str = "cost",
    engine: str = "local",
    out: str | None = None,
    workers: int | None = None,
    progress: Any = None,
) -> ServingPlan:
    """Search a space for the service of a model under traffic.

    With a request rate the answer is the fewest replicas that carry it; without one, a single
    replica, compared per token. `objective` is "cost" (USD/h; devices where no price is known),
    "devices", "power" or "throughput". `engine`, `out` and `workers` are those of `search.run`:
    "local" processes or a "ray" cluster, with resumable parts under `out`.
    Raises SpecError for unknown names; InfeasibleError when no layout can be, saying why.
    """
    if objective not in OBJECTIVES:
        raise SpecError(f"objective: got {objective!r}, need one of {', '.join(OBJECTIVES)}")
    limits = limits or Limits()
    network = get_model(model) if isinstance(model, str) else model
    need_text(network)
    _checked(space)
    rows, refused = _options(network, space, traffic, limits)
    if not rows:
        raise InfeasibleError(
            "plan: no option can be: " + "; ".join(r["reason"] for r in refused[:4])
        )
    table = _grid(rows, space)
    if isinstance(model, str) and (engine != "local" or out or (workers or 0) > 1):
        settings = {"model": model, "isl": traffic.isl, "osl": traffic.osl,
                    "prefix": traffic.prefix}  # fmt: skip
        found = run(table, Function(f"{__name__}:evaluate_table", settings), out=out,
                    engine=engine, workers=workers, progress=progress,
                    chunk=_CASES * space.batches)  # fmt: skip
    else:
        found = table | evaluate_table(table, model=network, isl=traffic.isl, osl=traffic.osl,
                                       prefix=traffic.prefix)  # fmt: skip
        if progress:
            progress(Progress(len(found["batch"]), len(found["batch"]), 0))
    if space.disaggregate:
        prices = {n: _price(n, space) for n in dict.fromkeys(found["hardware"].tolist())}
        found = with_pairs(found, network, traffic=traffic, prices=prices, devices=limits.devices,
                           tpot=limits.tpot)  # fmt: skip
    found = _scaled(found, traffic, space)
    return _chosen(found, limits, objective, refused, each=traffic.request_rate is None)


def _checked(space: Space) -> None:
    """Raise SpecError for a name that nothing has, and for no batches: no option could be."""
    for device in space.devices:
        resolve(device)
    for one in space.engines:
        find_engine(one)
    for one in (*space.dtypes, *space.kv_dtypes):
        if one:
            dtype(one)
    for one in space.techniques:
        with suppress(InfeasibleError):  # those that exclude each other are refused one by one
            treatment_of(one)
    if space.batches < 1:
        raise SpecError(f"plan.batches: got {space.batches}, need sizes to try, from 1")


OBJECTIVES = ("cost", "devices", "power", "throughput")


def _options(
    network: Network, space: Space, traffic: Traffic, limits: Limits
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every combination that can be, with the largest batch that fits; and the refused ones."""
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    names = (space.devices, space.engines, space.dtypes, space.kv_dtypes, space.techniques,
             space.tp, space.pp, space.dp, space.ep)  # fmt: skip
    for values in product(*names):
        option: dict[str, Any] = dict(zip(_KEYS, values, strict=True))
        size = option["tp"] * option["pp"] * option["dp"]
        if size > limits.devices or option["ep"] > option["tp"] * option["dp"]:
            continue
        try:
            scenario, made = _scenario(option, network, traffic)
            network.calls((), made.layout)
            most = largest_batch(made, scenario, machine_of(made, scenario).pinned)
        except RidgecastError as error:
            refused.append(option | {"reason": str(error)})
            continue
        if most < 1:
            memory = memory_at(made, scenario, 1)
            limit = made.hardware.memory.capacity * made.engine.memory_share
            refused.append(option | {"reason": (
                f"does not fit: {memory.total / 1e9:.1f} GB with one request, "
                f"{limit / 1e9:.1f} GB usable")})  # fmt: skip
            continue
        rows.append(option | {"most": most, "devices_each": made.layout.devices})
    return rows, refused


def _scenario(
    option: Mapping[str, Any], network: Network, traffic: Traffic
) -> tuple[Scenario, Made]:
    layout = Layout(**{n: int(option[n]) for n in ("tp", "pp", "dp", "ep")})
    s = Scenario(network, str(option["hardware"]), layout.devices, layout, traffic,
                 str(option["engine"]), str(option["dtype"]), kv_dtype=str(option["kv_dtype"]),
                 techniques=str(option["technique"]))  # fmt: skip
    return s, s.made()


def _grid(rows: Sequence[Mapping[str, Any]], space: Space) -> Table:
    """One row an option and batch; batches are spaced evenly in log up to the largest."""
    batches, index = [], []
    for i, row in enumerate(rows):
        sizes = np.unique(np.round(np.geomspace(1, row["most"], space.batches)))
        batches.append(sizes)
        index.append(np.full(len(sizes), i))
    at = np.concatenate(index)
    out: Table = {
        name: np.array([row[name] for row in rows], dtype=object if i < 5 else np.int64)[at]
        for i, name in enumerate((*_KEYS, "most", "devices_each"))
    }
    return out | {"batch": np.concatenate(batches)}


def evaluate_table(
    table: Table, *, model: str | Network, isl: int, osl: int, prefix: float = 0.0
) -> Table:
    """Numbers of one replica for every row of a grid of options and batches.

    Rows of one option are solved at NODES batches and interpolated between them in log space; an
    option that fails gives rows with status and reason. Returns columns [rows]: times [s], output
    tokens/s, power [W] of the replica, memory [B] of the fullest device, status, reason.
    """
    network = get_model(model) if isinstance(model, str) else model
    traffic = Traffic(isl, osl, prefix=prefix)
    rows = len(table["batch"])
    out: Table = {name: np.full(rows, np.nan) for name in _NUMBERS}
    out |= {"status": np.full(rows, "ok", object), "reason": np.full(rows, "", object)}
    code = [tuple(table[k][i] for k in _KEYS) for i in range(rows)]
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(code):
        groups.setdefault(key, []).append(i)
    pending: list[tuple[npt.NDArray[np.int64], Scenario, Made, Points]] = []
    for members in groups.values():
        at = np.array(members)
        option = {k: table[k][at[0]] for k in _KEYS}
        try:
            scenario, made = _scenario(option, network, traffic)
            batch = table["batch"][at].astype(np.float64)
            nodes = np.unique(np.round(np.geomspace(batch.min(), batch.max(), NODES)))
            pending.append((at, scenario, made, Points.of(nodes, isl, osl)))
        except RidgecastError as error:
            out["status"][at], out["reason"][at] = "no_answer", str(error)
    for start in range(0, len(pending), _CASES):
        _fill(out, table, pending[start : start + _CASES])
    return out


def _fill(out: Table, table: Table, part: Sequence[tuple[Any, Scenario, Made, Points]]) -> None:
    """Solve some options at once; if that fails, one by one, so that a bad one stops no other."""
    try:
        solved = solve_all([(made, s, at) for _, s, made, at in part])
    except RidgecastError as error:
        if len(part) > 1:
            for one in part:
                _fill(out, table, [one])
            return
        rows = part[0][0]
        out["status"][rows], out["reason"][rows] = "no_answer", str(error)
        return
    for (rows, scenario, made, at), found in zip(part, solved, strict=True):
        x = np.log(table["batch"][rows].astype(np.float64))
        nodes = np.log(at.batch)
        for ours, theirs in _SOLVED.items():
            values = np.log(np.maximum(found[theirs], 1e-300))
            out[ours][rows] = np.exp(np.interp(x, nodes, values))
        low, high = (memory_at(made, scenario, int(b)).total for b in (at.batch[0], at.batch[-1]))
        span = max(at.batch[-1] - at.batch[0], 1.0)
        share = (table["batch"][rows].astype(np.float64) - at.batch[0]) / span
        out["memory_bytes"][rows] = low + share * (high - low)


def _scaled(found: Table, traffic: Traffic, space: Space) -> Table:
    """Whole service: replicas for the request rate, devices, power, cost, tokens/s per device."""
    rate = found["output_tokens_per_s"] / traffic.osl
    replicas = np.ones(len(rate))
    if traffic.request_rate is not None:
        with np.errstate(invalid="ignore"):
            replicas = np.ceil(traffic.request_rate / rate)
    devices = replicas * found["devices_each"]
    each = {name: _price(name, space) for name in dict.fromkeys(found["hardware"].tolist())}
    price = np.array([each[n] for n in found["hardware"].tolist()])
    cost = devices * price
    if "extra_usd_per_h" in found:
        cost = cost + replicas * found["extra_usd_per_h"]
    tokens = replicas * found["output_tokens_per_s"]
    if traffic.request_rate is not None:
        tokens = np.minimum(tokens, traffic.request_rate * traffic.osl)
    return found | {
        "replicas": replicas, "devices": devices, "cost_usd_per_h": cost,
        "service_power_w": found["power_w"] * replicas,
        "output_tokens_per_s_per_gpu": found["output_tokens_per_s"] / found["devices_each"],
        "cost_per_million_tokens_usd": cost / 3600.0 / tokens * 1e6,
        "energy_per_token_j": found["power_w"] / found["output_tokens_per_s"],
    }  # fmt: skip


def _price(name: str, space: Space) -> float:
    device = resolve(name)
    for known in (name, device.name):
        if known in space.prices:
            return float(space.prices[known])
    own = device.price_per_h
    return float("nan") if own is None else own


def _chosen(
    found: Table, limits: Limits, objective: str, refused: list[dict[str, Any]], *, each: bool
) -> ServingPlan:
    """Apply the limits, take the Pareto set and the best, and say why the others fell.

    `each`: no rate is asked, so that single replicas are compared per token.
    """
    end = "_high_s" if limits.strict else "_s"
    checks: list[tuple[str, F64, float | None]] = [
        ("ttft", found[f"ttft{end}"], limits.ttft), ("tpot", found[f"tpot{end}"], limits.tpot),
        ("e2e", found["e2e_s"], limits.e2e), ("power", found["service_power_w"], limits.power),
        ("cost", found["cost_usd_per_h"], limits.cost_per_h),
        ("devices", found["devices"], float(limits.devices)),
    ]  # fmt: skip
    kept = found["status"] == "ok"
    for _, values, limit in checks:
        if limit is not None:
            with np.errstate(invalid="ignore"):
                kept = kept & (values <= limit)
    cost = found["cost_usd_per_h"] if np.isfinite(found["cost_usd_per_h"][kept]).all() else None
    spent = found["devices"] if cost is None or objective == "devices" else cost
    goal = {"cost": spent, "devices": found["devices"], "power": found["service_power_w"],
            "throughput": -found["output_tokens_per_s_per_gpu"]}[objective]  # fmt: skip
    per_token = spent / found["output_tokens_per_s"] if objective == "cost" else goal
    rows = np.flatnonzero(kept)
    front = rows[:0]
    if len(rows):
        values = np.stack([spent[rows], found["ttft_s"][rows], found["tpot_s"][rows],
                           -found["output_tokens_per_s_per_gpu"][rows]], axis=1)  # fmt: skip
        front = rows[non_dominated(values)]
    best = None
    if len(rows):
        goals = (goal[rows], per_token[rows]) if each else (per_token[rows], goal[rows])
        keys = (found["ttft_s"][rows], found["tpot_s"][rows], *goals)
        best = int(rows[np.lexsort(keys)[0]])
    rejected = refused + _failures(found, kept, checks)
    return ServingPlan(found, kept, front, best, rejected, objective, len(kept) + len(refused))


def _failures(
    found: Table, kept: npt.NDArray[np.bool_], checks: Sequence[tuple[str, F64, float | None]]
) -> list[dict[str, Any]]:
    """Say of every option none of whose rows was kept by how much its nearest row failed."""
    out: list[dict[str, Any]] = []
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(zip(*(found[k].tolist() for k in _KEYS), strict=True)):
        groups.setdefault(key, []).append(i)
    for key, members in groups.items():
        at = np.array(members)
        if kept[at].any():
            continue
        option = dict(zip(_KEYS, key, strict=True))
        bad = at[found["status"][at] != "ok"]
        if len(bad) == len(at):
            out.append(option | {"reason": str(found["reason"][at[0]])})
            continue
        active = [(n, v[at], lim) for n, v, lim in checks if lim is not None]
        over = np.stack([np.nan_to_num(v / lim, nan=np.inf) for _, v, lim in active])
        nearest = int(np.argmin(over.max(axis=0)))
        worst = [f"{n} {v[nearest]:.4g} > {lim:.4g}" for n, v, lim in active if v[nearest] > lim]
        batch = found["batch"][at[nearest]]
        out.append(option | {"reason": f"batch {batch:.0f} comes nearest: {', '.join(worst)}"})
    return out
