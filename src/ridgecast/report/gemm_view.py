"""The GEMM bench: one multiplication predicted, explained, compared, ranked and mapped.

Every number comes from the functions that `predict`, `explain` and `tune` run; this module owns
which of them stand on the page, in which figure, and what is said beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..hardware import resolve
from ..kernels.asked import build_config, config_columns
from ..ops import Gemm
from ..predict import explain as explaining
from ..predict.explain import Explanation
from ..predict.prediction import Prediction, asked_of, predicted_row
from ..predict.tune import tune
from ..units import format_quantity, key_values
from .gemm_figures import (
    UNITS,
    devices_blocks,
    explanation_tables,
    fastest_cheapest_figure,
    parts_figure,
    ranking_figure,
    roofline_figure,
    what_if_figure,
)
from .questions import AdviceQuestion, GemmQuestion, TuneQuestion
from .view import Block, Fact, Facts, Heading, Rows, View, Words, plain

__all__ = ["advice_view", "config_of", "gemm_view", "op_of", "tune_view"]


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
        work, device, config=build_config(columns), model=model, what_if=changes, level=q.level,
        advice=bool(changes),
    )  # fmt: skip
    asked = columns | ({"cache": q.cache} if q.cache != "hot" else {})
    if q.cache == "hot":  # which is what was explained
        row = plain(_row(told.prediction, columns))
    else:
        row = plain(predicted_row(work, device, asked, model=model, level=q.level))
    blocks: list[Block] = [_facts(row, q.level, work)]
    if q.cache == "hot":
        blocks.insert(0, Words((told.sentence,), tone="lead"))
    blocks += _cautions(told)
    if changes:
        turned = device.what_if(changes)
        changed = predicted_row(work, turned, asked, model=model, level=q.level)
        blocks += _changed(plain(changed), row, told, q)
    if q.cache != "hot":
        blocks += [Heading("With a hot L2, which is what can be explained"),
                   Words((told.sentence,))]  # fmt: skip
    blocks += [roofline_figure(told, None), parts_figure(told)]
    others = {n: resolve(n) for n in dict.fromkeys(q.against)}
    beside = [{"device": q.on, **row}] + [
        {"device": n, **plain(predicted_row(work, d, asked, model=model, level=q.level))}
        for n, d in others.items()
    ]
    blocks += devices_blocks(beside) if others else []
    blocks += explanation_tables(replace(told, advice=()))  # it has a view of its own
    blocks.append(Words(told.notes, title="What else to know", listed=True))
    answer = told.to_dict() if changes else row
    return View(
        "gemm", f"{work.m} × {work.n} × {work.k} {work.dtype} on {device.title}", tuple(blocks),
        lead=_lead(q, row), answer=answer, command=q.command(), python=q.python(),
        address=q.address(),
    )  # fmt: skip


def _cautions(told: Explanation) -> list[Block]:
    """Pick what must not be overlooked: a note on a time at its bound."""
    notes = tuple(text for text in told.notes if text.startswith("the utilisation carried over"))
    return [Words(notes, tone="warning")] if notes else []


def advice_view(q: AdviceQuestion, *, model: str | Path | None = None) -> View:
    """Say what would make one multiplication better, predicted again.

    Raises what `explain` raises.
    """
    told = explaining.explain(
        op_of(q), resolve(q.on), config=build_config(config_of(q)), model=model,
        what_if=key_values(q.what_if, "what_if"), level=q.level,
    )  # fmt: skip
    gain = f"{100 * explaining.LEAST_GAIN:g} %"
    blocks: tuple[Block, ...] = (
        Rows("advice", "Changes of the work, the best first", told.advice),
    )
    if not told.advice:
        words = f"No padding, batching or format that was tried gains more than {gain}."
        blocks = (Words((words,)),)
    return View(
        "gemm", "What would make it better", blocks,
        lead=f"Paddings, twice the rows, other formats, predicted again; gains over {gain}, on the "
             "device as it is.",
        answer=told.to_dict(), command=q.command(), python=q.python(), address=q.address(),
    )  # fmt: skip


def _row(p: Prediction, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Write a prediction as the row of a table, as `predicted_row` does."""
    row: dict[str, Any] = {"op": p.op.name, "hardware": p.hardware.name} | asked_of(p.op)
    row |= columns
    for name, unit in UNITS:
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
    for name, unit in UNITS:
        ends = [row[f"{name}_{end}_{unit}"] for end in ("low", "high")]
        known = None not in ends
        note = " to ".join(format_quantity(e, name) for e in ends) if known else "unknown"
        tail = f" in {100 * level:g} % of cases" if known else ""
        items.append(Fact(name, format_quantity(row[f"{name}_{unit}"], name), note + tail))
    rate = work.flops / row["time_s"]
    share = 100 * row["bound_s"] / row["time_s"]
    items += [
        Fact("rate", format_quantity(rate, "flops_per_s"), f"{share:.1f} % of the bound's",
             "flops_per_s"),
        Fact("bound", format_quantity(row["bound_s"], "time"), "the speed of light: physics only"),
        Fact("limiter", str(row["limiter"]), "what the bound waits for"),
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
        for name, unit in UNITS:
            value, before = new[f"{name}_{unit}"], old[f"{name}_{unit}"]
            ratio = f"× {value / before:.3f} of the unchanged" if value and before else "unknown"
            items.append(Fact(name, format_quantity(value, name), ratio))
        ends = [format_quantity(new[f"time_{end}_s"], "time") for end in ("low", "high")]
        items.append(Fact("interval", " to ".join(ends), f"time in {100 * q.level:g} % of cases"))
        items.append(Fact("limiter", str(new["limiter"]), f"basis {new['basis']}"))
        blocks.append(Facts(tuple(items)))
    else:
        blocks.append(Words((str(new["reason"]),), tone="warning"))
    blocks += [what_if_figure(told), Rows("what_if", "Each change alone", told.what_if)]
    return blocks


# ------------------------------------------------------------------------------------ figures


# ------------------------------------------------------------------------------------ ranking


def tune_view(q: TuneQuestion, *, model: str | Path | None = None) -> View:
    """Rank the configurations of a kernel: the fastest against the cheapest in joules.

    Raises what `tune` raises.
    """
    kernel = None if q.kernel == "library" else q.kernel
    changes = key_values(q.what_if, "what_if")
    device = resolve(q.on).what_if(changes) if changes else resolve(q.on)
    found = tune(op_of(q), device, objective=q.objective, kernel=kernel, model=model, level=q.level)
    rows = found.top(q.top)
    document = found.to_dict() | {"rows": rows}
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
        fastest_cheapest_figure(found),
        ranking_figure(found),
        Rows("ranking", f"The best {len(rows)} of {len(found)}", rows),
        Words(tuple(found.notes), title="What the ranking is worth", listed=True),
    )
    return View(
        "gemm", f"Configurations of {found.kernel} on {found.hardware.title}", blocks,
        answer=document, command=q.command(), python=_tune_python(q, kernel), address=q.address(),
    )  # fmt: skip


def _tune_python(q: TuneQuestion, kernel: str | None) -> str:
    options = f", kernel={kernel!r}" if kernel else ""
    options += f", level={q.level}" if q.level != 0.9 else ""
    work = f"rc.Gemm({q.m}, {q.n}, {q.k}, dtype={q.dtype!r})"
    changes = key_values(q.what_if, "what_if")
    on = f"rc.hardware({q.on!r}).what_if({changes!r})" if changes else repr(q.on)
    call = f"rc.tune({work}, {on}, objective={q.objective!r}{options})"
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
