"""How InferenceX served what it measured, where its exports do not say: workers and drafting.

Owns the published recipes of disaggregated points (`inferencex_recipes.txt`) and matching them to
rows. Most exports of the measured points hold neither the number of workers nor whether tokens were
drafted (multi-token prediction, MTP): two points of one configuration can differ by a factor of
two for that reason alone. A recipe is used only where all recipes that fit a row agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..tables import Table, text

__all__ = ["Recipe", "Side", "assume", "fill", "recipes"]

_SIDE = re.compile(r"(\d+)x(\d+)([dt])(\d+)")
_FP4 = ("nvfp4", "mxfp4")


@dataclass(frozen=True, slots=True)
class Run:
    """What told whether points drafted: `speculative` is "mtp", "none" or "either".

    `version` of the engine ("": any); `day` of the run, `form`, `layout` (tp, ep), `devices` and
    `above` (a concurrency that no run without drafting reached) where they matter; `drafted` as
    of `Recipe`.
    """

    network: str
    engine: str
    version: str
    speculative: str
    day: str = ""
    form: str = ""
    devices: tuple[str, ...] = ()
    layout: tuple[float, float] | None = None
    above: float = 0.0
    drafted: float = np.nan


# Source: SemiAnalysisAI/InferenceX, perf-changelog.yaml (Apache-2.0), pull requests in brackets:
# TensorRT-LLM drafted first with release 1.1.0rc2.post2 [392], which ran without in December;
# then the two ways had images of their own [594, 620, 632, 642]. SGLang 0.5.9 served R1 in fp8 with
# tp 8 both ways up to 64 requests, beyond with drafting alone [626, 943]; Qwen3.5 in fp8 with tp 4
# and ep 1 only with drafting [897, 898; without: 804, 918], on B300 as on B200 (assumed).
_RUNS = (
    Run("dsr1", "trtllm", "1.2.0rc6.post3", "mtp"),
    Run("dsr1", "trtllm", "1.2.0rc6.post2", "none"),
    Run("dsr1", "trtllm", "1.1.0rc2.post2", "mtp", day="2026-01-14"),
    Run("dsr1", "trtllm", "1.1.0rc2.post2", "none", day="2025-12-15"),
    Run("dsr1", "sglang", "0.5.9", "mtp", form="fp8", devices=("b200_sxm",), layout=(8, 1),
        above=64, drafted=2),
    Run("dsr1", "sglang", "0.5.9", "either", form="fp8", devices=("b200_sxm",), layout=(8, 1),
        drafted=2),
    Run("qwen3.5", "sglang", "0.5.9", "mtp", form="fp8", devices=("b200_sxm", "b300_sxm"),
        layout=(4, 1), drafted=3),
)  # fmt: skip


# Apart, from the same source: SGLang on GB200 and GB300 was published without drafting alone [257,
# 335, 633, 635, 636]; R1 in fp8 on B200 was first run without [658], and on the day of its
# configurations with drafting with it [667, 691, 697].
_APART = (
    Run("dsr1", "sglang", "", "none", devices=("gb200", "gb300")),
    Run("dsr1", "sglang", "0.5.8.post1", "none", day="2026-02-07", form="fp8",
        devices=("b200_sxm",)),
    Run("dsr1", "sglang", "0.5.8.post1", "mtp", day="2026-02-13", form="fp8",
        devices=("b200_sxm",)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """Workers of one side, devices of each, expert groups, and whether attention is split by dp."""

    workers: int
    devices: int
    data_parallel: bool
    ep: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """One published way to serve a point; `speculative` is "mtp" or "none".

    `slots` sequences a decode worker (each attention group of it) holds at once, `drafted` tokens
    are drafted a pass: NaN where the recipe's name does not say.
    """

    speculative: str
    prefill: Side
    decode: Side
    slots: float = np.nan
    drafted: float = np.nan


Key = tuple[str, str, str, str, float, float, float]


@cache
def recipes() -> dict[Key, tuple[Recipe, ...]]:
    """Recipes by network, device, format, engine, isl, osl and concurrency."""
    found: dict[Key, tuple[Recipe, ...]] = {}
    file = Path(__file__).with_name("inferencex_recipes.txt")
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        net, device, form, engine, isl, osl, speculative, loads, *ways = line.split()
        told = (float(v) if v != "-" else np.nan for v in f"{ways[2]}/-".split("/")[:2])
        recipe = Recipe(speculative, _side(ways[0]), _side(ways[1]), *told)
        for load in loads.split(","):
            key = (net, device, form, engine, float(isl), float(osl), float(load))
            found[key] = (*found.get(key, ()), recipe)
    return found


def _side(word: str) -> Side:
    found = _SIDE.fullmatch(word)
    if found is None:
        raise ValueError(f"inferencex_recipes.txt: {word!r} is no side")
    workers, devices, kind, ep = found.groups()
    return Side(int(workers), int(devices), kind == "d", int(ep))


def fill(out: Table) -> Table:
    """Add `speculative` ("mtp", "none", "" where unknown) and layouts that recipes settle.

    "either" is an aggregated point of a configuration that is known to have run both ways.

    `decode_slots` are the sequences that a decode worker holds at once, `drafted` tokens are
    drafted a pass where any are: NaN where the recipes that fit do not say or differ.

    `layout_source` says "row", "recipe" or "" (workers unknown). Rows of other campaigns, and
    values that a row states itself, stay as they are.
    """
    rows = len(out["engine"])
    speculative, source = text("", rows), text("", rows)
    sides = {n: out[n].copy() for n in out if n.startswith(("prefill_", "decode_"))}
    devices = out["devices"].copy()
    slots, drafted = np.full(rows, np.nan), np.full(rows, np.nan)
    for row in range(rows):
        if out["mode"][row] != "disagg":
            source[row] = "row"
            speculative[row], drafted[row] = _by_run(out, row, _RUNS)
            continue
        stated = bool(np.isfinite(out["decode_workers"][row]))
        source[row] = "row" if stated else ""
        fits = [r for r in recipes().get(_key(out, row), ()) if _agrees(out, row, r)]
        ways = {r.speculative for r in fits}
        speculative[row] = ways.pop() if len(ways) == 1 else _by_run(out, row, _APART)[0]
        slots[row] = _one({_slots(r) for r in fits})
        drafted[row] = _one({r.drafted for r in fits if r.speculative == "mtp"})
        if len({(r.prefill, r.decode) for r in fits}) == 1 and not stated:
            source[row] = "recipe"
            devices[row] = _write(sides, row, fits[0])
    extra = {"devices": devices, "speculative": speculative, "layout_source": source,
             "decode_slots": slots, "drafted": drafted}  # fmt: skip
    return {**out, **sides, **extra, **_expert_groups(out)}


def _expert_groups(out: Table) -> Table:
    """Expert groups of gpt-oss on H200 with TensorRT-LLM: "for all sequence lengths, EP=TP".

    So its published configuration; older rows say 1, and repeat the times of those that say so.
    """
    rows = len(out["engine"])
    here = np.array([
        out["mode"][i] == "agg" and out["engine"][i] == "trtllm"
        and out["hardware"][i] == "h200_sxm" and _network(str(out["model"][i])) == "gptoss"
        and str(out["collection"][i]).startswith("inferencex") for i in range(rows)
    ], dtype=bool)  # fmt: skip
    ep, moe_tp = np.asarray(out["ep"], np.float64), np.asarray(out["moe_tp"], np.float64)
    return {"ep": np.where(here, ep * moe_tp, ep), "moe_tp": np.where(here, 1.0, moe_tp)}


def _slots(recipe: Recipe) -> float:
    """Sequences that all attention groups of a decode worker hold."""
    return recipe.slots * (recipe.decode.devices if recipe.decode.data_parallel else 1)


def _one(values: set[float]) -> float:
    """Give the only value, NaN where there are none or several."""
    return values.pop() if len(values) == 1 else np.nan


def assume(out: Table) -> Table:
    """Fill the layouts that are still unknown from the recipe nearest to the row.

    An assumption, marked by layout_source "nearest", for scores that must answer every row. Of 203
    known rows 67 % get their true number of decode workers when no recipe of their concurrency may
    be used, 38 % when all that serve with the same workers are left out.
    What a row states (devices of a side, or of all) counts most, then concurrency on a logarithmic
    scale, lengths, engine, device and format.
    """
    sides = {n: out[n].copy() for n in out if n.startswith(("prefill_", "decode_"))}
    devices, source = out["devices"].copy(), out["layout_source"].copy()
    slots, drafted = out["decode_slots"].copy(), out["drafted"].copy()
    known = [(key, recipe) for key, found in recipes().items() for recipe in found]
    for row in np.flatnonzero((out["mode"] == "disagg") & (source == "")):
        key = _key({**out, "collection": text("inferencex", len(source))}, int(row))
        small = key[0] == "gptoss"
        pool = [pair for pair in known if (pair[0][0] == "gptoss") == small]
        theirs, recipe = min(pool, key=lambda pair, k=key, r=int(row): _distance(out, r, k, *pair))
        slots[row] = max(_slots(recipe) * key[6] / theirs[6], 1.0)  # as full as the recipe's
        drafted[row] = recipe.drafted if recipe.speculative == "mtp" else np.nan
        stated = out["devices"][row]
        total = _write(sides, int(row), recipe)
        devices[row] = stated if np.isfinite(stated) else total
        source[row] = "nearest"
    return {**out, **sides, "devices": devices, "layout_source": source, "decode_slots": slots,
            "drafted": drafted}  # fmt: skip


def _distance(out: Table, row: int, key: Key, theirs: Key, recipe: Recipe) -> float:
    """How far a recipe is from a row; a step of 1 is a factor e in concurrency."""
    unlike = (
        (theirs[1][:2] != key[1][:2], 2.5), (theirs[1] != key[1], 1.5), (theirs[2] != key[2], 1.0),
        (theirs[3] != key[3], 2.0), (theirs[4] != key[4], 2.0), (theirs[5] != key[5], 1.0),
    )  # fmt: skip
    total = abs(float(np.log(theirs[6] / key[6]))) + sum(w for differs, w in unlike if differs)
    for name, value, weight in (
        ("decode_devices", recipe.decode.devices, 3.0), ("devices", _total(recipe), 3.0),
        ("prefill_devices", recipe.prefill.devices, 1.0),
    ):  # fmt: skip
        if np.isfinite(out[name][row]):
            total += weight * abs(float(np.log2(value / out[name][row])))
    return total


def _by_run(out: Table, row: int, runs: tuple[Run, ...]) -> tuple[str, float]:
    """Drafting of a point, and how many tokens; "" and NaN where no run tells."""
    model, day = str(out["model"][row]), str(out["measured"][row])
    network = "qwen3.5" if "qwen3.5-397b" in model.lower() else _network(model)
    form = "fp4" if out["moe_format"][row] in _FP4 else str(out["moe_format"][row])[:3]
    named = (network, str(out["engine"][row]))
    version = str(out["engine_version"][row])
    layout = (float(out["tp"][row]), float(out["ep"][row]))
    for run in runs if str(out["collection"][row]).startswith("inferencex") else ():
        if (
            named == (run.network, run.engine) and run.version in ("", version)
            and run.day in ("", day) and run.form in ("", form)
            and out["hardware"][row] in (run.devices or (out["hardware"][row],))
            and run.layout in (None, layout) and float(out["concurrency"][row]) > run.above
        ):  # fmt: skip
            return run.speculative, run.drafted
    return "", np.nan


def _network(model: str) -> str:
    lower = model.lower()
    if "deepseek-r1" in lower or "deepseek-v3" in lower:
        return "dsr1"
    return "gptoss" if "gpt-oss-120b" in lower else ""


def _key(out: Table, row: int) -> Key:
    form = "fp4" if out["moe_format"][row] in _FP4 else "fp8"
    inferencex = str(out["collection"][row]).startswith("inferencex")
    return (
        _network(str(out["model"][row])) if inferencex else "", str(out["hardware"][row]), form,
        str(out["engine"][row]), float(out["isl"][row]), float(out["osl"][row]),
        float(out["concurrency"][row]),
    )  # fmt: skip


def _agrees(out: Table, row: int, recipe: Recipe) -> bool:
    """Whether a recipe is compatible with all that the row states."""
    pairs = [(out["devices"][row], _total(recipe))]
    for name, side in (("prefill_", recipe.prefill), ("decode_", recipe.decode)):
        pairs += [(out[f"{name}devices"][row], side.devices)]
        pairs += [(out[f"{name}workers"][row], side.workers)]
    return all(not np.isfinite(a) or a == b for a, b in pairs)


def _total(recipe: Recipe) -> int:
    return sum(side.workers * side.devices for side in (recipe.prefill, recipe.decode))


def _write(sides: Table, row: int, recipe: Recipe) -> int:
    for name, side in (("prefill_", recipe.prefill), ("decode_", recipe.decode)):
        values = {
            "workers": side.workers, "devices": side.devices, "ep": side.ep, "pp": 1,
            "tp": 1 if side.data_parallel else side.devices,
            "dp": side.devices if side.data_parallel else 1, "moe_tp": side.devices // side.ep,
        }  # fmt: skip
        for part, value in values.items():
            sides[name + part][row] = value
    return _total(recipe)
