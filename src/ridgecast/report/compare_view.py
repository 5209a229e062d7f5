"""Two cases of models in service side by side: what `compare` answers, for a picture or a page.

Owns which numbers have a panel and what is said where one is not known; computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figures import Axis, Figure, Panel, Series
from .llm_view import largest_parts, text_of
from .scaled import scaled
from .view import Block, Rows, View, Words

__all__ = ["compare_view"]

_CASES = ("a", "b")
# figure -> title and its quantities: key of the document, label, dimension, which is better
_FIGURES = {
    "speed": ("How fast", (
        ("ttft_s", "TTFT", "time", "less"),
        ("tpot_s", "TPOT", "time", "less"),
        ("e2e_s", "end to end", "time", "less"),
        ("output_tokens_per_s_per_gpu", "output tokens/s per GPU", "", "more"),
    )),
    "means": ("What it takes", (
        ("power_w", "power of a device", "power", "less"),
        ("energy_per_token_j", "energy per token", "energy", "less"),
        ("cost_per_million_tokens_usd", "cost per million tokens", "", "less"),
        ("memory_bytes", "memory of the fullest device", "bytes", "less"),
    )),
}  # fmt: skip
_MOST_PARTS = 12  # of a decode pass with a bar of their own
_UNKNOWN = "not known"


def compare_view(doc: Mapping[str, Any], *, command: str = "") -> View:
    """Show the document of `compare`: both cases in each quantity, and where a pass differs."""
    names = [str(doc[case]["case"]) for case in _CASES]
    ratios = {row["quantity"]: row["b_over_a"] for row in doc["ratios"]}
    missing = _missing(doc)
    blocks: list[Block] = [Words((_sentence(ratios, names),), tone="lead")]
    if missing:
        blocks.append(Words(tuple(missing), title="What is not known", tone="warning",
                            listed=len(missing) > 1))  # fmt: skip
    blocks += [_figure(name, doc, names, ratios) for name in _FIGURES]
    blocks.append(_parts(doc, names))
    headings = {"a": names[0], "b": names[1], "b_over_a": "ratio"}
    rows = [{"quantity": _label(row["quantity"]), **_cells(row), "b_over_a": row["b_over_a"]}
            for row in doc["ratios"]]  # fmt: skip
    blocks.append(Rows("ratios", "Side by side", rows, headings=headings))
    blocks.append(Rows("parts", "A decode pass by part", doc["parts"],
                       headings={"a_s": names[0], "b_s": names[1]}, open=False))  # fmt: skip
    told = [f"{name}: {reason}" for name, case in zip(names, _CASES, strict=True)
            for reason in doc[case]["reasons"]]  # fmt: skip
    blocks.append(Words(tuple(told), title="What else to know", listed=True))
    return View("compare", " against ".join(names), tuple(blocks), answer=doc, command=command)


def _label(key: str) -> str:
    known = {k: label for _, quantities in _FIGURES.values() for k, label, _, _ in quantities}
    return known.get(key, key.replace("_", " "))


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {case: text_of(row["quantity"], row[case]) for case in _CASES}


def _sentence(ratios: Mapping[str, float | None], names: list[str]) -> str:
    """Say how the second case stands to the first."""
    told = [f"{text} {ratios[key]:.3g} times" for key, text in (
        ("tpot_s", "the time per token"),
        ("output_tokens_per_s_per_gpu", "the output tokens per device"),
        ("energy_per_token_j", "the energy per token"),
    ) if ratios.get(key)]  # fmt: skip
    if not told:
        return f"{names[1]} cannot be compared with {names[0]}: not both have an answer."
    return f"{names[1]} has {', '.join(told)} that of {names[0]}."


def _missing(doc: Mapping[str, Any]) -> list[str]:
    """Say which quantity of which case is not known, and why; a case that does not fit, once."""
    told = []
    for case in (doc[c] for c in _CASES):
        if not case["fits"]:
            told.append(f"{case['case']} does not fit: {'; '.join(case['reasons'])}")
            continue
        keys = [q[0] for _, quantities in _FIGURES.values() for q in quantities]
        told += [f"{_label(k)} of {case['case']}: {_why(case, k)}" for k in keys if case[k] is None]
    return told


def _why(case: Mapping[str, Any], key: str) -> str:
    if not case["fits"]:
        return "it does not fit"
    kind = key.partition("_")[0].replace("energy", "power")  # without power there is no energy
    own = (r.partition(": ")[2] for r in case["reasons"] if r.startswith(f"{kind}: "))
    return next(own, _UNKNOWN)


def _figure(
    name: str, doc: Mapping[str, Any], names: list[str], ratios: Mapping[str, float | None]
) -> Figure:
    title, quantities = _FIGURES[name]
    panels = tuple(_panel(doc, names, ratios, q) for q in quantities)
    caption = ("Bars are predictions, whiskers their 90 % intervals; × is the second case over "
               "the first.")  # fmt: skip
    for reason in dict.fromkeys(p.reason for p in panels if p.reason):
        lost = ", ".join(p.title for p in panels if p.reason == reason)
        caption += f" Not shown ({reason}): {lost}."
    return Figure(name, title, caption, panels)


def _panel(
    doc: Mapping[str, Any], names: list[str], ratios: Mapping[str, float | None],
    quantity: tuple[str, str, str, str],
) -> Panel:  # fmt: skip
    """Bar of each case with its interval; a case without a number says so at its place."""
    key, label, dimension, better = quantity
    cases = [doc[case] for case in _CASES]
    if all(case[key] is None for case in cases):
        reasons = dict.fromkeys(_why(case, key) for case in cases)
        return Panel(label, reason="; ".join(reasons))
    ends = [case[f"{key}{end}"] for end in ("", "_low", "_high") for case in cases]
    values, unit = scaled(ends, dimension)
    count = len(cases)
    texts = [text_of(key, case[key]) if case[key] is not None else _short(case) for case in cases]
    if ratios.get(key):
        texts[1] += f", × {ratios[key]:.3g}"
    bars = Series("", range(count), values[:count], "bars", values[count : 2 * count],
                  values[2 * count :], labels=texts)  # fmt: skip
    return Panel(f"{label}, {better} is better",
                 Axis("", unit or ("USD" if key.endswith("_usd") else "")),
                 Axis("", "", "category", tuple(n.replace("+", " +", 1) for n in names)), (bars,),
                 horizontal=True)  # fmt: skip


def _short(case: Mapping[str, Any]) -> str:
    return _UNKNOWN if case["fits"] else "does not fit"


def _parts(doc: Mapping[str, Any], names: list[str]) -> Figure:
    """Both decode passes part by part, the longest of either first."""
    title = "Where a decode pass differs"
    held = {row["part"]: (row["a_s"], row["b_s"]) for row in doc["parts"]}
    longest = {part: max(v or 0.0 for v in both) for part, both in held.items()}
    kept = [part for part in largest_parts(longest, _MOST_PARTS) if part in held]
    drawn = [i for i, case in enumerate(_CASES) if doc[case]["fits"]]
    if not kept or not drawn:
        return Figure("passes", title, "", (Panel(title, reason="no case fits"),))
    values, unit = scaled([held[p][i] for i in drawn for p in kept], "time")
    at = range(len(kept))
    series = tuple(
        Series(names[i], at, values[j * len(kept) : (j + 1) * len(kept)], "bars",
               hover=[f"{part}: {text_of('_s', held[part][i])}" for part in kept])
        for j, i in enumerate(drawn)
    )  # fmt: skip
    labels = tuple(part.replace("_", " ") for part in kept)
    whose = f" of {names[drawn[0]]}" if len(drawn) == 1 else ""
    panel = Panel(f"A decode pass{whose}", Axis("time", unit),
                  Axis("", "", "category", labels), series, horizontal=True)  # fmt: skip
    left = len(held) - len(kept)
    caption = "One pass of all requests in flight, by part." + (
        f" {left} shorter parts are in the table." if left else ""
    )
    return Figure("passes", title, caption, (panel,))
