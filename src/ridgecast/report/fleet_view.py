"""A fleet of unlike replicas for a mix of traffic: what `plan serve --mix` found, for eyes.

Every number is of `search.plan_mix`; this module owns which of them stand in which figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..search.fleet_plan import FleetPlan, Mix
from ..units import format_number, format_quantity
from .figures import Axis, Figure, Panel, Series
from .scaled import scaled
from .view import Block, Fact, Facts, Rows, View, Words

__all__ = ["fleet_view"]

_ALONE = 8  # fleets of one kind with a bar of their own
_IDLE = "to spare"


def fleet_view(found: FleetPlan, mix: Sequence[Mix], *, model: str, command: str = "") -> View:
    """Show a fleet: replicas of each kind, who serves what, cost and power, fleets of one kind."""
    kinds = list(found.fleet.counts)
    blocks: list[Block] = [
        Words((_sentence(found),), tone="lead"), _facts(found), _replicas(found, kinds),
        _served(found, kinds), _means(found, kinds), _alone(found),
        Rows("fleet", "The fleet", _rows(found, kinds)),
        Rows("served", "Requests/s of each kind by replica", _served_rows(found, mix)),
        Rows("alone", "All of one kind",
             [{"replica": n, "cost_usd_per_h": c, "served": c is not None}
              for n, c in found.alone.items()], headings={"served": "carries the mix"}, open=False),
    ]  # fmt: skip
    lead = "; ".join(f"{m.rate:g} requests/s of {m.isl} in / {m.osl} out" for m in mix)
    return View("fleet", f"Fleet for {model}", tuple(blocks), lead=lead,
                answer=found.to_dict(), command=command)  # fmt: skip


def _sentence(found: FleetPlan) -> str:
    parts = " and ".join(f"{count} × {kind}" for kind, count in found.fleet.counts.items())
    return f"{parts}: the least {found.fleet.objective} that carries the mix within the limits."


def _devices(found: FleetPlan, kind: str) -> int:
    """Devices of all replicas of a kind."""
    return found.fleet.counts[kind] * int(found.options[kind]["devices"])


def _facts(found: FleetPlan) -> Facts:
    fleet = found.fleet
    cost = f"{format_number(fleet.cost)} USD/h" if math.isfinite(fleet.cost) else "not known"
    bound = "USD/h" if fleet.objective == "cost" else "W"
    return Facts((
        Fact("cost", cost, "an hour, all devices" if cost != "not known" else _unpriced(found),
             "price_per_h"),
        Fact("power", format_quantity(fleet.power, "power"), "of all devices, at most"),
        Fact("devices", str(sum(_devices(found, kind) for kind in fleet.counts)),
             f"in {sum(fleet.counts.values())} replicas"),
        Fact("bound", f"{format_number(fleet.bound)} {bound}",
             "with fractions of replicas: no fleet can be below"),
    ))  # fmt: skip


def _unpriced(found: FleetPlan) -> str:
    lost = [str(o["hardware"]) for o in found.options.values() if not math.isfinite(o["cost"])]
    return f"no price per hour is known for {', '.join(dict.fromkeys(lost))}; give --price"


# ------------------------------------------------------------------------------------ figures


def _work(found: FleetPlan, request: str, kind: str) -> float:
    """Replicas of a kind that one kind of request keeps busy all of the time."""
    rate = found.fleet.assignment.get(request, {}).get(kind, 0.0)
    return rate / found.throughput[kind][request] if rate else 0.0


def _stacks(at: Sequence[int], layers: dict[str, list[float]], unit: str) -> tuple[Series, ...]:
    """Series of bars at one place, each layer on those before it; an empty layer is left out."""
    base = [0.0] * len(at)
    series = []
    for name, values in layers.items():
        if any(values):
            told = [f"{name}: {format_number(v)} {unit}" for v in values]
            series.append(Series(name, at, values, "stack", base=base, hover=told))
        base = [b + v for b, v in zip(base, values, strict=True)]
    return tuple(series)


def _replicas(found: FleetPlan, kinds: Sequence[str]) -> Figure:
    """Replicas of each kind, shared among the kinds of requests that keep them busy."""
    title = "Replicas, and what keeps them busy"
    layers = {_request(name): [_work(found, name, kind) for kind in kinds]
              for name in found.fleet.assignment}  # fmt: skip
    busy = [sum(column) for column in zip(*layers.values(), strict=True)]
    layers[_IDLE] = [max(found.fleet.counts[kind] - b, 0.0)
                     for kind, b in zip(kinds, busy, strict=True)]  # fmt: skip
    names = tuple(_counted(found, kind) for kind in kinds)
    panel = Panel("Replicas by kind of request", Axis("replicas"),
                  Axis("", "", "category", names), _stacks(range(len(kinds)), layers, "replicas"),
                  horizontal=True)  # fmt: skip
    caption = ("Replicas that a kind of request keeps busy: its rate over what one replica serves "
               "of it within the limits.")  # fmt: skip
    return Figure("replicas", title, caption, (panel,))


def _request(name: str) -> str:
    """Prompt and output tokens in words."""
    return f"{name.replace(':', ' in / ')} out"


def _counted(found: FleetPlan, kind: str) -> str:
    """Replicas of a kind, and their devices where a replica takes several."""
    count, devices = found.fleet.counts[kind], _devices(found, kind)
    return f"{count} × {kind}" + (f" on\u00a0{devices}\u00a0devices" if devices != count else "")


def _served(found: FleetPlan, kinds: Sequence[str]) -> Figure:
    """Requests/s of each kind by the replicas that serve them."""
    requests = list(found.fleet.assignment)
    layers = {kind: [found.fleet.assignment[r].get(kind, 0.0) for r in requests] for kind in kinds}
    names = tuple(map(_request, requests))
    who = "by replica" if len(kinds) > 1 else f"all by {kinds[0]}"
    panel = Panel(f"Requests/s, {who}", Axis("requests/s"), Axis("", "", "category", names),
                  _stacks(range(len(requests)), layers, "requests/s"), horizontal=True)  # fmt: skip
    return Figure("served", "Who serves what", "Prompt and output tokens of a request.", (panel,))


def _means(found: FleetPlan, kinds: Sequence[str]) -> Figure:
    """Cost and power of all replicas of each kind."""
    fleet = found.fleet
    panels = []
    for name, dimension, total in (("cost", "", fleet.cost), ("power", "power", fleet.power)):
        each = [fleet.counts[kind] * float(found.options[kind][name]) for kind in kinds]
        title = name.capitalize()
        if not any(map(math.isfinite, each)):
            why = _unpriced(found) if name == "cost" else "not known of any of them"
            panels.append(Panel(title, reason=why))
            continue
        values, unit = scaled(each, dimension)
        sums = format_quantity(total, dimension) if dimension else f"{format_number(total)} USD/h"
        labels = [f"{v:.3g}" if math.isfinite(v) else "not known" for v in values]
        bars = Series("", range(len(kinds)), values, "bars", labels=labels)
        known = f", {sums} in all" if math.isfinite(total) else ""
        panels.append(Panel(f"{title}{known}", Axis("", unit or "USD/h"),
                            Axis("", "", "category", tuple(kinds)), (bars,),
                            horizontal=True))  # fmt: skip
    return Figure("means", "Cost and power of the fleet",
                  "All replicas of a kind; power is the most of any batch within the limits.",
                  tuple(panels))  # fmt: skip


def _alone(found: FleetPlan) -> Figure:
    """Cost of the fleet beside that of the cheapest fleets of one kind."""
    title = "Beside fleets of one kind"
    known = sorted((c, n) for n, c in found.alone.items() if c is not None and math.isfinite(c))
    if not math.isfinite(found.fleet.cost) or not known:
        priced = math.isfinite(found.fleet.cost)
        reason = "no kind alone carries the mix" if priced else _unpriced(found)
        return Figure("alone", title, f"Not shown: {reason}.", (Panel(title, reason=reason),))
    shown = known[:_ALONE]
    costs = [found.fleet.cost, *(cost for cost, _ in shown)]
    names = ("this fleet", *(f"all {name}" for _, name in shown))
    series = [Series("cost", range(len(costs)), costs, "bars", labels=[f"{c:.3g}" for c in costs])]
    if found.fleet.objective == "cost":
        series.append(Series("bound", [found.fleet.bound] * 2, [-0.5, len(costs) - 0.5], "guide"))
    panel = Panel("Cost", Axis("", "USD/h"), Axis("", "", "category", names), tuple(series),
                  horizontal=True)  # fmt: skip
    lost = [name for name, cost in found.alone.items() if cost is None]
    caption = "Each of the others carries the whole mix with replicas of one kind."
    if found.fleet.objective == "cost":
        caption += " The bound is the least with fractions of replicas."
    if lost:
        caption += f" Alone they cannot: {', '.join(lost)}."
    return Figure("alone", title, caption, (panel,))


# ------------------------------------------------------------------------------------- tables


def _rows(found: FleetPlan, kinds: Sequence[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for kind in kinds:
        count, option = found.fleet.counts[kind], found.options[kind]
        rows.append({"replica": kind, "replicas": count, "devices": _devices(found, kind),
                     "busy_share": found.fleet.busy.get(kind),
                     "cost_usd_per_h": count * float(option["cost"]),
                     "power_w": count * float(option["power"])})  # fmt: skip
    return rows


def _served_rows(found: FleetPlan, mix: Sequence[Mix]) -> list[dict[str, object]]:
    return [{"isl": m.isl, "osl": m.osl, "replica": kind, "requests_per_s": rate,
             "most_of_one_replica": found.throughput[kind][m.name],
             "replicas_kept_busy": _work(found, m.name, kind)}
            for m in mix for kind, rate in found.fleet.assignment.get(m.name, {}).items()
            ]  # fmt: skip
