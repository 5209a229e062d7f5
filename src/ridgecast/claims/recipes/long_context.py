"""Long contexts: what fits, how long it takes, and who else can serve meanwhile.

Models and machines of each work are solved as scenarios; both sides of a pair share engine and
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...kernels.operator import link_of
from ...models import Layout
from ...scenario import Points, Scenario, Traffic, largest_batch, memory_at, solve_points
from ...scenario.case import Made
from ...scenario.host import fetch_bandwidth
from ...scenario.memory import kv_bytes, weight_bytes
from ...scenario.solve import phases_of, solve_all
from ...techniques import KvPolicy, Treatment
from ...techniques import get as technique
from ..verdict import Finding, Found, NotModelled, Property
from .kit import reached, span

__all__ = [
    "activation_beacon",
    "fastattention_npu",
    "infinite_llm",
    "long_context_peak",
    "ssm_long_context",
    "triforce",
]

_STEADY = float("inf")


def _longest(s: Scenario, osl: int = 1) -> int:
    """Most prompt tokens of one sequence that fit, to a thousandth."""
    made = s.made()
    room = made.hardware.memory.capacity * made.engine.memory_share

    def ok(tokens: int) -> bool:
        case = replace(s, traffic=Traffic(tokens, osl, 1))
        return memory_at(made, case, 1).total <= room

    if not ok(16):
        return 0
    low, high = 16, 32
    while high < 1 << 26 and ok(high):
        low, high = high, high * 2
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if ok(middle) else (low, middle)
    return low


# Hierarchical speculation -------------------------------------------------------------------

_CONTEXT = 122880
_DRAFTS = [(rate, steps) for rate in (0.8, 0.9, 0.92, 0.95) for steps in (6, 12, 16)]
"""Chance that a draft from 4K retrieved tokens is accepted, and how many are verified together."""


def _speculated(base: Treatment, on: str, devices: int) -> tuple[float, list[float]]:
    """Seconds a token of Llama-2-7B-128K without, and with, drafts."""
    kinds = [base] + [
        technique("triforce").apply(base, rate=rate, steps=steps) for rate, steps in _DRAFTS
    ]
    cases = []
    for use in kinds:
        s = Scenario("llama-2-7b", on, devices, layout=Layout(tp=devices), techniques=use,
                     traffic=Traffic(_CONTEXT, 256, 1))  # fmt: skip
        cases.append((s.made(), s, Points.of(1, _CONTEXT, 256)))
    plain, *drafted = (float(found["tpot"][0]) for found in solve_all(cases))
    return plain, drafted


def _offloaded(on: str, devices: int) -> Treatment:
    """Keep as much of the cache on the devices as there is room, the rest on the host."""
    away = Treatment(kv=KvPolicy(place="host"))
    use = technique("triforce").apply(away)
    s = Scenario("llama-2-7b", on, devices, layout=Layout(tp=devices), techniques=use,
                 traffic=Traffic(_CONTEXT, 256, 1))  # fmt: skip
    made = s.made()
    memory = memory_at(made, s, 1)
    free = made.hardware.memory.capacity * made.engine.memory_share - memory.total
    return replace(away, kv=replace(away.kv, near=max(0.9 * free / memory.host, 0.0)))


def triforce() -> list[Found]:
    """Tiny model, model on 4K retrieved tokens, model on all of 120K: on chip and offloaded."""
    places = [f"{steps} drafts, each accepted at {100 * rate:.0f} %" for rate, steps in _DRAFTS]
    where = "120K tokens, 6 to 16 drafts accepted at 80 to 95 %, 4K retrieved"
    usual = [i for i, (rate, _) in enumerate(_DRAFTS) if rate == 0.92]
    plain, drafted = _speculated(Treatment(), "a100_sxm", 1)
    gains = [plain / t for t in drafted]
    two, drafted_two = _speculated(_offloaded("rtx_4090", 2), "rtx_4090", 2)
    gains_two = [two / t for t in drafted_two]
    zero = Treatment(kv=KvPolicy(place="host"))
    one, _ = _speculated(zero, "rtx_4090", 1)
    gains_one = [one / t for t in _speculated(_offloaded("rtx_4090", 1), "rtx_4090", 1)[1]]
    return [
        Finding(0, span(gains), at=reached(gains, 2.31, places), range=where + "; one A100",
                note=f"{span([gains[i] for i in usual])[0]:.3g} to "
                f"{span([gains[i] for i in usual])[1]:.3g} where 92 % are accepted: drafting and "
                "choosing cost no more than their bytes and products here"),
        Finding(1, span(drafted_two), at=reached(drafted_two, 0.108, places),
                range=where + "; what does not fit 2 x RTX 4090 on the host, PCIe 4.0",
                note="the link runs at its full rate here"),
        Finding(2, span(gains_two), at=reached(gains_two, 7.78, places),
                range=where + "; as above"),
        Finding(3, span(gains_one), at=reached(gains_one, 4.86, places),
                range=where + "; one RTX 4090, against the whole cache on the host"),
    ]  # fmt: skip


# Memory of many instances -------------------------------------------------------------------


def _lending(made: Made, devices: int) -> float:
    """Seconds a pass that attention over a long request's remote blocks adds.

    In each layer its query goes to all other devices, partial results and their maxima and sums
    come back (two messages, fp32 results), nothing else.
    """
    network: Any = made.network
    link = link_of(made.hardware, "peer" if devices <= 8 else "network")
    moved = (devices - 1) * network.hidden * (2.0 + 4.0) * 1.05
    return float(network.layers * (2.0 * (link.latency or 5e-6) + moved / link.bandwidth))


_SHORT = ((256, 256), (1024, 256), (4096, 512))
"""Tokens in and out of the requests beside the long one."""


def _pooled_gains() -> dict[str, float]:
    """Rate a device of pooled instances of one A100 over that of one cut as wide as the long needs.

    Llama-2-7B at the batch that serves most; both serve the short requests of `_SHORT`.
    """
    widths = (1, 4, 8, 16, 32)
    cases = []
    for lengths in _SHORT:
        for tp in widths:
            s = Scenario("llama-2-7b", "a100_sxm", tp, layout=Layout(tp=tp),
                         traffic=Traffic(*lengths, 1, rounds=_STEADY))  # fmt: skip
            made = s.made()
            batch = np.unique(np.round(np.geomspace(1, min(largest_batch(made, s), 1024), 8)))
            cases.append((made, s, Points.of(batch, *lengths)))
    rates = []
    for (made, _, at), found in zip(cases, solve_all(cases), strict=True):
        pools = widths[1:] if made.layout.devices == 1 else ()
        extra = [0.0, *(_lending(made, n) for n in pools)]
        rates.append([
            float(np.max(at.batch * at.osl / (found["e2e"] + at.osl * more))) / made.layout.devices
            for more in extra
        ])  # fmt: skip
    gains = {}
    for row, (isl, osl) in enumerate(_SHORT):
        own, *cut = rates[row * len(widths) : (row + 1) * len(widths)]
        for n, pooled, one in zip(widths[1:], own[1:], cut, strict=True):
            place = f"{isl} tokens in, {osl} out, cut over {n} devices for the longest"
            gains[place] = pooled / one[0]
    return gains


def infinite_llm() -> list[Found]:
    """Context that pooled memory holds, and rate against instances wide enough for the longest.

    A static system must cut the model over as many devices as its longest request needs, and pays
    for that with every short one. Pooled instances of one device lend memory to the long request
    instead, and only its queries and partial results cross the link.
    """
    lengths, places, longest = [], [], 0
    for model, tp in (("llama-2-7b", 1), ("llama-2-13b", 1), ("llama-2-13b", 2),
                      ("llama-2-70b", 4), ("llama-2-70b", 8)):  # fmt: skip
        one = _longest(Scenario(model, "a100_sxm", tp, layout=Layout(tp=tp)))
        for devices in (2, 4, 8, 16, 32):
            if devices <= tp:
                continue
            pool = Layout(tp=tp, cp=devices // tp)
            all_of_it = _longest(Scenario(model, "a100_sxm", devices, layout=pool))
            lengths.append(all_of_it / one)
            places.append(f"{model}, {devices} devices, {tp} an instance")
            if (model, devices, tp) == ("llama-2-13b", 32, 1):
                longest = all_of_it
    gains = _pooled_gains()
    return [
        Finding(0, span(list(gains.values())), at=reached(list(gains.values()), 2.4, gains),
                range="Llama-2-7B, short requests of 256 to 4096 tokens beside a long one that "
                "needs 4 to 32 A100s; below 1 where memory for weights is what lacks"),
        Finding(1, span(lengths), at=reached(lengths, 19.0, places),
                range="Llama-2 7B, 13B, 70B on 2 to 32 A100s, instances of 1 to 8; against one "
                "instance"),
        Finding(2, longest / 1000.0, at="Llama-2-13B in fp16, 32 instances of one A100"),
    ]  # fmt: skip


# Peak analysis ------------------------------------------------------------------------------


def long_context_peak() -> list[Found]:
    """Serve a 34B model with 8 heads of keys at 50K and at 4K tokens on two A100s."""
    short, long = 4096, 51200
    s = Scenario("yi-34b", "a100_sxm", 2, layout=Layout(tp=2), traffic=Traffic(long, 256, 1))
    made = s.made()
    phases, _ = phases_of(made, s, Points.of(1, [short, long], 256))
    prefill = phases.prefill["time"] * phases.rounds
    decode = phases.decode["time"]
    cache = [2.0 * float(kv_bytes(made.network, made.formats, made.layout, made.treatment, n))
             for n in (short, long)]  # fmt: skip
    users = [largest_batch(made, replace(s, traffic=Traffic(n, 256, 1))) for n in (short, long)]
    link = 2.0 * fetch_bandwidth(made.hardware, s.host, "host")
    switch = [c / link for c in cache]
    read = (cache[1] - cache[0]) / 2.0 / made.hardware.memory.bandwidth
    grown = float(decode[1] - decode[0])
    weights = 2.0 * weight_bytes(made.network, made.formats, made.layout, made.treatment)
    room = 2.0 * made.hardware.memory.capacity * made.engine.memory_share
    return [
        Property("the cache grows with the tokens", abs(cache[1] / cache[0] - 12.5) < 0.1,
                 f"{cache[0] / 1e9:.3g} GB at 4K, {cache[1] / 1e9:.3g} GB at 50K tokens"),
        Property("prefill grows faster than the tokens", prefill[1] / prefill[0] > 12.5,
                 f"{prefill[0]:.3g} s at 4K, {prefill[1]:.3g} s at 50K"),
        Property("users are what the memory beside the weights holds of caches",
                 0 < users[1] < users[0] and users[1] * cache[1] <= room - weights,
                 f"{users[0]} at 4K, {users[1]} at 50K, {(room - weights) / 1e9:.3g} GB"),
        Property("a token takes longer by the time to read the cache",
                 0.7 * read < grown < 2 * read,
                 f"{1e3 * decode[0]:.3g} ms at 4K, {1e3 * decode[1]:.3g} ms at 50K; the cache "
                 f"alone {1e3 * read:.3g} ms"),
        Property("a switch of context takes the cache over the link to the host",
                 switch[1] > 10 * switch[0],
                 f"{1e3 * switch[0]:.3g} ms at 4K, {1e3 * switch[1]:.3g} ms at 50K, each way"),
    ]  # fmt: skip


# States instead of caches -------------------------------------------------------------------

_ALIKE = (  # state-space model and Transformer of nearly its size
    ("mamba2-780m", "qwen3-0.6b"), ("mamba2-1.3b", "llama-3.2-1b"), ("mamba2-1.3b", "qwen2.5-1.5b"),
    ("mamba2-1.3b", "qwen3-1.7b"), ("mamba2-2.7b", "phi-2"), ("mamba-2.8b", "llama-3.2-3b"),
    ("mamba2-2.7b", "llama-3.2-3b"),
)  # fmt: skip


def ssm_long_context() -> list[Found]:
    """Mamba models and Transformers on 24 GB and an eager stack: what fits, and the first token."""
    on, tokens = "rtx_4090", np.array([512, 1024, 2048, 57344])
    names = {name for pair in _ALIKE for name in pair} | {"falcon-mamba-7b"}
    cases = {n: Scenario(n, on, engine="hf", traffic=Traffic(1024, 64, 1)) for n in sorted(names)}
    longest = {name: _longest(s) for name, s in cases.items()}
    found = solve_all([(s.made(), s, Points.of(1, tokens, 64)) for s in cases.values()])
    first = {name: f["ttft"] for name, f in zip(cases, found, strict=True)}
    states = {n: float(v) for n, v in longest.items() if "mamba" in n}
    more = {f"{a} for {b}": longest[a] / longest[b] for a, b in _ALIKE}
    slower: dict[str, float] = {}
    faster: dict[str, float] = {}
    for a, b in _ALIKE:
        ratio = first[a] / first[b]
        faster[f"{a} for {b}"] = 1.0 / float(ratio[-1])
        slower |= {f"{b} for {a}, {n} tokens": float(r)
                   for n, r in zip(tokens[:-1], ratio[:-1], strict=True)}  # fmt: skip
    share = _scan_share()
    where = "7 pairs of like size, RTX 4090, eager stack"
    return [
        Finding(0, span(list(states.values())), at=reached(list(states.values()), 220e3, states),
                range="Mamba models of 0.8 to 7B, prompts read in one piece, 24 GB"),
        Finding(1, span(list(more.values())), at=reached(list(more.values()), 4.0, more),
                range=where),
        Finding(2, span(list(slower.values())), at=reached(list(slower.values()), 1.8, slower),
                range=where + ", 512 to 2048 tokens, first token"),
        Finding(3, span(list(faster.values())), at=reached(list(faster.values()), 4.0, faster),
                range=where + ", 57K tokens, first token"),
        Finding(4, span(list(share.values())), at=reached(list(share.values()), 55.0, share),
                range="prefill of 1K to 16K tokens; L4 and a laptop's RTX 3060",
                note="scans run at the speed of memory and lanes here; the published kernels on "
                "edge boards, which are not in the catalogue, run below it"),
    ]  # fmt: skip


def _scan_share() -> Mapping[str, float]:
    """Per cent of prefill that scans and short convolutions take."""
    lengths = np.array([1024, 4096, 16384])
    out: dict[str, float] = {}
    for on in ("l4", "rtx_3060_laptop"):
        for name in ("mamba2-130m", "mamba2-780m"):
            s = Scenario(name, on, engine="hf", traffic=Traffic(1024, 64, 1))
            phases, run = phases_of(s.made(), s, Points.of(1, lengths, 64))
            n = len(lengths)
            own: Any = sum(v[n : 2 * n] for k, v in run.parts.items()
                           if k in ("scan", "short_convolution", "scan_norm"))  # fmt: skip
            part = 100.0 * own / phases.prefill["time"]
            out |= {f"{name}, {t} tokens, {on}": float(p)
                    for t, p in zip(lengths, part, strict=True)}  # fmt: skip
    return out


# Condensed contexts -------------------------------------------------------------------------


def activation_beacon() -> list[Found]:
    """Llama-2-7B from 4K to 400K tokens on one A800 (an A100's chip), and its short training."""
    on, long = "a100_sxm", 409600
    full, ours = (
        Scenario("llama-2-7b", on, traffic=Traffic(long, 128, 1), techniques=use)
        for use in ("", "activation-beacon:ratio=32")
    )
    need = [memory_at(s.made(), s, 1) for s in (full, ours)]
    room = full.made().hardware.memory.capacity
    at = np.array([51200, 102400, 204800, 409600])
    linear, square = (solve_points(s, Points.of(1, at, 128))["ttft"] for s in (ours, full))
    grows, grew = (float(t[-1] / t[0]) for t in (linear, square))
    hours = {}
    for mfu in (0.3, 0.4, 0.5):
        for tokens in (4096, 8192):  # a device's batch of one sequence of up to 8K tokens
            flops = 6.0 * 6.74e9 * tokens * 8 * 10_000
            hours[f"{tokens} tokens a sequence, MFU {100 * mfu:.0f} %"] = (
                flops / (8 * 312e12 * mfu) / 3600.0
            )
    return [
        Finding(0, long / 4096.0, at=f"{need[1].total / 1e9:.3g} GB with 32 tokens an entry, "
                f"{need[0].total / 1e9:.3g} GB without", tolerance=0.05)
        if need[1].total <= room < need[0].total else NotModelled(0, "does not fit"),
        NotModelled(1, "an input: steps of training"),
        Finding(2, span(list(hours.values())), at=reached(list(hours.values()), 9.0, hours),
                range="10,000 steps of 8 sequences on 8 x A800, 6 N D, MFU 30 to 50 %",
                ceiling=True),
        Property("the cache is divided by the ratio", abs(need[0].kv / need[1].kv - 32) < 0.5,
                 f"{need[0].kv / 1e9:.3g} to {need[1].kv / 1e9:.3g} GB"),
        Property("time grows nearly with the tokens", grows < 0.5 * grew and grows < 16.0,
                 f"{grows:.3g} times from 50K to 400K tokens, {grew:.3g} times without"),
    ]  # fmt: skip


# Fused attention on older devices -----------------------------------------------------------


def fastattention_npu() -> list[Found]:
    """Serve a 30B model on eight V100s: fused attention, and a cache that overflows to the host.

    OPT-30B stands for the source's model of 38B, whose sizes are not published with it.
    """

    def on_v100(tokens: int, attention: str, place: str = "device") -> Scenario:
        use = Treatment(attention=attention, kv=KvPolicy(place=place))
        return Scenario("opt-30b", "v100_sxm", 8, layout=Layout(tp=8), techniques=use, dtype="fp16",
                        traffic=Traffic(tokens, 1, 1))  # fmt: skip

    lengths = [2048, 8192, 16384, 32768, 65536]
    pair = [on_v100(n, kind) for n in lengths for kind in ("standard", "flash")]
    found = solve_all([(s.made(), s, Points.of(1, s.traffic.isl, 1)) for s in pair])
    times = [float(f["e2e"][0]) for f in found]
    gains = [one / two for one, two in zip(times[::2], times[1::2], strict=True)]
    longest = 262144
    here, away = (on_v100(longest, "flash", place) for place in ("device", "host"))
    need = [memory_at(s.made(), s, 1) for s in (here, away)]
    room = here.made().hardware.memory.capacity
    npu = "no Ascend NPU is in the catalogue"
    return [
        NotModelled(0, npu),
        NotModelled(1, npu),
        NotModelled(2, "two kernels of one algorithm: their bytes and operations are the same"),
        Finding(3, span(gains), at=reached(gains, 1.46, [f"{n} tokens" for n in lengths]),
                range="prompts of 2K to 64K tokens through an OPT-30B on 8 x V100, scores through "
                "memory against fused"),
        Finding(4, float(longest), tolerance=0.05,
                at=f"{need[0].total / 1e9:.3g} GB a device, {need[1].total / 1e9:.3g} GB with the "
                f"cache on the host ({8 * need[1].host / 1e9:.3g} GB there)")
        if need[1].total <= room < need[0].total else NotModelled(4, "does not fit"),
    ]  # fmt: skip
