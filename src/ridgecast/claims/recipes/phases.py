"""Prefill and decode apart: on machines of their own, and on parts of one device's units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...scenario import Points, solve_points
from ...scenario.solve import phases_of
from ..verdict import Finding, Found
from .kit import device, reached, span
from .serving import case, most_of

__all__ = ["nexus", "splitwise"]

F64 = npt.NDArray[np.float64]

# Splitwise ----------------------------------------------------------------------------------

# What the source states: USD/h of a DGX, median tokens of its two traces, and slowdowns against an
# idle DGX-A100 that half, 90 % and 99 % of requests may see. W are those of NVIDIA's datasheets.
_MACHINES = {"a100": ("a100_sxm", 17.6, 6500.0), "h100": ("h100_sxm", 38.0, 10200.0)}
_TRACES = {"code": (1500, 13), "conversation": (1020, 129)}
_SLOWER = {0.5: 1.25, 0.1: 1.5, 0.01: 5.0}  # share of the steps that are slower: by how much
_FIRST = 2.0  # slowdown of the first token, half of the requests


@dataclass(frozen=True, slots=True)
class _Side:
    """Requests/s of one machine: prompts alone, outputs alone, and both together."""

    prompts: float
    outputs: float
    both: float


def _sides(model: str, trace: str) -> dict[str, _Side]:
    """Find what each machine carries within the limits, which are the same for both."""
    isl, osl = _TRACES[trace]
    phases = {}
    for name, (on, _, _) in _MACHINES.items():
        s = case(model, on, isl, osl, devices=8)
        batch = np.unique(np.round(np.geomspace(1, min(most_of(s), 512), 24)))
        phases[name] = batch, phases_of(s.made(), s, Points.of(batch, isl, osl))[0]
    idle = phases["a100"][1]
    step, first = float(idle.decode["time"][0]), float(idle.prefill["time"][0])
    out = {}
    for name, (batch, p) in phases.items():
        decode = p.decode["time"]
        mixed = decode + (p.mixed["time"] - decode) / p.together  # with one prompt
        own = float(p.prefill["time"][0])
        # mean wait of M/D/1 before a prompt of length `own`: busy / (2 (1 - busy))
        slack = max(2.0 * (_FIRST * first / own - 1.0), 0.0)
        busy = slack / (1.0 + slack)
        with_prompt = np.minimum(batch / osl, 1.0)  # share of the steps that carry a prompt
        kept = np.ones(len(batch), bool)
        for share, limit in _SLOWER.items():
            kept &= np.where(with_prompt >= share, mixed, decode) <= limit * step
        life = osl * decode + batch * (mixed - decode)
        alone = batch / (osl * decode)
        out[name] = _Side(busy / own, _best(alone, decode <= _SLOWER[0.5] * step),
                          _best(batch / life, kept & (batch * own / life <= busy)))  # fmt: skip
    return out


def _best(values: F64, kept: npt.NDArray[np.bool_]) -> float:
    return float(np.max(values[kept], initial=0.0))


def _spent(prompt: float, output: float, sides: dict[str, _Side], pair: str) -> float:
    """Cost of a request/s where prompts run on one type of machine and outputs on another."""
    one, other = pair.split("-")
    return prompt / sides[one].prompts + output / sides[other].outputs


def splitwise() -> list[Found]:
    """Requests/s within the limits, a dollar and a watt, of split and of mixed clusters."""
    dearer: list[float] = []
    same: list[float] = []
    places: list[str] = []
    for model in ("llama-2-70b", "bloom-176b"):
        for trace in _TRACES:
            sides = _sides(model, trace)
            for mixed, (_, price, power) in _MACHINES.items():
                if sides[mixed].both <= 0.0:
                    continue
                for pair in ("a100-a100", "h100-h100", "h100-a100"):
                    one, other = (_MACHINES[n] for n in pair.split("-"))
                    cost = price / sides[mixed].both / _spent(one[1], other[1], sides, pair)
                    watt = power / sides[mixed].both / _spent(one[2], other[2], sides, pair)
                    dearer.append(cost)
                    same.append(min(cost, watt))
                    places.append(f"{pair} for {mixed}, {model}, {trace}")
    at_80 = 0.8 * np.array(dearer)
    saved = 100.0 * (1.0 - 1.4 / np.array(dearer))
    where = ("Llama-2-70B and BLOOM-176B in fp16 on DGX A100 and H100, prompts of 1500 and 1020 "
             "tokens, outputs of 13 and 129")  # fmt: skip
    return [
        Finding(0, span(at_80), at=reached(at_80, 1.4, places), range=where, note="a mixed machine "
                "meets the limit on the slowest tenth of steps with few requests only, as every "
                "step that carries a prompt is slower than that"),
        Finding(1, span(saved), at=reached(saved, 20.0, places), range=where),
        Finding(2, span(same), at=reached(same, 2.35, places), range=where),
    ]  # fmt: skip


# Nexus --------------------------------------------------------------------------------------

_LOADS = np.array([0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])  # of what the engine carries


def _waits(rate: F64, most: float, own: float) -> F64:
    """Seconds to a first token: M/D/1 before a device that ends `most` requests/s, then `own`."""
    busy = np.minimum(rate / most, 0.999)
    return own + busy / (2.0 * (1.0 - busy)) / most


def _split_against(engine: str, model: str, on: str, isl: int, osl: int) -> dict[str, F64]:
    """Gains of units split between prefill and decode over an engine, by batch and by load.

    Decode keeps its bandwidth on as many units as draw all of it: the share memory over L2
    bandwidth; prefill gets at most the others.
    """
    hw = device(on)
    share = 1.0 - hw.memory.bandwidth / hw.l2.bandwidth
    plain = case(model, on, isl, osl, engine=engine)
    split = case(model, on, isl, osl, f"nexus-intra-gpu-pd:share={share:.3f}", engine=engine)
    batch = np.unique(np.round(np.geomspace(2, min(most_of(plain), 256), 12)))
    at = Points.of(batch, isl, osl)
    before, after = solve_points(plain, at), solve_points(split, at)
    p = phases_of(plain.made(), plain, at)[0]
    longest = p.decode["time"] + (p.mixed["time"] - p.decode["time"]) / p.together
    alone = float(p.prefill["time"][-1] * p.rounds[-1])
    held = alone + float(p.decode["time"][-1])
    top = [float(x["output_tokens_per_s"].max()) / osl for x in (before, after)]
    rate = _LOADS * top[0]
    first = _waits(rate, top[0], held) / _waits(rate, top[1], alone / share)
    return {
        "throughput": after["output_tokens_per_s"] / before["output_tokens_per_s"],
        "first": first,
        "between": np.concatenate([before["tpot"] / after["tpot"], longest / p.decode["time"]]),
        "batch": batch,
    }


def nexus() -> list[Found]:
    """Prefill and decode side by side on one device, against passes that hold both."""
    cases = [("llama-3.1-8b", "a100_sxm", 2048, 256), ("llama-3.1-8b", "l40s", 6144, 512),
             ("qwen2.5-14b", "a100_sxm", 4096, 128)]  # fmt: skip
    found = {e: [_split_against(e, *c) for c in cases] for e in ("vllm", "sglang")}
    old = found["vllm"]
    gain, first, between = (
        np.concatenate([f[name] for f in old]) for name in ("throughput", "first", "between")
    )
    other = np.concatenate([f["throughput"] for f in found["sglang"]])
    names = [f"{m} on {on}, {isl} in, {osl} out" for m, on, isl, osl in cases]
    at = [f"{n}, batch {b:g}" for n, f in zip(names, old, strict=True) for b in f["batch"]]
    loads = [f"{n}, load {x:g}" for n in names for x in _LOADS]
    where = "; ".join(names) + "; batch 2 to the most that fit"
    return [
        Finding(0, span(gain), at=reached(gain, 2.2, at), range=where),
        Finding(1, span(first), at=reached(first, 20.0, loads), range="random arrivals, at "
                "50 to 99 % of what the engine carries"),
        Finding(2, span(between), at="means, and steps that carry a prompt against steps that do "
                "not", range=where),
        Finding(3, span(other), at=reached(other, 2.0, at), range=where),
    ]  # fmt: skip
