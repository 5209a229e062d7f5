"""The command that plans: which devices, how many, in which layout and format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InfeasibleError, SpecError
from . import options as o
from .output import write_json
from .plotting import check_plot, command, save_plot

if TYPE_CHECKING:
    from ..search.fleet_plan import FleetPlan

__all__ = ["plan"]

# column of the plan -> heading
_SHOWN = {"devices": "devices", "batch": "batch", "ttft_s": "ttft", "tpot_s": "tpot",
          "output_tokens_per_s_per_gpu": "tok/s /gpu", "service_power_w": "power",
          "cost_usd_per_h": "USD/h", "cost_per_million_tokens_usd": "USD /Mtok"}  # fmt: skip


def plan(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    what: Annotated[str, typer.Argument(help="serve", show_default=False)],
    model: Annotated[str, typer.Argument(help="A model; see `ridgecast models`.")],
    on: Annotated[str, typer.Option(help="Devices to try, a,b,c; or all with measurements.")],
    isl: Annotated[int, typer.Option(help="Prompt tokens of a request.")] = 2048,
    osl: Annotated[int, typer.Option(help="Output tokens of a request.")] = 512,
    request_rate: Annotated[float | None, typer.Option(help="Requests/s to carry.")] = None,
    ttft: Annotated[float | None, typer.Option(help="Most seconds to the first token.")] = None,
    tpot: Annotated[float | None, typer.Option(help="Most seconds per output token.")] = None,
    e2e: Annotated[float | None, typer.Option(help="Most seconds of a request.")] = None,
    power: Annotated[float | None, typer.Option(help="Most W of all devices.")] = None,
    cost: Annotated[float | None, typer.Option(help="Most USD/h of all devices.")] = None,
    devices: Annotated[int, typer.Option(help="Most devices.")] = 64,
    dtype: Annotated[str, typer.Option(help="Formats to try; default: as published.")] = "",
    kv_dtype: Annotated[str, typer.Option(help="Formats of the cache to try.")] = "",
    technique: Annotated[str, typer.Option(help="Sets of techniques to try, separated by |.")] = "",
    stack: Annotated[str, typer.Option(help="Serving engines to try.")] = "vllm",
    tp: Annotated[str, typer.Option(help="Tensor-parallel sizes to try.")] = "1,2,4,8",
    pp: Annotated[str, typer.Option(help="Pipeline stages to try.")] = "1,2",
    dp: Annotated[str, typer.Option(help="Attention groups to try.")] = "1",
    ep: Annotated[str, typer.Option(help="Expert groups to try.")] = "1",
    batches: Annotated[int, typer.Option(help="Batch sizes to try for each layout.")] = 64,
    disaggregate: Annotated[
        bool, typer.Option(help="Try separate prefill and decode workers too.")
    ] = False,
    strict: Annotated[
        bool, typer.Option(help="Hold the upper ends of intervals to the limits.")
    ] = False,
    price: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE=USD", help="USD per device and hour.")
    ] = None,
    objective: Annotated[str, typer.Option(help="cost, devices, power or throughput.")] = "cost",
    engine: Annotated[str, typer.Option(help="Where the search runs: local or ray.")] = "local",
    out: Annotated[Path | None, typer.Option(help="Folder that keeps parts: resumes.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes of the search.")] = None,
    mix: Annotated[
        str, typer.Option(help="Kinds of requests isl:osl:rate,...: a fleet of unlike replicas.")
    ] = "",
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:
    """Find the cheapest service of a model that keeps its limits, and why others fail."""
    from ..scenario import Traffic
    from ..search.plan_words import prices_of
    from ..search.serving_plan import Limits, Space, plan_serving
    from .lean import lean_lightgbm

    check_plot(plot)
    lean_lightgbm()
    if what != "serve":
        raise SpecError(f"plan: got {what!r}, need serve")
    space = Space(
        _devices(on), _words(stack), _words(dtype), _words(kv_dtype),
        [t.strip() for t in technique.split("|")], _sizes("tp", tp), _sizes("pp", pp),
        _sizes("dp", dp), _sizes("ep", ep), batches, disaggregate, prices_of(price or []),
    )  # fmt: skip
    limits = Limits(ttft, tpot, e2e, power, cost, devices, strict)
    if mix:
        return _fleet(model, space, mix, limits, objective, plot=plot, json=json)
    found = plan_serving(
        model, space, Traffic(isl, osl, request_rate=request_rate), limits, objective=objective,
        engine=engine, out=str(out) if out else None, workers=workers,
    )  # fmt: skip
    front = [found.row(int(i)) for i in found.front]
    best = found.row(found.best) if found.best is not None else None
    if json:
        write_json(found)
    else:
        _show(best, front, found.rejected, found.searched)
    if plot is not None and (best is not None or plot.suffix == ".html"):
        from ..report.result_views import plan_result_view

        save_plot(plan_result_view(found, model=model, tpot=tpot, command=command()), plot)
    if best is None:
        raise InfeasibleError(_why(found.rejected))
    return None


def _fleet(
    model: str, space: Any, mix: str, limits: Any, objective: str, *, plot: Path | None, json: bool
) -> None:  # fmt: skip
    from ..search.fleet_plan import parse_mix, plan_mix

    kinds = parse_mix(mix)
    found = plan_mix(model, space, kinds, limits, objective=objective)
    if json:
        write_json(found)
    else:
        _show_fleet(found)
    if plot is not None:
        from ..report.fleet_view import fleet_view

        save_plot(fleet_view(found, kinds, model=model, command=command()), plot)


def _show_fleet(found: FleetPlan) -> None:
    from .render import print_rows, print_text

    rows = [
        {"replica": name, "count": count, "busy_share": found.fleet.busy.get(name)}
        for name, count in found.fleet.counts.items() if count
    ]  # fmt: skip
    print_rows(rows, title=f"fleet: {found.fleet.cost:.4g} USD/h, {found.fleet.power:.4g} W")
    print_rows([{"requests": b, **{n: v for n, v in by.items() if v > 0}}
                for b, by in found.fleet.assignment.items()], title="requests/s")  # fmt: skip
    print_rows(
        [
            {"all of one kind": n, "USD/h": c}
            for n, c in sorted(
                found.alone.items(), key=lambda p: p[1] if p[1] is not None else float("inf")
            )[:6]
        ]
    )
    unit = "W" if found.fleet.objective == "power" else "USD/h"
    print_text(f"no fleet of these replicas can take less than {found.fleet.bound:.4g} {unit}")


def _why(rejected: Sequence[dict[str, Any]]) -> str:
    from ..search.plan_words import option_name

    nearest = "; ".join(f"{option_name(r)}: {r['reason']}" for r in rejected[:3])
    return f"plan: none of the options keeps the limits. {nearest}. Relax a limit or add options."


def _show(
    best: dict[str, Any] | None, front: list[dict[str, Any]], rejected: list[dict[str, Any]],
    searched: int,
) -> None:  # fmt: skip
    from ..search.plan_words import option_name
    from .render import print_rows, print_text

    print_text(f"{searched} configurations searched")
    if best is not None:
        print_rows([_line(best)], title="best")
        if best["reason"]:
            print_text(f"disaggregated: {best['reason']}")
        step = max(1, len(front) // 12)
        print_rows([_line(r) for r in front[::step]], title=f"of {len(front)} that none beats")
    if rejected:
        print_text(f"{len(rejected)} options failed, among them:")
        for row in rejected[:8]:
            print_text(f"- {option_name(row)}: {row['reason']}")


def _line(row: dict[str, Any]) -> dict[str, str]:
    from ..search.plan_words import option_name
    from ..units import format_field as cell

    each = " + ".join(row["reason"].split(", ")) if row["reason"] else ""
    out = {"option": f"{row['replicas']:.0f} x {option_name(row)}" + (f" ({each})" if each else "")}
    return out | {head: cell(name, row[name]) for name, head in _SHOWN.items()}


def _words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",")]


def _devices(text: str) -> list[str]:
    if text != "all":
        return _words(text)
    from ..predict.bundle import open_bundle

    return sorted({e.hardware for e in open_bundle(None).entries})


def _sizes(name: str, text: str) -> list[int]:
    try:
        found = [int(w) for w in _words(text)]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise SpecError(f"--{name}: got {text!r}, need whole numbers of at least 1, as 1,2,4")
    return found
