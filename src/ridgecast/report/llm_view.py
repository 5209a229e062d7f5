"""The model planner: one model in service, with what holds its memory and where its time goes.

Every number is of `scenario.evaluate`, as `llm` prints it; this module owns which of them stand on
the page, in which figure, and what is said beside. The other views of the planner are
`llm_waterfall`, `llm_limits` and `llm_plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RidgecastError
from ..hardware import resolve
from ..scenario import Scenario, document_of, engine, evaluate, scenario_of
from ..units import format_field, format_number, format_quantity, key_values
from .figures import Axis, Figure, Panel, Series
from .questions import LlmQuestion
from .scaled import scaled
from .view import Block, Fact, Facts, Rows, View, Words, plain

__all__ = [
    "DASH",
    "answer_blocks",
    "answered",
    "asked_of",
    "largest_parts",
    "llm_view",
    "scenario_from",
    "text_of",
]

DASH = "–"  # where nothing is known
_MOST_PARTS = 10  # of a pass that have a bar of their own
_OFF_DEVICE = ("host", "storage")
_RISK = 0.05  # chance of running out of memory from which it is worth a warning
# key of the document -> label and term of the glossary
_NUMBERS = {
    "ttft_s": ("TTFT", "ttft"),
    "tpot_s": ("TPOT", "tpot"),
    "e2e_s": ("end to end", "e2e_latency"),
    "output_tokens_per_s_per_gpu": ("output tokens/s per GPU", "output_tokens_per_s_per_gpu"),
    "power_w": ("power of a device", "power"),
    "energy_per_token_j": ("energy per token", "energy_per_token"),
    "cost_per_million_tokens_usd": ("cost per million tokens", "cost_per_million_tokens"),
}


def asked_of(q: LlmQuestion, **changes: Any) -> dict[str, Any]:
    """Options of `llm` that a question gives, with changes, for `scenario_of`."""
    names = ("isl", "osl", "batch", "request_rate", "prefix", "engine", "dtype", "kv_dtype",
             "price_per_h")  # fmt: skip
    asked = {name: getattr(q, name) for name in names} | {"technique": ",".join(q.technique)}
    return asked | {"what_if": key_values(q.what_if, "what_if")} | changes


def scenario_from(q: LlmQuestion, **changes: Any) -> Scenario:
    """Scenario of a question, with changed options of `llm`. Raises what `scenario_of` raises."""
    return scenario_of(q.model, q.place, q.sizes, asked_of(q, **changes))


def answered(q: LlmQuestion, **changes: Any) -> dict[str, Any]:
    """Document that `llm --json` prints for a question with changed options.

    Raises what `scenario_of` and `evaluate` raise.
    """
    s = scenario_from(q, **changes)
    return plain(document_of(q.model, q.place, s, evaluate(s)))


def text_of(key: str, value: Any) -> str:
    """Text of a number of a document, with its unit; a dash where it is not known."""
    if value is None:
        return DASH
    if key.endswith("_usd"):
        return f"{format_number(value)} USD"
    return format_field(key, value)


def llm_view(q: LlmQuestion, *, model: str | Path | None = None) -> View:
    """Answer a model in service: numbers with intervals, memory by component, time by part.

    A model that does not fit is answered too: with its memory, and what would make it fit.
    Raises SpecError for what cannot be read, InfeasibleError for a layout or a format that cannot
    be, NoDataError or UnsupportedError where there is no answer.
    """
    doc = answered(q, trained=model)
    device = resolve(q.on)
    usable = engine(q.engine).memory_share * doc["memory_capacity_bytes"]
    blocks: list[Block] = [
        Words((_sentence(q, doc, device.title),), tone="lead"),
        *([_changed(q, doc, model)] if q.what_if else []),
        *answer_blocks(doc, usable, q.engine),
    ]
    return View(
        q.page, f"{q.model} on {doc['devices']} × {device.title}", tuple(blocks),
        lead=_case(q, doc), answer=doc, command=q.command(), python=q.python(),
        address=q.address(),
    )  # fmt: skip


def answer_blocks(doc: Mapping[str, Any], usable: float, engine: str) -> list[Block]:
    """Blocks of a document of `llm`: numbers, memory by component, time by part, what to know.

    `usable` are the bytes of a device that the engine, of this name, may use.
    """
    blocks: list[Block] = [
        *_warnings(doc),
        _facts(doc, usable),
        _memory(doc, usable, engine),
        _phases(doc),
        _components(doc),
    ]
    blocks += [b for b in (_passes(doc), _basis(doc)) if b.rows]
    if doc["fits"] and doc["reasons"]:
        blocks.append(Words(tuple(doc["reasons"]), title="What else to know", listed=True))
    return blocks


def _changed(q: LlmQuestion, doc: Mapping[str, Any], model: str | Path | None) -> Block:
    """Put the device as it is beside the changed one, or say why it has no answer."""
    try:
        before = answered(q, trained=model, what_if={})
    except RidgecastError as error:
        return Words((f"The device as it is has no answer: {error}",))
    rows = [
        {"quantity": label, "as_it_is": text_of(key, before[key]),
         "changed": text_of(key, doc[key]),
         "ratio": doc[key] / before[key] if doc[key] and before[key] else None}
        for key, (label, _) in _NUMBERS.items()
    ]  # fmt: skip
    rows.append({"quantity": "largest batch", "as_it_is": str(before["max_batch"]),
                 "changed": str(doc["max_batch"]), "ratio": None})  # fmt: skip
    return Rows("what_if", f"With {', '.join(q.what_if)}", rows,
                headings={"as_it_is": "as it is"},
                caption="Every number below is of the changed device.")  # fmt: skip


def _layout_text(doc: Mapping[str, Any]) -> str:
    """Layout of a replica in words, as far as it is not plain."""
    sizes = ", ".join(f"{k} {v}" for k, v in doc["layout"].items() if v != 1)
    return sizes or "one device"


def _case(q: LlmQuestion, doc: Mapping[str, Any]) -> str:
    """Put the case in one line: engine, layout, formats, traffic, techniques."""
    many = "s" if doc["replicas"] != 1 else ""
    made = [f"{doc['replicas']} replica{many} of {_layout_text(doc)}", q.engine,
            f"weights {doc['formats']['linear']}", f"cache {doc['formats']['kv']}",
            f"{doc['isl']} in / {doc['osl']} out"]  # fmt: skip
    if q.request_rate is not None:
        made.append(f"{q.request_rate:g} requests/s")
    if q.what_if:
        made.append("device changed: " + ", ".join(q.what_if))
    if doc["techniques"]:
        made.append("with " + " + ".join(doc["techniques"]))
    return "; ".join(made)


def _sentence(q: LlmQuestion, doc: Mapping[str, Any], device: str) -> str:
    """Say what matters most."""
    memory = text_of("memory_bytes", doc["memory_bytes"])
    capacity = text_of("memory_bytes", doc["memory_capacity_bytes"])
    if not doc["fits"]:
        return (f"{q.model} does not fit: the fullest {device} of {capacity} would have to hold "
                f"{memory}.")  # fmt: skip
    return (
        f"With {doc['batch']} requests in flight a token takes {text_of('tpot_s', doc['tpot_s'])} "
        f"and the first one {text_of('ttft_s', doc['ttft_s'])}; the fullest device holds {memory} "
        f"of {capacity}, and the time is limited by {doc['limiter'] or 'nothing known'}."
    )


def _warnings(doc: Mapping[str, Any]) -> list[Block]:
    """Say what stands in the way: it does not fit, might not, or requests wait."""
    if not doc["fits"]:
        return [Words(tuple(doc["reasons"]), title="It does not fit", tone="warning",
                      listed=len(doc["reasons"]) > 1)]  # fmt: skip
    told = []
    if doc["out_of_memory_probability"] >= _RISK:
        told.append(f"Memory runs out in {100 * doc['out_of_memory_probability']:.0f} % of cases.")
    if doc["batch"] > doc["max_batch"]:
        told.append(f"Memory holds {doc['max_batch']} of {doc['batch']} requests at once; the "
                    "others wait.")  # fmt: skip
    return [Words(tuple(told), tone="warning")] if told else []


def _ends(doc: Mapping[str, Any], key: str) -> str:
    """Put ends of the 90 % interval of a number in words; "" where they are not known."""
    low, high = doc.get(f"{key}_low"), doc.get(f"{key}_high")
    if low is None or high is None:
        return ""
    return f"{text_of(key, low)} to {text_of(key, high)} in 90 % of cases"


def _facts(doc: Mapping[str, Any], usable: float) -> Facts:
    """Show the answer as numbers with their intervals."""
    unknown = "not known" if doc["fits"] else "it does not fit"
    items = [
        Fact(label, text_of(key, doc[key]),
             unknown if doc[key] is None else _ends(doc, key), term)
        for key, (label, term) in _NUMBERS.items()
    ]  # fmt: skip
    risk = f"runs out in {100 * doc['out_of_memory_probability']:.1f} % of cases"
    items += [
        Fact("memory", text_of("memory_bytes", doc["memory_bytes"]),
             _ends(doc, "memory_bytes")),
        Fact("fits", "yes" if doc["fits"] else "no",
             f"{text_of('memory_bytes', usable)} may be used; {risk}"),
        Fact("requests in flight", str(doc["batch"]), "on each replica"),
        Fact("largest batch", str(doc["max_batch"]), "requests that memory holds at once",
             "max_batch"),
        Fact("limiter", doc["limiter"] or DASH, "what most of a decode pass goes to"),
        Fact("basis", doc["basis"] or DASH, "weakest rung of the ladder of trust"),
    ]  # fmt: skip
    return Facts(tuple(items))


# ------------------------------------------------------------------------------------ figures


def _memory(doc: Mapping[str, Any], usable: float, name: str) -> Figure:
    """One bar of the fullest device, component on component; capacity and usable share above."""
    series, base = [], 0.0
    for part, size in doc["memory_breakdown_bytes"].items():
        if part in _OFF_DEVICE or not size:
            continue
        share = size / doc["memory_bytes"]
        series.append(Series(part, [0], [size / 1e9], "stack", base=[base],
                             hover=[f"{part}: {format_quantity(size, 'bytes')}, "
                                    f"{100 * share:.1f} %"]))  # fmt: skip
        base += size / 1e9
    for label, limit in (("capacity", doc["memory_capacity_bytes"]),
                         (f"usable by {name}", usable)):  # fmt: skip
        text = f"{label}, {format_quantity(limit, 'bytes')}"
        series.append(Series(text, [-0.5, 0.5], [limit / 1e9] * 2, "guide"))
    panel = Panel(
        "Memory of the fullest device", Axis("", "", "category", (str(doc["on"]),)),
        Axis("memory", "GB"), tuple(series),
    )  # fmt: skip
    caption = (
        f"With {max(doc['batch'], 1)} requests of {doc['isl'] + doc['osl']} tokens in flight on "
        "the replica. Weights and cache are counted exactly, the rest is the engine's."
    )
    return Figure("memory", "What memory holds", caption, (panel,))


def _phases(doc: Mapping[str, Any]) -> Figure:
    """Where a decode and a prefill pass spend their time, the largest parts first."""
    panels = []
    for phase in ("decode", "prefill"):
        parts = largest_parts(doc["breakdown_s"].get(phase, {}))
        title = f"A {phase} pass"
        if not parts:
            panels.append(Panel(title, reason="there is no pass: it does not fit"))
            continue
        total = sum(parts.values())
        values, unit = scaled(parts.values(), "time")
        hover = [f"{name}: {format_quantity(v, 'time')}, {100 * v / total:.1f} %"
                 for name, v in parts.items()]  # fmt: skip
        names = tuple(name.replace("_", " ") for name in parts)
        panels.append(
            Panel(
                f"{title}, {format_quantity(total, 'time')}", Axis("time", unit),
                Axis("", "", "category", names),
                (Series("", range(len(parts)), values, "bars", hover=hover),), horizontal=True,
            )
        )  # fmt: skip
    caption = "Parts of one pass of all requests in flight, and of one prompt (or a chunk of it)."
    if any("overlapped" in parts for parts in doc["breakdown_s"].values()):
        caption += " Overlapped: seconds of these that hide behind others."
    return Figure("phases", "Where the time goes", caption, tuple(panels))


def largest_parts(parts: Mapping[str, float], most: int = _MOST_PARTS) -> dict[str, float]:
    """Return the largest parts in order, what is left over pooled as "other".

    >>> largest_parts({"a": 1.0, "b": 4.0, "c": 2.0}, 2)
    {'b': 4.0, 'other': 3.0}
    """
    ranked = sorted(parts.items(), key=lambda item: -abs(item[1]))
    if len(ranked) <= most:
        return dict(ranked)
    return dict(ranked[: most - 1]) | {"other": sum(v for _, v in ranked[most - 1 :])}


# ------------------------------------------------------------------------------------- tables


def _components(doc: Mapping[str, Any]) -> Rows:
    rows = [
        {"component": part, "where": part if part in _OFF_DEVICE else "device",
         "memory_bytes": size,
         "memory_share": None if part in _OFF_DEVICE else size / doc["memory_bytes"]}
        for part, size in doc["memory_breakdown_bytes"].items() if size
    ]  # fmt: skip
    rows.append({"component": "total", "where": "device", "memory_bytes": doc["memory_bytes"],
                 "memory_share": 1.0})  # fmt: skip
    return Rows("components", "Memory of the fullest device by component", rows,
                headings={"memory_share": "share"})  # fmt: skip


def _passes(doc: Mapping[str, Any]) -> Rows:
    """Every part of both passes."""
    phases = doc["breakdown_s"]
    totals = {phase: sum(parts.values()) for phase, parts in phases.items()}
    names = sorted({p for parts in phases.values() for p in parts},
                   key=lambda p: (-phases["decode"].get(p, 0.0), p))  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name in names:
        row: dict[str, Any] = {"part": name}
        for phase, parts in phases.items():
            value = parts.get(name)
            row[f"{phase}_s"] = value
            row[f"{phase}_share"] = None if value is None else value / totals[phase]
        rows.append(row)
    return Rows("passes", "Passes by part", rows, open=False)


def _basis(doc: Mapping[str, Any]) -> Rows:
    rows = [{"basis": name, "time_share": share} for name, share in doc["shares"].items()]
    return Rows("basis", "What the time stands on", rows, headings={"time_share": "share of time"})
