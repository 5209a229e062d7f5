"""The accuracy table as a value: its rows, its JSON and its Markdown.

Owns the columns that every row has and how they are shown to people. Must not know where a score
came from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .chosen import choose
from .floor import floor_of, power_floor

__all__ = ["COLUMNS", "SPLIT_ORDER", "AccuracyReport", "row"]

SCHEMA_VERSION = 1
COLUMNS = (
    "target", "hardware", "op", "dtype", "collection", "split", "bucket", "rows", "mape",
    "median", "p90", "worst", "bias", "r2_log", "coverage", "width", "roofline_mape",
    "roofline_median", "derated_mape", "derated_median", "floor", "floor_median",
    "error_over_floor", "status", "reason",
)  # fmt: skip
SPLIT_ORDER = (
    "random", "unseen_shape", "unseen_group", "off_grid", "unseen_structure", "frontier",
    "unseen_config", "unseen_device",
    "unseen_device (family known)", "unseen_dtype", "held_out",
)  # fmt: skip
_COMPACT = {
    "hardware": "device", "op": "operation", "dtype": "dtype", "collection": "collection",
    "split": "split", "rows": "rows", "mape": "MAPE",
    "median": "median", "p90": "p90", "coverage": "90 % interval holds",
    "roofline_mape": "plain roofline", "derated_mape": "derated roofline", "floor": "label floor",
}  # fmt: skip
_PIVOTS = {"time": "dtype", "time_operator": "op"}  # of the summary: what a row is, by device
_BASELINES = {
    "roofline_mape": "always the board's limit", "derated_mape": "always the median label",
}  # fmt: skip
_TITLES = {
    "time": "Time of library GEMMs", "time_operator": "Time of other operations",
    "time_config": "Time of CLBlast SGEMM configurations",
    "power": "Board power", "energy": "Energy",
}  # fmt: skip
_SHARES = {
    "mape", "median", "p90", "coverage", "bias", "roofline_mape", "roofline_median",
    "derated_mape", "derated_median", "floor", "floor_median",
}  # fmt: skip
_NOTES = {
    "time": "Errors are |predicted / measured - 1|. `random`: single rows held out; "
    "`unseen_shape`: whole (n, k) pairs; `off_grid`: neither the n nor the k value was ever seen; "
    "`frontier`: the largest tenth by operations. The derated roofline has one factor fitted on "
    "the same training rows. The label floor is the mean difference of two versions of one "
    "framework at the same point.",
    "time_operator": "`unseen_group`: whole groups held out, of attention (query heads, key heads, "
    "head size, both lengths), of MoE (hidden, inter, experts, top-k), of collectives (kind, GPUs, "
    "bytes); `unseen_structure`: whole (kind, GPUs); of MoE and collectives all five parts are "
    "scored, of attention the first of five; `unseen_device`: trained on the other devices "
    "alone. Models of their own serve latent attention (MLA, of the sizes of DeepSeek-V3), the "
    "gated delta rule (Qwen3-Next), and experts in fp8: of one scale a tensor on Hopper (`fp8`), "
    "and on MXFP4 weights (`w4a8`, of five networks: intervals are too narrow for a sixth). The "
    "derated roofline is physics with one factor fitted on the same training rows.",
    "time_config": "`unseen_config`: whole compiled kernels held out on every device at once.",
    "power": "Labels are means of sensors that lag, and do not repeat: the label floor is that two "
    "collections of the same points differ by {least:.0%} to {most:.0%} (median).",
    "energy": "Energy is power times time, and its labels are those of power times the time of the "
    "sustained run that they were taken in. Predicted from the time of a short run of the same "
    "point (another collection), with a random error of 5 % as a time model makes.",
}


def row(scores: Mapping[str, Any], **labels: Any) -> dict[str, Any]:
    """Build a row of the table: COLUMNS in order, null where a score is missing.

    The floor of library GEMM time is looked up, unless `labels` bring one.
    """
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    found |= {"bucket": "all", "status": "ok", "reason": ""}
    found |= {key: value for key, value in scores.items() if key in COLUMNS}
    found |= labels
    if found["target"] == "time" and found["floor"] is None:
        sizes: Any = found["bucket"]
        if sizes == "all" and scores.get("buckets"):
            sizes = {name: part["rows"] for name, part in scores["buckets"].items()}
        device, dtype = str(found["hardware"]), str(found["dtype"])
        found["floor"] = floor_of(device, dtype, sizes)
        found["floor_median"] = floor_of(device, dtype, sizes, measure="median")
    for over, under in (("mape", "floor"), ("median", "floor_median")):
        if found["error_over_floor"] is None and found[over] is not None and found[under]:
            found["error_over_floor"] = round(found[over] / found[under], 3)
    unknown = set(found) - set(COLUMNS)
    if unknown:
        raise TypeError(f"not columns of the accuracy table: {sorted(unknown)}")
    return found


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """Scores on held-out rows.

    `rows` are dicts with the keys COLUMNS: errors, coverage and floors are shares (0.03 = 3 %),
    `width` is the median of high / low, null where unknown. `meta` says what was scored and how.
    """

    rows: tuple[dict[str, Any], ...]
    meta: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return one JSON document."""
        return {"schema_version": SCHEMA_VERSION, **self.meta, "rows": [dict(r) for r in self.rows]}

    def only(self, **wanted: str | Sequence[str]) -> AccuracyReport:
        """Return the report of some rows: target, hardware, dtype, op and split, one or more each.

        Library GEMMs count as op `gemm`; `attention` takes all its kinds. Other spellings of a
        device are understood. Raises SpecError with the nearest names for one that no row has.
        """
        return replace(self, rows=tuple(choose(self.rows, wanted)))

    def compact(self) -> list[dict[str, Any]]:
        """Rows over all sizes, in reading order, with the few columns that the README shows."""
        kept = _sorted([r for r in self.rows if r["bucket"] == "all"])
        keys = ("target", *_COMPACT, "status")
        return [{**{k: r[k] for k in keys}, "collection": _short(r)} for r in kept]

    def _repr_html_(self) -> str:
        """Rich display in a notebook."""
        from ..richtext import block, line, table

        # keys that say shares: errors of 0.03 read 3.0 %
        names = {"target": "target", "hardware": "device", "dtype": "dtype", "op": "op",
                 "split": "split", "rows": "rows", "mape": "mape", "median": "median_error",
                 "coverage": "coverage", "floor": "floor_error"}  # fmt: skip
        rows = [{new: r[old] for old, new in names.items()}
                for r in self.compact() if r["status"] == "ok"]  # fmt: skip
        return block(line(f"{len(rows)} scores on held-out rows", strong=True), table(rows))

    def to_markdown(self, *, compact: bool = False) -> str:
        """Return Markdown tables, one per target; compact leaves out sizes and minor columns."""
        parts = [self._section(target, compact) for target in _TITLES]
        if self.meta.get("notes") and not compact:
            parts.append("\n".join(f"- {note}" for note in self.meta["notes"]))
        return "\n\n".join(part for part in parts if part) + "\n"

    def summary(self) -> str:
        """Return the compact tables with one row a device and format for library GEMM times.

        A cell is the mean error, and how many truths in a hundred the 90 % interval holds. Where
        several collections of one device and format ship, a cell is the mean of their scores.
        """
        parts = [self._across(target, second) for target, second in _PIVOTS.items()]
        parts += [self._section(target, True) for target in _TITLES if target not in _PIVOTS]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _across(self, target: str, second: str) -> str:
        """Title, note and table of one target, a row for each device and `second` column."""
        own = [r for r in self._own(target) if r["bucket"] == "all" and r["status"] == "ok"]
        if not own:
            return ""
        splits = [s for s in SPLIT_ORDER if any(r["split"] == s for r in own)]
        pairs = sorted({(str(r[second]), str(r["hardware"])) for r in own})
        if target == "time":
            pairs.sort(key=lambda pair: pair[::-1])
        lines = [
            {"device": device, _COMPACT[second]: name}
            | _across([r for r in own if (str(r[second]), r["hardware"]) == (name, device)], splits)
            for name, device in pairs
        ]
        heads = {name: name for name in ("device", _COMPACT[second], *splits)}
        heads |= {key: _COMPACT[key] for key in ("derated_mape", "floor")}
        note = f"Mean error (truths in a hundred inside the 90 % interval). {_NOTES[target]}"
        return f"**{_TITLES[target]}.** {note}\n\n{_table(lines, heads)}"

    def _own(self, target: str) -> list[dict[str, Any]]:
        return [r for r in self.rows if r["target"] == target]

    def _section(self, target: str, compact: bool) -> str:
        """Title, note and table of one target; empty without rows."""
        own = self._own(target)
        if compact:
            own = [r for r in own if r["bucket"] == "all" and r["status"] == "ok"]
            own = [{**r, "collection": _short(r)} for r in own]
        if not own:
            return ""
        heads = _COMPACT if compact else {k: k for k in COLUMNS if k != "target"}
        if compact and target in ("power", "energy"):
            heads = {**heads, **_BASELINES}
        least, most = power_floor()
        note = _NOTES[target].format(least=least, most=most)
        return f"**{_TITLES[target]}.** {note}\n\n{_table(_sorted(own), heads)}"

    def save(self, folder: str | Path) -> None:
        """Write accuracy.json and accuracy.md into a folder: to temporary names, then rename."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        for name, content in (("accuracy.json", text), ("accuracy.md", self.to_markdown())):
            fresh = target / f".{name}.{os.getpid()}"
            fresh.write_text(content, encoding="utf-8")
            fresh.replace(target / name)


def _across(rows: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> dict[str, Any]:
    """One row of the summary: every split's mean error and coverage, and the two baselines."""

    def mean(split: str, name: str) -> float | None:
        known = [r[name] for r in rows if r["split"] == split and r[name] is not None]
        return sum(known) / len(known) if known else None

    found: dict[str, Any] = {}
    for split in splits:
        error, held = mean(split, "mape"), mean(split, "coverage")
        told = "" if held is None else f" ({100 * held:.0f})"
        found[split] = None if error is None else f"{100 * error:.1f} %{told}"
    first = "unseen_shape" if "unseen_shape" in splits else "unseen_group"
    return found | {key: mean(first, key) for key in ("derated_mape", "floor")}


def _short(r: Mapping[str, Any]) -> str:
    """Return a collection's name without its source and device, which stand in other columns."""
    parts = str(r["collection"] or "").split("/")
    kept = [p for p in parts[1:] if p != r["hardware"]] or [p for p in parts if p]
    return "/".join(kept)


def _sorted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By device, format, collection, then from the easiest split to the hardest."""

    def key(r: Mapping[str, Any]) -> tuple[Any, ...]:
        split = str(r["split"])
        place = SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)
        texts = (str(r.get(name) or "") for name in ("op", "hardware", "dtype"))
        return (*texts, str(r.get("collection") or ""), place, split)

    return sorted(rows, key=key)


def _table(rows: Sequence[Mapping[str, Any]], heads: Mapping[str, str]) -> str:
    names = [n for n in heads if any(r[n] not in (None, "", "ok") for r in rows)]
    right = {n for n in names if n == "rows" or any(isinstance(r[n], float) for r in rows)}
    cells = [[_cell(n, r[n]) for n in names] for r in rows]
    width = [
        max(len(c) for c in column)
        for column in zip([heads[n] for n in names], *cells, strict=True)
    ]
    lines = [_line([heads[n] for n in names], names, width, right)]
    rules = (w + 2 for w in width)
    lines.append("|" + "|".join("-" * (w - 1) + (":" if n in right else "-")
                                for n, w in zip(names, rules, strict=True)) + "|")  # fmt: skip
    lines += [_line(line, names, width, right) for line in cells]
    return "\n".join(lines)


def _line(cells: Sequence[str], names: Sequence[str], width: Sequence[int], right: set[str]) -> str:
    padded = (
        cell.rjust(w) if n in right else cell.ljust(w)
        for cell, n, w in zip(cells, names, width, strict=True)
    )
    return "| " + " | ".join(padded) + " |"


def _cell(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if name == "worst":
        return ", ".join(f"{100 * v:.0f} %" for v in value)
    if name in _SHARES:
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
