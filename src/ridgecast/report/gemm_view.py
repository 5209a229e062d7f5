"""The GEMM bench: one multiplication predicted, explained, compared, ranked and mapped.

Every number comes from the functions that `predict`, `explain` and `tune` run; this module owns
which of them stand on the page, in which figure, and what is said beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..hardware import Hardware, resolve
from ..kernels.asked import build_config, config_columns
from ..ops import Gemm
from ..predict import explain as explaining
from ..predict.explain import Explanation
from ..predict.prediction import Prediction, asked_of, predicted_row
from ..predict.tune import tune
from ..units import format_quantity, key_values
from .figures import Axis, Figure, Panel, Series
from .questions import GemmQuestion, TuneQuestion
from .scaled import scaled
from .view import Block, Fact, Facts, Heading, Rows, View, Words, plain

__all__ = ["config_of", "gemm_view", "op_of", "tune_view"]

_MOST_POINTS = 400  # of a ranking in its figure
_UNITS = (("time", "s", "time"), ("power", "w", "power"), ("energy", "j", "energy"))


def op_of(q: GemmQuestion) -> Gemm:
    """Multiplication that is asked about. Raises SpecError for what cannot be one."""
    return Gemm(q.m, q.n, q.k, dtype=q.dtype, batch=q.batch, layout=q.layout)


def config_of(q: GemmQuestion) -> dict[str, Any]:
    """Columns of the kernel's configuration; none for the library.

    Raises SpecError for parameters that the kernel does not have.
    """
    named = None if q.kernel == "library" else q.kernel
    columns: dict[str, Any] = config_columns(named, q.sizes, q.config)
    build_config(columns)
    return columns


def gemm_view(q: GemmQuestion, *, model: str | Path | None = None) -> View:
    """Predict and explain one multiplication, beside other devices and under what-ifs.

    Raises what `predict` and `explain` raise: SpecError for what cannot be read, UnsupportedError
    where no answer can be formed.
    """
    work, columns, device = op_of(q), config_of(q), resolve(q.on)
    changes = key_values(q.what_if, "what_if")
    told = explaining.explain(
        work, device, config=build_config(columns), model=model, what_if=changes, level=q.level
    )
    asked = columns | ({"cache": q.cache} if q.cache != "hot" else {})
    if q.cache == "hot":  # which is what was explained
        row = plain(_row(told.prediction, columns))
    else:
        row = plain(predicted_row(work, device, asked, model=model, level=q.level))
    blocks: list[Block] = [Words((told.sentence,), tone="lead"), _facts(row, q.level, work)]
    if changes:
        turned = device.what_if(changes)
        changed = predicted_row(work, turned, asked, model=model, level=q.level)
        blocks += _changed(plain(changed), row, told, q)
    blocks += [_roofline(told, device), _parts(told)]
    others = {n: resolve(n) for n in dict.fromkeys(q.against)}
    beside = [{"device": q.on, **row}] + [
        {"device": n, **plain(predicted_row(work, d, asked, model=model, level=q.level))}
        for n, d in others.items()
    ]
    blocks += _beside(beside) if others else []
    blocks += _tables(told)
    notes = list(told.notes)
    if q.cache != "hot":
        notes.append("the parts of the time are those of a hot L2")
    blocks.append(Words(tuple(notes), title="What else to know", listed=True))
    answer = told.to_dict() if changes else row
    return View(
        "gemm", f"{work.m} × {work.n} × {work.k} {work.dtype} on {device.title}", tuple(blocks),
        lead=_lead(q, row), answer=answer, command=q.command(), python=q.python(),
        address=q.address(),
    )  # fmt: skip


def _row(p: Prediction, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Write a prediction as the row of a table, as `predicted_row` does."""
    row: dict[str, Any] = {"op": p.op.name, "hardware": p.hardware.name} | asked_of(p.op)
    row |= columns
    for name, unit, _ in _UNITS:
        row[f"{name}_{unit}"] = getattr(p, name)
        low, high = p.intervals[name] or (None, None)
        row |= {f"{name}_low_{unit}": low, f"{name}_high_{unit}": high}
    return row | {"memory_bytes": p.memory, "bound_s": p.bound, "limiter": p.limiter,
                  "basis": p.basis, "status": "ok", "reason": p.reason}  # fmt: skip


def _lead(q: GemmQuestion, row: Mapping[str, Any]) -> str:
    kernel = "the vendor's library" if q.kernel == "library" else f"kernel {q.kernel}"
    batch = f", {q.batch} in one call" if q.batch > 1 else ""
    return f"{kernel}{batch}; basis {row['basis']}: {row['reason']}"


def _facts(row: Mapping[str, Any], level: float, work: Gemm) -> Facts:
    """Tell the prediction as numbers with their intervals."""
    items = []
    for name, unit, dimension in _UNITS:
        ends = [row[f"{name}_{end}_{unit}"] for end in ("low", "high")]
        known = None not in ends
        note = " to ".join(format_quantity(e, dimension) for e in ends) if known else "unknown"
        tail = f" in {100 * level:g} % of cases" if known else ""
        items.append(Fact(name, format_quantity(row[f"{name}_{unit}"], dimension), note + tail))
    rate = work.flops / row["time_s"]
    share = 100 * row["bound_s"] / row["time_s"]
    items += [
        Fact("rate", format_quantity(rate, "flops_per_s"), f"{share:.1f} % of the bound's",
             "flops_per_s"),
        Fact("bound", format_quantity(row["bound_s"], "time"), "the speed of light: physics only"),
        Fact("limiter", str(row["limiter"]), "what holds the time up"),
        Fact("basis", str(row["basis"]), "rung of the ladder of trust"),
        Fact("memory", format_quantity(row["memory_bytes"], "bytes"), "resident while it runs"),
    ]  # fmt: skip
    return Facts(tuple(items))


def _changed(
    new: Mapping[str, Any], old: Mapping[str, Any], told: Explanation, q: GemmQuestion
) -> list[Block]:
    """Predict the changed device, and each change alone."""
    blocks: list[Block] = [Heading("With the changes, predicted again")]
    if new["status"] == "ok":
        items = []
        for name, unit, dimension in _UNITS:
            value, before = new[f"{name}_{unit}"], old[f"{name}_{unit}"]
            ratio = f"× {value / before:.3f} of the unchanged" if value and before else "unknown"
            items.append(Fact(name, format_quantity(value, dimension), ratio))
        ends = [format_quantity(new[f"time_{end}_s"], "time") for end in ("low", "high")]
        items.append(Fact("interval", " to ".join(ends), f"time in {100 * q.level:g} % of cases"))
        items.append(Fact("limiter", str(new["limiter"]), f"basis {new['basis']}"))
        blocks.append(Facts(tuple(items)))
    else:
        blocks.append(Words((str(new["reason"]),), tone="warning"))
    blocks.append(Rows("what_if", "Each change alone", told.what_if))
    return blocks


# ------------------------------------------------------------------------------------ figures


def _roofline(told: Explanation, device: Hardware) -> Figure:
    """Roof of each memory level, with the work under it."""
    rows = told.roofline
    where = [r["arithmetic_intensity"] for r in rows] + [r["ridge_point"] for r in rows]
    least, most = min(where, default=1.0) / 8.0, max(where, default=1.0) * 8.0
    peak = max((r["attainable_flops_per_s"] for r in rows), default=1.0)
    series = []
    roofs = [r for r in rows if r["level"] != "unique bytes" or len(rows) == 1] or rows
    if not any(r["level"] in ("memory", "unique bytes") for r in roofs):
        roofs = list(rows)
    for r in roofs:
        bandwidth = peak / r["ridge_point"]
        x = np.array([least, r["ridge_point"], most])
        name = f"{r['level']}, {format_quantity(bandwidth, 'bytes_per_s')}"
        series.append(Series(name, x, np.minimum(peak, x * bandwidth) / 1e12, "line"))
    achieved = [r["achieved_flops_per_s"] / 1e12 for r in rows]
    hover = [f"{r['level']}: {100 * r['utilisation']:.1f} % of its roof, "
             f"{format_quantity(r['moved_bytes'], 'bytes')} moved" for r in rows]  # fmt: skip
    memory = next((r["arithmetic_intensity"] for r in rows if r["level"] == "memory"), 0.0)
    near = [r["level"] == "unique bytes" and r["arithmetic_intensity"] < 2.0 * memory for r in rows]
    points = Series(
        "this work", [r["arithmetic_intensity"] for r in rows], achieved, "points",
        labels=["" if n else r["level"] for n, r in zip(near, rows, strict=True)], hover=hover,
    )  # fmt: skip
    panel = Panel(
        "Roofline", Axis("arithmetic intensity", "flop/B", "log"), Axis("rate", "Tflop/s", "log"),
        (*series, points),
    )  # fmt: skip
    dtype = getattr(told.prediction.op, "dtype", "")
    caption = (
        "A point a memory level: operations per byte that the kernel moves through it, at the rate "
        f"that is predicted. Roofs: {device.title}, dense {dtype}."
    )
    return Figure("roofline", "Roofline per memory level", caption, (panel,))


def _parts(told: Explanation) -> Figure:
    """Where the time and the energy go."""
    panels = []
    for title, parts, dimension in (
        ("Time", told.time, "time"), ("Energy", told.energy, "energy"),
    ):  # fmt: skip
        if not parts:
            panels.append(Panel(title, reason="the energy is not known"))
            continue
        values, unit = scaled([p.value for p in parts], dimension)
        names = tuple(p.name.replace("_", " ") for p in parts)
        hover = [f"{100 * p.share:.1f} %: {p.why}" for p in parts]
        bars = Series("", range(len(parts)), values, "bars", hover=hover)
        panels.append(Panel(title, Axis("", unit), Axis("", "", "category", names), (bars,),
                            horizontal=True))  # fmt: skip
    caption = "Parts sum to the prediction; what each means is in the table below."
    return Figure("parts", "Where the time and the joules go", caption, tuple(panels))


def _beside(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Compare the same work on several devices."""
    good = [r for r in rows if r["time_s"] is not None]
    panels = []
    for name, unit, dimension in (_UNITS[0], _UNITS[2]):
        known = [r for r in good if r[f"{name}_{unit}"] is not None]
        if not known:
            panels.append(Panel(name, reason=f"{name} is not known on any of them"))
            continue
        middle, shown = scaled([r[f"{name}_{unit}"] for r in known], dimension)
        factor = middle[0] / known[0][f"{name}_{unit}"]
        low, high = ([r[f"{name}_{end}_{unit}"] * factor for r in known] for end in ("low", "high"))
        names = tuple(r["device"] for r in known)
        bars = Series("", range(len(known)), middle, "bars", low, high)
        panels.append(Panel(name.capitalize(), Axis("", shown), Axis("", "", "category", names),
                            (bars,), horizontal=True))  # fmt: skip
    figure = Figure("devices", "Beside other devices",
                    "Bars are predictions, whiskers their intervals.", tuple(panels))  # fmt: skip
    keys = ("device", "time_s", "time_low_s", "time_high_s", "power_w", "energy_j", "bound_s",
            "limiter", "basis", "status", "reason")  # fmt: skip
    return [figure, Rows("devices", "Beside other devices", rows, keys)]


def _tables(told: Explanation) -> list[Block]:
    """Every number behind the figures, and what would help."""
    nearest = [{**r, "address": _collection(told, r)} for r in told.nearest]
    blocks = [
        Rows("parts", "Parts of the time and the energy", told.rows, group="of"),
        Rows("roofline", "Roofline position", told.roofline),
        Rows("advice", "What would make it better, predicted again", told.advice),
        Rows("nearest", "Nearest measured points", nearest, links={"collection": "address"},
             caption="The collection opens its scores on held-out groups."),
        Rows("kernel", "The analytic kernel behind the parts", [told.kernel], open=False),
    ]  # fmt: skip
    return [b for b in blocks if b.rows]


def _collection(told: Explanation, row: Mapping[str, Any]) -> str:
    p = told.prediction
    dtype = getattr(p.op, "dtype", "")
    return f"/accuracy?hardware={p.hardware.base_name}&dtype={dtype}" if row["collection"] else ""


# ------------------------------------------------------------------------------------ ranking


def tune_view(q: TuneQuestion, *, model: str | Path | None = None) -> View:
    """Rank the configurations of a kernel: the fastest against the cheapest in joules.

    Raises what `tune` raises.
    """
    kernel = None if q.kernel == "library" else q.kernel
    found = tune(
        op_of(q), resolve(q.on), objective=q.objective, kernel=kernel, model=model, level=q.level
    )
    rows = found.top(q.top)
    document = found.to_dict() | {"shown": min(q.top, len(found)), "rows": rows}
    best = found.best
    items = [
        Fact("fastest" if q.objective == "time" else "best", _config_text(best), found.kernel),
        Fact("time", format_quantity(best["time_s"], "time"), _ends(best, "time", "s")),
        Fact("energy", format_quantity(best["energy_j"], "energy"), _ends(best, "energy", "j")),
        Fact("ties", f"{found.ties} of {len(found)}", "cannot be told from the best"),
        Fact("at stake", f"× {found.stake['worst_over_best']:.3g}", "the worst over the best"),
    ]  # fmt: skip
    blocks = (
        Facts(tuple(items)),
        _fastest_cheapest(found),
        Rows("ranking", f"The best {len(rows)} of {len(found)}", rows),
        Words(tuple(found.notes), title="What the ranking is worth", listed=True),
    )
    return View(
        "gemm", f"Configurations of {found.kernel} on {found.hardware.title}", blocks,
        answer=document, command=q.command(), python=_tune_python(q, kernel), address=q.address(),
    )  # fmt: skip


def _tune_python(q: TuneQuestion, kernel: str | None) -> str:
    options = f", kernel={kernel!r}" if kernel else ""
    work = f"rc.Gemm({q.m}, {q.n}, {q.k}, dtype={q.dtype!r})"
    call = f"rc.tune({work}, {q.on!r}, objective={q.objective!r}{options})"
    return f"import ridgecast as rc\n\nprint({call}.best)"


def _ends(row: Mapping[str, Any], name: str, unit: str) -> str:
    ends = [row[f"{name}_{end}_{unit}"] for end in ("low", "high")]
    return "unknown" if None in ends else " to ".join(format_quantity(e, name) for e in ends)


def _config_text(row: Mapping[str, Any]) -> str:
    from ..store import CONFIG_COLUMNS

    tiles = [str(row[n]) for n in ("tile_m", "tile_n", "tile_k", "MWG", "NWG", "KWG") if n in row]
    if tiles:
        return "×".join(tiles)
    return " ".join(f"{n} {row[n]}" for n in row if n in CONFIG_COLUMNS and n != "kernel")


def _fastest_cheapest(found: Any) -> Figure:
    """Time against energy of the leading configurations, the fastest and the cheapest named."""
    title = "Fastest against cheapest in joules"
    table = found.table
    time, energy = (np.asarray(table[n], float) for n in ("time_s", "energy_j"))
    good = np.flatnonzero(np.isfinite(time) & np.isfinite(energy))
    if not len(good):
        reason = "the energy of no configuration is known on this device"
        return Figure("fastest_cheapest", title, f"Not shown: {reason}.",
                      (Panel(title, reason=reason),))  # fmt: skip
    fastest, cheapest = good[np.argmin(time[good])], good[np.argmin(energy[good])]
    shown = np.unique(np.concatenate([good[:_MOST_POINTS], [fastest, cheapest]]))
    x, x_unit = scaled(time[shown], "time")
    y, y_unit = scaled(energy[shown], "energy")
    rows = [{k: c[i] for k, c in table.items()} for i in shown]
    hover = [_words(r, found.fixed) for r in rows]
    named = [("fastest", fastest), ("cheapest", cheapest)]
    if fastest == cheapest:
        named = [("fastest and cheapest", fastest)]
    marks = [
        Series(name, [x[int(np.searchsorted(shown, at))]], [y[int(np.searchsorted(shown, at))]],
               labels=[name], hover=[hover[int(np.searchsorted(shown, at))]])
        for name, at in named
    ]  # fmt: skip
    panel = Panel(f"{len(shown)} of {len(found)} configurations", Axis("time", x_unit),
                  Axis("energy", y_unit),
                  (Series("configurations", x, y, hover=hover), *marks))  # fmt: skip
    return Figure("fastest_cheapest", title, "Lower left is better in both.", (panel,))


def _words(row: Mapping[str, Any], fixed: Mapping[str, Any]) -> str:
    from ..store import CONFIG_COLUMNS

    return ", ".join(f"{k} {v}" for k, v in {**row, **fixed}.items() if k in CONFIG_COLUMNS)
