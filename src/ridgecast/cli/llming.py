"""Commands about whole models: llm and compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SpecError
from ..units import key_values
from . import options as o
from .output import NO_ANSWER, plain, write_json
from .plotting import check_plot, check_trace, command, save_plot, save_trace

if TYPE_CHECKING:
    from ..scenario import Answer, Scenario

__all__ = ["compare", "llm"]

Model = Annotated[str, typer.Argument(help="A shipped name, a config.json, or a Hugging Face id.")]
Isl = Annotated[int, typer.Option(help="Prompt tokens of a request.")]
Osl = Annotated[int, typer.Option(help="Output tokens of a request.")]
InFlight = Annotated[str, typer.Option(help="Requests in flight on each replica, or max.")]
Engine = Annotated[
    str, typer.Option(help="vllm, sglang, trtllm or hf; as of a release: sglang:0.5.9.")
]
WeightDtype = Annotated[
    str, typer.Option(help="Format of weights and products; by default as published.")
]
KvDtype = Annotated[str, typer.Option(help="Format of the cache; by default 16 bits.")]
Techniques = Annotated[
    str, typer.Option("--technique", help="Techniques, as kivi:bits=4,marlin; they stack.")
]
Rate = Annotated[float | None, typer.Option(help="Requests/s instead of --batch.")]
Prefix = Annotated[float, typer.Option(help="Share of the prompt common to all requests.")]
Price = Annotated[float | None, typer.Option(help="US dollars per device and hour.")]
_LINES = ("ttft_s", "tpot_s", "e2e_s", "output_tokens_per_s_per_gpu", "power_w",
          "energy_per_token_j", "cost_per_million_tokens_usd", "memory_bytes")  # fmt: skip


def llm(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    model: Model,
    on: Annotated[str, typer.Option(help="DEVICE or DEVICE:N.", show_default=False)],
    isl: Annotated[
        str, typer.Option(help="Prompt tokens of a request, or max: the longest that fits.")
    ] = "2048",
    osl: Osl = 512,
    batch: InFlight = "1",
    tpot: Annotated[
        float | None, typer.Option(help="Most seconds per output token, for --batch max.")
    ] = None,
    ttft: Annotated[
        float | None, typer.Option(help="Most seconds to the first token, for --batch max.")
    ] = None,
    request_rate: Rate = None,
    tp: Annotated[int | None, typer.Option(help="Tensor-parallel shards.")] = None,
    pp: Annotated[int | None, typer.Option(help="Pipeline stages.")] = None,
    dp: Annotated[int | None, typer.Option(help="Attention data-parallel groups.")] = None,
    ep: Annotated[int | None, typer.Option(help="Expert-parallel groups.")] = None,
    cp: Annotated[int | None, typer.Option(help="Devices that share a sequence.")] = None,
    engine: Engine = "vllm",
    dtype: WeightDtype = "",
    kv_dtype: KvDtype = "",
    technique: Techniques = "",
    prefix: Prefix = 0.0,
    price_per_h: Price = None,
    what_if: o.WhatIf = None,
    trained: Annotated[Path | None, typer.Option("--model", help="Trained models.")] = None,
    plot: o.Plot = None,
    trace: o.Trace = None,
    json: o.Json = False,
) -> None:
    """Predict memory, latency, throughput, power and cost of a language model in service."""
    from ..scenario import document_of, evaluate, scenario_of
    from .lean import lean_lightgbm

    check_plot(plot)
    check_trace(trace)
    lean_lightgbm()
    sizes = {"tp": tp, "pp": pp, "dp": dp, "ep": ep, "cp": cp}
    asked = {
        "isl": isl, "osl": osl, "batch": batch, "tpot": tpot, "ttft": ttft,
        "request_rate": request_rate, "prefix": prefix, "engine": engine, "dtype": dtype,
        "kv_dtype": kv_dtype, "technique": technique, "price_per_h": price_per_h,
        "what_if": key_values(what_if or (), "--what-if"), "trained": trained,
    }  # fmt: skip
    scenario = scenario_of(model, on, {k: v for k, v in sizes.items() if v is not None}, asked)
    answer = evaluate(scenario)
    if json:
        write_json(document_of(model, on, scenario, answer))
    else:
        _card(answer, f"{model} on {on}, {scenario.traffic.isl} in / {osl} out")
    if plot is not None:
        from ..report.result_views import answer_view

        save_plot(answer_view(scenario, answer, model=model, on=on, command=command()), plot)
    if not answer.fits:
        raise typer.Exit(NO_ANSWER)
    if trace is not None:
        from ..report.traces import scenario_timeline

        save_trace(scenario_timeline(scenario, answer), trace)


def _rows(answer: Answer) -> list[dict[str, Any]]:
    from ..units import format_field as cell

    known = answer.to_dict()
    rows = []
    for name in _LINES:
        value = known[name]
        low, high = known[f"{name}_low"], known[f"{name}_high"]
        row = {"quantity": name.rpartition("_")[0] if name != _LINES[3] else name,
               "value": cell(name, value) if value is not None else "n/a"}  # fmt: skip
        if low is not None and value is not None:
            row["90 % of cases"] = f"{cell(name, low)} to {cell(name, high)}"
        rows.append(row)
    return rows


def _card(answer: Answer, title: str) -> None:
    from ..units import format_field as cell
    from .render import print_rows, print_text

    if answer.fits:
        print_rows(_rows(answer), title=title)
    else:
        print_text(f"{title}: does not fit")
    gpu = ", ".join(f"{k} {v}" for k, v in answer.layout.items() if v != 1) or "one device"
    print_text(
        f"batch {answer.batch} (most that fits: {answer.max_batch}) on {answer.replicas} "
        f"replica(s) of {gpu}; limited by {answer.limiter or 'memory'}; weakest basis "
        f"{answer.basis or 'n/a'}"
    )
    if answer.shares:
        parts = ", ".join(f"{k} {100 * v:.0f} %" for k, v in answer.shares.items())
        print_text(f"time stands on: {parts}")
    memory = [{"memory": k, "bytes_bytes": v} for k, v in answer.memory.items() if v > 0]
    print_rows([{"memory": m["memory"], "size": cell("_bytes", m["bytes_bytes"])} for m in memory],
               title=f"memory of the fullest device ({cell('_bytes', answer.memory_capacity)}; "
               f"runs out in {100 * answer.out_of_memory_probability:.1f} % of cases)")  # fmt: skip
    parts = sorted({p for phase in answer.breakdown.values() for p in phase},
                   key=lambda p: -answer.breakdown["decode"].get(p, 0.0))  # fmt: skip
    rows = [
        {"part": p, **{f"{phase}": cell("_s", v.get(p)) for phase, v in answer.breakdown.items()}}
        for p in parts
    ]
    if rows:
        print_rows(rows, title="one pass of each phase")
    for reason in answer.reasons:
        print_text(f"- {reason}")


def compare(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    a: Annotated[str, typer.Argument(help="MODEL@DEVICE[:N][+technique,...]", show_default=False)],
    b: Annotated[str, typer.Argument(help="The same of the other case.", show_default=False)],
    isl: Isl = 2048,
    osl: Osl = 512,
    batch: InFlight = "1",
    engine: Engine = "vllm",
    dtype: WeightDtype = "",
    kv_dtype: KvDtype = "",
    what_if: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=CHANGE", help="Change the device of b: +20%; repeatable."),
    ] = None,
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:
    """Answer two cases side by side, with ratios and where the difference comes from."""
    from ..scenario import evaluate
    from .lean import lean_lightgbm

    check_plot(plot)
    lean_lightgbm()
    asked = {
        "isl": isl, "osl": osl, "batch": batch, "request_rate": None, "prefix": 0.0,
        "engine": engine, "dtype": dtype, "kv_dtype": kv_dtype,
    }  # fmt: skip
    changes = {"what_if": key_values(what_if or (), "--what-if")}
    answers = [evaluate(_case(a, asked)), evaluate(_case(b, asked | changes))]
    found = _compared(a, f"{b} {', '.join(what_if)}" if what_if else b, answers)
    if json:
        write_json(found)
    else:
        _side_by_side(found)
    if plot is not None:
        from ..report.compare_view import compare_view

        save_plot(compare_view(found, command=command()), plot)


def _compared(a: str, b: str, answers: list[Answer]) -> dict[str, Any]:
    """Document of two answers: both, their ratios, and the parts of their decode passes."""
    cases = [x.to_dict() for x in answers]
    rows = []
    for name in (*_LINES, "max_batch"):
        one, two = cases[0][name], cases[1][name]
        ratio = two / one if one and two is not None else None
        rows.append({"quantity": name, "a": one, "b": two, "b_over_a": ratio})
    return plain({"a": {"case": a, **cases[0]}, "b": {"case": b, **cases[1]}, "ratios": rows,
                  "parts": _parts(answers)})  # fmt: skip


def _side_by_side(found: Mapping[str, Any]) -> None:
    from ..units import format_field as cell
    from .render import print_rows, print_text

    a, b = found["a"]["case"], found["b"]["case"]
    shown = [
        {"quantity": r["quantity"], a: cell(r["quantity"], r["a"]) or "n/a",
         b: cell(r["quantity"], r["b"]) or "n/a", "ratio": r["b_over_a"]}
        for r in found["ratios"]
    ]  # fmt: skip
    print_rows(shown)
    print_rows([{"part of a decode pass": p["part"], a: cell("_s", p["a_s"]),
                 b: cell("_s", p["b_s"])} for p in found["parts"]])  # fmt: skip
    for case in (found["a"], found["b"]):
        for reason in case["reasons"]:
            print_text(f"- {case['case']}: {reason}")


def _parts(answers: list[Answer]) -> list[dict[str, Any]]:
    """Seconds of a decode pass by part, the largest difference first."""
    one, two = (x.breakdown.get("decode", {}) for x in answers)
    names = sorted({*one, *two}, key=lambda p: -abs(two.get(p, 0.0) - one.get(p, 0.0)))
    return [{"part": p, "a_s": one.get(p), "b_s": two.get(p)} for p in names]


def _case(text: str, asked: Mapping[str, Any]) -> Scenario:
    from ..scenario import scenario_of

    head, _, technique = text.partition("+")
    model, sign, on = head.rpartition("@")
    if not sign:
        raise SpecError(f"compare: got {text!r}, need MODEL@DEVICE[:N][+technique,...]")
    return scenario_of(model, on, {}, {**asked, "technique": technique})
