"""Several tokens a pass: drafts, trees, and where they are made.

How often a draft is right is the method's own (per token 0.6 to 0.9 in the works that measure it:
Leviathan et al. 2023, arXiv:2211.17192, table 3; EAGLE-3, arXiv:2503.01840, figure 7): each recipe
sweeps it over a range and fits it to nothing. What a draft and a check cost comes from the passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InfeasibleError
from ...models import Layout, get
from ...models.network import Tokens
from ...scenario import Host, Pass, Points, run_pass, solve_points
from ...scenario.passes import unscheduled
from ...scenario.solve import machine_of
from ...techniques import Placement, Treatment
from ...techniques.speculation import tokens_a_pass
from ..verdict import Finding, Found, NotModelled
from .kit import device, reached, span
from .serving import case

__all__ = ["dovetail", "easyspec", "graft", "parallel_prompt"]

F64 = npt.NDArray[np.float64]
_ISL, _OSL = 512, 256
_MID = _ISL + _OSL / 2.0


def _step(model: str, on: str, tokens: float = 1.0, layout: Layout | None = None) -> Pass:
    """One pass of a sequence that adds `tokens` tokens after 640: the device's time of it.

    The host schedules once for all passes that draft and the one that checks.
    """
    s = case(model, on, _ISL, _OSL, devices=layout.devices if layout else 1, layout=layout)
    made = s.made()
    machine = unscheduled(machine_of(made, s))
    return run_pass(made.network, machine, [Tokens(1.0, tokens, _MID, tokens)])


def _tpot(model: str, on: str, techniques: str | Treatment = "", **more: Any) -> float:
    """Seconds a token of one sequence."""
    s = case(model, on, _ISL, _OSL, techniques, **more)
    return float(solve_points(s, Points.of(1, _ISL, _OSL))["tpot"][0])


# EasySpec -----------------------------------------------------------------------------------

_ATTENTION = ("qkv", "rotary", "attention", "attention_out")


def _draft_passes(model: str, on: str, width: int) -> tuple[float, float]:
    """Seconds of a draft pass: with the best tensor parallelism, and with parallel layers.

    Attention of `width` layers runs at once, each on a device that holds it whole; sums cross the
    devices once for all of them. Feed-forward layers stay cut over as many as heads allow.
    """
    cut = {}
    for tp in (1, 2, 4, 8):
        try:
            cut[tp] = _step(model, on, layout=Layout(tp=tp))
        except InfeasibleError:  # heads that do not divide
            continue
    ordinary = min(float(p.time[0]) for p in cut.values())
    whole, most = cut[1], cut[max(cut)]
    here = sum(float(whole.parts[n][0]) for n in _ATTENTION if n in whole.parts)
    apart = sum(float(most.parts[n][0]) for n in (*_ATTENTION, "attention_sum") if n in most.parts)
    sums = float(most.parts["attention_sum"][0])
    return ordinary, float(most.time[0]) - apart + (here + sums) / width


def easyspec() -> list[Found]:
    """Draft with layers side by side on eight A100, check on all of them."""
    drafting, total, places, draft_places = [], [], [], []
    pairs = (("llama-3.1-70b", "llama-3.1-8b"), ("qwen2.5-72b", "qwen2.5-7b"),
             ("llama-3.1-70b", "llama-3.2-1b"))  # fmt: skip
    for target, draft in pairs:
        plain = _tpot(target, "a100_sxm", devices=8)
        share = get(draft).parameters / get(target).parameters
        for width in (2, 4):
            ordinary, parallel = _draft_passes(draft, "a100_sxm", width)
            for k in (4, 8):
                repaired = k * parallel + ordinary  # and one exact pass that repairs the cache
                drafting.append((k + 1) * ordinary / repaired)
                draft_places.append(f"{draft}, {width} layers at once, {k} drafted")
                for accept in (0.6, 0.75, 0.9):
                    part = repaired / (k + 1) / plain
                    named = (f"easyspec:accept={accept}:drafted={k}:share={part:.5f}:cut=0:"
                             f"memory={share:.4f}")  # fmt: skip
                    total.append(plain / _tpot(target, "a100_sxm", named, devices=8))
                    places.append(f"{draft} for {target}, {k} drafted, {accept:.0%} right")
    where = "three pairs on 8 A100, 4 and 8 tokens drafted, 60 to 90 % of them right"
    return [
        Finding(0, span(total), at=reached(total, 4.17, places), range=where,
                note="chains of drafts; a tree would accept more for the same passes"),
        Finding(1, span(drafting), at=reached(drafting, 1.62, draft_places), range="2 and 4 layers "
                "at once, against the fastest tensor parallelism of the draft"),
    ]  # fmt: skip


# Dovetail -----------------------------------------------------------------------------------

# Desktop CPUs: two channels of DDR4-3200 to DDR5-5600 of which products draw 60 to 80 %, 8 to 16
# cores of 2 x 8 lanes with fused multiply-add at 3.5 GHz, halved for what products reach (assumed)
_DESKTOPS = tuple(
    Host(memory_bandwidth=share * bandwidth, flops_per_s=cores * 3.5e9 * 32 / 2.0)
    for share, bandwidth, cores in ((0.6, 51.2e9, 8), (0.8, 51.2e9, 12), (0.8, 89.6e9, 16))
)


def dovetail() -> list[Found]:
    """Draft on a small GPU, check Llama-2-7B in 16 bits on the host."""
    speeds: dict[float, list[float]] = {0.0: [], 0.3: []}
    gains, places = [], []
    draft = 2.0 * 0.5e9 / device("rtx_2080_ti").memory.bandwidth  # s: about half a billion weights
    on_host = Treatment(placement=Placement(device_share=0.0, compute="host"))
    for host, name in zip(_DESKTOPS, ("31", "41", "72"), strict=True):
        alone = _tpot("llama-2-7b", "rtx_2080_ti", on_host, host=host)
        for k in (4, 8):
            for accept in (0.7, 0.8, 0.9):
                for kept, found in speeds.items():
                    named = (f"dovetail:accept={accept}:drafted={k}:share={draft / alone:.5f}:"
                             f"memory=0.07:device={kept}")  # fmt: skip
                    found.append(1.0 / _tpot("llama-2-7b", "rtx_2080_ti", named, host=host))
                gains.append(speeds[0.0][-1] * alone)
                places.append(f"{name} GB/s, {k} drafted, {accept:.0%} right")
    small, large = speeds[0.0], speeds[0.3]
    where = "hosts of 31 to 72 GB/s and 0.4 to 0.9 TFLOP/s, 4 and 8 drafted, 70 to 90 % right"
    return [
        Finding(0, span(small), at=reached(small, 5.86, places), range=where),
        Finding(1, span(gains), at=reached(gains, 2.77, places), range=where),
        Finding(2, span(large), at=reached(large, 8.0, places), range=where + "; 30 % of the "
                "weights (4 GB more) on the device"),
    ]  # fmt: skip


# Parallel prompt decoding -------------------------------------------------------------------


def parallel_prompt() -> list[Found]:
    """Three trained prompt tokens and a tree of candidates in each pass."""
    models = {"llama-3.2-1b": 2048, "llama-2-7b": 4096, "llama-2-13b": 5120}
    gains, places = [], []
    for model in models:
        for on in ("a100_sxm", "rtx_4090"):
            if model == "llama-2-13b" and on == "rtx_4090":
                continue  # 26 GB of weights
            plain = _tpot(model, on)
            for nodes in (16, 32, 64, 128):
                for accept in (0.4, 0.55, 0.7):
                    named = f"parallel-prompt-decoding:accept={accept}:nodes={nodes}"
                    gains.append(plain / _tpot(model, on, named))
                    places.append(f"{model} on {on}, {nodes} nodes, {accept:.0%} a level")
    trained = [100.0 * 3 * width / get(name).parameters for name, width in models.items()]
    extra, ways = [], []
    for share in (0.05, 0.1, 0.2):  # a draft that guesses ahead itself drafts in fewer passes
        for k in (4, 8):
            for accept in (0.4, 0.55):
                fewer = k / tokens_a_pass(accept, 3)
                extra.append((1.0 + k * share) / (1.0 + fewer * share))
                ways.append(f"draft of {share:.0%}, {k} drafted, {accept:.0%} a level")
    where = "1 to 13 billion parameters, A100 and RTX 4090, trees of 16 to 128, 40 to 70 % a level"
    return [
        Finding(0, span(trained), at=reached(trained, 2e-4, models), range="3 embeddings"),
        NotModelled(1, "the length of a training run is a choice"),
        NotModelled(2, "acceptance is an input here"),
        Finding(3, span(gains), at=reached(gains, 2.49, places), range=where),
        Finding(4, span(trained), at=reached(trained, 4e-4, models), range="3 embeddings"),
        Finding(5, span(extra), at=reached(extra, 1.22, ways), range="drafts of 5 to 20 % of a "
                "pass, 4 and 8 drafted"),
    ]  # fmt: skip


# Graft --------------------------------------------------------------------------------------


def graft() -> list[Found]:
    """Half of the draft passes replaced by looked-up tokens, against a full tree and no tree.

    The draft is one layer and an output head (EAGLE-3, arXiv:2503.01840).
    """
    speed, more, places, trees = [], [], [], []
    for model, layout in (("llama-3.1-8b", None), ("qwen3-235b-a22b", Layout(tp=8))):
        on = "h100_sxm" if layout is None else "h200_sxm"
        kw: dict[str, Any] = {"devices": layout.devices, "layout": layout} if layout else {}
        run = _step(model, on, layout=layout)
        head = sum(float(v[0]) for n, v in run.parts.items() if n.startswith("head"))
        layers = float(getattr(get(model), "layers", 32))
        share = (head + (float(run.time[0]) - head) / layers) / float(run.time[0])
        plain = _tpot(model, on, **kw)
        for accept in (0.75, 0.85, 0.9):
            full = _tpot(model, on, f"graft:accept={accept}:depth=7:retrieved=0:share={share:.4f}",
                         **kw)  # fmt: skip
            for depth, found in ((3, 3), (4, 3), (4, 4)):
                named = f"graft:accept={accept}:depth={depth}:retrieved={found}:share={share:.4f}"
                cut = _tpot(model, on, named, **kw)
                speed.append(plain / cut)
                way = f"{depth} passes and {found} looked up, {accept:.0%} a level"
                places.append(f"{model}, {way}")
                if layout is not None:
                    more.append(100.0 * (full / cut - 1.0))
                    trees.append(way)
    where = "trees of 60, 75 to 90 % a level, 3 to 4 of 7 levels drafted"
    return [
        Finding(0, span(speed), at=reached(speed, 5.41, places), range="8 billion and 235 billion "
                "parameters, " + where),
        Finding(1, span(more), at=reached(more, 21.8, trees), range="Qwen3-235B, 8 H200, " + where),
    ]  # fmt: skip
