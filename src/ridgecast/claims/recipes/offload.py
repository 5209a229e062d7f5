"""Weights, experts and caches that live away from the device, and experts spread over devices.

Both sides of a pair have the same model, device, host and engine, and differ in their treatment.
Hosts are swept where a source does not say what its own gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ...hardware import Link, resolve
from ...models.attention import GroupedAttention
from ...models.ffn import MoeFfn
from ...models.network import Layout, Tokens
from ...models.transformer import Block, Decoder
from ...scenario import Host, Points, Scenario, Traffic, engine, formats_of
from ...scenario.memory import weight_bytes
from ...scenario.passes import Job, Machine, run_passes
from ...scenario.solve import largest_batch, memory_at, solve_all
from ...techniques import Batching, KvPolicy, Placement, Treatment, treatment_of
from ..verdict import Finding, Found, NotModelled
from .kit import span

__all__ = ["apex", "exflow", "expertflow", "hybrimoe", "instinfer", "llm_in_a_flash", "lsh_moe",
           "moe_lens"]  # fmt: skip

_RATE = "output_tokens_per_s"


def _solved(cases: Sequence[Scenario], at: Points | Sequence[Points]) -> list[dict[str, Any]]:
    """Solve scenarios at the same points, or each at its own."""
    points = [at] * len(cases) if isinstance(at, Points) else at
    made = [(s.made(), s, p) for s, p in zip(cases, points, strict=True)]
    return solve_all(made)


def _fullest(cases: Sequence[Scenario], most: int = 1 << 14) -> list[float]:
    """Tokens/s of each scenario with as many sequences as fit; 0 where none does."""
    batch = [min(_most(s), most) for s in cases]
    able = [(s, b) for s, b in zip(cases, batch, strict=True) if b >= 1]
    at = [Points.of(b, s.traffic.isl, s.traffic.osl) for s, b in able]
    rates = iter(float(r[_RATE][0]) for r in _solved([s for s, _ in able], at))
    return [next(rates) if b >= 1 else 0.0 for b in batch]


def _most(s: Scenario) -> int:
    """Sequences that fit, by the slope of memory between many and more of them."""
    made = s.made()
    few, many = (memory_at(made, s, b) for b in (1 << 10, 1 << 11))
    room = made.hardware.memory.capacity * made.engine.memory_share
    ends = [(room, few.total, many.total), (s.host.memory_capacity, few.host, many.host)]
    fits = [1024 + 1024 * (end - a) / (b - a) for end, a, b in ends if b > a]
    guess = int(max(min(fits), 0.0))
    # below a chunk of prompts in flight the line bends: search there
    return guess if guess * s.traffic.isl > 16384 else largest_batch(made, s)


def _named(values: Mapping[Any, float], wanted: float) -> str:
    """Say where values come nearest to a published one."""
    key = min(values, key=lambda k: abs(values[k] - wanted))
    return f"{values[key]:.3g} at {key}"


def instinfer() -> list[Found]:
    """Attention inside storage against a cache fetched from it: OPT-13B, A6000.

    The drive reads inside at twice its link (the host's defaults); sparse attention reads an eighth
    of the cache, as in the source, dense attention all of it.
    """
    batch = np.array([4.0, 8, 16, 32, 64, 128])
    at = Points.of(batch, 1024, 1024)
    names = ("kv-offload:nvme=1", "instinfer:read=1", "instinfer:read=0.125")
    traffic = Traffic(isl=1024, osl=1024, batch=4)
    cases = [Scenario("opt-13b", "rtx_a6000", traffic=traffic, engine="hf", techniques=n)
             for n in names]  # fmt: skip
    base, dense, sparse = (r[_RATE] for r in _solved(cases, at))
    gains = {f"batch {b:.0f}, dense": g for b, g in zip(batch, dense / base, strict=True)}
    gains |= {f"batch {b:.0f}, an eighth": g for b, g in zip(batch, sparse / base, strict=True)}
    return [
        Finding(0, span(list(gains.values())), at=_named(gains, 11.1),
                range="batch 4 to 128 of 1024 + 1024 tokens, dense or an eighth of the cache",
                note="writing the prompt's cache to storage is counted on neither side")
    ]  # fmt: skip


def _small_reads(bandwidth: float, share: float = 1.25 / 6.1, size: float = 8192.0) -> float:
    """Seconds a read costs besides its bytes, from what reads of one row reach.

    The source measures 1.25 GB/s of rows of 8 KiB against 6.1 GB/s of long reads.
    """
    return size / (share * bandwidth) - size / bandwidth


def llm_in_a_flash() -> list[Found]:
    """OPT-6.7B, half of it in fast memory, against all weights read from flash for each token.

    On the CPU the products take what its memory gives: 7 to 30 GB/s of weights, which is swept
    (fp32 products of 16-bit weights; the machine's peak is far above).
    """
    bandwidth = 6.1e9
    host = Host(storage_bandwidth=bandwidth, storage_read=_small_reads(bandwidth))
    naive = Treatment(placement=Placement(device_share=0.0, tier="storage"))
    shares = (0.08, 0.105, 0.13)
    mine = [treatment_of(f"llm-in-a-flash:active={a}") for a in shares]
    traffic = Traffic(isl=128, osl=128, batch=1)
    cases = [Scenario("opt-6.7b", "rtx_4090", traffic=traffic, engine="hf", host=host,
                      techniques=t) for t in (naive, *mine)]  # fmt: skip
    tpot = [float(r["tpot"][0]) for r in _solved(cases, Points.of(1, 128, 128))]
    gpu = {f"{100 * a:.3g} % picked": tpot[0] / x for a, x in zip(shares, tpot[1:], strict=True)}
    made = cases[0].made()
    total = weight_bytes(made.network, made.formats, made.layout, made.treatment)
    dense = 1.0 - sum(w.total for w in made.network.weights() if w.part == "ffn") * 2.0 / total
    cpu: dict[str, float] = {}
    for speed in (7e9, 10e9, 14e9, 20e9, 30e9):
        p = mine[1].placement
        fresh = 0.5 * total * p.touched * (1.0 - p.hit)
        read = fresh / bandwidth + fresh / p.read_bytes * host.storage_read
        used = total * (dense + (1.0 - dense) * p.touched)
        moved = 4.0 * fresh  # new rows are appended, old ones overwritten by the last: read, write
        cpu[f"{speed / 1e9:.0f} GB/s"] = (total / bandwidth + total / speed) / (
            read + (used + moved) / speed
        )
    window = 1.0 + 4.0 * (1.0 - mine[1].placement.hit)  # rows of a token, fresh ones of four more
    held = dense + (1.0 - dense) * shares[1] * window
    return [
        Finding(0, 1.0 / held, at=f"{100 * held:.0f} % of the model in memory: all but the "
                "feed-forward rows, and those that five tokens use",
                range="10.5 % of the rows picked a token, 78 % of them held already"),
        Finding(1, span(list(cpu.values())), at=_named(cpu, 4.75),
                range="products at 7 to 30 GB/s of weights"),
        Finding(2, span(list(gpu.values())), at=_named(gpu, 24.0),
                range="8 to 13 % of the rows picked; RTX 4090, 6.1 GB/s of flash"),
    ]  # fmt: skip


_SHARES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # of the cache on the device, of which the best is taken
_LENGTHS = ((128, 256), (256, 1024))  # tokens in and out


def _apex_cases(
    device: str, model: str, bandwidth: float, parts: int = 1
) -> dict[str, tuple[list[Scenario], list[Scenario]]]:
    """Attention on both, by share of the cache, and the device alone or two half batches."""
    # a 16 GB device that a 13.5 GB model leaves room on: no graphs, no reserve, on both sides
    plain = replace(engine("vllm"), memory_share=1.0, workspace=0.1e9, context=0.3e9, chunk=2048)
    host = Host(memory_bandwidth=bandwidth, memory_capacity=128e9)
    found = {}
    for isl, osl in _LENGTHS:
        one = Scenario(model, device, traffic=Traffic(isl=isl, osl=osl), engine=plain, host=host)
        every = [treatment_of(f"apex-cpu-gpu:device_share={s}") for s in _SHARES]
        mine = [replace(one, techniques=t) for t in every]
        halves = [replace(t, batching=Batching(parts=parts)) for t in every]
        other = [one] if parts == 1 else [replace(one, techniques=t) for t in halves]
        where = f"{isl} + {osl} tokens of {model}, host at {bandwidth / 1e9:.0f} GB/s"
        found[where] = (mine, other)
    return found


def _apex_gains(
    cases: Mapping[str, tuple[list[Scenario], list[Scenario]]],
) -> dict[str, float]:
    """Gain [%] of the best share over the best baseline of each place, where one fits."""
    rates = iter(_fullest([s for mine, other in cases.values() for s in (*mine, *other)]))
    found = {}
    for where, (mine, other) in cases.items():
        best, base = max(next(rates) for _ in mine), max(next(rates) for _ in other)
        if base > 0:
            found[where] = 100.0 * (best / base - 1.0)
    return found


def apex() -> list[Found]:
    """Attention of part of the batch on the host, against the device alone and half batches."""
    speeds = (12.5e9, 25e9, 100e9)
    t4, a10 = {}, {}
    for speed in speeds:
        t4 |= _apex_cases("t4", "llama-2-7b", speed)
        for model in ("llama-2-7b", "llama-3.1-8b"):
            a10 |= _apex_cases("a10", model, speed)
    alone = {"t4": _apex_gains(t4), "a10": _apex_gains(a10)}
    halves = {
        "t4": _apex_gains(_apex_cases("t4", "llama-2-7b", 25e9, 2)),
        "a10": _apex_gains(_apex_cases("a10", "llama-3.1-8b", 25e9, 2)),
    }
    swept = "host memory at 12.5 to 100 GB/s a device, 384 to 1280 tokens a request"
    note = "against half batches in turn, each of which reads all weights again"
    return [
        Finding(0, span(list(alone["t4"].values())), at=_named(alone["t4"], 90.0),
                range=f"Llama-2-7B (8B in 16 bits does not fit on a T4); {swept}"),
        Finding(1, span(list(alone["a10"].values())), at=_named(alone["a10"], 50.0), range=swept),
        Finding(2, span(list(halves["t4"].values())), at=_named(halves["t4"], 49.0),
                range="384 to 1280 tokens a request", note=note),
        Finding(3, span(list(halves["a10"].values())), at=_named(halves["a10"], 37.0),
                range="384 to 1280 tokens a request", note=note),
    ]  # fmt: skip


def moe_lens() -> list[Found]:
    """Batches that host memory sets against batches that device memory sets: Mixtral 8x7B.

    Both stream experts over the link beside their products; the baseline keeps its cache on the
    device (FlexGen's policy), or on the host and fetches it.
    """
    place = Placement(device_share=0.0, only="expert", overlap=True)
    bases = {"cache on the device": Treatment(placement=place),
             "cache fetched": Treatment(placement=place,
                                        kv=KvPolicy(place="host", overlap=True))}  # fmt: skip
    gains: dict[str, float] = {}
    for device, experts in (("t4", 90e9), ("l4", 90e9), ("a40", 90e9)):
        for cache in (70e9, 210e9):
            host = Host(memory_bandwidth=100e9, memory_capacity=experts + cache)
            for isl, osl in ((98, 32), (98, 128), (926, 128)):
                traffic = Traffic(isl=isl, osl=osl)
                every = [treatment_of("moe-lens"), *bases.values()]
                rates = _fullest([Scenario("mixtral-8x7b", device, traffic=traffic, host=host,
                                           techniques=t) for t in every])  # fmt: skip
                for name, rate in zip(bases, rates[1:], strict=True):
                    if rate > 0:
                        where = f"{isl} + {osl} tokens on {device}, {cache / 1e9:.0f} GB, {name}"
                        gains[where] = rates[0] / rate
    swept = "T4, L4 and A40, 70 and 210 GB of cache on the host at 100 GB/s, three data sets"
    return [
        Finding(0, span(list(gains.values())), at=_named(gains, 4.6), range=swept,
                note="the baseline's own policy is not stated: the range is over two"),
        Finding(1, span(list(gains.values())), at=_named(gains, 25.5), range=swept,
                note="a baseline that chooses a batch far too small is not modelled"),
        NotModelled(2, "the error of their model against their measurements"),
    ]  # fmt: skip


_MOE = ("mixtral-8x7b", "deepseek-v2-lite", "qwen3-30b-a3b")


def hybrimoe() -> list[Found]:
    """Missing experts shared between host and link, against all of them on the host; A6000.

    Host: ten cores at 100 GB/s and 0.7 Tflop/s (10 cores of 2 x 16 fp32 lanes at 2.2 GHz). The
    scored cache saves none to a fifth of the misses.
    """
    host = Host(memory_bandwidth=100e9, flops_per_s=0.7e12, memory_capacity=256e9)
    lengths = np.array([32.0, 128, 512])
    prefill: dict[str, float] = {}
    decode: dict[str, float] = {}
    for model in _MOE:
        for share in (0.25, 0.5, 0.75):
            names = [
                f"experts-on-host:device_share={share}",
                *(f"hybrimoe:device_share={share}:hit={h}" for h in (0.0, 0.1, 0.2)),
            ]
            cases = [Scenario(model, "rtx_a6000", traffic=Traffic(isl=128, osl=64), engine="hf",
                              host=host, techniques=n) for n in names]  # fmt: skip
            base, *mine = _solved(cases, Points.of(1, lengths, 64))
            for run, hit in zip(mine, (0, 10, 20), strict=True):
                where = f"{model}, {100 * share:.0f} % cached, {hit} % saved"
                decode[where] = float(base["tpot"][0] / run["tpot"][0])
                for i, n in enumerate(lengths):
                    gain = float(base["ttft"][i] / run["ttft"][i])
                    prefill[f"{n:.0f} tokens of {where}"] = gain
    swept = "three models, 25 to 75 % of the experts on the device, 0 to 20 % of misses saved"
    return [
        Finding(0, span(list(prefill.values())), at=_named(prefill, 1.33),
                range=f"prompts of 32 to 512 tokens, {swept}"),
        Finding(1, span(list(decode.values())), at=_named(decode, 1.7), range=swept),
    ]  # fmt: skip


def expertflow() -> list[Found]:
    """Experts predicted and fetched ahead against fetched when they are known; A40."""
    gains: dict[str, float] = {}
    saved: dict[str, float] = {}
    hits = (0.5, 0.8, 0.9, 0.95)
    for model in _MOE:
        names = ["expert-offload:device_share=0", *(f"expertflow:hit={h}" for h in hits)]
        cases = [Scenario(model, "a40", traffic=Traffic(isl=128, osl=64), engine="hf",
                          techniques=n) for n in names]  # fmt: skip
        base, *mine = (float(r["tpot"][0]) for r in _solved(cases, Points.of(1, 128, 64)))
        gains |= {f"{model}, {100 * h:.0f} % predicted": base / x
                  for h, x in zip(hits, mine, strict=True)}  # fmt: skip
        made = cases[0].made()
        experts = weight_bytes(made.network, made.formats, made.layout, made.treatment, "expert")
        total = weight_bytes(made.network, made.formats, made.layout, made.treatment)
        for share in (0.02, 0.1, 0.25, 0.5):
            where = f"{model}, {100 * share:.0f} % of the experts held"
            saved[where] = 100.0 * experts * (1.0 - share) / total
    return [
        Finding(0, span(list(saved.values())), at=_named(saved, 93.72),
                range="three models, 2 to 50 % of the experts on the device"),
        Finding(1, span(list(gains.values())), at=_named(gains, 6.0),
                range="50 to 95 % of the experts predicted in time, one sequence",
                note="regrouping of tokens over batches is not counted"),
    ]  # fmt: skip


def _moe_jobs(
    experts: int,
    tokens: int,
    names: Sequence[str],
    nodes: int = 4,
    network: float = 12.5e9,
    picks: int = 1,
) -> list[Job]:
    """Decode passes of a GPT of 24 expert layers (1024 wide), one expert a device.

    `network` bytes/s a device: two ports of 200 Gb/s for the four devices of a node.
    """
    plain = resolve("a100_sxm_40gb")
    hw = replace(plain, links={**plain.links, "network": Link(network, 5e-6)})
    block = Block(24, GroupedAttention(16, 16, 64, rotary=False),
                  MoeFfn(experts, picks, 4096, gated=False))  # fmt: skip
    model = Decoder("gpt-moe", hidden=1024, vocab=50257, blocks=(block,), tied=True)
    layout = Layout(dp=experts, ep=experts, gpus_per_node=nodes)
    group = [Tokens(float(experts * tokens), 1.0, 128.0)]
    jobs = []
    for name in names:
        t = treatment_of(name)
        machine = Machine(hw, layout, formats_of(model, hw, treatment=t), engine("vllm"))
        jobs.append(Job(model, machine, group, t))
    return jobs


_EXCHANGE = ("dispatch", "combine")


def exflow() -> list[Found]:
    """One exchange a layer, fewer tokens over the links: a GPT with 8 to 64 experts, A100s.

    Four devices a node; by affinity 0 to 50 % of the tokens stay on their device.
    """
    names = ["", *(f"exflow:stay={s}" for s in (0.0, 0.3, 0.5))]
    routed: dict[str, float] = {}
    faster: dict[str, float] = {}
    left = []
    for experts in (8, 16, 32, 64):
        for tokens in (16, 256, 4096):
            runs = run_passes(_moe_jobs(experts, tokens, names))
            sent = [float(r.timed.total(_EXCHANGE)[0][0]) for r in runs]
            count = [sum(float(np.max(n)) for c, n in zip(r.timed.calls, r.timed.count, strict=True)
                         if c.part in _EXCHANGE) / 24.0 for r in runs]  # fmt: skip
            left.append(count[1])
            for stay, s, r in zip((0, 30, 50), sent[1:], runs[1:], strict=True):
                where = f"{experts} experts, {tokens} tokens a device, {stay} % stay"
                routed[where] = 100.0 * (1.0 - s / sent[0])
                faster[where] = float(runs[0].time[0] / r.time[0])
    swept = "8 to 64 experts, 16 to 4096 tokens a device, 0 to 50 % stay"
    return [
        Finding(0, span(left), at="results stay where the next layer finds their context",
                tolerance=0.01),
        Finding(1, span(list(routed.values())), at=_named(routed, 67.0), range=swept),
        Finding(2, span(list(faster.values())), at=_named(faster, 2.2), range=swept,
                note="an exchange that runs at its link's rate is a small share of a pass; "
                "the source's stack spends most of the pass in it"),
    ]  # fmt: skip


def lsh_moe() -> list[Found]:
    """Centroids instead of tokens in the exchange of a training step's expert layers, A100s.

    Forward and backward passes exchange alike, and the backward pass computes twice as much. Nodes
    of eight devices share ports of 100 to 800 Gb/s.
    """
    names = ["", *(f"lsh-moe:kept={k}" for k in (0.1, 0.2, 0.4))]
    shares: dict[str, float] = {}
    faster: dict[str, float] = {}
    for ports, experts, picks in product((100, 200, 800), (16, 64), (1, 2)):
        runs = run_passes(_training_jobs(experts, names, ports * 1e9 / 64, picks))
        sent = [2.0 * float(r.timed.total(_EXCHANGE)[0][0]) for r in runs]
        rest = 3.0 * (float(runs[0].time[0]) - sent[0] / 2.0)
        where = f"{experts} experts, {picks} a token, {ports} Gb/s a node"
        shares[where] = 100.0 * sent[0] / (sent[0] + rest)
        for kept, s in zip((10, 20, 40), sent[1:], strict=True):
            faster[f"{where}, {kept} % kept"] = (sent[0] + rest) / (s + rest)
    swept = "16 and 64 experts, 1 or 2 a token, nodes of eight devices with 100 to 800 Gb/s"
    return [
        Finding(0, span(list(shares.values())), at=_named(shares, 45.0), range=swept,
                note="hashing is not counted; the sources' layers are smaller"),
        Finding(1, span(list(faster.values())), at=_named(faster, 1.7),
                range=f"{swept}, 10 to 40 % of the tokens kept"),
    ]  # fmt: skip


def _training_jobs(experts: int, names: Sequence[str], network: float, picks: int) -> list[Job]:
    """Make passes over 16 sequences of 512 tokens a device."""
    jobs = _moe_jobs(experts, 1, names, 8, network, picks)
    return [replace(job, groups=[Tokens(16.0 * experts, 512.0, 512.0, 512.0)]) for job in jobs]
